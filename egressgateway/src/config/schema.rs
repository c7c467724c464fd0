//! The fields of the configuration, and their defaults.

use std::{path::PathBuf, time::Duration};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::{
    api::ForwardMethod,
    controller::ControllerSettings,
    model::{GatewayName, MarkMask},
};

/// The configuration of the daemons.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The tunnel between nodes.
    pub tunnel: TunnelConfig,
    /// Name of the policy backend; none: the first that the kernel can do.
    pub policy_backend: Option<String>,
    /// Whose rules the netfilter backend joins.
    pub iptables: Iptables,
    /// How gateways forward that don't say it themselves.
    pub forward_method: ForwardMethod,
    /// The gateway of policies that name none.
    pub default_egress_gateway: Option<GatewayName>,
    /// Networks that are never steered.
    pub cluster_cidrs: ClusterCidrs,
    /// The bits of packet and connection marks that belong to the egress gateway.
    pub mark: MarkConfig,
    /// Numbers of routing tables and rules.
    pub routing: RoutingConfig,
    /// How fast a dead gateway is noticed.
    pub failover: FailoverConfig,
    /// Hold a new pod's traffic to governed destinations until the agent knows the pod.
    pub start_gate: bool,
    /// After a boot, hold what policies governed before until the agent knows the cluster again.
    pub hold_at_boot: bool,
    /// Where the agent keeps what it must know after a boot; none: nowhere.
    pub state_file: Option<PathBuf>,
    /// End connections that began before the policy which governs them; otherwise they go on with
    /// the address that they began with.
    pub reset_connections: bool,
    /// How answers return from a gateway to the pod's node.
    pub reply_path: ReplyPath,
}

/// The tunnel between nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelConfig {
    /// Name of the tunnel driver.
    pub kind: String,
    /// Network of the tunnel's IPv4 addresses; none: no IPv4 in the tunnel.
    pub ipv4_cidr: Option<Ipv4Net>,
    /// Network of the tunnel's IPv6 addresses; none: no IPv6 in the tunnel.
    pub ipv6_cidr: Option<Ipv6Net>,
    /// Virtual network identifier, 1 to 2²⁴ − 1.
    pub vni: u32,
    /// Outer UDP port.
    pub port: u16,
    /// MTU of the tunnel devices in bytes; none: the parent's, less the tunnel's headers.
    pub mtu: Option<u32>,
    /// Device below the tunnel; none: the one with the node's address.
    pub parent: Option<String>,
}

/// Networks that are never steered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterCidrs {
    /// Learn them from Nodes and services.
    pub auto: bool,
    /// More of them.
    pub extra: Vec<IpNet>,
}

/// Packet and connection marks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MarkConfig {
    /// The bits that belong to the egress gateway.
    pub mask: MarkMask,
}

/// Numbers of routing tables and rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoutingConfig {
    /// The first routing table.
    pub table_base: u32,
    /// Priority of the `ip rule`s; the lower number is asked first.
    pub rule_priority: u32,
    /// Route protocol number that marks routes as ours.
    pub protocol: u8,
}

/// How fast a dead gateway is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailoverConfig {
    /// Time between two probes.
    pub interval: Duration,
    /// Unanswered probes in a row after which a gateway counts as dead.
    pub multiplier: u32,
    /// How long connections through a drained node go on, in whole seconds; 0: they are moved at
    /// once.
    pub drain_grace_period: Duration,
}

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

impl Default for Config {
    fn default() -> Self {
        Self {
            tunnel: TunnelConfig::default(),
            policy_backend: None,
            iptables: Iptables::default(),
            forward_method: ForwardMethod::default(),
            default_egress_gateway: Some(GatewayName::from("egressgateway")),
            cluster_cidrs: ClusterCidrs {
                auto: true,
                extra: Vec::new(),
            },
            mark: MarkConfig::default(),
            routing: RoutingConfig {
                table_base: 100,
                rule_priority: 99,
                protocol: 77,
            },
            failover: FailoverConfig {
                interval: Duration::from_millis(150),
                multiplier: 3,
                drain_grace_period: Duration::from_secs(60),
            },
            start_gate: true,
            hold_at_boot: true,
            state_file: Some(PathBuf::from("/var/lib/egressgateway/state.json")),
            reset_connections: true,
            reply_path: ReplyPath::default(),
        }
    }
}

impl Default for TunnelConfig {
    fn default() -> Self {
        Self {
            kind: "vxlan".to_owned(),
            ipv4_cidr: Ipv4Net::new([198, 19, 0, 0].into(), 16).ok(),
            ipv6_cidr: Ipv6Net::new([0xfd31, 0, 0, 0, 0, 0, 0, 0].into(), 112).ok(),
            vni: 100,
            port: 7789,
            mtu: None,
            parent: None,
        }
    }
}

impl Config {
    /// Networks of the tunnel's addresses, IPv4 first.
    #[must_use]
    pub fn overlay(&self) -> Vec<IpNet> {
        self.tunnel
            .ipv4_cidr
            .map(IpNet::from)
            .into_iter()
            .chain(self.tunnel.ipv6_cidr.map(IpNet::from))
            .collect()
    }

    /// What of it the controller's plan depends on.
    #[must_use]
    pub fn controller_settings(&self) -> ControllerSettings {
        ControllerSettings {
            forward_method: self.forward_method,
            default_gateway: self.default_egress_gateway.clone(),
            overlay: self.overlay(),
            cluster_networks: self.cluster_cidrs.extra.clone(),
            auto_cluster_networks: self.cluster_cidrs.auto,
            mask: self.mark.mask,
            drain_grace: self.failover.drain_grace_period,
        }
    }
}
