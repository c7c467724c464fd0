//! Connections that began before a policy was in force, and go on past it until the kernel forgets them.

use std::net::IpAddr;

use async_trait::async_trait;

use crate::{
    Error, PolicyDesired,
    model::{ClassId, Family, IpRange, MarkMask, Verdict},
};

/// A connection as connection tracking knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Who began it.
    pub source: IpAddr,
    /// The address that its first packet was sent to, such as a service's.
    pub destination: IpAddr,
    /// The address that it goes to after destination translation; the same as `destination` without one.
    pub translated: IpAddr,
    /// The connection mark.
    pub mark: u32,
}

/// Which destination a policy backend sees when it classifies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DestinationView {
    /// After destination translation: of a service, the backend that was chosen.
    #[default]
    Translated,
    /// Before it: of a service, the service's own address.
    AsSent,
}

/// The connections that the kernel tracks. The netlink crate has the implementation; a test can have its own.
#[async_trait]
pub trait Connections: Send + Sync {
    /// Makes the kernel forget every connection that `stale` is true of, and returns how many that were. The next packet of such a
    /// connection is classified like a first one. What ends at this host itself, or at a group, is not asked about: no backend governs it.
    ///
    /// # Errors
    /// When the kernel can't be read or refuses; some may have been forgotten then.
    async fn forget(&self, stale: &(dyn for<'a> Fn(&'a Connection) -> bool + Send + Sync)) -> Result<u64, Error>;
}

impl PolicyDesired {
    /// What becomes of a new connection of a pod of this node, by its source and the destination that the backend sees.
    /// [`Verdict::Pass`] where nothing governs it.
    #[must_use]
    pub fn verdict(&self, source: IpAddr, destination: IpAddr) -> Verdict {
        let Some(class) = self.class_of(source) else { return Verdict::Pass };
        let found = self.destinations.range(..=(class, at_most(destination))).next_back();
        let found = found.filter(|((of, range), _)| *of == class && range.contains(destination)).map(|(_, verdict)| *verdict);
        // Last, because it looks at every network.
        found.filter(|_| !self.is_exempt(destination)).unwrap_or(Verdict::Pass)
    }

    /// Whether a connection that nothing governs would be governed, or wait, if it began now: it began before the policy did, or when the
    /// pod's address was another pod's.
    #[must_use]
    pub fn is_stale(&self, connection: &Connection, view: DestinationView, mask: MarkMask) -> bool {
        let seen = match view {
            DestinationView::Translated => connection.translated,
            DestinationView::AsSent => connection.destination,
        };
        // A backend that looks before translation lets go what translation then sends into the cluster.
        connection.mark & mask.bits() == 0
            && (self.verdict(connection.source, seen) != Verdict::Pass || self.waits(connection.source, seen))
            && (seen == connection.translated || !self.is_exempt(connection.translated))
    }

    /// Whether the start gate holds a new connection, because its source is not known.
    fn waits(&self, source: IpAddr, destination: IpAddr) -> bool {
        let gate = self.start_gate.as_ref().filter(|gate| gate.holds(source, destination));
        gate.is_some() && self.class_of(source).is_none() && !self.is_exempt(destination)
    }

    fn class_of(&self, source: IpAddr) -> Option<ClassId> {
        let by_subnet = || self.subnets.range(..=at_most(source)).next_back().filter(|(range, _)| range.contains(source));
        self.pods.get(&source).copied().or_else(|| by_subnet().map(|(_, class)| *class))
    }

    fn is_exempt(&self, destination: IpAddr) -> bool {
        self.exempt.iter().any(|net| net.contains(&destination))
    }
}

/// The last of all ranges that begin at `address` or before it, as they are ordered.
fn at_most(address: IpAddr) -> IpRange {
    let end = IpRange::everything(Family::of(address)).last();
    IpRange::new(address, end).unwrap_or(IpRange::single(address))
}

#[cfg(test)]
mod tests {
    use imbl::{OrdMap, OrdSet};
    use proptest::prelude::*;

    use super::*;
    use crate::{
        StartGate,
        model::{SourceNat, TargetId},
    };

    const TO_FIRST: Verdict = Verdict::Egress { target: TargetId::FIRST, source_nat: SourceNat::NodeAddress };

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn class(id: u32) -> ClassId {
        ClassId::new(id).unwrap()
    }

    fn range(text: &str) -> IpRange {
        text.parse::<ipnet::IpNet>().unwrap().into()
    }

    fn policy() -> PolicyDesired {
        PolicyDesired {
            pods: OrdMap::from_iter([(ip("10.244.0.5"), class(1)), (ip("fd00:244::5"), class(1))]),
            subnets: OrdMap::from_iter([(range("10.244.0.0/24"), class(2))]),
            destinations: OrdMap::from_iter([
                ((class(1), range("10.6.0.0/24")), Verdict::Hold),
                ((class(1), range("10.6.1.0/24")), TO_FIRST),
                ((class(1), range("fd00:6::/32")), TO_FIRST),
                ((class(2), range("10.6.1.7/32")), Verdict::Hold),
            ]),
            exempt: OrdSet::unit("10.6.1.128/25".parse().unwrap()),
            ..PolicyDesired::default()
        }
    }

    fn connection(source: &str, destination: &str, translated: &str) -> Connection {
        let [source, destination, translated] = [source, destination, translated].map(|text| text.parse().unwrap());
        Connection { source, destination, translated, mark: 0x00ff_ffff }
    }

    #[test]
    fn the_verdict_is_the_one_of_the_class_and_the_range() {
        let policy = policy();
        let verdict = |source: &str, destination: &str| policy.verdict(source.parse().unwrap(), destination.parse().unwrap());
        assert_eq!(verdict("10.244.0.5", "10.6.1.7"), TO_FIRST, "an address takes precedence over a subnet");
        assert_eq!(verdict("10.244.0.5", "10.6.0.255"), Verdict::Hold);
        assert_eq!(verdict("10.244.0.5", "10.6.2.0"), Verdict::Pass, "after the last range");
        assert_eq!(verdict("10.244.0.5", "10.5.255.255"), Verdict::Pass, "before the first");
        assert_eq!(verdict("10.244.0.5", "10.6.1.128"), Verdict::Pass, "exempt");
        assert_eq!(verdict("10.244.0.6", "10.6.1.7"), Verdict::Hold, "by the subnet");
        assert_eq!(verdict("10.244.0.6", "10.6.1.8"), Verdict::Pass, "another class's range");
        assert_eq!(verdict("10.244.1.5", "10.6.1.7"), Verdict::Pass, "nobody's pod");
        assert_eq!(verdict("fd00:244::5", "fd00:6:1::10"), TO_FIRST);
        assert_eq!(verdict("fd00:244::5", "fd01::1"), Verdict::Pass);
    }

    #[test]
    fn what_is_pinned_or_ends_inside_the_cluster_is_not_stale() {
        let (policy, mask) = (policy(), MarkMask::default());
        let stale = |connection: &Connection, view| policy.is_stale(connection, view, mask);
        let direct = connection("10.244.0.5", "10.6.1.7", "10.6.1.7");
        assert!(stale(&direct, DestinationView::Translated) && stale(&direct, DestinationView::AsSent), "others' bits are no pin");
        assert!(!stale(&Connection { mark: 0x1100_0000, ..direct }, DestinationView::Translated));
        assert!(!stale(&Connection { mark: 0x1200_0000, ..direct }, DestinationView::AsSent), "it exits here");
        let outward = connection("10.244.0.5", "10.96.0.1", "10.6.1.7");
        assert!(stale(&outward, DestinationView::Translated), "a service whose backend is outside");
        assert!(!stale(&outward, DestinationView::AsSent), "which is not seen before translation");
        let inward = connection("10.244.0.5", "10.6.1.7", "10.6.1.130");
        assert!(!stale(&inward, DestinationView::AsSent) && !stale(&inward, DestinationView::Translated));
        let reverse = connection("10.6.1.7", "10.244.0.5", "10.244.0.5");
        assert!(!stale(&reverse, DestinationView::Translated), "others began it");
    }

    #[test]
    fn what_would_wait_at_the_start_gate_is_stale_whoever_is_known_is_not() {
        let gate = StartGate {
            local: OrdSet::unit("10.244.0.0/16".parse().unwrap()),
            known: OrdSet::unit(ip("10.244.1.6")),
            governed: OrdSet::unit(range("10.6.1.0/24")),
            ..StartGate::default()
        };
        let policy = PolicyDesired { start_gate: Some(gate), ..policy() };
        let stale = |source: &str, destination: &str| {
            policy.is_stale(&connection(source, destination, destination), DestinationView::Translated, MarkMask::default())
        };
        assert!(stale("10.244.1.5", "10.6.1.7"), "nobody knows this pod yet");
        assert!(!stale("10.244.1.6", "10.6.1.7"), "a pod without a policy");
        assert!(!stale("10.244.1.5", "10.6.2.7"), "nothing governs this");
        assert!(!stale("10.244.1.5", "10.6.1.130"), "exempt");
        assert!(!stale("10.6.0.1", "10.6.1.7"), "not a pod of this node");
        assert!(!stale("10.244.0.6", "10.6.1.8"), "a pod of a subnet, whose class passes here");
    }

    proptest! {
        #[test]
        fn the_verdict_is_what_a_look_at_every_range_says(
            borders in proptest::collection::btree_set(0_u32..64, 0..12), of in 1_u32..4, address in 0_u32..64,
        ) {
            let at = |number: u32| IpAddr::from(std::net::Ipv4Addr::from(0x0a06_0000 + number));
            let borders: Vec<u32> = borders.into_iter().collect();
            let ranges = borders.chunks_exact(2).map(|ends| IpRange::new(at(ends[0]), at(ends[1])).unwrap());
            let destinations = ranges.zip((0_u32..).map(|number| class(number % 3 + 1))).map(|(range, class)| ((class, range), Verdict::Hold));
            let source = at(1000);
            let policy = PolicyDesired {
                pods: OrdMap::unit(source, class(of)),
                destinations: destinations.collect(),
                ..PolicyDesired::default()
            };
            let found = policy.destinations.iter().find(|((owner, range), _)| *owner == class(of) && range.contains(at(address)));
            prop_assert_eq!(policy.verdict(source, at(address)), found.map_or(Verdict::Pass, |(_, verdict)| *verdict));
        }
    }
}
