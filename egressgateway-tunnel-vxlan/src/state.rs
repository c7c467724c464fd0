//! The devices, as they are or as they must be.

use std::net::IpAddr;

use egressgateway::{
    Error, ErrorKind, LocalEnd, TunnelDesired,
    model::{Family, MacAddress},
};
use egressgateway_netlink::{OverlayDevice, PeerRoute, VxlanLink};
use imbl::{OrdMap, OrdSet};
use ipnet::IpNet;

use crate::{
    constants::{MTU_MIN_V4, MTU_MIN_V6, device},
    shape::VxlanShape,
};

/// What the driver owns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct VxlanState {
    /// The device of each family.
    pub devices: OrdMap<Family, Device>,
    /// Families whose device name belongs to somebody else.
    pub taken: OrdSet<Family>,
    /// Whether the kernel has no IPv6 at all.
    pub without_ipv6: bool,
}

/// A device that is ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// What cannot change during its life; none when it is no VXLAN device.
    pub vxlan: Option<VxlanLink>,
    /// Its link, addresses, neighbours and routes.
    pub link: OverlayDevice,
    /// Where hardware addresses are.
    pub fdb: OrdMap<MacAddress, OrdSet<Remote>>,
}

/// An outer destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Remote {
    /// Its address.
    pub address: IpAddr,
    /// Index of the device that outer packets leave by.
    pub via: Option<u32>,
}

impl VxlanState {
    /// What a kernel must hold.
    pub(crate) fn of(
        desired: &TunnelDesired,
        shape: &VxlanShape,
        current: &Self,
    ) -> Result<Self, Error> {
        let mut state = Self {
            devices: OrdMap::new(),
            ..current.clone()
        };
        let Some(local) = &desired.local else {
            return Ok(state);
        };
        for family in Family::ALL {
            if let Some(device) = Device::of(desired, local, shape, family)? {
                state.devices.insert(family, device);
            }
        }
        Ok(state)
    }
}

impl Device {
    fn of(
        desired: &TunnelDesired,
        local: &LocalEnd,
        shape: &VxlanShape,
        family: Family,
    ) -> Result<Option<Self>, Error> {
        let Some((underlay, overlay)) = VxlanShape::end(local, family) else {
            return Ok(None);
        };
        let mtu = shape.mtu(underlay, family);
        check_mtu(mtu, VxlanShape::room(underlay, family), family)?;
        let (mut fdb, mut link) = (OrdMap::new(), OverlayDevice::new(local.mac, mtu));
        // A whole address: the network's route would take what others have in that network away
        // from the host.
        link.addresses.insert(IpNet::from(overlay.addr()));
        for peer in desired.peers.values().filter(|peer| peer.mac != local.mac) {
            let Some(outer) = peer.underlay(family) else {
                continue;
            };
            for inner in peer.overlays(family) {
                // While an address moves from one peer to another both may have it: the first by
                // name, until one of them goes.
                fdb.entry(peer.mac).or_insert_with(|| {
                    OrdSet::unit(Remote {
                        address: outer,
                        via: Some(underlay.index),
                    })
                });
                link.neighbours.entry(inner).or_insert(peer.mac);
                link.routes.insert(inner, PeerRoute::Plain);
            }
        }
        let settings = &shape.0;
        let vxlan = VxlanLink {
            vni: settings.vni,
            port: settings.port,
            local: Some(underlay.address),
            parent: Some(underlay.index),
            learning: false,
            external: false,
        };
        Ok(Some(Self {
            vxlan: Some(vxlan),
            link,
            fdb,
        }))
    }

    /// Whether it can become `wanted` without being made anew. Above the smallest size of IPv6
    /// packets the kernel would start IPv6 on the device with its own defaults.
    pub(crate) fn can_become(&self, wanted: &Self) -> bool {
        self.vxlan == wanted.vxlan && !(self.link.mtu < MTU_MIN_V6 && wanted.link.mtu >= MTU_MIN_V6)
    }
}

fn check_mtu(mtu: u32, room: u32, family: Family) -> Result<(), Error> {
    let least = match family {
        Family::V4 => MTU_MIN_V4,
        Family::V6 => MTU_MIN_V6,
    };
    let name = device(family);
    if mtu > room {
        return Err(Error::new(
            ErrorKind::Invalid,
            format!("MTU {mtu} of {name}: the underlay leaves room for {room} bytes"),
        ));
    }
    if mtu < least {
        return Err(Error::new(
            ErrorKind::Invalid,
            format!("MTU {mtu} of {name}: {family} needs {least} bytes"),
        ));
    }
    Ok(())
}
