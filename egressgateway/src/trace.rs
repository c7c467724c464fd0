//! A packet's way through a backend's rules, without a kernel: what a trace looks at, and what it
//! finds.

use std::net::IpAddr;

/// What connection tracking says of a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConnectionState {
    /// Of a connection that has not been answered yet.
    #[default]
    New,
    /// Of an answered connection.
    Established,
    /// Of no connection that it could be.
    Invalid,
    /// Not looked at, because a rule said so.
    Untracked,
}

/// Which way a packet goes within its connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direction {
    /// As the first packet.
    #[default]
    Original,
    /// Back.
    Reply,
}

/// What the routing tables say of a destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DestinationKind {
    /// Somebody else's address.
    #[default]
    Unicast,
    /// This host's.
    Local,
    /// This host's, on the device that the packet came by.
    Arrival,
    /// A group's.
    Multicast,
}

impl DestinationKind {
    /// Whether a packet of this kind is of the `asked` one: an address of the device is one of the
    /// host as well.
    #[must_use]
    pub fn is(self, asked: Self) -> bool {
        self == asked || (self == Self::Arrival && asked == Self::Local)
    }
}

/// What a packet carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TraceProtocol {
    /// Nothing that a rule asks for.
    #[default]
    Other,
    /// ICMP, or `ICMPv6`.
    Icmp,
    /// UDP, to this port.
    Udp(u16),
    /// A protocol without ports, such as GRE.
    Portless,
}

/// What sort of connection a first packet begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Beginning {
    /// Only somebody who begins a connection sends this: TCP's SYN.
    #[default]
    Request,
    /// It may as well belong to a connection that connection tracking has forgotten: TCP in the
    /// middle, or a protocol without a beginning.
    Unclear,
}

/// What the rules look at. Build it with [`TracePacket::new`] and set what differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TracePacket {
    /// Source address, before source translation.
    pub source: IpAddr,
    /// Destination address, after destination translation.
    pub destination: IpAddr,
    /// Where the packet was sent to, if somebody has translated its destination, as for a service.
    pub sent_to: Option<IpAddr>,
    /// What it carries.
    pub protocol: TraceProtocol,
    /// Device that the packet came by; a pod's own device unless it is one of the overlay's.
    pub in_device: Option<String>,
    /// What the routing tables say of the destination.
    pub destination_kind: DestinationKind,
    /// What connection tracking says of the packet.
    pub state: ConnectionState,
    /// Which way within its connection.
    pub direction: Direction,
    /// What the connection began with, where it is neither ICMP nor UDP.
    pub beginning: Beginning,
    /// Connection mark so far, all bits.
    pub connection_mark: u32,
    /// Packet mark so far, all bits.
    pub packet_mark: u32,
    /// Somebody has translated its connection's source.
    pub source_translated: bool,
}

impl TracePacket {
    /// The first packet of a connection of a local pod.
    #[must_use]
    pub fn new(source: IpAddr, destination: IpAddr) -> Self {
        Self {
            source,
            destination,
            sent_to: None,
            protocol: TraceProtocol::default(),
            in_device: None,
            destination_kind: DestinationKind::default(),
            state: ConnectionState::default(),
            direction: Direction::default(),
            beginning: Beginning::default(),
            connection_mark: 0,
            packet_mark: 0,
            source_translated: false,
        }
    }

    /// The same packet as it comes out of an overlay device.
    #[must_use]
    pub fn from_device(mut self, device: impl Into<String>) -> Self {
        self.in_device = Some(device.into());
        self
    }

    /// The same packet as sent to another address, such as a service's, which is translated to its
    /// destination.
    #[must_use]
    pub const fn sent_to(mut self, address: IpAddr) -> Self {
        self.sent_to = Some(address);
        self
    }

    /// The same packet with other contents.
    #[must_use]
    pub const fn carrying(mut self, protocol: TraceProtocol) -> Self {
        self.protocol = protocol;
        self
    }
}

/// Where a packet stands after a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TraceVerdict {
    /// Goes on.
    Accept {
        /// Connection tracking does not look at it: its further way begins as
        /// [`ConnectionState::Untracked`].
        untracked: bool,
        /// Packet mark, all bits: [`MarkMask::target`](crate::model::MarkMask::target) says whether
        /// and where it is steered.
        packet_mark: u32,
        /// Connection mark, all bits: the pin that later packets follow.
        connection_mark: u32,
        /// Counters that were met, by name.
        counted: Vec<&'static str>,
    },
    /// Ends here.
    Drop {
        /// The counter that says why; none where a rule of somebody else drops.
        counter: Option<&'static str>,
    },
}

/// The source that a connection leaves with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceSource {
    /// None of our rules says anything: whatever the rest of the host does.
    Untouched,
    /// Its own, kept from every other translation.
    Itself,
    /// The one that the kernel chooses, on a device that nothing is known of.
    Masquerade,
    /// This one: an egress address, or the node's own on the outgoing device.
    Address(IpAddr),
    /// This egress address, and a port that the pod's own node has of it.
    Ports(IpAddr),
    /// It does not leave.
    Drop {
        /// The counter that says why; none where a rule of somebody else drops.
        counter: Option<&'static str>,
    },
}

/// Rules that can be walked: the state that a policy backend plans from or to.
///
/// A packet passes [`trace`](Self::trace), is routed by the mark that it got there, and passes
/// [`trace_forward`](Self::trace_forward) and [`trace_source`](Self::trace_source) with the marks
/// and the [`ConnectionState`] of the first. Rules of others are not known here.
pub trait Trace: Send + Sync {
    /// Prerouting: classification, pin and mark. Its result decides the route.
    #[must_use]
    fn trace(&self, packet: &TracePacket) -> TraceVerdict;

    /// Forwarding, to the device that the route leads to.
    #[must_use]
    fn trace_forward(&self, packet: &TracePacket, out_device: &str) -> TraceVerdict;

    /// Delivery to the host itself.
    #[must_use]
    fn trace_input(&self, packet: &TracePacket) -> TraceVerdict;

    /// Postrouting: the source that a new connection leaves with.
    #[must_use]
    fn trace_source(&self, packet: &TracePacket, out_device: &str) -> TraceSource;
}
