//! Addresses that no policy is given, because somebody else has them or no host can have them.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use ipnet::IpNet;

use crate::{
    model::{Family, IpRange, MacAddress, NodeName, range_predecessor, range_successor},
    spec::{GatewaySpec, Problem},
    world::{EgressNode, Node},
};

/// Why an address is nobody's to give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// An address of a Node.
    Node(NodeName),
    /// A further address of one of a Node's interfaces. A policy may state one that somebody put on
    /// a node of its gateway.
    Interface(NodeName),
    /// The router of a Node's default route.
    Router(NodeName),
    /// The first or the last address of a network that nodes are in.
    Edge(IpNet),
    /// Something else in the network answers for it, as this node heard.
    Neighbour(MacAddress, NodeName),
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) | Self::Interface(node) => write!(f, "Node {node} has it"),
            Self::Router(node) => write!(f, "it is the router of Node {node}"),
            Self::Edge(network) => write!(
                f,
                "it is the first or the last address of network {network}"
            ),
            Self::Neighbour(mac, node) => write!(f, "{mac} answers for it, as Node {node} hears"),
        }
    }
}

/// The addresses that nodes, their networks and their neighbours take.
///
/// What another gateway node answers for is none of them: `may_let_go` says of two nodes whether
/// addresses go from one to the other.
#[must_use]
pub fn reserved(
    nodes: &BTreeMap<NodeName, Node>,
    egress_nodes: &BTreeMap<NodeName, EgressNode>,
    may_let_go: impl Fn(&NodeName, &NodeName) -> bool,
) -> BTreeMap<IpAddr, Holder> {
    let mut reserved = BTreeMap::new();
    for (name, node) in egress_nodes {
        for (address, mac) in &node.conflicts {
            let other = owner(egress_nodes, *mac);
            if other.is_none_or(|other| other == name || !may_let_go(name, other)) {
                reserved.insert(*address, Holder::Neighbour(*mac, name.clone()));
            }
        }
    }
    for (name, node) in egress_nodes {
        let networks = node.attached().map(|network| network.trunc());
        // Networks of two addresses and of one have none to spare (RFC 3021, RFC 6164).
        for network in
            networks.filter(|network| network.max_prefix_len() - network.prefix_len() > 1)
        {
            reserved.insert(network.network(), Holder::Edge(network));
            if Family::of(network.addr()) == Family::V4 {
                reserved.insert(network.broadcast(), Holder::Edge(network));
            }
        }
        reserved.extend(
            node.routers()
                .map(|router| (router, Holder::Router(name.clone()))),
        );
    }
    let interfaces = egress_nodes
        .iter()
        .flat_map(|(name, node)| node.attached().map(move |network| (name, network.addr())));
    reserved.extend(interfaces.map(|(name, address)| (address, Holder::Interface(name.clone()))));
    let known = nodes
        .iter()
        .flat_map(|(name, node)| node.addresses.iter().map(move |address| (name, *address)));
    let outer = egress_nodes
        .iter()
        .flat_map(|(name, node)| node.underlay.iter().map(move |address| (name, *address)));
    reserved.extend(
        known
            .chain(outer)
            .map(|(name, address)| (address, Holder::Node(name.clone()))),
    );
    reserved
}

/// The node that has a hardware address.
#[must_use]
pub fn owner(egress_nodes: &BTreeMap<NodeName, EgressNode>, mac: MacAddress) -> Option<&NodeName> {
    egress_nodes
        .iter()
        .find(|(_, node)| node.hardware_addresses().any(|own| own == mac))
        .map(|(name, _)| name)
}

/// Addresses of nodes: those that Kubernetes knows, the outer ones of the tunnel, and those of
/// interfaces.
pub fn hosts<'a>(
    nodes: &'a BTreeMap<NodeName, Node>,
    egress_nodes: &'a BTreeMap<NodeName, EgressNode>,
) -> impl Iterator<Item = (&'a NodeName, IpAddr)> {
    let known = nodes
        .iter()
        .flat_map(|(name, node)| node.addresses.iter().map(move |address| (name, *address)));
    let told = egress_nodes.iter().flat_map(|(name, node)| {
        let attached = node.attached().map(|network| network.addr());
        node.underlay
            .iter()
            .copied()
            .chain(attached)
            .map(move |address| (name, address))
    });
    known.chain(told)
}

/// A network inside of the cluster, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterNetwork {
    /// The network.
    pub network: IpNet,
    /// Whose it is, in words.
    pub of: String,
}

/// The networks that no pool may be in: those of pods, of Services and of the tunnel.
#[must_use]
pub fn cluster_networks<'a>(
    nodes: impl IntoIterator<Item = (&'a NodeName, &'a Node)>,
    others: impl IntoIterator<Item = IpNet>,
    overlay: &[IpNet],
) -> Vec<ClusterNetwork> {
    let of = |network: IpNet, of: String| ClusterNetwork {
        network: network.trunc(),
        of,
    };
    let tunnel = overlay
        .iter()
        .map(|network| of(*network, "the network of the tunnel".to_owned()));
    let pods = nodes.into_iter().flat_map(|(name, node)| {
        node.pod_networks
            .iter()
            .map(move |network| of(*network, format!("the network of the pods of Node {name}")))
    });
    // The address of a single Service is as good as a network of one.
    let others = others
        .into_iter()
        .map(|network| of(network, "a network of the cluster".to_owned()));
    tunnel.chain(pods).chain(others).collect()
}

/// What is wrong with one entry of a pool: it lies in a network of the cluster, where an egress
/// address would be somebody else's.
#[must_use]
pub fn misplaced(
    field: &str,
    text: &str,
    range: &IpRange,
    networks: &[ClusterNetwork],
) -> Option<Problem> {
    let network = networks
        .iter()
        .find(|network| range.overlaps(&IpRange::from(network.network)))?;
    Some(Problem::new(
        field,
        text,
        format!("must not overlap {}: {}", network.of, network.network),
    ))
}

/// The same of a whole pool.
#[must_use]
pub fn misplaced_pool(spec: &GatewaySpec, networks: &[ClusterNetwork]) -> Vec<Problem> {
    let entry = |range: &IpRange| {
        let field = format!(
            "spec.egressIPs.{}",
            range.family().to_string().to_lowercase()
        );
        misplaced(&field, &range.to_string(), range, networks)
    };
    spec.pool.iter().filter_map(entry).collect()
}

/// What is left of a pool without these networks.
#[must_use]
pub fn usable(pool: &[IpRange], networks: &[ClusterNetwork]) -> Vec<IpRange> {
    let mut left: Vec<IpRange> = pool.to_vec();
    for network in networks
        .iter()
        .map(|network| IpRange::from(network.network))
    {
        left = left
            .into_iter()
            .flat_map(|range| without(range, network))
            .collect();
    }
    left
}

fn without(range: IpRange, hole: IpRange) -> Vec<IpRange> {
    if !range.overlaps(&hole) {
        return vec![range];
    }
    let before = range_predecessor(hole.first()).and_then(|last| IpRange::new(range.first(), last));
    let after = range_successor(hole.last()).and_then(|first| IpRange::new(first, range.last()));
    before.into_iter().chain(after).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Interface;

    fn interface(address: &str, router: &str) -> EgressNode {
        let (ipv4, ipv6) = if address.contains(':') {
            (vec![], vec![address.to_owned()])
        } else {
            (vec![address.to_owned()], vec![])
        };
        let interface = Interface {
            name: "eth0".to_owned(),
            ipv4,
            ipv6,
            routers: vec![router.to_owned()],
            ..Interface::default()
        };
        EgressNode {
            interfaces: vec![interface],
            ..EgressNode::default()
        }
    }

    fn said(address: &str, router: &str) -> Vec<String> {
        let nodes = BTreeMap::from([(NodeName::from("a"), interface(address, router))]);
        reserved(&BTreeMap::new(), &nodes, |_, _| false)
            .iter()
            .map(|(address, holder)| format!("{address}: {holder}"))
            .collect()
    }

    #[test]
    fn a_networks_edges_its_router_and_its_hosts_are_nobodys_to_give() {
        assert_eq!(
            said("10.6.0.13/16", "10.6.0.1"),
            [
                "10.6.0.0: it is the first or the last address of network 10.6.0.0/16",
                "10.6.0.1: it is the router of Node a",
                "10.6.0.13: Node a has it",
                "10.6.255.255: it is the first or the last address of network 10.6.0.0/16",
            ]
        );
        assert_eq!(
            said("fd00:6::13/64", "fe80::1"),
            [
                "fd00:6::: it is the first or the last address of network fd00:6::/64",
                "fd00:6::13: Node a has it",
                "fe80::1: it is the router of Node a"
            ]
        );
        assert_eq!(
            said("10.6.0.13/31", "10.6.0.12"),
            [
                "10.6.0.12: it is the router of Node a",
                "10.6.0.13: Node a has it"
            ]
        );
        assert_eq!(
            said("10.6.0.13/32", "10.0.0.1"),
            [
                "10.0.0.1: it is the router of Node a",
                "10.6.0.13: Node a has it"
            ]
        );
    }

    #[test]
    fn what_lies_in_networks_of_the_cluster_is_cut_out_of_a_pool() {
        let network = |text: &str| ClusterNetwork {
            network: text.parse().unwrap(),
            of: String::new(),
        };
        let range = |first: &str, last: &str| {
            IpRange::new(first.parse().unwrap(), last.parse().unwrap()).unwrap()
        };
        let pool = [range("10.6.0.0", "10.6.0.255"), range("fd00::", "fd00::f")];
        let networks = [
            network("10.6.0.0/30"),
            network("10.6.0.64/26"),
            network("10.7.0.0/16"),
        ];
        let left = usable(&pool, &networks);
        assert_eq!(
            left,
            [
                range("10.6.0.4", "10.6.0.63"),
                range("10.6.0.128", "10.6.0.255"),
                range("fd00::", "fd00::f")
            ]
        );
        assert_eq!(usable(&pool, &[network("0.0.0.0/0"), network("::/0")]), []);
    }
}
