//! What becomes of a policy.

use std::{collections::BTreeMap, net::IpAddr};

use super::{
    Cluster, ControllerSettings,
    assignment::EgressIpAssignment,
    conditions, families, overlaps,
    port_blocks::PortBlocks,
    resolution::{ResolvedPolicies, ResolvedPolicy},
};
use crate::{
    Attachments, Underlay,
    api::{EgressGatewayPolicyStatus, EgressIp},
    model::{Family, GatewayName, PolicyName},
    plan::{self, GatewayProblem, resolve},
    spec::Problem,
    world::Policy,
};

/// Finds every policy's gateway.
pub(super) fn resolve_all(cluster: &Cluster, settings: &ControllerSettings) -> ResolvedPolicies {
    cluster
        .policies
        .iter()
        .map(|(name, policy)| (name.clone(), resolve_one(cluster, policy, settings)))
        .collect()
}

fn resolve_one(
    cluster: &Cluster,
    policy: &Policy,
    settings: &ControllerSettings,
) -> ResolvedPolicy {
    let spec = match &policy.spec {
        Ok(spec) => spec,
        Err(problems) => {
            return ResolvedPolicy {
                gateway: None,
                refusal: Some(("Invalid", conditions::join(problems))),
            };
        }
    };
    let refuse = |reason, value: &str, rule: String| {
        Some((
            reason,
            Problem::new("spec.egressGatewayName", value, rule).to_string(),
        ))
    };
    let named = spec.gateway.as_ref().map_or("", GatewayName::as_str);
    match resolve(
        spec.gateway.as_ref(),
        settings.default_gateway.as_ref(),
        &cluster.gateways,
    ) {
        Ok((name, gateway)) => {
            let invalid = gateway.spec.is_err();
            let rule = || format!("EgressGateway {name} is invalid: see its conditions");
            let refusal = if invalid {
                refuse("GatewayInvalid", named, rule())
            } else {
                None
            };
            ResolvedPolicy {
                gateway: Some(name.clone()),
                refusal,
            }
        }
        Err(problem) => {
            let reason = match problem {
                GatewayProblem::NotFound(_) => "GatewayNotFound",
                GatewayProblem::Ambiguous(_) => "AmbiguousGateway",
            };
            ResolvedPolicy {
                gateway: None,
                refusal: refuse(
                    reason,
                    named,
                    format!("must lead to one EgressGateway: {problem}"),
                ),
            }
        }
    }
}

/// What is written about every policy.
pub(super) fn statuses(
    cluster: &Cluster,
    mut resolved: ResolvedPolicies,
    given: &BTreeMap<PolicyName, EgressIpAssignment>,
    blocks: &PortBlocks,
    settings: &ControllerSettings,
) -> BTreeMap<PolicyName, EgressGatewayPolicyStatus> {
    let mut overlaps = overlaps::find(cluster, &resolved);
    let status = |(name, policy): (&PolicyName, &Policy)| {
        let resolution = resolved.remove(name).unwrap_or_default();
        let spec = policy.spec.as_ref().ok().zip(resolution.gateway.as_ref());
        let unserved =
            spec.and_then(|(spec, gateway)| families::unserved(cluster, settings, spec, gateway));
        let no_way = given
            .get(name)
            .and_then(|given| no_way(cluster, given).or_else(|| blocks.refusal(&given.addresses)));
        (
            name.clone(),
            status(
                policy,
                resolution,
                given.get(name),
                unserved.as_deref(),
                (overlaps.remove(name), no_way),
            ),
        )
    };
    cluster.policies.iter().map(status).collect()
}

/// Reason and message of a condition.
type Finding = (&'static str, String);

/// Why nothing leaves with an address at the node that has it.
fn no_way(cluster: &Cluster, given: &EgressIpAssignment) -> Option<Finding> {
    let name = given.node.as_ref()?;
    let node = cluster.egress_nodes.get(name)?;
    let device = node.device.as_ref()?;
    let underlay = |address: &IpAddr| Underlay {
        device: device.clone(),
        index: 0,
        address: *address,
        mtu: 0,
    };
    let underlay = node
        .underlay
        .iter()
        .map(|address| (Family::of(*address), underlay(address)))
        .collect();
    let host = Attachments::reported(&node.interfaces);
    let routers = cluster
        .gateways
        .get(&given.gateway)
        .and_then(|gateway| gateway.spec.as_ref().ok())
        .map(|spec| spec.routers.as_slice());
    let stuck = given.addresses.iter().find(|address| {
        let router = routers
            .unwrap_or_default()
            .iter()
            .copied()
            .find(|router| Family::of(*router) == Family::of(**address));
        plan::way(**address, &host, &underlay, router) == plan::Way::NoRouter
    })?;
    Some((
        "NoRouter",
        format!(
            "nothing leaves with {stuck} from node {name}: {}",
            plan::Reason::NoRouter
        ),
    ))
}

fn status(
    policy: &Policy,
    resolution: ResolvedPolicy,
    given: Option<&EgressIpAssignment>,
    unserved: Option<&str>,
    (overlap, no_way): (Option<Finding>, Option<Finding>),
) -> EgressGatewayPolicyStatus {
    let generation = Some(policy.generation);
    let refusal = resolution.refusal.or_else(|| given?.refusal()).or(no_way);
    let (accepted, reason, message) = match (refusal, &resolution.gateway) {
        (Some((reason, message)), _) => (false, reason, message),
        (None, Some(gateway)) => {
            let unheard = given
                .and_then(|given| given.unheard(policy))
                .map(|problem| format!("; {problem}"));
            let gone = given.and_then(|given| given.gone.as_deref());
            let reason = match (gone, unserved) {
                (Some(_), _) => "AgentGone",
                (None, Some(_)) => "FamilyUnsupported",
                (None, None) => "Accepted",
            };
            let notes = [gone, unserved]
                .into_iter()
                .flatten()
                .map(|note| format!("; {note}"));
            (
                true,
                reason,
                format!(
                    "EgressGateway {gateway}{}{}",
                    unheard.unwrap_or_default(),
                    notes.collect::<String>()
                ),
            )
        }
        (None, None) => (true, "Accepted", String::new()),
    };
    let (overlapping, overlap_reason, overlap_message) = match overlap {
        Some((reason, message)) => (true, reason, message),
        None => (false, "NoOverlap", String::new()),
    };
    let of = |family: Family| {
        let of_family = |address: &&IpAddr| Family::of(**address) == family;
        given?
            .addresses
            .iter()
            .find(of_family)
            .map(ToString::to_string)
    };
    let egress_ip = EgressIp {
        ipv4: of(Family::V4),
        ipv6: of(Family::V6),
    };
    EgressGatewayPolicyStatus {
        egress_gateway: resolution.gateway.map(|name| name.to_string()),
        egress_ip: (egress_ip != EgressIp::default()).then_some(egress_ip),
        node: given
            .and_then(|given| given.node.as_ref())
            .map(ToString::to_string),
        candidate: given
            .and_then(|given| given.candidate.as_ref())
            .map(ToString::to_string),
        observed_generation: generation,
        conditions: vec![
            conditions::condition("Accepted", accepted, reason, &message, generation),
            conditions::condition(
                "Overlapping",
                overlapping,
                overlap_reason,
                &overlap_message,
                generation,
            ),
        ],
    }
}
