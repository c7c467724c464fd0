//! What a gateway does for connections that are translated on their pods' own nodes: it passes them
//! on, both ways, and keeps nothing of them.

use std::net::IpAddr;

use imbl::{OrdMap, OrdSet};

use super::steering::NextHop;
use crate::model::{MacAddress, NodeName};

/// The stateless half of distributed source translation on one gateway node.
///
/// It is what RFC 7596 calls a border relay with its binding table: egress address and port lead to
/// the node that has them. <https://www.rfc-editor.org/rfc/rfc7596>
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RelayDesired {
    /// The egress addresses whose answers it passes on. None: nothing of the relay is there.
    pub addresses: OrdSet<IpAddr>,
    /// Whose the ports are, by the first byte of a port. What is nobody's is dropped and counted.
    pub bindings: OrdMap<(IpAddr, u8), NodeName>,
    /// This node: what its own pods began goes up the stack.
    pub own: Option<NodeName>,
    /// How the other nodes are reached and recognised.
    pub nodes: OrdMap<NodeName, RelayNode>,
    /// Devices by which answers come in from outside.
    pub outside: OrdSet<String>,
    /// Devices of the overlay.
    pub overlay: OrdSet<String>,
    /// Outer UDP port of the overlay.
    pub port: u16,
}

/// A node as a relay reaches and recognises it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayNode {
    /// The way to it, at most one for each family, and none that takes an encapsulation of its own:
    /// a packet filter forwards to a neighbour on a device.
    pub hops: OrdSet<NextHop>,
    /// Its outer addresses.
    pub underlay: OrdSet<IpAddr>,
    /// Its hardware address in the overlay.
    pub mac: MacAddress,
}

impl RelayDesired {
    /// What the relay must hold while ports change hands from `self` to `next`: the addresses and
    /// nodes of both, and of each port the next owner, or the former one where there is no next.
    #[must_use]
    pub fn union(&self, next: &Self) -> Self {
        Self {
            addresses: next.addresses.clone().union(self.addresses.clone()),
            bindings: next.bindings.clone().union(self.bindings.clone()),
            nodes: next.nodes.clone().union(self.nodes.clone()),
            outside: next.outside.clone().union(self.outside.clone()),
            ..next.clone()
        }
    }
}
