//! The VXLAN driver against the kernel, in namespaces of its own.

#![allow(clippy::unwrap_used)]

use std::{net::IpAddr, process::Command, sync::Arc};

use async_trait::async_trait;
use egressgateway::{
    Driver, Encapsulation as _, ErrorKind, LocalEnd, Peer, Plan as _, TunnelDesired, Underlay, WriteHook,
    model::{Family, MacAddress, NodeName},
    testing::conformance::{self, Host},
};
use egressgateway_netlink::Netlink;
use egressgateway_testkit::netns::in_namespace;
use egressgateway_tunnel_vxlan::{Vxlan, VxlanSettings, VxlanShape, VxlanState};
use imbl::{OrdMap, OrdSet};

struct Namespace;

#[async_trait]
impl Host<Vxlan> for Namespace {
    async fn driver(&self, hook: Arc<dyn WriteHook>) -> Vxlan {
        Vxlan::new(Netlink::open().unwrap(), VxlanSettings::default(), hook)
    }

    async fn foreign(&self) -> String {
        let all = ["ip -o -d link", "ip -o addr", "ip -o route show table all", "ip -6 -o route show table all", "ip neigh", "bridge fdb"];
        let lines = all.map(run).concat();
        lines.lines().filter(|line| !line.contains("egress-vxlan")).map(|line| format!("{line}\n")).collect()
    }
}

fn run(command: &str) -> String {
    let output = Command::new("sh").args(["-ec", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Two uplinks, and somebody else's VXLAN device with entries of its own.
fn world() {
    run("ip link set lo up
         for link in up0 up1; do
           ip link add $link type veth peer name far-$link; for end in $link far-$link; do ip link set $end addrgenmode none; ip link set $end up; done
         done
         ip addr add 10.6.0.1/24 dev up0; ip addr add 10.6.0.2/24 dev up0; ip addr add 10.7.0.1/24 dev up1
         ip -6 addr add fd06::1/64 dev up0 nodad; ip -6 addr add fd07::1/64 dev up1 nodad
         ip link add theirs type vxlan id 7 dstport 8472 dev up0 nolearning && ip link set theirs addrgenmode none && ip link set theirs up
         bridge fdb add 02:00:00:00:00:07 dev theirs dst 10.6.0.7
         ip neigh add 172.31.0.7 lladdr 02:00:00:00:00:07 dev theirs nud permanent");
}

fn underlay(device: &str, address: &str, mtu: u32) -> Underlay {
    let index = run(&format!("ip -o link show dev {device}")).split(':').next().unwrap().parse().unwrap();
    Underlay { device: device.into(), index, address: address.parse().unwrap(), mtu }
}

fn local(overlay: &[&str], mac: &str, underlays: &[Underlay]) -> LocalEnd {
    LocalEnd {
        overlay: overlay.iter().map(|network| network.parse::<ipnet::IpNet>().unwrap()).collect(),
        mac: mac.parse().unwrap(),
        underlay: underlays.iter().map(|underlay| (Family::of(underlay.address), underlay.clone())).collect(),
    }
}

fn peer(number: u8, overlay: &[&str], underlay: &[&str]) -> (NodeName, Peer) {
    let addresses = |texts: &[&str]| texts.iter().map(|text| text.parse::<IpAddr>().unwrap()).collect::<OrdSet<_>>();
    let mac = MacAddress([2, 0, 0, 0, 1, number]);
    (NodeName::from(format!("node{number}")), Peer { overlay: addresses(overlay), underlay: addresses(underlay), mac })
}

const MAC: &str = "66:a1:5e:00:00:01";

fn dual(peers: &[(NodeName, Peer)]) -> TunnelDesired {
    let underlays = [underlay("up0", "10.6.0.1", 1500), underlay("up0", "fd06::1", 1500)];
    TunnelDesired { local: Some(local(&["172.31.0.1/16", "fd31::1/112"], MAC, &underlays)), peers: peers.iter().cloned().collect() }
}

fn states() -> Vec<TunnelDesired> {
    let two = peer(2, &["172.31.0.2", "fd31::2"], &["10.6.0.12", "fd06::12"]);
    let moved = peer(2, &["172.31.0.9", "fd31::2"], &["10.6.0.99", "fd06::99"]);
    let three = peer(3, &["172.31.0.3"], &["10.6.0.13", "fd06::13"]);
    let only_v4 = local(&["172.31.0.1/16", "fd31::1/112"], "66:a1:5e:00:00:02", &[underlay("up0", "10.6.0.2", 1400)]);
    let other_parent = [underlay("up1", "10.7.0.1", 1500), underlay("up1", "fd07::1", 1450)];
    vec![
        dual(&[two.clone(), three.clone()]),
        TunnelDesired {
            local: Some(local(
                &["172.31.0.5/16", "fd31::1/64"],
                "66:a1:5e:00:00:02",
                &[underlay("up0", "10.6.0.1", 1480), underlay("up0", "fd06::1", 1460)],
            )),
            peers: [moved, three.clone()].into_iter().collect(),
        },
        TunnelDesired { local: Some(only_v4), peers: OrdMap::from_iter([two.clone()]) },
        TunnelDesired {
            local: Some(local(&["172.31.0.1/24", "fd31::1/112"], MAC, &other_parent)),
            peers: [two, three].into_iter().collect(),
        },
    ]
}

async fn reach(desired: &TunnelDesired) -> (Vxlan, VxlanState) {
    let driver = Namespace.driver(Arc::new(())).await;
    let change = driver.plan(desired, &driver.observe().await.unwrap()).unwrap();
    driver.apply(&change.plan).await.unwrap_or_else(|error| panic!("{}\n{}", error.chain(), change.plan));
    assert_eq!(driver.observe().await.unwrap(), change.after, "{}", change.plan);
    (driver, change.after)
}

#[test]
fn the_tunnel_keeps_the_promises_of_a_driver() {
    in_namespace(|| async {
        world();
        conformance::check(&Namespace, &states()).await;
    });
}

#[test]
fn the_text_of_a_plan_is_a_script_that_does_the_same() {
    in_namespace(|| async {
        world();
        let driver = Namespace.driver(Arc::new(())).await;
        for state in states().iter().chain([&TunnelDesired::default()]) {
            let change = driver.plan(state, &driver.observe().await.unwrap()).unwrap();
            let script = change.plan.to_string();
            run(&script);
            assert_eq!(driver.observe().await.unwrap(), change.after, "{script}");
        }
    });
}

#[test]
fn what_somebody_breaks_by_hand_is_seen_and_put_right() {
    in_namespace(|| async {
        world();
        let desired = &states()[0];
        let (driver, whole) = reach(desired).await;
        for harm in [
            "ip link del egress-vxlan-v4",
            "ip link set egress-vxlan-v4 down",
            "ip link set egress-vxlan-v6 down",
            "ip link set egress-vxlan-v6 mtu 1300",
            "ip link set egress-vxlan-v6 mtu 1000",
            "ip link set egress-vxlan-v4 address 02:00:00:00:00:99",
            "ip link set egress-vxlan-v4 alias mine",
            "ip addr flush dev egress-vxlan-v4",
            "ip addr add 192.0.2.1/32 dev egress-vxlan-v6",
            "ip neigh del 172.31.0.2 dev egress-vxlan-v4",
            "ip neigh add 172.31.0.77 lladdr 02:00:00:00:00:77 dev egress-vxlan-v4 nud permanent",
            "bridge fdb del 02:00:00:00:01:02 dev egress-vxlan-v4",
            "bridge fdb append 00:00:00:00:00:00 dev egress-vxlan-v4 dst 10.6.0.66; bridge fdb append 00:00:00:00:00:00 dev egress-vxlan-v4 dst 10.6.0.67",
            "bridge fdb replace 02:00:00:00:01:02 dev egress-vxlan-v4 dst 10.6.0.12",
            "sysctl -qw net.ipv4.conf.egress-vxlan-v4.rp_filter=1",
            "ip link del egress-vxlan-v4; ip link add egress-vxlan-v4 type vxlan id 55 dstport 7789 dev up0; ip link set egress-vxlan-v4 alias egressgateway",
            "ip link del egress-vxlan-v4; ip link add egress-vxlan-v4 type vxlan id 100 dstport 4789 dev up0; ip link set egress-vxlan-v4 alias egressgateway",
            "ip link del egress-vxlan-v4; ip link add egress-vxlan-v4 type bridge; ip link set egress-vxlan-v4 alias egressgateway",
        ] {
            run(harm);
            let broken = driver.observe().await.unwrap();
            assert_ne!(broken, whole, "{harm}");
            assert!(!driver.plan(desired, &broken).unwrap().plan.is_empty(), "{harm}");
            let (_, repaired) = reach(desired).await;
            assert_eq!(repaired, whole, "{harm}");
        }
    });
}

#[test]
fn a_device_of_our_name_without_our_mark_is_never_touched() {
    in_namespace(|| async {
        world();
        run("ip link add egress-vxlan-v4 type vxlan id 100 dstport 7789 dev up0");
        let before = run("ip -d link show dev egress-vxlan-v4");
        let driver = Namespace.driver(Arc::new(())).await;
        let current = driver.observe().await.unwrap();
        let refused = driver.plan(&states()[0], &current).unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Conflict);
        assert!(refused.to_string().contains("egress-vxlan-v4"), "{refused}");
        let nothing = driver.plan(&TunnelDesired::default(), &current).unwrap();
        assert!(nothing.plan.is_empty(), "{}", nothing.plan);
        assert_eq!(run("ip -d link show dev egress-vxlan-v4"), before);
    });
}

#[test]
fn two_nodes_reach_each_other_over_both_devices() {
    in_namespace(|| async {
        run("ip link set lo up; ip link add up0 type veth peer name far0; ip link set up0 up
             ip addr add 10.6.0.1/24 dev up0; ip -6 addr add fd06::1/64 dev up0 nodad");
        // The other node is made by hand, in a namespace held by a process of this test.
        let mut other = Command::new("unshare").args(["-n", "sleep", "60"]).spawn().unwrap();
        let pid = other.id();
        let inside = |command: &str| run(&format!("nsenter -t {pid} -n sh -ec '{command}'"));
        while run(&format!("readlink /proc/{pid}/ns/net")) == run("readlink /proc/thread-self/ns/net") {
            std::thread::yield_now();
        }
        run(&format!("ip link set far0 netns {pid}"));
        inside(
            "ip link set lo up; ip link set far0 up; ip addr add 10.6.0.2/24 dev far0; ip -6 addr add fd06::2/64 dev far0 nodad
                ip link add t4 address 02:00:00:00:01:02 type vxlan id 100 dstport 7789 local 10.6.0.2 dev far0 nolearning
                ip link add t6 address 02:00:00:00:01:02 type vxlan id 100 dstport 7789 local fd06::2 dev far0 nolearning
                ip addr add 172.31.0.2/16 dev t4; ip link set t4 up; ip link set t6 up; ip addr add fd31::2/112 dev t6 nodad
                bridge fdb add 66:a1:5e:00:00:01 dev t4 dst 10.6.0.1; bridge fdb add 66:a1:5e:00:00:01 dev t6 dst fd06::1
                ip neigh add 172.31.0.1 lladdr 66:a1:5e:00:00:01 dev t4; ip -6 neigh add fd31::1 lladdr 66:a1:5e:00:00:01 dev t6",
        );
        reach(&dual(&[peer(2, &["172.31.0.2", "fd31::2"], &["10.6.0.2", "fd06::2"])])).await;
        // The largest packet that fits, and none larger.
        run("ping -c1 -W5 -M do -s 1422 172.31.0.2 && ping -6 -c1 -W5 -M do -s 1382 fd31::2");
        assert!(!Command::new("ping").args(["-c1", "-W1", "-M", "do", "-s", "1423", "172.31.0.2"]).output().unwrap().status.success());
        other.kill().unwrap();
        other.wait().unwrap();
    });
}

#[test]
fn plans_and_shapes_are_made_without_a_kernel() {
    let up = |address: &str| Underlay { device: "eth0".into(), index: 2, address: address.parse().unwrap(), mtu: 1500 };
    let both = local(&["172.31.0.1/16", "fd31::1/112"], MAC, &[up("10.6.0.1"), up("fd06::1")]);
    let shape = VxlanShape::default();
    let links = shape.links(&both);
    assert_eq!(links.devices.iter().map(String::as_str).collect::<Vec<_>>(), ["egress-vxlan-v4", "egress-vxlan-v6"]);
    assert_eq!((links.port, links.mtu[&Family::V4], links.mtu[&Family::V6]), (7789, 1450, 1430));
    let (name, two) = peer(2, &["172.31.0.2", "fd31::2"], &["10.6.0.12"]);
    let hop = shape.next_hop(&two, Family::V4).unwrap();
    assert_eq!((hop.device.as_str(), hop.via.to_string().as_str()), ("egress-vxlan-v4", "172.31.0.2"));
    assert_eq!(shape.next_hop(&two, Family::V6), None, "it has no outer address of that family");

    let driver = Vxlan::offline(VxlanSettings::default());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    assert_eq!(runtime.block_on(driver.observe()).unwrap_err().kind, ErrorKind::Unsupported);
    let desired = TunnelDesired { local: Some(both), peers: OrdMap::unit(name, two) };
    let text = driver.plan(&desired, &VxlanState::default()).unwrap().plan.to_string();
    for line in [
        "link set egress-vxlan-v4 alias egressgateway addrgenmode none",
        "sysctl -qw net.ipv4.conf.egress-vxlan-v6.rp_filter=2",
        "fdb replace 02:00:00:00:01:02 dev egress-vxlan-v4 dst 10.6.0.12 via eth0 self permanent",
        "neigh replace 172.31.0.2 lladdr 02:00:00:00:01:02 dev egress-vxlan-v4 nud permanent",
        "address add fd31::1/112 dev egress-vxlan-v6 nodad",
    ] {
        assert!(text.lines().any(|other| other == line), "no {line} in\n{text}");
    }
    assert!(!text.contains("fdb replace 02:00:00:00:01:02 dev egress-vxlan-v6"), "{text}");
}

#[test]
fn a_size_that_the_underlay_or_the_family_cannot_carry_is_refused() {
    let end = |address: &str, mtu| {
        let underlay = Underlay { device: "eth0".into(), index: 2, address: address.parse().unwrap(), mtu };
        TunnelDesired { local: Some(local(&["172.31.0.1/16", "fd31::1/112"], MAC, &[underlay])), ..TunnelDesired::default() }
    };
    let plan =
        |mtu, desired| Vxlan::offline(VxlanSettings { mtu, ..VxlanSettings::default() }).plan(&desired, &VxlanState::default()).map(|_| ());
    assert!(plan(Some(1450), end("10.6.0.1", 1500)).is_ok());
    assert_eq!(plan(Some(1451), end("10.6.0.1", 1500)).unwrap_err().kind, ErrorKind::Invalid);
    assert!(plan(None, end("fd06::1", 1350)).is_ok());
    assert_eq!(plan(None, end("fd06::1", 1349)).unwrap_err().kind, ErrorKind::Invalid);
}
