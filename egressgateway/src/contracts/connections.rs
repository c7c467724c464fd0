//! Connections that can't go on as they began, although the kernel would let them: each packet
//! keeps its entry in the table alive.

use std::{collections::BTreeSet, net::IpAddr};

use async_trait::async_trait;

use crate::{
    DestinationView, Error, NodeDesired, PolicyDesired,
    model::{ClassId, Family, IpRange, MarkMask, NetworkId, SourceNat, TargetId, Verdict},
};

/// A connection as connection tracking knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Who began it.
    pub source: IpAddr,
    /// The address that its first packet was sent to, such as a service's.
    pub destination: IpAddr,
    /// The address that it goes to after destination translation; the same as `destination` without
    /// one.
    pub translated: IpAddr,
    /// The address that it leaves this host with, after source translation; the same as `source`
    /// without one.
    pub seen_as: IpAddr,
    /// Whether this host has the address `seen_as`.
    pub is_own: bool,
    /// The connection mark.
    pub mark: u32,
    /// Whether its first packet here was one that only the end sends which begins a connection,
    /// such as TCP's SYN. Of any other, such as a datagram, `source` is who sent first since the
    /// kernel began to track it, and may be the end that answers.
    pub is_opening_seen: bool,
}

/// What becomes of a stale connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ending {
    /// It may go on: its next packet leaves with the same source, as far as anybody knows, or
    /// waits.
    Resumes,
    /// Its next packet leaves with another source, which the other end does not know.
    Breaks,
    /// It is not forgotten here: where it exits it may have been.
    Elsewhere,
    /// It may go on: what was tracked as somebody else's connection to a pod is the answer to one
    /// of the pod's, or may be. The pod is its destination.
    Turned,
}

/// The connections that the kernel tracks. The netlink crate has the implementation; a test can
/// have its own.
#[async_trait]
pub trait Connections: Send + Sync {
    /// Makes the kernel forget every connection that is stale, which `stale` says with what becomes
    /// of it, and returns how many that were. The next packet of such a connection is classified
    /// like a first one. What ends at this host itself, or at a group, is not asked about: no
    /// backend governs it.
    ///
    /// Pods that only wait should be made to notice: one whose connection breaks is reset, and any
    /// other is made to say something.
    ///
    /// # Errors
    /// When the kernel can't be read or refuses; some may have been forgotten then.
    async fn forget(
        &self,
        stale: &(dyn for<'a> Fn(&'a Connection) -> Option<Ending> + Send + Sync),
    ) -> Result<u64, Error>;
}

impl PolicyDesired {
    /// What becomes of a new connection of a pod of this node, by its source and the destination
    /// that the backend sees. [`Verdict::Pass`] where nothing governs it.
    #[must_use]
    pub fn verdict(&self, source: IpAddr, destination: IpAddr) -> Verdict {
        let Some(class) = self.class_of(source) else {
            return Verdict::Pass;
        };
        let found = self
            .destinations
            .range(..=(class, at_most(destination)))
            .next_back();
        let found = found
            .filter(|((of, range), _)| *of == class && range.contains(destination))
            .map(|(_, verdict)| *verdict);
        // Last, because it looks at every network.
        found
            .filter(|_| !self.is_exempt(destination))
            .unwrap_or(Verdict::Pass)
    }

    /// Whether the start gate holds a new connection, because its source is not known.
    fn waits(&self, source: IpAddr, destination: IpAddr) -> bool {
        let gate = self
            .start_gate
            .as_ref()
            .filter(|gate| gate.holds(source, destination));
        gate.is_some() && self.class_of(source).is_none() && !self.is_exempt(destination)
    }

    fn class_of(&self, source: IpAddr) -> Option<ClassId> {
        let by_subnet = || {
            self.subnets
                .range(..=at_most(source))
                .next_back()
                .filter(|(range, _)| range.contains(source))
        };
        self.pods
            .get(&source)
            .copied()
            .or_else(|| by_subnet().map(|(_, class)| *class))
    }

    fn is_exempt(&self, destination: IpAddr) -> bool {
        self.exempt.iter().any(|net| net.contains(&destination))
    }
}

impl NodeDesired {
    /// What decides which connections are stale on a node in this state.
    #[must_use]
    pub fn staleness(&self, view: DestinationView, mask: MarkMask) -> Staleness<'_> {
        let addresses = self
            .policy
            .destinations
            .values()
            .filter_map(|verdict| address(Some(*verdict)))
            .collect();
        Staleness {
            now: self,
            former: None,
            addresses,
            view,
            mask,
        }
    }
}

/// Decides which connections are stale: the ones that a policy came too late for, and those whose
/// way is gone.
///
/// A connection whose way still works in every respect is not stale, whatever became of the policy
/// that it began under.
#[derive(Clone, Debug)]
pub struct Staleness<'a> {
    now: &'a NodeDesired,
    former: Option<&'a NodeDesired>,
    /// The egress addresses of all policies.
    addresses: BTreeSet<IpAddr>,
    view: DestinationView,
    mask: MarkMask,
}

impl<'a> Staleness<'a> {
    /// What was in force before. With it, pods are made to notice that their gateway is another
    /// one, or that the egress address of their policy became another one: what that means to a
    /// connection only the node knows that it exits from.
    #[must_use]
    pub fn since(mut self, former: &'a NodeDesired) -> Self {
        self.former = Some(former);
        self
    }

    /// Whether the kernel must forget a connection, so that its next packet is classified like a
    /// first one, and what becomes of it then.
    #[must_use]
    pub fn judge(&self, connection: &Connection) -> Option<Ending> {
        let is_stale = match self.mask.byte(connection.mark) {
            0 if self.may_be_an_answer(connection) => return Some(Ending::Turned),
            0 => self.came_before_its_policy(connection),
            TargetId::UNKNOWN_BYTE => true,
            byte if is_exit(byte) => self.lost_its_source(connection),
            byte => TargetId::new(byte).is_some_and(|target| self.lost_its_way(connection, target)),
        };
        // Where the pod's own node translates, no gateway knows anything of the connection.
        let is_other = |target: TargetId| {
            !self.now.policy.distributed.contains(&target)
                && (self.has_another_node(target) || self.has_another_address(connection))
        };
        let elsewhere = || {
            self.mask
                .target(connection.mark)
                .filter(|target| is_other(*target))
                .map(|_| Ending::Elsewhere)
        };
        if is_stale {
            Some(self.ending(connection))
        } else {
            elsewhere()
        }
    }

    /// What a stale connection's next packet leaves as, compared with what it left as so far.
    fn ending(&self, connection: &Connection) -> Ending {
        // A port that this node chose, nobody chooses again.
        if let Some(target) = self.mask.target(connection.mark)
            && self.lost_its_ports(connection, target)
        {
            return Ending::Breaks;
        }
        let verdict = Self::governing(&self.now.policy, connection);
        let former = self
            .former
            .map(|former| Self::governing(&former.policy, connection));
        let goes_on = match (self.mask.byte(connection.mark), verdict) {
            // What waits may go on, whatever as.
            (_, Verdict::Hold)
            | (
                0,
                Verdict::Pass
                | Verdict::Egress {
                    source_nat: SourceNat::Keep,
                    ..
                },
            ) => true,
            // It left as if there were no policy: with this node's address.
            (
                0,
                Verdict::Egress {
                    target,
                    source_nat: SourceNat::NodeAddress,
                },
            ) => self.now.policy.exits.contains(&target),
            (
                0,
                Verdict::Egress {
                    source_nat: SourceNat::Address(_),
                    ..
                },
            ) => false,
            (
                byte,
                Verdict::Egress {
                    source_nat: SourceNat::Address(given),
                    ..
                },
            ) if is_exit(byte) => given == connection.seen_as,
            (
                _,
                Verdict::Egress {
                    source_nat: SourceNat::Address(given),
                    ..
                },
            ) => address(former).is_none_or(|before| before == given),
            _ => false,
        };
        if goes_on {
            Ending::Resumes
        } else {
            Ending::Breaks
        }
    }

    /// Whether a connection that nothing governs would be governed, or wait, if it began now: it
    /// began before the policy did, or when the pod's address was another pod's.
    fn came_before_its_policy(&self, connection: &Connection) -> bool {
        let seen = match self.view {
            DestinationView::Translated => connection.translated,
            DestinationView::AsSent => connection.destination,
        };
        // A backend that looks before translation lets go what translation then sends into the
        // cluster.
        (self.now.policy.verdict(connection.source, seen) != Verdict::Pass
            || self.now.policy.waits(connection.source, seen))
            && (seen == connection.translated || !self.now.policy.is_exempt(connection.translated))
    }

    /// Whether somebody's unclassified connection to a pod may be the answer to one that the pod
    /// began, and that the gateway still knows: the kernel forgot it while nothing classified what
    /// came, and what the pod sends would pass as an answer. What came by a service's address was
    /// not the pod's.
    fn may_be_an_answer(&self, connection: &Connection) -> bool {
        let Connection {
            source,
            destination,
            translated: pod,
            is_opening_seen,
            ..
        } = *connection;
        let is_governed = || {
            self.now.policy.verdict(pod, source) != Verdict::Pass
                || self.now.policy.waits(pod, source)
        };
        !is_opening_seen && destination == pod && is_governed()
    }

    /// Whether a connection that goes to a target through the tunnel can't go there any more: the
    /// target leads nowhere, while a new connection would exit here or elsewhere; or its egress
    /// addresses have another node, or the policy has another address.
    ///
    /// A target that leads nowhere and that new connections would take as well keeps its
    /// connections: they go on once there is a way.
    fn lost_its_way(&self, connection: &Connection, target: TargetId) -> bool {
        if self.lost_its_ports(connection, target) {
            return true;
        }
        let is_routed = self.now.policy.targets.contains(&target) || self.leaves_here(target);
        if self
            .verdicts(connection)
            .any(|verdict| matches!(verdict, Verdict::Egress { target: now, .. } if now == target))
        {
            !is_routed && self.now.policy.exits.contains(&target)
        } else {
            !is_routed || self.now.addressed.contains(&target)
        }
    }

    /// Whether a connection is translated here and its target's are not, or the other way round; or
    /// this node has no ports any more of the address that it was translated to.
    fn lost_its_ports(&self, connection: &Connection, target: TargetId) -> bool {
        let is_translated = connection.seen_as != connection.source;
        let is_distributed = self.now.policy.distributed.contains(&target);
        is_translated != is_distributed
            || (is_translated && !self.now.policy.blocks.contains_key(&connection.seen_as))
    }

    /// Whether what this node translated itself for a target leaves from here.
    fn leaves_here(&self, target: TargetId) -> bool {
        let policy = &self.now.policy;
        policy.distributed.contains(&target) && policy.exits.contains(&target)
    }

    /// Whether a connection that exits here has a source that is not this host's any more, or an
    /// egress address that its policy does not have any more, and somebody else's may have. An
    /// address that this node answers for and does not have just now is not lost: it comes back, or
    /// the policy is about to change.
    fn lost_its_source(&self, connection: &Connection) -> bool {
        let Connection {
            source,
            seen_as,
            is_own,
            ..
        } = *connection;
        let policy = &self.now.policy;
        let given = self.verdicts(connection).find_map(|verdict| match verdict {
            Verdict::Egress {
                target,
                source_nat: SourceNat::Address(given),
            } if given == seen_as => Some(target),
            _ => None,
        });
        seen_as != source
            && match given {
                Some(target) => {
                    !is_own && !policy.exits.contains(&target) && !policy.accepts.contains(&target)
                }
                None => !is_own || self.addresses.contains(&seen_as),
            }
    }

    /// Whether a target led to a node before that it does not lead to any more, and to others now.
    fn has_another_node(&self, target: TargetId) -> bool {
        let before = self.former.and_then(|former| former.paths.get(&target));
        let now = self.now.paths.get(&target).filter(|now| !now.is_empty());
        before
            .zip(now)
            .is_some_and(|(before, now)| before.iter().any(|node| !now.contains(node)))
    }

    /// Whether the policy that governs a connection had another egress address before.
    fn has_another_address(&self, connection: &Connection) -> bool {
        let of = |policy| address(Some(Self::governing(policy, connection)));
        let before = self.former.and_then(|former| of(&former.policy));
        before.is_some_and(|before| of(&self.now.policy).is_some_and(|now| before != now))
    }

    /// What a new connection would meet, by that of its destinations which is governed.
    fn governing(policy: &PolicyDesired, connection: &Connection) -> Verdict {
        let verdicts = [connection.translated, connection.destination]
            .map(|seen| policy.verdict(connection.source, seen));
        verdicts
            .into_iter()
            .find(|verdict| *verdict != Verdict::Pass)
            .unwrap_or(Verdict::Pass)
    }

    /// What a new connection would meet, whichever of its destinations the backend looks at.
    fn verdicts(&self, connection: &Connection) -> impl Iterator<Item = Verdict> {
        let translated =
            Some(connection.translated).filter(|translated| *translated != connection.destination);
        [Some(connection.destination), translated]
            .into_iter()
            .flatten()
            .map(|seen| self.now.policy.verdict(connection.source, seen))
    }
}

/// Whether a byte of a connection mark says that the connection exits here, by the usual network or
/// another one of this node.
fn is_exit(byte: u8) -> bool {
    byte == TargetId::EXIT_BYTE || NetworkId::new(byte).is_some()
}

/// The egress address of a verdict.
fn address(verdict: Option<Verdict>) -> Option<IpAddr> {
    match verdict? {
        Verdict::Egress {
            source_nat: SourceNat::Address(address) | SourceNat::Ports(address),
            ..
        } => Some(address),
        _ => None,
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
        model::{NodeName, PortBlock},
    };

    const TO_FIRST: Verdict = Verdict::Egress {
        target: TargetId::FIRST,
        source_nat: SourceNat::NodeAddress,
    };

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
            targets: OrdSet::unit(TargetId::FIRST),
            ..PolicyDesired::default()
        }
    }

    fn node() -> NodeDesired {
        NodeDesired {
            policy: policy(),
            ..NodeDesired::default()
        }
    }

    fn target(byte: u8) -> TargetId {
        TargetId::new(byte).unwrap()
    }

    fn connection(source: &str, destination: &str, translated: &str) -> Connection {
        let [source, destination, translated] =
            [source, destination, translated].map(|text| text.parse().unwrap());
        Connection {
            source,
            destination,
            translated,
            seen_as: source,
            is_own: false,
            mark: 0x00ff_ffff,
            is_opening_seen: true,
        }
    }

    #[test]
    fn the_verdict_is_the_one_of_the_class_and_the_range() {
        let policy = policy();
        let verdict = |source: &str, destination: &str| {
            policy.verdict(source.parse().unwrap(), destination.parse().unwrap())
        };
        assert_eq!(
            verdict("10.244.0.5", "10.6.1.7"),
            TO_FIRST,
            "an address takes precedence over a subnet"
        );
        assert_eq!(verdict("10.244.0.5", "10.6.0.255"), Verdict::Hold);
        assert_eq!(
            verdict("10.244.0.5", "10.6.2.0"),
            Verdict::Pass,
            "after the last range"
        );
        assert_eq!(
            verdict("10.244.0.5", "10.5.255.255"),
            Verdict::Pass,
            "before the first"
        );
        assert_eq!(verdict("10.244.0.5", "10.6.1.128"), Verdict::Pass, "exempt");
        assert_eq!(
            verdict("10.244.0.6", "10.6.1.7"),
            Verdict::Hold,
            "by the subnet"
        );
        assert_eq!(
            verdict("10.244.0.6", "10.6.1.8"),
            Verdict::Pass,
            "another class's range"
        );
        assert_eq!(
            verdict("10.244.1.5", "10.6.1.7"),
            Verdict::Pass,
            "nobody's pod"
        );
        assert_eq!(verdict("fd00:244::5", "fd00:6:1::10"), TO_FIRST);
        assert_eq!(verdict("fd00:244::5", "fd01::1"), Verdict::Pass);
    }

    #[test]
    fn what_is_pinned_or_ends_inside_the_cluster_is_not_stale() {
        let node = node();
        let stale = |connection: &Connection, view| {
            node.staleness(view, MarkMask::default())
                .judge(connection)
                .is_some()
        };
        let direct = connection("10.244.0.5", "10.6.1.7", "10.6.1.7");
        assert!(
            stale(&direct, DestinationView::Translated) && stale(&direct, DestinationView::AsSent),
            "others' bits are no pin"
        );
        assert!(!stale(
            &Connection {
                mark: 0x1100_0000,
                ..direct
            },
            DestinationView::Translated
        ));
        assert!(
            !stale(
                &Connection {
                    mark: 0x1200_0000,
                    ..direct
                },
                DestinationView::AsSent
            ),
            "it exits here"
        );
        let outward = connection("10.244.0.5", "10.96.0.1", "10.6.1.7");
        assert!(
            stale(&outward, DestinationView::Translated),
            "a service whose backend is outside"
        );
        assert!(
            !stale(&outward, DestinationView::AsSent),
            "which is not seen before translation"
        );
        let inward = connection("10.244.0.5", "10.6.1.7", "10.6.1.130");
        assert!(
            !stale(&inward, DestinationView::AsSent)
                && !stale(&inward, DestinationView::Translated)
        );
        let reverse = connection("10.6.1.7", "10.244.0.5", "10.244.0.5");
        assert!(
            !stale(&reverse, DestinationView::Translated),
            "others began it"
        );
    }

    #[test]
    fn what_may_be_an_answer_to_a_pod_whose_connection_was_forgotten_is_turned() {
        let mut node = node();
        let gate = StartGate {
            local: OrdSet::unit("10.244.1.0/24".parse().unwrap()),
            ..StartGate::default()
        };
        node.policy.start_gate = Some(StartGate {
            governed: OrdSet::unit(range("10.6.1.0/24")),
            ..gate
        });
        let judged = |connection: Connection| {
            let views = [DestinationView::AsSent, DestinationView::Translated];
            let [ending, other] =
                views.map(|view| node.staleness(view, MarkMask::default()).judge(&connection));
            assert_eq!(ending, other);
            ending
        };
        let seen = |source: &str, destination: &str, translated: &str| {
            connection(source, destination, translated)
        };
        let unseen = |source: &str, destination: &str, translated: &str| Connection {
            is_opening_seen: false,
            ..seen(source, destination, translated)
        };
        assert_eq!(
            judged(unseen("10.6.1.7", "10.244.0.5", "10.244.0.5")),
            Some(Ending::Turned)
        );
        assert_eq!(
            judged(unseen("10.6.0.7", "10.244.0.5", "10.244.0.5")),
            Some(Ending::Turned),
            "held"
        );
        assert_eq!(
            judged(unseen("10.6.1.7", "10.244.1.9", "10.244.1.9")),
            Some(Ending::Turned),
            "a pod that nobody knows"
        );
        assert_eq!(
            judged(seen("10.6.1.7", "10.244.0.5", "10.244.0.5")),
            None,
            "somebody reached the pod itself"
        );
        assert_eq!(
            judged(unseen("10.6.1.7", "10.96.0.1", "10.244.0.5")),
            None,
            "by a service"
        );
        assert_eq!(
            judged(unseen("10.6.1.128", "10.244.0.5", "10.244.0.5")),
            None,
            "from what is exempt"
        );
        assert_eq!(
            judged(unseen("10.6.1.8", "10.244.0.6", "10.244.0.6")),
            None,
            "from what nothing governs"
        );
        let answered = Connection {
            mark: 0x1000_0000,
            ..unseen("10.6.1.7", "10.244.0.5", "10.244.0.5")
        };
        assert_eq!(judged(answered), None, "its answers are classified");
        assert_eq!(
            judged(unseen("10.244.0.5", "10.6.1.7", "10.6.1.7")),
            Some(Ending::Breaks),
            "the pod sent first"
        );
    }

    #[test]
    fn what_would_wait_at_the_start_gate_is_stale_whoever_is_known_is_not() {
        let gate = StartGate {
            local: OrdSet::unit("10.244.0.0/16".parse().unwrap()),
            known: OrdSet::unit(ip("10.244.1.6")),
            governed: OrdSet::unit(range("10.6.1.0/24")),
            ..StartGate::default()
        };
        let node = NodeDesired {
            policy: PolicyDesired {
                start_gate: Some(gate),
                ..policy()
            },
            ..NodeDesired::default()
        };
        let staleness = node.staleness(DestinationView::Translated, MarkMask::default());
        let stale = |source: &str, destination: &str| {
            staleness
                .judge(&connection(source, destination, destination))
                .is_some()
        };
        assert!(stale("10.244.1.5", "10.6.1.7"), "nobody knows this pod yet");
        assert!(!stale("10.244.1.6", "10.6.1.7"), "a pod without a policy");
        assert!(!stale("10.244.1.5", "10.6.2.7"), "nothing governs this");
        assert!(!stale("10.244.1.5", "10.6.1.130"), "exempt");
        assert!(!stale("10.6.0.1", "10.6.1.7"), "not a pod of this node");
        assert!(
            !stale("10.244.0.6", "10.6.1.8"),
            "a pod of a subnet, whose class passes here"
        );
    }

    /// A node whose pod 10.244.0.5 is to leave as this, by targets of which these lead elsewhere
    /// and these have egress addresses.
    fn leaving(verdict: Verdict, routed: &[u8], addressed: &[u8]) -> NodeDesired {
        let mut node = node();
        node.policy
            .destinations
            .insert((class(1), range("10.6.1.0/24")), verdict);
        node.policy.targets = routed.iter().map(|byte| target(*byte)).collect();
        node.addressed = addressed.iter().map(|byte| target(*byte)).collect();
        node
    }

    fn judged(node: &NodeDesired, connection: &Connection) -> Option<Ending> {
        let views = [DestinationView::Translated, DestinationView::AsSent];
        let [ending, other] =
            views.map(|view| node.staleness(view, MarkMask::default()).judge(connection));
        assert_eq!(ending, other);
        ending
    }

    fn is_stale(node: &NodeDesired, connection: &Connection) -> bool {
        judged(node, connection).is_some()
    }

    fn with_address(byte: u8, address: &str) -> Verdict {
        Verdict::Egress {
            target: target(byte),
            source_nat: SourceNat::Address(ip(address)),
        }
    }

    #[test]
    fn a_connection_whose_target_means_here_by_now_is_stale_and_one_whose_target_has_no_way_at_all_waits()
     {
        let pinned = Connection {
            mark: 0x1100_0000,
            ..connection("10.244.0.5", "10.6.1.7", "10.6.1.7")
        };
        let mut node = leaving(TO_FIRST, &[0x11], &[]);
        assert!(!is_stale(&node, &pinned));
        node.policy.exits.insert(target(0x11));
        assert!(
            !is_stale(&node, &pinned),
            "the others of a balanced gateway carry it still"
        );
        node.policy.targets.clear();
        assert!(
            is_stale(&node, &pinned),
            "new ones leave here, and this one would meet a route to nowhere"
        );
        node.policy.exits.clear();
        assert!(
            !is_stale(&node, &pinned),
            "all gateways are lost: it goes on once one is back"
        );
    }

    #[test]
    fn what_its_own_node_translates_goes_on_wherever_it_exits_and_breaks_with_its_ports() {
        let by_ports = |address: &str| Verdict::Egress {
            target: target(0x11),
            source_nat: SourceNat::Ports(ip(address)),
        };
        let translated = Connection {
            mark: 0x1100_0000,
            seen_as: ip("10.6.0.60"),
            ..connection("10.244.0.5", "10.6.1.7", "10.6.1.7")
        };
        let block = PortBlock::of_ports(2048, 3071).into_iter().collect();
        let node = |verdict| {
            let mut node = leaving(verdict, &[0x11], &[]);
            node.policy.distributed.insert(target(0x11));
            node.policy.blocks.insert(ip("10.6.0.60"), block);
            node
        };
        let judged = |node: &NodeDesired, connection: &Connection| {
            node.staleness(DestinationView::Translated, MarkMask::default())
                .judge(connection)
        };
        let there = node(by_ports("10.6.0.60"));
        assert_eq!(judged(&there, &translated), None);
        let mut here = there.clone();
        here.policy.targets.clear();
        here.policy.exits.insert(target(0x11));
        assert_eq!(judged(&here, &translated), None, "this node carries it");
        let mut moved = there.clone();
        moved.paths.insert(target(0x11), OrdSet::unit("b".into()));
        let mut former = there.clone();
        former.paths.insert(target(0x11), OrdSet::unit("a".into()));
        let since = moved
            .staleness(DestinationView::Translated, MarkMask::default())
            .since(&former)
            .judge(&translated);
        assert_eq!(since, None, "no gateway knows anything of it");

        let mut without = there.clone();
        without.policy.blocks.clear();
        let mut centralized = there.clone();
        centralized.policy.distributed.clear();
        let mut held = centralized.clone();
        held.policy.destinations = held
            .policy
            .destinations
            .keys()
            .map(|place| (*place, Verdict::Hold))
            .collect();
        for node in [&without, &centralized, &held] {
            assert_eq!(judged(node, &translated), Some(Ending::Breaks));
        }
        let bare = Connection {
            seen_as: translated.source,
            ..translated
        };
        assert_eq!(
            judged(&there, &bare),
            Some(Ending::Breaks),
            "it began when the gateway translated"
        );
    }

    #[test]
    fn a_connection_keeps_the_way_that_it_began_with_as_long_as_that_works() {
        let pinned = Connection {
            mark: 0x1100_0000,
            ..connection("10.244.0.5", "10.6.1.7", "10.6.1.7")
        };
        for verdict in [
            Verdict::Pass,
            Verdict::Hold,
            with_address(0x16, "10.6.0.60"),
        ] {
            assert!(
                !is_stale(&leaving(verdict, &[0x11, 0x16], &[0x16]), &pinned),
                "{verdict:?}: the gateway is there"
            );
            assert!(
                is_stale(&leaving(verdict, &[0x16], &[0x16]), &pinned),
                "{verdict:?}: the gateway is gone"
            );
        }
        let to_second = Verdict::Egress {
            target: target(0x13),
            source_nat: SourceNat::NodeAddress,
        };
        let mut drained = leaving(to_second, &[0x11, 0x13], &[]);
        assert!(!is_stale(&drained, &pinned), "the grace time");
        drained.policy.targets.remove(&target(0x11));
        drained.policy.exits = OrdSet::from_iter([target(0x11), target(0x13)]);
        assert!(
            is_stale(&drained, &pinned),
            "the grace time is over, and this node has taken over"
        );
    }

    #[test]
    fn a_connection_with_an_egress_address_is_stale_once_its_policy_has_it_on_another_node_or_not_at_all()
     {
        let pinned = Connection {
            mark: 0x1600_0000,
            ..connection("10.244.0.5", "10.6.1.7", "10.6.1.7")
        };
        let here = with_address(0x16, "10.6.0.60");
        assert!(!is_stale(
            &leaving(here, &[0x11, 0x16, 0x17], &[0x16, 0x17]),
            &pinned
        ));
        assert!(
            !is_stale(&leaving(here, &[0x11], &[0x16, 0x17]), &pinned),
            "its node is silent, and nobody else has the address yet"
        );
        for verdict in [
            Verdict::Pass,
            Verdict::Hold,
            TO_FIRST,
            with_address(0x17, "10.6.0.60"),
        ] {
            assert!(
                is_stale(
                    &leaving(verdict, &[0x11, 0x16, 0x17], &[0x16, 0x17]),
                    &pinned
                ),
                "{verdict:?}"
            );
        }
    }

    #[test]
    fn what_exits_here_is_stale_once_its_source_is_not_this_hosts_or_another_policys() {
        let exiting = |seen_as: &str, is_own| {
            let connection = connection("10.244.0.5", "10.6.1.7", "10.6.1.7");
            Connection {
                mark: 0x1200_0000,
                seen_as: ip(seen_as),
                is_own,
                ..connection
            }
        };
        let mut node = leaving(with_address(0x16, "10.6.0.60"), &[], &[0x16]);
        assert!(!is_stale(&node, &exiting("10.6.0.60", true)));
        assert!(
            is_stale(&node, &exiting("10.6.0.60", false)),
            "the address has gone to another node"
        );
        node.policy.exits.insert(target(0x16));
        assert!(
            !is_stale(&node, &exiting("10.6.0.60", false)),
            "somebody has taken it off the device, or it is about to go"
        );
        node.policy.exits.clear();
        assert!(
            !is_stale(&node, &exiting("10.6.0.1", true)),
            "it began with the node's address, and goes on with it"
        );
        assert!(
            is_stale(&node, &exiting("10.6.0.1", false)),
            "which the node has lost"
        );
        assert!(
            !is_stale(&node, &exiting("10.244.0.5", false)),
            "it leaves as itself"
        );
        assert!(
            !is_stale(&node, &exiting("10.6.0.61", true)),
            "an address that no policy has"
        );
        node.policy.destinations.insert(
            (class(2), range("10.6.1.0/24")),
            with_address(0x16, "10.6.0.61"),
        );
        assert!(
            is_stale(&node, &exiting("10.6.0.61", true)),
            "another policy's by now"
        );
    }

    #[test]
    fn of_a_connection_whose_policy_gets_another_address_on_the_same_node_the_pod_is_made_to_notice()
     {
        let pinned = Connection {
            mark: 0x1600_0000,
            ..connection("10.244.0.5", "10.6.1.7", "10.6.1.7")
        };
        let [before, now] = ["10.6.0.60", "10.6.0.61"]
            .map(|address| leaving(with_address(0x16, address), &[0x16], &[0x16]));
        let judged = |former: &NodeDesired| {
            now.staleness(DestinationView::Translated, MarkMask::default())
                .since(former)
                .judge(&pinned)
        };
        assert_eq!(
            (judged(&before), judged(&now)),
            (Some(Ending::Elsewhere), None)
        );
        assert_eq!(
            judged(&leaving(Verdict::Hold, &[0x16], &[0x16])),
            None,
            "nobody knows what it began with"
        );
    }

    #[test]
    fn of_a_connection_whose_target_leads_to_another_node_the_pod_is_made_to_notice() {
        let pinned = Connection {
            mark: 0x1100_0000,
            ..connection("10.244.0.5", "10.6.1.7", "10.6.1.7")
        };
        let through = |nodes: &[&str]| {
            let mut node = leaving(TO_FIRST, &[0x11], &[]);
            node.paths.insert(
                TargetId::FIRST,
                nodes.iter().map(|node| NodeName::from(*node)).collect(),
            );
            node
        };
        let judged = |before: &[&str], now: &[&str]| {
            let (before, now) = (through(before), through(now));
            now.staleness(DestinationView::AsSent, MarkMask::default())
                .since(&before)
                .judge(&pinned)
        };
        assert_eq!(judged(&["a"], &["b"]), Some(Ending::Elsewhere));
        assert_eq!(
            judged(&["a", "b"], &["b"]),
            Some(Ending::Elsewhere),
            "it may have been one of its own"
        );
        assert_eq!(
            [
                judged(&["a"], &["a"]),
                judged(&["a"], &["a", "b"]),
                judged(&["a"], &[]),
                judged(&[], &["a"])
            ],
            [None; 4]
        );
    }

    #[test]
    fn what_keeps_its_source_may_go_on_and_the_rest_breaks() {
        let of = |mark: u32, seen_as: &str| {
            let connection = connection("10.244.0.5", "10.6.1.7", "10.6.1.7");
            Connection {
                mark,
                seen_as: ip(seen_as),
                ..connection
            }
        };
        let (target, exit, moved) = (
            of(0x1600_0000, "10.244.0.5"),
            of(0x1200_0000, "10.6.0.60"),
            with_address(0x17, "10.6.0.60"),
        );
        let now = |verdict| leaving(verdict, &[0x11, 0x17], &[0x16, 0x17]);
        assert_eq!(
            (judged(&now(moved), &target), judged(&now(moved), &exit)),
            (Some(Ending::Resumes), Some(Ending::Resumes))
        );
        let former = leaving(with_address(0x16, "10.6.0.61"), &[0x16], &[0x16]);
        let (now_moved, view) = (now(moved), DestinationView::Translated);
        let judged_since = now_moved
            .staleness(view, MarkMask::default())
            .since(&former)
            .judge(&target);
        assert_eq!(
            judged_since,
            Some(Ending::Breaks),
            "it has another address on the other node"
        );
        for verdict in [Verdict::Pass, TO_FIRST] {
            assert_eq!(
                [&target, &exit].map(|connection| judged(&now(verdict), connection)),
                [Some(Ending::Breaks); 2],
                "{verdict:?}"
            );
        }
        assert_eq!(judged(&now(Verdict::Hold), &target), Some(Ending::Resumes));
        let before_its_policy = of(0, "10.6.0.1");
        assert_eq!(
            judged(&now(TO_FIRST), &before_its_policy),
            Some(Ending::Breaks)
        );
        let mut here = now(TO_FIRST);
        here.policy.exits.insert(TargetId::FIRST);
        assert_eq!(
            judged(&here, &before_its_policy),
            Some(Ending::Resumes),
            "it leaves with the same node's address"
        );
    }

    #[test]
    fn meanings_of_marks_on_one_node_alone_are_not_judged() {
        let answer = Connection {
            mark: 0x1000_0000,
            ..connection("10.6.1.7", "10.244.0.5", "10.244.0.5")
        };
        assert!(!is_stale(&leaving(TO_FIRST, &[], &[]), &answer));
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
