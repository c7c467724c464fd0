//! Egress addresses: which policy has which, and which node answers for them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{
    Cluster,
    gateways::Elected,
    policies::{Judged, by_age},
};
use crate::{
    allocator::{AllocationError, AllocationRequest, Allocator},
    api::SourceNatMode,
    model::{Family, GatewayName, IpRange, NodeName, PolicyName},
    spec::{GatewaySpec, PolicySpec, Problem, Subject},
    world::Policy,
};

/// What a policy has of egress addresses.
#[derive(Clone, Debug)]
pub(super) struct Given {
    pub(super) gateway: GatewayName,
    pub(super) addresses: BTreeSet<IpAddr>,
    /// Who answers for them.
    pub(super) node: Option<NodeName>,
    /// What it wanted and did not get.
    pub(super) refusals: Vec<(Family, AllocationError)>,
}

impl Given {
    pub(super) fn exhausted(&self) -> bool {
        self.refusals.iter().any(|(_, error)| matches!(error, AllocationError::Exhausted { .. }))
    }

    /// Why the addresses are not with the node that somebody asked for.
    pub(super) fn unheard(&self, policy: &Policy) -> Option<Problem> {
        let preferred =
            policy.preferred_node.as_ref().filter(|preferred| !self.addresses.is_empty() && self.node.as_ref() != Some(preferred))?;
        let rule = format!("must be a Ready node of EgressGateway {}", self.gateway);
        Some(Problem::new(format!("metadata.annotations[{}]", Policy::NODE_ANNOTATION), preferred, rule))
    }

    /// Reason and message of the policy's condition, if something was refused.
    pub(super) fn refusal(&self) -> Option<(&'static str, String)> {
        let (family, error) = self.refusals.first()?;
        let field = format!("spec.egressIP.{}", family.to_string().to_lowercase());
        Some(match error {
            AllocationError::Exhausted { .. } => ("EgressIPExhausted", format!("EgressGateway {}: {error}", self.gateway)),
            AllocationError::OutsidePool { address, pool } => {
                let rule = format!("must be in the pool of EgressGateway {}: {pool}", self.gateway);
                ("EgressIPOutsidePool", Problem::new(field, address, rule).to_string())
            }
            AllocationError::Taken { address, holder } => {
                let rule = format!("must not be in use: EgressGatewayPolicy {holder} has it");
                ("Conflict", Problem::new(field, address, rule).to_string())
            }
        })
    }
}

/// One policy that has a gateway, with what was decided before.
struct Asking<'a> {
    name: &'a PolicyName,
    policy: &'a Policy,
    spec: &'a PolicySpec,
    gateway: &'a GatewayName,
    /// None where the gateway can't be understood: what the policy has stays.
    gateway_spec: Option<&'a GatewaySpec>,
}

impl Asking<'_> {
    /// The address that the policy states, or, where addresses are given out, the one that it has.
    fn claim(&self, family: Family) -> Option<IpAddr> {
        let of_family = |address: &&IpAddr| Family::of(**address) == family;
        let had = || self.policy.state.egress_ip.iter().find(of_family).copied();
        let asked = self.spec.egress_ip.iter().find(of_family).copied();
        match self.gateway_spec {
            None => had().filter(|had| asked.is_none_or(|asked| asked == *had)),
            Some(_) => asked.or_else(|| had().filter(|had| self.allocates(family) && self.pool().iter().any(|range| range.contains(*had)))),
        }
    }

    fn pool(&self) -> &[IpRange] {
        self.gateway_spec.map_or(&[], |spec| &spec.pool)
    }

    fn states(&self, family: Family) -> bool {
        self.spec.egress_ip.iter().any(|address| Family::of(*address) == family)
    }

    /// Whether the policy is to be given an address that it does not state.
    fn allocates(&self, family: Family) -> bool {
        let from_pool = self.gateway_spec.is_some_and(|spec| spec.source_nat == SourceNatMode::EgressIp);
        from_pool && !self.states(family) && governs(self.spec, family) && self.pool().iter().any(|range| range.family() == family)
    }
}

/// Whether a policy can concern packets of this family at all.
fn governs(spec: &PolicySpec, family: Family) -> bool {
    let any = |nets: &[ipnet::IpNet]| nets.iter().any(|net| Family::of(net.addr()) == family);
    let subject = match &spec.subject {
        Subject::Pods { .. } => true,
        Subject::Subnets(nets) => any(nets),
    };
    subject && (spec.destinations.is_empty() || any(&spec.destinations))
}

/// Gives addresses to all policies that want some, older policies first.
///
/// Stated addresses and those that policies hold come first, so that nothing moves for a newcomer; then the others get theirs. An address
/// belongs to one policy, whatever the pools say.
pub(super) fn give(
    cluster: &Cluster,
    allocator: &dyn Allocator,
    judged: &Judged,
    gateways: &BTreeMap<GatewayName, Elected>,
) -> BTreeMap<PolicyName, Given> {
    let asking: Vec<Asking> = by_age(&cluster.policies).filter_map(|(name, policy)| asking(cluster, judged, name, policy)).collect();
    let mut held = BTreeMap::new();
    let mut given: Vec<Given> = asking.iter().map(|asking| hold(asking, allocator, &mut held)).collect();
    for (asking, given) in asking.iter().zip(&mut given) {
        allocate(asking, given, allocator, &mut held);
    }
    settle(&asking, &mut given, gateways);
    asking.iter().zip(given).map(|(asking, given)| (asking.name.clone(), given)).collect()
}

fn asking<'a>(cluster: &'a Cluster, judged: &'a Judged, name: &'a PolicyName, policy: &'a Policy) -> Option<Asking<'a>> {
    let gateway = judged.get(name)?.gateway.as_ref()?;
    let spec = policy.spec.as_ref().ok()?;
    let asking = Asking { name, policy, spec, gateway, gateway_spec: cluster.gateways.get(gateway)?.spec.as_ref().ok() };
    let wants = |family| asking.claim(family).is_some() || asking.allocates(family);
    Family::ALL.into_iter().any(wants).then_some(asking)
}

/// Takes what the policy states or has.
fn hold(asking: &Asking, allocator: &dyn Allocator, held: &mut BTreeMap<IpAddr, String>) -> Given {
    let mut given = Given { gateway: asking.gateway.clone(), addresses: BTreeSet::new(), node: None, refusals: Vec::new() };
    for family in Family::ALL {
        let Some(address) = asking.claim(family) else { continue };
        let own = [IpRange::single(address)];
        let pool = if asking.gateway_spec.is_some() { asking.pool() } else { &own };
        match allocator.allocate(&AllocationRequest { holder: asking.name.as_str(), wanted: Some(address), pool, held }) {
            Ok(address) => {
                held.insert(address, asking.name.to_string());
                given.addresses.insert(address);
            }
            Err(error) if asking.states(family) => given.refusals.push((family, error)),
            // It had an address that an older policy states: it gets another one.
            Err(_) => {}
        }
    }
    given
}

/// Finds addresses for what is still missing.
fn allocate(asking: &Asking, given: &mut Given, allocator: &dyn Allocator, held: &mut BTreeMap<IpAddr, String>) {
    for family in Family::ALL {
        if !asking.allocates(family) || given.addresses.iter().any(|address| Family::of(*address) == family) {
            continue;
        }
        let pool: Vec<IpRange> = asking.pool().iter().filter(|range| range.family() == family).copied().collect();
        match allocator.allocate(&AllocationRequest { holder: asking.name.as_str(), wanted: None, pool: &pool, held }) {
            Ok(address) => {
                held.insert(address, asking.name.to_string());
                given.addresses.insert(address);
            }
            Err(error) => given.refusals.push((family, error)),
        }
    }
}

/// Finds the node of each: the one that somebody asked for, while that is Ready; else the one that it has, while new traffic may go there;
/// else the one of these with the fewest addresses, first in order. Without any, it stays where it was.
fn settle(asking: &[Asking], given: &mut [Given], gateways: &BTreeMap<GatewayName, Elected>) {
    let mut load: BTreeMap<(&GatewayName, &NodeName), usize> = BTreeMap::new();
    for (asking, given) in asking.iter().zip(given.iter_mut()).filter(|(_, given)| !given.addresses.is_empty()) {
        let Some(gateway) = gateways.get(asking.gateway) else { continue };
        let before = asking.policy.state.node.as_ref().filter(|_| asking.policy.state.gateway.as_ref() == Some(asking.gateway));
        let wished = asking.policy.preferred_node.as_ref().and_then(|node| gateway.member(node)).filter(|member| member.is_ready());
        let stays = || gateway.preferred().find(|member| Some(&member.node) == before);
        if let Some(member) = wished.or_else(stays) {
            given.node = Some(member.node.clone());
            *load.entry((asking.gateway, &member.node)).or_default() += given.addresses.len();
        }
    }
    for (asking, given) in asking.iter().zip(given).filter(|(_, given)| given.node.is_none() && !given.addresses.is_empty()) {
        let Some(gateway) = gateways.get(asking.gateway) else { continue };
        let least = gateway.preferred().min_by_key(|member| load.get(&(asking.gateway, &member.node)).copied().unwrap_or_default());
        let stays = asking.policy.state.node.as_ref().and_then(|node| gateway.member(node));
        if let Some(member) = least.or(stays) {
            given.node = Some(member.node.clone());
            *load.entry((asking.gateway, &member.node)).or_default() += given.addresses.len();
        }
    }
}
