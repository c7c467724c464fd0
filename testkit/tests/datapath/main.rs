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
mod distributed;
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

/// The checks where pods' own nodes translate. Over Geneve no gateway can pass answers on.
macro_rules! every_distributed_check_on {
    ($name:ident, $path:expr) => {
        on! { $name, $path,
            distributed:
                each_node_has_ports_of_its_own_and_gateways_keep_nothing
                connections_go_on_through_drains_and_back
                connections_go_on_when_their_gateway_loses_its_power
                a_standby_takes_the_address_of_a_lost_node_without_the_api_server
                a_tunnel_and_a_table_that_are_deleted_come_back_and_no_connection_ends
                connections_end_when_another_node_begins_to_translate;
        }
    };
}

every_distributed_check_on!(
    nftables_distributed,
    crate::DataPath {
        backend: "nftables",
        tunnel: "vxlan"
    }
);
every_distributed_check_on!(
    netfilter_distributed,
    crate::DataPath {
        backend: "netfilter",
        tunnel: "vxlan"
    }
);
