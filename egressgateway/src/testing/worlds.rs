//! Desired states that tests of policy backends share: one client node, one gateway, and what they
//! are made of.
//!
//! All functions panic on a text that is not what it should be: the texts are written in tests.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

use std::net::IpAddr;

use imbl::{OrdMap, OrdSet};
use ipnet::IpNet;

use crate::{
    ExitNetwork, Overlay, PolicyDesired, StartGate,
    model::{ClassId, Family, IpRange, NetworkId, SourceNat, TargetId, Verdict},
};

/// An address.
#[must_use]
pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// "a-b", a prefix or an address.
#[must_use]
pub fn range(text: &str) -> IpRange {
    match text.split_once('-') {
        Some((first, last)) => IpRange::new(ip(first), ip(last)).unwrap(),
        None => text
            .parse::<IpNet>()
            .map_or_else(|_| IpRange::single(ip(text)), IpRange::from),
    }
}

/// A class by its number.
#[must_use]
pub fn class(id: u32) -> ClassId {
    ClassId::new(id).unwrap()
}

/// A target by its mark byte.
#[must_use]
pub fn target(byte: u8) -> TargetId {
    TargetId::new(byte).unwrap()
}

/// Leaves through a target.
#[must_use]
pub fn egress(byte: u8, source_nat: SourceNat) -> Verdict {
    Verdict::Egress {
        target: target(byte),
        source_nat,
    }
}

/// A client node: 1a goes to 10.6.1.0/24 but for .77 through 11, to 10.6.2.0/24 through 13; 1b to
/// everywhere through 11; 2a exits here.
#[must_use]
pub fn client() -> PolicyDesired {
    let node = SourceNat::NodeAddress;
    PolicyDesired {
        distributed: OrdSet::new(),
        blocks: OrdMap::new(),
        relayed: OrdSet::new(),
        pods: [
            ("10.244.1.10", 1),
            ("fd10:244:1::10", 1),
            ("10.244.1.11", 2),
            ("fd10:244:1::11", 2),
            ("10.244.1.12", u32::MAX),
        ]
        .map(|(pod, id)| (ip(pod), class(id)))
        .into_iter()
        .collect(),
        subnets: [
            ("10.250.0.0/16", 2),
            ("fd10:250::/32", 2),
            ("10.251.0.1-10.251.0.6", 1),
        ]
        .map(|(net, id)| (range(net), class(id)))
        .into_iter()
        .collect(),
        destinations: [
            (1, "10.6.1.0-10.6.1.76", egress(0x11, node)),
            (1, "10.6.1.78-10.6.1.255", egress(0x11, node)),
            (
                1,
                "10.6.2.0/24",
                egress(0x13, SourceNat::Address(ip("10.6.0.200"))),
            ),
            (1, "10.6.3.0/24", Verdict::Hold),
            (1, "10.6.4.0/24", Verdict::Pass),
            (1, "10.6.5.5", egress(0x99, node)),
            (1, "fd00::1:0/112", egress(0x11, node)),
            (
                1,
                "fd00::2:0/112",
                egress(0x13, SourceNat::Address(ip("fd00::200"))),
            ),
            (2, "0.0.0.0/0", egress(0x11, node)),
            (2, "::/0", egress(0x11, node)),
            (u32::MAX, "10.6.1.0/24", egress(0x14, SourceNat::Keep)),
        ]
        .map(|(id, net, verdict)| ((class(id), range(net)), verdict))
        .into_iter()
        .collect(),
        exempt: [
            "10.244.0.0/16",
            "10.96.0.0/16",
            "10.97.0.0/16",
            "10.6.0.11/32",
            "10.6.0.0/24",
            "fd10:244::/32",
            "fd00::/112",
        ]
        .map(|net| net.parse::<IpNet>().unwrap())
        .into_iter()
        .collect(),
        targets: [0x11, 0x13, 0x14].map(target).into_iter().collect(),
        exits: [target(0x14)].into_iter().collect(),
        accepts: [target(0x14)].into_iter().collect(),
        ways_out: ["eth0".to_owned()].into_iter().collect(),
        start_gate: Some(StartGate {
            wide: imbl::OrdSet::new(),
            outside: imbl::OrdSet::new(),
            local: ["10.244.1.0/24", "fd10:244:1::/64"]
                .map(|net| net.parse::<IpNet>().unwrap())
                .into_iter()
                .collect(),
            known: [
                "10.244.1.10",
                "10.244.1.11",
                "10.244.1.12",
                "10.244.1.13",
                "fd10:244:1::10",
                "fd10:244:1::11",
            ]
            .map(ip)
            .into_iter()
            .collect(),
            governed: ["10.6.1.0/24", "10.6.2.0/24", "0.0.0.0/0", "::/0"]
                .map(range)
                .into_iter()
                .collect(),
        }),
        overlay: Overlay {
            devices: ["egress-vxlan-v4", "egress-vxlan-v6"]
                .map(str::to_owned)
                .into_iter()
                .collect(),
            port: 7789,
            peers: ["10.6.0.12", "10.6.0.13", "fd00::12"]
                .map(ip)
                .into_iter()
                .collect(),
            own: ["10.6.0.11", "fd00::11"].map(ip).into_iter().collect(),
            hosts: [
                "10.6.0.12",
                "10.6.0.13",
                "10.7.0.12",
                "fd00::12",
                "fd07::12",
            ]
            .map(ip)
            .into_iter()
            .collect(),
            mss: [(Family::V4, 1410_u16), (Family::V6, 1390)]
                .into_iter()
                .collect(),
            unknown_may_exit: false,
        },
        node_addresses: OrdMap::new(),
        networks: OrdMap::new(),
    }
}

/// The gateway of the same world: it answers for 11 and 13.
#[must_use]
pub fn gateway() -> PolicyDesired {
    let mut gateway = client();
    gateway.exits = [0x11, 0x13].map(target).into_iter().collect();
    gateway.accepts = gateway.exits.clone();
    let own = [
        (("eth0", Family::V4), "10.6.0.11"),
        (("eth0", Family::V6), "fd00::11"),
        (("eth1", Family::V4), "10.7.0.11"),
    ];
    gateway.node_addresses = own
        .map(|((device, family), address)| ((device.to_owned(), family), ip(address)))
        .into_iter()
        .collect();
    gateway
}

/// The same gateway where the egress address 10.6.0.200 belongs to the network of its second
/// device.
#[must_use]
pub fn on_two_networks() -> PolicyDesired {
    let network = ExitNetwork {
        device: "eth1".to_owned(),
        router: ip("10.6.0.1"),
        link: ["10.6.0.0/24".parse::<IpNet>().unwrap()]
            .into_iter()
            .collect(),
        addresses: [ip("10.6.0.200")].into_iter().collect(),
    };
    PolicyDesired {
        networks: NetworkId::new(5)
            .map(|id| (id, network))
            .into_iter()
            .collect(),
        ..gateway()
    }
}
