//! The index is equal to a rebuild from scratch, and each rule of planning holds.
#![allow(clippy::unwrap_used, missing_docs)]

mod drains;
mod egress_addresses;
mod gateways;
mod pod_networks;
mod ports;
mod properties;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use egressgateway::{
    Encapsulation, LocalEnd, NextHop, NodeDesired, OverlayLinks, Peer, Underlay,
    api::{EgressGateway, EgressGatewayPolicy, EgressNode},
    index::{Index, IndexSettings},
    model::{
        Family, GatewayName, IpRange, MarkMask, NodeName, PodName, PolicyName, SourceNat, TargetId,
        Verdict,
    },
    world::{self, Change, Labels, Node, Pod},
};

fn settings() -> IndexSettings {
    IndexSettings::of_node(NodeName::from("n1"))
}

fn object<T: serde::de::DeserializeOwned>(kind: &str, name: &str, yaml: &str) -> T {
    let text = format!(
        "{{apiVersion: egressgateway.spidernet.io/v1, kind: {kind}, metadata: {{name: {name}}}, {yaml}}}"
    );
    serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn gateway(name: &str, yaml: &str) -> Change {
    let object: EgressGateway = object("EgressGateway", name, yaml);
    Change::Gateway(
        GatewayName::from(name),
        Some(world::Gateway::from_api(&object, MarkMask::default())),
    )
}

fn policy(name: &str, yaml: &str) -> Change {
    let object: EgressGatewayPolicy = object("EgressGatewayPolicy", name, yaml);
    Change::Policy(
        PolicyName::from(name),
        Some(world::Policy::from_api(&object)),
    )
}

fn pod(name: &str, node: &str, address: &str, app: &str) -> Change {
    let labels = Labels::from([("app".to_owned(), app.to_owned())]);
    let pod = Pod {
        labels,
        node: Some(NodeName::from(node)),
        addresses: [address.parse().unwrap()].into(),
    };
    Change::Pod(PodName::new("default", name), Some(pod))
}

fn node(name: &str, pods: &str, address: &str) -> Change {
    let pod_networks = BTreeSet::from([pods.parse().unwrap()]);
    let node = Node {
        pod_networks,
        addresses: vec![address.parse().unwrap()],
        ready: true,
        ..Node::default()
    };
    Change::Node(NodeName::from(name), Some(node))
}

fn egress_node(name: &str, last: u8) -> Change {
    let status = format!(
        "spec: {{}}, status: {{vxlanIPv4IP: 172.31.0.{last}/16, tunnelMac: '66:00:00:00:00:{last:02x}', physicalInterfaceIPv4: 10.6.0.{last}}}"
    );
    let object: EgressNode = object("EgressNode", name, &status);
    Change::EgressNode(
        NodeName::from(name),
        Some(world::EgressNode::from_api(&object)),
    )
}

fn index(changes: impl IntoIterator<Item = Change>) -> Index {
    let mut index = Index::new(settings());
    let underlay = Underlay {
        device: "eth0".into(),
        index: 2,
        address: "10.6.0.1".parse().unwrap(),
        mtu: 1500,
    };
    index.set_underlay(imbl::OrdMap::unit(Family::V4, underlay));
    for change in changes {
        index.apply(change);
    }
    index
}

const GATEWAY: &str =
    "spec: {nodeSelector: {matchLabels: {egress: 'true'}}}, status: {mark: 0x11000000, nodeList: [
    {name: n2, status: Ready, active: true}, {name: n3, status: Ready}]}";
const SHOP: &str =
    "spec: {appliedTo: {podSelector: {matchLabels: {app: shop}}}, destCIDR: [10.6.1.0/24]}";
const BY_NODE: Verdict = Verdict::Egress {
    target: TargetId::FIRST,
    source_nat: SourceNat::NodeAddress,
};

fn range(text: &str) -> IpRange {
    IpRange::from(text.parse::<ipnet::IpNet>().unwrap())
}

fn verdicts(desired: &NodeDesired) -> BTreeMap<IpRange, Verdict> {
    desired
        .policy
        .destinations
        .iter()
        .map(|((_, range), verdict)| (*range, *verdict))
        .collect()
}

fn ways(index: &mut Index) -> Vec<String> {
    index
        .desired()
        .paths
        .get(&TargetId::FIRST)
        .unwrap()
        .iter()
        .map(ToString::to_string)
        .collect()
}

#[test]
fn a_matched_pod_is_steered_and_its_neighbour_is_not() {
    let mut index = index([
        gateway("g", GATEWAY),
        policy("p", SHOP),
        pod("a", "n1", "10.244.1.10", "shop"),
        pod("b", "n1", "10.244.1.11", "blog"),
        pod("c", "n2", "10.244.2.10", "shop"),
        egress_node("n2", 2),
    ]);
    let desired = index.desired();
    let pods: Vec<String> = desired
        .policy
        .pods
        .keys()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        pods,
        ["10.244.1.10"],
        "only this node's pods, and only those of a policy"
    );
    assert_eq!(
        verdicts(&desired),
        BTreeMap::from([(range("10.6.1.0/24"), BY_NODE)])
    );
    assert_eq!(ways(&mut index), ["n2"]);
    let known: Vec<String> = desired
        .policy
        .start_gate
        .unwrap()
        .known
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        known,
        ["10.244.1.10", "10.244.1.11"],
        "local pods are known, with a policy or without"
    );
    assert!(!index.needs_all_pods());
}

#[test]
fn what_leads_to_no_gateway_or_to_several_is_held_and_says_so() {
    let named = SHOP.replace("spec: {", "spec: {egressGatewayName: nowhere, ");
    let shop = pod("a", "n1", "10.244.1.10", "shop");
    let mut missing = index([gateway("g", GATEWAY), policy("p", &named), shop.clone()]);
    assert_eq!(
        verdicts(&missing.desired()),
        BTreeMap::from([(range("10.6.1.0/24"), Verdict::Hold)]),
        "held, not let go"
    );
    assert_eq!(missing.problems().len(), 1);
    let second = GATEWAY.replace("0x11000000", "0x13000000");
    let mut ambiguous = index([
        gateway("g", GATEWAY),
        gateway("h", &second),
        policy("p", SHOP),
        shop,
    ]);
    assert_eq!(
        verdicts(&ambiguous.desired()),
        BTreeMap::from([(range("10.6.1.0/24"), Verdict::Hold)]),
        "held, not let go"
    );
    assert_eq!(ambiguous.problems().len(), 1);
}

#[test]
fn a_default_gateway_that_does_not_exist_is_not_replaced_by_another() {
    let other = settings().with_default_gateway(Some(GatewayName::from("other")));
    let mut index = Index::new(other);
    for change in [
        gateway("g", GATEWAY),
        policy("p", SHOP),
        pod("a", "n1", "10.244.1.10", "shop"),
    ] {
        index.apply(change);
    }
    assert_eq!(
        verdicts(&index.desired()),
        BTreeMap::from([(range("10.6.1.0/24"), Verdict::Hold)])
    );
}

#[test]
fn settings_that_change_are_as_if_they_had_always_been_so() {
    let world = || {
        [
            gateway("a", GATEWAY),
            gateway("b", "spec: {nodeSelector: {matchLabels: {egress: b}}}"),
            policy("shop", SHOP),
            node("n1", "10.244.1.0/24", "10.6.0.1"),
            pod("shop", "n1", "10.244.1.10", "shop"),
        ]
    };
    let other = settings()
        .with_default_gateway(Some(GatewayName::from("a")))
        .with_cluster_networks(vec!["10.96.0.0/12".parse().unwrap()])
        .with_start_gate(false);
    let mut index = index(world());
    assert_eq!(
        verdicts(&index.desired())[&range("10.6.1.0/24")],
        Verdict::Hold,
        "two gateways, and none is named"
    );
    index.configure(other.clone());
    let mut rebuilt = Index::new(other);
    let underlay = Underlay {
        device: "eth0".into(),
        index: 2,
        address: "10.6.0.1".parse().unwrap(),
        mtu: 1500,
    };
    rebuilt.set_underlay(imbl::OrdMap::unit(Family::V4, underlay));
    for change in world() {
        rebuilt.apply(change);
    }
    assert_eq!(verdicts(&index.desired())[&range("10.6.1.0/24")], BY_NODE);
    assert_eq!(index.desired(), rebuilt.desired());
}

#[test]
fn subnets_have_the_policies_that_cover_them_and_a_pods_labels_add_to_that() {
    let subnet = |net: &str| {
        format!("spec: {{appliedTo: {{ipv4PodSubnet: {net}}}, destCIDR: [10.6.2.0/24]}}")
    };
    let mut index = index([
        gateway("g", GATEWAY),
        policy("wide", &subnet("10.244.0.0/16")),
        policy("narrow", &subnet("10.244.1.0/24")),
        policy("p", SHOP),
        pod("a", "n1", "10.244.1.10", "shop"),
    ]);
    assert_eq!(
        index.desired().policy.subnets.len(),
        3,
        "before, inside and behind the narrow one"
    );
    let names = |address: &str| {
        let class = index.policies_of(address.parse().unwrap()).unwrap();
        class
            .policies()
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    assert_eq!(names("10.244.1.10"), ["narrow", "p", "wide"]);
    assert_eq!(names("10.244.1.11"), ["narrow", "wide"]);
    assert_eq!(names("10.244.9.1"), ["wide"]);
}

#[test]
fn cluster_addresses_are_exempt() {
    let services = Change::ClusterNetworks(vec!["10.96.0.0/12".parse().unwrap()]);
    let desired = index([node("n1", "10.244.1.0/24", "10.6.0.1"), services]).desired();
    let is_exempt = |address: &str| {
        desired
            .policy
            .exempt
            .iter()
            .any(|net| net.contains(&address.parse::<IpAddr>().unwrap()))
    };
    for address in [
        "10.244.1.9",
        "10.6.0.1",
        "10.96.0.1",
        "127.0.0.1",
        "224.0.0.1",
        "169.254.169.254",
    ] {
        assert!(is_exempt(address), "{address}");
    }
    assert!(!is_exempt("10.6.0.2"));
    assert!(
        desired
            .direct
            .iter()
            .all(|net| net.prefix_len() < net.max_prefix_len())
    );
}

#[test]
fn two_pods_with_one_address_are_governed_by_the_policies_of_both() {
    let other = SHOP.replace("shop", "blog").replace("10.6.1.0", "10.6.3.0");
    for names in [["a", "b"], ["b", "a"]] {
        let pods = [
            pod(names[0], "n1", "10.244.1.10", "shop"),
            pod(names[1], "n1", "10.244.1.10", "blog"),
        ];
        let mut index = index(
            [
                gateway("g", GATEWAY),
                policy("p", SHOP),
                policy("q", &other),
            ]
            .into_iter()
            .chain(pods),
        );
        assert_eq!(verdicts(&index.desired()).len(), 2);
    }
}

#[test]
fn a_tunnel_is_reached_by_what_the_node_is_known_by_and_pods_reach_none_by_any_address() {
    let further = "spec: {}, status: {vxlanIPv4IP: 172.31.0.2/16, tunnelMac: '66:00:00:00:00:02', physicalInterfaceIPv4: 10.6.0.2,
                   interfaces: [{name: eth0, ipv4: [10.6.0.2/16, 10.7.0.2/16], ipv6: ['fd07::2/64']}]}";
    let object: EgressNode = object("EgressNode", "n2", further);
    let mut index = index([
        egress_node("n1", 1),
        Change::EgressNode(
            NodeName::from("n2"),
            Some(world::EgressNode::from_api(&object)),
        ),
        node("n2", "10.244.2.0/24", "203.0.113.2"),
    ]);
    // The host has another address by now, and others know the former one.
    let underlay = Underlay {
        device: "eth0".into(),
        index: 2,
        address: "10.6.0.101".parse().unwrap(),
        mtu: 1500,
    };
    index.set_underlay(imbl::OrdMap::unit(Family::V4, underlay));
    let overlay = index.desired().for_drivers(&Shape).policy.overlay;
    let texts = |addresses: &imbl::OrdSet<IpAddr>| {
        addresses
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    assert_eq!(texts(&overlay.peers), ["10.6.0.2"]);
    assert_eq!(texts(&overlay.own), ["10.6.0.1", "10.6.0.101"]);
    assert_eq!(
        texts(&overlay.hosts),
        ["10.6.0.1", "10.6.0.2", "10.7.0.2", "203.0.113.2", "fd07::2"]
    );
}

/// A tunnel of one device.
struct Shape;

impl Encapsulation for Shape {
    fn kind(&self) -> &'static str {
        "shape"
    }

    fn next_hop(&self, _: &LocalEnd, _: &Peer, _: Family) -> Option<NextHop> {
        None
    }

    fn links(&self, _: &LocalEnd) -> OverlayLinks {
        OverlayLinks {
            devices: imbl::OrdSet::unit("tunnel".to_owned()),
            port: 7789,
            mtu: imbl::OrdMap::new(),
        }
    }
}
