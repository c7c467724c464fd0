//! Every kernel name and number that this crate chooses, and the collision that each avoids.

use egressgateway::model::Family;

/// Virtual network identifier. Flannel's default is 1, Calico's 4096, Cilium's 2; other ports keep
/// them apart in any case.
pub const VNI: u32 = 100;

/// UDP port of the outer packets: not the standard's 4789 (Calico, OVN), not Linux' old default
/// 8472 (Flannel, Cilium).
pub const PORT: u16 = 7789;

/// Bytes of an outer IPv4, UDP and VXLAN header and the inner Ethernet header.
pub const OVERHEAD_V4: u32 = 20 + 8 + 8 + 14;

/// The same with an outer IPv6 header.
pub const OVERHEAD_V6: u32 = 40 + 8 + 8 + 14;

/// Smallest largest packet that IPv6 works with (RFC 8200); the kernel takes IPv6 away from a
/// device below it.
pub const MTU_MIN_V6: u32 = 1280;

/// Smallest largest packet of IPv4 (RFC 791).
pub const MTU_MIN_V4: u32 = 68;

/// Name of the device that carries packets of a family, over the same family. At most 15 bytes are
/// allowed.
#[must_use]
pub const fn device(family: Family) -> &'static str {
    match family {
        Family::V4 => "egress-vxlan-v4",
        Family::V6 => "egress-vxlan-v6",
    }
}

/// Parameters under `net.ipv4.conf.<device>` and their values.
///
/// - `rp_filter` 2 (loose): packets come out of the tunnel whose sources the host routes elsewhere;
///   strict filtering would drop them. Only on our devices.
/// - `promote_secondaries`: when an overlay address changes within its network, the new one comes
///   before the old one goes; without this the kernel would take it away as well, and with the last
///   address all routes and neighbours of the device.
/// - `accept_local`: where pods' own nodes translate, packets come out of the tunnel with an egress
///   address as their source, and a gateway may have that address itself. Without this the kernel
///   takes them for martians, whatever `rp_filter` is. The policy backend drops what comes with any
///   other address of this host.
pub const PARAMETERS: [(&str, &str); 3] = [
    ("rp_filter", "2"),
    ("promote_secondaries", "1"),
    ("accept_local", "1"),
];
