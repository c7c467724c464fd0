//! What a captured frame says.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Instant,
};

use super::constants::TUNNEL_PORTS;

/// What an IP packet carries, or ARP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP, or ICMPv6.
    Icmp,
    /// No IP packet: an ARP request or response, with sender and target as source and destination.
    Arp,
    /// Another IP protocol.
    Other(u8),
}

/// One packet seen on a wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Who put it on the wire: a node's name, `router`, or `server1`….
    pub from: String,
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// What it carries.
    pub protocol: Protocol,
    /// Source port; 0 where there is none.
    pub source_port: u16,
    /// Destination port; 0 where there is none.
    pub destination_port: u16,
    /// ICMP type; `None` otherwise.
    pub icmp_type: Option<u8>,
    /// The packet inside a tunnel's (VXLAN, Geneve).
    pub inner: Option<Box<Packet>>,
    /// Length of the frame in bytes.
    pub length: usize,
    /// When it was read from the wire.
    pub at: Instant,
}

impl Packet {
    /// The packet that a workload sent: inside the tunnel if there is one.
    #[must_use]
    pub fn innermost(&self) -> &Self {
        self.inner.as_deref().map_or(self, Self::innermost)
    }

    /// Whether source or destination is this address, outside any tunnel.
    #[must_use]
    pub fn touches(&self, address: IpAddr) -> bool {
        self.source == address || self.destination == address
    }

    /// Whether it is a bare IP packet, in no tunnel, from the one to the other.
    #[must_use]
    pub fn is_bare(&self, source: IpAddr, destination: IpAddr) -> bool {
        self.inner.is_none()
            && self.protocol != Protocol::Arp
            && self.source == source
            && self.destination == destination
    }

    /// Whether it is in a tunnel, and goes from the one to the other inside.
    #[must_use]
    pub fn is_tunnelled(&self, source: IpAddr, destination: IpAddr) -> bool {
        let inner = self.innermost();
        self.inner.is_some() && inner.source == source && inner.destination == destination
    }

    /// Reads an Ethernet frame; `None` for what is neither IP nor ARP, or too short.
    pub(super) fn parse(from: &str, frame: &[u8]) -> Option<Self> {
        let (ethertype, payload) = (number(frame, 12)?, frame.get(14..)?);
        let mut packet = match ethertype {
            0x0800 => Self::ipv4(payload)?,
            0x86dd => Self::ipv6(payload)?,
            0x0806 => Self::new(v4(payload, 14)?, v4(payload, 24)?, Protocol::Arp),
            _ => return None,
        };
        packet.length = frame.len();
        from.clone_into(&mut packet.from);
        if let Some(inner) = &mut packet.inner {
            from.clone_into(&mut inner.from);
        }
        Some(packet)
    }

    fn new(source: IpAddr, destination: IpAddr, protocol: Protocol) -> Self {
        let (from, at) = (String::new(), Instant::now());
        Self {
            from,
            source,
            destination,
            protocol,
            source_port: 0,
            destination_port: 0,
            icmp_type: None,
            inner: None,
            length: 0,
            at,
        }
    }

    fn ipv4(bytes: &[u8]) -> Option<Self> {
        let header = usize::from(bytes.first()? & 0xf) * 4;
        let mut packet = Self::new(
            v4(bytes, 12)?,
            v4(bytes, 16)?,
            Protocol::Other(*bytes.get(9)?),
        );
        // Later fragments have no ports.
        let offset = number(bytes, 6)? & 0x1fff;
        if offset == 0 {
            packet.transport(*bytes.get(9)?, bytes.get(header..)?);
        }
        Some(packet)
    }

    fn ipv6(bytes: &[u8]) -> Option<Self> {
        let mut packet = Self::new(
            v6(bytes, 8)?,
            v6(bytes, 24)?,
            Protocol::Other(*bytes.get(6)?),
        );
        packet.transport(*bytes.get(6)?, bytes.get(40..)?);
        Some(packet)
    }

    /// Reads what can be read of the transport header; a cut packet keeps its addresses.
    fn transport(&mut self, protocol: u8, bytes: &[u8]) {
        let ports = number(bytes, 0).zip(number(bytes, 2));
        self.protocol = match protocol {
            6 => Protocol::Tcp,
            17 => Protocol::Udp,
            1 | 58 => Protocol::Icmp,
            other => Protocol::Other(other),
        };
        match self.protocol {
            Protocol::Tcp | Protocol::Udp => {
                (self.source_port, self.destination_port) = ports.unwrap_or_default();
            }
            Protocol::Icmp => self.icmp_type = bytes.first().copied(),
            _ => {}
        }
        if self.protocol == Protocol::Udp {
            self.inner = bytes
                .get(8..)
                .and_then(|payload| tunnelled(self.destination_port, payload))
                .map(Box::new);
        }
    }
}

/// The packet in a tunnel's payload. Both headers have eight bytes. The third and fourth of
/// Geneve's are the kind of what is inside; VXLAN's are zero.
fn tunnelled(port: u16, payload: &[u8]) -> Option<Packet> {
    if !TUNNEL_PORTS.contains(&port) {
        return None;
    }
    if number(payload, 2)? == 0 {
        return Packet::parse("", payload.get(8..)?);
    }
    let options = usize::from(payload.first()? & 0x3f) * 4;
    let inner = payload.get(8 + options..)?;
    match number(payload, 2)? {
        0x6558 => Packet::parse("", inner),
        0x0800 => Packet::ipv4(inner),
        0x86dd => Packet::ipv6(inner),
        _ => None,
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn v4(bytes: &[u8], at: usize) -> Option<IpAddr> {
    let octets: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(Ipv4Addr::from(octets).into())
}

fn v6(bytes: &[u8], at: usize) -> Option<IpAddr> {
    let octets: [u8; 16] = bytes.get(at..at + 16)?.try_into().ok()?;
    Some(Ipv6Addr::from(octets).into())
}
