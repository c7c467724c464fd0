use std::net::IpAddr;

use super::TargetId;

/// Source address that a packet leaves the exit node with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SourceNat {
    /// The exit node's own address on the outgoing interface: the one that its EgressNode names.
    NodeAddress,
    /// A fixed egress address.
    Address(IpAddr),
    /// A fixed egress address and a port that the pod's own node has of it: that node translates
    /// before it sends, and gateways pass what they see.
    Ports(IpAddr),
    /// The pod's address, unchanged.
    Keep,
}

/// What happens to a new connection of one class to one destination range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Leaves as if there were no policy.
    Pass,
    /// Steered to a target; translated where it exits.
    Egress {
        /// Where to.
        target: TargetId,
        /// As whom.
        source_nat: SourceNat,
    },
    /// Governed, but it can't be said yet where it leaves or as whom: dropped and counted until
    /// that is known.
    Hold,
}
