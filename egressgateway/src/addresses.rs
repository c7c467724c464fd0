//! Egress addresses: which of them a node holds and where, and how its neighbours hear of it.

use std::net::IpAddr;

use imbl::{OrdMap, OrdSet};
use ipnet::IpNet;

use crate::Error;

/// The egress addresses that a node answers for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressesDesired {
    /// The device on which neighbours ask for each.
    pub held: OrdMap<IpAddr, String>,
}

/// What a host is attached to, and what it has without us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attachments {
    /// Networks that it is connected to by physical interfaces, and the device of each.
    pub networks: OrdMap<IpNet, String>,
    /// All its addresses on all its devices, apart from egress addresses that a driver of ours put there.
    pub addresses: OrdSet<IpAddr>,
}

/// Tells neighbours where addresses are, so that they need not find out by losing packets.
///
/// The netlink crate has one that sends gratuitous ARP and unsolicited neighbour advertisements; a test can have its own.
pub trait Announcer: Send + Sync {
    /// Tells it once of each address, to all neighbours on its device. What the kernel does not hold there is not announced.
    ///
    /// Returns the addresses that could not be announced, and why.
    fn announce(&self, addresses: &AddressesDesired) -> Vec<(IpAddr, Error)>;
}
