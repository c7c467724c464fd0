//! Address families that a policy can never work in, though its pods have them.

use super::{Cluster, ControllerSettings, assignment::governs};
use crate::{
    api::SourceNatMode,
    model::{Family, GatewayName},
    spec::{GatewaySpec, PolicySpec, Subject},
};

/// In words, which families of a policy are held for good and why; none: all of them can leave.
pub(super) fn unserved(
    cluster: &Cluster,
    settings: &ControllerSettings,
    spec: &PolicySpec,
    gateway: &GatewayName,
) -> Option<String> {
    let gateway_spec = cluster.gateways.get(gateway)?.spec.as_ref().ok()?;
    let concerns = |family: &Family| {
        governs(spec, *family)
            && (matches!(spec.subject, Subject::Subnets(_)) || pods_have(cluster, *family))
    };
    let held = Family::ALL
        .into_iter()
        .filter(concerns)
        .filter_map(|family| {
            let why = why(cluster, settings, spec, (gateway, gateway_spec), family)?;
            Some(format!("{family} is held for good: {why}"))
        });
    let held: Vec<String> = held.collect();
    (!held.is_empty()).then(|| held.join("; "))
}

/// Whether pods have addresses of the family: as the networks of pods say or, where nobody knows
/// these, the addresses of nodes.
fn pods_have(cluster: &Cluster, family: Family) -> bool {
    let mut pods = cluster
        .nodes
        .values()
        .flat_map(|node| &node.pod_networks)
        .map(|network| Family::of(network.addr()))
        .peekable();
    if pods.peek().is_some() {
        return pods.any(|of| of == family);
    }
    cluster
        .nodes
        .values()
        .flat_map(|node| &node.addresses)
        .any(|address| Family::of(*address) == family)
}

fn why(
    cluster: &Cluster,
    settings: &ControllerSettings,
    spec: &PolicySpec,
    (name, gateway): (&GatewayName, &GatewaySpec),
    family: Family,
) -> Option<String> {
    let states = spec
        .egress_ip
        .iter()
        .any(|address| Family::of(*address) == family);
    let pooled = gateway.pool.iter().any(|range| range.family() == family);
    if gateway.source_nat == SourceNatMode::EgressIp && !states && !pooled {
        return Some(format!(
            "the pool of EgressGateway {name} has no {family} addresses"
        ));
    }
    let networks = &settings.overlay;
    if !networks.is_empty()
        && !networks
            .iter()
            .any(|network| Family::of(network.addr()) == family)
    {
        return Some(format!("the tunnel has no {family} network"));
    }
    let members = cluster
        .nodes
        .iter()
        .filter(|(_, node)| gateway.nodes.matches(&node.labels));
    let mut told = members
        .filter_map(|(name, _)| cluster.egress_nodes.get(name))
        .filter(|node| !node.underlay.is_empty())
        .peekable();
    let lacking = told.peek().is_some()
        && told.all(|node| {
            !node
                .underlay
                .iter()
                .any(|address| Family::of(*address) == family)
        });
    lacking.then(|| format!("no node of EgressGateway {name} has an {family} address"))
}
