//! What fuzz targets call: readers of frames, packets and netlink messages. This is no API and
//! changes without notice.
//!
//! Each function reads anything, and panics where what it says of itself does not hold.
#![allow(clippy::missing_panics_doc)]

use egressgateway::model::Family;
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;

use crate::{
    address, announce, conntrack, echo, host, link, monitor, neighbour, next_hop, peer_route,
    reset,
    route::{self, Devices},
    rule,
};

/// A frame says who has an address. Its announcement says the same.
pub fn neighbour_frame(bytes: &[u8]) {
    announce::fuzzing::frame(bytes);
}

/// A packet answers a probe.
pub fn echo_reply(bytes: &[u8]) {
    for family in Family::ALL {
        let _ = echo::reply(family, u16::from_be_bytes(*b"eg"), bytes);
    }
}

/// A packet has a segment of TCP. Written and read again, it is the same.
pub fn segment(bytes: &[u8]) {
    reset::fuzz(bytes);
}

/// The kernel's answers about connections are read. What names a connection, written and read
/// again, names the same.
pub fn connections(bytes: &[u8]) {
    conntrack::fuzz(bytes);
}

/// The kernel's messages about next hop objects are read. What they say, written and read again, is
/// the same.
pub fn next_hop(bytes: &[u8]) {
    next_hop::fuzz(bytes, &devices());
}

/// The kernel's messages about links, addresses, neighbours, routes and rules are read, and so are
/// its notifications.
pub fn route_messages(bytes: &[u8]) {
    let _ = monitor::says_something(bytes);
    let mut rest = bytes;
    while let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest) {
        let length = message.header.length as usize;
        assert!(length > 0, "no end");
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        if let NetlinkPayload::InnerMessage(message) = message.payload {
            route_message(&message);
        }
    }
}

fn route_message(message: &RouteNetlinkMessage) {
    match message {
        RouteNetlinkMessage::NewLink(message) => drop(link::parse(message)),
        RouteNetlinkMessage::NewAddress(message) => _ = address::parse(message),
        RouteNetlinkMessage::NewNeighbour(message) => {
            let _ = (
                neighbour::parse_neighbour(message),
                neighbour::parse_fdb(message),
            );
        }
        RouteNetlinkMessage::NewRule(message) => drop(rule::parse(message)),
        RouteNetlinkMessage::NewRoute(message) => {
            let _ = route::action(message, &devices());
            let _ = host::parse_ways(message);
            for family in Family::ALL {
                let _ = route::key(message, family);
                let _ = host::parse_route(message, family);
                let _ = peer_route::parse(message, 7, family);
            }
        }
        _ => {}
    }
}

fn devices() -> Devices {
    Devices::of([(2, "eth0"), (7, "egress-vxlan-v4")])
}
