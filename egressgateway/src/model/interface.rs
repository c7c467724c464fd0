//! Network interfaces of a host.

use serde::{Deserialize, Serialize};

/// A physical network interface and its addresses with prefix length.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "kubernetes", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    /// Name of the device.
    pub name: String,
    /// IPv4 addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ipv4: Vec<String>,
    /// IPv6 addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ipv6: Vec<String>,
    /// Hardware address; absent on devices without one of Ethernet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hardware_address: Option<String>,
    /// Routers of the default routes that lead through the device.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routers: Vec<String>,
    /// IPv4 address of what leaves by this device with the node's address.
    #[serde(
        default,
        rename = "sourceIPv4",
        skip_serializing_if = "Option::is_none"
    )]
    pub source_ipv4: Option<String>,
    /// IPv6 address of what leaves by this device with the node's address.
    #[serde(
        default,
        rename = "sourceIPv6",
        skip_serializing_if = "Option::is_none"
    )]
    pub source_ipv6: Option<String>,
}
