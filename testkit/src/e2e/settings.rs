//! What a cluster is made of: names, addresses, and which of several ways it goes.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// The nodes. The first one has the control plane, and is tainted as such.
pub const NODES: [&str; 4] = ["control", "node1", "node2", "node3"];
/// Where the API server listens.
pub(super) const API_PORT: u16 = 6443;
/// The server outside, which knows no way to pods.
pub const OUTSIDE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 6, 1, 92)),
    IpAddr::V6(Ipv6Addr::new(0xfd06, 0, 0, 7, 0, 0, 0, 0x92)),
];
/// The networks of that server.
pub const OUTSIDE_NETWORKS: [&str; 2] = ["10.6.1.0/24", "fd06:0:0:7::/64"];
/// Networks of pods.
pub const PODS: [&str; 2] = ["10.244.0.0/16", "fd44::/48"];
/// Networks of Services.
pub const SERVICES: [&str; 2] = ["10.96.0.0/16", "fd96::/112"];
/// The cluster's name server.
pub const DNS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// The Service of the API server itself.
pub(super) const KUBERNETES: [&str; 2] = ["10.96.0.1", "fd96::1"];
/// The router's addresses on the network of the nodes, and on that of the server.
pub(super) const ROUTER: [&str; 2] = ["10.6.0.254", "fd06:0:0:6::fe"];
pub(super) const ROUTER_OUTSIDE: [&str; 2] = ["10.6.1.254", "fd06:0:0:7::fe"];

/// A node's addresses, IPv4 first.
///
/// # Panics
/// When there is no such node.
#[must_use]
pub fn addresses(node: &str) -> [IpAddr; 2] {
    let number = NODES
        .iter()
        .position(|name| *name == node)
        .unwrap_or_else(|| panic!("no node {node}"));
    let number = u8::try_from(number).expect("a few nodes");
    [
        Ipv4Addr::new(10, 6, 0, 10 + number).into(),
        Ipv6Addr::new(0xfd06, 0, 0, 6, 0, 0, 0, 0x10 + u16::from(number)).into(),
    ]
}

/// Which programs the cluster has, and how they work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// Flannel with VXLAN, kube-proxy and the nodes with nftables' iptables; what policies do is
    /// left to the product.
    Usual,
    /// Flannel without a tunnel, kube-proxy with nftables.
    Routed,
    /// iptables as it was before nftables, and the product with iptables and ipsets.
    Legacy,
}

impl Variant {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Usual, Self::Routed, Self::Legacy];

    /// How it is called.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Usual => "usual",
            Self::Routed => "routed",
            Self::Legacy => "legacy",
        }
    }

    /// Flannel's backend.
    pub(super) const fn flannel(self) -> &'static str {
        if matches!(self, Self::Routed) {
            "host-gw"
        } else {
            "vxlan"
        }
    }

    /// kube-proxy's mode.
    pub(super) const fn proxy(self) -> &'static str {
        if matches!(self, Self::Routed) {
            "nftables"
        } else {
            "iptables"
        }
    }

    /// Which iptables the nodes have.
    pub(super) const fn iptables(self) -> &'static str {
        if matches!(self, Self::Legacy) {
            "legacy"
        } else {
            "nft"
        }
    }

    /// The product's backend for policies.
    #[must_use]
    pub const fn backend(self) -> &'static str {
        if matches!(self, Self::Legacy) {
            "netfilter"
        } else {
            "nftables"
        }
    }
}

impl FromStr for Variant {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let names = Self::ALL.map(Self::name).join(", ");
        Self::ALL
            .into_iter()
            .find(|variant| variant.name() == name)
            .ok_or_else(|| format!("variant: {name:?} must be one of {names}"))
    }
}
