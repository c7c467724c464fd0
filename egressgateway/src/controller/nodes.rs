use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

use super::{Cluster, ControllerSettings, conditions::condition};
use crate::{
    allocator::{AllocationError, AllocationRequest, Allocator},
    api::{EgressNodePhase, EgressNodeStatus},
    model::{Family, IpRange, MacAddress, NodeName, range_predecessor, range_successor},
};

/// The controller's part of every EgressNode that has a Node: addresses stay where they are, new ones come from the overlay's networks.
pub(super) fn plan(cluster: &Cluster, allocator: &dyn Allocator, settings: &ControllerSettings) -> BTreeMap<NodeName, EgressNodeStatus> {
    let mut held: BTreeMap<Family, BTreeMap<IpAddr, String>> =
        settings.overlay.iter().map(|net| (Family::of(net.addr()), held(cluster, *net))).collect();
    let mut statuses = BTreeMap::new();
    for name in cluster.egress_nodes.keys() {
        let Some(node) = cluster.nodes.get(name) else { continue };
        let families: BTreeSet<Family> = node.addresses.iter().map(|address| Family::of(*address)).collect();
        let mut given: BTreeMap<Family, Result<IpNet, AllocationError>> = BTreeMap::new();
        for net in settings.overlay.iter().filter(|net| families.contains(&Family::of(net.addr()))) {
            let family = Family::of(net.addr());
            let held = held.entry(family).or_default();
            given.insert(family, give(name, *net, held, allocator));
        }
        let uid = if node.uid.is_empty() { name.as_str() } else { &node.uid };
        statuses.insert(name.clone(), status(cluster, name, &given, MacAddress::from_seed(uid)));
    }
    statuses
}

/// Addresses of a network that EgressNodes hold; where two claim one, the first by name has it.
fn held(cluster: &Cluster, net: IpNet) -> BTreeMap<IpAddr, String> {
    let mut held = BTreeMap::new();
    let pool = usable(net);
    for (name, node) in cluster.egress_nodes.iter().filter(|(name, _)| cluster.nodes.contains_key(*name)) {
        for address in node.overlay.iter().map(IpNet::addr).filter(|address| pool.iter().any(|range| range.contains(*address))) {
            held.entry(address).or_insert_with(|| name.to_string());
        }
    }
    held
}

fn give(name: &NodeName, net: IpNet, held: &mut BTreeMap<IpAddr, String>, allocator: &dyn Allocator) -> Result<IpNet, AllocationError> {
    let pool = usable(net);
    let address = allocator.allocate(&AllocationRequest { holder: name.as_str(), wanted: None, pool: &pool, held })?;
    held.insert(address, name.to_string());
    Ok(IpNet::new(address, net.prefix_len()).unwrap_or(net))
}

/// A network without its first address (the network, or the subnet routers' anycast) and, in IPv4, its last (the broadcast).
fn usable(net: IpNet) -> Vec<IpRange> {
    let first = range_successor(net.network());
    let last = if net.addr().is_ipv4() { range_predecessor(net.broadcast()) } else { Some(net.broadcast()) };
    first.zip(last).and_then(|(first, last)| IpRange::new(first, last)).into_iter().collect()
}

fn status(
    cluster: &Cluster,
    name: &NodeName,
    given: &BTreeMap<Family, Result<IpNet, AllocationError>>,
    mac: MacAddress,
) -> EgressNodeStatus {
    let before = cluster.egress_nodes.get(name);
    let addresses: BTreeSet<IpNet> = given.values().flatten().copied().collect();
    let text = |family| given.get(&family).and_then(|result| Some(result.as_ref().ok()?.to_string()));
    let refusals: Vec<String> = given.values().filter_map(|result| Some(result.as_ref().err()?.to_string())).collect();
    let built = before.is_some_and(|node| node.phase == EgressNodePhase::Succeeded && node.overlay == addresses);
    let phase = match () {
        () if !refusals.is_empty() => Some(EgressNodePhase::Failed),
        () if addresses.is_empty() => Some(EgressNodePhase::Pending),
        () if built => None,
        () => Some(EgressNodePhase::Init),
    };
    EgressNodeStatus {
        phase,
        vxlan_ipv4_ip: text(Family::V4),
        vxlan_ipv6_ip: text(Family::V6),
        tunnel_mac: (!addresses.is_empty()).then(|| mac.to_string()),
        conditions: vec![match () {
            () if !refusals.is_empty() => condition("AddressAssigned", false, "PoolExhausted", refusals.join("; "), 0),
            () if addresses.is_empty() => {
                condition("AddressAssigned", false, "NoNodeAddress", "the Node has no address of the overlay's families", 0)
            }
            () => condition("AddressAssigned", true, "Assigned", "", 0),
        }],
        ..EgressNodeStatus::default()
    }
}
