//! What others do on a node.

use std::net::{IpAddr, Ipv6Addr};

use socket2::{Domain, Protocol, Socket, Type};

use super::event::{ADDRESSES, NODES};
use crate::lab::Node;

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

/// A table of somebody who knows nothing of us.
pub(super) const STRANGER: &str = "nft delete table inet stranger 2>/dev/null || true";

/// What backends make, whichever it is.
pub(super) const NO_RULES: &str = "nft delete table inet egressgateway 2>/dev/null || true
for p in iptables-nft ip6tables-nft iptables-legacy ip6tables-legacy; do
  if $p-save -t mangle 2>/dev/null | grep -q EGW-PREROUTING; then $p -w -t mangle -F EGW-PREROUTING || true; fi
done";

pub(super) const HAS_RULES: &str =
    "if nft list table inet egressgateway >/dev/null 2>&1; then echo yes; fi
for p in iptables-nft iptables-legacy; do
  if $p-save -t mangle 2>/dev/null | grep -q '^-A EGW-PREROUTING'; then echo yes; fi
done";

/// Addresses, neighbours, ways into the tunnel, devices and what was dropped.
pub(super) const STATE: &str = "ip -o address show | cut -c1-160
ip neigh | cut -c1-120
ip rule show | grep fwmark; ip -6 rule show | grep fwmark
for f in 4 6; do ip -$f route show table all proto 77; ip -$f route show default; done
ip -o -d link show type vxlan | cut -c1-220; bridge fdb show | grep -v permanent | grep dst
nft list counters 2>/dev/null | grep -B1 -E 'packets [1-9]' | grep -E 'counter|packets' || true";

pub(super) const NO_TUNNEL: &str =
    "for d in $(ip -o link show type vxlan | cut -d: -f2); do ip link delete $d || true; done";

/// The rules that lead to our tables stay; these lose what they hold.
pub(super) const NO_ROUTES: &str = "for f in -4 -6; do
  for t in $(ip $f rule show | grep fwmark | sed -n 's/.*lookup \\([0-9]*\\).*/\\1/p' | sort -u); do ip $f route flush table $t || true; done
done";

/// Lets a node's connection tracking forget everything (`IPCTNL_MSG_CT_DELETE` without a word of
/// which).
pub(super) fn forget(node: &Node) -> Result<(), String> {
    const NETLINK: i32 = 16;
    const NETFILTER: i32 = 12;
    /// Length, type, flags (request), number, port; then no family, version 0.
    const FLUSH: [u8; 20] = {
        let (length, kind, flags) = (
            20_u32.to_ne_bytes(),
            0x0102_u16.to_ne_bytes(),
            1_u16.to_ne_bytes(),
        );
        let mut message = [0; 20];
        (message[0], message[1], message[2], message[3]) =
            (length[0], length[1], length[2], length[3]);
        (message[4], message[5], message[6], message[7]) = (kind[0], kind[1], flags[0], flags[1]);
        message
    };
    let flush = || {
        Socket::new(
            Domain::from(NETLINK),
            Type::RAW,
            Some(Protocol::from(NETFILTER)),
        )?
        .send(&FLUSH)
    };
    node.enter(flush)
        .and_then(|sent| sent)
        .map(drop)
        .map_err(|error| format!("forgetting connections: {error}"))
}

/// Rules of somebody who knows nothing of us, in the place of earlier ones.
pub(super) fn stranger(hook: &str, rules: &[&str]) -> String {
    let rules = rules.join("\n    ");
    format!(
        "{STRANGER}\nnft -f - <<'END'\ntable inet stranger {{\n  chain own {{\n    {hook}\n    {rules}\n  }}\n}}\nEND\n"
    )
}

/// A second address, in the node's own network or alone. What is there already stays, and so
/// does what is not.
pub(super) fn second_address(node: &str, address: usize, is: bool) -> String {
    let own = foreign_addresses(node)[address % ADDRESSES];
    // Of full length as balancers and control planes put them, or with the network's length as
    // a second lease has it.
    let length = match address % ADDRESSES {
        0 => 32,
        1 => 16,
        2 => 128,
        _ => 64,
    };
    if is {
        format!(
            "ip addr replace {own}/{length} dev eth0{}",
            if own.is_ipv6() { " nodad" } else { "" }
        )
    } else {
        format!("ip addr del {own}/{length} dev eth0 2>/dev/null || true")
    }
}
