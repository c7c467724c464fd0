//! The devices of the host as they are at this moment.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use egressgateway::model::MacAddress;
use nix::{
    ifaddrs::{InterfaceAddress, getifaddrs},
    sys::socket::LinkAddr,
};

/// All devices of the calling thread's network namespace, by name.
pub(crate) struct Devices(pub(crate) BTreeMap<String, Device>);

#[derive(Default)]
pub(crate) struct Device {
    link: Option<LinkAddr>,
    pub(super) addresses: Vec<IpAddr>,
}

impl Devices {
    pub(crate) fn read() -> nix::Result<Self> {
        let mut devices: BTreeMap<String, Device> = BTreeMap::new();
        for InterfaceAddress {
            interface_name,
            address,
            ..
        } in getifaddrs()?
        {
            let Some(address) = address else { continue };
            let device = devices.entry(interface_name).or_default();
            device.link = device.link.or(address.as_link_addr().copied());
            let v4 = address
                .as_sockaddr_in()
                .map(|address| IpAddr::from(address.ip()));
            device.addresses.extend(
                v4.or(address
                    .as_sockaddr_in6()
                    .map(|address| IpAddr::from(address.ip()))),
            );
        }
        Ok(Self(devices))
    }

    /// The hardware addresses of this host.
    pub(super) fn macs(&self) -> BTreeSet<MacAddress> {
        self.0
            .values()
            .filter_map(|device| Some(device.ethernet()?.1))
            .collect()
    }
}

impl Device {
    /// Where to send on it, and its hardware address; none on what is no Ethernet, or the loopback,
    /// where nobody asks for addresses.
    pub(crate) fn ethernet(&self) -> Option<(LinkAddr, MacAddress)> {
        let link = self.link?;
        // Anything but 6 bytes is no Ethernet; all zero is the loopback.
        let mac = link
            .addr()
            .filter(|mac| link.halen() == mac.len() && *mac != [0; 6])?;
        Some((link, MacAddress(mac)))
    }
}
