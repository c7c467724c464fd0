use super::{
    Cluster, ClusterPlan, ControllerSettings, egress_ips, gateways, marks, nodes, policies,
    port_blocks,
};
use crate::allocator::Allocator;

/// Decides about the whole cluster. The same cluster has the same plan, and a cluster that holds
/// the plan is planned alike.
#[must_use]
pub fn plan(
    cluster: &Cluster,
    allocator: &dyn Allocator,
    settings: &ControllerSettings,
) -> ClusterPlan {
    let mut plan = ClusterPlan::default();
    nodes::plan(cluster, allocator, settings, &mut plan);
    plan.forget = cluster
        .stale_leases
        .iter()
        .filter(|name| !cluster.nodes.contains_key(*name))
        .cloned()
        .collect();
    let mut gateways = gateways::elect(cluster, settings);
    let resolved = policies::resolve_all(cluster, settings);
    let networks = cluster.networks(settings);
    let given = egress_ips::assign_all(cluster, allocator, &resolved, &gateways, &networks);
    gateways::place(&mut gateways, &given);
    marks::allot(cluster, &mut gateways);
    let blocks = port_blocks::give(cluster, &given);
    for (name, status) in &mut plan.egress_nodes {
        status.port_blocks = blocks.of(name);
    }
    plan.gateways = gateways::statuses(cluster, &gateways, &given, &networks, settings);
    plan.policies = policies::statuses(cluster, resolved, &given, &blocks, settings);
    plan
}
