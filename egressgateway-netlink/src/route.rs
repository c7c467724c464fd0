//! Routes of tables that are ours.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use egressgateway::{Encap, Error, ErrorKind, NextHop, model::Family};
use imbl::{OrdMap, OrdSet};
use ipnet::IpNet;
use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Nla as _};
use netlink_packet_route::{
    RouteNetlinkMessage,
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteIp6Tunnel, RouteIp6TunnelFlags,
        RouteIpTunnel, RouteLwEnCapType, RouteLwTunnelEncap, RouteMessage, RouteMetric,
        RouteNextHop, RouteNextHopFlags, RouteProtocol, RouteScope, RouteType,
    },
};

use crate::{
    constants::OUTER_TTL,
    family::{address_family, family_of},
    netlink::Netlink,
};

/// What tells the routes of one family apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteKey {
    /// Table.
    pub table: u32,
    /// Destination, host bits zero; it tells the family.
    pub destination: IpNet,
    /// Metric: of several routes to one destination the lowest is taken.
    pub metric: u32,
}

impl RouteKey {
    /// Family of the packets.
    #[must_use]
    pub fn family(&self) -> Family {
        Family::of(self.destination.addr())
    }
}

impl fmt::Display for RouteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} table {} metric {}",
            self.destination, self.table, self.metric
        )
    }
}

/// What a route does with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RouteAction {
    /// Looks on in the next rule's table.
    Throw,
    /// Refuses it with an ICMP error.
    Unreachable,
    /// Sends it to the destination itself, which is a neighbour on this device.
    Link(String),
    /// Sends it to one of these, chosen by flow.
    Via(OrdSet<NextHop>),
    /// Sends it to one of the [group](crate::NextHopObject::Group) with this number, which
    /// remembers its choices.
    Group(u32),
    /// Does this with packets of at most so many bytes, and tells senders of larger ones.
    Limited(Box<Self>, u32),
    /// Something that this crate never asks for, on so many routes of the same key.
    Other(u32),
}

impl RouteAction {
    /// What it does, whatever the size of packets.
    #[must_use]
    pub fn way(&self) -> &Self {
        if let Self::Limited(way, _) = self {
            way
        } else {
            self
        }
    }

    pub(crate) fn way_mut(&mut self) -> &mut Self {
        if let Self::Limited(way, _) = self {
            way
        } else {
            self
        }
    }

    /// The same for packets of at most so many bytes, where there is a limit.
    pub(crate) fn limited(self, mtu: Option<u32>) -> Self {
        match mtu {
            Some(mtu) => Self::Limited(Box::new(self), mtu),
            None => self,
        }
    }
}

impl fmt::Display for RouteAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Throw => f.write_str("throw"),
            Self::Unreachable => f.write_str("unreachable"),
            Self::Other(_) => f.write_str("other"),
            Self::Group(id) => write!(f, "nhid {id}"),
            Self::Limited(way, mtu) => write!(f, "mtu {mtu} {way}"),
            Self::Link(device) => write!(f, "dev {device} scope link"),
            Self::Via(hops) => {
                for (index, hop) in hops.iter().enumerate() {
                    let separator = if index == 0 { "" } else { " " };
                    let word = if hops.len() > 1 { "nexthop " } else { "" };
                    write!(f, "{separator}{word}{}", Hop(hop))?;
                }
                Ok(())
            }
        }
    }
}

/// A next hop in the words of ip-route(8).
pub(crate) struct Hop<'a>(pub(crate) &'a NextHop);

impl fmt::Display for Hop<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let NextHop { device, via, encap } = self.0;
        if let Some(encap) = encap {
            write!(f, "{} ", encap_words(encap))?;
        }
        write!(f, "via {via} dev {device} onlink")
    }
}

/// An outer header in the words of ip-route(8), with the time to live that it gets here:
/// [`OUTER_TTL`].
#[must_use]
pub fn encap_words(Encap { id, source, remote }: &Encap) -> String {
    match remote {
        IpAddr::V4(_) => format!("encap ip id {id} src {source} dst {remote} ttl {OUTER_TTL}"),
        IpAddr::V6(_) => {
            format!("encap ip6 id {id} src {source} dst {remote} hoplimit {OUTER_TTL} csum")
        }
    }
}

/// Device names to indexes and back, as of one reading.
pub(crate) struct Devices {
    by_name: BTreeMap<String, u32>,
    by_index: BTreeMap<u32, String>,
}

impl Devices {
    pub(crate) fn of(devices: impl IntoIterator<Item = (u32, impl Into<String>)>) -> Self {
        let by_index: BTreeMap<u32, String> = devices
            .into_iter()
            .map(|(index, name)| (index, name.into()))
            .collect();
        Self {
            by_name: by_index
                .iter()
                .map(|(index, name)| (name.clone(), *index))
                .collect(),
            by_index,
        }
    }

    pub(crate) fn name(&self, index: u32) -> Option<&str> {
        self.by_index.get(&index).map(String::as_str)
    }

    pub(crate) fn index(&self, name: &str, what: &str) -> Result<u32, Error> {
        let missing = || {
            Error::new(
                ErrorKind::Conflict,
                format!("{what}: there is no device {name}"),
            )
        };
        self.by_name.get(name).copied().ok_or_else(missing)
    }
}

/// The question for the way to an address.
fn route_to(address: IpAddr) -> RouteNetlinkMessage {
    let family = Family::of(address);
    let mut request = RouteMessage::default();
    request.header.address_family = address_family(family);
    request.header.destination_prefix_length = family.bits();
    request
        .attributes
        .push(RouteAttribute::Destination(RouteAddress::from(address)));
    RouteNetlinkMessage::GetRoute(request)
}

impl Netlink {
    pub(crate) async fn devices(&self) -> Result<Devices, Error> {
        Ok(Devices::of(
            self.links()
                .await?
                .into_iter()
                .map(|link| (link.index, link.name)),
        ))
    }

    /// Whether the kernel says that it takes in packets to this address. That there is no way to
    /// it, or no answer, is a no.
    pub async fn is_local(&self, address: IpAddr) -> bool {
        let answer = self.ask(route_to(address), "ask for a route").await;
        matches!(answer, Ok(RouteNetlinkMessage::NewRoute(route)) if route.header.kind == RouteType::Local)
    }

    /// The device on whose link an address is; none where a router is in between, or the address is
    /// this host's.
    pub(crate) async fn device_of_neighbour(&self, address: IpAddr) -> Option<u32> {
        let RouteNetlinkMessage::NewRoute(route) =
            self.ask(route_to(address), "ask for a route").await.ok()?
        else {
            return None;
        };
        let routed = |attribute: &RouteAttribute| {
            matches!(
                attribute,
                RouteAttribute::Gateway(_) | RouteAttribute::Via(_)
            )
        };
        let device = route.attributes.iter().find_map(|attribute| {
            if let RouteAttribute::Oif(index) = attribute {
                Some(*index)
            } else {
                None
            }
        });
        device.filter(|_| {
            route.header.kind == RouteType::Unicast && !route.attributes.iter().any(routed)
        })
    }

    /// Every route of every table of a family, as the kernel says it.
    pub(crate) async fn route_messages(&self, family: Family) -> Result<Vec<RouteMessage>, Error> {
        let mut request = RouteMessage::default();
        request.header.address_family = address_family(family);
        let replies = self
            .dump(
                RouteNetlinkMessage::GetRoute(request),
                &format!("list {family} routes"),
            )
            .await?;
        let routes = replies.into_iter().filter_map(|reply| match reply {
            RouteNetlinkMessage::NewRoute(route) => Some(route),
            _ => None,
        });
        Ok(routes
            .filter(|route| family_of(route.header.address_family) == Some(family))
            .collect())
    }

    /// The routes with this protocol number, of all tables of a family.
    pub(crate) async fn routes(
        &self,
        family: Family,
        protocol: u8,
        devices: &Devices,
    ) -> Result<OrdMap<RouteKey, RouteAction>, Error> {
        let mut routes = OrdMap::new();
        for message in self.route_messages(family).await? {
            if u8::from(message.header.protocol) != protocol
                || message.header.flags.contains(RouteFlags::Cloned)
            {
                continue;
            }
            let Some(key) = key(&message, family) else {
                continue;
            };
            let action = action(&message, devices);
            let action = match routes.get(&key) {
                Some(earlier) => merge(family, earlier, action),
                None => action,
            };
            routes.insert(key, action);
        }
        Ok(routes)
    }

    /// Adds a route; with `replace`, in the place of the one with the same key, in one step.
    pub(crate) async fn set_route(
        &self,
        key: &RouteKey,
        action: &RouteAction,
        protocol: u8,
        devices: &Devices,
        replace: bool,
    ) -> Result<(), Error> {
        let what = format!(
            "{} route {key} {action}",
            if replace { "replace" } else { "add" }
        );
        let mut message = message(key, protocol);
        message.header.scope = RouteScope::Universe;
        match action {
            RouteAction::Limited(_, mtu) => message
                .attributes
                .push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(*mtu)])),
            // Without any word of metrics, IPv4 takes what the former route to the same group had
            // (`fib_find_info_nh`).
            RouteAction::Group(_) => message.attributes.push(RouteAttribute::Metrics(Vec::new())),
            _ => {}
        }
        match action.way() {
            RouteAction::Throw => message.header.kind = RouteType::Throw,
            RouteAction::Unreachable => message.header.kind = RouteType::Unreachable,
            RouteAction::Via(hops) => {
                message.header.kind = RouteType::Unicast;
                add_hops(&mut message, hops, devices, &what)?;
            }
            RouteAction::Link(device) => {
                message.header.kind = RouteType::Unicast;
                message.header.scope = RouteScope::Link;
                message
                    .attributes
                    .push(RouteAttribute::Oif(devices.index(device, &what)?));
            }
            RouteAction::Group(id) => {
                message.header.kind = RouteType::Unicast;
                message.attributes.push(RouteAttribute::NhId(*id));
            }
            RouteAction::Limited(..) | RouteAction::Other(_) => {
                return Err(Error::new(ErrorKind::Invalid, what));
            }
        }
        let flags = NLM_F_CREATE | if replace { NLM_F_REPLACE } else { NLM_F_EXCL };
        self.write(RouteNetlinkMessage::NewRoute(message), flags, &what)
            .await
    }

    /// Deletes the route with this key and protocol number, with all its next hops.
    pub(crate) async fn delete_route(&self, key: &RouteKey, protocol: u8) -> Result<(), Error> {
        let mut message = message(key, protocol);
        // What a deletion does not say is not compared.
        message.header.scope = RouteScope::NoWhere;
        message.header.kind = RouteType::Unspec;
        self.write(
            RouteNetlinkMessage::DelRoute(message),
            0,
            &format!("delete route {key}"),
        )
        .await
    }
}

fn message(key: &RouteKey, protocol: u8) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(key.family());
    message.header.destination_prefix_length = key.destination.prefix_len();
    message.header.protocol = RouteProtocol::from(protocol);
    message.attributes = vec![
        RouteAttribute::Table(key.table),
        RouteAttribute::Priority(key.metric),
    ];
    if key.destination.prefix_len() > 0 {
        message
            .attributes
            .push(RouteAttribute::Destination(RouteAddress::from(
                key.destination.network(),
            )));
    }
    message
}

fn add_hops(
    message: &mut RouteMessage,
    hops: &OrdSet<NextHop>,
    devices: &Devices,
    what: &str,
) -> Result<(), Error> {
    let mut next_hops = Vec::new();
    for hop in hops {
        let mut next_hop = RouteNextHop::default();
        next_hop.flags = RouteNextHopFlags::Onlink;
        next_hop.interface_index = devices.index(&hop.device, what)?;
        next_hop
            .attributes
            .push(RouteAttribute::Gateway(RouteAddress::from(hop.via)));
        if let Some(encap) = &hop.encap {
            next_hop
                .attributes
                .extend(OutgoingEncap(encap).attributes());
        }
        next_hops.push(next_hop);
    }
    match next_hops.as_mut_slice() {
        [] => {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("{what}: no next hop"),
            ));
        }
        [only] => {
            message.header.flags = RouteFlags::Onlink;
            message
                .attributes
                .push(RouteAttribute::Oif(only.interface_index));
            message.attributes.append(&mut only.attributes);
        }
        _ => message
            .attributes
            .push(RouteAttribute::MultiPath(next_hops)),
    }
    Ok(())
}

/// An outer header as the kernel is told it.
pub(crate) struct OutgoingEncap<'a>(pub(crate) &'a Encap);

impl OutgoingEncap<'_> {
    pub(crate) fn attributes(&self) -> [RouteAttribute; 2] {
        let Encap { id, source, remote } = self.0;
        let id = u64::from(*id);
        match (source, remote) {
            (IpAddr::V4(source), IpAddr::V4(remote)) => {
                let parts = [
                    RouteIpTunnel::Id(id),
                    RouteIpTunnel::Destination(*remote),
                    RouteIpTunnel::Source(*source),
                    RouteIpTunnel::Ttl(OUTER_TTL),
                ];
                let parts = parts.map(RouteLwTunnelEncap::Ip).to_vec();
                [
                    RouteAttribute::EncapType(RouteLwEnCapType::Ip),
                    RouteAttribute::Encap(parts),
                ]
            }
            (source, remote) => {
                let parts = [
                    RouteIp6Tunnel::Id(id),
                    RouteIp6Tunnel::Destination(ipv6(*remote)),
                    RouteIp6Tunnel::Source(ipv6(*source)),
                    RouteIp6Tunnel::Hoplimit(OUTER_TTL),
                    RouteIp6Tunnel::Flags(RouteIp6TunnelFlags::Checksum),
                ];
                let parts = parts.map(RouteLwTunnelEncap::Ip6).to_vec();
                [
                    RouteAttribute::EncapType(RouteLwEnCapType::Ip6),
                    RouteAttribute::Encap(parts),
                ]
            }
        }
    }
}

fn ipv6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

/// The table of a route: the header has only room for small numbers.
pub(crate) fn table(message: &RouteMessage) -> u32 {
    let table = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Table(table) => Some(*table),
            _ => None,
        });
    table.unwrap_or_else(|| u32::from(message.header.table))
}

/// The metric of a route; none said is 0.
pub(crate) fn metric(message: &RouteMessage) -> u32 {
    let metric = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Priority(metric) => Some(*metric),
            _ => None,
        });
    metric.unwrap_or_default()
}

pub(crate) fn key(message: &RouteMessage, family: Family) -> Option<RouteKey> {
    let mut address = match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    for attribute in &message.attributes {
        if let RouteAttribute::Destination(destination) = attribute {
            address = ip(destination)?;
        }
    }
    let destination = IpNet::new(address, message.header.destination_prefix_length)
        .ok()?
        .trunc();
    Some(RouteKey {
        table: table(message),
        destination,
        metric: metric(message),
    })
}

pub(crate) fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

pub(crate) fn action(message: &RouteMessage, devices: &Devices) -> RouteAction {
    match message.header.kind {
        RouteType::Throw => RouteAction::Throw,
        RouteType::Unreachable => RouteAction::Unreachable,
        RouteType::Unicast => {
            let way = group(message)
                .map(RouteAction::Group)
                .or_else(|| link(message, devices));
            let way = way.or_else(|| hops(message, devices).map(RouteAction::Via));
            way.map_or(RouteAction::Other(1), |way| way.limited(mtu(message)))
        }
        _ => RouteAction::Other(1),
    }
}

/// A kernel may report the next hops of one IPv6 route as routes of their own. Two IPv4 routes of
/// one key are two routes.
fn merge(family: Family, earlier: &RouteAction, action: RouteAction) -> RouteAction {
    let copies = |action: &RouteAction| {
        if let RouteAction::Other(copies) = action {
            *copies
        } else {
            1
        }
    };
    match (earlier, action) {
        (RouteAction::Via(earlier), RouteAction::Via(hops)) if family == Family::V6 => {
            RouteAction::Via(earlier.clone().union(hops))
        }
        (RouteAction::Limited(earlier, mtu), RouteAction::Limited(way, other))
            if family == Family::V6 && *mtu == other =>
        {
            merge(family, earlier, *way).limited(Some(*mtu))
        }
        (earlier, action) => RouteAction::Other(copies(earlier) + copies(&action)),
    }
}

/// The largest packet that the route takes, where it says so.
fn mtu(message: &RouteMessage) -> Option<u32> {
    let metrics = message
        .attributes
        .iter()
        .filter_map(|attribute| match attribute {
            RouteAttribute::Metrics(metrics) => Some(metrics),
            _ => None,
        });
    metrics.flatten().find_map(|metric| match metric {
        RouteMetric::Mtu(bytes) => Some(*bytes),
        _ => None,
    })
}

/// The number of the object that the route names. The kernel lists its next hops as well, for those
/// who know no objects.
fn group(message: &RouteMessage) -> Option<u32> {
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::NhId(id) => Some(*id),
            _ => None,
        })
}

/// A route to neighbours: it has a device and nothing that leads on.
fn link(message: &RouteMessage, devices: &Devices) -> Option<RouteAction> {
    let mut device = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => device = devices.name(*index),
            RouteAttribute::Gateway(_)
            | RouteAttribute::Via(_)
            | RouteAttribute::MultiPath(_)
            | RouteAttribute::Encap(_) => return None,
            _ => {}
        }
    }
    device.map(|device| RouteAction::Link(device.to_owned()))
}

fn hops(message: &RouteMessage, devices: &Devices) -> Option<OrdSet<NextHop>> {
    let several = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::MultiPath(hops) => Some(hops),
            _ => None,
        });
    let Some(several) = several else {
        let device = message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                RouteAttribute::Oif(index) => Some(*index),
                _ => None,
            });
        return Some(
            [next_hop(device?, &message.attributes, devices)?]
                .into_iter()
                .collect(),
        );
    };
    // What the kernel calls dead leads nowhere: the difference to what is desired must show.
    let alive = several
        .iter()
        .filter(|hop| !hop.flags.contains(RouteNextHopFlags::Dead));
    alive
        .map(|hop| next_hop(hop.interface_index, &hop.attributes, devices))
        .collect()
}

fn next_hop(index: u32, attributes: &[RouteAttribute], devices: &Devices) -> Option<NextHop> {
    let (mut via, mut encap) = (None, None);
    for attribute in attributes {
        match attribute {
            RouteAttribute::Gateway(gateway) => via = ip(gateway),
            RouteAttribute::Encap(parts) => encap = Some(parse_encapsulation(parts)?),
            RouteAttribute::Via(_) => return None,
            _ => {}
        }
    }
    Some(NextHop {
        device: devices.by_index.get(&index)?.clone(),
        via: via?,
        encap,
    })
}

/// `LWTUNNEL_IP_ID` of `linux/lwtunnel.h`, the same number for both families.
const LWTUNNEL_ID: u16 = 1;
/// `LWTUNNEL_IP_DST`, the same number for both families.
const LWTUNNEL_DESTINATION: u16 = 2;
/// `LWTUNNEL_IP_SRC`, the same number for both families.
const LWTUNNEL_SOURCE: u16 = 3;
/// `LWTUNNEL_IP_TTL` and `LWTUNNEL_IP6_HOPLIMIT`.
const LWTUNNEL_TTL: u16 = 4;

/// Reads by number and bytes: inside a multipath route the kernel says what an encapsulation is
/// only after it. None is what we do not write, such as another time to live.
pub(crate) fn parse_encapsulation(parts: &[RouteLwTunnelEncap]) -> Option<Encap> {
    let (mut id, mut remote, mut source, mut ttl) = (None, None, None, None);
    for part in parts {
        match part {
            RouteLwTunnelEncap::Ip(RouteIpTunnel::Id(number))
            | RouteLwTunnelEncap::Ip6(RouteIp6Tunnel::Id(number)) => id = Some(*number),
            RouteLwTunnelEncap::Ip(RouteIpTunnel::Destination(address)) => {
                remote = Some(IpAddr::V4(*address));
            }
            RouteLwTunnelEncap::Ip6(RouteIp6Tunnel::Destination(address)) => {
                remote = Some(IpAddr::V6(*address));
            }
            RouteLwTunnelEncap::Ip(RouteIpTunnel::Source(address)) => {
                source = Some(IpAddr::V4(*address));
            }
            RouteLwTunnelEncap::Ip6(RouteIp6Tunnel::Source(address)) => {
                source = Some(IpAddr::V6(*address));
            }
            RouteLwTunnelEncap::Ip(RouteIpTunnel::Ttl(hops))
            | RouteLwTunnelEncap::Ip6(RouteIp6Tunnel::Hoplimit(hops)) => ttl = Some(*hops),
            RouteLwTunnelEncap::Other(other) => match (other.kind(), bytes(other)) {
                (LWTUNNEL_ID, bytes) => {
                    id = <[u8; 8]>::try_from(bytes).ok().map(u64::from_be_bytes);
                }
                (LWTUNNEL_DESTINATION, bytes) => remote = address(&bytes),
                (LWTUNNEL_SOURCE, bytes) => source = address(&bytes),
                (LWTUNNEL_TTL, bytes) => ttl = bytes.first().copied(),
                _ => {}
            },
            _ => {}
        }
    }
    let encap = Encap {
        id: u32::try_from(id?).ok()?,
        source: source?,
        remote: remote?,
    };
    (ttl == Some(OUTER_TTL)).then_some(encap)
}

fn bytes(attribute: &DefaultNla) -> Vec<u8> {
    let mut bytes = vec![0; attribute.value_len()];
    attribute.emit_value(&mut bytes);
    bytes
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}
