use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::ControllerSettings;
use crate::{
    model::{GatewayName, NodeName, PolicyName},
    plan::{self, ClusterNetwork},
    world::{Change, EgressNode, Gateway, Node, Policy, set_object},
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
    /// Networks of the cluster that Nodes don't tell, such as those of Services.
    pub cluster_networks: Vec<IpNet>,
    /// Networks of pods that the CNI's objects tell.
    pub pod_networks: Vec<IpNet>,
    /// Nodes whose agents renewed their lease in time.
    pub fresh_leases: BTreeSet<NodeName>,
    /// Nodes whose agents have a lease that they did not renew in time.
    pub stale_leases: BTreeSet<NodeName>,
    /// The time, in seconds since 1970.
    pub now: i64,
}

impl Cluster {
    /// An object was added, changed or (`None`) deleted; true if it differs from what was known.
    /// Kinds that the controller does not decide about are ignored.
    pub fn apply(&mut self, change: Change) -> bool {
        match change {
            Change::Node(name, node) => set_object(&mut self.nodes, name, node),
            Change::EgressNode(name, node) => set_object(&mut self.egress_nodes, name, node),
            Change::Gateway(name, gateway) => set_object(&mut self.gateways, name, gateway),
            Change::Policy(name, policy) => set_object(&mut self.policies, name, policy),
            Change::ClusterNetworks(networks) => {
                let news = self.cluster_networks != networks;
                self.cluster_networks = networks;
                news
            }
            Change::PodNetworks(networks) => {
                let news = self.pod_networks != networks;
                self.pod_networks = networks;
                news
            }
            Change::Pod(..) | Change::Namespace(..) => false,
        }
    }

    /// The networks that no pool may be in.
    pub(crate) fn networks(&self, settings: &ControllerSettings) -> Vec<ClusterNetwork> {
        let others = self
            .cluster_networks
            .iter()
            .chain(&self.pod_networks)
            .chain(&settings.cluster_networks)
            .copied();
        plan::cluster_networks(
            self.nodes.iter().filter(|_| settings.auto_cluster_networks),
            others,
            &settings.overlay,
        )
    }
}
