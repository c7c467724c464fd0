//! The VXLAN driver against the kernel, in namespaces of its own, and its shape without one.
#![allow(clippy::unwrap_used)]

use std::{net::IpAddr, sync::Arc};

use egressgateway::{
    Driver, Encapsulation as _, ErrorKind, LocalEnd, NodeDesired, Peer, TunnelDesired, Underlay,
    WriteHook,
    model::{Family, MacAddress, NodeName, TargetId},
};
use egressgateway_netlink::Netlink;
use egressgateway_testkit::{tunnel_tests, tunnels::Kind};
use egressgateway_tunnel_vxlan::{Vxlan, VxlanSettings, VxlanShape, VxlanState};
use imbl::{OrdMap, OrdSet};

struct VxlanKind;

impl Kind for VxlanKind {
    type Tunnel = Vxlan;

    const DEVICES: &'static [&'static str] = &["egress-vxlan-v4", "egress-vxlan-v6"];
    const HARMS: &'static [&'static str] = &[
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
        "ip route del 172.31.0.2 dev egress-vxlan-v4",
        "ip -6 route del fd31::2 dev egress-vxlan-v6",
        "ip route replace 172.31.0.2 via 172.31.0.3 dev egress-vxlan-v4 onlink proto 78",
        "ip route add 172.31.0.77 dev egress-vxlan-v4 proto 78",
        "ip neigh add 172.31.0.77 lladdr 02:00:00:00:00:77 dev egress-vxlan-v4 nud permanent",
        "bridge fdb del 02:00:00:00:01:02 dev egress-vxlan-v4",
        "bridge fdb append 00:00:00:00:00:00 dev egress-vxlan-v4 dst 10.6.0.66; bridge fdb append 00:00:00:00:00:00 dev egress-vxlan-v4 dst 10.6.0.67",
        "bridge fdb replace 02:00:00:00:01:02 dev egress-vxlan-v4 dst 10.6.0.12",
        "sysctl -qw net.ipv4.conf.egress-vxlan-v4.rp_filter=1",
        "ip link del egress-vxlan-v4; ip link add egress-vxlan-v4 type vxlan id 55 dstport 7789 dev up0; ip link set egress-vxlan-v4 alias egressgateway",
        "ip link del egress-vxlan-v4; ip link add egress-vxlan-v4 type vxlan id 100 dstport 4789 dev up0; ip link set egress-vxlan-v4 alias egressgateway",
        "ip link del egress-vxlan-v4; ip link add egress-vxlan-v4 type bridge; ip link set egress-vxlan-v4 alias egressgateway",
    ];
    const TAKEN: &'static str =
        "ip link add egress-vxlan-v4 type vxlan id 100 dstport 7789 dev up0";
    const FAR: &'static str = "
        ip link add t4 address 02:00:00:00:01:02 type vxlan id 100 dstport 7789 local 10.6.0.2 dev far0 nolearning
        ip link add t6 address 02:00:00:00:01:02 type vxlan id 100 dstport 7789 local fd06::2 dev far0 nolearning
        ip addr add 172.31.0.2/16 dev t4; ip link set t4 up; ip link set t6 up; ip addr add fd31::2/112 dev t6 nodad
        bridge fdb add 66:a1:5e:00:00:01 dev t4 dst 10.6.0.1; bridge fdb add 66:a1:5e:00:00:01 dev t6 dst fd06::1
        ip neigh add 172.31.0.1 lladdr 66:a1:5e:00:00:01 dev t4; ip -6 neigh add fd31::1 lladdr 66:a1:5e:00:00:01 dev t6";
    const MTU: (u32, u32) = (1450, 1430);

    fn tunnel(hook: Arc<dyn WriteHook>) -> Vxlan {
        Vxlan::new(Netlink::open().unwrap(), VxlanSettings::default(), hook)
    }
}

tunnel_tests!(VxlanKind);

fn local(overlay: &[&str], mac: &str, underlays: &[Underlay]) -> LocalEnd {
    LocalEnd {
        overlay: overlay
            .iter()
            .map(|network| network.parse::<ipnet::IpNet>().unwrap())
            .collect(),
        mac: mac.parse().unwrap(),
        underlay: underlays
            .iter()
            .map(|underlay| (Family::of(underlay.address), underlay.clone()))
            .collect(),
    }
}

fn peer(number: u8, overlay: &[&str], underlay: &[&str]) -> (NodeName, Peer) {
    let addresses = |texts: &[&str]| {
        texts
            .iter()
            .map(|text| text.parse::<IpAddr>().unwrap())
            .collect::<OrdSet<_>>()
    };
    let mac = MacAddress([2, 0, 0, 0, 1, number]);
    (
        NodeName::from(format!("node{number}")),
        Peer {
            overlay: addresses(overlay),
            underlay: addresses(underlay),
            mac,
            mtu: OrdMap::new(),
        },
    )
}

const MAC: &str = "66:a1:5e:00:00:01";

#[test]
fn plans_and_shapes_are_made_without_a_kernel() {
    let up = |address: &str| Underlay {
        device: "eth0".into(),
        index: 2,
        address: address.parse().unwrap(),
        mtu: 1500,
    };
    let both = local(
        &["172.31.0.1/16", "fd31::1/112"],
        MAC,
        &[up("10.6.0.1"), up("fd06::1")],
    );
    let shape = VxlanShape::default();
    let links = shape.links(&both);
    assert_eq!(
        links.devices.iter().map(String::as_str).collect::<Vec<_>>(),
        ["egress-vxlan-v4", "egress-vxlan-v6"]
    );
    assert_eq!(
        (links.port, links.mtu[&Family::V4], links.mtu[&Family::V6]),
        (7789, 1450, 1430)
    );
    let (name, two) = peer(2, &["172.31.0.2", "fd31::2"], &["10.6.0.12"]);
    let hop = shape.next_hop(&both, &two, Family::V4).unwrap();
    assert_eq!(
        (hop.device.as_str(), hop.via.to_string().as_str()),
        ("egress-vxlan-v4", "172.31.0.2")
    );
    assert_eq!(
        shape.next_hop(&both, &two, Family::V6),
        None,
        "it has no outer address of that family"
    );

    let driver = Vxlan::offline(VxlanSettings::default());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    assert_eq!(
        runtime.block_on(driver.observe()).unwrap_err().kind,
        ErrorKind::Unsupported
    );
    let desired = TunnelDesired {
        local: Some(both),
        peers: OrdMap::unit(name, two),
    };
    let text = driver
        .plan(&desired, &VxlanState::default())
        .unwrap()
        .plan
        .to_string();
    for line in [
        "link set egress-vxlan-v4 alias egressgateway addrgenmode none",
        "sysctl -qw net.ipv4.conf.egress-vxlan-v6.rp_filter=2",
        "fdb replace 02:00:00:00:01:02 dev egress-vxlan-v4 dst 10.6.0.12 via eth0 self permanent",
        "neigh replace 172.31.0.2 lladdr 02:00:00:00:01:02 dev egress-vxlan-v4 nud permanent",
        "address add fd31::1/128 dev egress-vxlan-v6 nodad",
        "route add 172.31.0.2 dev egress-vxlan-v4 proto 78",
    ] {
        assert!(
            text.lines().any(|other| other == line),
            "no {line} in\n{text}"
        );
    }
    assert!(
        !text.contains("fdb replace 02:00:00:00:01:02 dev egress-vxlan-v6"),
        "{text}"
    );
}

#[test]
fn a_node_with_one_family_is_given_no_way_of_the_other() {
    let underlay = Underlay {
        device: "eth0".into(),
        index: 2,
        address: "10.6.0.1".parse().unwrap(),
        mtu: 1500,
    };
    let (name, two) = peer(2, &["172.31.0.2", "fd31::2"], &["10.6.0.12", "fd06::12"]);
    let tunnel = TunnelDesired {
        local: Some(local(&["172.31.0.1/16"], MAC, &[underlay])),
        peers: OrdMap::unit(name.clone(), two),
    };
    let node = NodeDesired {
        tunnel,
        paths: OrdMap::unit(TargetId::FIRST, OrdSet::unit(name)),
        ..NodeDesired::default()
    };
    let steering = node.for_drivers(&VxlanShape::default()).steering;
    let devices: Vec<_> = steering.targets[&TargetId::FIRST]
        .iter()
        .map(|hop| hop.device.as_str())
        .collect();
    assert_eq!(devices, ["egress-vxlan-v4"]);
}

#[test]
fn a_size_that_the_underlay_or_the_family_cannot_carry_is_refused() {
    let end = |address: &str, mtu| {
        let underlay = Underlay {
            device: "eth0".into(),
            index: 2,
            address: address.parse().unwrap(),
            mtu,
        };
        TunnelDesired {
            local: Some(local(&["172.31.0.1/16", "fd31::1/112"], MAC, &[underlay])),
            ..TunnelDesired::default()
        }
    };
    let plan = |mtu, desired| {
        Vxlan::offline(VxlanSettings::default().with_mtu(mtu))
            .plan(&desired, &VxlanState::default())
            .map(|_| ())
    };
    assert!(plan(Some(1450), end("10.6.0.1", 1500)).is_ok());
    assert_eq!(
        plan(Some(1451), end("10.6.0.1", 1500)).unwrap_err().kind,
        ErrorKind::Invalid
    );
    assert!(plan(None, end("fd06::1", 1350)).is_ok());
    assert_eq!(
        plan(None, end("fd06::1", 1349)).unwrap_err().kind,
        ErrorKind::Invalid
    );
}

#[test]
fn a_route_promises_no_more_than_its_receivers_take() {
    let underlay = Underlay {
        device: "eth0".into(),
        index: 2,
        address: "10.6.0.1".parse().unwrap(),
        mtu: 9000,
    };
    let peers = [(2, Some(1450_u32)), (3, Some(8950)), (4, None)].map(|(number, mtu)| {
        let (name, peer) = peer(
            number,
            &[&format!("172.31.0.{number}")],
            &[&format!("10.6.0.1{number}")],
        );
        (
            name,
            Peer {
                mtu: mtu.into_iter().map(|mtu| (Family::V4, mtu)).collect(),
                ..peer
            },
        )
    });
    let tunnel = TunnelDesired {
        local: Some(local(&["172.31.0.1/16"], MAC, &[underlay])),
        peers: peers.iter().cloned().collect(),
    };
    let [two, three, four] = peers.map(|(name, _)| name);
    let targets: Vec<TargetId> = TargetId::all().take(3).collect();
    let paths = targets
        .iter()
        .copied()
        .zip([
            [two, three.clone()].into_iter().collect(),
            OrdSet::unit(three),
            OrdSet::unit(four),
        ])
        .collect();
    let node = NodeDesired {
        tunnel,
        paths,
        ..NodeDesired::default()
    };
    let desired = node.for_drivers(&VxlanShape::default());
    assert_eq!(
        desired.steering.mtu,
        OrdMap::unit((targets[0], Family::V4), 1450),
        "the least, where it is less than here"
    );
    assert_eq!(
        desired.policy.overlay.mss[&Family::V4],
        1410,
        "and segments fit it as well"
    );
}
