//! Every kernel name and number that this crate chooses, and the collision that each avoids.

use egressgateway::model::Family;

/// Virtual network identifier. It keeps two installations apart that share a port; who may send is
/// decided by outer addresses.
pub const VNI: u32 = 100;

/// UDP port of the outer packets: not the standard's 6081, where Cilium, OVN and Antrea have a
/// device that no second one can stand beside.
pub const PORT: u16 = 7789;

/// Name of the device that carries packets of both families, over either. At most 15 bytes are
/// allowed.
pub const DEVICE: &str = "egress-geneve";

/// Smallest largest packet that IPv6 works with (RFC 8200); the kernel takes IPv6 away from a
/// device below it.
pub const MTU_MIN_V6: u32 = 1280;

/// Smallest largest packet of IPv4 (RFC 791).
pub const MTU_MIN_V4: u32 = 68;

/// Bytes of an outer IP, UDP and Geneve header and the inner Ethernet header.
#[must_use]
pub const fn overhead(underlay: Family) -> u32 {
    match underlay {
        Family::V4 => 20 + 8 + 8 + 14,
        Family::V6 => 40 + 8 + 8 + 14,
    }
}

/// Parameters under `net.ipv4.conf.<device>` and their values.
///
/// - `rp_filter` 2 (loose): packets come out of the tunnel whose sources the host routes elsewhere;
///   strict filtering would drop them. Only on our device.
/// - `accept_local`: where pods' own nodes translate, packets come out of the tunnel with an egress
///   address as their source, and a gateway may have that address itself. Without this the kernel
///   takes them for martians, whatever `rp_filter` is. The policy backend drops what comes with any
///   other address of this host.
pub const PARAMETERS: [(&str, &str); 2] = [("rp_filter", "2"), ("accept_local", "1")];
