//! The one place that says which fields the configuration has.
//!
//! Each entry has the field's name, type and default, whether a running daemon takes a change of
//! it, its path in the file, the rule of its values and the text for users. From these come
//! [`Config`] and its sections, [`Config::FIELDS`], and so flags, variables, the reader of files,
//! reloads and the documentation.

use std::{path::PathBuf, time::Duration};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    Iptables, ReplyPath,
    field::{Access, Field},
    names,
    rule::{
        Auto, Boolean, Choice, DeviceName, DriverName, FilePath, GatewayOrNone, Interval, Mask,
        Networks, Number, Overlay, Rule, WholeSeconds,
    },
};
use crate::{
    api::ForwardMethod,
    model::{GatewayName, MarkMask},
};

/// IPv6 does not work below it (RFC 8200, section 5).
pub(super) const MIN_MTU_V6: u32 = 1280;
/// Every IPv4 host takes a datagram of this size (RFC 791).
const MIN_MTU: u32 = 576;
/// Network identifiers have 24 bits (RFC 7348, RFC 8926).
const MAX_VNI: u32 = 0x00ff_ffff;
/// The rule that looks into the main table has priority 32766: ours come before it.
const LAST_RULE_PRIORITY: u32 = 32765;
/// The rule that looks into the local table has priority 0, and the number before ours is the loop
/// guard's.
const FIRST_RULE_PRIORITY: u32 = 2;
/// Route protocols below are the kernel's and the administrator's own (rtnetlink(7)).
const FIRST_FREE_PROTOCOL: u8 = 5;
/// Table numbers above the base that must exist: one for each mark byte.
const TABLES: u32 = 256;

/// Whether a running daemon takes a change: `at_once`, or `at_start` where the field says which
/// objects of the kernel exist, or by which names and numbers they are found again.
macro_rules! is_live {
    (at_once) => {
        true
    };
    (at_start) => {
        false
    };
}

/// A [`Field`] of the table.
macro_rules! field {
    ($path:literal $changes:ident $help:literal) => {
        Field {
            path: $path,
            flag: {
                const FLAG: [u8; names::flag_length($path)] = names::flag($path);
                names::text(&FLAG)
            },
            env: {
                const VARIABLE: [u8; names::variable_length($path)] =
                    names::variable::<_, { names::flag_length($path) }>($path);
                names::text(&VARIABLE)
            },
            help: $help,
            live: is_live!($changes),
        }
    };
}

/// The [`Access`] to a field of the table, which `$place` leads to.
macro_rules! access {
    ($rule:expr, $($place:ident).+) => {
        Access {
            get: |config| $rule.print(&config.$($place).+),
            set: |config, text| {
                config.$($place).+ = $rule.parse(text)?;
                Ok(())
            },
            copy: |config, other| config.$($place).+.clone_from(&other.$($place).+),
            is_list: || $rule.is_list(),
        }
    };
}

/// A field is `name: type = default, "path" changes rule, "help";`, a section is
/// `name => Type { fields }`, and both begin with their documentation. That of a section has one
/// line.
macro_rules! configuration {
    ($(
        #[doc = $doc:literal]
        $(#[doc = $more:literal])*
        $name:ident
        $(: $type:ty = $default:expr, $path:literal $changes:ident $rule:expr, $help:literal;)?
        $(=> $section:ident $(: $derive:ident)? {$(
            $(#[$inner_doc:meta])*
            $inner:ident: $inner_type:ty = $inner_default:expr,
                $inner_path:literal $inner_changes:ident $inner_rule:expr, $inner_help:literal;
        )+})?
    )+) => {
        /// The configuration of the daemons.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Config {$(
            #[doc = $doc]
            $(#[doc = $more])*
            pub $name: $($type)? $($section)?,
        )+}

        impl Default for Config {
            fn default() -> Self {
                Self {$(
                    $name: $($default)? $($section::default())?,
                )+}
            }
        }

        $($(
            #[doc = $doc]
            #[derive(Clone, Debug, PartialEq, Eq $(, $derive)?)]
            pub struct $section {$(
                $(#[$inner_doc])*
                pub $inner: $inner_type,
            )+}

            impl Default for $section {
                fn default() -> Self {
                    Self {$(
                        $inner: $inner_default,
                    )+}
                }
            }
        )?)+

        impl Config {
            /// Every field, in the order of the file.
            pub const FIELDS: &[Field] = &[$(
                $(field!($path $changes $help),)?
                $($(field!($inner_path $inner_changes $inner_help),)+)?
            )+];

            /// What can be done with each of [`Self::FIELDS`].
            pub(super) const ACCESS: &[Access<Self>] = &[$(
                $(access!($rule, $name),)?
                $($(access!($inner_rule, $name.$inner),)+)?
            )+];
        }
    };
}

configuration! {
    /// The tunnel between nodes.
    tunnel => TunnelConfig {
        /// Name of the tunnel driver.
        kind: String = "vxlan".to_owned(),
            "tunnel.kind" at_start DriverName,
            "name of the tunnel driver";
        /// Network of the tunnel's IPv4 addresses; none: no IPv4 in the tunnel.
        ipv4_cidr: Option<Ipv4Net> = Ipv4Net::new([198, 19, 0, 0].into(), 16).ok(),
            "tunnel.ipv4CIDR" at_start Overlay::<Ipv4Net>::new(),
            "network of the tunnel's IPv4 addresses; empty: none";
        /// Network of the tunnel's IPv6 addresses; none: no IPv6 in the tunnel.
        ipv6_cidr: Option<Ipv6Net> = Ipv6Net::new([0xfd31, 0, 0, 0, 0, 0, 0, 0].into(), 112).ok(),
            "tunnel.ipv6CIDR" at_start Overlay::<Ipv6Net>::new(),
            "network of the tunnel's IPv6 addresses; empty: none";
        /// Virtual network identifier, 1 to 2²⁴ − 1.
        vni: u32 = 100,
            "tunnel.vni" at_start Number(1..=MAX_VNI),
            "virtual network identifier, 1 to 16777215";
        /// Outer UDP port.
        port: u16 = 7789,
            "tunnel.port" at_start Number(1..=u16::MAX),
            "outer UDP port, 1 to 65535";
        /// MTU of the tunnel devices in bytes; none: the parent's, less the tunnel's headers.
        mtu: Option<u32> = None,
            "tunnel.mtu" at_start Auto(Number(MIN_MTU..=65535)),
            "MTU of the tunnel in bytes, 576 to 65535, or auto";
        /// Device below the tunnel; none: the one with the node's address.
        parent: Option<String> = None,
            "tunnel.parent" at_start Auto(DeviceName),
            "device below the tunnel, or auto";
    }
    /// Name of the policy backend; none: the first that the kernel can do.
    policy_backend: Option<String> = None,
        "policyBackend" at_start Auto(DriverName),
        "name of the policy backend, or auto";
    /// Whose rules the netfilter backend joins.
    iptables: Iptables = Iptables::default(),
        "iptables" at_start Choice(&[
            ("auto", Iptables::Auto),
            ("legacy", Iptables::Legacy),
            ("nft", Iptables::Nft),
        ]),
        "whose rules the netfilter backend joins: auto, legacy or nft";
    /// How gateways forward that don't say it themselves.
    forward_method: ForwardMethod = ForwardMethod::default(),
        "forwardMethod" at_once Choice(&[
            ("active-passive", ForwardMethod::ActivePassive),
            ("ecmp", ForwardMethod::Ecmp),
        ]),
        "active-passive or ecmp, for gateways that don't say";
    /// The gateway of policies that name none.
    default_egress_gateway: Option<GatewayName> = Some(GatewayName::from("egressgateway")),
        "defaultEgressGateway" at_once GatewayOrNone,
        "gateway of policies that name none; empty: the only one there is";
    /// Networks that are never steered.
    cluster_cidrs => ClusterCidrs {
        /// Learn them from Nodes and services.
        auto: bool = true,
            "clusterCIDRs.auto" at_start Boolean,
            "learn the cluster's networks: true or false";
        /// More of them.
        extra: Vec<IpNet> = Vec::new(),
            "clusterCIDRs.extra" at_once Networks,
            "more networks that are never steered, separated by commas";
    }
    /// The bits of packet and connection marks that belong to the egress gateway.
    mark => MarkConfig: Copy {
        /// The bits that belong to the egress gateway.
        mask: MarkMask = MarkMask::default(),
            "mark.mask" at_start Mask,
            "eight adjacent bits of packet marks, such as 0xff000000";
    }
    /// Numbers of routing tables and rules.
    routing => RoutingConfig: Copy {
        /// The first routing table.
        table_base: u32 = 100,
            "routing.tableBase" at_start Number(1..=u32::MAX - TABLES),
            "the first routing table";
        /// Priority of the `ip rule`s; the lower number is asked first.
        rule_priority: u32 = 99,
            "routing.rulePriority" at_start Number(FIRST_RULE_PRIORITY..=LAST_RULE_PRIORITY),
            "priority of the routing rules, 2 to 32765";
        /// Route protocol number that marks routes as ours.
        protocol: u8 = 77,
            "routing.protocol" at_start Number(FIRST_FREE_PROTOCOL..=u8::MAX),
            "route protocol number that marks our routes, 5 to 255";
    }
    /// How fast a dead gateway is noticed.
    failover => FailoverConfig: Copy {
        /// Time between two probes.
        interval: Duration = Duration::from_millis(150),
            "failover.interval" at_once Interval,
            "time between two probes, 10ms to 1m";
        /// Unanswered probes in a row after which a gateway counts as dead.
        multiplier: u32 = 3,
            "failover.multiplier" at_once Number(1..=100),
            "unanswered probes after which a gateway counts as dead, 1 to 100";
        /// How long connections through a drained node go on, in whole seconds; 0: they are moved
        /// at once.
        drain_grace_period: Duration = Duration::from_secs(60),
            "failover.drainGracePeriod" at_once WholeSeconds,
            "how long connections through a drained gateway go on, whole seconds from 0s to 1d; 0s: they are moved at once";
    }
    /// Hold a new pod's traffic to governed destinations until the agent knows the pod.
    start_gate: bool = true,
        "startGate" at_once Boolean,
        "hold a new pod's traffic until the agent knows the pod: true or false";
    /// After a boot, hold what policies governed before until the agent knows the cluster again.
    hold_at_boot: bool = true,
        "holdAtBoot" at_once Boolean,
        "after a boot, hold traffic to what was governed before until the agent knows the cluster again: true or false";
    /// Where the agent keeps what it must know after a boot; none: nowhere.
    state_file: Option<PathBuf> = Some(PathBuf::from("/var/lib/egressgateway/state.json")),
        "stateFile" at_start FilePath,
        "absolute path of the file in which an agent keeps what is governed over a boot; empty: none";
    /// End connections that began before the policy which governs them; otherwise they go on with
    /// the address that they began with.
    reset_connections: bool = true,
        "resetConnections" at_once Boolean,
        "end connections that began before the policy that governs them: true or false";
    /// How answers return from a gateway to the pod's node.
    reply_path: ReplyPath = ReplyPath::default(),
        "replyPath" at_start Choice(&[("cni", ReplyPath::Cni), ("tunnel", ReplyPath::Tunnel)]),
        "how answers return to the pod's node: cni or tunnel";
}
