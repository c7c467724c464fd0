//! Routes that tell a metadata-mode device where a peer is.

use std::net::IpAddr;

use egressgateway::{Encap, Error, model::Family};
use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::{
    RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType},
};

use crate::{
    constants::{PEER_PROTOCOL, TABLE_MAIN},
    netlink::{Netlink, address_family},
    route::{self, OutgoingEncap},
};

impl Netlink {
    /// The peers of a device: overlay addresses, with the outer header that each gets; none where a route has none, or one that we do not
    /// write. Only routes of the main table to single addresses with [`PEER_PROTOCOL`].
    ///
    /// # Errors
    /// When the kernel can't be read.
    pub async fn peer_routes(&self, device: u32) -> Result<Vec<(IpAddr, Option<Encap>)>, Error> {
        let mut peers = Vec::new();
        for family in Family::ALL {
            let messages = self.route_messages(family).await?;
            peers.extend(messages.iter().filter_map(|message| parse(message, device, family)));
        }
        Ok(peers)
    }

    /// Adds a peer's route, in the place of the one to the same address.
    ///
    /// # Errors
    /// [`Conflict`](egressgateway::ErrorKind::Conflict) when the device is gone.
    pub async fn replace_peer_route(&self, device: u32, peer: IpAddr, encap: &Encap) -> Result<(), Error> {
        let mut message = message(device, peer);
        message.header.kind = RouteType::Unicast;
        message.header.scope = match peer {
            IpAddr::V4(_) => RouteScope::Link,
            IpAddr::V6(_) => RouteScope::Universe,
        };
        message.attributes.extend(OutgoingEncap(encap).attributes());
        let what = format!("replace route to {peer} over {} on link {device}", encap.remote);
        self.write(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE, &what).await
    }

    /// Deletes a peer's route.
    ///
    /// # Errors
    /// [`Conflict`](egressgateway::ErrorKind::Conflict) when there is none.
    pub async fn delete_peer_route(&self, device: u32, peer: IpAddr) -> Result<(), Error> {
        // Built anew: the crate that encodes messages can't encode every encapsulation that it read.
        let mut message = message(device, peer);
        message.header.scope = RouteScope::NoWhere;
        message.header.kind = RouteType::Unspec;
        self.write(RouteNetlinkMessage::DelRoute(message), 0, &format!("delete route to {peer} on link {device}")).await
    }
}

fn message(device: u32, peer: IpAddr) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(Family::of(peer));
    message.header.destination_prefix_length = IpNet::from(peer).prefix_len();
    message.header.protocol = RouteProtocol::from(PEER_PROTOCOL);
    message.attributes =
        vec![RouteAttribute::Table(TABLE_MAIN), RouteAttribute::Destination(RouteAddress::from(peer)), RouteAttribute::Oif(device)];
    message
}

fn parse(message: &RouteMessage, device: u32, family: Family) -> Option<(IpAddr, Option<Encap>)> {
    let whole = message.header.destination_prefix_length == family.bits();
    if !whole || u8::from(message.header.protocol) != PEER_PROTOCOL || route::table(message) != TABLE_MAIN {
        return None;
    }
    let (mut peer, mut on_device, mut encap) = (None, false, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => peer = route::ip(address),
            RouteAttribute::Oif(index) => on_device = *index == device,
            RouteAttribute::Encap(parts) => encap = route::parse_encapsulation(parts),
            _ => {}
        }
    }
    on_device.then_some((peer?, encap))
}
