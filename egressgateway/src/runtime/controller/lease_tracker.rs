//! Which agents are alive, by their Leases.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use k8s_openapi::{api::coordination::v1::LeaseSpec, jiff::Timestamp};
use tokio::time::Instant;

use crate::{model::NodeName, runtime::kube::contact::Contact};

/// Which agents are alive, by when this process saw their Leases renewed: no two clocks are
/// compared.
///
/// A Lease ages only while its renewal could have been seen. Without an answer of the API server,
/// time stands still. After that, and whenever the watch of the Leases fails, those that were fresh
/// before have their time again, **twice**: agents may hear of the API server's return later than
/// this process, by the time that their node's proxy of Services needs for it. The same holds for
/// the Leases that a new process finds: it waits before it believes an agent dead.
#[derive(Clone, Debug, Default)]
pub(crate) struct LeaseTracker {
    leases: BTreeMap<NodeName, TrackedLease>,
    contact: Option<Contact>,
    /// All Leases were listed once: what is new after that, an agent has just made.
    listed: bool,
}

#[derive(Clone, Debug)]
struct TrackedLease {
    renewed: Option<Timestamp>,
    lasts: Duration,
    until: Instant,
    /// This process saw a renewal, not only the Lease as somebody left it.
    proven: bool,
}

impl TrackedLease {
    fn again(&mut self, now: Instant) {
        self.until = self.until.max(now + self.lasts * 2);
    }
}

impl LeaseTracker {
    /// A node's Lease was added, changed or (`None`) deleted; true when that changes who is alive.
    pub(crate) fn observe(
        &mut self,
        node: &NodeName,
        lease: Option<&LeaseSpec>,
        now: Instant,
    ) -> bool {
        let before = self.life(node, now);
        self.note(node, lease, now);
        before != self.life(node, now)
    }

    /// Whether it is fresh, and proven to be.
    fn life(&self, node: &NodeName, now: Instant) -> Option<bool> {
        self.leases
            .get(node)
            .filter(|lease| self.clock(now) < lease.until)
            .map(|lease| lease.proven)
    }

    fn note(&mut self, node: &NodeName, lease: Option<&LeaseSpec>, now: Instant) {
        let Some(lease) = lease else {
            self.leases.remove(node);
            return;
        };
        let renewed = lease.renew_time.as_ref().map(|time| time.0);
        let seconds = lease
            .lease_duration_seconds
            .and_then(|seconds| u64::try_from(seconds).ok())
            .unwrap_or_default();
        let lasts = Duration::from_secs(seconds);
        match self.leases.get(node) {
            Some(lease) if lease.renewed == renewed => {}
            Some(_) => {
                _ = self.leases.insert(
                    node.clone(),
                    TrackedLease {
                        renewed,
                        lasts,
                        until: now + lasts,
                        proven: true,
                    },
                );
            }
            None => {
                let until = now + if self.listed { lasts } else { lasts * 2 };
                self.leases.insert(
                    node.clone(),
                    TrackedLease {
                        renewed,
                        lasts,
                        until,
                        proven: self.listed,
                    },
                );
            }
        }
    }

    /// All Leases were reported.
    pub(crate) fn listed(&mut self) {
        self.listed = true;
    }

    /// When the API server answered last.
    pub(crate) fn heard(&mut self, contact: Option<Contact>) {
        let Some(now) = contact else { return };
        if let Some(before) = self.contact.filter(|before| before.since != now.since) {
            self.again(before.last, now.since);
        }
        self.contact = contact;
    }

    /// The watch of the Leases failed: renewals may have been missed.
    pub(crate) fn interrupted(&mut self, now: Instant) {
        self.again(self.clock(now), now);
    }

    fn again(&mut self, before: Instant, now: Instant) {
        self.leases
            .values_mut()
            .filter(|lease| before < lease.until)
            .for_each(|lease| lease.again(now));
    }

    /// The time by which Leases age: it stands still where the API server does not answer.
    pub(crate) fn clock(&self, now: Instant) -> Instant {
        self.contact.map_or(now, |contact| now.min(contact.until))
    }

    /// The nodes whose agents are alive.
    pub(crate) fn fresh(&self, now: Instant) -> BTreeSet<NodeName> {
        let now = self.clock(now);
        self.leases
            .iter()
            .filter(|(_, lease)| now < lease.until)
            .map(|(node, _)| node.clone())
            .collect()
    }

    /// Those of [`Self::fresh`] whose Lease is as this process found it: only time will tell.
    pub(crate) fn unproven(&self) -> impl Iterator<Item = &NodeName> {
        self.leases
            .iter()
            .filter(|(_, lease)| !lease.proven)
            .map(|(node, _)| node)
    }

    /// The nodes whose agents did not renew their Lease in time.
    pub(crate) fn stale(&self, now: Instant) -> BTreeSet<NodeName> {
        let now = self.clock(now);
        self.leases
            .iter()
            .filter(|(_, lease)| now >= lease.until)
            .map(|(node, _)| node.clone())
            .collect()
    }

    /// When the next Lease goes stale unless it is renewed, after this time of [`Self::clock`].
    /// None: not before the API server answers again.
    pub(crate) fn next_expiry(&self, clock: Instant) -> Option<Instant> {
        let reached = |until: &Instant| {
            *until > clock && self.contact.is_none_or(|contact| *until <= contact.until)
        };
        self.leases
            .values()
            .map(|lease| lease.until)
            .filter(reached)
            .min()
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

    use super::*;

    fn lease(second: i64) -> LeaseSpec {
        LeaseSpec {
            lease_duration_seconds: Some(40),
            renew_time: Some(MicroTime(Timestamp::from_second(second).unwrap())),
            ..LeaseSpec::default()
        }
    }

    /// Seconds from the beginning of the test.
    struct Clock(Instant);

    impl Clock {
        fn at(&self, seconds: u64) -> Instant {
            self.0 + Duration::from_secs(seconds)
        }

        fn contact(&self, since: u64, last: u64) -> Contact {
            Contact {
                since: self.at(since),
                last: self.at(last),
                until: self.at(last + 7),
            }
        }
    }

    fn clock() -> Clock {
        Clock(Instant::now())
    }

    /// Two agents of which the first was renewed at second 10 and the second is silent since long.
    fn one_of_two(clock: &Clock) -> LeaseTracker {
        let mut tracker = LeaseTracker::default();
        tracker.observe(
            &"silent".into(),
            Some(&LeaseSpec {
                lease_duration_seconds: Some(1),
                ..lease(1)
            }),
            clock.at(0),
        );
        tracker.observe(&"a".into(), Some(&lease(1)), clock.at(0));
        tracker.observe(&"a".into(), Some(&lease(2)), clock.at(10));
        tracker.heard(Some(clock.contact(0, 10)));
        tracker
    }

    fn fresh(tracker: &LeaseTracker, now: Instant) -> Vec<String> {
        tracker.fresh(now).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_lease_is_fresh_for_its_duration_after_a_renewal_was_seen_whatever_its_clock_says() {
        let (clock, node) = (clock(), NodeName::from("a"));
        let at = |seconds| clock.at(seconds);
        let mut tracker = LeaseTracker::default();
        assert!(tracker.observe(&node, Some(&lease(4)), at(0)));
        assert!(tracker.observe(&node, Some(&lease(5)), at(0)), "proven now");
        assert!(tracker.fresh(at(39)).contains(&node));
        assert_eq!(tracker.next_expiry(at(39)), Some(at(40)));
        assert!(!tracker.observe(&node, Some(&lease(5)), at(39)));
        assert!(tracker.stale(at(39)).is_empty());
        assert!(tracker.stale(at(40)).contains(&node));
        assert!(
            tracker.fresh(at(40)).is_empty(),
            "the same renewal seen again prolongs nothing"
        );
        assert_eq!(tracker.next_expiry(at(40)), None);
        assert!(tracker.observe(&node, Some(&lease(4)), at(50)));
        assert!(
            tracker.fresh(at(89)).contains(&node),
            "a clock that was set back still renews"
        );
        assert!(tracker.observe(&node, None, at(60)));
        assert!(
            tracker.stale(at(99)).is_empty(),
            "a lease that is gone is not stale"
        );
        assert!(
            tracker.fresh(at(60)).is_empty(),
            "a lease that is gone is not held"
        );
    }

    #[test]
    fn a_lease_that_is_found_has_its_time_twice_and_is_not_proven_before_it_is_renewed() {
        let (clock, node) = (clock(), NodeName::from("a"));
        let mut tracker = LeaseTracker::default();
        tracker.observe(&node, Some(&lease(1)), clock.at(0));
        assert_eq!(tracker.unproven().collect::<Vec<_>>(), [&node]);
        assert!(tracker.fresh(clock.at(79)).contains(&node));
        assert!(tracker.stale(clock.at(80)).contains(&node));
        tracker.observe(&node, Some(&lease(2)), clock.at(10));
        assert_eq!(tracker.unproven().count(), 0);
        assert!(
            tracker.stale(clock.at(50)).contains(&node),
            "from its renewal on it is a Lease like any other"
        );
        tracker.listed();
        let new = NodeName::from("new");
        tracker.observe(&new, Some(&lease(1)), clock.at(50));
        assert_eq!(
            tracker.unproven().count(),
            0,
            "what comes after the list was made by a living agent"
        );
        assert!(tracker.stale(clock.at(90)).contains(&new));
    }

    #[test]
    fn without_the_api_server_no_lease_ages_and_after_its_return_each_that_was_fresh_has_its_time_twice()
     {
        let clock = clock();
        let mut tracker = one_of_two(&clock);
        for absence in [20, 60, 180, 3600] {
            assert_eq!(
                fresh(&tracker, clock.at(10 + absence)),
                ["a"],
                "after {absence} seconds"
            );
            assert_eq!(
                tracker.next_expiry(tracker.clock(clock.at(10 + absence))),
                None,
                "there is nothing to wait for"
            );
        }
        tracker.heard(Some(clock.contact(190, 190)));
        tracker.heard(Some(clock.contact(190, 300)));
        assert_eq!(fresh(&tracker, clock.at(269)), ["a"]);
        assert_eq!(tracker.next_expiry(clock.at(269)), Some(clock.at(270)));
        assert_eq!(
            fresh(&tracker, clock.at(270)),
            [""; 0],
            "it did not come back"
        );
    }

    #[test]
    fn a_pause_that_was_over_before_anybody_looked_counts_as_well() {
        let clock = clock();
        let mut tracker = one_of_two(&clock);
        // This process stood still for a minute, and first of all it asked the API server.
        tracker.heard(Some(clock.contact(70, 70)));
        assert_eq!(
            fresh(&tracker, clock.at(71)),
            ["a"],
            "what it could not hear counts against nobody"
        );
    }

    #[test]
    fn each_failure_of_the_watch_gives_those_that_are_fresh_their_time_twice() {
        let clock = clock();
        let mut tracker = one_of_two(&clock);
        tracker.heard(Some(clock.contact(0, 1000)));
        tracker.interrupted(clock.at(45));
        tracker.interrupted(clock.at(100));
        assert_eq!(fresh(&tracker, clock.at(179)), ["a"]);
        assert_eq!(fresh(&tracker, clock.at(180)), [""; 0]);
        tracker.interrupted(clock.at(181));
        assert_eq!(
            fresh(&tracker, clock.at(181)),
            [""; 0],
            "who was silent while it could be heard stays so"
        );
    }

    #[test]
    fn a_renewal_after_the_return_counts_like_any_other() {
        let clock = clock();
        let mut tracker = one_of_two(&clock);
        tracker.heard(Some(clock.contact(70, 70)));
        tracker.observe(&"a".into(), Some(&lease(3)), clock.at(72));
        tracker.heard(Some(clock.contact(70, 200)));
        assert_eq!(fresh(&tracker, clock.at(111)), ["a"]);
        assert_eq!(fresh(&tracker, clock.at(112)), [""; 0]);
    }
}
