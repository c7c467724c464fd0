//! What a lab can be: choices for [`Builder`](super::Builder).

use std::net::IpAddr;

/// How pods of different nodes reach each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Cni {
    /// Plain routes over the underlay.
    #[default]
    Routed,
    /// An overlay of the CNI's own (VXLAN, device `flannel.1`).
    Vxlan,
}

/// The address families of underlay, pods and services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Families {
    /// IPv4 and IPv6.
    #[default]
    Dual,
    /// IPv4 alone.
    V4,
    /// IPv6 alone (the management network keeps IPv4).
    V6,
}

impl Families {
    /// Whether IPv4 is there.
    #[must_use]
    pub const fn v4(self) -> bool {
        !matches!(self, Self::V6)
    }

    /// Whether IPv6 is there.
    #[must_use]
    pub const fn v6(self) -> bool {
        !matches!(self, Self::V4)
    }

    /// Whether `address`'s family is there.
    #[must_use]
    pub const fn has(self, address: IpAddr) -> bool {
        if address.is_ipv4() {
            self.v4()
        } else {
            self.v6()
        }
    }
}

/// What nodes do with forwarded packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ForwardPolicy {
    /// Everything passes.
    #[default]
    Accept,
    /// Policy DROP; packets from and to pod addresses pass, as with flannel and kube-proxy.
    DropButPods,
    /// Policy DROP; packets through pods' devices pass, transit does not, as with Calico.
    DropButWorkloads,
}

/// Which tool writes the CNI's and the service proxy's rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RuleTool {
    /// nft, one table `cni`.
    #[default]
    Nft,
    /// `iptables-nft`, `ip6tables-nft`.
    IptablesNft,
    /// `iptables-legacy`, `ip6tables-legacy`.
    IptablesLegacy,
}

/// Whose rules nodes have, apart from the product's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Components {
    /// Few rules, just enough for pods and services, by any tool.
    #[default]
    StandIns,
    /// Services as kube-proxy does them, by one of the iptables; pods' traffic is masqueraded and
    /// forwarded by the stand-in.
    KubeProxy,
    /// Services as kube-proxy does them, pods as Calico does.
    Calico(ChainInsertMode),
}

/// Where Calico puts the jumps into its chains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainInsertMode {
    /// Before all rules of others, and there again whenever somebody gets before them: see
    /// [`Node::reinsert_jumps`](super::Node::reinsert_jumps).
    Insert,
    /// Behind all rules of others.
    Append,
}

impl Components {
    /// Whether services are kube-proxy's.
    pub(super) fn has_kube_proxy(self) -> bool {
        self != Self::StandIns
    }

    /// Calico's way to insert, if it is there.
    pub(super) const fn calico(self) -> Option<ChainInsertMode> {
        if let Self::Calico(mode) = self {
            Some(mode)
        } else {
            None
        }
    }
}
