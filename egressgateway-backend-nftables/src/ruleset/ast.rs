//! The statements that our rules are made of: rendered for nft, read back from it, and walked by
//! the tracer.

use std::{fmt, net::IpAddr};

use egressgateway::{
    model::{Family, PortBlock},
    trace::{ConnectionState, DestinationKind, Direction},
};

use crate::ruleset::names::{CHANGING, DEVICES, EXITS, SetName, TARGETS};

/// Where a chain continues.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Jump {
    /// Ends the hook's chain of ours.
    Accept,
    /// Ends the packet.
    Drop,
    /// Back to the chain that jumped here.
    Return,
    /// To a chain and back.
    Call(String),
    /// To a chain, and from there to who jumped here.
    Goto(String),
}

/// Which address of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Source,
    Destination,
}

impl Side {
    /// How nft calls it.
    const fn field(self) -> &'static str {
        match self {
            Self::Source => "saddr",
            Self::Destination => "daddr",
        }
    }
}

/// Which device of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    In,
    Out,
}

/// One statement. A match that fails ends the rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Statement {
    UdpPort(u16),
    Destination(DestinationKind),
    /// For this host or for a group: it does not leave the cluster. One lookup of the routing
    /// tables instead of two.
    Inward,
    /// For this host, whether by one of its addresses or as one of a group.
    Delivered,
    /// The source is one of this host's addresses.
    SourceLocal,
    /// ICMP of this family.
    Icmp(Family),
    /// Somebody translated the destination.
    Translated,
    /// The address that the connection's first packet was sent to is in no such network.
    SentOutside {
        family: Family,
        set: SetName,
    },
    Address {
        side: Side,
        family: Family,
        negated: bool,
        set: SetName,
    },
    Overlay {
        way: Way,
        negated: bool,
    },
    /// Came in by this device.
    From(String),
    State(ConnectionState),
    /// Connection tracking takes the packet for invalid, or does not look at it.
    InvalidOrUntracked,
    Direction(Direction),
    /// A packet of this connection has left the host before.
    Confirmed,
    Pinned {
        mask: u32,
        negated: bool,
        value: u32,
    },
    /// The packet mark has this value.
    Marked {
        mask: u32,
        negated: bool,
        value: u32,
    },
    /// Exits here, by whatever network.
    Exits {
        mask: u32,
        negated: bool,
    },
    Protocol(Family),
    Syn,
    /// The first packet of TCP's handshake.
    Opens,
    /// A helper of connection tracking expected this connection.
    Expected,
    /// Clears the scratch that holds a class.
    ForgetClass,
    /// Class of an address from a map; nothing happens without an entry.
    ClassOf {
        side: Side,
        family: Family,
        set: SetName,
    },
    /// The source has no class.
    NoClass,
    /// The entries of this class are being changed.
    Changing,
    /// Class and destination leave here with their own address.
    Keeps(Family),
    /// Continues as the map says of class and destination, if it does.
    VerdictOf {
        family: Family,
        set: SetName,
    },
    /// Continues as the map says of the connection mark, if it does.
    VerdictOfPin {
        mask: u32,
    },
    Pin {
        keep: u32,
        value: u32,
    },
    Mark {
        keep: u32,
        value: u32,
    },
    Count(&'static str),
    Segment(u16),
    SourceItself(Family),
    SourceOf(Family),
    /// The node's own address on the device that the packet leaves by; nothing happens without an
    /// entry.
    SourceOfDevice(Family),
    Masquerade,
    /// Of a protocol that has ports, or the identifiers of an echo.
    HasPorts {
        negated: bool,
    },
    /// By chance, one packet of so many.
    OneOf(u8),
    /// Somebody translated the source.
    SourceTranslated,
    /// This address, and a port of this block.
    SourcePorts(IpAddr, PortBlock),
    Untrack,
    Go(Jump),
    /// Nothing that we write, as nft's JSON has it.
    Foreign(String),
}

/// The protocols whose ports, or whose identifiers of an echo, the kernel chooses from a range, by
/// number and by name: ICMP, TCP, UDP, ICMPv6, SCTP, UDP-Lite.
pub(crate) const PROTOCOLS_WITH_PORTS: [(u8, &str); 6] = [
    (1, "icmp"),
    (6, "tcp"),
    (17, "udp"),
    (58, "ipv6-icmp"),
    (132, "sctp"),
    (136, "udplite"),
];

/// The statements of one rule.
pub(crate) type Rule = Vec<Statement>;

/// Where the kernel enters a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hook {
    pub(crate) kind: String,
    pub(crate) point: String,
    pub(crate) priority: i32,
    pub(crate) policy: String,
}

/// A chain and its rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) hook: Option<Hook>,
    pub(crate) rules: Vec<Rule>,
}

/// Declaration of a set or map, without its elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Declaration {
    /// Key types.
    pub(crate) key: Vec<&'static str>,
    /// Type of the values of a map.
    pub(crate) data: Option<&'static str>,
    /// Keys are ranges.
    pub(crate) interval: bool,
}

impl Declaration {
    /// "set" or "map".
    pub(crate) fn noun(&self) -> &'static str {
        if self.data.is_some() { "map" } else { "set" }
    }
}

impl SetName {
    /// How the kernel is told of it.
    pub(crate) fn declaration(self, family: Family) -> Declaration {
        let address = match family {
            Family::V4 => "ipv4_addr",
            Family::V6 => "ipv6_addr",
        };
        let (key, data, interval) = match self {
            Self::Exempt | Self::Local | Self::Wide | Self::Governed => (vec![address], None, true),
            Self::Ungoverned | Self::Peers | Self::Own | Self::Hosts | Self::Relayed => {
                (vec![address], None, false)
            }
            Self::Pods => (vec![address], Some("classid"), false),
            Self::Subnets => (vec![address], Some("classid"), true),
            Self::Verdicts | Self::SnatKind | Self::Via => {
                (vec!["classid", address], Some("verdict"), true)
            }
            Self::SnatAddress => (vec!["classid", address], Some(address), true),
            Self::KeepSource => (vec!["classid", address], None, true),
            Self::Node => (vec!["ifname"], Some(address), false),
        };
        Declaration {
            key,
            data,
            interval,
        }
    }
}

impl fmt::Display for Declaration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{ type {}", self.key.join(" . "))?;
        if let Some(data) = self.data {
            write!(f, " : {data}")?;
        }
        f.write_str("; ")?;
        if self.interval {
            f.write_str("flags interval; ")?;
        }
        f.write_str("}")
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kind,
            point,
            priority,
            policy,
        } = self;
        write!(
            f,
            "{{ type {kind} hook {point} priority {priority}; policy {policy}; }}"
        )
    }
}

impl fmt::Display for Jump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Return => f.write_str("return"),
            Self::Call(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}

/// How nft writes the header of a family.
pub(crate) fn header(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

fn operator(negated: bool) -> &'static str {
    if negated { "!= " } else { "" }
}

fn has_bits(
    f: &mut fmt::Formatter<'_>,
    what: &str,
    mask: u32,
    negated: bool,
    value: u32,
) -> fmt::Result {
    write!(
        f,
        "{what} & {mask:#010x} {} {value:#010x}",
        if negated { "!=" } else { "==" }
    )
}

fn mangle(f: &mut fmt::Formatter<'_>, what: &str, keep: u32, value: u32) -> fmt::Result {
    write!(f, "{what} set {what} & {keep:#010x}")?;
    if value == 0 {
        Ok(())
    } else {
        write!(f, " | {value:#010x}")
    }
}

impl fmt::Display for Statement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UdpPort(port) => write!(f, "udp dport {port}"),
            Self::Destination(kind) => f.write_str(match kind {
                DestinationKind::Unicast => "fib daddr type unicast",
                DestinationKind::Local => "fib daddr type local",
                DestinationKind::Arrival => "fib daddr . iif type local",
                DestinationKind::Multicast => "fib daddr type multicast",
            }),
            Self::Inward => f.write_str("fib daddr type { local, multicast }"),
            Self::Delivered => f.write_str("fib daddr type != unicast"),
            Self::SourceLocal => f.write_str("fib saddr type local"),
            // By number: names take a file of the host (/etc/protocols), which an image may lack.
            Self::Icmp(Family::V4) => f.write_str("meta l4proto 1"),
            Self::Icmp(Family::V6) => f.write_str("meta l4proto 58"),
            Self::Translated => f.write_str("ct status dnat"),
            Self::SentOutside { family, set } => write!(
                f,
                "ct original {} daddr != @{}",
                header(*family),
                set.name(*family)
            ),
            Self::Address {
                side,
                family,
                negated,
                set,
            } => {
                write!(
                    f,
                    "{} {} {}@{}",
                    header(*family),
                    side.field(),
                    operator(*negated),
                    set.name(*family)
                )
            }
            Self::Overlay { way, negated } => {
                let key = if *way == Way::In {
                    "iifname"
                } else {
                    "oifname"
                };
                write!(f, "{key} {}@{DEVICES}", operator(*negated))
            }
            Self::From(device) => write!(f, "iifname \"{device}\""),
            Self::State(state) => f.write_str(match state {
                ConnectionState::New => "ct state new",
                ConnectionState::Established => "ct state established",
                ConnectionState::Invalid => "ct state invalid",
                ConnectionState::Untracked => "ct state untracked",
            }),
            Self::InvalidOrUntracked => f.write_str("ct state invalid,untracked"),
            Self::Direction(direction) => f.write_str(match direction {
                Direction::Original => "ct direction original",
                Direction::Reply => "ct direction reply",
            }),
            Self::Confirmed => f.write_str("ct status confirmed"),
            Self::Expected => f.write_str("ct status expected"),
            Self::Pinned {
                mask,
                negated,
                value,
            } => has_bits(f, "ct mark", *mask, *negated, *value),
            Self::Marked {
                mask,
                negated,
                value,
            } => has_bits(f, "meta mark", *mask, *negated, *value),
            Self::Exits { mask, negated } => {
                write!(f, "ct mark & {mask:#010x} {}@{EXITS}", operator(*negated))
            }
            Self::Protocol(Family::V4) => f.write_str("meta nfproto ipv4"),
            Self::Protocol(Family::V6) => f.write_str("meta nfproto ipv6"),
            Self::Syn => f.write_str("tcp flags & (syn | rst) == syn"),
            Self::Opens => f.write_str("tcp flags & (syn | ack) == syn"),
            Self::ForgetClass => f.write_str("meta priority set 0:0"),
            Self::ClassOf { side, family, set } => {
                write!(
                    f,
                    "meta priority set {} {} map @{}",
                    header(*family),
                    side.field(),
                    set.name(*family)
                )
            }
            Self::NoClass => f.write_str("meta priority 0:0"),
            Self::Changing => write!(f, "meta priority @{CHANGING}"),
            Self::Keeps(family) => write!(
                f,
                "meta priority . {} daddr @{}",
                header(*family),
                SetName::KeepSource.name(*family)
            ),
            Self::VerdictOf { family, set } => write!(
                f,
                "meta priority . {} daddr vmap @{}",
                header(*family),
                set.name(*family)
            ),
            Self::VerdictOfPin { mask } => write!(f, "ct mark & {mask:#010x} vmap @{TARGETS}"),
            Self::Pin { keep, value } => mangle(f, "ct mark", *keep, *value),
            Self::Mark { keep, value } => mangle(f, "meta mark", *keep, *value),
            Self::Count(counter) => write!(f, "counter name {counter}"),
            Self::Segment(bytes) => write!(f, "tcp option maxseg size set {bytes}"),
            Self::SourceItself(family) => write!(f, "snat {0} to {0} saddr", header(*family)),
            Self::SourceOf(family) => {
                write!(
                    f,
                    "snat {0} to meta priority . {0} daddr map @{1}",
                    header(*family),
                    SetName::SnatAddress.name(*family)
                )
            }
            Self::SourceOfDevice(family) => {
                write!(
                    f,
                    "snat {} to oifname map @{} fully-random",
                    header(*family),
                    SetName::Node.name(*family)
                )
            }
            Self::Masquerade => f.write_str("masquerade fully-random"),
            Self::HasPorts { negated } => {
                write!(f, "meta l4proto {}{{ ", operator(*negated))?;
                for (index, protocol) in PROTOCOLS_WITH_PORTS.iter().enumerate() {
                    let comma = if index == 0 { "" } else { ", " };
                    write!(f, "{comma}{}", protocol.0)?;
                }
                f.write_str(" }")
            }
            Self::OneOf(several) => write!(f, "numgen random mod {several} 0"),
            Self::SourceTranslated => f.write_str("ct status snat"),
            Self::SourcePorts(IpAddr::V4(address), ports) => {
                write!(f, "snat ip to {address}:{ports}")
            }
            Self::SourcePorts(IpAddr::V6(address), ports) => {
                write!(f, "snat ip6 to [{address}]:{ports}")
            }
            Self::Untrack => f.write_str("notrack"),
            Self::Go(jump) => write!(f, "{jump}"),
            Self::Foreign(json) => write!(f, "# not ours: {json}"),
        }
    }
}
