use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use imbl::OrdSet;

use super::selectors::Selectors;
use crate::{
    api::GatewayNodeStatus,
    model::{
        ClassKey, Family, GatewayName, IpRange, NodeName, PolicyName, SourceNat, TargetId, Verdict,
    },
    plan::{self, RangeClaim, Reason, ResolvedRange},
    spec::Subject,
    world::{Gateway, Policy, set_object},
};

/// The policies, what each does in either family, and what changed since it was asked last.
#[derive(Debug, Default)]
pub(super) struct Policies {
    all: BTreeMap<PolicyName, Policy>,
    pub(super) selectors: Selectors,
    /// IPv4 and IPv6, of the policies that have a gateway.
    verdicts: BTreeMap<PolicyName, [(Verdict, Reason); 2]>,
    /// The egress addresses that this node shall hold, and those that it may come to hold.
    wanted: BTreeSet<IpAddr>,
    candidates: BTreeSet<IpAddr>,
    /// Those that pods' own nodes translate to, with their targets.
    distributed: BTreeMap<PolicyName, BTreeSet<(TargetId, IpAddr)>>,
    /// How many units of ports of each of these addresses a node asks for.
    units: BTreeMap<IpAddr, u16>,
    /// Of these, those that this node answers for.
    answered: BTreeSet<IpAddr>,
    /// Disjoint pod subnets, and the policies that name them.
    subnets: Vec<(IpRange, ClassKey)>,
    governed: OrdSet<IpRange>,
    /// Whom they select may have changed.
    pub(super) changed_subjects: BTreeSet<PolicyName>,
    /// What they do may have changed.
    pub(super) changed_rules: BTreeSet<PolicyName>,
    pub(super) changed_subnets: bool,
}

impl Policies {
    pub(super) fn set(&mut self, name: PolicyName, policy: Option<Policy>) -> bool {
        if self.all.get(&name) == policy.as_ref() {
            return false;
        }
        let subject = |policy: &Policy| policy.spec.as_ref().ok().map(|spec| spec.subject.clone());
        let before = self.all.get(&name).and_then(subject);
        let after = policy.as_ref().and_then(subject);
        if before != after {
            self.changed_subnets |= [&before, &after]
                .into_iter()
                .any(|subject| matches!(subject, Some(Subject::Subnets(_))));
            self.changed_subjects.insert(name.clone());
            match &after {
                Some(Subject::Pods { pods, namespaces }) => {
                    self.selectors.insert(&name, pods, namespaces.as_ref());
                }
                Some(Subject::Subnets(_)) | None => self.selectors.remove(&name),
            }
        }
        self.changed_rules.insert(name.clone());
        set_object(&mut self.all, name, policy)
    }

    pub(super) fn get(&self, name: &PolicyName) -> Option<&Policy> {
        self.all.get(name)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (&PolicyName, &Policy)> {
        self.all.iter()
    }

    /// Finds every policy's gateway and verdicts again, on a node that does not have the addresses
    /// for which `withheld` has a reason.
    pub(super) fn settle(
        &mut self,
        default: Option<&GatewayName>,
        gateways: &BTreeMap<GatewayName, Gateway>,
        own: &NodeName,
        withheld: impl Fn(IpAddr) -> Option<Reason>,
        has_ports: impl Fn(IpAddr) -> bool,
        standby: &Standby<'_>,
    ) {
        let mut verdicts = BTreeMap::new();
        self.distributed.clear();
        self.units.clear();
        self.answered.clear();
        self.wanted.clear();
        self.candidates.clear();
        for (name, policy) in &self.all {
            let Ok(spec) = &policy.spec else { continue };
            let gateway = plan::resolve(spec.gateway.as_ref(), default, gateways).ok();
            let decide = |family| match gateway {
                Some((_, gateway)) => plan::verdict(spec, &policy.state, gateway, family),
                None => (Verdict::Hold, Reason::NoGateway),
            };
            let decided = Family::ALL.map(decide);
            let here = |node: &Option<NodeName>| node.as_ref() == Some(own);
            for address in decided
                .iter()
                .filter_map(|(verdict, _)| translated(verdict))
            {
                if here(&policy.state.node) {
                    self.wanted.insert(address);
                } else if here(&policy.state.candidate) {
                    self.candidates.insert(address);
                }
            }
            for (target, address) in decided.iter().filter_map(|(verdict, _)| by_ports(verdict)) {
                self.distributed
                    .entry(name.clone())
                    .or_default()
                    .insert((target, address));
                let gateway_spec = gateway.and_then(|(_, gateway)| gateway.spec.as_ref().ok());
                let units = gateway_spec.map(|spec| (address, spec.units_per_node));
                self.units.extend(units);
                // Without a relay this host would answer for others' pods, and reset what they began.
                if !standby.can_relay {
                    continue;
                }
                if here(&policy.state.node) {
                    let is_here = match withheld(address) {
                        None => true,
                        // It was taken over, and the controller has followed a moment ago.
                        Some(Reason::NotTaken) => standby.silent.contains(&address),
                        Some(_) => false,
                    };
                    self.answered.extend(Some(address).filter(|_| is_here));
                } else if let Some((_, gateway)) = gateway
                    && standby.takes_over(gateway, policy.state.node.as_ref(), own)
                {
                    self.candidates.insert(address);
                    let nobody_answers = standby.silent.contains(&address);
                    self.answered
                        .extend(Some(address).filter(|_| nobody_answers));
                }
            }
            let [v4, v6] = decided.map(|decided| {
                plan::unless_withheld(decided, &policy.state, own, &withheld, &has_ports)
            });
            verdicts.insert(name.clone(), [v4, v6]);
        }
        let names = self.verdicts.keys().chain(verdicts.keys());
        let changed = names
            .filter(|name| self.verdicts.get(*name) != verdicts.get(*name))
            .cloned();
        self.changed_rules.extend(changed.collect::<Vec<_>>());
        self.verdicts = verdicts;
        if self.changed_subnets {
            self.subnets = self.flatten_subnets();
        }
        if !self.changed_rules.is_empty() {
            let ranges = self
                .verdicts
                .keys()
                .flat_map(|name| self.claims(name))
                .map(|claim| claim.range);
            self.governed = plan::merge(ranges).into_iter().collect();
        }
    }

    fn claims(&self, name: &PolicyName) -> Vec<RangeClaim> {
        let policy = self.verdicts.get(name).and_then(|_| self.all.get(name));
        policy
            .and_then(|policy| {
                Some(plan::claims(
                    name,
                    policy.spec.as_ref().ok()?,
                    policy.created,
                ))
            })
            .unwrap_or_default()
    }

    /// Who wins where among the policies of a class.
    pub(super) fn resolve_overlaps(&self, class: &ClassKey) -> Vec<ResolvedRange> {
        plan::resolve_overlaps(
            &class
                .policies()
                .iter()
                .flat_map(|name| self.claims(name))
                .collect::<Vec<_>>(),
        )
    }

    pub(super) fn verdict(&self, name: &PolicyName, family: Family) -> Option<(Verdict, Reason)> {
        self.verdicts.get(name).map(|[v4, v6]| match family {
            Family::V4 => *v4,
            Family::V6 => *v6,
        })
    }

    /// The addresses that some policy leaves with at this node.
    pub(super) fn addresses_at(&self, node: &NodeName) -> impl Iterator<Item = IpAddr> {
        self.answered
            .iter()
            .copied()
            .chain(self.translated_at(node))
    }

    fn translated_at(&self, node: &NodeName) -> impl Iterator<Item = IpAddr> {
        let here = |name| {
            self.all
                .get(name)
                .is_some_and(|policy: &Policy| policy.state.node.as_ref() == Some(node))
        };
        let verdicts = self
            .verdicts
            .iter()
            .filter(move |(name, _)| here(*name))
            .flat_map(|(_, verdicts)| verdicts);
        verdicts.filter_map(|(verdict, _)| match verdict {
            Verdict::Egress {
                source_nat: SourceNat::Address(address),
                ..
            } => Some(*address),
            _ => None,
        })
    }

    /// The policies whose connections are translated on their pods' own nodes: to which addresses,
    /// and the target that carries them.
    pub(super) fn distributed(&self) -> &BTreeMap<PolicyName, BTreeSet<(TargetId, IpAddr)>> {
        &self.distributed
    }

    /// How many units of ports of such an address a node asks for.
    pub(super) fn units(&self, address: IpAddr) -> u16 {
        self.units.get(&address).copied().unwrap_or_default()
    }

    /// The addresses that some policy leaves with at this node, and those that the node does not
    /// have though it shall.
    pub(super) fn wanted(&self) -> &BTreeSet<IpAddr> {
        &self.wanted
    }

    /// The addresses that this node takes over once nobody answers for them.
    pub(super) fn candidates(&self) -> &BTreeSet<IpAddr> {
        &self.candidates
    }

    /// Disjoint ranges of a class with their verdicts; neighbours with the same verdict are one
    /// range.
    pub(super) fn destinations(&self, class: &ClassKey) -> Vec<(IpRange, Verdict)> {
        let mut ranges: Vec<(IpRange, Verdict)> = Vec::new();
        for ResolvedRange { range, policy } in self.resolve_overlaps(class) {
            let Some((verdict, _)) = self.verdict(&policy, range.family()) else {
                continue;
            };
            let previous = ranges.last_mut().filter(|(_, same)| *same == verdict);
            let longer = previous.and_then(|(previous, _)| {
                *previous = previous.joined(&range)?;
                Some(())
            });
            if longer.is_none() {
                ranges.push((range, verdict));
            }
        }
        ranges
    }

    /// Every destination that some policy governs.
    pub(super) fn governed(&self) -> OrdSet<IpRange> {
        self.governed.clone()
    }

    /// Disjoint pod subnets, ascending, and the policies that name each.
    pub(super) fn subnets(&self) -> &[(IpRange, ClassKey)] {
        &self.subnets
    }

    fn flatten_subnets(&self) -> Vec<(IpRange, ClassKey)> {
        let mut named: Vec<(IpRange, &PolicyName)> = Vec::new();
        for (name, policy) in &self.all {
            if let Ok(Subject::Subnets(subnets)) = policy.spec.as_ref().map(|spec| &spec.subject) {
                named.extend(subnets.iter().map(|net| (IpRange::from(*net), name)));
            }
        }
        named.sort();
        let pieces = plan::cut(named.iter().map(|(range, _)| *range));
        let mut flat: Vec<(IpRange, ClassKey)> = Vec::new();
        let mut active: Vec<(IpRange, &PolicyName)> = Vec::new();
        let mut upcoming = named.into_iter().peekable();
        for piece in pieces {
            active.retain(|(range, _)| range.contains(piece.first()));
            while let Some(next) = upcoming.next_if(|(range, _)| range.first() == piece.first()) {
                active.push(next);
            }
            let class = ClassKey::new(active.iter().map(|(_, name)| (*name).clone()));
            flat.extend(class.map(|class| (piece, class)));
        }
        flat
    }
}

/// What a gateway node knows of the node that answers for an egress address, without the API server.
pub(super) struct Standby<'a> {
    /// The nodes that do not answer through the tunnel.
    pub(super) down: &'a BTreeSet<NodeName>,
    /// The addresses that nobody answers for.
    pub(super) silent: &'a BTreeSet<IpAddr>,
    /// This node can pass on what pods' own nodes translate.
    pub(super) can_relay: bool,
}

impl Standby<'_> {
    /// Whether this node is the first that takes over from a node which does not answer: of those
    /// that can carry traffic, in the order of the status. Where pods' own nodes translate, two
    /// that take an address do no harm, so nobody has to be asked.
    fn takes_over(&self, gateway: &Gateway, owner: Option<&NodeName>, own: &NodeName) -> bool {
        let Some(owner) = owner.filter(|owner| self.down.contains(*owner)) else {
            return false;
        };
        let mut able = gateway.state.members.iter().filter(|member| {
            member.status == GatewayNodeStatus::Ready
                && member.node != *owner
                && !self.down.contains(&member.node)
        });
        able.next().is_some_and(|first| first.node == *own)
    }
}

/// The egress address that a verdict leaves with.
fn translated(verdict: &Verdict) -> Option<IpAddr> {
    match verdict {
        Verdict::Egress {
            source_nat: SourceNat::Address(address) | SourceNat::Ports(address),
            ..
        } => Some(*address),
        _ => None,
    }
}

/// The target and the egress address of a verdict that the pod's own node translates.
fn by_ports(verdict: &Verdict) -> Option<(TargetId, IpAddr)> {
    match verdict {
        Verdict::Egress {
            target,
            source_nat: SourceNat::Ports(address),
        } => Some((*target, *address)),
        _ => None,
    }
}
