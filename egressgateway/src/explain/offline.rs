use std::{collections::BTreeMap, net::IpAddr};

use imbl::OrdMap;

use super::{
    Manifests, OfflineSettings,
    settings::{UNDERLAY_DEVICE, UNDERLAY_INDEX, UNDERLAY_MTU},
    simulate::Settled,
};
use crate::{
    Attachments, DriversDesired, NodeDesired, Underlay,
    index::{Index, ObjectError},
    model::{Family, GatewayName, NodeName, PodName},
    plan,
    spec::GatewaySpec,
    world::{self, Change, Pod},
};

/// What manifests must tell besides pods.
const POD_NETWORKS: &str = "the manifests do not say which addresses pods have: the Node has no spec.podCIDRs and clusterCIDRs.extra is empty, or \
     its pods have other addresses than these say; set clusterCIDRs.extra to the networks of pods and services, unless an object of the CNI tells \
     them in the cluster";

/// What manifests must tell of the nodes of a gateway with a pool.
const NODE_NETWORKS: &str = "the manifests do not say which networks these nodes are in, so an address may be given here that the cluster \
     gives to nobody, such as a network's first one or its router's; add their EgressNodes";

/// A cluster from manifests: no API server, no kernel, no clock.
///
/// What manifests do not say is assumed to be well: every node has an agent with a fresh lease, a
/// Node without condition `Ready` is ready, and an EgressNode without outer addresses has the
/// Node's first InternalIP of each family, on the device [`UNDERLAY_DEVICE`], with its tunnel up.
#[derive(Debug)]
pub struct Offline {
    pub(super) settings: OfflineSettings,
    views: BTreeMap<NodeName, View>,
    pub(super) pods: BTreeMap<PodName, Option<Pod>>,
    at_rest: bool,
    /// Of pools, as a webhook would refuse them.
    pools: Vec<ObjectError>,
    notes: Vec<String>,
}

/// What one node knows and must hold.
#[derive(Debug)]
struct View {
    index: Index,
    desired: NodeDesired,
}

impl Offline {
    /// The cluster of these manifests.
    #[must_use]
    pub fn new(manifests: &Manifests, settings: OfflineSettings) -> Self {
        let pods: BTreeMap<PodName, Option<Pod>> = manifests
            .pods
            .iter()
            .map(|(name, pod)| (name.clone(), Pod::from_api(pod)))
            .collect();
        let settled = Settled::of(manifests, &pods, &settings);
        let views = settled
            .nodes
            .keys()
            .map(|node| {
                (
                    node.clone(),
                    view(node, manifests, &settled, &pods, &settings),
                )
            })
            .collect();
        let pools = pools(&settled, &settings);
        let notes = notes(&settled, manifests, &settings);
        Self {
            settings,
            views,
            pods,
            at_rest: settled.at_rest,
            pools,
            notes,
        }
    }

    /// Its nodes, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeName> {
        self.views.keys()
    }

    /// What a node must hold.
    #[must_use]
    pub fn desired(&self, node: &NodeName) -> Option<&NodeDesired> {
        self.views.get(node).map(|view| &view.desired)
    }

    /// The same in the words of the drivers.
    #[must_use]
    pub fn for_drivers(&self, node: &NodeName) -> Option<DriversDesired> {
        self.desired(node)
            .map(|desired| desired.for_drivers(self.settings.encapsulation.as_ref()))
    }

    /// What a node knows.
    #[must_use]
    pub fn index(&self, node: &NodeName) -> Option<&Index> {
        self.views.get(node).map(|view| &view.index)
    }

    /// What is wrong with the cluster's objects, as their conditions would say.
    #[must_use]
    pub fn troubles(&self) -> Vec<ObjectError> {
        let problems = self
            .views
            .values()
            .next()
            .map(|view| view.index.problems())
            .unwrap_or_default();
        problems
            .into_iter()
            .chain(self.pools.iter().cloned())
            .collect()
    }

    /// What the manifests leave open, so that the cluster may give another answer.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// What a node does not know and somebody should tell it, in one sentence each.
    #[must_use]
    pub fn unknown(&self, node: &NodeName) -> Vec<String> {
        let unknown = self
            .index(node)
            .is_some_and(Index::pod_networks_are_unknown);
        unknown
            .then(|| POD_NETWORKS.to_owned())
            .into_iter()
            .collect()
    }

    /// Whether the controller came to rest; it always does unless it has a defect.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.at_rest
    }
}

/// Only agents know the networks and routers of their nodes, which no egress address is taken from.
fn notes(settled: &Settled, manifests: &Manifests, settings: &OfflineSettings) -> Vec<String> {
    let is_told = |node: &NodeName| {
        let told = manifests.egress_nodes.get(node);
        told.and_then(|node| node.status.as_ref())
            .is_some_and(|status| !status.interfaces.is_empty())
    };
    let note = |change| {
        let Change::Gateway(name, Some(gateway)) = change else {
            return None;
        };
        let pool = &gateway.spec.as_ref().ok()?.pool;
        let members = gateway.state.members.iter().map(|member| &member.node);
        let untold: Vec<&str> = members
            .filter(|node| !pool.is_empty() && !is_told(node))
            .map(NodeName::as_str)
            .collect();
        (!untold.is_empty()).then(|| {
            format!(
                "EgressGateway {name}: {NODE_NETWORKS}: {}",
                untold.join(", ")
            )
        })
    };
    settled.changes(settings.mask).filter_map(note).collect()
}

fn pools(settled: &Settled, settings: &OfflineSettings) -> Vec<ObjectError> {
    let nodes = settled
        .nodes
        .iter()
        .filter(|_| settings.auto_cluster_networks);
    let networks = plan::cluster_networks(
        nodes,
        settings.cluster_networks.iter().copied(),
        &settings.overlay,
    );
    let gateways = settled
        .changes(settings.mask)
        .filter_map(|change| match change {
            Change::Gateway(name, Some(gateway)) => Some((name, gateway.spec.ok()?)),
            _ => None,
        });
    let troubles = |(name, spec): (GatewayName, GatewaySpec)| {
        plan::misplaced_pool(&spec, &networks)
            .into_iter()
            .map(move |problem| ObjectError::Gateway(name.clone(), problem))
    };
    gateways.flat_map(troubles).collect()
}

fn view(
    node: &NodeName,
    manifests: &Manifests,
    settled: &Settled,
    pods: &BTreeMap<PodName, Option<Pod>>,
    settings: &OfflineSettings,
) -> View {
    let mut index = settled.index(node, manifests, pods, settings);
    let own = settled
        .egress_nodes
        .get(node)
        .map(world::EgressNode::from_api)
        .unwrap_or_default();
    index.set_underlay(
        own.underlay
            .iter()
            .map(|address| {
                (
                    Family::of(*address),
                    underlay(*address, own.device.as_deref()),
                )
            })
            .collect::<OrdMap<_, _>>(),
    );
    index.set_attachments(Attachments::reported(&own.interfaces));
    let desired = index.desired();
    View { index, desired }
}

fn underlay(address: IpAddr, device: Option<&str>) -> Underlay {
    Underlay {
        device: device.unwrap_or(UNDERLAY_DEVICE).to_owned(),
        index: UNDERLAY_INDEX,
        address,
        mtu: UNDERLAY_MTU,
    }
}
