//! The driver of egress addresses and its announcements against the kernel, in namespaces of its
//! own.

#![allow(clippy::unwrap_used)]

use std::{net::IpAddr, sync::Arc};

use async_trait::async_trait;
use egressgateway::{
    AddressesDesired, Announcer, Driver, ErrorKind, Host as _, Plan as _, WriteHook,
    testing::conformance::{self, Host},
};
use egressgateway_netlink::{
    EgressAddresses, KernelHost, NeighbourAnnouncer, Netlink, ParentChoice,
};
use egressgateway_testkit::{netns::in_namespace, shell::run};

struct Namespace;

#[async_trait]
impl Host<EgressAddresses> for Namespace {
    async fn driver(&self, hook: Arc<dyn WriteHook>) -> EgressAddresses {
        EgressAddresses::new(Netlink::open().unwrap(), hook)
    }

    async fn foreign(&self) -> String {
        let addresses = run("ip -o addr show");
        let others = addresses
            .lines()
            .filter(|line| !line.contains("metric 1701279609"))
            .map(|line| format!("{line}\n"));
        others
            .chain([run("ip route show; ip -6 route show; ip neigh show")])
            .collect()
    }
}

/// A node with two networks, and what others have put beside ours; `out0` and `out1` are the far
/// ends of its cables.
const NODE: &str = "ip link set lo up
for number in 0 1; do
  ip link add eth$number type veth peer name out$number
  for device in eth$number out$number; do ip link set $device addrgenmode none up; done
done
ip addr add 10.6.0.11/16 dev eth0; ip addr add fd00:6::11/64 dev eth0 nodad
ip addr add 10.7.0.11/16 dev eth1; ip addr add fd00:7::11/64 dev eth1 nodad
ip addr add 10.6.0.80/32 dev eth0 metric 5; ip addr add fd00:6::80/128 dev eth0 nodad
ip addr add 10.6.0.81/16 dev eth0; ip addr add 10.99.0.1/32 dev lo
ip route add default via 10.6.255.254; ip -6 route add default via fd00:6::fffe
";

fn held(addresses: &[(&str, &str)]) -> AddressesDesired {
    let parse = |(address, device): &(&str, &str)| {
        (address.parse::<IpAddr>().unwrap(), (*device).to_owned())
    };
    AddressesDesired {
        held: addresses.iter().map(parse).collect(),
    }
}

fn states() -> Vec<AddressesDesired> {
    vec![
        held(&[
            ("10.6.0.60", "eth0"),
            ("10.6.0.61", "eth0"),
            ("fd00:6::60", "eth0"),
            ("10.7.0.60", "eth1"),
            ("192.0.2.1", "eth0"),
        ]),
        held(&[
            ("10.6.0.61", "eth0"),
            ("fd00:6::60", "eth1"),
            ("fd00:6::61", "eth0"),
        ]),
        held(&[("10.6.0.60", "eth1")]),
    ]
}

async fn reach(desired: &AddressesDesired) -> EgressAddresses {
    let driver = Namespace.driver(Arc::new(())).await;
    let change = driver
        .plan(desired, &driver.observe().await.unwrap())
        .unwrap();
    driver.apply(&change.plan).await.unwrap();
    assert_eq!(
        driver.observe().await.unwrap(),
        change.after,
        "{}",
        change.plan
    );
    driver
}

#[test]
fn egress_addresses_keep_the_promises_of_a_driver() {
    in_namespace(|| async {
        run(NODE);
        conformance::check(&Namespace, &states()).await;
    });
}

#[test]
fn the_text_of_a_plan_is_a_script_that_does_the_same() {
    in_namespace(|| async {
        run(NODE);
        let driver = Namespace.driver(Arc::new(())).await;
        for state in states().iter().chain([&AddressesDesired::default()]) {
            let change = driver
                .plan(state, &driver.observe().await.unwrap())
                .unwrap();
            run(&change.plan.to_string());
            assert_eq!(
                driver.observe().await.unwrap(),
                change.after,
                "{}",
                change.plan
            );
        }
    });
}

#[test]
fn packets_to_an_address_are_taken_in_once_it_is_said_to_be_there() {
    in_namespace(|| async {
        run(NODE);
        let netlink = Netlink::open().unwrap();
        let addresses: Vec<String> = (0x100..0x180)
            .map(|number| format!("fd00:6::{number:x}"))
            .chain(["10.6.1.60".to_owned()])
            .collect();
        let desired = held(
            &addresses
                .iter()
                .map(|address| (address.as_str(), "eth0"))
                .collect::<Vec<_>>(),
        );
        for _ in 0..5 {
            let driver = Namespace.driver(Arc::new(())).await;
            let change = driver
                .plan(&desired, &driver.observe().await.unwrap())
                .unwrap();
            driver.apply(&change.plan).await.unwrap();
            // At once, and what was added last first: the kernel is slowest with these.
            for address in addresses.iter().rev() {
                assert!(
                    netlink.is_local(address.parse().unwrap()).await,
                    "{address}"
                );
            }
            reach(&AddressesDesired::default()).await;
            assert!(!netlink.is_local(addresses[0].parse().unwrap()).await);
        }
    });
}

/// Asks the kernel which address it would send from.
fn source(destination: &str) -> String {
    let said = run(&format!("ip route get {destination}"));
    said.split(" src ")
        .nth(1)
        .unwrap()
        .split(' ')
        .next()
        .unwrap()
        .to_owned()
}

#[test]
fn an_egress_address_is_no_source_of_what_the_host_sends_itself() {
    in_namespace(|| async {
        run(NODE);
        // A route with neither a source nor a next router: the kernel takes the device's first
        // address.
        run("ip route add 10.50.0.0/16 dev eth0; ip -6 route add fd50::/16 dev eth0");
        let destinations = [
            "10.6.3.3",
            "203.0.113.1",
            "10.50.0.1",
            "fd00:6::3",
            "2001:db8::1",
            "fd50::1",
        ];
        let before = destinations.map(source);
        assert_eq!(
            before
                .iter()
                .filter(|source| *source == "10.6.0.11")
                .count(),
            3
        );
        let state = &states()[0];
        reach(state).await;
        assert_eq!(destinations.map(source), before);
        // As a restart of the host's network service does.
        run("ip addr del 10.6.0.11/16 dev eth0; ip addr del 10.6.0.81/16 dev eth0 2>/dev/null || true; ip addr del 10.6.0.80/32 dev eth0
             ip addr add 10.6.0.11/16 dev eth0; ip route replace default via 10.6.255.254; ip route replace 10.50.0.0/16 dev eth0");
        assert_ne!(
            source("10.50.0.1"),
            "10.6.0.11",
            "the host's own address came behind ours: this is what must be put right"
        );
        let driver = Namespace.driver(Arc::new(())).await;
        assert!(
            !driver
                .plan(state, &driver.observe().await.unwrap())
                .unwrap()
                .plan
                .is_empty()
        );
        reach(state).await;
        assert_eq!(destinations.map(source), before);
        run("ip -6 addr change fd00:6::60/128 dev eth0 preferred_lft forever valid_lft forever");
        assert!(
            !driver
                .plan(state, &driver.observe().await.unwrap())
                .unwrap()
                .plan
                .is_empty(),
            "somebody made it a preferred source"
        );
        reach(state).await;
        assert_eq!(destinations.map(source), before);
    });
}

#[test]
fn what_the_host_has_without_us_is_told_apart_from_ours() {
    in_namespace(|| async {
        run(NODE);
        let host = KernelHost::new(Netlink::open().unwrap(), ParentChoice::Auto);
        let facts = async || {
            (
                host.attachments().await.unwrap(),
                host.interfaces().await.unwrap(),
                host.underlay().await.unwrap(),
            )
        };
        let before = facts().await;
        let networks: Vec<_> = before
            .0
            .networks
            .iter()
            .map(|(network, device)| format!("{network} {device}"))
            .collect();
        assert_eq!(
            networks,
            ["10.6.0.0/16 eth0", "fd00:6::/64 eth0"].map(str::to_owned),
            "{:?}",
            before.1
        );
        for text in [
            "10.6.0.80",
            "fd00:6::80",
            "10.6.0.81",
            "10.99.0.1",
            "10.7.0.11",
        ] {
            assert!(
                before
                    .0
                    .addresses
                    .contains(&text.parse::<IpAddr>().unwrap()),
                "{text}"
            );
        }
        let (mut expected, state) = (before, states().swap_remove(0));
        reach(&state).await;
        expected.0.egress = state.held.keys().copied().collect();
        assert_eq!(facts().await, expected);
    });
}

#[test]
fn one_address_that_can_not_be_had_keeps_no_other_away() {
    in_namespace(|| async {
        run(NODE);
        reach(&held(&[("10.6.0.70", "eth0")])).await;
        let driver = Namespace.driver(Arc::new(())).await;
        let wanted = held(&[("10.6.0.60", "gone0"), ("10.6.0.61", "eth0")]);
        let change = driver
            .plan(&wanted, &driver.observe().await.unwrap())
            .unwrap();
        assert_eq!(
            driver.apply(&change.plan).await.unwrap_err().kind,
            ErrorKind::Conflict
        );
        let held: Vec<IpAddr> = driver.observe().await.unwrap().addresses().collect();
        assert_eq!(held, ["10.6.0.61".parse::<IpAddr>().unwrap()]);
    });
}

#[test]
fn neighbours_that_know_another_place_believe_an_announcement() {
    in_namespace(|| async {
        run(NODE);
        // The neighbour: the other end of eth0's cable, in a namespace that ends with this one.
        run("ip netns add outside; ip link set out0 netns outside; ip -n outside link set out0 up
             ip -n outside addr add 10.6.0.9/16 dev out0; ip -n outside addr add fd00:6::9/64 dev out0 nodad
             for address in 10.6.0.60 fd00:6::60; do
               ip -n outside neigh replace $address lladdr 02:00:00:00:00:99 dev out0 nud stale
             done");
        let known =
            || run("ip -n outside neigh show 10.6.0.60; ip -n outside neigh show fd00:6::60");
        let announcer = NeighbourAnnouncer::new();
        let desired = held(&[("10.6.0.60", "eth0"), ("fd00:6::60", "eth0")]);
        let refused: Vec<_> = announcer
            .announce(&desired)
            .into_iter()
            .map(|(address, error)| (address, error.kind))
            .collect();
        assert_eq!(
            refused.len(),
            2,
            "the kernel does not hold them yet: {refused:?}"
        );
        assert_eq!(
            known().matches("02:00:00:00:00:99").count(),
            2,
            "{}",
            known()
        );
        reach(&desired).await;
        assert!(announcer.announce(&desired).is_empty());
        let mac = run("ip -br link show eth0")
            .split_whitespace()
            .nth(2)
            .unwrap()
            .to_owned();
        for _ in 0..200 {
            if known().matches(&mac).count() == 2 {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("{mac} is not known: {}", known());
    });
}
