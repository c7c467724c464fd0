//! What drivers and other parts of a node promise, with the states that they are told.

mod addresses;
mod connections;
mod host;
mod policy;
mod prober;
mod relay;
mod steering;
mod tunnel;
mod untracking;

pub use self::{
    addresses::{AddressesDesired, Announcer, Attachments, ExitNetwork, Inquirer, Questions},
    connections::{Connection, Connections, Ending, Staleness},
    host::{Host, HostRoute},
    policy::{
        Counter, CounterSource, DestinationView, Overlay, PolicyBackend, PolicyDesired,
        PolicyMonitor, StartGate,
    },
    prober::{ProbeAddress, Prober},
    relay::{RelayDesired, RelayNode},
    steering::{Encap, NextHop, SteeringDesired},
    tunnel::{Encapsulation, LocalEnd, OverlayLinks, Peer, Tunnel, TunnelDesired, Underlay},
    untracking::{
        ForeignChains, ForeignRule, PacketMatch, Surroundings, UntrackingRule, UntrackingRules,
    },
};
