//! What the controller decides, as a function of the cluster: [`plan`] is pure, and what it decided
//! before comes back to it in the objects' statuses. A new leader continues where the last one
//! stopped.

mod cluster;
mod conditions;
mod egress_ips;
pub mod events;
mod families;
mod gateways;
mod marks;
mod nodes;
mod overlaps;
mod owners;
mod policies;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use ipnet::IpNet;

pub use cluster::Cluster;
pub(crate) use conditions::join;
pub use events::Event;
pub(crate) use overlaps::list;

use crate::{
    allocator::Allocator,
    api::{EgressGatewayPolicyStatus, EgressGatewayStatus, EgressNodeStatus, ForwardMethod},
    model::{GatewayName, MarkMask, NodeName, PolicyName},
};

/// What the plan depends on besides the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerSettings {
    /// How gateways forward that don't say it themselves.
    pub forward_method: ForwardMethod,
    /// The gateway of policies that name none.
    pub default_gateway: Option<GatewayName>,
    /// Networks of the tunnel's addresses, at most one of each family.
    pub overlay: Vec<IpNet>,
    /// Further networks of the cluster that no pool may be in, such as those of Services.
    pub cluster_networks: Vec<IpNet>,
    /// Whether the networks of pods that Nodes tell are networks of the cluster too.
    pub auto_cluster_networks: bool,
    /// The mask that marks are written under.
    pub mask: MarkMask,
    /// How long connections through a drained node go on; none: they are moved at once.
    pub drain_grace: Duration,
}

impl Default for ControllerSettings {
    fn default() -> Self {
        Self {
            forward_method: ForwardMethod::default(),
            default_gateway: None,
            overlay: Vec::new(),
            cluster_networks: Vec::new(),
            auto_cluster_networks: true,
            mask: MarkMask::default(),
            drain_grace: Duration::ZERO,
        }
    }
}

/// What shall stand in the API server.
///
/// Conditions have no `lastTransitionTime` of their own (1970 stands there): it is the writer's,
/// who knows the clock.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClusterPlan {
    /// EgressNodes to make, with the UID of the Node that owns each.
    pub create: BTreeMap<NodeName, String>,
    /// EgressNodes without a Node.
    pub delete: BTreeSet<NodeName>,
    /// Agents' leases without a Node: nobody will renew them.
    pub forget: BTreeSet<NodeName>,
    /// Status of every EgressNode that is or will be: phase (Succeeded only where the agent said
    /// so), addresses and hardware address. The other fields are the agent's.
    pub egress_nodes: BTreeMap<NodeName, EgressNodeStatus>,
    /// Status of every gateway.
    pub gateways: BTreeMap<GatewayName, EgressGatewayStatus>,
    /// Status of every policy.
    pub policies: BTreeMap<PolicyName, EgressGatewayPolicyStatus>,
}

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
    let judged = policies::judge(cluster, settings);
    let networks = cluster.networks(settings);
    let given = egress_ips::give(cluster, allocator, &judged, &gateways, &networks);
    gateways::place(&mut gateways, &given);
    marks::allot(cluster, &mut gateways);
    plan.gateways = gateways::statuses(cluster, &gateways, &given, &networks, settings);
    plan.policies = policies::statuses(cluster, judged, &given, settings);
    plan
}
