//! What the agent must know of its host, and how it learns that somebody else changed it.

use std::net::IpAddr;

use async_trait::async_trait;
use imbl::{OrdMap, OrdSet};
use ipnet::IpNet;

use crate::{
    Attachments, Error, Underlay,
    model::{Family, Interface},
};

/// A network that the host reaches, or an address that it has, by other means than ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostRoute {
    /// The network; a whole address where the host has it.
    pub network: IpNet,
    /// The device that leads there, or has the address; empty where the host refuses what goes
    /// there.
    pub device: String,
    /// The next router; none where whoever has an address of the network is on the link.
    pub gateway: Option<IpAddr>,
}

/// Facts of a host, read from its kernel. The netlink crate has the implementation; a test can have
/// its own.
#[async_trait]
pub trait Host: Send + Sync {
    /// What outer packets of each family leave by; a family that the host does not have is absent.
    ///
    /// # Errors
    /// When the kernel can't be read, or the configured parent device does not exist.
    async fn underlay(&self) -> Result<OrdMap<Family, Underlay>, Error>;

    /// Physical interfaces with their global addresses, sorted by name.
    ///
    /// # Errors
    /// When the kernel can't be read.
    async fn interfaces(&self) -> Result<Vec<Interface>, Error>;

    /// What decides where egress addresses go. By default nothing: they go to the underlay's
    /// device.
    ///
    /// # Errors
    /// When the kernel can't be read.
    async fn attachments(&self) -> Result<Attachments, Error> {
        Ok(Attachments::default())
    }

    /// Where the host sends packets, and what it takes in, by other means than ours: the main
    /// table's routes but the default ones, and all addresses. By default nothing.
    ///
    /// # Errors
    /// When the kernel can't be read.
    async fn routes(&self) -> Result<OrdSet<HostRoute>, Error> {
        Ok(OrdSet::new())
    }

    /// Waits until links, addresses, routes, rules or neighbours of the host changed since the last
    /// call, whoever changed them.
    ///
    /// Several changes may be reported as one. Cancelling the wait loses nothing.
    ///
    /// # Errors
    /// When notifications were lost or the kernel can't be listened to: read everything again.
    async fn changed(&self) -> Result<(), Error>;
}
