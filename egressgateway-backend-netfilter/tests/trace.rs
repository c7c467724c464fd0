//! What a packet meets, walked through the rendered rules.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use egressgateway::{Driver, PolicyDesired, model::MarkMask};
use egressgateway_backend_netfilter::{
    ConnectionState, DestinationKind, Direction, Netfilter, NetfilterSettings, NetfilterState, TracePacket, TraceSource, TraceVerdict,
};
use support::{gateway, ip, world};

const EXIT: u32 = 0x1200_0000;
const OVERLAY: &str = "egress-vxlan-v4";

fn state(desired: &PolicyDesired) -> NetfilterState {
    Netfilter::new(NetfilterSettings::default(), Arc::new(())).plan(desired, &NetfilterState::default()).unwrap().after
}

fn packet(source: &str, destination: &str) -> TracePacket {
    TracePacket::new(ip(source), ip(destination))
}

fn marks(packet: u32, connection: u32, counted: &[&'static str]) -> TraceVerdict {
    TraceVerdict::Accept { untracked: false, packet_mark: packet, connection_mark: connection, counted: counted.to_vec() }
}

fn dropped(counter: &'static str) -> TraceVerdict {
    TraceVerdict::Drop { counter: Some(counter) }
}

#[test]
fn a_pods_new_connection_is_steered_as_its_class_and_destination_say() {
    let state = state(&world());
    let untouched = marks(0, 0, &[]);
    for (source, destination, verdict) in [
        ("10.244.1.10", "10.6.1.76", marks(0x1100_0000, 0x1100_0000, &["steered"])),
        ("10.244.1.10", "10.6.1.77", untouched.clone()),
        ("10.244.1.10", "10.6.2.1", marks(0x1300_0000, 0x1300_0000, &["steered"])),
        ("10.244.1.10", "10.6.3.1", dropped("drop_held")),
        ("10.244.1.10", "10.6.4.1", untouched.clone()),
        ("10.244.1.10", "10.6.5.5", dropped("drop_no_gateway")),
        ("10.244.1.10", "10.96.0.10", untouched.clone()),
        ("fd10:244:1::10", "fd00::1:7", marks(0x1100_0000, 0x1100_0000, &["steered"])),
        ("fd10:244:1::10", "fd00::7", untouched.clone()),
        ("fd10:244:1::11", "2001:db8::1", marks(0x1100_0000, 0x1100_0000, &["steered"])),
        ("10.250.3.4", "10.6.9.9", marks(0x1100_0000, 0x1100_0000, &["steered"])),
        ("10.251.0.6", "10.6.3.1", dropped("drop_held")),
        ("10.251.0.7", "10.6.3.1", untouched.clone()),
        ("10.244.1.12", "10.6.1.1", marks(0, EXIT, &[])),
        ("10.244.1.13", "10.6.1.1", untouched.clone()),
        ("10.244.1.99", "10.6.1.1", dropped("drop_start_gate")),
        ("10.244.1.99", "10.96.0.10", untouched.clone()),
        ("192.0.2.1", "10.6.1.1", untouched),
    ] {
        assert_eq!(state.trace(&packet(source, destination)), verdict, "{source} → {destination}");
    }
}

#[test]
fn an_exact_address_takes_precedence_over_its_subnet() {
    let mut desired = world();
    desired.pods.insert(ip("10.250.3.4"), support::class(1));
    assert_eq!(state(&desired).trace(&packet("10.250.3.4", "10.6.3.1")), dropped("drop_held"));
}

#[test]
fn later_packets_follow_the_pin_and_replies_are_left_alone() {
    let state = state(&world());
    let mut later = packet("10.244.1.10", "10.6.4.1");
    later.state = ConnectionState::Established;
    assert_eq!(state.trace(&later), marks(0, 0, &[]), "began before");
    later.connection_mark = 0x1300_0042;
    later.packet_mark = 0x4000;
    assert_eq!(state.trace(&later), marks(0x1300_4000, 0x1300_0042, &[]), "others' bits stay");
    later.connection_mark = 0x7700_0000;
    assert_eq!(state.trace(&later), dropped("drop_no_gateway"), "the target is gone");
    later.direction = Direction::Reply;
    assert_eq!(state.trace(&later), marks(0x4000, 0x7700_0000, &[]));
}

#[test]
fn what_belongs_to_no_connection_does_not_leave_where_it_is_governed() {
    let state = state(&world());
    let mut stray = packet("10.244.1.10", "10.6.1.1");
    stray.state = ConnectionState::Invalid;
    assert_eq!(state.trace(&stray), dropped("drop_no_gateway"));
    stray.destination = ip("10.6.4.1");
    assert_eq!(state.trace(&stray), marks(0, 0, &[]));
}

#[test]
fn what_is_for_this_host_or_a_group_is_not_steered() {
    let state = state(&world());
    for kind in [DestinationKind::Local, DestinationKind::Multicast] {
        let mut local = packet("10.244.1.11", "10.6.9.1");
        local.destination_kind = kind;
        assert_eq!(state.trace(&local), marks(0, 0, &[]), "{kind:?}");
    }
}

#[test]
fn a_gateway_lets_out_what_its_targets_cover_and_drops_other_sources() {
    let mut desired = gateway();
    let from_overlay = |source: &str, destination: &str| packet(source, destination).from_device(OVERLAY);
    let exits = marks(0, EXIT, &[]);
    for (source, destination, strict, open) in [
        ("10.244.1.10", "10.6.1.1", exits.clone(), exits.clone()),
        ("10.244.1.10", "10.6.2.1", exits.clone(), exits.clone()),
        ("10.244.1.10", "10.6.3.1", dropped("drop_held"), dropped("drop_held")),
        ("10.244.1.12", "10.6.1.1", dropped("drop_no_gateway"), dropped("drop_no_gateway")),
        ("10.244.9.9", "10.6.1.1", dropped("drop_unknown_source"), exits.clone()),
        ("10.244.1.10", "10.6.1.77", dropped("drop_unknown_source"), exits.clone()),
        ("172.31.0.2", "10.6.0.11", marks(0, 0, &[]), marks(0, 0, &[])),
    ] {
        desired.overlay.unknown_may_exit = false;
        assert_eq!(state(&desired).trace(&from_overlay(source, destination)), strict, "strict: {source} → {destination}");
        desired.overlay.unknown_may_exit = true;
        assert_eq!(state(&desired).trace(&from_overlay(source, destination)), open, "open: {source} → {destination}");
    }
}

#[test]
fn the_source_at_the_exit_is_what_the_policy_says() {
    let mut desired = gateway();
    desired
        .destinations
        .insert((support::class(1), support::range("10.6.7.0/24")), support::egress(0x11, egressgateway::model::SourceNat::Keep));
    let unknown = |may_exit| {
        let mut desired = desired.clone();
        desired.overlay.unknown_may_exit = may_exit;
        state(&desired)
    };
    let leaving = |source: &str, destination: &str| TracePacket { connection_mark: EXIT | 5, ..packet(source, destination) };
    let strict = unknown(false);
    for (source, destination, expected) in [
        ("10.244.1.10", "10.6.1.1", TraceSource::Masquerade),
        ("10.244.1.10", "10.6.2.1", TraceSource::Address(ip("10.6.0.200"))),
        ("fd10:244:1::10", "fd00::2:1", TraceSource::Address(ip("fd00::200"))),
        ("10.244.1.10", "10.6.7.1", TraceSource::Itself),
        ("10.244.9.9", "10.6.1.1", TraceSource::Drop { counter: Some("drop_unknown_source") }),
    ] {
        assert_eq!(strict.trace_source(&leaving(source, destination), "eth0"), expected, "{source} → {destination}");
    }
    assert_eq!(unknown(true).trace_source(&leaving("10.244.9.9", "10.6.1.1"), "eth0"), TraceSource::Masquerade);
    assert_eq!(strict.trace_source(&packet("10.244.1.10", "10.6.1.1"), "eth0"), TraceSource::Untouched, "not pinned");
    assert_eq!(strict.trace_source(&packet("10.244.1.10", "10.6.1.1"), OVERLAY), TraceSource::Itself, "enters the tunnel");
}

#[test]
fn the_guard_lets_a_steered_connection_leave_through_the_overlay_only() {
    let state = state(&world());
    let pinned = |mark| TracePacket { connection_mark: mark, state: ConnectionState::Established, ..packet("10.244.1.10", "10.6.1.1") };
    assert_eq!(state.trace_forward(&pinned(0x1100_0000), "eth0"), dropped("drop_no_gateway"));
    assert_eq!(state.trace_forward(&pinned(0x1100_0000), OVERLAY), marks(0, 0x1100_0000, &[]));
    assert_eq!(state.trace_forward(&pinned(EXIT), "eth0"), marks(0, EXIT, &[]));
    assert_eq!(state.trace_forward(&pinned(EXIT).from_device(OVERLAY), OVERLAY), dropped("drop_no_gateway"), "a loop");
    assert_eq!(state.trace_forward(&pinned(0), "eth0"), marks(0, 0, &[]));
    let reply = TracePacket { direction: Direction::Reply, ..pinned(0x1100_0000) };
    assert_eq!(state.trace_forward(&reply, "cali1"), marks(0, 0x1100_0000, &[]));
}

#[test]
fn another_mask_moves_our_byte_and_only_governed_packets_lend_bits() {
    let settings = NetfilterSettings { mask: MarkMask::new(0x00ff_0000).unwrap(), ..NetfilterSettings::default() };
    let state = Netfilter::new(settings, Arc::new(())).plan(&world(), &NetfilterState::default()).unwrap().after;
    let busy = TracePacket { connection_mark: 0x4400_0001, packet_mark: 0x4400_c000, ..packet("10.244.1.10", "10.6.1.1") };
    assert_eq!(state.trace(&busy), marks(0x4411_0000, 0x4411_0001, &["steered"]), "lent and zeroed");
    let others = TracePacket { source: ip("10.244.1.13"), ..busy };
    assert_eq!(state.trace(&others), marks(0x4400_c000, 0x4400_0001, &[]));
}

#[test]
fn what_leaves_a_gateway_as_itself_is_not_tracked_there() {
    let mut desired = gateway();
    let kept = support::egress(0x11, egressgateway::model::SourceNat::Keep);
    desired.destinations.insert((support::class(1), support::range("10.6.7.0/24")), kept);
    let arriving = |destination: &str| packet("10.244.1.10", destination).from_device(OVERLAY);
    let untracked = TraceVerdict::Accept { untracked: true, packet_mark: 0, connection_mark: 0, counted: Vec::new() };
    assert_eq!(state(&desired).trace(&arriving("10.6.7.1")), untracked);
    assert_eq!(state(&desired).trace(&arriving("10.6.1.1")), marks(0, EXIT, &[]), "what is translated is tracked");
    let later = TracePacket { state: ConnectionState::Untracked, ..arriving("10.6.7.1") };
    assert_eq!(state(&desired).trace_source(&later, "eth0"), TraceSource::Itself);
    assert_eq!(state(&desired).trace_forward(&later, OVERLAY), dropped("drop_no_gateway"), "a loop");
    desired.accepts.clear();
    assert_eq!(state(&desired).trace(&arriving("10.6.7.1")), dropped("drop_no_gateway"), "a gateway no more");
}
