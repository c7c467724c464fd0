use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model::Interface;

/// Which nodes traffic leaves through, and how it is forwarded to them.
#[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "egressgateway.spidernet.io",
    version = "v1",
    kind = "EgressGateway",
    plural = "egressgateways",
    shortname = "egw",
    status = "EgressGatewayStatus",
    derive = "PartialEq",
    derive = "Default"
)]
#[serde(rename_all = "camelCase")]
pub struct EgressGatewaySpec {
    /// The nodes that may be gateways. An empty selector is refused.
    pub node_selector: LabelSelector,
    /// How traffic is spread over the gateway's nodes. Absent: as configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forward_method: Option<ForwardMethod>,
    /// The source address that the network outside sees. Absent: NodeAddress.
    #[serde(default, rename = "sourceNAT", skip_serializing_if = "Option::is_none")]
    pub source_nat: Option<SourceNatMode>,
    /// The pool that egress addresses come from.
    #[serde(default, rename = "egressIPs", skip_serializing_if = "Option::is_none")]
    pub egress_ips: Option<EgressIps>,
    /// Where sources are translated. Absent: Centralized.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nat: Option<NatMode>,
    /// How many ports of each egress address a node gets for a start, where `nat` is Distributed: a
    /// power of two from 256 to 16384. Absent: 1024.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports_per_node: Option<u16>,
}

/// How traffic is spread over the nodes of a gateway.
#[derive(
    Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord,
)]
#[serde(rename_all = "kebab-case")]
pub enum ForwardMethod {
    /// One node carries everything; the others stand by in order.
    #[default]
    ActivePassive,
    /// Every ready node carries an equal share of the connections.
    Ecmp,
}

/// Where sources are translated.
#[derive(
    Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord,
)]
pub enum NatMode {
    /// At the gateway. Its connections end with it.
    #[default]
    Centralized,
    /// On the pod's own node, to the egress address and ports that no other node has of it.
    /// Gateways keep no state, so connections go on when another one takes over.
    Distributed,
}

/// The source address that the network outside sees.
#[derive(
    Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord,
)]
pub enum SourceNatMode {
    /// The exit node's own address.
    #[default]
    NodeAddress,
    /// An address from the gateway's pool.
    #[serde(rename = "EgressIP")]
    EgressIp,
    /// The pod's address stays.
    None,
}

/// Addresses, CIDRs and ranges `a-b`; the families are independent.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct EgressIps {
    /// IPv4 addresses, CIDRs and ranges.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ipv4: Vec<String>,
    /// IPv6 addresses, CIDRs and ranges.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ipv6: Vec<String>,
    /// The routers that lead out of the pool's networks, where these are not the networks of the
    /// nodes' default route and a node's device has no default route of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub router: Option<Routers>,
}

/// One router for each family.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Routers {
    /// IPv4 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<String>,
    /// IPv6 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<String>,
}

/// What the controller found and decided.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct EgressGatewayStatus {
    /// The forward method in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forward_method: Option<ForwardMethod>,
    /// The nodes that the selector matches, in order of preference.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub node_list: Vec<GatewayNode>,
    /// Packet mark of the target "this gateway", the same on every node, kept for the gateway's
    /// life.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<u32>,
    /// Packet mark of connections from before the last drain of an active node; the two change
    /// places with each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub former_mark: Option<u32>,
    /// The drained node that those connections still go through; absent: they go where all others
    /// go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draining: Option<Draining>,
    /// How much of the pool is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_usage: Option<IpUsage>,
    /// The generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`, with reasons such as NoNodes, NoReadyNode, AllNodesSilent, PoolExhausted,
    /// MarksExhausted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// A drained node in its grace time.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Draining {
    /// Name of the node.
    pub node: String,
    /// When its connections are moved.
    pub until: Time,
}

/// One node of a gateway.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct GatewayNode {
    /// Name of the node.
    pub name: String,
    /// Only Ready nodes are elected. Where none is left, the active ones stay, unless they were
    /// drained, deleted, or lost their tunnel.
    pub status: GatewayNodeStatus,
    /// Whether traffic goes to this node.
    #[serde(default)]
    pub active: bool,
    /// Physical network interfaces, as the agent reported them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    /// Egress addresses that this node answers for.
    #[serde(default, rename = "egressIPs", skip_serializing_if = "Vec::is_empty")]
    pub egress_ips: Vec<String>,
    /// Packet mark of the target "this node of this gateway", where egress addresses live on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<u32>,
}

/// Whether a node can carry traffic.
#[derive(
    Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord,
)]
pub enum GatewayNodeStatus {
    /// The kubelet does not say that the Node is not ready, the agent's lease is fresh and the
    /// tunnel is up. A cordoned node is Ready as well, but others are preferred.
    Ready,
    /// The kubelet says that the Node is not ready, it is annotated for drain, or its tunnel
    /// failed.
    NotReady,
    /// The agent's lease is stale, and nothing else is known to be wrong.
    #[default]
    Unknown,
}

/// How much of a gateway's pool is used.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct IpUsage {
    /// IPv4 addresses.
    #[serde(default)]
    pub ipv4: PoolUsage,
    /// IPv6 addresses.
    #[serde(default)]
    pub ipv6: PoolUsage,
}

/// Size and use of one family's pool.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PoolUsage {
    /// Addresses in the pool; at most 2⁶³ − 1 is reported.
    pub total: i64,
    /// Addresses in use.
    pub used: i64,
}
