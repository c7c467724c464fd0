//! Egress addresses that came to this node are announced to its neighbours, a few times.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use tokio::{sync::watch, time::Instant};

use crate::{
    AddressesDesired, Announcer,
    runtime::{metrics::AgentMetrics, time::wait_until},
};

/// How often an address is announced. RFC 4861 (7.2.6) allows an IPv6 node three unsolicited
/// advertisements (`MAX_NEIGHBOR_ADVERTISEMENT`), RFC 5227 (2.3) asks an IPv4 host for two
/// announcements (`ANNOUNCE_NUM`). Each may be lost.
const TIMES: u32 = 3;

/// Time between two of them: `RetransTimer` of RFC 4861 at its default. The third is as far behind
/// the first as the second of RFC 5227 (`ANNOUNCE_INTERVAL`, two seconds).
const INTERVAL: Duration = Duration::from_secs(1);

/// What is still to be announced. Pure: time comes in.
#[derive(Debug, Default)]
struct Schedule(BTreeMap<IpAddr, Turn>);

#[derive(Debug)]
struct Turn {
    device: String,
    left: u32,
    at: Instant,
    /// The last attempt failed, and was told.
    failed: bool,
}

impl Schedule {
    /// These addresses are the node's: new ones, and those that moved to another device, are due at
    /// once.
    fn follow(&mut self, desired: &AddressesDesired, now: Instant) {
        self.0
            .retain(|address, turn| desired.held.get(address) == Some(&turn.device));
        for (address, device) in &desired.held {
            self.0.entry(*address).or_insert_with(|| Turn {
                device: device.clone(),
                left: TIMES,
                at: now,
                failed: false,
            });
        }
    }

    fn due(&self, now: Instant) -> AddressesDesired {
        let due = self
            .0
            .iter()
            .filter(|(_, turn)| turn.left > 0 && turn.at <= now);
        AddressesDesired {
            held: due
                .map(|(address, turn)| (*address, turn.device.clone()))
                .collect(),
        }
    }

    fn next(&self) -> Option<Instant> {
        self.0
            .values()
            .filter(|turn| turn.left > 0)
            .map(|turn| turn.at)
            .min()
    }

    fn announced(&mut self, address: IpAddr, now: Instant) {
        if let Some(turn) = self.0.get_mut(&address) {
            *turn = Turn {
                left: turn.left.saturating_sub(1),
                at: now + INTERVAL,
                failed: false,
                device: std::mem::take(&mut turn.device),
            };
        }
    }

    /// It is tried again, until it succeeds or the address goes; whether this is news.
    fn failed(&mut self, address: IpAddr, now: Instant) -> bool {
        let Some(turn) = self.0.get_mut(&address) else {
            return false;
        };
        turn.at = now + INTERVAL;
        !std::mem::replace(&mut turn.failed, true)
    }
}

/// Announces.
pub(crate) struct Announcements {
    pub(crate) announcer: Arc<dyn Announcer>,
    pub(crate) metrics: AgentMetrics,
}

impl Announcements {
    /// Until nobody says any more which addresses the node holds. After a start all are announced:
    /// nobody knows whether they were before.
    pub(crate) async fn run(self, mut held: watch::Receiver<AddressesDesired>) {
        let mut schedule = Schedule::default();
        loop {
            let now = Instant::now();
            schedule.follow(&held.borrow_and_update(), now);
            self.announce(&mut schedule, now);
            tokio::select! {
                changed = held.changed() => if changed.is_err() {
                    return;
                },
                () = wait_until(schedule.next()) => {}
            }
        }
    }

    fn announce(&self, schedule: &mut Schedule, now: Instant) {
        let due = schedule.due(now);
        if due.held.is_empty() {
            return;
        }
        let failures: BTreeMap<IpAddr, _> = self.announcer.announce(&due).into_iter().collect();
        for (address, device) in &due.held {
            match failures.get(address) {
                None => {
                    tracing::debug!(%address, device, "announced egress address");
                    self.metrics.announced();
                    schedule.announced(*address, now);
                }
                Some(error) => {
                    self.metrics.not_announced(error.kind);
                    if schedule.failed(*address, now) {
                        tracing::warn!(%address, device, kind = error.kind.as_str(), error = error.chain(), "cannot announce egress address");
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::{Error, ErrorKind};

    /// What was announced when, and how many attempts fail first.
    #[derive(Default)]
    struct Journal {
        heard: Mutex<Vec<(u64, String)>>,
        failures: Mutex<u32>,
        began: Mutex<Option<Instant>>,
    }

    impl Announcer for Journal {
        fn announce(&self, addresses: &AddressesDesired) -> Vec<(IpAddr, Error)> {
            let began = *self.began.lock().unwrap().get_or_insert_with(Instant::now);
            let mut failures = self.failures.lock().unwrap();
            if *failures > 0 {
                *failures -= 1;
                return addresses
                    .held
                    .keys()
                    .map(|address| (*address, Error::new(ErrorKind::Transient, "no")))
                    .collect();
            }
            let heard = addresses.held.iter().map(|(address, device)| {
                (began.elapsed().as_secs(), format!("{address} {device}"))
            });
            self.heard.lock().unwrap().extend(heard);
            Vec::new()
        }
    }

    fn held(addresses: &[(&str, &str)]) -> AddressesDesired {
        let parse = |(address, device): &(&str, &str)| {
            (address.parse::<IpAddr>().unwrap(), (*device).to_owned())
        };
        AddressesDesired {
            held: addresses.iter().map(parse).collect(),
        }
    }

    fn started(journal: &Arc<Journal>) -> (watch::Sender<AddressesDesired>, AgentMetrics) {
        let (sender, receiver) = watch::channel(AddressesDesired::default());
        let metrics = AgentMetrics::default();
        tokio::spawn(
            Announcements {
                announcer: journal.clone(),
                metrics: metrics.clone(),
            }
            .run(receiver),
        );
        (sender, metrics)
    }

    fn heard(journal: &Journal) -> Vec<(u64, String)> {
        std::mem::take(&mut journal.heard.lock().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_is_announced_three_times_a_second_apart_and_then_no_more() {
        let journal = Arc::new(Journal::default());
        let (sender, _) = started(&journal);
        sender.send_replace(held(&[("10.6.0.60", "eth0")]));
        tokio::time::sleep(Duration::from_secs(60)).await;
        let first = |second| (second, "10.6.0.60 eth0".to_owned());
        assert_eq!(heard(&journal), [first(0), first(1), first(2)]);
        sender.send_replace(held(&[("10.6.0.60", "eth0"), ("fd00:6::60", "eth0")]));
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(
            heard(&journal)
                .iter()
                .all(|(_, text)| text == "fd00:6::60 eth0"),
            "what is known is not announced again"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_goes_is_announced_no_more_and_again_when_it_comes_back_or_moves() {
        let journal = Arc::new(Journal::default());
        let (sender, _) = started(&journal);
        sender.send_replace(held(&[("10.6.0.60", "eth0")]));
        tokio::time::sleep(Duration::from_millis(500)).await;
        sender.send_replace(held(&[]));
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(heard(&journal).len(), 1);
        sender.send_replace(held(&[("10.6.0.60", "eth0")]));
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(heard(&journal).len(), 3);
        sender.send_replace(held(&[("10.6.0.60", "eth1")]));
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(heard(&journal).len(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn an_announcement_that_fails_is_made_up_for() {
        let journal = Arc::new(Journal::default());
        *journal.failures.lock().unwrap() = 5;
        let (sender, metrics) = started(&journal);
        sender.send_replace(held(&[("10.6.0.60", "eth0")]));
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(
            heard(&journal)
                .iter()
                .map(|(second, _)| *second)
                .collect::<Vec<_>>(),
            [5, 6, 7]
        );
        assert_eq!(metrics.announcements(), (3, 5));
    }
}
