//! Addresses of devices.

use std::net::IpAddr;

use egressgateway::{Error, model::Family};
use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    address::{
        AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope, CacheInfo,
    },
};

use crate::{constants::ADDRESS_METRIC, family::address_family, netlink::Netlink};

/// A lifetime that never ends (`INFINITY_LIFE_TIME` of `net/addrconf.h`).
const FOREVER: u32 = u32::MAX;

/// An address of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Index of the device.
    pub device: u32,
    /// The address and the length of its network's prefix.
    pub network: IpNet,
    /// Whether it means this host anywhere, not only on the link.
    pub global: bool,
    /// Whether the kernel prefers it as a source: neither deprecated, nor waiting for or failed in
    /// duplicate detection, nor subordinate to another one of its network.
    pub preferred: bool,
    /// Metric of the route to its network; 0 where none was given.
    pub metric: u32,
    /// Whether the kernel made no route to its network.
    pub without_route: bool,
}

impl Address {
    /// Whether it is an egress address that a driver of ours put there.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.metric == ADDRESS_METRIC
    }
}

impl Netlink {
    /// All addresses of all devices, in the kernel's order of preference for each device.
    ///
    /// # Errors
    /// When the kernel can't be read.
    pub async fn addresses(&self) -> Result<Vec<Address>, Error> {
        let replies = self
            .dump(
                RouteNetlinkMessage::GetAddress(AddressMessage::default()),
                "list addresses",
            )
            .await?;
        let addresses = replies.into_iter().filter_map(|reply| match reply {
            RouteNetlinkMessage::NewAddress(message) => parse(&message),
            _ => None,
        });
        Ok(addresses.collect())
    }

    /// Adds an address to a device; an IPv6 one can be used at once, without duplicate detection.
    ///
    /// # Errors
    /// [`Conflict`](egressgateway::ErrorKind::Conflict) when the device has it or is gone.
    pub async fn add_address(&self, device: u32, network: IpNet) -> Result<(), Error> {
        let mut message = message(device, network);
        if Family::of(network.addr()) == Family::V6 {
            message.header.flags = AddressHeaderFlags::Nodad;
        }
        let what = format!("add address {network} to link {device}");
        self.write(
            RouteNetlinkMessage::NewAddress(message),
            NLM_F_CREATE | NLM_F_EXCL,
            &what,
        )
        .await
    }

    /// Adds an egress address to a device, marked as ours, in a way that leaves the host's own
    /// traffic alone: without a route to a network, and, IPv6, deprecated from the beginning, so
    /// that nothing is sent from it unasked.
    ///
    /// An IPv4 address has nothing like that; the kernel puts it behind those that the device has,
    /// and takes the first.
    ///
    /// # Errors
    /// As [`Self::add_address`].
    pub async fn add_egress_address(&self, device: u32, network: IpNet) -> Result<(), Error> {
        let mut message = message(device, network);
        let mut flags = AddressFlags::Noprefixroute;
        message
            .attributes
            .push(AddressAttribute::RoutePriority(ADDRESS_METRIC));
        if Family::of(network.addr()) == Family::V6 {
            flags |= AddressFlags::Nodad;
            let mut lifetimes = CacheInfo::default();
            (lifetimes.ifa_preferred, lifetimes.ifa_valid) = (0, FOREVER);
            message
                .attributes
                .push(AddressAttribute::CacheInfo(lifetimes));
        }
        message.attributes.push(AddressAttribute::Flags(flags));
        let what = format!("add egress address {network} to link {device}");
        self.write(
            RouteNetlinkMessage::NewAddress(message),
            NLM_F_CREATE | NLM_F_EXCL,
            &what,
        )
        .await
    }

    /// Deletes an address of a device.
    ///
    /// # Errors
    /// [`Conflict`](egressgateway::ErrorKind::Conflict) when the device does not have it or is
    /// gone.
    pub async fn delete_address(&self, device: u32, network: IpNet) -> Result<(), Error> {
        let what = format!("delete address {network} of link {device}");
        self.write(
            RouteNetlinkMessage::DelAddress(message(device, network)),
            0,
            &what,
        )
        .await
    }
}

fn message(device: u32, network: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = address_family(Family::of(network.addr()));
    message.header.prefix_len = network.prefix_len();
    message.header.index = device;
    message.header.scope = AddressScope::Universe;
    message.attributes = vec![
        AddressAttribute::Local(network.addr()),
        AddressAttribute::Address(network.addr()),
    ];
    message
}

pub(crate) fn parse(message: &AddressMessage) -> Option<Address> {
    let (mut local, mut address, mut metric) = (None::<IpAddr>, None, 0);
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Flags(all) => flags = *all,
            AddressAttribute::RoutePriority(priority) => metric = *priority,
            _ => {}
        }
    }
    let unusable = AddressFlags::Deprecated
        | AddressFlags::Tentative
        | AddressFlags::Dadfailed
        | AddressFlags::Secondary;
    Some(Address {
        device: message.header.index,
        // On a point-to-point link the second is the peer's.
        network: IpNet::new(local.or(address)?, message.header.prefix_len).ok()?,
        global: message.header.scope == AddressScope::Universe,
        preferred: !flags.intersects(unusable),
        metric,
        without_route: flags.contains(AddressFlags::Noprefixroute),
    })
}
