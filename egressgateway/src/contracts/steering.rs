//! Policy routing: which next hops a target has.

use std::net::IpAddr;

use imbl::{OrdMap, OrdSet};
use ipnet::IpNet;

use crate::{
    ExitNetwork,
    model::{Family, NetworkId, TargetId},
};

/// One way to reach an exit node, as the tunnel wants it to be routed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NextHop {
    /// Outgoing device.
    pub device: String,
    /// Neighbour on that device.
    pub via: IpAddr,
    /// Lightweight-tunnel encapsulation (a metadata-mode device).
    pub encap: Option<Encap>,
}

impl NextHop {
    /// Family of the packets that take it.
    #[must_use]
    pub fn family(&self) -> Family {
        Family::of(self.via)
    }
}

/// Outer header of a metadata-mode tunnel.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Encap {
    /// Virtual network identifier.
    pub id: u32,
    /// Outer source, so that the receiver knows the sender whatever addresses the device has.
    pub source: IpAddr,
    /// Outer destination, of the same family.
    pub remote: IpAddr,
}

/// How: live next hops per target and family; none means unreachable, never the main table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SteeringDesired {
    /// Next hops of each target; IPv4 and IPv6 apart by the family of `via`.
    pub targets: OrdMap<TargetId, OrdSet<NextHop>>,
    /// The targets whose connections are spread over all their next hops, each to keep its own
    /// while others come and go. Of any other with several next hops only the spread is promised.
    pub balanced: OrdSet<TargetId>,
    /// The largest packets of targets whose next hops don't all take what this node's own device
    /// would, in bytes.
    pub mtu: OrdMap<(TargetId, Family), u32>,
    /// The other networks of this node that egress addresses leave by: what has the mark of one is
    /// routed there.
    pub networks: OrdMap<NetworkId, ExitNetwork>,
    /// Networks inside the cluster: a marked packet to them is routed as if it had no mark
    /// (`throw`).
    pub direct: OrdSet<IpNet>,
}

impl SteeringDesired {
    /// What the kernel must hold while traffic moves from `self` to `next`: every target of either,
    /// as `next` routes it where both know it.
    #[must_use]
    pub fn union(&self, next: &Self) -> Self {
        let former = self
            .mtu
            .iter()
            .filter(|((target, _), _)| !next.targets.contains_key(target));
        let gone = self
            .balanced
            .iter()
            .filter(|target| !next.targets.contains_key(*target))
            .copied();
        Self {
            targets: next.targets.clone().union(self.targets.clone()),
            mtu: next
                .mtu
                .iter()
                .chain(former)
                .map(|(key, mtu)| (*key, *mtu))
                .collect(),
            balanced: next.balanced.clone().into_iter().chain(gone).collect(),
            networks: next.networks.clone().union(self.networks.clone()),
            direct: next.direct.clone(),
        }
    }
}
