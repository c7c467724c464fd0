//! Telling the neighbours of a link where an address is.

use std::{
    net::IpAddr,
    os::fd::{AsRawFd as _, OwnedFd},
};

use egressgateway::{AddressesDesired, Announcer, Error, ErrorKind};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, sendto, socket};

use super::{devices::Devices, frames};

/// Sends gratuitous ARP (a request and an answer, because some listen to one of them only) and
/// unsolicited neighbour advertisements.
///
/// `CAP_NET_RAW` is needed. It speaks in the network namespace of the calling thread, past the
/// host's packet filters. On a device without Ethernet addresses nobody asks where an address is,
/// and nothing is sent.
#[derive(Debug, Default)]
pub struct NeighbourAnnouncer(());

impl NeighbourAnnouncer {
    /// Nothing is opened before the first announcement.
    #[must_use]
    pub fn new() -> Self {
        Self(())
    }
}

impl Announcer for NeighbourAnnouncer {
    fn announce(&self, addresses: &AddressesDesired) -> Vec<(IpAddr, Error)> {
        let batch = match Batch::begin() {
            Ok(batch) => batch,
            Err(error) => {
                let failed =
                    |address: &IpAddr| Error::from_io(error.into(), format!("announce {address}"));
                return addresses
                    .held
                    .keys()
                    .map(|address| (*address, failed(address)))
                    .collect();
            }
        };
        let announce = |(address, device): (&IpAddr, &String)| {
            Some((*address, batch.announce(*address, device).err()?))
        };
        addresses.held.iter().filter_map(announce).collect()
    }
}

/// What the host has at this moment, and a socket.
struct Batch {
    socket: OwnedFd,
    devices: Devices,
}

impl Batch {
    fn begin() -> nix::Result<Self> {
        // With no protocol it hears nothing.
        let socket = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            None,
        )?;
        Ok(Self {
            socket,
            devices: Devices::read()?,
        })
    }

    fn announce(&self, address: IpAddr, name: &str) -> Result<(), Error> {
        let what = || format!("announce {address} on {name}");
        let device = self
            .devices
            .0
            .get(name)
            .filter(|device| device.addresses.contains(&address));
        let missing = || {
            Error::new(
                ErrorKind::Conflict,
                format!("{}: the device does not have it", what()),
            )
        };
        let Some((link, mac)) = device.ok_or_else(missing)?.ethernet() else {
            return Ok(());
        };
        for frame in frames::announcements(address, mac) {
            sendto(self.socket.as_raw_fd(), &frame, &link, MsgFlags::empty())
                .map_err(|error| Error::from_io(error.into(), what()))?;
        }
        Ok(())
    }
}
