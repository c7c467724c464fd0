//! The overlay between nodes: what it must hold, and what a tunnel driver promises.

use std::net::IpAddr;

use imbl::{OrdMap, OrdSet, ordmap::DiffItem};
use ipnet::IpNet;

use super::steering::NextHop;
use crate::{
    driver::Driver,
    model::{Family, MacAddress, NodeName},
};

/// Local end and remote ends of the overlay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TunnelDesired {
    /// This node's end; none: no tunnel, its devices go.
    pub local: Option<LocalEnd>,
    /// Remote ends.
    pub peers: OrdMap<NodeName, Peer>,
}

impl TunnelDesired {
    /// What the kernel must hold while traffic moves from `self` to `next`: the next local end, and
    /// every peer of either (as `next` describes it where both know it, and with the overlay
    /// addresses that it had).
    #[must_use]
    pub fn union(&self, next: &Self) -> Self {
        let mut peers = next.peers.clone();
        let differences: Vec<_> = self.peers.diff(&next.peers).collect();
        if !differences.is_empty() {
            let given: OrdSet<IpAddr> = next
                .peers
                .values()
                .flat_map(|peer| peer.overlay.iter().copied())
                .collect();
            let former = |peer: &Peer| peer.overlay.clone().relative_complement(given.clone());
            for difference in differences {
                let (name, peer) = match difference {
                    DiffItem::Add(..) => continue,
                    DiffItem::Remove(name, old) => (
                        name,
                        Peer {
                            overlay: former(old),
                            ..old.clone()
                        },
                    ),
                    DiffItem::Update {
                        old: (_, old),
                        new: (name, new),
                    } => (
                        name,
                        Peer {
                            overlay: new.overlay.clone().union(former(old)),
                            ..new.clone()
                        },
                    ),
                };
                peers.insert(name.clone(), peer);
            }
        }
        Self {
            local: next.local.clone(),
            peers,
        }
    }
}

/// This node's end of the overlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalEnd {
    /// Overlay addresses with the prefix length of the overlay, at most one of each family.
    pub overlay: OrdSet<IpNet>,
    /// Overlay hardware address.
    pub mac: MacAddress,
    /// What outer packets leave by, for each family that the node has.
    pub underlay: OrdMap<Family, Underlay>,
}

/// The device and address that outer packets of one family leave by, as read from the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Underlay {
    /// Name of the device.
    pub device: String,
    /// Its index.
    pub index: u32,
    /// The outer address.
    pub address: IpAddr,
    /// Largest packet on the device, in bytes.
    pub mtu: u32,
}

/// Remote end of the overlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Overlay addresses, at most one of each family; while it changes, the former one too.
    pub overlay: OrdSet<IpAddr>,
    /// Outer addresses, at most one of each family.
    pub underlay: OrdSet<IpAddr>,
    /// Overlay hardware address.
    pub mac: MacAddress,
    /// Largest packets that it takes in, in bytes, as far as it says so.
    pub mtu: OrdMap<Family, u32>,
}

impl Peer {
    /// Its overlay address of a family.
    #[must_use]
    pub fn overlay(&self, family: Family) -> Option<IpAddr> {
        self.overlays(family).next()
    }

    /// All its overlay addresses of a family.
    pub fn overlays(&self, family: Family) -> impl Iterator<Item = IpAddr> {
        self.overlay
            .iter()
            .copied()
            .filter(move |address| Family::of(*address) == family)
    }

    /// Its outer address of a family.
    #[must_use]
    pub fn underlay(&self, family: Family) -> Option<IpAddr> {
        self.underlay
            .iter()
            .copied()
            .find(|address| Family::of(*address) == family)
    }
}

/// The devices of an overlay as routing and packet filters see them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverlayLinks {
    /// Names of the devices that steered traffic leaves and enters by.
    pub devices: OrdSet<String>,
    /// Outer UDP port.
    pub port: u16,
    /// Largest inner packet in bytes, for each family that the overlay carries.
    pub mtu: OrdMap<Family, u32>,
}

/// How a kind of tunnel looks from outside; pure, so that plans can be made without a kernel.
pub trait Encapsulation: Send + Sync {
    /// "vxlan", "geneve".
    fn kind(&self) -> &'static str;

    /// How a route reaches a peer from a local end with packets of a family; none where the tunnel
    /// has no way between the two for that family.
    fn next_hop(&self, local: &LocalEnd, peer: &Peer, family: Family) -> Option<NextHop>;

    /// Whether peers are neighbours on its devices, so that who forwards to one of them needs no
    /// route. False where each packet takes its outer header from its route.
    fn has_neighbours(&self) -> bool {
        true
    }

    /// The devices that this local end has.
    fn links(&self, local: &LocalEnd) -> OverlayLinks;
}

/// An overlay between nodes.
pub trait Tunnel: Driver<Desired = TunnelDesired> + Encapsulation {}

impl<T: Driver<Desired = TunnelDesired> + Encapsulation> Tunnel for T {}
