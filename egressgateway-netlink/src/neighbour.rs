//! Neighbours: hardware addresses of overlay addresses, and outer addresses of hardware addresses
//! (the forwarding database).

use std::net::IpAddr;

use egressgateway::{
    Error,
    model::{Family, MacAddress},
};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
    },
};

use crate::{family::address_family, netlink::Netlink};

/// A permanent neighbour: who has an address on a link.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Neighbour {
    /// Index of the device.
    pub device: u32,
    /// The address.
    pub address: IpAddr,
    /// The hardware address.
    pub mac: MacAddress,
}

/// An entry of a VXLAN device's forwarding database: where the host with a hardware address is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FdbEntry {
    /// Index of the device.
    pub device: u32,
    /// The hardware address.
    pub mac: MacAddress,
    /// Outer destination.
    pub remote: IpAddr,
    /// Index of the device that outer packets leave by.
    pub via: Option<u32>,
}

impl Netlink {
    /// The permanent neighbours of a device, of both families.
    ///
    /// # Errors
    /// When the kernel can't be read.
    pub async fn neighbours(&self, device: u32) -> Result<Vec<Neighbour>, Error> {
        let mut neighbours = Vec::new();
        for family in Family::ALL {
            let messages = self
                .neighbour_messages(address_family(family), device)
                .await?;
            let permanent = messages
                .iter()
                .filter(|message| message.header.state == NeighbourState::Permanent);
            neighbours.extend(
                permanent
                    .filter_map(parse_neighbour)
                    .filter(|neighbour| Family::of(neighbour.address) == family),
            );
        }
        Ok(neighbours)
    }

    /// The hardware address that the kernel knows of a neighbour, whoever told it.
    pub(crate) async fn mac_of(
        &self,
        device: u32,
        address: IpAddr,
    ) -> Result<Option<MacAddress>, Error> {
        let messages = self
            .neighbour_messages(address_family(Family::of(address)), device)
            .await?;
        Ok(messages
            .iter()
            .find(|message| destination(message) == Some(address))
            .and_then(mac))
    }

    /// Adds a permanent neighbour, in the place of what its address had before.
    ///
    /// # Errors
    /// [`Conflict`](egressgateway::ErrorKind::Conflict) when the device is gone.
    pub async fn replace_neighbour(&self, neighbour: &Neighbour) -> Result<(), Error> {
        let mut message = neighbour_message(neighbour);
        message.header.state = NeighbourState::Permanent;
        message
            .attributes
            .push(NeighbourAttribute::LinkLayerAddress(
                neighbour.mac.0.to_vec(),
            ));
        let what = format!(
            "replace neighbour {} of link {}",
            neighbour.address, neighbour.device
        );
        self.write(
            RouteNetlinkMessage::NewNeighbour(message),
            NLM_F_CREATE | NLM_F_REPLACE,
            &what,
        )
        .await
    }

    /// Deletes a neighbour.
    ///
    /// # Errors
    /// [`Conflict`](egressgateway::ErrorKind::Conflict) when there is none, or the device is gone.
    pub async fn delete_neighbour(&self, neighbour: &Neighbour) -> Result<(), Error> {
        let what = format!(
            "delete neighbour {} of link {}",
            neighbour.address, neighbour.device
        );
        self.write(
            RouteNetlinkMessage::DelNeighbour(neighbour_message(neighbour)),
            0,
            &what,
        )
        .await
    }

    /// The forwarding database of a VXLAN device. Entries with a group of destinations count as
    /// several.
    ///
    /// # Errors
    /// When the kernel can't be read.
    pub async fn fdb(&self, device: u32) -> Result<Vec<FdbEntry>, Error> {
        let messages = self
            .neighbour_messages(AddressFamily::Bridge, device)
            .await?;
        Ok(messages.iter().filter_map(parse_fdb).collect())
    }

    /// Adds an entry to a forwarding database; if there is one for the hardware address, in its
    /// place.
    ///
    /// # Errors
    /// [`Conflict`](egressgateway::ErrorKind::Conflict) when the device is gone.
    pub async fn replace_fdb(&self, entry: &FdbEntry) -> Result<(), Error> {
        let mut message = fdb_message(entry.device, entry.mac);
        message.header.state = NeighbourState::Permanent;
        message
            .attributes
            .push(NeighbourAttribute::Destination(neighbour_address(
                entry.remote,
            )));
        message
            .attributes
            .extend(entry.via.map(NeighbourAttribute::IfIndex));
        let what = format!(
            "replace forwarding entry {} of link {}",
            entry.mac, entry.device
        );
        self.write(
            RouteNetlinkMessage::NewNeighbour(message),
            NLM_F_CREATE | NLM_F_REPLACE,
            &what,
        )
        .await
    }

    /// Deletes what a forwarding database has for a hardware address, wherever it leads.
    ///
    /// # Errors
    /// [`Conflict`](egressgateway::ErrorKind::Conflict) when there is nothing, or the device is
    /// gone.
    pub async fn delete_fdb(&self, device: u32, mac: MacAddress) -> Result<(), Error> {
        let what = format!("delete forwarding entry {mac} of link {device}");
        self.write(
            RouteNetlinkMessage::DelNeighbour(fdb_message(device, mac)),
            0,
            &what,
        )
        .await
    }

    async fn neighbour_messages(
        &self,
        family: AddressFamily,
        device: u32,
    ) -> Result<Vec<NeighbourMessage>, Error> {
        let mut request = NeighbourMessage::default();
        request.header.family = family;
        let replies = self
            .dump(
                RouteNetlinkMessage::GetNeighbour(request),
                "list neighbours",
            )
            .await?;
        let messages = replies.into_iter().filter_map(|reply| match reply {
            RouteNetlinkMessage::NewNeighbour(message) => Some(message),
            _ => None,
        });
        Ok(messages
            .filter(|message| message.header.ifindex == device && message.header.family == family)
            .collect())
    }
}

fn neighbour_message(neighbour: &Neighbour) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = address_family(Family::of(neighbour.address));
    message.header.ifindex = neighbour.device;
    message
        .attributes
        .push(NeighbourAttribute::Destination(neighbour_address(
            neighbour.address,
        )));
    message
}

fn fdb_message(device: u32, mac: MacAddress) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = device;
    message.header.flags = NeighbourFlags::Own;
    message
        .attributes
        .push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    message
}

fn neighbour_address(address: IpAddr) -> NeighbourAddress {
    match address {
        IpAddr::V4(address) => NeighbourAddress::Inet(address),
        IpAddr::V6(address) => NeighbourAddress::Inet6(address),
    }
}

pub(crate) fn parse_neighbour(message: &NeighbourMessage) -> Option<Neighbour> {
    Some(Neighbour {
        device: message.header.ifindex,
        address: destination(message)?,
        mac: mac(message)?,
    })
}

pub(crate) fn parse_fdb(message: &NeighbourMessage) -> Option<FdbEntry> {
    let via = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            NeighbourAttribute::IfIndex(index) => Some(*index),
            _ => None,
        });
    Some(FdbEntry {
        device: message.header.ifindex,
        mac: mac(message)?,
        remote: destination(message)?,
        via,
    })
}

fn mac(message: &NeighbourMessage) -> Option<MacAddress> {
    let octets = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            NeighbourAttribute::LinkLayerAddress(octets) => Some(octets.as_slice()),
            _ => None,
        });
    <[u8; 6]>::try_from(octets?).ok().map(MacAddress)
}

fn destination(message: &NeighbourMessage) -> Option<IpAddr> {
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => {
                Some(IpAddr::V4(*address))
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => {
                Some(IpAddr::V6(*address))
            }
            // In a forwarding database the kernel says the address without its family.
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => match bytes.len() {
                4 => <[u8; 4]>::try_from(bytes.as_slice()).ok().map(IpAddr::from),
                16 => <[u8; 16]>::try_from(bytes.as_slice())
                    .ok()
                    .map(IpAddr::from),
                _ => None,
            },
            _ => None,
        })
}
