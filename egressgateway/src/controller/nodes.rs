//! EgressNodes: one for each Node, with its addresses in the tunnel.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

use super::{Cluster, ClusterPlan, ControllerSettings, conditions};
use crate::{
    allocator::{AllocationError, AllocationRequest, Allocator},
    api::{EgressNodePhase, EgressNodeStatus},
    model::{Family, IpRange, MacAddress, NodeName, range_predecessor, range_successor},
    plan,
};

/// The condition that tells why a node has no address in the tunnel.
const ADDRESS_ASSIGNED: &str = "AddressAssigned";

/// One network of the tunnel and who holds which of its addresses.
struct Pool {
    net: IpNet,
    ranges: Vec<IpRange>,
    held: BTreeMap<IpAddr, String>,
}

impl Pool {
    /// The network's own address and its last one are nobody's, and what lies in networks of nodes
    /// is not the tunnel's: `taken`, ascending and disjoint.
    fn new(net: IpNet, taken: &[IpRange]) -> Option<Self> {
        let range = IpRange::new(
            range_successor(net.network())?,
            range_predecessor(net.broadcast())?,
        )?;
        Some(Self {
            net,
            ranges: plan::without(range, taken),
            held: BTreeMap::new(),
        })
    }

    fn holds(&self, address: IpAddr) -> bool {
        self.ranges.iter().any(|range| range.contains(address))
    }

    fn address_of(&self, addresses: impl IntoIterator<Item = IpNet>) -> Option<IpAddr> {
        addresses
            .into_iter()
            .find(|net| net.prefix_len() == self.net.prefix_len() && self.holds(net.addr()))
            .map(|net| net.addr())
    }

    fn family(&self) -> Family {
        Family::of(self.net.addr())
    }

    fn assign(
        &mut self,
        node: &NodeName,
        wanted: Option<IpAddr>,
        allocator: &dyn Allocator,
    ) -> Result<IpNet, AllocationError> {
        let request = AllocationRequest {
            holder: node.as_str(),
            wanted,
            pool: &self.ranges,
            held: &self.held,
        };
        let address = allocator.allocate(&request)?;
        self.held.insert(address, node.to_string());
        // The prefix length is that of a network of the same family.
        Ok(IpNet::new(address, self.net.prefix_len()).unwrap_or(self.net))
    }
}

pub(super) fn plan(
    cluster: &Cluster,
    allocator: &dyn Allocator,
    settings: &ControllerSettings,
    plan: &mut ClusterPlan,
) {
    plan.delete = cluster
        .egress_nodes
        .keys()
        .filter(|name| !cluster.nodes.contains_key(*name))
        .cloned()
        .collect();
    let taken = plan::merge(networks_of_nodes(cluster).map(IpRange::from));
    let mut pools: Vec<Pool> = settings
        .overlay
        .iter()
        .filter_map(|net| Pool::new(net.trunc(), &taken))
        .collect();
    for pool in &mut pools {
        claim(cluster, pool);
    }
    for (name, node) in &cluster.nodes {
        if !cluster.egress_nodes.contains_key(name) {
            plan.create.insert(name.clone(), node.uid.clone());
        }
        plan.egress_nodes.insert(
            name.clone(),
            status(cluster, name, &node.uid, &mut pools, allocator),
        );
    }
}

/// What nodes have and are attached to, as far as Nodes and agents tell.
fn networks_of_nodes(cluster: &Cluster) -> impl Iterator<Item = IpNet> {
    let addresses = cluster
        .nodes
        .values()
        .flat_map(|node| node.addresses.iter().copied().map(IpNet::from));
    let interfaces = cluster
        .egress_nodes
        .values()
        .flat_map(|node| &node.interfaces);
    let networks = interfaces
        .flat_map(|interface| interface.ipv4.iter().chain(&interface.ipv6))
        .filter_map(|text| text.parse().ok());
    addresses.chain(networks.map(|network: IpNet| network.trunc()))
}

/// Nodes hold the addresses that their statuses say. Where two say the same one, the node whose
/// tunnel works with it keeps it, else the first by name.
fn claim(cluster: &Cluster, pool: &mut Pool) {
    let mut claims: Vec<_> = cluster
        .egress_nodes
        .iter()
        .filter(|(name, _)| families(cluster, name).contains(&pool.family()))
        .collect();
    claims.sort_by_key(|(name, node)| (node.phase != EgressNodePhase::Succeeded, *name));
    for (name, node) in claims {
        if let Some(address) = pool.address_of(node.overlay.iter().copied()) {
            pool.held.entry(address).or_insert_with(|| name.to_string());
        }
    }
}

/// The families that a node can reach others by: those of its Node's addresses and of the tunnel's
/// parent.
fn families(cluster: &Cluster, name: &NodeName) -> BTreeSet<Family> {
    let Some(node) = cluster.nodes.get(name) else {
        return BTreeSet::new();
    };
    let underlay = cluster
        .egress_nodes
        .get(name)
        .into_iter()
        .flat_map(|node| &node.underlay);
    node.addresses
        .iter()
        .chain(underlay)
        .map(|address| Family::of(*address))
        .collect()
}

fn status(
    cluster: &Cluster,
    name: &NodeName,
    uid: &str,
    pools: &mut [Pool],
    allocator: &dyn Allocator,
) -> EgressNodeStatus {
    let before = cluster.egress_nodes.get(name);
    let families = families(cluster, name);
    let mut status = EgressNodeStatus::default();
    let mut assigned = BTreeSet::new();
    let mut refusals: Vec<String> = Vec::new();
    for pool in pools
        .iter_mut()
        .filter(|pool| families.contains(&pool.family()))
    {
        let said = before.and_then(|node| pool.address_of(node.overlay.iter().copied()));
        let kept = said.filter(|address| {
            pool.held
                .get(address)
                .is_some_and(|holder| holder == name.as_str())
        });
        match pool.assign(name, kept, allocator) {
            Ok(address) => {
                assigned.insert(address);
                let field = match pool.family() {
                    Family::V4 => &mut status.vxlan_ipv4_ip,
                    Family::V6 => &mut status.vxlan_ipv6_ip,
                };
                *field = Some(address.to_string());
            }
            Err(_) if pool.ranges.is_empty() => {
                refusals.push(format!("the tunnel's network {} lies in networks that nodes are attached to: choose another one", pool.net));
            }
            Err(error) => refusals.push(error.to_string()),
        }
    }
    let mac = MacAddress::from_seed(if uid.is_empty() { name.as_str() } else { uid });
    status.tunnel_mac = Some(mac.to_string());
    let built = before.is_some_and(|node| {
        node.phase == EgressNodePhase::Succeeded
            && node.tunnel_ready == Some(true)
            && node.mac == Some(mac)
            && node.overlay == assigned
    });
    status.phase = Some(match () {
        () if !refusals.is_empty() => EgressNodePhase::Failed,
        () if assigned.is_empty() => EgressNodePhase::Pending,
        () if built => EgressNodePhase::Succeeded,
        () => EgressNodePhase::Init,
    });
    if !refusals.is_empty() {
        let message = conditions::join(&refusals);
        status.conditions = vec![conditions::condition(
            ADDRESS_ASSIGNED,
            false,
            "PoolExhausted",
            &message,
            None,
        )];
    }
    status
}
