//! Address families as the kernel numbers them.

use egressgateway::model::Family;
use netlink_packet_route::AddressFamily;

/// The kernel's number for a family.
pub(crate) fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

/// The family of a kernel's number, if it is one of ours.
pub(crate) fn family_of(family: AddressFamily) -> Option<Family> {
    match family {
        AddressFamily::Inet => Some(Family::V4),
        AddressFamily::Inet6 => Some(Family::V6),
        _ => None,
    }
}
