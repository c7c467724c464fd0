//! What a policy backend's rules must mean: one list of packets and of what they meet, for every
//! backend that can be [traced](Trace).

use crate::{
    PolicyDesired,
    model::SourceNat,
    testing::worlds::{class, client, egress, gateway, ip, on_two_networks, range},
    trace::{
        Beginning, ConnectionState, DestinationKind, Direction, Trace, TracePacket, TraceProtocol,
        TraceSource, TraceVerdict,
    },
};

const EXIT: u32 = 0x1200_0000;
const ANSWER: u32 = 0x1000_0000;
const OVERLAY: &str = "egress-vxlan-v4";

/// The rules that a backend makes of a desired state from nothing, with the default mask.
type Rules<'a> = &'a dyn Fn(&PolicyDesired) -> Box<dyn Trace>;

/// Holds a backend to the list.
///
/// # Panics
/// When a packet meets something else.
pub fn check(rules: &dyn Fn(&PolicyDesired) -> Box<dyn Trace>) {
    a_pods_new_connection_is_steered_as_its_class_and_destination_say(rules);
    a_new_pod_is_known_by_its_device_where_its_address_does_not_tell(rules);
    an_exact_address_takes_precedence_over_its_subnet(rules);
    later_packets_follow_the_pin_and_replies_are_left_alone(rules);
    what_belongs_to_no_connection_does_not_leave_where_it_is_governed(rules);
    what_is_for_this_host_or_a_group_is_not_steered(rules);
    a_gateway_lets_out_what_its_targets_cover_and_drops_other_sources(rules);
    the_source_at_the_exit_is_what_the_policy_says(rules);
    the_guard_lets_a_steered_connection_leave_through_the_overlay_only(rules);
    what_leaves_a_gateway_as_itself_is_not_tracked_there(rules);
    the_overlay_brings_what_leaves_here_and_what_nodes_ask_each_other(rules);
    what_came_by_the_overlay_while_the_rules_were_missing_does_not_leave_any_more(rules);
    no_pod_reaches_the_tunnel_of_a_node(rules);
    what_a_service_leads_to_is_governed_as_it_is_or_dropped(rules);
    what_may_belong_to_a_forgotten_connection_is_pinned_for_its_answers(rules);
    answers_of_a_pod_meet_what_its_class_says_and_pin_nothing(rules);
    the_guard_lets_an_answer_out_by_the_overlay_or_where_nothing_governs_it(rules);
    what_others_took_out_of_connection_tracking_does_not_leave_where_it_is_governed(rules);
    the_nodes_address_is_the_one_of_the_device_and_the_kernel_chooses_only_where_none_is_known(
        rules,
    );
    what_has_an_egress_address_of_another_network_leaves_there(rules);
}

fn packet(source: &str, destination: &str) -> TracePacket {
    TracePacket::new(ip(source), ip(destination))
}

fn marks(packet: u32, connection: u32, counted: &[&'static str]) -> TraceVerdict {
    TraceVerdict::Accept {
        untracked: false,
        packet_mark: packet,
        connection_mark: connection,
        counted: counted.to_vec(),
    }
}

fn dropped(counter: &'static str) -> TraceVerdict {
    TraceVerdict::Drop {
        counter: Some(counter),
    }
}

fn a_pods_new_connection_is_steered_as_its_class_and_destination_say(state: Rules<'_>) {
    let state = state(&client());
    let untouched = marks(0, 0, &[]);
    for (source, destination, verdict) in [
        (
            "10.244.1.10",
            "10.6.1.76",
            marks(0x1100_0000, 0x1100_0000, &["steered"]),
        ),
        ("10.244.1.10", "10.6.1.77", untouched.clone()),
        (
            "10.244.1.10",
            "10.6.2.1",
            marks(0x1300_0000, 0x1300_0000, &["steered"]),
        ),
        ("10.244.1.10", "10.6.3.1", dropped("drop_held")),
        ("10.244.1.10", "10.6.4.1", untouched.clone()),
        ("10.244.1.10", "10.6.5.5", dropped("drop_no_gateway")),
        ("10.244.1.10", "10.96.0.10", untouched.clone()),
        (
            "fd10:244:1::10",
            "fd00::1:7",
            marks(0x1100_0000, 0x1100_0000, &["steered"]),
        ),
        ("fd10:244:1::10", "fd00::7", untouched.clone()),
        (
            "fd10:244:1::11",
            "2001:db8::1",
            marks(0x1100_0000, 0x1100_0000, &["steered"]),
        ),
        (
            "10.250.3.4",
            "10.6.9.9",
            marks(0x1100_0000, 0x1100_0000, &["steered"]),
        ),
        ("10.251.0.6", "10.6.3.1", dropped("drop_held")),
        ("10.251.0.7", "10.6.3.1", untouched.clone()),
        ("10.244.1.12", "10.6.1.1", marks(0, EXIT, &[])),
        ("10.244.1.13", "10.6.1.1", untouched.clone()),
        ("10.244.1.99", "10.6.1.1", dropped("drop_start_gate")),
        ("10.244.1.99", "10.96.0.10", untouched.clone()),
        ("192.0.2.1", "10.6.1.1", untouched),
    ] {
        assert_eq!(
            state.trace(&packet(source, destination)),
            verdict,
            "{source} → {destination}"
        );
    }
}

fn a_new_pod_is_known_by_its_device_where_its_address_does_not_tell(state: Rules<'_>) {
    let mut world = client();
    let gate = world.start_gate.get_or_insert_default();
    gate.wide = ["0.0.0.0/1", "128.0.0.0/1"]
        .into_iter()
        .filter_map(|half| half.parse::<ipnet::IpNet>().ok())
        .collect();
    gate.outside = ["eth0".to_owned(), "eth1".to_owned()].into_iter().collect();
    let state = state(&world);
    let untouched = marks(0, 0, &[]);
    for (source, device, verdict) in [
        ("10.100.7.7", "veth7", dropped("drop_start_gate")),
        ("192.0.2.1", "cni0", dropped("drop_start_gate")),
        ("10.100.7.7", "eth0", untouched.clone()),
        ("192.0.2.1", "eth1", untouched.clone()),
        ("10.244.1.13", "veth8", untouched),
        (
            "10.244.1.10",
            "veth9",
            marks(0x1100_0000, 0x1100_0000, &["steered"]),
        ),
    ] {
        assert_eq!(
            state.trace(&packet(source, "10.6.1.1").from_device(device)),
            verdict,
            "{source} from {device}"
        );
    }
    // What comes through the overlay is what another node governs, and no pod of this one.
    let from_overlay = state.trace(&packet("10.100.7.7", "10.6.1.1").from_device(OVERLAY));
    assert_eq!(from_overlay, dropped("drop_unknown_source"));
}

fn an_exact_address_takes_precedence_over_its_subnet(state: Rules<'_>) {
    let mut desired = client();
    desired.pods.insert(ip("10.250.3.4"), class(1));
    assert_eq!(
        state(&desired).trace(&packet("10.250.3.4", "10.6.3.1")),
        dropped("drop_held")
    );
}

fn later_packets_follow_the_pin_and_replies_are_left_alone(state: Rules<'_>) {
    let state = state(&client());
    let mut later = packet("10.244.1.10", "10.6.4.1");
    later.state = ConnectionState::Established;
    assert_eq!(state.trace(&later), marks(0, 0, &[]), "began before");
    later.connection_mark = 0x1300_0042;
    later.packet_mark = 0x4000;
    assert_eq!(
        state.trace(&later),
        marks(0x1300_4000, 0x1300_0042, &[]),
        "others' bits stay"
    );
    later.connection_mark = 0x7700_0000;
    assert_eq!(
        state.trace(&later),
        dropped("drop_no_gateway"),
        "the target is gone"
    );
    later.direction = Direction::Reply;
    assert_eq!(state.trace(&later), marks(0x4000, 0x7700_0000, &[]));
}

fn what_belongs_to_no_connection_does_not_leave_where_it_is_governed(state: Rules<'_>) {
    let state = state(&client());
    let mut stray = packet("10.244.1.10", "10.6.1.1");
    stray.state = ConnectionState::Invalid;
    assert_eq!(state.trace(&stray), dropped("drop_no_gateway"));
    stray.destination = ip("10.6.4.1");
    assert_eq!(state.trace(&stray), marks(0, 0, &[]));
}

fn what_may_belong_to_a_forgotten_connection_is_pinned_for_its_answers(state: Rules<'_>) {
    let state = state(&client());
    for (source, destination, beginning, pinned, why) in [
        (
            "10.6.1.1",
            "10.244.1.10",
            Beginning::Unclear,
            true,
            "a governed pod",
        ),
        (
            "fd00::1:1",
            "fd10:244:1::10",
            Beginning::Unclear,
            true,
            "the same over IPv6",
        ),
        (
            "10.6.4.1",
            "10.244.1.10",
            Beginning::Unclear,
            true,
            "whatever governs that source is asked for each answer",
        ),
        (
            "10.6.1.1",
            "10.244.1.77",
            Beginning::Unclear,
            true,
            "nobody knows this pod yet",
        ),
        (
            "10.6.1.1",
            "10.250.3.4",
            Beginning::Unclear,
            true,
            "by its subnet, and not exempt",
        ),
        (
            "10.6.1.1",
            "10.244.1.10",
            Beginning::Request,
            false,
            "somebody who knows the way begins",
        ),
        (
            "10.6.1.1",
            "10.244.1.13",
            Beginning::Unclear,
            false,
            "a pod without a policy",
        ),
        (
            "10.6.1.1",
            "10.244.9.9",
            Beginning::Unclear,
            false,
            "no pod of this node, and governed by nothing",
        ),
        (
            "10.244.1.13",
            "10.244.1.10",
            Beginning::Unclear,
            false,
            "pods among themselves",
        ),
        (
            "10.244.1.11",
            "10.244.1.10",
            Beginning::Unclear,
            false,
            "governed pods among themselves",
        ),
        (
            "10.6.0.11",
            "10.244.1.10",
            Beginning::Unclear,
            false,
            "a node",
        ),
    ] {
        let packet = TracePacket {
            beginning,
            connection_mark: 5,
            packet_mark: 7,
            ..packet(source, destination)
        };
        let mark = if pinned { ANSWER | 5 } else { 5 };
        assert_eq!(
            state.trace(&packet),
            marks(7, mark, &[]),
            "{source} → {destination}: {why}"
        );
    }
    for (protocol, pinned) in [(TraceProtocol::Udp(53), true), (TraceProtocol::Icmp, false)] {
        let mark = if pinned { ANSWER } else { 0 };
        assert_eq!(
            state.trace(&packet("10.6.1.1", "10.244.1.10").carrying(protocol)),
            marks(0, mark, &[]),
            "{protocol:?}"
        );
    }
    let later = TracePacket {
        state: ConnectionState::Established,
        connection_mark: ANSWER,
        ..packet("10.6.1.1", "10.244.1.10")
    };
    assert_eq!(state.trace(&later), marks(0, ANSWER, &[]));
}

fn answer(source: &str, destination: &str) -> TracePacket {
    let state = ConnectionState::Established;
    TracePacket {
        direction: Direction::Reply,
        connection_mark: ANSWER | 5,
        packet_mark: 7,
        state,
        ..packet(source, destination)
    }
}

fn answers_of_a_pod_meet_what_its_class_says_and_pin_nothing(state: Rules<'_>) {
    let client = state(&client());
    for (source, destination, verdict) in [
        (
            "10.244.1.10",
            "10.6.1.1",
            marks(0x1100_0007, ANSWER | 5, &[]),
        ),
        (
            "10.244.1.10",
            "10.6.2.1",
            marks(0x1300_0007, ANSWER | 5, &[]),
        ),
        (
            "fd10:244:1::10",
            "fd00::1:1",
            marks(0x1100_0007, ANSWER | 5, &[]),
        ),
        ("10.244.1.10", "10.6.4.1", marks(7, ANSWER | 5, &[])),
        ("10.244.1.10", "10.96.0.1", marks(7, ANSWER | 5, &[])),
        ("10.244.1.13", "10.6.1.1", marks(7, ANSWER | 5, &[])),
        ("10.244.1.10", "10.6.3.1", dropped("drop_held")),
        ("10.244.1.10", "10.6.5.5", dropped("drop_no_gateway")),
        ("10.244.1.77", "10.6.1.1", dropped("drop_start_gate")),
        // It would leave from here, and nothing here translates an answer.
        ("10.244.1.12", "10.6.1.1", dropped("drop_no_gateway")),
    ] {
        assert_eq!(
            without_foreign_bits(client.trace(&answer(source, destination))),
            without_foreign_bits(verdict),
            "{source} → {destination}"
        );
    }
    let gateway = state(&gateway());
    assert_eq!(
        gateway.trace(&answer("10.244.1.10", "10.6.1.1").from_device(OVERLAY)),
        dropped("drop_no_gateway")
    );
}

/// A backend may borrow bits of a governed packet's mark.
fn without_foreign_bits(mut verdict: TraceVerdict) -> TraceVerdict {
    if let TraceVerdict::Accept { packet_mark, .. } = &mut verdict {
        *packet_mark &= 0xff00_0000;
    }
    verdict
}

fn the_guard_lets_an_answer_out_by_the_overlay_or_where_nothing_governs_it(state: Rules<'_>) {
    let client = state(&client());
    let forwarded = |packet: TracePacket, device: &str| {
        without_foreign_bits(client.trace_forward(&packet, device))
    };
    let marked = |source, destination| TracePacket {
        packet_mark: 0x1100_0000,
        ..answer(source, destination)
    };
    let enters = forwarded(marked("10.244.1.10", "10.6.1.1"), OVERLAY);
    assert!(
        matches!(enters, TraceVerdict::Accept { connection_mark, .. } if connection_mark == ANSWER | 5),
        "{enters:?}"
    );
    assert_eq!(
        forwarded(marked("10.244.1.10", "10.6.1.1"), "eth0"),
        dropped("drop_no_gateway")
    );
    assert_eq!(
        forwarded(answer("10.244.1.10", "10.6.1.1"), "eth0"),
        dropped("drop_no_gateway"),
        "somebody took the mark away"
    );
    assert_eq!(
        forwarded(answer("10.244.1.10", "10.6.3.1"), "eth0"),
        dropped("drop_held")
    );
    assert_eq!(
        forwarded(answer("10.244.1.10", "10.6.4.1"), "eth0"),
        marks(0, ANSWER | 5, &[]),
        "nothing governs this"
    );
    let inward = TracePacket {
        connection_mark: ANSWER,
        ..packet("10.6.1.1", "10.244.1.10")
    };
    assert_eq!(forwarded(inward, "cali1"), marks(0, ANSWER, &[]));
}

fn what_others_took_out_of_connection_tracking_does_not_leave_where_it_is_governed(
    state: Rules<'_>,
) {
    let untracked = |packet: TracePacket| TracePacket {
        state: ConnectionState::Untracked,
        ..packet
    };
    let passes = TraceVerdict::Accept {
        untracked: true,
        packet_mark: 0,
        connection_mark: 0,
        counted: Vec::new(),
    };
    let node = state(&client());
    for (source, destination, verdict) in [
        ("10.244.1.10", "10.6.1.1", dropped("drop_untracked")),
        ("fd10:244:1::10", "fd00::1:1", dropped("drop_untracked")),
        ("10.244.1.12", "10.6.1.1", dropped("drop_untracked")),
        ("10.244.1.10", "10.6.3.1", dropped("drop_held")),
        ("10.244.1.99", "10.6.1.1", dropped("drop_start_gate")),
        ("10.244.1.10", "10.6.4.1", passes.clone()),
        ("10.244.1.10", "10.244.1.11", passes.clone()),
        ("10.244.1.13", "10.6.1.1", passes.clone()),
        ("10.6.1.1", "10.244.1.10", passes.clone()),
    ] {
        assert_eq!(
            node.trace(&untracked(packet(source, destination))),
            verdict,
            "{source} → {destination}"
        );
    }
    let mut desired = gateway();
    let arriving = |source: &str| untracked(packet(source, "10.6.1.1").from_device(OVERLAY));
    assert_eq!(
        state(&desired).trace(&arriving("10.244.1.10")),
        dropped("drop_untracked"),
        "nobody could translate it"
    );
    assert_eq!(
        state(&desired).trace(&arriving("10.244.9.9")),
        dropped("drop_unknown_source")
    );
    desired.overlay.unknown_may_exit = true;
    assert_eq!(
        state(&desired).trace(&arriving("10.244.9.9")),
        dropped("drop_untracked")
    );
    desired.destinations.insert(
        (class(1), range("10.6.7.0/24")),
        egress(0x11, SourceNat::Keep),
    );
    assert_eq!(
        state(&desired).trace(&arriving("10.244.1.10")),
        dropped("drop_untracked"),
        "another destination is kept"
    );
    let group = |protocol| TracePacket {
        destination_kind: DestinationKind::Multicast,
        ..packet("fe80::2", "ff02::1").carrying(protocol)
    };
    let asks = |protocol| state(&desired).trace(&untracked(group(protocol).from_device(OVERLAY)));
    assert_eq!(
        asks(TraceProtocol::Icmp),
        passes,
        "neighbours find each other"
    );
    assert_eq!(asks(TraceProtocol::Udp(53)), dropped("drop_unknown_source"));
}

fn what_is_for_this_host_or_a_group_is_not_steered(state: Rules<'_>) {
    let state = state(&client());
    for kind in [DestinationKind::Local, DestinationKind::Multicast] {
        for (pod, destination) in [
            ("10.244.1.11", "10.6.9.1"),
            ("fd10:244:1::11", "2001:db8::1"),
        ] {
            let mut local = packet(pod, destination);
            local.destination_kind = kind;
            assert_eq!(state.trace(&local), marks(0, 0, &[]), "{pod}: {kind:?}");
        }
    }
}

fn a_gateway_lets_out_what_its_targets_cover_and_drops_other_sources(state: Rules<'_>) {
    let mut desired = gateway();
    let from_overlay =
        |source: &str, destination: &str| packet(source, destination).from_device(OVERLAY);
    let exits = marks(0, EXIT, &[]);
    for (source, destination, strict, open) in [
        ("10.244.1.10", "10.6.1.1", exits.clone(), exits.clone()),
        ("10.244.1.10", "10.6.2.1", exits.clone(), exits.clone()),
        (
            "10.244.1.10",
            "10.6.3.1",
            dropped("drop_held"),
            dropped("drop_held"),
        ),
        (
            "10.244.1.12",
            "10.6.1.1",
            dropped("drop_no_gateway"),
            dropped("drop_no_gateway"),
        ),
        (
            "10.244.9.9",
            "10.6.1.1",
            dropped("drop_unknown_source"),
            exits.clone(),
        ),
        (
            "10.244.1.10",
            "10.6.1.77",
            dropped("drop_unknown_source"),
            exits.clone(),
        ),
        (
            "172.31.0.2",
            "10.6.0.11",
            dropped("drop_unknown_source"),
            dropped("drop_unknown_source"),
        ),
    ] {
        desired.overlay.unknown_may_exit = false;
        assert_eq!(
            state(&desired).trace(&from_overlay(source, destination)),
            strict,
            "strict: {source} → {destination}"
        );
        desired.overlay.unknown_may_exit = true;
        assert_eq!(
            state(&desired).trace(&from_overlay(source, destination)),
            open,
            "open: {source} → {destination}"
        );
    }
}

fn the_source_at_the_exit_is_what_the_policy_says(state: Rules<'_>) {
    let mut desired = gateway();
    desired.destinations.insert(
        (class(1), range("10.6.7.0/24")),
        egress(0x11, SourceNat::Keep),
    );
    let unknown = |may_exit| {
        let mut desired = desired.clone();
        desired.overlay.unknown_may_exit = may_exit;
        state(&desired)
    };
    let leaving = |source: &str, destination: &str| TracePacket {
        connection_mark: EXIT | 5,
        ..packet(source, destination)
    };
    let strict = unknown(false);
    for (source, destination, expected) in [
        (
            "10.244.1.10",
            "10.6.1.1",
            TraceSource::Address(ip("10.6.0.11")),
        ),
        (
            "fd10:244:1::10",
            "fd00::1:7",
            TraceSource::Address(ip("fd00::11")),
        ),
        (
            "10.244.1.10",
            "10.6.2.1",
            TraceSource::Address(ip("10.6.0.200")),
        ),
        (
            "fd10:244:1::10",
            "fd00::2:1",
            TraceSource::Address(ip("fd00::200")),
        ),
        ("10.244.1.10", "10.6.7.1", TraceSource::Itself),
        (
            "10.244.9.9",
            "10.6.1.1",
            TraceSource::Drop {
                counter: Some("drop_unknown_source"),
            },
        ),
    ] {
        assert_eq!(
            strict.trace_source(&leaving(source, destination), "eth0"),
            expected,
            "{source} → {destination}"
        );
    }
    let unknown_source = unknown(true).trace_source(&leaving("10.244.9.9", "10.6.1.1"), "eth0");
    assert_eq!(unknown_source, TraceSource::Address(ip("10.6.0.11")));
    assert_eq!(
        strict.trace_source(&packet("10.244.1.10", "10.6.1.1"), "eth0"),
        TraceSource::Untouched,
        "not pinned"
    );
    assert_eq!(
        strict.trace_source(&packet("10.244.1.10", "10.6.1.1"), OVERLAY),
        TraceSource::Itself,
        "enters the tunnel"
    );
}

fn the_guard_lets_a_steered_connection_leave_through_the_overlay_only(state: Rules<'_>) {
    let state = state(&client());
    let pinned = |mark| TracePacket {
        connection_mark: mark,
        state: ConnectionState::Established,
        ..packet("10.244.1.10", "10.6.1.1")
    };
    assert_eq!(
        state.trace_forward(&pinned(0x1100_0000), "eth0"),
        dropped("drop_no_gateway")
    );
    assert_eq!(
        state.trace_forward(&pinned(0x1100_0000), OVERLAY),
        marks(0, 0x1100_0000, &[])
    );
    assert_eq!(
        state.trace_forward(&pinned(EXIT), "eth0"),
        marks(0, EXIT, &[])
    );
    assert_eq!(
        state.trace_forward(&pinned(EXIT).from_device(OVERLAY), OVERLAY),
        dropped("drop_no_gateway"),
        "a loop"
    );
    assert_eq!(state.trace_forward(&pinned(0), "eth0"), marks(0, 0, &[]));
    let reply = TracePacket {
        direction: Direction::Reply,
        ..pinned(0x1100_0000)
    };
    assert_eq!(
        state.trace_forward(&reply, "cali1"),
        marks(0, 0x1100_0000, &[])
    );
}

fn what_leaves_a_gateway_as_itself_is_not_tracked_there(state: Rules<'_>) {
    let mut desired = gateway();
    let kept = egress(0x11, SourceNat::Keep);
    desired
        .destinations
        .insert((class(1), range("10.6.7.0/24")), kept);
    let arriving = |destination: &str| packet("10.244.1.10", destination).from_device(OVERLAY);
    let untracked = TraceVerdict::Accept {
        untracked: true,
        packet_mark: 0,
        connection_mark: 0,
        counted: Vec::new(),
    };
    assert_eq!(state(&desired).trace(&arriving("10.6.7.1")), untracked);
    assert_eq!(
        state(&desired).trace(&arriving("10.6.1.1")),
        marks(0, EXIT, &[]),
        "what is translated is tracked"
    );
    let later = TracePacket {
        state: ConnectionState::Untracked,
        ..arriving("10.6.7.1")
    };
    assert_eq!(
        state(&desired).trace_source(&later, "eth0"),
        TraceSource::Itself
    );
    assert_eq!(
        state(&desired).trace_forward(&later, OVERLAY),
        dropped("drop_no_gateway"),
        "a loop"
    );
    desired.accepts.clear();
    assert_eq!(
        state(&desired).trace(&arriving("10.6.7.1")),
        dropped("drop_no_gateway"),
        "a gateway no more"
    );
}

fn the_overlay_brings_what_leaves_here_and_what_nodes_ask_each_other(state: Rules<'_>) {
    let mut desired = gateway();
    desired.overlay.unknown_may_exit = true;
    desired.destinations.insert(
        (class(2), range("0.0.0.0/0")),
        egress(0x11, SourceNat::Keep),
    );
    let state = state(&desired);
    let arriving =
        |source: &str, destination: &str| packet(source, destination).from_device(OVERLAY);
    let own = |protocol| TracePacket {
        destination_kind: DestinationKind::Arrival,
        ..arriving("172.31.0.2", "172.31.0.1").carrying(protocol)
    };
    let (let_in, stray) = (marks(0, 0, &[]), dropped("drop_unknown_source"));
    assert_eq!(
        state.trace(&own(TraceProtocol::Icmp)),
        let_in,
        "whether this node is there"
    );
    assert_eq!(
        state.trace(&own(TraceProtocol::Other)),
        stray,
        "what listens here is not reached by the tunnel"
    );
    for (source, destination, meaning) in [
        ("10.244.1.10", "10.244.1.12", "a pod"),
        (
            "10.244.1.11",
            "10.244.1.12",
            "a pod, by a class that leaves with its own address",
        ),
        ("10.244.1.10", "10.96.0.10", "a service"),
        ("10.244.1.10", "10.6.0.11", "a node"),
        (
            "10.244.1.13",
            "10.6.1.1",
            "from a pod that is here, and in no policy",
        ),
        ("fd10:244:1::11", "fd10:244:1::10", "a pod, IPv6"),
    ] {
        assert_eq!(
            state.trace(&arriving(source, destination)),
            stray,
            "{meaning}"
        );
    }
    for untold in [ConnectionState::Untracked, ConnectionState::Invalid] {
        for (source, node) in [("10.244.1.10", "10.6.0.11"), ("fd10:244:1::10", "fd00::11")] {
            let to_this_node = TracePacket {
                state: untold,
                destination_kind: DestinationKind::Local,
                ..arriving(source, node)
            };
            assert_eq!(
                state.trace(&to_this_node),
                stray,
                "this node, {untold:?}: only the tunnel's outer packets are let in"
            );
        }
    }
    for (source, destination) in [
        ("10.244.1.12", "10.6.1.1"),
        ("fd10:244:1::11", "2001:db8::1"),
    ] {
        let group = TracePacket {
            destination_kind: DestinationKind::Multicast,
            ..arriving(source, destination)
        };
        assert_eq!(state.trace(&group), stray, "{source}");
    }
    let held = TracePacket {
        destination_kind: DestinationKind::Local,
        ..arriving("10.244.1.10", "10.6.1.1")
    };
    assert_eq!(
        state.trace(&held),
        marks(0, EXIT, &[]),
        "an address that this node has and nobody knows of"
    );
}

fn what_came_by_the_overlay_while_the_rules_were_missing_does_not_leave_any_more(state: Rules<'_>) {
    for unknown_may_exit in [false, true] {
        let mut desired = gateway();
        desired.overlay.unknown_may_exit = unknown_may_exit;
        let state = state(&desired);
        for (source, server) in [
            ("10.244.1.10", "10.6.4.1"),
            ("10.244.9.9", "10.6.4.1"),
            ("fd10:244:1::10", "fd00:6:4::1"),
        ] {
            let unpinned = TracePacket {
                state: ConnectionState::Established,
                ..packet(source, server).from_device(OVERLAY)
            };
            assert_eq!(
                state.trace(&unpinned),
                dropped("drop_unknown_source"),
                "{source}: whoever translated it, it was not by a policy"
            );
            let noticed = TracePacket {
                connection_mark: 0xff00_0042,
                ..unpinned.clone()
            };
            assert_eq!(
                state.trace(&noticed),
                dropped("drop_no_gateway"),
                "{source}: until the agent has ended it"
            );
            assert_eq!(
                state.trace_forward(&noticed, "eth0"),
                dropped("drop_no_gateway"),
                "{source}: wherever it is asked"
            );
            for (direction, device) in [(Direction::Reply, OVERLAY), (Direction::Original, "eth0")]
            {
                let other = TracePacket {
                    direction,
                    ..unpinned.clone().from_device(device)
                };
                assert_eq!(
                    state.trace(&other),
                    marks(0, 0, &[]),
                    "{source}: {direction:?} from {device}"
                );
            }
        }
        let question = TracePacket {
            state: ConnectionState::Established,
            destination_kind: DestinationKind::Arrival,
            ..packet("172.31.0.2", "172.31.0.1")
                .from_device(OVERLAY)
                .carrying(TraceProtocol::Icmp)
        };
        assert_eq!(
            state.trace(&question),
            marks(0, 0, &[]),
            "a node that asks again whether this one is there"
        );
        let service = TracePacket {
            state: ConnectionState::Established,
            ..packet("10.244.1.10", "10.244.1.12")
                .from_device(OVERLAY)
                .sent_to(ip("203.0.113.7"))
        };
        assert_eq!(
            state.trace(&service),
            marks(0, 0, &[]),
            "what this host leads to a pod was let go when it began"
        );
        assert_eq!(end(&*state, &service), None, "and on its way to the pod");
        for (sent_to, server) in [
            ("203.0.113.7", "10.6.4.1"),
            ("10.96.0.10", "10.244.1.12"),
            ("2001:db8::7", "fd00:6:4::1"),
        ] {
            let source = if server.contains(':') {
                "fd10:244:1::10"
            } else {
                "10.244.1.10"
            };
            let led = TracePacket {
                state: ConnectionState::Established,
                ..packet(source, server)
                    .from_device(OVERLAY)
                    .sent_to(ip(sent_to))
            };
            assert_eq!(
                end(&*state, &led),
                Some("drop_unknown_source"),
                "{sent_to}: whoever led it to {server} did not translate its source by a policy"
            );
            let answer = TracePacket {
                direction: Direction::Reply,
                ..led
            };
            assert_eq!(end(&*state, &answer), None, "{sent_to}: an answer");
        }
    }
}

/// Where a packet is dropped on its way through this host, to itself or to others.
fn end(state: &dyn Trace, packet: &TracePacket) -> Option<&'static str> {
    let then = if packet.destination_kind == DestinationKind::Unicast {
        state.trace_forward(packet, "eth0")
    } else {
        state.trace_input(packet)
    };
    [state.trace(packet), then].into_iter().find_map(|verdict| {
        if let TraceVerdict::Drop { counter } = verdict {
            counter
        } else {
            None
        }
    })
}

fn no_pod_reaches_the_tunnel_of_a_node(state: Rules<'_>) {
    let state = state(&client());
    let to = |source: &str, destination: &str, port| {
        packet(source, destination).carrying(TraceProtocol::Udp(port))
    };
    let service = |packet: TracePacket| packet.sent_to(ip("10.96.0.10"));
    let own = TracePacket {
        destination_kind: DestinationKind::Local,
        ..to("10.244.1.13", "10.6.0.11", 7789)
    };
    let here = |source: &str, destination: &str| TracePacket {
        destination_kind: DestinationKind::Local,
        ..to(source, destination, 7789)
    };
    let group = |source: &str, group: &str| TracePacket {
        destination_kind: DestinationKind::Multicast,
        ..to(source, group, 7789)
    };
    for (packet, meaning) in [
        (to("10.244.1.13", "10.6.0.12", 7789), "another node's"),
        (
            to("10.244.1.13", "10.7.0.12", 7789),
            "another node's, by an address that peers don't use",
        ),
        (
            to("fd10:244:1::11", "fd07::12", 7789),
            "another node's, by an address that peers don't use, IPv6",
        ),
        (
            here("10.6.0.12", "10.7.0.11"),
            "this node's, by an address that peers don't use, with the source of one",
        ),
        (
            here("fd00::12", "fd07::11"),
            "this node's, by an address that peers don't use, with the source of one, IPv6",
        ),
        (
            service(here("10.6.0.12", "10.6.0.11")),
            "this node's, behind a service, with the source of a peer",
        ),
        (group("10.244.1.13", "224.0.0.1"), "every node's"),
        (
            group("10.6.0.12", "224.0.0.1"),
            "every node's, with the source of a peer",
        ),
        (group("fd10:244:1::11", "ff02::1"), "every node's, IPv6"),
        (
            service(to("10.244.1.13", "10.6.0.12", 7789)),
            "another node's, behind a service",
        ),
        (own.clone(), "this node's"),
        (service(own), "this node's, behind a service"),
        (
            to("fd10:244:1::11", "fd00::12", 7789),
            "another node's, IPv6",
        ),
    ] {
        assert_eq!(end(&*state, &packet), Some("drop_not_peer"), "{meaning}");
    }
    for (packet, meaning) in [
        (to("10.244.1.13", "10.6.0.12", 7788), "another port"),
        (to("10.244.1.13", "10.6.4.1", 7789), "somebody outside"),
        (packet("10.244.1.13", "10.6.0.12"), "another protocol"),
        (
            TracePacket {
                state: ConnectionState::Untracked,
                ..here("10.6.0.12", "10.6.0.11")
            },
            "a peer's",
        ),
        (
            TracePacket {
                state: ConnectionState::Untracked,
                ..here("fd00::12", "fd00::11")
            },
            "a peer's, IPv6",
        ),
    ] {
        assert_eq!(end(&*state, &packet), None, "{meaning}");
    }
}

/// What becomes of a packet that goes on to `eth0`.
fn forwarded(state: &dyn Trace, packet: &TracePacket) -> TraceVerdict {
    match state.trace(packet) {
        TraceVerdict::Accept {
            packet_mark,
            connection_mark,
            ..
        } => state.trace_forward(
            &TracePacket {
                connection_mark,
                packet_mark,
                ..packet.clone()
            },
            "eth0",
        ),
        dropped @ TraceVerdict::Drop { .. } => dropped,
    }
}

fn what_a_service_leads_to_is_governed_as_it_is_or_dropped(state: Rules<'_>) {
    let state = state(&client());
    for front in ["10.96.0.1", "10.6.4.7"] {
        let service = |source: &str, destination: &str| {
            forwarded(
                &*state,
                &TracePacket {
                    packet_mark: 0x4000,
                    ..packet(source, destination).sent_to(ip(front))
                },
            )
        };
        for (source, destination, meaning) in [
            ("10.244.1.13", "10.6.1.1", "a pod without a policy"),
            ("10.244.1.10", "10.6.4.1", "not governed"),
            ("10.244.1.10", "10.6.0.11", "a node"),
            ("10.244.1.10", "10.244.1.99", "a pod"),
        ] {
            let found = service(source, destination);
            assert!(goes_its_own_way(&found), "{front}, {meaning}: {found:?}");
        }
        for (source, destination, meaning) in [
            ("10.244.1.10", "10.6.1.1", "past the tunnel"),
            ("10.244.1.10", "10.6.3.1", "held"),
            ("10.244.1.99", "10.6.1.1", "a pod that nobody knows"),
        ] {
            let found = service(source, destination);
            assert!(
                matches!(found, TraceVerdict::Drop { counter: Some(_) }),
                "{front}, {meaning}: {found:?}"
            );
        }
    }
    let governed = packet("10.244.1.10", "10.244.1.12").sent_to(ip("10.6.1.1"));
    let found = forwarded(&*state, &governed);
    assert!(
        goes_its_own_way(&found),
        "sent to what is governed, and translated into the cluster: {found:?}"
    );
}

/// Goes on without a pin and without a mark of ours.
fn goes_its_own_way(verdict: &TraceVerdict) -> bool {
    matches!(verdict, TraceVerdict::Accept { packet_mark, connection_mark: 0, .. } if packet_mark >> 24 == 0)
}

fn the_nodes_address_is_the_one_of_the_device_and_the_kernel_chooses_only_where_none_is_known(
    state: Rules<'_>,
) {
    let state = state(&gateway());
    let by = |source: &str, destination: &str, device: &str| {
        let packet = TracePacket {
            connection_mark: EXIT,
            ..packet(source, destination)
        };
        state.trace_source(&packet, device)
    };
    assert_eq!(
        by("10.244.1.10", "10.6.1.1", "eth1"),
        TraceSource::Address(ip("10.7.0.11"))
    );
    assert_eq!(
        by("10.244.1.10", "10.6.1.1", "eth2"),
        TraceSource::Masquerade
    );
    assert_eq!(
        by("fd10:244:1::10", "fd00::1:7", "eth1"),
        TraceSource::Masquerade,
        "it has no IPv6 address"
    );
}

fn what_has_an_egress_address_of_another_network_leaves_there(state: Rules<'_>) {
    const NETWORK: u32 = 0x0500_0000;
    let state = state(&on_two_networks());
    for first in [
        packet("10.244.1.10", "10.6.2.1"),
        packet("10.244.1.10", "10.6.2.1").from_device(OVERLAY),
    ] {
        assert_eq!(
            state.trace(&first),
            marks(NETWORK, NETWORK, &[]),
            "{first:?}"
        );
    }
    assert_eq!(
        state.trace(&packet("10.244.1.10", "10.6.1.1")),
        marks(0, EXIT, &[]),
        "the node's address"
    );
    assert_eq!(
        state.trace(&packet("fd10:244:1::10", "fd00::2:1")),
        marks(0, EXIT, &[]),
        "an address of the underlay"
    );
    let pinned = |direction| TracePacket {
        connection_mark: NETWORK,
        direction,
        ..packet("10.244.1.10", "10.6.2.1")
    };
    let later = TracePacket {
        state: ConnectionState::Established,
        ..pinned(Direction::Original)
    };
    assert_eq!(state.trace(&later), marks(NETWORK, NETWORK, &[]));
    let answer = TracePacket {
        state: ConnectionState::Established,
        ..pinned(Direction::Reply)
    };
    assert_eq!(
        state.trace(&answer.clone().from_device("eth1")),
        marks(NETWORK, NETWORK, &[]),
        "for the reverse-path filter"
    );
    assert_eq!(
        state.trace(&answer.from_device("eth0")),
        marks(0, NETWORK, &[]),
        "by another device"
    );
    let leaving = TracePacket {
        packet_mark: NETWORK,
        ..later.clone()
    };
    assert_eq!(
        state.trace_forward(&leaving, "eth1"),
        marks(NETWORK, NETWORK, &[])
    );
    let source = state.trace_source(
        &TracePacket {
            packet_mark: NETWORK,
            ..pinned(Direction::Original)
        },
        "eth1",
    );
    assert_eq!(source, TraceSource::Address(ip("10.6.0.200")));
    let gone = TracePacket {
        connection_mark: 0x0600_0000,
        ..later
    };
    assert_eq!(
        state.trace(&gone),
        dropped("drop_no_gateway"),
        "the network is gone"
    );
    assert_eq!(
        state.trace_forward(&gone, "eth1"),
        dropped("drop_no_gateway")
    );
}
