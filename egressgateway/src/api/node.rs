use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Interface;

/// Nothing is asked of an EgressNode: the controller makes one per node, and its status says how
/// the node is reached.
#[derive(
    CustomResource, Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq,
)]
#[kube(
    group = "egressgateway.spidernet.io",
    version = "v1",
    kind = "EgressNode",
    plural = "egressnodes",
    shortname = "egn",
    status = "EgressNodeStatus",
    derive = "PartialEq",
    derive = "Default"
)]
#[serde(rename_all = "camelCase")]
pub struct EgressNodeSpec {}

/// The node's end of the tunnel: addresses from the controller, devices and conditions from the
/// agent.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct EgressNodeStatus {
    /// How far the tunnel has come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<EgressNodePhase>,
    /// IPv4 address in the overlay, with the overlay's prefix length.
    #[serde(
        default,
        rename = "vxlanIPv4IP",
        skip_serializing_if = "Option::is_none"
    )]
    pub vxlan_ipv4_ip: Option<String>,
    /// IPv6 address in the overlay, with the overlay's prefix length.
    #[serde(
        default,
        rename = "vxlanIPv6IP",
        skip_serializing_if = "Option::is_none"
    )]
    pub vxlan_ipv6_ip: Option<String>,
    /// Hardware address of the tunnel devices, derived from the node's UID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel_mac: Option<String>,
    /// Parent device of the tunnel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub physical_interface: Option<String>,
    /// IPv4 address of the parent: outer address of the tunnel.
    #[serde(
        default,
        rename = "physicalInterfaceIPv4",
        skip_serializing_if = "Option::is_none"
    )]
    pub physical_interface_ipv4: Option<String>,
    /// IPv6 address of the parent: outer address of the tunnel.
    #[serde(
        default,
        rename = "physicalInterfaceIPv6",
        skip_serializing_if = "Option::is_none"
    )]
    pub physical_interface_ipv6: Option<String>,
    /// Largest packets that the tunnel takes in on this node, in bytes. What is sent here through
    /// it must not be larger.
    #[serde(default, rename = "tunnelMTU", skip_serializing_if = "Option::is_none")]
    pub tunnel_mtu: Option<TunnelMtu>,
    /// The node's physical interfaces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    /// Egress addresses that the node does not take, because somebody else answers for them; asked
    /// again now and then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub address_conflicts: Vec<AddressConflict>,
    /// Egress addresses that the node shall take over from another one, and that nobody answers
    /// for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub silent_addresses: Vec<String>,
    /// Egress addresses of gateways with distributed source translation that pods of this node
    /// leave with, and how many ports of each they need: the agent asks, the controller gives
    /// `portBlocks`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports_wanted: Vec<PortsWanted>,
    /// The ports that this node alone translates to, of each address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub port_blocks: Vec<AddressPorts>,
    /// `TunnelReady` and `PolicyProgrammed`, each from a read of the kernel. `PodsTracked` is False
    /// where rules of others take packets of pods out of connection tracking, and names them.
    /// `NetworkOverlap` and `PodNetworksUnknown` are there only while they are True. `RelayReady`
    /// is there on nodes of gateways whose `nat` is Distributed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

impl EgressNodeStatus {
    /// Condition: the tunnel and the routes into it are built.
    pub const TUNNEL_READY: &str = "TunnelReady";
    /// Condition: the node passes on what pods' own nodes translate. Only on nodes of gateways with
    /// distributed source translation.
    pub const RELAY_READY: &str = "RelayReady";
}

/// Somebody else has an egress address.
#[derive(
    Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord,
)]
#[serde(rename_all = "camelCase")]
pub struct AddressConflict {
    /// The address.
    pub address: String,
    /// Hardware address that answers for it.
    pub hardware_address: String,
}

/// How many ports of an egress address a node needs.
#[derive(
    Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord,
)]
#[serde(rename_all = "camelCase")]
pub struct PortsWanted {
    /// The address.
    pub address: String,
    /// In units of 256 ports.
    pub units: u16,
}

/// A block of ports of an egress address.
#[derive(
    Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord,
)]
#[serde(rename_all = "camelCase")]
pub struct AddressPorts {
    /// The address.
    pub address: String,
    /// The lowest port.
    pub first: u16,
    /// The highest port.
    pub last: u16,
}

/// Largest packets of each family, in bytes.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct TunnelMtu {
    /// Of IPv4; absent where the tunnel carries none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<u32>,
    /// Of IPv6; absent where the tunnel carries none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<u32>,
}

/// How far the tunnel of a node has come.
#[derive(
    Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord,
)]
pub enum EgressNodePhase {
    /// Waits for an address.
    #[default]
    Pending,
    /// The address is assigned.
    Init,
    /// The address is assigned and the tunnel is built.
    Succeeded,
    /// There is no address to give.
    Failed,
}
