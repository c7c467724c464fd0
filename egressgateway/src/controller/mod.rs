//! What the controller decides, as one pure function of the cluster: tunnel addresses, marks, elections, egress addresses, conditions.
//!
//! Everything that was decided is read back from the statuses, so a new leader continues where the last one stopped, and planning for a
//! cluster that already has the planned statuses changes nothing.
//!
//! ```
//! use egressgateway::{allocator::LowestFree, controller::{Cluster, ControllerSettings, plan}};
//!
//! let settings = ControllerSettings { overlay: vec!["172.31.0.0/16".parse().unwrap()], ..ControllerSettings::default() };
//! let plan = plan(&Cluster::default(), &LowestFree, &settings);
//! assert!(plan.create.is_empty() && plan.gateways.is_empty());
//! ```

mod conditions;
mod egress_ips;
mod gateways;
mod marks;
mod nodes;
mod policies;

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::{
    allocator::Allocator,
    api::{EgressGatewayPolicyStatus, EgressGatewayStatus, EgressNodeStatus, ForwardMethod},
    model::{GatewayName, MarkMask, NodeName, PolicyName},
    world::{Change, EgressNode, Gateway, Node, Policy},
};

/// The cluster as the controller sees it.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// The Nodes.
    pub nodes: BTreeMap<NodeName, Node>,
    /// The EgressNodes.
    pub egress_nodes: BTreeMap<NodeName, EgressNode>,
    /// The EgressGateways.
    pub gateways: BTreeMap<GatewayName, Gateway>,
    /// The EgressGatewayPolicies.
    pub policies: BTreeMap<PolicyName, Policy>,
    /// The nodes whose agent renewed its lease in time.
    pub fresh_leases: BTreeSet<NodeName>,
}

impl Cluster {
    /// Takes note of a change; kinds that the controller does not look at are ignored.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Node(name, node) => set(&mut self.nodes, name, node),
            Change::EgressNode(name, node) => set(&mut self.egress_nodes, name, node),
            Change::Gateway(name, gateway) => set(&mut self.gateways, name, gateway),
            Change::Policy(name, policy) => set(&mut self.policies, name, policy),
            Change::Pod(..) | Change::Namespace(..) | Change::ClusterNetworks(_) => {}
        }
    }
}

fn set<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => drop(map.insert(key, value)),
        None => drop(map.remove(&key)),
    }
}

/// What the controller must know besides the cluster.
#[derive(Clone, Debug, Default)]
pub struct ControllerSettings {
    /// Where a gateway's specification does not say.
    pub forward_method: ForwardMethod,
    /// The gateway of policies that name none.
    pub default_gateway: Option<GatewayName>,
    /// Networks that tunnel addresses come from, at most one of each family.
    pub overlay: Vec<IpNet>,
    /// Where marks live.
    pub mask: MarkMask,
}

/// What the cluster's objects must say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClusterPlan {
    /// Nodes without an EgressNode, with their UIDs: one is made for each, owned by the Node.
    pub create: BTreeMap<NodeName, String>,
    /// EgressNodes without a Node: they go.
    pub delete: BTreeSet<NodeName>,
    /// The controller's part of each EgressNode's status; the rest is its agent's. A phase is absent where the agent says it.
    pub egress_nodes: BTreeMap<NodeName, EgressNodeStatus>,
    /// Whole statuses. Conditions have no time of transition (it is 1970): whoever writes them knows when they changed.
    pub gateways: BTreeMap<GatewayName, EgressGatewayStatus>,
    /// Whole statuses, in the same way.
    pub policies: BTreeMap<PolicyName, EgressGatewayPolicyStatus>,
}

/// Decides about the whole cluster. Pure.
#[must_use]
pub fn plan(cluster: &Cluster, allocator: &dyn Allocator, settings: &ControllerSettings) -> ClusterPlan {
    let create = cluster.nodes.iter().filter(|(name, _)| !cluster.egress_nodes.contains_key(*name));
    let delete = cluster.egress_nodes.keys().filter(|name| !cluster.nodes.contains_key(*name));
    let members = gateways::members(cluster, settings);
    let leases = egress_ips::lease(cluster, allocator, settings, &members);
    let marks = marks::allot(cluster, &members, &leases);
    ClusterPlan {
        create: create.map(|(name, node)| (name.clone(), node.uid.clone())).collect(),
        delete: delete.cloned().collect(),
        egress_nodes: nodes::plan(cluster, allocator, settings),
        gateways: gateways::statuses(cluster, settings, &members, &leases, &marks),
        policies: policies::statuses(cluster, settings, &leases),
    }
}
