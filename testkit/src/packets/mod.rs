//! Packets through the kernel: a node between a pod, a server and the far end of its overlay. One
//! list for every policy backend.
//!
//! [`packet_tests!`](crate::packet_tests) makes a test of each check.
#![allow(clippy::unwrap_used)]

mod connections;
mod distributed;
mod lab;
mod races;
mod strays;
mod upgrades;

pub use connections::{
    a_connection_keeps_its_way_when_the_policy_goes_and_ends_with_its_target,
    a_steered_pod_enters_the_overlay_with_its_own_address_or_does_not_leave,
    what_belongs_to_no_connection_does_not_leave,
    what_exits_leaves_as_the_policy_says_and_strangers_do_not,
    what_leaves_a_gateway_as_itself_is_not_tracked_and_the_rest_is,
    what_others_do_not_track_does_not_leave,
};
pub use distributed::{
    a_gateways_own_pod_leaves_here_and_goes_on_through_another_gateway,
    what_a_relay_has_not_seen_is_not_passed_on,
    what_began_before_its_node_translated_does_not_leave,
    what_its_own_node_translates_enters_the_tunnel_with_its_ports_and_is_answered,
};
pub use lab::{Backend, Host};
pub use races::{
    a_class_that_comes_changes_and_goes_lets_nothing_out_in_between,
    an_exit_that_changes_uses_the_old_source_or_the_new_one,
};
pub use strays::{
    a_tunnel_takes_what_peers_send_to_the_address_that_they_know,
    no_pod_reaches_the_tunnel_of_any_node, what_comes_by_the_overlay_leaves_here_or_ends,
    what_is_translated_is_governed_by_where_it_leads_or_dropped,
};
pub use upgrades::{
    a_client_that_is_upgraded_loses_no_packet,
    a_gateway_that_is_upgraded_loses_no_packet_and_changes_no_source,
};

/// The checks as tests on one host: `packet_tests!(name, HOST)`.
#[macro_export]
macro_rules! packet_tests {
    ($name:ident, $host:expr) => {
        $crate::packet_tests! { $name, $host,
            a_steered_pod_enters_the_overlay_with_its_own_address_or_does_not_leave
            a_connection_keeps_its_way_when_the_policy_goes_and_ends_with_its_target
            what_exits_leaves_as_the_policy_says_and_strangers_do_not
            what_leaves_a_gateway_as_itself_is_not_tracked_and_the_rest_is
            what_belongs_to_no_connection_does_not_leave
            what_others_do_not_track_does_not_leave
            a_class_that_comes_changes_and_goes_lets_nothing_out_in_between
            an_exit_that_changes_uses_the_old_source_or_the_new_one
            what_comes_by_the_overlay_leaves_here_or_ends
            no_pod_reaches_the_tunnel_of_any_node
            a_tunnel_takes_what_peers_send_to_the_address_that_they_know
            what_is_translated_is_governed_by_where_it_leads_or_dropped
            a_client_that_is_upgraded_loses_no_packet
            a_gateway_that_is_upgraded_loses_no_packet_and_changes_no_source
            what_its_own_node_translates_enters_the_tunnel_with_its_ports_and_is_answered
            what_a_relay_has_not_seen_is_not_passed_on
            a_gateways_own_pod_leaves_here_and_goes_on_through_another_gateway
            what_began_before_its_node_translated_does_not_leave
        }
    };
    ($name:ident, $host:expr, $($check:ident)+) => {
        mod $name {
            $(
                #[test]
                fn $check() {
                    $crate::packets::$check($host);
                }
            )+
        }
    };
}
