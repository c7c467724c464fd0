//! Every name and number that reaches the kernel, and what it must not collide with.

use std::net::IpAddr;

use egressgateway::model::{Family, NetworkId, TargetId};

/// Program that talks to the kernel for us.
pub(crate) const NFT: &str = "nft";
/// Distribution package that has [`NFT`].
pub(crate) const NFT_PACKAGE: &str = "nftables";
/// Family of the table: one set of chains sees IPv4 and IPv6.
pub(crate) const TABLE_FAMILY: &str = "inet";
/// The table. Everything in it is ours, and nothing outside of it.
pub(crate) const TABLE: &str = "egressgateway";
/// How nft's commands write the table.
pub(crate) const TABLE_PATH: &str = "inet egressgateway";

/// How nft's commands write the table of [`Services`](crate::Services), beside another backend's
/// rules. Everything in it is ours too.
pub(crate) const SERVICES_PATH: &str = "inet egressgateway_services";
/// Its name.
pub(crate) const SERVICES_TABLE: &str = "egressgateway_services";

/// Which of our two tables of sets and maps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Scope {
    /// That of [`Nftables`](crate::Nftables): every packet.
    #[default]
    Whole,
    /// That of [`Services`](crate::Services): what somebody has translated.
    Services,
}

impl Scope {
    /// The table's name.
    pub(crate) const fn table(self) -> &'static str {
        match self {
            Self::Whole => TABLE,
            Self::Services => SERVICES_TABLE,
        }
    }

    /// How nft's commands write it.
    pub(crate) const fn path(self) -> &'static str {
        match self {
            Self::Whole => TABLE_PATH,
            Self::Services => SERVICES_PATH,
        }
    }
}

/// The table of [`ExitGuard`](crate::ExitGuard), beside another backend's rules. Everything in it
/// is ours too.
pub(crate) const GUARD_TABLE: &str = "egressgateway_exits";
/// How nft's commands write it.
pub(crate) const GUARD_PATH: &str = "inet egressgateway_exits";
/// Its only chain, with [`PRIORITY_RESTORE`].
pub(crate) const GUARD_CHAIN: &str = "after_translation";

/// The two tables of [`Relay`](crate::Relay), one in each of two families. Everything in them is
/// ours too.
pub(crate) const RELAY_TABLE: &str = "egressgateway_relay";
/// The family of its ingress chain: only there a packet goes on before connection tracking, routing
/// and local delivery have seen it.
pub(crate) const RELAY_INGRESS_FAMILY: &str = "netdev";
/// Before the policy table's chain, which is at [`PRIORITY_RAW`], and after fragments were put
/// together (NF_IP_PRI_CONNTRACK_DEFRAG, -400), so that every packet has its ports.
pub(crate) const PRIORITY_RELAY: i32 = PRIORITY_RAW - 1;
/// Where `raw` is in other families: before filters and flowtables of others (0) on the same
/// device.
pub(crate) const PRIORITY_RELAY_INGRESS: i32 = -300;
/// Before others look at the priority of what leaves.
pub(crate) const PRIORITY_RELAY_OUTPUT: i32 = PRIORITY_RAW;
/// Upper half of `meta priority` while a fragment waits for its way: neither a class that traffic
/// control is likely to know, nor one of the kernel's own priorities, which are below 16.
pub(crate) const RELAY_SCRATCH: u16 = 0xe667;
/// How long the way of a datagram's first fragment holds for the others, in seconds.
pub(crate) const RELAY_FRAGMENTS_SECONDS: u64 = 5;
/// How many datagrams in fragments may be on their way at a time, so that nobody outside fills the
/// memory of the host.
pub(crate) const RELAY_FRAGMENTS: u64 = 65535;

/// Came through the overlay with an egress address and a port, or an identifier, that the sender
/// does not have.
pub(crate) const DROP_NOT_OWNER: &str = "drop_not_owner";
/// Answers that came by the relay's ingress chain, or around it, without having been passed on.
pub(crate) const DROP_UNFORWARDED: &str = "drop_unforwarded";
/// Answers to ports that no node has.
pub(crate) const DROP_NO_BLOCK: &str = "drop_no_block";
/// Came to an egress address without being an answer.
pub(crate) const DROP_OTHER: &str = "drop_other";
/// Fragments whose first one was not seen before.
pub(crate) const DROP_FRAGMENT: &str = "drop_fragment";
/// Counters of the relay.
pub(crate) const RELAY_COUNTERS: [&str; 6] = [
    DROP_NOT_PEER,
    DROP_NOT_OWNER,
    DROP_UNFORWARDED,
    DROP_NO_BLOCK,
    DROP_OTHER,
    DROP_FRAGMENT,
];

/// Family of [`LOOKUP_TABLE`].
pub(crate) const LOOKUP_TABLE_FAMILY: &str = "netdev";
/// The table of the probe that asks whether lookups are right; it lives for milliseconds.
/// Everything in it is ours too.
pub(crate) const LOOKUP_TABLE: &str = "egressgateway_probe";
/// How nft's commands write it.
pub(crate) const LOOKUP_TABLE_PATH: &str = "netdev egressgateway_probe";
/// Before everybody else's ingress chains of the device.
pub(crate) const PRIORITY_INGRESS: i32 = -500;

/// New connections sent to a gateway.
pub(crate) const STEERED: &str = "steered";
/// Of the steered connections, those whose first packet entered the tunnel: the others found no way
/// there.
pub(crate) const TUNNELLED: &str = "tunnelled";
/// New connections that left here.
pub(crate) const EXITED: &str = "exited";
/// Pinned to, or destined for, a target that has no way out.
pub(crate) const DROP_NO_GATEWAY: &str = "drop_no_gateway";
/// Governed, but where to or as whom is not known yet.
pub(crate) const DROP_HELD: &str = "drop_held";
/// Came through the overlay and has no business here, or no policy that exits here says as whom it
/// leaves.
pub(crate) const DROP_UNKNOWN_SOURCE: &str = "drop_unknown_source";
/// Outer packets from somebody who is no node, or on their way to one from here.
pub(crate) const DROP_NOT_PEER: &str = "drop_not_peer";
/// Packets of pods that are not known yet.
pub(crate) const DROP_START_GATE: &str = "drop_start_gate";
/// Governed, and taken out of connection tracking by somebody else, so that nothing can be pinned
/// or translated.
pub(crate) const DROP_UNTRACKED: &str = "drop_untracked";
/// Of a protocol without ports, so that no node's share of an egress address fits it.
pub(crate) const DROP_NO_PORT: &str = "drop_no_port";
/// All counters, in the order in which they are declared.
pub(crate) const COUNTERS: [&str; 10] = [
    STEERED,
    TUNNELLED,
    EXITED,
    DROP_NO_GATEWAY,
    DROP_HELD,
    DROP_UNKNOWN_SOURCE,
    DROP_NOT_PEER,
    DROP_START_GATE,
    DROP_UNTRACKED,
    DROP_NO_PORT,
];

/// Connection tracking begins at -200: what is dropped or untracked must be so before. nftables'
/// and iptables' `raw`.
pub(crate) const PRIORITY_RAW: i32 = -300;
/// Where connection tracking looks at what comes in: NF_IP_PRI_CONNTRACK.
pub(crate) const PRIORITY_CONNTRACK: i64 = -200;
/// Right after destination translation (`dstnat` is -100), so that a service's real backend is
/// seen.
pub(crate) const PRIORITY_CLASSIFY: i32 = -95;
/// nftables' and iptables' `mangle`: before `filter`, where network policies live.
pub(crate) const PRIORITY_MANGLE: i32 = -150;
/// Before everybody's masquerade, because the first source translation of a connection counts.
/// Chains of iptables and most others have `srcnat` (100), but anybody may choose less. The kernel
/// refuses nat chains up to -200; it asks all of them at 100, in this order.
pub(crate) const PRIORITY_TRANSLATE: i32 = -199;
/// After source translation, before the packet is confirmed and leaves.
pub(crate) const PRIORITY_RESTORE: i32 = 105;

/// Base chain: outer packets that arrive.
pub(crate) const OUTER_IN: &str = "outer_in";
/// Base chain: outer packets that leave.
pub(crate) const OUTER_OUT: &str = "outer_out";
/// Base chain: classification and marks.
pub(crate) const PREROUTING: &str = "prerouting_steer";
/// Base chain: first packets that somebody has translated, beside another backend.
pub(crate) const TRANSLATED: &str = "prerouting_translated";
/// Base chain: the guard and the segment size.
pub(crate) const FORWARD: &str = "forward_guard";
/// Base chain: source translation.
pub(crate) const POST_TRANSLATE: &str = "post_translate";
/// Base chain: the scratch value that translation left in `meta priority` goes.
pub(crate) const POST_RESTORE: &str = "post_restore";
/// Chain: where a translated packet leads.
pub(crate) const SERVICE: &str = "service";
/// Chain: an outer packet for this node.
pub(crate) const OUTER: &str = "outer";
/// Chain: packets of connections that somebody outside began towards a pod.
pub(crate) const ANSWERS: &str = "answers";
/// Chain: what connection tracking takes for invalid, or does not look at.
pub(crate) const INVALID_UNTRACKED: &str = "invalid_untracked";
/// Chain: came through the overlay, and nothing pinned it when it began.
pub(crate) const ARRIVE_UNPINNED: &str = "arrive_unpinned";
/// Chain: first packet of a connection.
pub(crate) const CLASSIFY: &str = "classify";
/// Chain: a connection to the tunnel's port that is no tunnel's.
pub(crate) const NOT_TUNNEL: &str = "not_tunnel";
/// Chain: first packet of a connection that came through the overlay.
pub(crate) const ARRIVE: &str = "arrive";
/// Chain: of these, what is for this host or a group.
pub(crate) const ARRIVE_INWARD: &str = "arrive_inward";
/// Chain: the source has no class: the start gate, and what comes from outside.
pub(crate) const NO_CLASS: &str = "no_class";
/// Chain: whether what comes from outside may belong to a connection that a governed pod began.
pub(crate) const TOWARDS_POD: &str = "towards_pod";
/// Chain: pins such a connection.
pub(crate) const PIN_ANSWER: &str = "pin_answer";
/// Chain: class of the source, into `meta priority`.
pub(crate) const FIND_CLASS: &str = "find_class";
/// Chain: verdict of class and destination.
pub(crate) const DECIDE: &str = "decide";
/// Chain: came through the overlay and no verdict says where to.
pub(crate) const UNCLASSIFIED: &str = "unclassified";
/// Chain: what leaves here with its own address is not tracked.
pub(crate) const UNTRACK: &str = "untrack";
/// Chain: pinned, and does not exit here.
pub(crate) const GUARD: &str = "guard";
/// Chain: the same of what somebody outside began.
pub(crate) const GUARD_ANSWERS: &str = "guard_answers";
/// Chain: lowers the segment size.
pub(crate) const CLAMP: &str = "clamp";
/// Chain: the first segment of a connection that exits here.
pub(crate) const OPENING: &str = "opening";
/// Chain: enters the tunnel.
pub(crate) const ENTER: &str = "enter_tunnel";
/// Chain: verdict `Hold`.
pub(crate) const HELD: &str = "held";
/// Chain: governed, and can be neither pinned nor translated.
pub(crate) const LOST: &str = "lost";
/// Chain: verdict with a target that does not exist.
pub(crate) const NO_GATEWAY: &str = "no_gateway";
/// Chain: leaves with the node's address.
pub(crate) const SNAT_NODE: &str = "snat_node";
/// Chain: leaves with its own address.
pub(crate) const SNAT_KEEP: &str = "snat_keep";
/// Chain: leaves with an egress address.
pub(crate) const SNAT_ADDRESS: &str = "snat_address";
/// Chain: translated here, before it is sent, to this node's ports of an egress address.
pub(crate) const SNAT_PORTS: &str = "snat_ports";
/// Prefix of the chain that translates to this node's ports of one egress address.
pub(crate) const PORTS: &str = "ports_";
/// Chain: pins what exits here, by the network of its egress address.
pub(crate) const LEAVE: &str = "leave_here";
/// Chain: the reverse-path filter of a network's device looks at the mark of answers.
pub(crate) const REVERSE: &str = "reverse_filter";
/// Prefix of the chain that pins a network of this node.
pub(crate) const LEAVE_BY: &str = "leave_";
/// Prefix of the chain that marks the packets of a network of this node.
pub(crate) const BY: &str = "by_";
/// Prefix of the chain that pins a target.
pub(crate) const TO: &str = "to_";
/// Prefix of the chain that marks the packets of a target.
pub(crate) const STEER: &str = "steer_";

/// Devices of the overlay.
pub(crate) const DEVICES: &str = "overlay_devices";
/// Connection mark byte to what happens to later packets.
pub(crate) const TARGETS: &str = "targets";
/// Connection mark bytes of what exits here.
pub(crate) const EXITS: &str = "exits";

/// Classes whose entries of `verdicts`, `snat_kind`, `snat_address` and `via` are being changed.
///
/// A transaction is one moment for chains and for sets of single keys, but ranges of concatenations
/// show a moment later: the kernel builds them aside and puts them in place when the rest is in
/// force already (`nft_pipapo_commit`); before Linux 6.17 it finds neither the old nor the new ones
/// meanwhile. So what finds nothing of a class that is in here waits.
pub(crate) const CHANGING: &str = "changing";

/// Most elements that one command may bring, so that each fits one netlink attribute (64 KiB). nft
/// 1.0.6 encodes the element that did not fit a second time, and turns the bytes of a class in a
/// concatenation around once more: the kernel would hold another class.
pub(crate) const ELEMENTS_PER_COMMAND: usize = 256;

/// Sets and maps that exist once per family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum SetName {
    /// Never steered.
    Exempt,
    /// Addresses of this node's pods.
    Local,
    /// Addresses that are this node's pods' where packets come by the devices of pods.
    Wide,
    /// Pods that are known to have no class: whoever is neither here nor has one is not known yet.
    Ungoverned,
    /// Destinations of all policies.
    Governed,
    /// Outer addresses of the other nodes.
    Peers,
    /// This node's own outer addresses.
    Own,
    /// Whatever addresses other nodes have.
    Hosts,
    /// Egress addresses that pods' own nodes translate to.
    Relayed,
    /// Pod to class.
    Pods,
    /// Pod subnet to class.
    Subnets,
    /// Class and destination to target.
    Verdicts,
    /// Class and destination to kind of source.
    SnatKind,
    /// Class and destination to egress address.
    SnatAddress,
    /// Class and destination that leave here with their own address.
    KeepSource,
    /// Device to the node's own address there.
    Node,
    /// Class and destination to the network that they leave by.
    Via,
}

impl SetName {
    /// All of them.
    pub(crate) const ALL: [Self; 17] = [
        Self::Exempt,
        Self::Local,
        Self::Wide,
        Self::Ungoverned,
        Self::Governed,
        Self::Peers,
        Self::Own,
        Self::Hosts,
        Self::Relayed,
        Self::Pods,
        Self::Subnets,
        Self::Verdicts,
        Self::SnatKind,
        Self::SnatAddress,
        Self::KeepSource,
        Self::Node,
        Self::Via,
    ];

    /// Its name in the kernel.
    pub(crate) const fn name(self, family: Family) -> &'static str {
        match (self, family) {
            (Self::Exempt, Family::V4) => "exempt4",
            (Self::Exempt, Family::V6) => "exempt6",
            (Self::Local, Family::V4) => "local4",
            (Self::Local, Family::V6) => "local6",
            (Self::Wide, Family::V4) => "wide4",
            (Self::Wide, Family::V6) => "wide6",
            (Self::Ungoverned, Family::V4) => "ungoverned4",
            (Self::Ungoverned, Family::V6) => "ungoverned6",
            (Self::Governed, Family::V4) => "governed4",
            (Self::Governed, Family::V6) => "governed6",
            (Self::Peers, Family::V4) => "peers4",
            (Self::Peers, Family::V6) => "peers6",
            (Self::Own, Family::V4) => "own4",
            (Self::Own, Family::V6) => "own6",
            (Self::Hosts, Family::V4) => "hosts4",
            (Self::Hosts, Family::V6) => "hosts6",
            (Self::Relayed, Family::V4) => "relayed4",
            (Self::Relayed, Family::V6) => "relayed6",
            (Self::Pods, Family::V4) => "pods4",
            (Self::Pods, Family::V6) => "pods6",
            (Self::Subnets, Family::V4) => "subnets4",
            (Self::Subnets, Family::V6) => "subnets6",
            (Self::Verdicts, Family::V4) => "verdicts4",
            (Self::Verdicts, Family::V6) => "verdicts6",
            (Self::SnatKind, Family::V4) => "snat_kind4",
            (Self::SnatKind, Family::V6) => "snat_kind6",
            (Self::SnatAddress, Family::V4) => "snat_address4",
            (Self::SnatAddress, Family::V6) => "snat_address6",
            (Self::KeepSource, Family::V4) => "keep_source4",
            (Self::KeepSource, Family::V6) => "keep_source6",
            (Self::Node, Family::V4) => "node4",
            (Self::Node, Family::V6) => "node6",
            (Self::Via, Family::V4) => "via4",
            (Self::Via, Family::V6) => "via6",
        }
    }

    /// The set and family with this name.
    pub(crate) fn parse(name: &str) -> Option<(Self, Family)> {
        Self::of_both_families().find(|(set, family)| set.name(*family) == name)
    }

    /// Its name in the kernel before it got the present one. A node that is upgraded has both until
    /// its rules refer to the present one.
    pub(crate) const fn former_name(self, family: Family) -> Option<&'static str> {
        Some(match (self, family) {
            (Self::Subnets, Family::V4) => "nets4",
            (Self::Subnets, Family::V6) => "nets6",
            (Self::Verdicts, Family::V4) => "where4",
            (Self::Verdicts, Family::V6) => "where6",
            (Self::SnatKind, Family::V4) => "exit4",
            (Self::SnatKind, Family::V6) => "exit6",
            (Self::SnatAddress, Family::V4) => "as4",
            (Self::SnatAddress, Family::V6) => "as6",
            (Self::KeepSource, Family::V4) => "kept4",
            (Self::KeepSource, Family::V6) => "kept6",
            _ => return None,
        })
    }

    /// The set and family that had this name in a former version.
    pub(crate) fn parse_former(name: &str) -> Option<(Self, Family)> {
        Self::of_both_families().find(|(set, family)| set.former_name(*family) == Some(name))
    }

    fn of_both_families() -> impl Iterator<Item = (Self, Family)> {
        Self::ALL
            .into_iter()
            .flat_map(|set| Family::ALL.map(|family| (set, family)))
    }
}

/// The chain that pins `target`.
pub(crate) fn to_chain(target: TargetId) -> String {
    format!("{TO}{target}")
}

/// The chain that marks the packets of `target`.
pub(crate) fn steer_chain(target: TargetId) -> String {
    format!("{STEER}{target}")
}

/// The chain that pins what leaves by `network`.
pub(crate) fn leave_chain(network: NetworkId) -> String {
    format!("{LEAVE_BY}{network}")
}

/// The chain that marks the packets of `network`.
pub(crate) fn by_chain(network: NetworkId) -> String {
    format!("{BY}{network}")
}

/// The chain that translates to this node's ports of `address`. No name of a chain has a colon.
pub(crate) fn ports_chain(address: IpAddr) -> String {
    format!("{PORTS}{address}").replace(':', "-")
}

/// The address of a chain that [`ports_chain`] named.
pub(crate) fn address_of_chain(chain: &str) -> Option<IpAddr> {
    let address = chain.strip_prefix(PORTS)?.replace('-', ":").parse().ok()?;
    (ports_chain(address) == chain).then_some(address)
}

/// The network of a chain that [`leave_chain`] named.
pub(crate) fn network_of_chain(chain: &str) -> Option<NetworkId> {
    let digits = chain
        .strip_prefix(LEAVE_BY)
        .filter(|digits| digits.len() == 2)?;
    let network = u8::from_str_radix(digits, 16)
        .ok()
        .and_then(NetworkId::new)?;
    (network.to_string() == digits).then_some(network)
}

/// The target of a chain that [`to_chain`] or [`steer_chain`] named with this prefix.
pub(crate) fn target_of_chain(prefix: &str, chain: &str) -> Option<TargetId> {
    let digits = chain
        .strip_prefix(prefix)
        .filter(|digits| digits.len() == 2)?;
    let target = u8::from_str_radix(digits, 16)
        .ok()
        .and_then(TargetId::new)?;
    (target.to_string() == digits).then_some(target)
}

/// Netlink multicast group of nftables: NFNLGRP_NFTABLES.
pub(crate) const NOTIFICATION_GROUP: u32 = 7;
/// Number of the `inet` family in netfilter messages: NFPROTO_INET.
pub(crate) const NOTIFICATION_FAMILY: u8 = 1;
/// Number of the `netdev` family there: NFPROTO_NETDEV.
pub(crate) const NOTIFICATION_INGRESS_FAMILY: u8 = 5;
/// Length of what precedes the attributes of a netfilter message: `struct nfgenmsg`, which begins
/// with the family.
pub(crate) const NOTIFICATION_HEADER: usize = 4;
/// NFTA_TABLE_NAME, NFTA_CHAIN_TABLE, NFTA_RULE_TABLE, NFTA_SET_TABLE, NFTA_SET_ELEM_LIST_TABLE,
/// NFTA_OBJ_TABLE: one number for all.
pub(crate) const TABLE_ATTRIBUTE: u16 = 1;
