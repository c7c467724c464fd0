//! Classification and source translation on one node.

use std::{collections::BTreeMap, net::IpAddr, ops::AddAssign};

use async_trait::async_trait;
use imbl::{OrdMap, OrdSet};
use ipnet::IpNet;

use crate::{
    Error, ExitNetwork,
    driver::Driver,
    model::{ClassId, Family, IpRange, NetworkId, PortBlock, TargetId, Verdict},
};

/// Complete classification state of one node.
///
/// A connection's first packet, unless its destination is `exempt`, gets the class of its source
/// and then the verdict of its destination. The verdict is pinned in the connection mark; later
/// packets follow the pin, whatever became of the policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyDesired {
    /// Who: pod address to class.
    pub pods: OrdMap<IpAddr, ClassId>,
    /// Who: pod subnets, disjoint; an address in `pods` takes precedence.
    pub subnets: OrdMap<IpRange, ClassId>,
    /// Where: ranges, disjoint within a class.
    pub destinations: OrdMap<(ClassId, IpRange), Verdict>,
    /// Never steered: cluster, service and node addresses.
    pub exempt: OrdSet<IpNet>,
    /// Targets that have a way out through the tunnel. A connection that is pinned to another one
    /// is dropped and counted, and so is a new connection that is destined for one, unless it exits
    /// here.
    pub targets: OrdSet<TargetId>,
    /// Targets that this node's own pods leave through here, at once, whether or not there is a way
    /// through the tunnel as well.
    pub exits: OrdSet<TargetId>,
    /// Targets that other nodes may send here, whether or not this node knows a way for its own
    /// pods: sources are translated as `destinations` says.
    pub accepts: OrdSet<TargetId>,
    /// Devices by which this node leaves the cluster. Where the host's firewall drops what is
    /// forwarded, what exits here by one of them is let pass, and nothing that goes elsewhere.
    pub ways_out: OrdSet<String>,
    /// The node's own address on each device that leads outside: what leaves by that device with
    /// the node's address has this one, whatever else the device has. On a device that is not in
    /// here, the kernel chooses.
    pub node_addresses: OrdMap<(String, Family), IpAddr>,
    /// Targets whose connections this node translates itself, to an egress address and the ports
    /// of `blocks`, whichever gateway carries them: they are pinned to the target even where it
    /// exits here. Other protocols than those with ports, or with the identifiers of an echo, are
    /// dropped and counted.
    pub distributed: OrdSet<TargetId>,
    /// The ports that this node has of egress addresses; at most [`PolicyDesired::MAX_BLOCKS`] of
    /// each.
    pub blocks: OrdMap<IpAddr, OrdSet<PortBlock>>,
    /// The egress addresses of all such targets: what comes through the overlay for one of them
    /// without belonging to a connection is dropped and counted, and what has one as its source is
    /// passed on only where a [`Relay`](crate::RelayDesired) has seen it.
    pub relayed: OrdSet<IpAddr>,
    /// The other networks of this node that egress addresses leave by.
    pub networks: OrdMap<NetworkId, ExitNetwork>,
    /// Traffic of pods that are not known yet waits, where this is on.
    pub start_gate: Option<StartGate>,
    /// What may arrive through the overlay, and how it looks from outside.
    pub overlay: Overlay,
}

impl PolicyDesired {
    /// Most blocks of one address that a node has.
    pub const MAX_BLOCKS: usize = 4;
}

/// Holds a new pod's traffic to governed destinations until the pod is classified.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StartGate {
    /// Address ranges that are surely this node's pods'.
    pub local: OrdSet<IpNet>,
    /// Address ranges of pods of all nodes, or of everybody where nobody tells pods' networks: a
    /// source in them is a pod of this node, unless it comes through the overlay or by one of the
    /// devices of `outside`.
    pub wide: OrdSet<IpNet>,
    /// Devices by which others than pods of this node come in.
    pub outside: OrdSet<String>,
    /// Pods that are classified, with a policy or without.
    pub known: OrdSet<IpAddr>,
    /// Union of all destinations of all policies.
    pub governed: OrdSet<IpRange>,
}

/// The overlay as the packet filter sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overlay {
    /// Devices that steered traffic leaves and enters by.
    pub devices: OrdSet<String>,
    /// Outer UDP port; 0 without a tunnel.
    pub port: u16,
    /// Outer addresses of the other nodes: everybody else's packets to the port on this host are
    /// dropped and counted.
    pub peers: OrdSet<IpAddr>,
    /// Outer addresses of this node, those that the other nodes know it by: packets to the port by
    /// any other address of this host, or to a group, are dropped and counted.
    pub own: OrdSet<IpAddr>,
    /// All addresses that nodes are known to have, outer ones and others: what pods send to the
    /// port there is dropped and counted.
    pub hosts: OrdSet<IpAddr>,
    /// Largest TCP segment that fits the tunnel, in bytes, for each family that it carries.
    pub mss: OrdMap<Family, u16>,
    /// Sources without a class may exit with the node's address; otherwise they are dropped and
    /// counted.
    pub unknown_may_exit: bool,
}

/// Which destination a policy backend sees when it classifies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DestinationView {
    /// After destination translation: of a service, the backend that was chosen.
    #[default]
    Translated,
    /// Before it: of a service, the service's own address.
    AsSent,
}

/// Classification and source translation on one node.
pub trait PolicyBackend: Driver<Desired = PolicyDesired> {
    /// "nftables", "netfilter".
    fn kind(&self) -> &'static str;

    /// Which destination it sees when it classifies.
    fn destination_view(&self) -> DestinationView {
        DestinationView::Translated
    }
}

/// How often a rule was met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Bytes of these packets.
    pub bytes: u64,
}

/// What is more than a number can say becomes the largest number.
impl AddAssign for Counter {
    fn add_assign(&mut self, other: Self) {
        self.packets = self.packets.saturating_add(other.packets);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

/// What the packet filter counted since its table was made.
///
/// Names are the same for every backend: `steered` (new connections sent to a gateway), `tunnelled`
/// (those of them that entered the tunnel; the rest found no way there), `exited` (new connections
/// that left here), and what was dropped: `drop_no_gateway`, `drop_held`, `drop_unknown_source`,
/// `drop_not_peer`, `drop_start_gate`, `drop_untracked`, `drop_no_port`.
#[async_trait]
pub trait CounterSource: Send + Sync {
    /// Reads all counters.
    ///
    /// # Errors
    /// When the kernel can't be read. A host without our rules has no counters, which is no error.
    async fn counters(&self) -> Result<BTreeMap<String, Counter>, Error>;
}

/// How an agent learns that somebody else changed what a backend wrote.
#[async_trait]
pub trait PolicyMonitor: Send + Sync {
    /// Waits until somebody other than the backend changed what is ours since the last call.
    ///
    /// Several changes may be reported as one. Cancelling the wait loses nothing.
    ///
    /// # Errors
    /// When notifications were lost or the kernel can't be listened to: read everything again.
    async fn changed(&self) -> Result<(), Error>;
}
