//! Which nodes can carry traffic.

use super::Cluster;
use crate::{api::GatewayNodeStatus, model::NodeName, world::Node};

/// Whether others are preferred for new traffic.
pub(super) fn is_cordoned(cluster: &Cluster, name: &NodeName) -> bool {
    cluster.nodes.get(name).is_some_and(|node| node.cordoned)
}

/// Whether a node can carry traffic.
pub(super) fn status_of(cluster: &Cluster, name: &NodeName) -> GatewayNodeStatus {
    if cluster.nodes.get(name).is_some_and(Node::is_drained) {
        GatewayNodeStatus::NotReady
    } else {
        health_of(cluster, name)
    }
}

/// Whether a node can carry traffic of a gateway whose sources are translated on the pods' own
/// nodes: not where it says that it passes nothing on.
pub(super) fn relay_status_of(cluster: &Cluster, name: &NodeName) -> GatewayNodeStatus {
    let relay = cluster
        .egress_nodes
        .get(name)
        .and_then(|node| node.relay_ready);
    match status_of(cluster, name) {
        GatewayNodeStatus::Ready if relay == Some(false) => GatewayNodeStatus::NotReady,
        status => status,
    }
}

/// Whether connections can go on through it, drained or not.
pub(super) fn can_carry(cluster: &Cluster, name: &NodeName) -> bool {
    health_of(cluster, name) == GatewayNodeStatus::Ready
}

/// Whether only signs of life are missing: nobody took it out, and nothing says that its tunnel is
/// not there.
pub(super) fn is_silent(cluster: &Cluster, name: &NodeName) -> bool {
    let tunnel = cluster
        .egress_nodes
        .get(name)
        .and_then(|node| node.tunnel_ready);
    let stays = cluster
        .nodes
        .get(name)
        .is_some_and(|node| !node.is_drained());
    stays && tunnel == Some(true) && !can_carry(cluster, name)
}

fn health_of(cluster: &Cluster, name: &NodeName) -> GatewayNodeStatus {
    let Some(node) = cluster.nodes.get(name) else {
        return GatewayNodeStatus::NotReady;
    };
    let tunnel = cluster
        .egress_nodes
        .get(name)
        .and_then(|node| node.tunnel_ready);
    let fresh = cluster.fresh_leases.contains(name);
    match tunnel {
        _ if !node.ready => GatewayNodeStatus::NotReady,
        Some(false) => GatewayNodeStatus::NotReady,
        _ if !fresh => GatewayNodeStatus::Unknown,
        None => GatewayNodeStatus::NotReady,
        Some(true) => GatewayNodeStatus::Ready,
    }
}
