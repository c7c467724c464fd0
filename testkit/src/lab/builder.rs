//! What a lab is to be.

use std::{net::IpAddr, str::FromStr};

use ipnet::IpNet;

use super::options::{Cni, Components, Families, ForwardPolicy, RuleTool};

/// One node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSpec {
    pub(super) name: String,
    pub(super) labels: Vec<(String, String)>,
    pub(super) second: Vec<IpNet>,
    pub(super) addresses: Vec<IpAddr>,
}

impl NodeSpec {
    /// A node with this name. Without more, the nth node (from 1) has 10.6.0.(10+n) and
    /// fd00:6::(10+n).
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            labels: Vec::new(),
            second: Vec::new(),
            addresses: Vec::new(),
        }
    }

    /// Labels the Node object.
    #[must_use]
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.push((key.into(), value.into()));
        self
    }

    /// Gives another address on the underlay than the usual one of its family; it must lie in
    /// 10.6.0.0/16 or fd00:6::/64.
    ///
    /// # Panics
    /// On what is no address.
    #[must_use]
    pub fn address(mut self, address: &str) -> Self {
        self.addresses.push(parsed(address));
        self
    }

    /// Adds a second interface, `eth1`, on a second switch, with these addresses (such as
    /// `10.7.0.11/16`).
    ///
    /// # Panics
    /// On what is no address with a prefix length.
    #[must_use]
    pub fn second_interface<'a>(mut self, addresses: impl IntoIterator<Item = &'a str>) -> Self {
        self.second
            .extend(addresses.into_iter().map(parsed::<IpNet>));
        self
    }
}

impl From<&str> for NodeSpec {
    fn from(name: &str) -> Self {
        Self::new(name)
    }
}

/// Parses what the author of a test wrote.
pub(super) fn parsed<T: FromStr<Err: std::fmt::Display>>(text: &str) -> T {
    text.parse()
        .unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// Describes a lab; [`Builder::build`] makes it.
#[derive(Debug, Clone)]
pub struct Builder {
    pub(super) nodes: Vec<NodeSpec>,
    pub(super) cni: Cni,
    pub(super) families: Families,
    pub(super) forward: ForwardPolicy,
    pub(super) tool: RuleTool,
    pub(super) components: Components,
    pub(super) rp_filter: u8,
    pub(super) masquerade: bool,
    pub(super) mtu: u16,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            nodes: Vec::new(),
            cni: Cni::default(),
            families: Families::default(),
            forward: ForwardPolicy::default(),
            tool: RuleTool::default(),
            components: Components::default(),
            rp_filter: 0,
            masquerade: true,
            mtu: 1500,
        }
    }
}

impl Builder {
    /// Adds nodes by name.
    #[must_use]
    pub fn nodes<N: Into<NodeSpec>>(mut self, nodes: impl IntoIterator<Item = N>) -> Self {
        self.nodes.extend(nodes.into_iter().map(Into::into));
        self
    }

    /// Adds one node.
    #[must_use]
    pub fn node(mut self, node: impl Into<NodeSpec>) -> Self {
        self.nodes.push(node.into());
        self
    }

    /// How pods of different nodes reach each other; routed by default.
    #[must_use]
    pub const fn cni(mut self, cni: Cni) -> Self {
        self.cni = cni;
        self
    }

    /// The address families; both by default.
    #[must_use]
    pub const fn families(mut self, families: Families) -> Self {
        self.families = families;
        self
    }

    /// What nodes do with forwarded packets; everything passes by default.
    #[must_use]
    pub const fn forward_policy(mut self, policy: ForwardPolicy) -> Self {
        self.forward = policy;
        self
    }

    /// Which tool writes the CNI's and the service proxy's rules; nft by default.
    #[must_use]
    pub const fn rules_by(mut self, tool: RuleTool) -> Self {
        self.tool = tool;
        self
    }

    /// Whose rules nodes have; the stand-ins' by default. All others are written by one of the
    /// iptables.
    #[must_use]
    pub const fn components(mut self, components: Components) -> Self {
        self.components = components;
        self
    }

    /// The kernel's reverse-path filter on every node: 0 off (default), 1 strict, 2 loose.
    #[must_use]
    pub const fn rp_filter(mut self, mode: u8) -> Self {
        self.rp_filter = mode;
        self
    }

    /// Whether the CNI masquerades what leaves the pod network; on by default.
    #[must_use]
    pub const fn masquerade(mut self, on: bool) -> Self {
        self.masquerade = on;
        self
    }

    /// Largest packet of the underlay in bytes; 1500 by default.
    #[must_use]
    pub const fn mtu(mut self, mtu: u16) -> Self {
        self.mtu = mtu;
        self
    }
}
