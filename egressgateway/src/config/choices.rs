//! Values of the configuration that are one of a few.

/// Which iptables keeps the rules of the netfilter backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Iptables {
    /// The one that keeps the rules of kube-proxy and the CNI.
    #[default]
    Auto,
    /// `iptables-legacy`.
    Legacy,
    /// `iptables-nft`.
    Nft,
}

/// How answers return from a gateway to the pod's node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReplyPath {
    /// By the routes of the cluster's network.
    #[default]
    Cni,
    /// Through the tunnel: for networks with strict reverse path filters.
    Tunnel,
}
