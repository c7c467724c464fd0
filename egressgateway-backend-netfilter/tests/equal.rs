//! The two backends mean the same: every packet meets the same verdict in both.
#![allow(clippy::unwrap_used)]

use egressgateway::testing::worlds::{
    class, client, egress, gateway, ip, on_two_networks, range, target,
};
use egressgateway::{
    Driver, PolicyDesired,
    model::{SourceNat, Verdict},
    trace::{
        Beginning, ConnectionState, DestinationKind, Direction, Trace, TracePacket, TraceProtocol,
        TraceSource, TraceVerdict,
    },
};
use egressgateway_backend_netfilter::{Netfilter, NetfilterSettings, NetfilterState};
use egressgateway_backend_nftables::{NftState, Nftables, NftablesSettings};

const SOURCES: [&str; 9] = [
    "10.244.1.10",
    "10.244.1.11",
    "10.244.1.12",
    "10.244.1.13",
    "10.244.1.99",
    "10.250.3.4",
    "10.250.3.5",
    "10.251.0.6",
    "192.0.2.1",
];
const SOURCES6: [&str; 5] = [
    "fd10:244:1::10",
    "fd10:244:1::11",
    "fd10:244:1::99",
    "fd10:250::7",
    "2001:db8::1",
];
const DESTINATIONS: [&str; 12] = [
    "10.6.1.76",
    "10.6.1.77",
    "10.6.1.78",
    "10.6.2.1",
    "10.6.3.1",
    "10.6.4.1",
    "10.6.5.5",
    "10.6.7.1",
    "10.6.0.11",
    "10.96.0.10",
    "10.9.9.9",
    "255.1.1.1",
];
const DESTINATIONS6: [&str; 5] = [
    "fd00::1:7",
    "fd00::2:7",
    "fd00::7",
    "fd10:244::1",
    "2001:db8::9",
];
const DEVICES: [&str; 3] = ["eth0", "egress-vxlan-v4", "egress-vxlan-v6"];

fn worlds() -> Vec<PolicyDesired> {
    let mut keeping = gateway();
    keeping.destinations.insert(
        (class(1), range("10.6.7.0/24")),
        egress(0x11, SourceNat::Keep),
    );
    keeping.destinations.insert(
        (class(2), range("10.0.0.0/8")),
        egress(0x13, SourceNat::Keep),
    );
    keeping.destinations.remove(&(class(2), range("0.0.0.0/0")));
    keeping.pods.insert(ip("10.250.3.4"), class(1));
    let mut open = gateway();
    open.overlay.unknown_may_exit = true;
    open.destinations
        .insert((class(1), range("10.6.9.0-10.6.9.99")), Verdict::Hold);
    let mut leaving = keeping.clone();
    leaving.targets.remove(&target(0x13));
    leaving.accepts.remove(&target(0x11));
    let mut waiting = client();
    waiting.start_gate = None;
    waiting.targets.clear();
    vec![
        client(),
        gateway(),
        on_two_networks(),
        keeping,
        open,
        leaving,
        waiting,
        PolicyDesired::default(),
    ]
}

const STATES: [ConnectionState; 4] = [
    ConnectionState::New,
    ConnectionState::Established,
    ConnectionState::Invalid,
    ConnectionState::Untracked,
];

/// What is said of a packet at every hook.
type Way = (TraceVerdict, TraceVerdict, TraceSource);

fn way(rules: &dyn Trace, packet: &TracePacket, out: &str) -> Way {
    (
        rules.trace(packet),
        rules.trace_forward(packet, out),
        rules.trace_source(packet, out),
    )
}

/// What a packet of that way also may meet in a backend that has changes in several steps: pinned
/// to leave here, although its verdict leads elsewhere, which only such a change lets a new
/// connection meet. It is dropped then.
fn or_dropped(way: &Way, desired: &PolicyDesired) -> Way {
    let mut dropped = way.clone();
    let as_node = |source| {
        desired
            .node_addresses
            .values()
            .any(|address| source == TraceSource::Address(*address))
    };
    if desired.overlay.unknown_may_exit && (way.2 == TraceSource::Masquerade || as_node(way.2)) {
        dropped.2 = TraceSource::Drop {
            counter: Some("drop_unknown_source"),
        };
    }
    dropped
}

/// The packets that each pair of addresses is tried with, and the device that they leave by.
fn packets(source: &str, destination: &str) -> Vec<(TracePacket, &'static str)> {
    let mut packets = Vec::new();
    for device in [None, Some(DEVICES[1])] {
        for connection_mark in [
            0,
            0x1000_0003,
            0x1100_0005,
            0x1200_0000,
            0x0500_0000,
            0x1300_0000,
            0x7700_0000,
        ] {
            let first = TracePacket {
                in_device: device.map(str::to_owned),
                connection_mark,
                ..TracePacket::new(ip(source), ip(destination))
            };
            for state in STATES {
                packets.push((
                    TracePacket {
                        state,
                        ..first.clone()
                    },
                    DEVICES[0],
                ));
                packets.push((
                    TracePacket {
                        state,
                        direction: Direction::Reply,
                        ..first.clone()
                    },
                    DEVICES[1],
                ));
            }
            packets.push((
                TracePacket {
                    beginning: Beginning::Unclear,
                    ..first.clone()
                },
                DEVICES[0],
            ));
            packets.push((
                TracePacket {
                    destination_kind: DestinationKind::Local,
                    ..first.clone()
                },
                DEVICES[0],
            ));
            let own = TracePacket {
                destination_kind: DestinationKind::Arrival,
                ..first.clone()
            };
            packets.push((own.clone().carrying(TraceProtocol::Icmp), DEVICES[0]));
            packets.push((own, DEVICES[0]));
            packets.push((
                TracePacket {
                    destination_kind: DestinationKind::Multicast,
                    ..first
                },
                DEVICES[2],
            ));
        }
    }
    packets
}

#[test]
fn every_packet_meets_the_same_verdict() {
    let mut compared = 0_u32;
    for (index, desired) in worlds().iter().enumerate() {
        let netfilter = Netfilter::offline(NetfilterSettings::default())
            .plan(desired, &NetfilterState::default())
            .unwrap()
            .after;
        let nftables = Nftables::offline(NftablesSettings::default())
            .plan(desired, &NftState::default())
            .unwrap()
            .after;
        let pairs = SOURCES
            .iter()
            .flat_map(|source| DESTINATIONS.map(|destination| (*source, destination)));
        let pairs6 = SOURCES6
            .iter()
            .flat_map(|source| DESTINATIONS6.map(|destination| (*source, destination)));
        for (packet, out) in pairs
            .chain(pairs6)
            .flat_map(|(source, destination)| packets(source, destination))
        {
            let (one, other) = (way(&netfilter, &packet, out), way(&nftables, &packet, out));
            assert!(
                one == other || one == or_dropped(&other, desired),
                "world {index}, {packet:?} to {out}: {one:?} and {other:?}"
            );
            compared += 1;
        }
    }
    assert!(compared > 50_000, "{compared}");
}
