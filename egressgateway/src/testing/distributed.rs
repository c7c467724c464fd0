//! What a policy backend's rules must mean where pods' own nodes translate: one list of packets and
//! of what they meet, for every backend that can be [traced](Trace).

use imbl::{OrdMap, OrdSet};

use crate::{
    PolicyDesired,
    model::{PortBlock, SourceNat},
    testing::worlds::{class, client, egress, ip, range, target},
    trace::{
        ConnectionState, Direction, Trace, TracePacket, TraceProtocol, TraceSource, TraceVerdict,
    },
};

const TARGET: u8 = 0x15;
const PIN: u32 = 0x1500_0000;
const ANSWER: u32 = 0x1000_0000;
const OVERLAY: &str = "egress-vxlan-v4";
const POD: &str = "10.244.1.10";
const SERVER: &str = "10.6.7.7";
const ADDRESS: &str = "10.6.0.210";
const POD6: &str = "fd10:244:1::10";
const SERVER6: &str = "fd00::7:7";
const ADDRESS6: &str = "fd00::210";

/// The rules that a backend makes of a desired state from nothing, with the default mask.
type Rules<'a> = &'a dyn Fn(&PolicyDesired) -> Box<dyn Trace>;

/// Whether a backend can choose the identifiers of ICMPv6 echoes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Echo6 {
    /// It can.
    Translated,
    /// It can't, so that they are dropped.
    Dropped,
}

/// Holds a backend to the list.
///
/// # Panics
/// When a packet meets something else.
pub fn check(rules: &dyn Fn(&PolicyDesired) -> Box<dyn Trace>, echo6: Echo6) {
    a_connection_is_translated_on_its_own_node_and_sent_by_the_tunnel(rules);
    without_ports_nothing_leaves(rules);
    what_has_no_ports_is_dropped_before_it_is_pinned(rules, echo6);
    answers_come_back_by_the_tunnel_and_what_belongs_to_no_connection_ends(rules);
    a_gateway_passes_on_what_a_relay_has_seen_and_nothing_else(rules);
    a_gateways_own_pods_are_pinned_to_the_target_and_leave_here(rules);
    what_others_sent_to_a_pod_first_is_not_answered_through_a_gateway(rules);
}

/// Some ports of an address.
///
/// # Panics
/// Never for the blocks of this list.
#[must_use]
pub fn blocks(ports: &[(u16, u16)]) -> OrdSet<PortBlock> {
    ports
        .iter()
        .filter_map(|(first, last)| PortBlock::of_ports(*first, *last).ok())
        .collect()
}

/// The client node of [`client`], where 1a goes to 10.6.7.0/24 and fd00::7:0/112 through 15 with
/// ports of 10.6.0.210 and fd00::210 that this node has.
#[must_use]
pub fn distributed_client() -> PolicyDesired {
    let mut client = client();
    for (net, address) in [("10.6.7.0/24", ADDRESS), ("fd00::7:0/112", ADDRESS6)] {
        client.destinations.insert(
            (class(1), range(net)),
            egress(TARGET, SourceNat::Ports(ip(address))),
        );
    }
    client.targets.insert(target(TARGET));
    client.distributed.insert(target(TARGET));
    client.relayed = [ADDRESS, ADDRESS6].map(ip).into_iter().collect();
    client.blocks = [
        (ip(ADDRESS), blocks(&[(2048, 3071), (8192, 8447)])),
        (ip(ADDRESS6), blocks(&[(2048, 3071)])),
    ]
    .into_iter()
    .collect();
    client
}

/// The same where what goes through 15 leaves from this node.
#[must_use]
pub fn distributed_exit() -> PolicyDesired {
    let mut exit = distributed_client();
    exit.exits.insert(target(TARGET));
    exit
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

/// A later packet of a connection that was steered.
fn later(source: &str, destination: &str) -> TracePacket {
    TracePacket {
        state: ConnectionState::Established,
        connection_mark: PIN,
        source_translated: true,
        ..packet(source, destination)
    }
}

fn a_connection_is_translated_on_its_own_node_and_sent_by_the_tunnel(rules: Rules<'_>) {
    let state = rules(&distributed_client());
    for (pod, server, address, device) in [
        (POD, SERVER, ADDRESS, OVERLAY),
        (POD6, SERVER6, ADDRESS6, "egress-vxlan-v6"),
    ] {
        let first = packet(pod, server);
        assert_eq!(state.trace(&first), marks(PIN, PIN, &["steered"]), "{pod}");
        let steered = TracePacket {
            packet_mark: PIN,
            connection_mark: PIN,
            ..first
        };
        // Whether the mark goes here or after routing, is the backend's own.
        let forwarded = state.trace_forward(&steered, device);
        assert!(
            matches!(&forwarded, TraceVerdict::Accept { connection_mark: PIN, counted, .. } if counted == &["tunnelled"]),
            "{forwarded:?}"
        );
        assert_eq!(
            state.trace_source(&steered, device),
            TraceSource::Ports(ip(address))
        );
        // By any other device it is not let out, whatever took its mark away.
        assert_eq!(
            state.trace_forward(&steered, "eth0"),
            dropped("drop_no_gateway")
        );
        assert_eq!(state.trace(&later(pod, server)), marks(PIN, PIN, &[]));
    }
    // Beside it, what gateways translate is as ever.
    assert_eq!(
        state.trace_source(
            &TracePacket {
                packet_mark: 0x1100_0000,
                connection_mark: 0x1100_0000,
                ..packet(POD, "10.6.1.1")
            },
            OVERLAY
        ),
        TraceSource::Itself
    );
}

fn without_ports_nothing_leaves(rules: Rules<'_>) {
    let mut desired = distributed_client();
    desired.blocks = OrdMap::new();
    let state = rules(&desired);
    assert_eq!(state.trace(&packet(POD, SERVER)), dropped("drop_held"));
    assert_eq!(state.trace(&packet(POD6, SERVER6)), dropped("drop_held"));
    let pinned = TracePacket {
        connection_mark: PIN,
        ..packet(POD, SERVER)
    };
    let source = state.trace_source(&pinned, OVERLAY);
    assert!(
        matches!(source, TraceSource::Drop { .. }),
        "pinned a moment before the ports went: {source:?}"
    );
    // Without a way, ports are of no use.
    let mut desired = distributed_client();
    desired.targets.remove(&target(TARGET));
    let state = rules(&desired);
    assert_eq!(
        state.trace(&packet(POD, SERVER)),
        dropped("drop_no_gateway")
    );
    assert_eq!(state.trace(&later(POD, SERVER)), dropped("drop_no_gateway"));
}

fn what_has_no_ports_is_dropped_before_it_is_pinned(rules: Rules<'_>, echo6: Echo6) {
    let state = rules(&distributed_client());
    for (pod, server) in [(POD, SERVER), (POD6, SERVER6)] {
        let portless = packet(pod, server).carrying(TraceProtocol::Portless);
        assert_eq!(state.trace(&portless), dropped("drop_no_port"));
        let echo = packet(pod, server).carrying(TraceProtocol::Icmp);
        let expected = if pod == POD6 && echo6 == Echo6::Dropped {
            dropped("drop_no_port")
        } else {
            marks(PIN, PIN, &["steered"])
        };
        assert_eq!(state.trace(&echo), expected);
    }
    let elsewhere = packet(POD, "10.6.1.1").carrying(TraceProtocol::Portless);
    assert_eq!(
        state.trace(&elsewhere),
        marks(0x1100_0000, 0x1100_0000, &["steered"]),
        "a gateway translates every protocol"
    );
}

fn answers_come_back_by_the_tunnel_and_what_belongs_to_no_connection_ends(rules: Rules<'_>) {
    let state = rules(&distributed_client());
    // Connection tracking has put the pod's address back.
    let answer = TracePacket {
        direction: Direction::Reply,
        ..later(SERVER, POD)
    }
    .from_device(OVERLAY);
    assert_eq!(state.trace(&answer), marks(0, PIN, &[]));
    assert_eq!(state.trace_forward(&answer, "veth1"), marks(0, PIN, &[]));
    for stray in [
        packet(SERVER, ADDRESS),
        packet(SERVER6, ADDRESS6),
        packet(SERVER, ADDRESS).carrying(TraceProtocol::Icmp),
    ] {
        for state_of in [
            ConnectionState::New,
            ConnectionState::Invalid,
            ConnectionState::Untracked,
        ] {
            let stray = TracePacket {
                state: state_of,
                ..stray.clone().from_device(OVERLAY)
            };
            assert_eq!(
                state.trace(&stray),
                dropped("drop_unknown_source"),
                "{stray:?}"
            );
        }
    }
}

fn a_gateway_passes_on_what_a_relay_has_seen_and_nothing_else(rules: Rules<'_>) {
    for desired in [distributed_client(), distributed_exit()] {
        let state = rules(&desired);
        for (address, server) in [(ADDRESS, SERVER), (ADDRESS6, SERVER6)] {
            let bare = packet(address, server).from_device(OVERLAY);
            assert_eq!(
                state.trace(&bare),
                dropped("drop_unknown_source"),
                "no relay has looked at it"
            );
            let untracked = TracePacket {
                state: ConnectionState::Untracked,
                ..bare
            };
            assert_eq!(state.trace(&untracked), dropped("drop_unknown_source"));
            let seen = TracePacket {
                packet_mark: ANSWER,
                ..untracked
            };
            let passed = TraceVerdict::Accept {
                untracked: true,
                packet_mark: 0,
                connection_mark: 0,
                counted: Vec::new(),
            };
            assert_eq!(state.trace(&seen), passed);
            let seen = TracePacket {
                packet_mark: 0,
                ..seen
            };
            assert_eq!(state.trace_forward(&seen, "eth0"), passed);
        }
    }
}

fn a_gateways_own_pods_are_pinned_to_the_target_and_leave_here(rules: Rules<'_>) {
    let state = rules(&distributed_exit());
    for (pod, server, address) in [(POD, SERVER, ADDRESS), (POD6, SERVER6, ADDRESS6)] {
        let first = packet(pod, server);
        assert_eq!(state.trace(&first), marks(0, PIN, &[]));
        let pinned = TracePacket {
            connection_mark: PIN,
            ..first
        };
        assert_eq!(state.trace_forward(&pinned, "eth0"), marks(0, PIN, &[]));
        assert_eq!(
            state.trace_source(&pinned, "eth0"),
            TraceSource::Ports(ip(address))
        );
        assert_eq!(
            state.trace(&later(pod, server)),
            marks(0, PIN, &[]),
            "the host's own routes lead it out"
        );
        assert_eq!(
            state.trace_forward(&later(pod, server), "eth0"),
            marks(0, PIN, &[])
        );
        // It began before the gateway's sources were translated here.
        let bare = TracePacket {
            source_translated: false,
            ..later(pod, server)
        };
        assert_eq!(
            state.trace_forward(&bare, "eth0"),
            dropped("drop_no_gateway")
        );
    }
    // Another node has become the gateway: the same connections go there.
    let state = rules(&distributed_client());
    assert_eq!(state.trace(&later(POD, SERVER)), marks(PIN, PIN, &[]));
}

fn what_others_sent_to_a_pod_first_is_not_answered_through_a_gateway(rules: Rules<'_>) {
    for desired in [distributed_client(), distributed_exit()] {
        let state = rules(&desired);
        let answer = TracePacket {
            state: ConnectionState::Established,
            direction: Direction::Reply,
            connection_mark: ANSWER,
            ..packet(POD, SERVER)
        };
        assert_eq!(state.trace(&answer), dropped("drop_no_gateway"));
    }
}
