use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::api::core::v1 as core;

use super::{
    Manifests,
    settings::{OfflineSettings, Statuses, UNDERLAY_DEVICE},
};
use crate::{
    api::{self, EgressNodePhase, EgressNodeStatus, Interface, NatMode, PortsWanted},
    controller::{self, Cluster, ClusterPlan, ControllerSettings},
    index::Index,
    model::{Family, GatewayName, MarkMask, NodeName, PodName, PolicyName},
    world::{self, Change, Pod},
};

/// The controller gets this many turns. Four are needed: addresses, then elections and marks, then
/// what refers to those, then what agents ask for because of them.
const TURNS: usize = 16;

/// The cluster's objects with statuses that the controller has nothing to add to.
#[derive(Debug)]
pub(super) struct Settled {
    pub(super) nodes: BTreeMap<NodeName, world::Node>,
    pub(super) egress_nodes: BTreeMap<NodeName, api::EgressNode>,
    gateways: BTreeMap<GatewayName, api::EgressGateway>,
    policies: BTreeMap<PolicyName, api::EgressGatewayPolicy>,
    pub(super) at_rest: bool,
}

impl Settled {
    pub(super) fn of(
        manifests: &Manifests,
        pods: &BTreeMap<PodName, Option<Pod>>,
        settings: &OfflineSettings,
    ) -> Self {
        let mut settled = Self {
            nodes: manifests
                .nodes
                .iter()
                .map(|(name, node)| (name.clone(), offline_node(node)))
                .collect(),
            egress_nodes: manifests.egress_nodes.clone(),
            gateways: manifests.gateways.clone(),
            policies: manifests.policies.clone(),
            at_rest: true,
        };
        if settings.statuses == Statuses::Planned {
            settled.settle(manifests, pods, settings);
        }
        settled
    }

    fn settle(
        &mut self,
        manifests: &Manifests,
        pods: &BTreeMap<PodName, Option<Pod>>,
        settings: &OfflineSettings,
    ) {
        let controller = ControllerSettings {
            forward_method: settings.forward_method,
            default_gateway: settings.default_gateway.clone(),
            overlay: settings.overlay.clone(),
            cluster_networks: settings.cluster_networks.clone(),
            auto_cluster_networks: settings.auto_cluster_networks,
            mask: settings.mask,
            // What a new connection meets is the same with and without.
            drain_grace: Duration::ZERO,
        };
        let mut before = ClusterPlan::default();
        for _ in 0..TURNS {
            let plan = controller::plan(
                &self.cluster(settings.mask),
                settings.allocator.as_ref(),
                &controller,
            );
            self.at_rest = plan == before;
            if self.at_rest {
                return;
            }
            self.take(&plan, manifests);
            self.ask_for_ports(manifests, pods, settings);
            before = plan;
        }
    }

    fn cluster(&self, mask: MarkMask) -> Cluster {
        let mut cluster = Cluster {
            fresh_leases: self.nodes.keys().cloned().collect(),
            ..Cluster::default()
        };
        for change in self.changes(mask) {
            cluster.apply(change);
        }
        cluster
    }

    /// The objects as a daemon is told of them.
    pub(super) fn changes(&self, mask: MarkMask) -> impl Iterator<Item = Change> {
        let nodes = self
            .nodes
            .iter()
            .map(|(name, node)| Change::Node(name.clone(), Some(node.clone())));
        let egress_nodes = self.egress_nodes.iter().map(|(name, node)| {
            Change::EgressNode(name.clone(), Some(world::EgressNode::from_api(node)))
        });
        let gateways = self.gateways.iter().map(move |(name, gateway)| {
            Change::Gateway(name.clone(), Some(world::Gateway::from_api(gateway, mask)))
        });
        let policies = self.policies.iter().map(|(name, policy)| {
            Change::Policy(name.clone(), Some(world::Policy::from_api(policy)))
        });
        nodes.chain(egress_nodes).chain(gateways).chain(policies)
    }

    /// What a node's agent is told, without what it reads from the node itself.
    pub(super) fn index(
        &self,
        node: &NodeName,
        manifests: &Manifests,
        pods: &BTreeMap<PodName, Option<Pod>>,
        settings: &OfflineSettings,
    ) -> Index {
        let mut index = Index::new(settings.of_index(node));
        for change in self.changes(settings.mask) {
            index.apply(change);
        }
        for (name, namespace) in &manifests.namespaces {
            index.apply(Change::Namespace(name.clone(), Some(namespace.clone())));
        }
        for (name, pod) in pods {
            index.apply(Change::Pod(name.clone(), pod.clone()));
        }
        index
    }

    /// Writes a plan into the objects, as the API server would hold them, and lets every agent
    /// answer.
    fn take(&mut self, plan: &ClusterPlan, manifests: &Manifests) {
        for node in &plan.delete {
            self.egress_nodes.remove(node);
        }
        for node in plan.create.keys() {
            self.egress_nodes.insert(
                node.clone(),
                api::EgressNode::new(node.as_str(), api::EgressNodeSpec {}),
            );
        }
        for (name, planned) in &plan.egress_nodes {
            let Some(node) = self.egress_nodes.get_mut(name) else {
                continue;
            };
            let status = node.status.get_or_insert_default();
            status.vxlan_ipv4_ip.clone_from(&planned.vxlan_ipv4_ip);
            status.vxlan_ipv6_ip.clone_from(&planned.vxlan_ipv6_ip);
            status.tunnel_mac.clone_from(&planned.tunnel_mac);
            status.phase = planned.phase.or(status.phase);
            status.port_blocks.clone_from(&planned.port_blocks);
            if let Some(node) = manifests.nodes.get(name) {
                answer(status, node);
            }
        }
        for (name, status) in &plan.gateways {
            if let Some(gateway) = self.gateways.get_mut(name) {
                gateway.status = Some(status.clone());
            }
        }
        for (name, status) in &plan.policies {
            if let Some(policy) = self.policies.get_mut(name) {
                policy.status = Some(status.clone());
            }
        }
    }

    /// Every agent asks for the ports that its pods need.
    fn ask_for_ports(
        &mut self,
        manifests: &Manifests,
        pods: &BTreeMap<PodName, Option<Pod>>,
        settings: &OfflineSettings,
    ) {
        let distributed =
            |gateway: &api::EgressGateway| gateway.spec.nat == Some(NatMode::Distributed);
        if !self.gateways.values().any(distributed) {
            return;
        }
        let wants = |node: &NodeName| {
            let mut index = self.index(node, manifests, pods, settings);
            index.desired();
            let wanted = index.ports_wanted().into_iter();
            let wanted = wanted.map(|(address, units)| PortsWanted {
                address: address.to_string(),
                units,
            });
            (node.clone(), wanted.collect())
        };
        let wanted: Vec<(NodeName, Vec<PortsWanted>)> = self.nodes.keys().map(wants).collect();
        for (node, wanted) in wanted {
            if let Some(node) = self.egress_nodes.get_mut(&node) {
                node.status.get_or_insert_default().ports_wanted = wanted;
            }
        }
    }
}

/// The node, which is ready unless the manifest says otherwise.
fn offline_node(node: &core::Node) -> world::Node {
    let conditions = node
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    let says_ready = conditions
        .clone()
        .any(|condition| condition.type_ == "Ready");
    let mut offline = world::Node::from_api(node);
    offline.ready |= !says_ready;
    offline
}

/// What a node's agent would say, where the manifest does not: outer addresses, and that the tunnel
/// is up.
fn answer(status: &mut EgressNodeStatus, node: &core::Node) {
    let addresses: Vec<_> = internal_addresses(node).collect();
    let first = |family| {
        addresses
            .iter()
            .find(|address| Family::of(**address) == family)
            .map(ToString::to_string)
    };
    if status.physical_interface.is_none() {
        status.physical_interface = Some(UNDERLAY_DEVICE.to_owned());
        status.physical_interface_ipv4 = status
            .physical_interface_ipv4
            .take()
            .or_else(|| first(Family::V4));
        status.physical_interface_ipv6 = status
            .physical_interface_ipv6
            .take()
            .or_else(|| first(Family::V6));
    }
    if status.interfaces.is_empty() {
        let of = |family: Family| {
            let own = addresses
                .iter()
                .filter(move |address| Family::of(**address) == family);
            own.map(|address| format!("{address}/{}", family.bits()))
                .collect()
        };
        let (name, sources) = (
            UNDERLAY_DEVICE.to_owned(),
            [first(Family::V4), first(Family::V6)],
        );
        let [source_ipv4, source_ipv6] = sources;
        status.interfaces = vec![Interface {
            name,
            ipv4: of(Family::V4),
            ipv6: of(Family::V6),
            source_ipv4,
            source_ipv6,
            ..Interface::default()
        }];
    }
    if !status
        .conditions
        .iter()
        .any(|condition| condition.type_ == EgressNodeStatus::TUNNEL_READY)
    {
        let ready = api::condition(
            EgressNodeStatus::TUNNEL_READY,
            "True",
            "Offline",
            String::new(),
            None,
        );
        status.conditions.push(ready);
    }
    if status.phase == Some(EgressNodePhase::Init) {
        status.phase = Some(EgressNodePhase::Succeeded);
    }
}

fn internal_addresses(node: &core::Node) -> impl Iterator<Item = std::net::IpAddr> {
    let addresses = node
        .status
        .iter()
        .flat_map(|status| status.addresses.iter().flatten());
    addresses
        .filter(|address| address.type_ == "InternalIP")
        .filter_map(|address| address.address.parse().ok())
}
