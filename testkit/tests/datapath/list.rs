//! The list of checks.

/// The checks as tests on one data path.
macro_rules! on {
    ($name:ident, $path:expr, $($module:ident: $($check:ident)+;)+) => {
        mod $name {
            $($(
                #[test]
                fn $check() {
                    if crate::have_root() {
                        crate::$module::$check(&$path);
                    }
                }
            )+)+
        }
    };
}

/// Every check there is, on one data path.
macro_rules! every_check_on {
    ($name:ident, $path:expr) => {
        on! { $name, $path,
            forwarding:
                governed_pods_leave_with_the_gateways_address_and_nothing_else_is_touched
                traffic_inside_the_cluster_is_untouched_even_where_everything_outside_is_governed
                without_source_translation_the_server_sees_the_pod
                ecmp_uses_every_gateway
                an_explicit_egress_address_is_what_the_server_sees
                pods_are_chosen_by_subnet_too
                long_streams_fit_the_tunnel
                pods_are_told_of_a_gateway_whose_network_takes_smaller_packets;
            changes:
                pods_that_speak_before_they_are_known_leak_nothing
                a_new_pod_is_governed_and_an_address_that_changes_hands_is_not
                the_label_of_a_namespace_decides
                moving_the_label_moves_the_traffic
                what_began_before_a_policy_does_not_go_on_past_it
                an_open_connection_goes_on_while_other_policies_come_and_go
                a_deleted_policy_lets_go;
            failures:
                a_deleted_gateway_object_lets_nothing_out
                without_a_gateway_governed_traffic_is_dropped_and_counted
                a_tunnel_device_deleted_by_hand_leaks_nothing_and_comes_back
                rules_deleted_by_hand_come_back_at_once
                routes_deleted_by_hand_leak_nothing_and_come_back
                the_data_path_stands_while_the_api_server_is_away;
            lost_state:
                what_a_server_sends_after_the_pods_node_has_forgotten_is_answered_through_the_gateway
                a_port_that_is_closed_meanwhile_is_reported_through_the_gateway
                a_download_goes_on_after_the_pods_node_has_forgotten_it
                what_the_pods_node_has_forgotten_is_not_answered_while_the_tunnel_has_no_way
                whoever_begins_from_outside_gets_a_governed_pods_answers
                datagrams_through_a_load_balancer_are_answered_by_it;
            untracked:
                what_others_do_not_track_is_dropped_and_counted_at_the_pods_node
                what_others_do_not_track_is_dropped_and_counted_at_the_gateway;
            flushes:
                what_is_flushed_by_hand_holds_traffic_or_is_named_in_the_documentation;
            failover:
                a_gateway_without_power_is_left_at_once_without_the_api_server
                with_all_gateways_without_power_nothing_leaves_and_one_that_is_back_carries_everything
                a_gateways_agent_that_is_killed_or_restarted_is_no_failure
                a_dead_gateway_leaves_the_balance
                a_drained_gateway_is_left_without_a_leak_and_stands_by_afterwards
                connections_through_a_drained_gateway_go_on_for_the_grace_time_and_are_moved_then
                a_drained_gateway_that_dies_in_its_grace_time_is_left_at_once;
            cordons:
                with_every_gateway_cordoned_traffic_goes_on
                egress_addresses_leave_a_cordoned_node_and_stay_where_all_are_cordoned;
            ecmp:
                of_three_gateways_each_has_its_share_and_keeps_it_while_another_goes_and_comes
                connections_of_all_three_stay_while_one_is_drained_and_its_own_end_with_the_grace_time
                connections_stay_with_their_gateway_when_packets_are_lost;
            pools:
                the_address_of_a_node_that_joins_later_is_taken_back_and_only_the_node_answers_for_it
                the_first_and_the_last_address_of_a_network_and_its_router_are_given_to_nobody
                an_address_that_a_stranger_has_is_not_taken_and_the_next_one_is;
            egress_addresses:
                an_address_from_the_pool_is_held_by_one_node_for_its_policy_alone
                an_address_goes_to_the_next_node_and_a_lost_owner_that_comes_back_lets_go
                an_address_that_is_moved_on_purpose_is_what_servers_see_all_along
                of_more_policies_than_addresses_each_has_its_own_or_nothing
                addresses_do_not_drift_while_nodes_and_the_selector_come_and_go
                with_only_the_link_between_the_gateways_cut_one_node_answers_all_along
                a_masquerade_that_comes_before_ours_gives_nothing_another_source
                a_masquerade_of_any_priority_gives_nothing_another_source;
            claims:
                a_gateway_that_lost_the_api_server_keeps_what_it_answers_for_and_lets_go_of_what_another_was_given
                a_node_whose_agent_is_dead_keeps_its_addresses_until_its_kernel_is_dead_too
                without_an_api_server_for_anybody_nobody_lets_go;
            restarts:
                agents_and_controller_killed_at_any_time_change_nothing
                an_agent_killed_in_the_middle_of_changes_leaks_nothing_and_ends_up_right
                an_agent_catches_up_with_what_changed_while_it_was_dead
                a_shutdown_leaves_the_data_path_as_it_is
                another_backend_takes_over_without_a_gap_and_nothing_of_this_one_stays;
            pod_networks:
                pods_that_speak_before_they_are_known_leak_nothing_where_nobody_tells_their_networks
                pods_that_speak_before_they_are_known_leak_nothing_where_the_configuration_tells_networks
                pods_and_services_are_reached_as_the_pod_itself_where_nobody_tells_their_networks;
            tunnel_network:
                what_hosts_reach_in_the_tunnels_network_stays_theirs
                a_peers_address_that_the_host_reaches_elsewhere_is_left_alone
                a_cluster_that_gets_another_tunnel_network_loses_next_to_nothing;
            boots:
                after_a_boot_what_was_governed_waits_until_the_api_server_is_back
                where_nothing_is_to_wait_after_a_boot_it_leaves_as_if_there_were_no_policy;
            closed:
                a_pod_can_not_send_through_the_tunnel_of_a_node_as_somebody_else
                a_gateway_opens_no_way_past_the_network_policies_of_its_own_pods
                those_who_keep_network_policies_may_come_first_and_exits_pass;
            services:
                a_server_outside_is_governed_behind_whatever_address_it_is_reached
                what_classifies_services_is_put_back_and_nothing_leaks_meanwhile
                load_balancers_of_the_own_cluster_are_reached_where_everything_outside_is_governed
                an_address_that_only_its_node_knows_of_is_reached_wherever_it_is;
            hosts:
                an_overlay_with_loose_reverse_path_filters_and_a_drop_policy
                strict_reverse_path_filters_on_a_routed_network
                loose_reverse_path_filters_and_rules_by_iptables_nft
                rules_by_iptables_legacy_without_masquerade
                ipv4_alone
                ipv6_alone
                a_firewall_of_iptables_nft_that_drops_transit_lets_exits_pass
                a_firewall_of_iptables_legacy_that_drops_transit_lets_exits_pass
                a_firewall_of_nftables_that_drops_transit_loses_traffic_and_leaks_none;
            foreign:
                among_rules_of_kube_proxy_and_an_overlay
                among_rules_of_calico_that_appends
                among_rules_of_calico_that_inserts;
        }
    };
}
