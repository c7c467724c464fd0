//! The device, as it is or as it must be.

use std::net::IpAddr;

use egressgateway::{Error, ErrorKind, LocalEnd, TunnelDesired, model::Family};
use egressgateway_netlink::{GeneveLink, OverlayDevice, PeerRoute};
use ipnet::IpNet;

use crate::{
    constants::{DEVICE, MTU_MIN_V4, MTU_MIN_V6},
    shape::GeneveShape,
};

/// What the driver owns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct GeneveState {
    /// The device.
    pub device: Option<Device>,
    /// Whether the device's name belongs to somebody else.
    pub taken: bool,
    /// Whether the kernel has no IPv6 at all.
    pub without_ipv6: bool,
}

/// A device that is ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// What cannot change during its life; none when it is no Geneve device.
    pub geneve: Option<GeneveLink>,
    /// Its link, addresses, neighbours and routes.
    pub link: OverlayDevice,
}

impl GeneveState {
    /// What a kernel must hold.
    pub(crate) fn of(
        desired: &TunnelDesired,
        shape: &GeneveShape,
        current: &Self,
    ) -> Result<Self, Error> {
        let device = match &desired.local {
            Some(local) => Device::of(desired, local, shape)?,
            None => None,
        };
        Ok(Self {
            device,
            ..current.clone()
        })
    }
}

impl Device {
    fn of(
        desired: &TunnelDesired,
        local: &LocalEnd,
        shape: &GeneveShape,
    ) -> Result<Option<Self>, Error> {
        let (Some(mtu), Some(room), false) = (
            shape.mtu(local),
            GeneveShape::room(local),
            local.overlay.is_empty(),
        ) else {
            return Ok(None);
        };
        check_mtu(mtu, room, local)?;
        let mut link = OverlayDevice::new(local.mac, mtu);
        // Whole addresses: a network's route would lead packets into the device without an outer
        // header.
        link.addresses = local
            .overlay
            .iter()
            .map(|network| IpNet::from(network.addr()))
            .collect();
        for peer in desired.peers.values().filter(|peer| peer.mac != local.mac) {
            let Some(encap) = shape.encap(local, peer) else {
                continue;
            };
            let carried = |address: &&IpAddr| {
                local
                    .overlay
                    .iter()
                    .any(|own| Family::of(own.addr()) == Family::of(**address))
            };
            for address in peer.overlay.iter().filter(carried) {
                // While an address moves from one peer to another both may have it: the first by
                // name, until one of them goes.
                if !link.routes.contains_key(address) {
                    link.routes
                        .insert(*address, PeerRoute::Encap(encap.clone()));
                    link.neighbours.insert(*address, peer.mac);
                }
            }
        }
        let geneve = GeneveLink {
            port: shape.0.port,
            external: true,
            without_ethernet: false,
        };
        Ok(Some(Self {
            geneve: Some(geneve),
            link,
        }))
    }

    /// The device right after its creation.
    pub(crate) fn created(&self, without_ipv6: bool) -> Self {
        Self {
            geneve: self.geneve.clone(),
            link: self.link.created(without_ipv6),
        }
    }

    /// Whether it can become `wanted` without being made anew. Above the smallest size of IPv6
    /// packets the kernel would start IPv6 on the device with its own defaults.
    pub(crate) fn can_become(&self, wanted: &Self) -> bool {
        self.geneve == wanted.geneve
            && !(self.link.mtu < MTU_MIN_V6 && wanted.link.mtu >= MTU_MIN_V6)
    }
}

fn check_mtu(mtu: u32, room: u32, local: &LocalEnd) -> Result<(), Error> {
    let carries_v6 = local
        .overlay
        .iter()
        .any(|network| Family::of(network.addr()) == Family::V6);
    let (least, family) = if carries_v6 {
        (MTU_MIN_V6, Family::V6)
    } else {
        (MTU_MIN_V4, Family::V4)
    };
    if mtu > room {
        return Err(Error::new(
            ErrorKind::Invalid,
            format!("MTU {mtu} of {DEVICE}: the underlay leaves room for {room} bytes"),
        ));
    }
    if mtu < least {
        return Err(Error::new(
            ErrorKind::Invalid,
            format!("MTU {mtu} of {DEVICE}: {family} needs {least} bytes"),
        ));
    }
    Ok(())
}
