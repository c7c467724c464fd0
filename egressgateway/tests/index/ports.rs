//! Egress addresses that the pods' own nodes translate to: which ports a node asks for, and what it
//! does with those that it has.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use egressgateway::{
    index::Index,
    model::{NodeName, PortBlock},
    plan::Reason,
};

use super::*;

const DISTRIBUTED: &str = "spec: {nodeSelector: {matchLabels: {egress: 'true'}}, nat: Distributed, portsPerNode: 2048, sourceNAT: EgressIP,
    egressIPs: {ipv4: [10.6.1.60-10.6.1.69], ipv6: ['fd00:6::60-fd00:6::69']}},
    status: {mark: 0x11000000, nodeList: [{name: n2, status: Ready, active: true}, {name: n3, status: Ready}]}";

fn given(subject: &str, v4: u8) -> String {
    format!(
        "spec: {{appliedTo: {{{subject}}}, destCIDR: [192.0.2.0/24, '2001:db8::/32']}},
        status: {{egressGateway: g, egressIP: {{ipv4: 10.6.1.{v4}, ipv6: 'fd00:6::{v4}'}}, node: n2}}"
    )
}

fn wanted(index: &mut Index) -> BTreeMap<String, u16> {
    index.desired();
    let wanted = index.ports_wanted().into_iter();
    wanted
        .map(|(address, units)| (address.to_string(), units))
        .collect()
}

fn ports<const N: usize>(of: [&str; N]) -> BTreeMap<String, u16> {
    of.map(|address| (address.to_owned(), 8)).into()
}

#[test]
fn a_node_asks_for_ports_of_the_addresses_that_its_own_pods_leave_with() {
    let shop = given("podSelector: {matchLabels: {app: shop}}", 60);
    let blog = given("podSelector: {matchLabels: {app: blog}}", 61);
    let mut index = index([
        gateway("g", DISTRIBUTED),
        policy("shop", &shop),
        policy("blog", &blog),
    ]);
    assert_eq!(wanted(&mut index), ports([]));
    index.apply(pod("far", "n2", "10.244.2.10", "shop"));
    assert_eq!(wanted(&mut index), ports([]));
    index.apply(pod("a", "n1", "10.244.1.10", "shop"));
    assert_eq!(
        wanted(&mut index),
        ports(["10.6.1.60"]),
        "the pod has no IPv6 address"
    );
    index.apply(pod("six", "n1", "fd10::10", "blog"));
    let both = ports(["10.6.1.60", "fd00:6::61"]);
    assert_eq!(wanted(&mut index), both);
    // Others come and go.
    index.apply(pod("b", "n1", "10.244.1.11", "shop"));
    index.apply(pod("other", "n1", "10.244.1.12", "db"));
    assert_eq!(wanted(&mut index), both);
    index.apply(Change::Pod(PodName::new("default", "a"), None));
    assert_eq!(wanted(&mut index), both);
    index.apply(Change::Pod(PodName::new("default", "b"), None));
    assert_eq!(wanted(&mut index), ports(["fd00:6::61"]));
    index.apply(gateway("g", &DISTRIBUTED.replace("2048", "256")));
    assert_eq!(wanted(&mut index), [("fd00:6::61".to_owned(), 1)].into());
    index.apply(gateway("g", &DISTRIBUTED.replace("nat: Distributed, ", "")));
    assert_eq!(wanted(&mut index), ports([]));
}

#[test]
fn by_a_subnet_a_node_asks_only_where_a_pod_of_its_own_is_in_it() {
    let subnet = given("ipv4PodSubnet: 10.244.0.0/23", 60);
    let mut index = index([
        gateway("g", DISTRIBUTED),
        policy("p", &subnet),
        pod("outside", "n1", "10.244.2.1", "any"),
        pod("far", "n2", "10.244.1.9", "any"),
    ]);
    assert_eq!(wanted(&mut index), ports([]));
    index.apply(pod("a", "n1", "10.244.1.10", "any"));
    assert_eq!(wanted(&mut index), ports(["10.6.1.60"]));
    // A policy of its labels does not hide the subnet.
    index.apply(policy(
        "blog",
        &given("podSelector: {matchLabels: {app: any}}", 61),
    ));
    assert_eq!(wanted(&mut index), ports(["10.6.1.60", "10.6.1.61"]));
}

#[test]
fn what_a_node_has_no_ports_of_is_held_and_its_ports_are_used_as_soon_as_it_has_some() {
    let shop = given("podSelector: {matchLabels: {app: shop}}", 60);
    let own = |ports: &str| {
        let status = format!("spec: {{}}, status: {{portBlocks: [{ports}]}}");
        let object: EgressNode = object("EgressNode", "n1", &status);
        Change::EgressNode("n1".into(), Some(world::EgressNode::from_api(&object)))
    };
    let mut index = index([
        gateway("g", DISTRIBUTED),
        policy("shop", &shop),
        pod("a", "n1", "10.244.1.10", "shop"),
    ]);
    let v4 = range("192.0.2.0/24");
    assert_eq!(verdicts(&index.desired())[&v4], Verdict::Hold);
    let reason = |index: &Index| {
        let class = index.policies_of("10.244.1.10".parse().unwrap()).unwrap();
        index
            .decision(&class, "192.0.2.1".parse().unwrap())
            .unwrap()
            .reason
    };
    assert_eq!(reason(&index), Reason::NoPorts);
    let block = "{address: 10.6.1.60, first: 2048, last: 4095}";
    index.apply(own(&format!(
        "{block}, {{address: 10.6.1.61, first: 2048, last: 4095}}"
    )));
    let desired = index.desired();
    let address = "10.6.1.60".parse().unwrap();
    let steered = Verdict::Egress {
        target: TargetId::FIRST,
        source_nat: SourceNat::Ports(address),
    };
    assert_eq!(verdicts(&desired)[&v4], steered);
    assert_eq!(reason(&index), Reason::Steered);
    let block = PortBlock::of_ports(2048, 4095).unwrap();
    let blocks = imbl::OrdMap::unit(address, imbl::OrdSet::unit(block));
    assert_eq!(
        desired.policy.blocks, blocks,
        "no policy has the other address"
    );
    assert_eq!(wanted(&mut index), ports(["10.6.1.60"]));
    index.apply(own(""));
    assert_eq!(verdicts(&index.desired())[&v4], Verdict::Hold);
}

/// n1 and n3 stand by for n2, in this order.
const STANDBYS: &str = "spec: {nodeSelector: {matchLabels: {egress: 'true'}}, nat: Distributed, sourceNAT: EgressIP,
    egressIPs: {ipv4: [10.6.1.60-10.6.1.69]}},
    status: {mark: 0x11000000, nodeList: [{name: n2, status: Ready, active: true}, {name: n4, status: Unknown},
    {name: n3, status: Ready}, {name: n1, status: Ready}]}";

#[test]
fn the_first_standby_takes_an_address_that_nobody_answers_for_while_its_node_is_down() {
    let address: IpAddr = "10.6.1.60".parse().unwrap();
    let nodes = |names: &[&str]| names.iter().map(|name| NodeName::from(*name)).collect();
    let silent = BTreeSet::from([address]);
    let mut index = index([
        gateway("g", STANDBYS),
        policy("p", &given("podSelector: {matchLabels: {app: shop}}", 60)),
    ]);
    let held = |index: &mut Index| index.desired().addresses.held.contains_key(&address);
    let asks = |index: &mut Index| {
        index.desired();
        index.questions().candidate.held.contains_key(&address)
    };
    assert_eq!(index.gateway_nodes(), nodes(&["n2", "n3"]), "who is probed");
    index.set_silent(silent.clone());
    assert!(!held(&mut index) && !asks(&mut index), "its node answers");
    index.set_down(nodes(&["n2"]));
    assert!(!held(&mut index) && !asks(&mut index), "n3 comes first");
    index.set_down(nodes(&["n2", "n3"]));
    assert!(held(&mut index) && asks(&mut index));
    index.set_silent(BTreeSet::new());
    assert!(
        !held(&mut index) && asks(&mut index),
        "somebody answers for it"
    );
    index.set_silent(silent.clone());
    assert!(held(&mut index));
    index.set_can_relay(false);
    assert!(!held(&mut index), "it would answer for others' pods");
    index.set_can_relay(true);
    // The controller has followed, and the question is about an address of its own now.
    let followed =
        given("podSelector: {matchLabels: {app: shop}}", 60).replace("node: n2", "node: n1");
    assert!(followed.contains("node: n1"));
    index.set_granted(Some(BTreeSet::new()));
    index.apply(policy("p", &followed));
    assert!(held(&mut index), "there is no moment without it");
    index.set_granted(Some(silent.clone()));
    index.set_silent(BTreeSet::new());
    assert!(held(&mut index));
    // Or it has chosen another one.
    let other = followed.replace("node: n1", "node: n3");
    index.set_down(nodes(&["n2"]));
    index.set_silent(silent);
    index.apply(policy("p", &other));
    assert!(!held(&mut index));

    let centralized = STANDBYS.replace("nat: Distributed, ", "");
    index.apply(gateway("g", &centralized));
    index.apply(policy(
        "p",
        &given("podSelector: {matchLabels: {app: shop}}", 60),
    ));
    index.set_down(nodes(&["n2", "n3"]));
    assert!(
        !held(&mut index) && !asks(&mut index),
        "two nodes that translate would answer for each other's connections"
    );
}
