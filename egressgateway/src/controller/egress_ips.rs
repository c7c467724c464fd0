use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{Cluster, ControllerSettings, gateways::Elected};
use crate::{
    allocator::{AllocationError, AllocationRequest, Allocator},
    api::{GatewayNodeStatus, SourceNatMode},
    model::{Family, GatewayName, IpRange, NodeName, PolicyName},
    plan::resolve,
    spec::{GatewaySpec, PolicySpec},
    world::Policy,
};

/// What a policy got.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) addresses: BTreeSet<IpAddr>,
    pub(super) node: Option<NodeName>,
    pub(super) refusals: Vec<AllocationError>,
}

/// Egress addresses of all policies that want any.
#[derive(Debug, Default)]
pub(super) struct Leases {
    of_policy: BTreeMap<PolicyName, (GatewayName, Lease)>,
}

impl Leases {
    pub(super) fn of_policy(&self, policy: &PolicyName) -> Option<&Lease> {
        self.of_policy.get(policy).map(|(_, lease)| lease)
    }

    /// Addresses that a node of a gateway answers for.
    pub(super) fn of_node(&self, gateway: &GatewayName, node: &NodeName) -> BTreeSet<IpAddr> {
        let leases = self.of_policy.values().filter(|(owner, lease)| owner == gateway && lease.node.as_ref() == Some(node));
        leases.flat_map(|(_, lease)| lease.addresses.iter().copied()).collect()
    }

    /// Addresses of a gateway's pool in use.
    pub(super) fn of_gateway(&self, gateway: &GatewayName) -> BTreeSet<IpAddr> {
        let leases = self.of_policy.values().filter(|(owner, _)| owner == gateway);
        leases.flat_map(|(_, lease)| lease.addresses.iter().copied()).collect()
    }

    /// How many policies of a gateway found the pool exhausted.
    pub(super) fn exhausted(&self, gateway: &GatewayName) -> usize {
        let is_exhausted = |refusal: &AllocationError| matches!(refusal, AllocationError::Exhausted { .. });
        self.of_policy.values().filter(|(owner, lease)| owner == gateway && lease.refusals.iter().any(is_exhausted)).count()
    }
}

/// Gives every policy that wants egress addresses what its gateway's pool has, the older policy first; what a policy holds it keeps.
pub(super) fn lease(
    cluster: &Cluster,
    allocator: &dyn Allocator,
    settings: &ControllerSettings,
    members: &BTreeMap<GatewayName, Vec<Elected>>,
) -> Leases {
    let mut wanting: BTreeMap<&GatewayName, Vec<Candidate<'_>>> = BTreeMap::new();
    for (name, policy) in &cluster.policies {
        let Ok(spec) = &policy.spec else { continue };
        let resolved = resolve(spec.gateway.as_ref(), settings.default_gateway.as_ref(), &cluster.gateways);
        let Ok((gateway_name, gateway)) = resolved else { continue };
        let Ok(gateway) = &gateway.spec else { continue };
        let families = families(spec, gateway);
        if !families.is_empty() {
            wanting.entry(gateway_name).or_default().push(Candidate { name, policy, families });
        }
    }
    let pool = |gateway: &GatewayName| cluster.gateways.get(gateway).and_then(|gateway| gateway.spec.as_ref().ok()).map_or(&[][..], |spec| &spec.pool);
    // One book for all gateways: where their pools overlap, an address still has one holder.
    let mut held = BTreeMap::new();
    for (gateway, candidates) in &mut wanting {
        candidates.sort_by_key(|candidate| (candidate.policy.created, candidate.name));
        keep(candidates, pool(gateway), &mut held);
    }
    let mut leases = Leases::default();
    for (gateway, candidates) in wanting {
        let mut given = addresses(&candidates, pool(gateway), &mut held, allocator);
        place(&candidates, &mut given, members.get(gateway).map(Vec::as_slice).unwrap_or_default());
        leases.of_policy.extend(given.into_iter().map(|(policy, lease)| (policy, (gateway.clone(), lease))));
    }
    leases
}

struct Candidate<'a> {
    name: &'a PolicyName,
    policy: &'a Policy,
    /// The address that is asked for in each family that gets one; none: any.
    families: BTreeMap<Family, Option<IpAddr>>,
}

fn families(spec: &PolicySpec, gateway: &GatewaySpec) -> BTreeMap<Family, Option<IpAddr>> {
    let mut families: BTreeMap<Family, Option<IpAddr>> = BTreeMap::new();
    if gateway.source_nat == SourceNatMode::EgressIp {
        families.extend(gateway.pool.iter().map(|range| (range.family(), None)));
    }
    families.extend(spec.egress_ip.iter().map(|address| (Family::of(*address), Some(*address))));
    families
}

/// Notes what each policy holds and still wants.
fn keep(candidates: &[Candidate<'_>], pool: &[IpRange], held: &mut BTreeMap<IpAddr, String>) {
    for candidate in candidates {
        for address in &candidate.policy.state.egress_ip {
            let asked = candidate.families.get(&Family::of(*address));
            let wanted = asked.is_some_and(|asked| asked.is_none_or(|asked| asked == *address));
            if wanted && pool.iter().any(|range| range.contains(*address)) {
                held.entry(*address).or_insert_with(|| candidate.name.to_string());
            }
        }
    }
}

fn addresses(
    candidates: &[Candidate<'_>],
    pool: &[IpRange],
    held: &mut BTreeMap<IpAddr, String>,
    allocator: &dyn Allocator,
) -> BTreeMap<PolicyName, Lease> {
    let mut leases = BTreeMap::new();
    for candidate in candidates {
        let mut lease = Lease::default();
        for (family, wanted) in &candidate.families {
            let pool: Vec<IpRange> = pool.iter().filter(|range| range.family() == *family).copied().collect();
            let request = AllocationRequest { holder: candidate.name.as_str(), wanted: *wanted, pool: &pool, held };
            match allocator.allocate(&request) {
                Ok(address) => {
                    held.insert(address, candidate.name.to_string());
                    lease.addresses.insert(address);
                }
                Err(refusal) => lease.refusals.push(refusal),
            }
        }
        leases.insert(candidate.name.clone(), lease);
    }
    leases
}

/// Finds a node for every policy's addresses: the one that has them, as long as it is Ready, else the Ready node with the fewest. Without
/// a Ready node nothing moves.
fn place(candidates: &[Candidate<'_>], leases: &mut BTreeMap<PolicyName, Lease>, members: &[Elected]) {
    let is_ready = |node: &NodeName| members.iter().any(|member| member.node == *node && member.status == GatewayNodeStatus::Ready);
    let mut load: BTreeMap<NodeName, usize> = BTreeMap::new();
    let mut homeless = Vec::new();
    for candidate in candidates {
        let Some(lease) = leases.get_mut(candidate.name).filter(|lease| !lease.addresses.is_empty()) else { continue };
        match candidate.policy.state.node.as_ref().filter(|node| is_ready(node)) {
            Some(node) => {
                *load.entry(node.clone()).or_default() += 1;
                lease.node = Some(node.clone());
            }
            None => homeless.push(candidate),
        }
    }
    for candidate in homeless {
        let ready = members.iter().filter(|member| member.status == GatewayNodeStatus::Ready);
        let least = ready.min_by_key(|member| load.get(&member.node).copied().unwrap_or_default());
        let before = candidate.policy.state.node.as_ref();
        let stays = before.filter(|node| members.iter().any(|member| member.node == **node));
        if let Some(lease) = leases.get_mut(candidate.name) {
            lease.node = least.map(|member| &member.node).or(stays).cloned();
            if let Some(node) = &lease.node {
                *load.entry(node.clone()).or_default() += 1;
            }
        }
    }
}
