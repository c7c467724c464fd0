//! What passes on connections that other nodes translate: plans, and promises on the real kernel.
//! Packets are in `relay_packets.rs`.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use egressgateway::{
    Change, Driver, Encap, ErrorKind, NextHop, Plan, PolicyMonitor, RelayDesired, RelayNode,
    WriteHook,
    model::{MacAddress, NodeName},
    testing::{
        conformance::{self, Host},
        worlds::ip,
    },
};
use egressgateway_backend_nftables::{NftablesSettings, Relay, RelayPlan, RelayState};
use egressgateway_testkit::{golden, netns::in_namespace, shell::run};
use imbl::{OrdMap, OrdSet};

struct Namespace;

#[async_trait]
impl Host<Relay> for Namespace {
    async fn driver(&self, hook: Arc<dyn WriteHook>) -> Relay {
        Relay::new(NftablesSettings::default(), hook)
    }

    async fn foreign(&self) -> String {
        run(
            "nft list table inet egressgateway; nft list table ip egressgateway_relay; nft list table netdev others",
        )
    }
}

/// A table of the policy backend's name, one of ours in another family, and another one with a
/// chain on the same device.
const NEIGHBOURS: &str = "nft 'add table inet egressgateway; add chain inet egressgateway forward; add table ip egressgateway_relay
    add table netdev others; add chain netdev others ingress { type filter hook ingress device eth0 priority 0; }'";
const DEVICES: &str = "ip link set lo up; ip link add eth0 type veth peer name eth0-peer; ip link add vx type veth peer name vx-peer";

fn node(number: u8) -> (NodeName, RelayNode) {
    let hop = |via: String| NextHop {
        device: "vx".to_owned(),
        via: ip(&via),
        encap: None,
    };
    let node = RelayNode {
        hops: [
            hop(format!("172.31.0.{number}")),
            hop(format!("fd31::{number:x}")),
        ]
        .into_iter()
        .collect(),
        underlay: [
            ip(&format!("10.6.0.{number}")),
            ip(&format!("fd06::{number:x}")),
        ]
        .into_iter()
        .collect(),
        mac: MacAddress([0xfe, 0, 0, 0, 0, number]),
    };
    (NodeName::from(format!("node{number}").as_str()), node)
}

const ADDRESSES: [&str; 2] = ["10.6.0.100", "fd06::100"];

/// Two nodes with four units each and one of this node's own, on an address of each family.
fn relay() -> RelayDesired {
    let units = [(11, 8..=11), (12, 12..=15), (21, 16..=16)];
    let bindings = units.into_iter().flat_map(|(number, units)| {
        units.flat_map(move |unit| {
            ADDRESSES.map(|address| ((ip(address), unit), node(number).0.clone()))
        })
    });
    RelayDesired {
        addresses: ADDRESSES.map(ip).into_iter().collect(),
        bindings: bindings.collect(),
        own: Some(node(21).0),
        nodes: [node(11), node(12)].into_iter().collect(),
        outside: ["eth0".to_owned()].into_iter().collect(),
        overlay: ["vx".to_owned()].into_iter().collect(),
        port: 7789,
    }
}

/// One address with all its units at one node.
fn crowded() -> RelayDesired {
    let units = 4..=u8::MAX;
    RelayDesired {
        addresses: [ip("10.6.0.100"), ip("10.6.0.101")].into_iter().collect(),
        bindings: units
            .flat_map(|unit| {
                ["10.6.0.100", "10.6.0.101"].map(|address| ((ip(address), unit), node(11).0))
            })
            .collect(),
        ..relay()
    }
}

fn host() -> RelayState {
    RelayState::on([
        ("lo".to_owned(), 1),
        ("eth0".to_owned(), 2),
        ("vx".to_owned(), 3),
    ])
}

fn plan(desired: &RelayDesired, current: &RelayState) -> Change<RelayPlan, RelayState> {
    Relay::offline(NftablesSettings::default())
        .plan(desired, current)
        .unwrap()
}

async fn reach(relay: &Relay, desired: &RelayDesired) -> RelayState {
    let Change { plan, after } = relay
        .plan(desired, &relay.observe().await.unwrap())
        .unwrap();
    relay.apply(&plan).await.unwrap();
    assert_eq!(relay.observe().await.unwrap(), after);
    after
}

#[test]
fn the_script_of_a_whole_relay_is_the_golden_one() {
    golden::check(
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/relay.nft"),
        &plan(&relay(), &host()).plan.to_string(),
    );
}

#[test]
fn a_port_that_changes_hands_costs_its_elements_and_no_rule() {
    let before = plan(&relay(), &host()).after;
    let mut desired = relay();
    desired.bindings.insert((ip("10.6.0.100"), 8), node(12).0);
    desired.bindings.remove(&(ip("fd06::100"), 15));
    desired.bindings.insert((ip("10.6.0.100"), 20), node(21).0);
    let Change {
        plan: script,
        after,
    } = plan(&desired, &before);
    assert_eq!(
        script.to_string(),
        "delete element inet egressgateway_relay owners4 { fe:00:00:00:00:0b . 10.6.0.100 . 8 }\n\
         delete element inet egressgateway_relay owners6 { fe:00:00:00:00:0c . fd06::100 . 15 }\n\
         delete element netdev egressgateway_relay blocks4 { 10.6.0.100 . 8 }\n\
         delete element netdev egressgateway_relay blocks6 { fd06::100 . 15 }\n\
         delete element netdev egressgateway_relay fragment_blocks4 { 10.6.0.100 . e667:8 }\n\
         delete element netdev egressgateway_relay fragment_blocks6 { fd06::100 . e667:f }\n\
         add element inet egressgateway_relay own4 { 10.6.0.100 . 20 }\n\
         add element inet egressgateway_relay owners4 { fe:00:00:00:00:0c . 10.6.0.100 . 8 }\n\
         add element netdev egressgateway_relay blocks4 { 10.6.0.100 . 8 : 172.31.0.12 }\n\
         add element netdev egressgateway_relay fragment_blocks4 { 10.6.0.100 . e667:8 : 172.31.0.12 }\n\
         add element netdev egressgateway_relay own4 { 10.6.0.100 . 20 }\n"
    );
    assert_eq!(
        after,
        plan(&desired, &host()).after,
        "the way does not show"
    );
}

#[test]
fn a_command_brings_no_more_elements_than_one_message_holds() {
    let elements = |script: &str| {
        script
            .lines()
            .filter(|line| line.contains(" element "))
            .map(|line| line.matches(", ").count() + 1)
            .max()
            .unwrap()
    };
    let change = plan(&crowded(), &host());
    assert_eq!(elements(&change.plan.to_string()), 256);
    let mut none = crowded();
    none.bindings.clear();
    let emptied = plan(&none, &change.after).plan.to_string();
    assert!(emptied.starts_with("delete element"));
    assert_eq!(elements(&emptied), 256);
}

#[test]
fn a_device_that_was_made_anew_has_the_rules_written_again() {
    let before = plan(&relay(), &host()).after;
    let device = |name: &str, index| {
        let mut devices: BTreeMap<String, u32> =
            [("lo".into(), 1), ("eth0".into(), 2), ("vx".into(), 3)].into();
        devices.insert(name.to_owned(), index);
        plan(&relay(), &RelayState::on(devices)).after
    };
    assert_eq!(device("eth9", 9), before, "another device is nothing to us");
    for name in ["vx", "eth0"] {
        assert_ne!(device(name, 9), before, "{name}");
    }
}

#[test]
fn where_the_tunnel_is_missing_everything_stands_but_the_forwarding() {
    let host = RelayState::on([("lo".to_owned(), 1), ("eth0".to_owned(), 2)]);
    let script = plan(&relay(), &host).plan.to_string();
    assert!(!script.contains(" fwd "), "{script}");
    for part in [
        "devices = { \"eth0\", \"lo\" }",
        "iifname { \"vx\" } ip saddr @egress4 goto owner4",
        "iifname { \"eth0\" } ip daddr @egress4 jump guard4",
        "blocks4 { 10.6.0.100 . 8 : 172.31.0.11",
    ] {
        assert!(script.contains(part), "{part}: {script}");
    }
}

#[test]
fn what_a_packet_filter_cant_do_is_refused() {
    let relay_of = |change: fn(&mut NextHop)| {
        let mut desired = relay();
        let (name, mut node) = node(12);
        node.hops = node
            .hops
            .iter()
            .cloned()
            .map(|mut hop| {
                change(&mut hop);
                hop
            })
            .collect();
        desired.nodes.insert(name, node);
        desired
    };
    let encapsulated = relay_of(|hop| {
        hop.encap = Some(Encap {
            id: 1,
            source: ip("10.6.0.21"),
            remote: ip("10.6.0.12"),
        });
    });
    let elsewhere = relay_of(|hop| hop.device = "other".to_owned());
    let unnamed = RelayDesired {
        outside: ["no name".to_owned()].into_iter().collect(),
        ..relay()
    };
    for (desired, kind) in [
        (encapsulated, ErrorKind::Unsupported),
        (elsewhere, ErrorKind::Unsupported),
        (unnamed, ErrorKind::Invalid),
    ] {
        let error = Relay::offline(NftablesSettings::default())
            .plan(&desired, &host())
            .unwrap_err();
        assert_eq!(error.kind, kind, "{}", error.chain());
    }
}

#[test]
fn it_keeps_every_promise_of_a_driver() {
    in_namespace(|| async {
        run(DEVICES);
        run(NEIGHBOURS);
        let mut moved = relay();
        moved.bindings.insert((ip("10.6.0.100"), 9), node(12).0);
        moved.bindings.remove(&(ip("fd06::100"), 10));
        let without_nodes = RelayDesired {
            nodes: OrdMap::new(),
            outside: ["eth0".to_owned(), "absent".to_owned()]
                .into_iter()
                .collect(),
            ..relay()
        };
        let bare = RelayDesired {
            addresses: relay().addresses,
            ..RelayDesired::default()
        };
        conformance::check(
            &Namespace,
            &[
                relay(),
                moved,
                without_nodes,
                crowded(),
                bare,
                RelayDesired::default(),
            ],
        )
        .await;
    });
}

#[test]
fn what_others_do_to_it_is_noticed_and_repaired() {
    in_namespace(|| async {
        run(DEVICES);
        let relay_driver = Relay::new(NftablesSettings::default(), Arc::new(()));
        relay_driver.probe().await.unwrap();
        assert_eq!(run("nft list ruleset"), "", "a probe changes nothing");
        let whole = reach(&relay_driver, &relay()).await;
        for damage in [
            "nft flush ruleset",
            "nft delete table netdev egressgateway_relay",
            "nft delete table inet egressgateway_relay",
            "nft flush chain netdev egressgateway_relay port4",
            "nft insert rule inet egressgateway_relay prerouting_relay accept",
            "nft flush map netdev egressgateway_relay blocks6",
            "nft add element netdev egressgateway_relay own4 '{ 10.6.0.100 . 8 }'",
            "nft add element inet egressgateway_relay quoted4 '{ 10.6.0.100 . 7 }'",
            "nft add chain inet egressgateway_relay another '{ type filter hook forward priority 0; policy drop; }'",
            "nft add set inet egressgateway_relay another '{ type ipv4_addr; }'",
            "nft 'delete table netdev egressgateway_relay; add table netdev egressgateway_relay'",
        ] {
            // What the relay writes itself in between is more than a listener can leave unread.
            let monitor = relay_driver.monitor().unwrap();
            run(damage);
            monitor.changed().await.unwrap();
            assert_ne!(relay_driver.observe().await.unwrap(), whole, "{damage}");
            assert_eq!(reach(&relay_driver, &relay()).await, whole, "{damage}");
        }
    });
}

#[test]
fn devices_that_were_made_anew_are_noticed_by_the_next_read() {
    in_namespace(|| async {
        run(DEVICES);
        let relay_driver = Relay::new(NftablesSettings::default(), Arc::new(()));
        reach(&relay_driver, &relay()).await;
        for device in ["vx", "eth0"] {
            for change in [
                format!("ip link del {device}"),
                format!("ip link add {device} type veth peer name {device}-peer"),
                format!(
                    "ip link del {device}; ip link add {device} type veth peer name {device}-peer"
                ),
            ] {
                run(&change);
                let observed = relay_driver.observe().await.unwrap();
                let change_plan = relay_driver.plan(&relay(), &observed).unwrap().plan;
                assert!(!change_plan.is_empty(), "{change}");
                reach(&relay_driver, &relay()).await;
            }
        }
    });
}

#[test]
fn nothing_is_there_without_an_address() {
    in_namespace(|| async {
        run(DEVICES);
        let relay_driver = Relay::new(NftablesSettings::default(), Arc::new(()));
        reach(&relay_driver, &relay()).await;
        let idle = RelayDesired {
            addresses: OrdSet::new(),
            ..relay()
        };
        assert!(!reach(&relay_driver, &idle).await.exists());
        assert_eq!(run("nft list ruleset"), "");
    });
}
