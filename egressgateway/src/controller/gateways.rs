use std::collections::{BTreeMap, BTreeSet};

use super::{Cluster, ControllerSettings, conditions::condition, egress_ips::Leases, marks::Marks};
use crate::{
    api::{EgressGatewayStatus, EgressNodePhase, ForwardMethod, GatewayNode, GatewayNodeStatus, IpUsage, PoolUsage},
    model::{Family, GatewayName, IpRange, NodeName},
    world::Gateway,
};

/// The annotation (under the project's prefix) that takes a cordoned node out of every gateway.
const DRAIN: &str = "drain";

/// A node of a gateway, elected or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Elected {
    pub(super) node: NodeName,
    pub(super) status: GatewayNodeStatus,
    pub(super) active: bool,
}

/// The nodes of every gateway in order of preference: who was there before stays in place, newcomers follow by name.
pub(super) fn members(cluster: &Cluster, settings: &ControllerSettings) -> BTreeMap<GatewayName, Vec<Elected>> {
    cluster.gateways.iter().map(|(name, gateway)| (name.clone(), elect(cluster, gateway, settings))).collect()
}

fn elect(cluster: &Cluster, gateway: &Gateway, settings: &ControllerSettings) -> Vec<Elected> {
    let before = &gateway.state.members;
    // Of an invalid specification nothing is concluded: the nodes stay as they were.
    let selected: BTreeSet<&NodeName> = match &gateway.spec {
        Ok(spec) => cluster.nodes.iter().filter(|(_, node)| spec.nodes.matches(&node.labels)).map(|(name, _)| name).collect(),
        Err(_) => before.iter().map(|member| &member.node).collect(),
    };
    let mut seen = BTreeSet::new();
    let stay = before.iter().map(|member| &member.node).filter(|node| selected.contains(node));
    let order = stay.chain(selected.iter().copied()).filter(|node| seen.insert(*node));
    let was_active = |node: &NodeName| before.iter().any(|member| member.node == *node && member.active);
    let mut members: Vec<Elected> =
        order.map(|node| Elected { node: node.clone(), status: readiness(cluster, node), active: false }).collect();
    let ready = |member: &Elected| member.status == GatewayNodeStatus::Ready;
    match forward_method(gateway, settings) {
        ForwardMethod::Ecmp => members.iter_mut().for_each(|member| member.active = ready(member)),
        ForwardMethod::ActivePassive => {
            let kept = members.iter().position(|member| ready(member) && was_active(&member.node));
            if let Some(index) = kept.or_else(|| members.iter().position(ready)) {
                members[index].active = true;
            }
        }
    }
    members
}

fn forward_method(gateway: &Gateway, settings: &ControllerSettings) -> ForwardMethod {
    match &gateway.spec {
        Ok(spec) => spec.forward_method.unwrap_or(settings.forward_method),
        Err(_) => gateway.state.forward_method.unwrap_or(settings.forward_method),
    }
}

fn readiness(cluster: &Cluster, name: &NodeName) -> GatewayNodeStatus {
    let Some(node) = cluster.nodes.get(name) else { return GatewayNodeStatus::NotReady };
    if !node.ready || (node.cordoned && node.annotations.contains_key(DRAIN)) {
        return GatewayNodeStatus::NotReady;
    }
    let end = cluster.egress_nodes.get(name);
    match end.and_then(|end| end.tunnel_ready) {
        _ if end.is_none_or(|end| end.phase == EgressNodePhase::Failed) => GatewayNodeStatus::NotReady,
        Some(false) => GatewayNodeStatus::NotReady,
        Some(true) if cluster.fresh_leases.contains(name) => GatewayNodeStatus::Ready,
        Some(true) | None => GatewayNodeStatus::Unknown,
    }
}

/// The status of every gateway.
pub(super) fn statuses(
    cluster: &Cluster,
    settings: &ControllerSettings,
    members: &BTreeMap<GatewayName, Vec<Elected>>,
    leases: &Leases,
    marks: &Marks,
) -> BTreeMap<GatewayName, EgressGatewayStatus> {
    let status = |(name, gateway): (&GatewayName, &Gateway)| {
        let members = members.get(name).map(Vec::as_slice).unwrap_or_default();
        let nodes = members.iter().map(|member| node_status(cluster, settings, name, member, leases, marks));
        let status = EgressGatewayStatus {
            forward_method: Some(forward_method(gateway, settings)),
            node_list: nodes.collect(),
            mark: marks.gateway(name).map(|target| settings.mask.mark(target)),
            ip_usage: usage(name, gateway, leases),
            observed_generation: Some(gateway.generation),
            conditions: vec![ready(name, gateway, members, leases, marks)],
        };
        (name.clone(), status)
    };
    cluster.gateways.iter().map(status).collect()
}

fn node_status(
    cluster: &Cluster,
    settings: &ControllerSettings,
    gateway: &GatewayName,
    member: &Elected,
    leases: &Leases,
    marks: &Marks,
) -> GatewayNode {
    GatewayNode {
        name: member.node.to_string(),
        status: member.status,
        active: member.active,
        interfaces: cluster.egress_nodes.get(&member.node).map(|node| node.interfaces.clone()).unwrap_or_default(),
        egress_ips: leases.of_node(gateway, &member.node).iter().map(ToString::to_string).collect(),
        mark: marks.member(gateway, &member.node).map(|target| settings.mask.mark(target)),
    }
}

fn usage(name: &GatewayName, gateway: &Gateway, leases: &Leases) -> Option<IpUsage> {
    let pool = gateway.spec.as_ref().ok().map(|spec| &spec.pool).filter(|pool| !pool.is_empty())?;
    let usage = |family| PoolUsage {
        total: pool.iter().filter(|range| range.family() == family).map(size).fold(0, i64::saturating_add),
        used: i64::try_from(leases.of_gateway(name).iter().filter(|address| Family::of(**address) == family).count()).unwrap_or(i64::MAX),
    };
    Some(IpUsage { ipv4: usage(Family::V4), ipv6: usage(Family::V6) })
}

fn size(range: &IpRange) -> i64 {
    let bits = |address| match address {
        std::net::IpAddr::V4(address) => u128::from(address.to_bits()),
        std::net::IpAddr::V6(address) => address.to_bits(),
    };
    i64::try_from((bits(range.last()) - bits(range.first())).saturating_add(1)).unwrap_or(i64::MAX)
}

fn ready(
    name: &GatewayName,
    gateway: &Gateway,
    members: &[Elected],
    leases: &Leases,
    marks: &Marks,
) -> k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition {
    let count = members.iter().filter(|member| member.status == GatewayNodeStatus::Ready).count();
    let say = |status, reason, message: String| condition("Ready", status, reason, message, gateway.generation);
    if let Err(problems) = &gateway.spec {
        let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        return say(false, "Invalid", problems.join("; "));
    }
    if members.is_empty() {
        return say(false, "NoNodes", "no node matches spec.nodeSelector: traffic of this gateway's policies is dropped".to_owned());
    }
    if marks.gateway(name).is_none() || marks.is_short(name) {
        return say(false, "NoMarkLeft", "all 253 marks are in use: traffic of this gateway's policies is held".to_owned());
    }
    if count == 0 {
        let message = format!("none of {} nodes is Ready: traffic of this gateway's policies is dropped", members.len());
        return say(false, "NoReadyNode", message);
    }
    let exhausted = leases.exhausted(name);
    if exhausted > 0 {
        let message = format!("spec.egressIPs has no address left for {exhausted} policies: their traffic is held");
        return say(false, "PoolExhausted", message);
    }
    say(true, "Ready", format!("{count} of {} nodes are Ready", members.len()))
}
