//! How an agent asks a gateway node whether it is alive.

use std::net::IpAddr;

use async_trait::async_trait;

use crate::Error;

/// Where a probe goes: through the tunnel, never around it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProbeAddress {
    /// The tunnel's device.
    pub device: String,
    /// The node's overlay address.
    pub address: IpAddr,
}

/// Sends probes and hears the answers. The netlink crate has one that sends ICMP echo requests,
/// which the other node's kernel answers; a test can have its own.
#[async_trait]
pub trait Prober: Send + Sync {
    /// Sends one probe, without waiting for anything.
    ///
    /// # Errors
    /// When it could not be sent, such as without the device.
    fn probe(&self, to: &ProbeAddress, number: u16) -> Result<(), Error>;

    /// Waits for the next answer: the address that was probed, and the probe's number. Cancelling
    /// the wait loses nothing.
    async fn answered(&self) -> (IpAddr, u16);
}
