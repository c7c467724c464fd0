//! What others do on a node.

use std::net::{IpAddr, Ipv6Addr};

use super::event::{ADDRESSES, NODES};

/// What somebody may put beside a node's own addresses. The masquerade of a CNI may choose one of
/// them, and nothing of ours may.
pub(super) fn foreign_addresses(node: &str) -> [IpAddr; ADDRESSES] {
    let number = u8::try_from(
        NODES
            .iter()
            .position(|name| *name == node)
            .unwrap_or(NODES.len()),
    )
    .unwrap_or(u8::MAX);
    let v6 = |last: u8| Ipv6Addr::new(0xfd00, 6, 0, 0, 0, 0, 9, u16::from(last)).into();
    [
        [10, 6, 9, 10 + number].into(),
        [10, 6, 9, 20 + number].into(),
        v6(0x10 + number),
        v6(0x20 + number),
    ]
}
