//! Egress addresses: which policy has which, and which node answers for them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{
    Cluster,
    assignment::{EgressIpAssignment, EgressIpRequest, Refusal},
    elected::Elected,
    list, owners,
    resolution::{ResolvedPolicies, by_age},
};
use crate::{
    allocator::{AllocationError, AllocationRequest, Allocator},
    model::{Family, GatewayName, IpRange, NodeName, PolicyName},
    plan::{self, ClusterNetwork, Holder},
    world::Policy,
};

/// Gives addresses to all policies that want some, older policies first; none that somebody else
/// has, or that lies in a network of the cluster.
///
/// Stated addresses and those that policies hold come first, so that nothing moves for a newcomer;
/// then the others get theirs. An address belongs to one policy, whatever the pools say.
pub(super) fn assign_all(
    cluster: &Cluster,
    allocator: &dyn Allocator,
    resolved: &ResolvedPolicies,
    gateways: &BTreeMap<GatewayName, Elected>,
    networks: &[ClusterNetwork],
) -> BTreeMap<PolicyName, EgressIpAssignment> {
    let asking = |(name, policy)| asking(cluster, resolved, networks, name, policy);
    let asking: Vec<EgressIpRequest> = by_age(&cluster.policies).filter_map(asking).collect();
    let mut ledger = Ledger::new(reserved(cluster, gateways), allocator);
    let mut given: Vec<EgressIpAssignment> = asking
        .iter()
        .map(|asking| keep_current(asking, gateways.get(asking.gateway), &mut ledger))
        .collect();
    for (asking, given) in asking.iter().zip(&mut given) {
        allocate(asking, given, &mut ledger);
    }
    owners::place(cluster, &asking, &mut given, gateways);
    asking
        .iter()
        .zip(given)
        .map(|(asking, given)| (asking.name.clone(), given))
        .collect()
}

/// The addresses that no policy may have.
pub(super) fn reserved(
    cluster: &Cluster,
    gateways: &BTreeMap<GatewayName, Elected>,
) -> BTreeMap<IpAddr, Holder> {
    let together = |one: &NodeName, other: &NodeName| {
        gateways
            .values()
            .any(|gateway| gateway.member(one).is_some() && gateway.member(other).is_some())
    };
    plan::reserved(&cluster.nodes, &cluster.egress_nodes, together)
}

/// Who of other people has addresses of a pool; what only a network's plan takes is left out.
pub(super) fn in_use(reserved: &BTreeMap<IpAddr, Holder>, pool: &[IpRange]) -> Vec<String> {
    let theirs = |holder: &Holder| {
        matches!(
            holder,
            Holder::Node(_) | Holder::Interface(_) | Holder::Neighbour(..)
        )
    };
    let of = |range: &IpRange| {
        reserved
            .range(range.first()..=range.last())
            .filter(|(_, holder)| theirs(holder))
    };
    pool.iter()
        .flat_map(of)
        .map(|(address, holder)| format!("{address}: {holder}"))
        .collect()
}

/// Who has which address.
struct Ledger<'a> {
    allocator: &'a dyn Allocator,
    reserved: BTreeMap<IpAddr, Holder>,
    held: BTreeMap<IpAddr, String>,
}

impl<'a> Ledger<'a> {
    fn new(reserved: BTreeMap<IpAddr, Holder>, allocator: &'a dyn Allocator) -> Self {
        // No name of a policy has a space in it.
        let held = reserved
            .iter()
            .map(|(address, holder)| (*address, holder.to_string()))
            .collect();
        Self {
            allocator,
            reserved,
            held,
        }
    }

    /// Enters an address of the pool for a policy.
    fn enter(
        &mut self,
        holder: &PolicyName,
        wanted: Option<IpAddr>,
        pool: &[IpRange],
    ) -> Result<IpAddr, Refusal> {
        let request = AllocationRequest {
            holder: holder.as_str(),
            wanted,
            pool,
            held: &self.held,
        };
        match self.allocator.allocate(&request) {
            Ok(address) => {
                self.held.insert(address, holder.to_string());
                Ok(address)
            }
            Err(AllocationError::Taken { address, .. }) if self.reserved.contains_key(&address) => {
                Err(Refusal::Reserved(address, self.reserved[&address].clone()))
            }
            Err(error) => Err(Refusal::Allocation(error)),
        }
    }
}

fn asking<'a>(
    cluster: &'a Cluster,
    resolved: &'a ResolvedPolicies,
    networks: &[ClusterNetwork],
    name: &'a PolicyName,
    policy: &'a Policy,
) -> Option<EgressIpRequest<'a>> {
    let gateway = resolved.get(name)?.gateway.as_ref()?;
    let spec = policy.spec.as_ref().ok()?;
    let gateway_spec = cluster.gateways.get(gateway)?.spec.as_ref().ok();
    let pool = gateway_spec
        .map(|spec| plan::usable(&spec.pool, networks))
        .unwrap_or_default();
    let asking = EgressIpRequest {
        name,
        policy,
        spec,
        gateway,
        gateway_spec,
        pool,
    };
    let wants = |family| asking.claim(family).is_some() || asking.allocates(family);
    Family::ALL.into_iter().any(wants).then_some(asking)
}

/// Takes what the policy states or has.
fn keep_current(
    asking: &EgressIpRequest,
    gateway: Option<&Elected>,
    ledger: &mut Ledger,
) -> EgressIpAssignment {
    let in_use = in_use(&ledger.reserved, &asking.pool);
    let in_use = if in_use.is_empty() {
        in_use.concat()
    } else {
        format!("; {}", list(&in_use))
    };
    let mut given = EgressIpAssignment {
        gateway: asking.gateway.clone(),
        addresses: BTreeSet::new(),
        node: None,
        candidate: None,
        gone: None,
        in_use,
        refusals: Vec::new(),
    };
    for family in Family::ALL {
        let Some(address) = asking.claim(family) else {
            continue;
        };
        let own = [IpRange::single(address)];
        // Somebody put it on a node of the gateway for this.
        let put = matches!(ledger.reserved.get(&address), Some(Holder::Interface(node)) if gateway.is_some_and(|gateway| gateway.member(node).is_some()));
        if put && asking.states(family) {
            ledger.reserved.remove(&address);
            ledger.held.remove(&address);
        }
        let pool = if asking.gateway_spec.is_some() {
            &asking.pool[..]
        } else {
            &own
        };
        match ledger.enter(asking.name, Some(address), pool) {
            Ok(address) => _ = given.addresses.insert(address),
            Err(refusal) if asking.states(family) => given.refusals.push((family, refusal)),
            // It had an address that an older policy states, or that somebody else has by now: it
            // gets another one.
            Err(_) => {}
        }
    }
    given
}

/// Finds addresses for what is still missing.
fn allocate(asking: &EgressIpRequest, given: &mut EgressIpAssignment, ledger: &mut Ledger) {
    for family in Family::ALL {
        if !asking.allocates(family)
            || given
                .addresses
                .iter()
                .any(|address| Family::of(*address) == family)
        {
            continue;
        }
        let pool: Vec<IpRange> = asking
            .pool
            .iter()
            .filter(|range| range.family() == family)
            .copied()
            .collect();
        match ledger.enter(asking.name, None, &pool) {
            Ok(address) => _ = given.addresses.insert(address),
            Err(refusal) => given.refusals.push((family, refusal)),
        }
    }
}
