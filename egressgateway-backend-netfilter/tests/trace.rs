//! What a packet meets, walked through the rendered rules.
#![allow(clippy::unwrap_used)]

use egressgateway::{
    Driver, PolicyDesired,
    model::MarkMask,
    testing::{
        classification,
        distributed::{self, Echo6},
        worlds::{client, ip},
    },
    trace::{Trace, TracePacket, TraceVerdict},
};
use egressgateway_backend_netfilter::{Netfilter, NetfilterSettings, NetfilterState};

fn rules(settings: NetfilterSettings, desired: &PolicyDesired) -> NetfilterState {
    Netfilter::offline(settings)
        .plan(desired, &NetfilterState::default())
        .unwrap()
        .after
}

fn marks(packet_mark: u32, connection_mark: u32, counted: &[&'static str]) -> TraceVerdict {
    TraceVerdict::Accept {
        untracked: false,
        packet_mark,
        connection_mark,
        counted: counted.to_vec(),
    }
}

#[test]
fn packets_meet_what_every_backend_must_say() {
    classification::check(&|desired| Box::new(rules(NetfilterSettings::default(), desired)));
}

#[test]
fn packets_that_their_own_node_translates_meet_what_every_backend_must_say() {
    distributed::check(
        &|desired| Box::new(rules(NetfilterSettings::default(), desired)),
        Echo6::Dropped,
    );
}

#[test]
fn another_mask_moves_our_byte_and_only_governed_packets_lend_bits() {
    let settings = NetfilterSettings::default().with_mask(MarkMask::new(0x00ff_0000).unwrap());
    let state = rules(settings, &client());
    let busy = TracePacket {
        connection_mark: 0x4400_0001,
        packet_mark: 0x4400_c000,
        ..TracePacket::new(ip("10.244.1.10"), ip("10.6.1.1"))
    };
    assert_eq!(
        state.trace(&busy),
        marks(0x4411_0000, 0x4411_0001, &["steered"]),
        "lent and zeroed"
    );
    let others = TracePacket {
        source: ip("10.244.1.13"),
        ..busy
    };
    assert_eq!(state.trace(&others), marks(0x4400_c000, 0x4400_0001, &[]));
}
