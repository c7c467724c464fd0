//! Names, numbers and addresses of every lab, in one place.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Port where servers and pods answer unless told otherwise.
pub const PORT: u16 = 8080;
/// Bit that the stand-in for kube-proxy sets on packets whose source must be translated.
pub const MASQUERADE_MARK: u32 = 0x4000;
/// Bits of a packet's mark that the stand-in for Calico uses, as an administrator sets them
/// (`iptablesMarkMask`) on nodes whose highest byte is an egress gateway's. Calico's own default,
/// 0xffff0000, has that byte in it.
pub const CALICO_MARK_MASK: u32 = 0x00ff_0000;
/// UDP ports whose payload a capture decodes as VXLAN or Geneve: the product's default, the
/// stand-in overlay's, and the registered ones.
pub const TUNNEL_PORTS: [u16; 4] = [7789, OVERLAY_PORT, 4789, 6081];
/// UDP port of the stand-in overlay.
pub const OVERLAY_PORT: u16 = 8472;
/// VXLAN network identifier of the stand-in overlay.
pub const OVERLAY_VNI: u32 = 1;
/// Device of the stand-in overlay on every node.
pub const OVERLAY_DEVICE: &str = "flannel.1";
/// Namespace of the underlay's switch.
pub const UNDERLAY: &str = "underlay";
/// Namespace of the router between the underlay and the rest of the world.
pub const ROUTER: &str = "router";
/// Node's device on the management network.
pub const MANAGEMENT_DEVICE: &str = "mgmt0";
/// The lab root's address on the management network, where an API server may listen.
pub const MANAGEMENT: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 1);
/// The router's addresses on the underlay: every node's default route.
pub const ROUTER_V4: Ipv4Addr = Ipv4Addr::new(10, 6, 255, 254);
/// See [`ROUTER_V4`].
pub const ROUTER_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 6, 0, 0, 0, 0, 0, 0xfffe);
/// Length of the underlay's IPv4 prefix.
pub const UNDERLAY_V4_PREFIX: u8 = 16;
/// Length of the underlay's IPv6 prefix.
pub const UNDERLAY_V6_PREFIX: u8 = 64;
/// All pods, IPv4.
pub const PODS_V4: &str = "10.244.0.0/16";
/// All pods, IPv6.
pub const PODS_V6: &str = "fd10::/16";
/// Cluster addresses of services, IPv4.
pub const SERVICES_V4: &str = "10.96.0.0/16";
/// Cluster addresses of services, IPv6.
pub const SERVICES_V6: &str = "fd96::/112";
/// Prefix of a pod's device on its node.
pub const POD_DEVICE: &str = "veth";
/// Routing table of the router with the way back to pods, for servers that asked for it.
pub const POD_TABLE: u32 = 200;
/// First node port of services.
pub const NODE_PORT: u16 = 30081;

/// The `n`th node's address on the underlay, IPv4 (`n` from 1).
#[must_use]
pub const fn node_v4(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 6, 0, 10 + n)
}

/// The `n`th node's address on the underlay, IPv6: its last group reads like [`node_v4`]'s last
/// byte.
#[must_use]
pub fn node_v6(n: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 6, 0, 0, 0, 0, 0, decimal_group(10 + n))
}

/// The `n`th node's address on the management network.
#[must_use]
pub const fn node_management(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 77, 10 + n)
}

/// The address of host `host` in the `n`th node's pod network, IPv4.
#[must_use]
pub const fn pod_v4(n: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, n, host)
}

/// See [`pod_v4`].
#[must_use]
pub fn pod_v6(n: u8, host: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd10, decimal_group(n), 0, 0, 0, 0, 0, decimal_group(host))
}

/// The `k`th service's cluster addresses.
#[must_use]
pub fn service_addresses(k: u8) -> (Ipv4Addr, Ipv6Addr) {
    (
        Ipv4Addr::new(10, 96, 0, 10 + k),
        Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, decimal_group(10 + k)),
    )
}

/// The group that reads, in hexadecimal, as `value` does in decimal: 11 → 0x11, so that both
/// families of a lab look alike.
fn decimal_group(value: u8) -> u16 {
    let value = u16::from(value);
    ((value / 100) << 8) | ((value / 10 % 10) << 4) | (value % 10)
}
