//! Routes to the overlay addresses of peers, one for each address: an overlay takes no network's
//! route.

use std::{fmt, net::IpAddr};

use egressgateway::{Encap, Error, ErrorKind, model::Family};
use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType},
};

use crate::{
    constants::{PEER_PROTOCOL, TABLE_MAIN},
    family::address_family,
    netlink::Netlink,
    route::{self, OutgoingEncap, encap_words},
};

/// How a route leads to a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PeerRoute {
    /// By the device alone, which knows the rest.
    Plain,
    /// With the outer header that the peer gets from a metadata-mode device.
    Encap(Encap),
    /// In a way that this crate never asks for.
    Other,
}

impl fmt::Display for PeerRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain => Ok(()),
            Self::Encap(encap) => write!(f, " {}", encap_words(encap)),
            Self::Other => f.write_str(" other"),
        }
    }
}

impl Netlink {
    /// The peers of a device, and how their routes lead there. Only routes of the main table to
    /// single addresses with [`PEER_PROTOCOL`].
    ///
    /// # Errors
    /// When the kernel can't be read.
    pub async fn peer_routes(&self, device: u32) -> Result<Vec<(IpAddr, PeerRoute)>, Error> {
        let mut peers = Vec::new();
        for family in Family::ALL {
            let messages = self.route_messages(family).await?;
            peers.extend(
                messages
                    .iter()
                    .filter_map(|message| parse(message, device, family)),
            );
        }
        Ok(peers)
    }

    /// Adds a peer's route; with `replace`, in the place of the one to the same address.
    ///
    /// # Errors
    /// [`Conflict`](egressgateway::ErrorKind::Conflict) when the device is gone, or a route is to
    /// be added and somebody has one.
    pub async fn set_peer_route(
        &self,
        device: u32,
        peer: IpAddr,
        route: &PeerRoute,
        replace: bool,
    ) -> Result<(), Error> {
        let what = format!(
            "{} route to {peer}{route} on link {device}",
            if replace { "replace" } else { "add" }
        );
        let mut message = message(device, peer);
        message.header.kind = RouteType::Unicast;
        message.header.scope = match peer {
            IpAddr::V4(_) => RouteScope::Link,
            IpAddr::V6(_) => RouteScope::Universe,
        };
        match route {
            PeerRoute::Plain => {}
            PeerRoute::Encap(encap) => message.attributes.extend(OutgoingEncap(encap).attributes()),
            PeerRoute::Other => return Err(Error::new(ErrorKind::Invalid, what)),
        }
        let flags = NLM_F_CREATE | if replace { NLM_F_REPLACE } else { NLM_F_EXCL };
        self.write(RouteNetlinkMessage::NewRoute(message), flags, &what)
            .await
    }

    /// Deletes a peer's route.
    ///
    /// # Errors
    /// [`Conflict`](egressgateway::ErrorKind::Conflict) when there is none.
    pub async fn delete_peer_route(&self, device: u32, peer: IpAddr) -> Result<(), Error> {
        // Built anew: the crate that encodes messages can't encode every encapsulation that it
        // read.
        let mut message = message(device, peer);
        message.header.scope = RouteScope::NoWhere;
        message.header.kind = RouteType::Unspec;
        self.write(
            RouteNetlinkMessage::DelRoute(message),
            0,
            &format!("delete route to {peer} on link {device}"),
        )
        .await
    }
}

fn message(device: u32, peer: IpAddr) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(Family::of(peer));
    message.header.destination_prefix_length = IpNet::from(peer).prefix_len();
    message.header.protocol = RouteProtocol::from(PEER_PROTOCOL);
    message.attributes = vec![
        RouteAttribute::Table(TABLE_MAIN),
        RouteAttribute::Destination(RouteAddress::from(peer)),
        RouteAttribute::Oif(device),
    ];
    message
}

pub(crate) fn parse(
    message: &RouteMessage,
    device: u32,
    family: Family,
) -> Option<(IpAddr, PeerRoute)> {
    let whole = message.header.destination_prefix_length == family.bits();
    if !whole
        || u8::from(message.header.protocol) != PEER_PROTOCOL
        || route::table(message) != TABLE_MAIN
    {
        return None;
    }
    let (mut peer, mut on_device, mut route) = (None, false, PeerRoute::Plain);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => peer = route::ip(address),
            RouteAttribute::Oif(index) => on_device = *index == device,
            RouteAttribute::Encap(parts) => {
                route =
                    route::parse_encapsulation(parts).map_or(PeerRoute::Other, PeerRoute::Encap);
            }
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => route = PeerRoute::Other,
            _ => {}
        }
    }
    on_device.then_some((peer?, route))
}
