use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::{
    Cluster, ControllerSettings,
    conditions::condition,
    egress_ips::{Lease, Leases},
};
use crate::{
    allocator::AllocationError,
    api::{EgressGatewayPolicyStatus, EgressIp},
    model::{Family, PolicyName},
    plan::{GatewayProblem, resolve},
    world::Policy,
};

/// The status of every policy.
pub(super) fn statuses(
    cluster: &Cluster,
    settings: &ControllerSettings,
    leases: &Leases,
) -> BTreeMap<PolicyName, EgressGatewayPolicyStatus> {
    let contradictions = contradictions(cluster, settings);
    let status = |(name, policy): (&PolicyName, &Policy)| {
        let spec = policy.spec.as_ref();
        let resolved = spec.ok().map(|spec| resolve(spec.gateway.as_ref(), settings.default_gateway.as_ref(), &cluster.gateways));
        let lease = leases.of_policy(name);
        let addresses = lease.map(|lease| &lease.addresses).filter(|addresses| !addresses.is_empty());
        let mut conditions = vec![accepted(policy, resolved.as_ref().and_then(|resolved| resolved.as_ref().err()), lease)];
        if let Some(message) = contradictions.get(name) {
            conditions.push(condition("Conflict", true, "Overlap", message.clone(), policy.generation));
        }
        let status = EgressGatewayPolicyStatus {
            egress_gateway: resolved.and_then(Result::ok).map(|(gateway, _)| gateway.to_string()),
            egress_ip: addresses.map(egress_ip),
            node: lease.and_then(|lease| lease.node.as_ref()).map(ToString::to_string),
            observed_generation: Some(policy.generation),
            conditions,
        };
        (name.clone(), status)
    };
    cluster.policies.iter().map(status).collect()
}

fn egress_ip(addresses: &BTreeSet<IpAddr>) -> EgressIp {
    let of = |family| addresses.iter().find(|address| Family::of(**address) == family).map(ToString::to_string);
    EgressIp { ipv4: of(Family::V4), ipv6: of(Family::V6) }
}

fn accepted(policy: &Policy, unresolved: Option<&GatewayProblem>, lease: Option<&Lease>) -> Condition {
    let say = |status, reason, message| condition("Accepted", status, reason, message, policy.generation);
    if let Err(problems) = &policy.spec {
        let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        return say(false, "Invalid", problems.join("; "));
    }
    if let Some(problem) = unresolved {
        let reason = match problem {
            GatewayProblem::NotFound(_) => "GatewayNotFound",
            GatewayProblem::Ambiguous(_) => "AmbiguousGateway",
        };
        return say(false, reason, format!("spec.egressGatewayName: {problem}; nothing is steered"));
    }
    let refusals = lease.map(|lease| lease.refusals.as_slice()).unwrap_or_default();
    if let Some(first) = refusals.first() {
        let reason = match first {
            AllocationError::Exhausted { .. } => "EgressIPExhausted",
            AllocationError::OutsidePool { .. } => "EgressIPOutsidePool",
            AllocationError::Taken { .. } => "EgressIPTaken",
        };
        let refusals: Vec<String> = refusals.iter().map(ToString::to_string).collect();
        return say(false, reason, format!("spec.egressIP: {}; the traffic is held", refusals.join("; ")));
    }
    say(true, "Accepted", String::new())
}

/// Policies of equal priority that name the same pods and the same destination but send them different ways, each with who wins and why.
///
/// Only what is equal as written is compared, so the cost grows with the number of destinations and not with its square.
fn contradictions(cluster: &Cluster, settings: &ControllerSettings) -> BTreeMap<PolicyName, String> {
    let mut claims: BTreeMap<(String, u32, String), Vec<&PolicyName>> = BTreeMap::new();
    for (name, policy) in &cluster.policies {
        let Ok(spec) = &policy.spec else { continue };
        let subject = format!("{:?}", spec.subject);
        let everything = spec.destinations.is_empty().then(|| "everything".to_owned());
        for destination in spec.destinations.iter().map(ToString::to_string).chain(everything) {
            claims.entry((subject.clone(), spec.priority, destination)).or_default().push(name);
        }
    }
    let way = |name: &PolicyName| {
        let spec = cluster.policies.get(name).and_then(|policy| policy.spec.as_ref().ok())?;
        let gateway = resolve(spec.gateway.as_ref(), settings.default_gateway.as_ref(), &cluster.gateways).ok()?.0;
        Some((gateway.clone(), spec.egress_ip.clone()))
    };
    let created = |name: &PolicyName| cluster.policies.get(name).map_or(0, |policy| policy.created);
    let mut messages = BTreeMap::new();
    for ((_, _, destination), mut names) in claims.into_iter().filter(|(_, names)| names.len() > 1) {
        names.retain(|name| way(name).is_some());
        let ways: BTreeSet<_> = names.iter().map(|name| way(name)).collect();
        if ways.len() < 2 {
            continue;
        }
        names.sort_by_key(|name| (created(name), *name));
        let Some((winner, others)) = names.split_first() else { continue };
        let why = if others.iter().all(|other| created(other) > created(winner)) { "it is older" } else { "its name comes first" };
        for name in &names {
            let others: Vec<&str> = names.iter().filter(|other| other != &name).map(|other| other.as_str()).collect();
            let message = format!("{destination}: contradicts {} at the same priority; {winner} wins because {why}", others.join(", "));
            messages.entry((*name).clone()).or_insert(message);
        }
    }
    messages
}
