use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use k8s_openapi::{api::coordination::v1::LeaseSpec, jiff::Timestamp};
use tokio::time::Instant;

use crate::model::NodeName;

/// Which agents are alive, by when this process saw their Leases renewed: no two clocks are compared.
///
/// A Lease that is seen for the first time counts as renewed now: a new leader waits before it believes an agent dead.
#[derive(Clone, Debug, Default)]
pub(super) struct Freshness {
    seen: BTreeMap<NodeName, Seen>,
}

#[derive(Clone, Debug)]
struct Seen {
    renewed: Option<Timestamp>,
    until: Instant,
}

impl Freshness {
    /// A node's Lease is so now, or is gone; true when that changes who is alive.
    pub(super) fn observe(&mut self, node: &NodeName, lease: Option<&LeaseSpec>, now: Instant) -> bool {
        let before = self.is_fresh(node, now);
        self.note(node, lease, now);
        before != self.is_fresh(node, now)
    }

    fn is_fresh(&self, node: &NodeName, now: Instant) -> bool {
        self.seen.get(node).is_some_and(|seen| now < seen.until)
    }

    fn note(&mut self, node: &NodeName, lease: Option<&LeaseSpec>, now: Instant) {
        let Some(lease) = lease else {
            self.seen.remove(node);
            return;
        };
        let renewed = lease.renew_time.as_ref().map(|time| time.0);
        let seconds = lease.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or_default();
        match self.seen.get(node) {
            Some(seen) if seen.renewed == renewed => {}
            _ => {
                self.seen.insert(node.clone(), Seen { renewed, until: now + Duration::from_secs(seconds) });
            }
        }
    }

    /// The nodes whose agents are alive.
    pub(super) fn fresh(&self, now: Instant) -> BTreeSet<NodeName> {
        self.seen.iter().filter(|(_, seen)| now < seen.until).map(|(node, _)| node.clone()).collect()
    }

    /// The nodes whose agents did not renew their Lease in time.
    pub(super) fn stale(&self, now: Instant) -> BTreeSet<NodeName> {
        self.seen.iter().filter(|(_, seen)| now >= seen.until).map(|(node, _)| node.clone()).collect()
    }

    /// When the next Lease goes stale unless it is renewed.
    pub(super) fn next_expiry(&self, now: Instant) -> Option<Instant> {
        self.seen.values().map(|seen| seen.until).filter(|until| *until > now).min()
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

    #[test]
    fn a_lease_is_fresh_for_its_duration_after_a_renewal_was_seen_whatever_its_clock_says() {
        let (start, node) = (Instant::now(), NodeName::from("a"));
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut freshness = Freshness::default();
        assert!(freshness.observe(&node, Some(&lease(5)), at(0)));
        assert!(freshness.fresh(at(39)).contains(&node));
        assert_eq!(freshness.next_expiry(at(39)), Some(at(40)));
        assert!(!freshness.observe(&node, Some(&lease(5)), at(39)));
        assert!(freshness.stale(at(39)).is_empty());
        assert!(freshness.stale(at(40)).contains(&node));
        assert!(freshness.fresh(at(40)).is_empty(), "the same renewal seen again prolongs nothing");
        assert_eq!(freshness.next_expiry(at(40)), None);
        assert!(freshness.observe(&node, Some(&lease(4)), at(50)));
        assert!(freshness.fresh(at(89)).contains(&node), "a clock that was set back still renews");
        assert!(freshness.observe(&node, None, at(60)));
        assert!(freshness.stale(at(99)).is_empty(), "a lease that is gone is not stale");
        assert!(freshness.fresh(at(60)).is_empty(), "a lease that is gone is not held");
    }
}
