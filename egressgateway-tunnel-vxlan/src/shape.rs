//! How the tunnel looks from outside; pure.

use egressgateway::{
    Encapsulation, LocalEnd, NextHop, OverlayLinks, Peer, Underlay, model::Family,
};
use ipnet::IpNet;

use crate::constants::{OVERHEAD_V4, OVERHEAD_V6, PORT, VNI, device};

/// What can be chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct VxlanSettings {
    /// Virtual network identifier, the same on every node.
    pub vni: u32,
    /// UDP port, the same on every node.
    pub port: u16,
    /// Largest inner packet in bytes; none: what the underlay leaves room for.
    pub mtu: Option<u32>,
}

impl Default for VxlanSettings {
    fn default() -> Self {
        Self {
            vni: VNI,
            port: PORT,
            mtu: None,
        }
    }
}

impl VxlanSettings {
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
pub struct VxlanShape(pub VxlanSettings);

impl VxlanShape {
    /// Underlay and overlay address of a family, where the local end has both.
    pub(crate) fn end(local: &LocalEnd, family: Family) -> Option<(&Underlay, IpNet)> {
        let overlay = local
            .overlay
            .iter()
            .copied()
            .find(|network| Family::of(network.addr()) == family)?;
        Some((local.underlay.get(&family)?, overlay))
    }

    /// Largest packet that fits into the underlay's.
    pub(crate) fn room(underlay: &Underlay, family: Family) -> u32 {
        let overhead = match family {
            Family::V4 => OVERHEAD_V4,
            Family::V6 => OVERHEAD_V6,
        };
        underlay.mtu.saturating_sub(overhead)
    }

    pub(crate) fn mtu(&self, underlay: &Underlay, family: Family) -> u32 {
        self.0.mtu.unwrap_or_else(|| Self::room(underlay, family))
    }
}

impl Encapsulation for VxlanShape {
    fn kind(&self) -> &'static str {
        "vxlan"
    }

    fn next_hop(&self, local: &LocalEnd, peer: &Peer, family: Family) -> Option<NextHop> {
        Self::end(local, family)?;
        peer.underlay(family)?;
        Some(NextHop {
            device: device(family).to_owned(),
            via: peer.overlay(family)?,
            encap: None,
        })
    }

    fn links(&self, local: &LocalEnd) -> OverlayLinks {
        let ends = || {
            Family::ALL
                .into_iter()
                .filter_map(|family| Some((family, Self::end(local, family)?.0)))
        };
        OverlayLinks {
            devices: ends()
                .map(|(family, _)| device(family).to_owned())
                .collect(),
            port: self.0.port,
            mtu: ends()
                .map(|(family, underlay)| (family, self.mtu(underlay, family)))
                .collect(),
        }
    }
}
