//! Every kernel name and number that this crate chooses, and the collision that each avoids.

/// Route protocol number of our rules and routes: how a restarted agent finds them again.
///
/// Free in `/etc/iproute2/rt_protos` and in the kernel's `rtnetlink.h`: routing daemons use 8 to
/// 18, 42, 186 to 192, Cilium none of its own, Calico 80, Kilo and flannel `boot` or `static`.
pub const PROTOCOL: u8 = 77;

/// Route protocol number of the routes to a tunnel's peers: another than [`PROTOCOL`], because
/// those all belong to policy routing.
pub const PEER_PROTOCOL: u8 = 78;

/// First routing table. Calico's and Cilium's tables are elsewhere (Cilium 2004 and 2005), the
/// main, default and local tables are skipped.
pub const TABLE_BASE: u32 = 100;

/// Tables that the kernel names itself: `default`, `main` and `local`.
pub const RESERVED_TABLES: std::ops::RangeInclusive<u32> = 253..=255;

/// The main table.
pub const TABLE_MAIN: u32 = 254;

/// Priority of the steering rules; the loop guard has the number before it. Calico's rules start at
/// 99 only with WireGuard or eBPF host routing, Cilium's at 9 and 111; the kernel's own are 0,
/// 32766 and 32767.
pub const RULE_PRIORITY: u32 = 99;

/// Smallest steering priority: the loop guard must come after the kernel's own rule for the local
/// table, at 0.
pub const RULE_PRIORITY_MIN: u32 = 2;

/// Largest steering priority: ours must come before the kernel's own rule for the main table, at 32766.
pub const RULE_PRIORITY_MAX: u32 = 32_765;

/// Metric of routes that lead somewhere, the same for both families (IPv6 would choose this one by
/// itself, IPv4 zero).
pub const METRIC: u32 = 1024;

/// Metric of the route that catches what has no next hop: worse than anything a routing daemon
/// installs. The number is the one that routing daemons use for the same purpose.
pub const UNREACHABLE_METRIC: u32 = 4_278_198_272;

/// Link alias that marks a device as ours, readable in `ip link`.
pub const OWNER_ALIAS: &str = "egressgateway";

/// Link group that marks a device as ours. The kernel takes an alias only for a device that exists
/// already but a group at its creation, so that a process that dies between the two leaves no
/// device that it does not recognise. `0x65677779`, far from the small numbers that people give by
/// hand.
pub const LINK_GROUP: u32 = 0x6567_7779;

/// Metric that marks an egress address as ours (`IFA_RT_PRIORITY`, Linux 4.18): the same for both
/// families, and on kernels that know no protocol numbers of addresses (`IFA_PROTO`, Linux 5.18).
/// The metric is that of the route to the address's network, and an address of full length without
/// prefix route has none, so that it means nothing else. The number is [`LINK_GROUP`]'s.
pub const ADDRESS_METRIC: u32 = LINK_GROUP;

/// Time to live of the outer header of a lightweight tunnel: the kernel would write 0, which no
/// router forwards.
pub const OUTER_TTL: u8 = 64;

/// Numbers of next hops that the kernel keeps for us: from here on, [`HOP_PLACES`] pairs. Numbers
/// that people and routing daemons choose are small, and the kernel itself counts up from 1.
pub const HOP_BASE: u32 = 1_600_000_000;

/// How many pairs of numbers there are for next hops. Which one a next hop has is a hash of its
/// name.
pub const HOP_PLACES: u32 = 40_000_000;

/// Numbers of groups of next hops, after those of next hops: ten times the byte of the target, and
/// 4 or 6 for the family.
pub const GROUP_BASE: u32 = 1_700_000_000;

/// Buckets of a group. 1,000 connections leave four fifths of them unused, so that a next hop that
/// comes gets its share of new connections at once; a bucket takes 32 bytes of the kernel's memory.
pub const GROUP_BUCKETS: u16 = 4096;

/// A bucket without a packet for so long may go to a next hop that has come. Connections that are
/// silent for longer may move then, so this is longer than the usual intervals of keepalive; and
/// until then a next hop that has come waits for buckets in use.
pub const GROUP_IDLE: std::time::Duration = std::time::Duration::from_secs(300);

/// Multicast groups of rtnetlink that say something about what drivers own: links, neighbours,
/// addresses, routes and rules of both families, and next hops (`RTNLGRP_*` of
/// `linux/rtnetlink.h`).
pub const NOTIFICATION_GROUPS: [u32; 9] = [1, 3, 5, 7, 8, 9, 11, 19, 32];
