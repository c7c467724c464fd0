use super::Config;

/// A field of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Where it stands in the file: `tunnel.vni`.
    pub path: &'static str,
    /// The flag that sets it, without the dashes: `tunnel-vni`.
    pub flag: &'static str,
    /// The environment variable that sets it.
    pub env: &'static str,
    /// What it means, with its values.
    pub help: &'static str,
    /// Whether a change takes effect while a daemon runs; otherwise at its next start.
    pub live: bool,
}

const fn field(
    path: &'static str,
    flag: &'static str,
    env: &'static str,
    help: &'static str,
) -> Field {
    Field {
        path,
        flag,
        env,
        help,
        live: false,
    }
}

const fn live(
    path: &'static str,
    flag: &'static str,
    env: &'static str,
    help: &'static str,
) -> Field {
    Field {
        live: true,
        ..field(path, flag, env, help)
    }
}

impl Config {
    /// Every field, in the order of the file.
    pub const FIELDS: &[Field] = &[
        field(
            "tunnel.kind",
            "tunnel-kind",
            "EGRESSGATEWAY_TUNNEL_KIND",
            "name of the tunnel driver",
        ),
        field(
            "tunnel.ipv4CIDR",
            "tunnel-ipv4-cidr",
            "EGRESSGATEWAY_TUNNEL_IPV4_CIDR",
            "network of the tunnel's IPv4 addresses; empty: none",
        ),
        field(
            "tunnel.ipv6CIDR",
            "tunnel-ipv6-cidr",
            "EGRESSGATEWAY_TUNNEL_IPV6_CIDR",
            "network of the tunnel's IPv6 addresses; empty: none",
        ),
        field(
            "tunnel.vni",
            "tunnel-vni",
            "EGRESSGATEWAY_TUNNEL_VNI",
            "virtual network identifier, 1 to 16777215",
        ),
        field(
            "tunnel.port",
            "tunnel-port",
            "EGRESSGATEWAY_TUNNEL_PORT",
            "outer UDP port, 1 to 65535",
        ),
        field(
            "tunnel.mtu",
            "tunnel-mtu",
            "EGRESSGATEWAY_TUNNEL_MTU",
            "MTU of the tunnel in bytes, 576 to 65535, or auto",
        ),
        field(
            "tunnel.parent",
            "tunnel-parent",
            "EGRESSGATEWAY_TUNNEL_PARENT",
            "device below the tunnel, or auto",
        ),
        field(
            "policyBackend",
            "policy-backend",
            "EGRESSGATEWAY_POLICY_BACKEND",
            "name of the policy backend, or auto",
        ),
        field(
            "iptables",
            "iptables",
            "EGRESSGATEWAY_IPTABLES",
            "whose rules the netfilter backend joins: auto, legacy or nft",
        ),
        live(
            "forwardMethod",
            "forward-method",
            "EGRESSGATEWAY_FORWARD_METHOD",
            "active-passive or ecmp, for gateways that don't say",
        ),
        live(
            "defaultEgressGateway",
            "default-egress-gateway",
            "EGRESSGATEWAY_DEFAULT_EGRESS_GATEWAY",
            "gateway of policies that name none; empty: the only one there is",
        ),
        field(
            "clusterCIDRs.auto",
            "cluster-cidrs-auto",
            "EGRESSGATEWAY_CLUSTER_CIDRS_AUTO",
            "learn the cluster's networks: true or false",
        ),
        live(
            "clusterCIDRs.extra",
            "cluster-cidrs-extra",
            "EGRESSGATEWAY_CLUSTER_CIDRS_EXTRA",
            "more networks that are never steered, separated by commas",
        ),
        field(
            "mark.mask",
            "mark-mask",
            "EGRESSGATEWAY_MARK_MASK",
            "eight adjacent bits of packet marks, such as 0xff000000",
        ),
        field(
            "routing.tableBase",
            "routing-table-base",
            "EGRESSGATEWAY_ROUTING_TABLE_BASE",
            "the first routing table",
        ),
        field(
            "routing.rulePriority",
            "routing-rule-priority",
            "EGRESSGATEWAY_ROUTING_RULE_PRIORITY",
            "priority of the routing rules, 2 to 32765",
        ),
        field(
            "routing.protocol",
            "routing-protocol",
            "EGRESSGATEWAY_ROUTING_PROTOCOL",
            "route protocol number that marks our routes, 5 to 255",
        ),
        live(
            "failover.interval",
            "failover-interval",
            "EGRESSGATEWAY_FAILOVER_INTERVAL",
            "time between two probes, 10ms to 1m",
        ),
        live(
            "failover.multiplier",
            "failover-multiplier",
            "EGRESSGATEWAY_FAILOVER_MULTIPLIER",
            "unanswered probes after which a gateway counts as dead, 1 to 100",
        ),
        live(
            "failover.drainGracePeriod",
            "failover-drain-grace-period",
            "EGRESSGATEWAY_FAILOVER_DRAIN_GRACE_PERIOD",
            "how long connections through a drained gateway go on, whole seconds from 0s to 1d; 0s: they are moved at once",
        ),
        live(
            "startGate",
            "start-gate",
            "EGRESSGATEWAY_START_GATE",
            "hold a new pod's traffic until the agent knows the pod: true or false",
        ),
        live(
            "holdAtBoot",
            "hold-at-boot",
            "EGRESSGATEWAY_HOLD_AT_BOOT",
            "after a boot, hold traffic to what was governed before until the agent knows the cluster again: true or false",
        ),
        field(
            "stateFile",
            "state-file",
            "EGRESSGATEWAY_STATE_FILE",
            "absolute path of the file in which an agent keeps what is governed over a boot; empty: none",
        ),
        live(
            "resetConnections",
            "reset-connections",
            "EGRESSGATEWAY_RESET_CONNECTIONS",
            "end connections that began before the policy that governs them: true or false",
        ),
        field(
            "replyPath",
            "reply-path",
            "EGRESSGATEWAY_REPLY_PATH",
            "how answers return to the pod's node: cni or tunnel",
        ),
    ];
}
