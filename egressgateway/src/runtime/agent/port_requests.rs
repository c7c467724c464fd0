//! Which ports the agent asks for, and how long after the last pod that needed them. Pure; time
//! comes in.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use tokio::time::Instant;

/// How long ports are asked for after the last pod that needed them is gone: the next one finds
/// them, and pods that come and go are no writes.
const KEPT: Duration = Duration::from_secs(600);

/// The ports that the agent asks for.
#[derive(Debug, Default)]
pub(crate) struct PortRequests {
    asked: BTreeMap<IpAddr, Request>,
    began: bool,
}

#[derive(Debug)]
struct Request {
    units: u16,
    /// No pod needs them, and they are asked for until then.
    until: Option<Instant>,
}

impl PortRequests {
    /// Pods need these now, in units of each address. What the node's status `said` before the
    /// agent started is taken for needed until that moment.
    pub(crate) fn follow(
        &mut self,
        wanted: &BTreeMap<IpAddr, u16>,
        said: &BTreeMap<IpAddr, u16>,
        now: Instant,
    ) {
        let kept = now + KEPT;
        if !std::mem::replace(&mut self.began, true) {
            let request = |(address, units): (&IpAddr, &u16)| {
                let until = Some(kept);
                (
                    *address,
                    Request {
                        units: *units,
                        until,
                    },
                )
            };
            self.asked = said.iter().map(request).collect();
        }
        for (address, request) in &mut self.asked {
            if !wanted.contains_key(address) {
                request.until.get_or_insert(kept);
            }
        }
        let request = |(address, units): (&IpAddr, &u16)| {
            let until = None;
            (
                *address,
                Request {
                    units: *units,
                    until,
                },
            )
        };
        self.asked.extend(wanted.iter().map(request));
    }

    /// What the node's status must say.
    pub(crate) fn asked(&self) -> BTreeMap<IpAddr, u16> {
        let units = |(address, request): (&IpAddr, &Request)| (*address, request.units);
        self.asked.iter().map(units).collect()
    }

    /// Forgets what was kept long enough. True: there was something.
    pub(crate) fn expire(&mut self, now: Instant) -> bool {
        let before = self.asked.len();
        self.asked
            .retain(|_, request| request.until.is_none_or(|until| now < until));
        self.asked.len() < before
    }

    /// When something expires.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.asked
            .values()
            .filter_map(|request| request.until)
            .min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports<const N: usize>(of: [(u8, u16); N]) -> BTreeMap<IpAddr, u16> {
        of.map(|(last, units)| (IpAddr::from([10, 6, 0, last]), units))
            .into()
    }

    #[tokio::test(start_paused = true)]
    async fn ports_are_asked_for_until_ten_minutes_after_the_last_pod_that_needed_them() {
        let mut requests = PortRequests::default();
        requests.follow(&ports([(1, 4), (2, 4)]), &ports([]), Instant::now());
        assert_eq!(requests.asked(), ports([(1, 4), (2, 4)]));
        assert_eq!(requests.next(), None);
        requests.follow(&ports([(1, 4)]), &ports([]), Instant::now());
        let end = requests.next().unwrap();
        tokio::time::sleep(Duration::from_secs(300)).await;
        // Looking again, at whatever else changed, is no reason to keep them longer.
        requests.follow(&ports([(1, 8)]), &ports([]), Instant::now());
        assert_eq!(requests.asked(), ports([(1, 8), (2, 4)]));
        assert_eq!(requests.next(), Some(end));
        tokio::time::sleep(Duration::from_secs(299)).await;
        assert!(!requests.expire(Instant::now()));
        tokio::time::sleep_until(end).await;
        assert!(requests.expire(Instant::now()));
        assert_eq!((requests.asked(), requests.next()), (ports([(1, 8)]), None));
        assert!(!requests.expire(Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_comes_back_finds_its_ports_and_the_time_begins_anew_when_it_goes() {
        let mut requests = PortRequests::default();
        for _ in 0..3 {
            requests.follow(&ports([(1, 4)]), &ports([]), Instant::now());
            assert_eq!(requests.next(), None);
            requests.follow(&ports([]), &ports([]), Instant::now());
            assert_eq!(requests.next(), Some(Instant::now() + KEPT));
            tokio::time::sleep(Duration::from_secs(599)).await;
            assert!(!requests.expire(Instant::now()));
            assert_eq!(requests.asked(), ports([(1, 4)]));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_starts_anew_gives_nothing_back_that_it_asked_for_a_moment_ago() {
        let mut requests = PortRequests::default();
        let said = ports([(1, 4), (2, 4)]);
        requests.follow(&ports([(2, 8)]), &said, Instant::now());
        assert_eq!(requests.asked(), ports([(1, 4), (2, 8)]));
        tokio::time::sleep(KEPT).await;
        requests.follow(&ports([(2, 8)]), &said, Instant::now());
        assert!(requests.expire(Instant::now()));
        assert_eq!(requests.asked(), ports([(2, 8)]));
    }
}
