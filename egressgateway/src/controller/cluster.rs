use std::collections::{BTreeMap, BTreeSet};

use crate::{
    model::{GatewayName, NodeName, PolicyName},
    world::{Change, EgressNode, Gateway, Node, Policy},
};

/// The objects that the controller decides about.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cluster {
    /// The nodes.
    pub nodes: BTreeMap<NodeName, Node>,
    /// Their ends of the tunnel.
    pub egress_nodes: BTreeMap<NodeName, EgressNode>,
    /// The gateways.
    pub gateways: BTreeMap<GatewayName, Gateway>,
    /// The policies.
    pub policies: BTreeMap<PolicyName, Policy>,
    /// Nodes whose agents renewed their lease in time.
    pub fresh_leases: BTreeSet<NodeName>,
    /// Nodes whose agents have a lease that they did not renew in time.
    pub stale_leases: BTreeSet<NodeName>,
    /// The time, in seconds since 1970.
    pub now: i64,
}

impl Cluster {
    /// One object is now so, or is gone. Kinds that the controller does not decide about are ignored.
    pub fn apply(&mut self, change: Change) -> bool {
        match change {
            Change::Node(name, node) => put(&mut self.nodes, name, node),
            Change::EgressNode(name, node) => put(&mut self.egress_nodes, name, node),
            Change::Gateway(name, gateway) => put(&mut self.gateways, name, gateway),
            Change::Policy(name, policy) => put(&mut self.policies, name, policy),
            Change::Pod(..) | Change::Namespace(..) | Change::ClusterNetworks(_) => false,
        }
    }
}

fn put<K: Ord, V: PartialEq>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) -> bool {
    if map.get(&key) == value.as_ref() {
        return false;
    }
    match value {
        Some(value) => _ = map.insert(key, value),
        None => _ = map.remove(&key),
    }
    true
}
