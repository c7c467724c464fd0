//! How the tunnel looks from outside; pure.

use egressgateway::{Encap, Encapsulation, LocalEnd, NextHop, OverlayLinks, Peer, model::Family};

use crate::constants::{DEVICE, PORT, VNI, overhead};

/// What can be chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GeneveSettings {
    /// Virtual network identifier, the same on every node.
    pub vni: u32,
    /// UDP port, the same on every node.
    pub port: u16,
    /// Largest inner packet in bytes; none: what the underlay leaves room for.
    pub mtu: Option<u32>,
}

impl Default for GeneveSettings {
    fn default() -> Self {
        Self {
            vni: VNI,
            port: PORT,
            mtu: None,
        }
    }
}

impl GeneveSettings {
    /// Another virtual network identifier.
    #[must_use]
    pub const fn with_vni(mut self, vni: u32) -> Self {
        self.vni = vni;
        self
    }

    /// Another UDP port.
    #[must_use]
    pub const fn with_port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    /// The largest inner packet in bytes; none: what the underlay leaves room for.
    #[must_use]
    pub const fn with_mtu(mut self, mtu: Option<u32>) -> Self {
        self.mtu = mtu;
        self
    }
}

/// The shape of the tunnel, for plans without a kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GeneveShape(pub GeneveSettings);

impl GeneveShape {
    /// Largest packet that fits into the underlay's, whichever of the families a peer is reached
    /// by; none without an underlay.
    pub(crate) fn room(local: &LocalEnd) -> Option<u32> {
        local
            .underlay
            .iter()
            .map(|(family, underlay)| underlay.mtu.saturating_sub(overhead(*family)))
            .min()
    }

    pub(crate) fn mtu(&self, local: &LocalEnd) -> Option<u32> {
        let room = Self::room(local)?;
        Some(self.0.mtu.unwrap_or(room))
    }

    /// The outer header that leads to a peer: over IPv4 where both ends have it, else over IPv6.
    pub(crate) fn encap(&self, local: &LocalEnd, peer: &Peer) -> Option<Encap> {
        let over = |family| {
            let source = local.underlay.get(&family)?.address;
            Some(Encap {
                id: self.0.vni,
                source,
                remote: peer.underlay(family)?,
            })
        };
        Family::ALL.into_iter().find_map(over)
    }
}

impl Encapsulation for GeneveShape {
    fn kind(&self) -> &'static str {
        "geneve"
    }

    fn has_neighbours(&self) -> bool {
        false
    }

    /// The encapsulation is part of the route that leads away: the kernel does not look for a
    /// peer's.
    fn next_hop(&self, local: &LocalEnd, peer: &Peer, family: Family) -> Option<NextHop> {
        local
            .overlay
            .iter()
            .find(|network| Family::of(network.addr()) == family)?;
        Some(NextHop {
            device: DEVICE.to_owned(),
            via: peer.overlay(family)?,
            encap: Some(self.encap(local, peer)?),
        })
    }

    fn links(&self, local: &LocalEnd) -> OverlayLinks {
        let mtu = self.mtu(local);
        let families = local
            .overlay
            .iter()
            .map(|network| Family::of(network.addr()));
        OverlayLinks {
            devices: mtu
                .into_iter()
                .filter(|_| !local.overlay.is_empty())
                .map(|_| DEVICE.to_owned())
                .collect(),
            port: self.0.port,
            mtu: families.filter_map(|family| Some((family, mtu?))).collect(),
        }
    }
}
