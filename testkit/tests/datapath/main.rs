//! What servers outside see, with real daemons on a real kernel: from YAML to the wire.
//!
//! One list of checks; each runs on every data path below.
#![allow(clippy::unwrap_used, missing_docs)]

#[macro_use]
mod list;

mod address_holders;
mod boots;
mod changes;
mod claims;
mod closed;
mod cordons;
mod ecmp;
mod egress_addresses;
mod failover;
mod failures;
mod flushes;
mod foreign_rules;
mod forwarding;
mod helpers;
mod hosts;
mod lost_state;
mod masquerades;
mod open_connections;
mod own_addresses;
mod pod_networks;
mod pools;
mod restarts;
mod second_networks;
mod services;
mod tunnel_network;
mod untracked;
mod world;

use egressgateway_testkit::netns::have_root;
use world::DataPath;

every_check_on!(
    nftables_over_vxlan,
    crate::DataPath {
        backend: "nftables",
        tunnel: "vxlan"
    }
);
every_check_on!(
    netfilter_over_vxlan,
    crate::DataPath {
        backend: "netfilter",
        tunnel: "vxlan"
    }
);
