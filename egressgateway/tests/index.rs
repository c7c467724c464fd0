//! The index is equal to a rebuild from scratch, and each rule of planning holds.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use egressgateway::{
    Attachments, Encapsulation, LocalEnd, NextHop, NodeDesired, OverlayLinks, Peer, Underlay,
    api::{EgressGateway, EgressGatewayPolicy, EgressNode},
    index::{Index, IndexSettings},
    model::{
        Family, GatewayName, IpRange, MarkMask, NodeName, PodName, PolicyName, SourceNat, TargetId,
        Verdict,
    },
    plan::Reason,
    world::{self, Change, Labels, Namespace, Node, Pod},
};
use proptest::prelude::*;

fn settings() -> IndexSettings {
    IndexSettings::of_node(NodeName::from("n1"))
}

fn object<T: serde::de::DeserializeOwned>(kind: &str, name: &str, yaml: &str) -> T {
    let text = format!(
        "{{apiVersion: egressgateway.spidernet.io/v1, kind: {kind}, metadata: {{name: {name}}}, {yaml}}}"
    );
    serde_yaml::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
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

const DRAINED: &str = "spec: {nodeSelector: {matchLabels: {egress: 'true'}}}, status: {mark: 0x13000000, formerMark: 0x11000000,
    draining: {node: n2, until: '2026-01-01T00:00:00Z'}, nodeList: [{name: n2, status: NotReady}, {name: n3, status: Ready, active: true}]}";

#[test]
fn connections_of_a_drained_node_go_on_through_it_as_long_as_it_answers_and_for_the_grace_time() {
    let mut index = index([
        gateway("g", GATEWAY),
        policy("p", SHOP),
        pod("a", "n1", "10.244.1.10", "shop"),
        egress_node("n2", 2),
    ]);
    assert_eq!(ways(&mut index), ["n2"]);
    index.apply(gateway("g", DRAINED));
    let other = TargetId::new(0x13).unwrap();
    let desired = index.desired();
    let new = Verdict::Egress {
        target: other,
        source_nat: SourceNat::NodeAddress,
    };
    assert_eq!(
        verdicts(&desired),
        BTreeMap::from([(range("10.6.1.0/24"), new)])
    );
    assert_eq!(
        desired.paths[&other]
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        ["n3"]
    );
    assert!(
        desired.policy.targets.contains(&TargetId::FIRST),
        "old connections are still steered"
    );
    assert_eq!(ways(&mut index), ["n2"]);
    assert_eq!(
        index
            .gateway_nodes()
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        ["n2", "n3"],
        "both are probed"
    );
    index.set_down(BTreeSet::from([NodeName::from("n2")]));
    assert_eq!(
        ways(&mut index),
        ["n3"],
        "a drained node that dies is left at once"
    );
    index.set_down(BTreeSet::new());
    index.apply(gateway(
        "g",
        &DRAINED.replace("draining: {node: n2, until: '2026-01-01T00:00:00Z'}, ", ""),
    ));
    assert_eq!(ways(&mut index), ["n3"], "the time is over");
    assert_eq!(
        index
            .gateway_nodes()
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        ["n3"]
    );
}

#[test]
fn connections_that_several_nodes_share_stay_where_they_are_while_one_of_them_is_drained() {
    let shared = DRAINED
        .replace("spec: {", "spec: {forwardMethod: ecmp, ")
        .replace(
            "{name: n3",
            "{name: n4, status: Ready, active: true}, {name: n3",
        );
    let mut index = index([
        gateway("g", &shared),
        policy("p", SHOP),
        pod("a", "n1", "10.244.1.10", "shop"),
    ]);
    let new = |index: &mut Index| {
        index.desired().paths[&TargetId::new(0x13).unwrap()]
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        (ways(&mut index), new(&mut index)),
        (
            vec!["n2", "n3", "n4"]
                .into_iter()
                .map(str::to_owned)
                .collect(),
            vec!["n3".to_owned(), "n4".to_owned()]
        )
    );
    assert_eq!(index.desired().balanced.len(), 2);
    index.set_down(BTreeSet::from([NodeName::from("n2"), NodeName::from("n3")]));
    assert_eq!(
        (ways(&mut index), new(&mut index)),
        (vec!["n4".to_owned()], vec!["n4".to_owned()]),
        "who dies is left at once"
    );
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
    let mut index = Index::new(IndexSettings {
        default_gateway: Some(GatewayName::from("other")),
        ..settings()
    });
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
    let other = IndexSettings {
        default_gateway: Some(GatewayName::from("a")),
        cluster_networks: vec!["10.96.0.0/12".parse().unwrap()],
        start_gate: false,
        ..settings()
    };
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
fn traffic_is_held_as_long_as_the_gateway_has_no_mark_or_the_policy_no_address() {
    let shop = pod("a", "n1", "10.244.1.10", "shop");
    let held = BTreeMap::from([(range("10.6.1.0/24"), Verdict::Hold)]);
    let unmarked = GATEWAY.replace("mark: 0x11000000, ", "");
    assert_eq!(
        verdicts(&index([gateway("g", &unmarked), policy("p", SHOP), shop.clone()]).desired()),
        held
    );
    let asks = SHOP.replace("destCIDR", "egressIP: {ipv4: 10.6.1.60}, destCIDR");
    assert_eq!(
        verdicts(&index([gateway("g", GATEWAY), policy("p", &asks), shop]).desired()),
        held
    );
}

#[test]
fn what_a_policy_with_a_stated_address_governs_does_not_leave_as_a_node_that_can_not_have_it() {
    let here = "spec: {nodeSelector: {matchLabels: {egress: 'true'}}}, status: {mark: 0x11000000, nodeList: [{name: n1, status: Ready, active: true}]}";
    let states = SHOP.replace("destCIDR", "egressIP: {ipv4: 10.6.1.60}, destCIDR");
    let far = pod("far", "n2", "10.244.2.10", "shop");
    let mut index = index([gateway("g", here), policy("p", SHOP), far]);
    assert_eq!(
        (
            index.needs_all_pods(),
            index.desired().policy.overlay.unknown_may_exit
        ),
        (false, true)
    );
    for (spec, all) in [
        (states.as_str(), true),
        (SHOP, false),
        (states.as_str(), true),
    ] {
        index.apply(policy("p", spec));
        assert_eq!(
            (
                index.needs_all_pods(),
                index.desired().policy.overlay.unknown_may_exit
            ),
            (all, !all),
            "{spec}"
        );
    }
    index.apply(gateway("g", &here.replace("n1", "n3")));
    assert_eq!(
        (
            index.needs_all_pods(),
            index.desired().policy.overlay.unknown_may_exit
        ),
        (false, false),
        "no exit"
    );
}

#[test]
fn an_egress_address_is_translated_at_its_owner_who_knows_all_sources() {
    let with_target = "spec: {nodeSelector: {matchLabels: {egress: 'true'}}}, status: {mark: 0x11000000, nodeList: [
        {name: n1, status: Ready, active: true, mark: 0x13000000}, {name: n3, status: Ready}]}";
    let given = "spec: {appliedTo: {podSelector: {matchLabels: {app: shop}}}, destCIDR: [10.6.1.0/24], egressIP: {ipv4: 10.6.1.60}},
        status: {egressGateway: g, egressIP: {ipv4: 10.6.1.60}, node: n1}";
    let mut index = index([
        gateway("g", with_target),
        policy("p", given),
        pod("far", "n2", "10.244.2.10", "shop"),
    ]);
    let desired = index.desired();
    let target = TargetId::new(0x13).unwrap();
    let verdict = Verdict::Egress {
        target,
        source_nat: SourceNat::Address("10.6.1.60".parse().unwrap()),
    };
    assert_eq!(
        verdicts(&desired),
        BTreeMap::from([(range("10.6.1.0/24"), verdict)])
    );
    assert!(desired.policy.exits.contains(&target) && desired.policy.accepts.contains(&target));
    assert_eq!(desired.policy.pods.len(), 1, "the remote pod is recognised");
    assert!(index.needs_all_pods());
    assert!(!desired.policy.overlay.unknown_may_exit);
    // As long as another node is heard to answer for it, nothing is translated to it here: what
    // comes from elsewhere is unknown, which must not leave, and pods of this node wait. What goes
    // to another node goes on.
    index.set_contested(BTreeSet::from(["10.6.1.60".parse().unwrap()]));
    let desired = index.desired();
    assert_eq!(
        (
            desired.policy.pods.len(),
            desired.policy.overlay.unknown_may_exit
        ),
        (0, false)
    );
    index.apply(pod("near", "n1", "10.244.1.10", "shop"));
    assert_eq!(
        verdicts(&index.desired()),
        BTreeMap::from([(range("10.6.1.0/24"), Verdict::Hold)])
    );
    let class = index.policies_of("10.244.1.10".parse().unwrap()).unwrap();
    assert_eq!(
        index
            .decision(&class, "10.6.1.9".parse().unwrap())
            .unwrap()
            .reason,
        Reason::Contested
    );
    let elsewhere = with_target.replace(
        "{name: n3, status: Ready}",
        "{name: n3, status: Ready, mark: 0x14000000}",
    );
    index.apply(gateway("g", &elsewhere));
    index.apply(policy("p", &given.replace("node: n1", "node: n3")));
    let verdict = Verdict::Egress {
        target: TargetId::new(0x14).unwrap(),
        source_nat: SourceNat::Address("10.6.1.60".parse().unwrap()),
    };
    assert_eq!(
        verdicts(&index.desired()),
        BTreeMap::from([(range("10.6.1.0/24"), verdict)])
    );
}

#[test]
fn the_node_that_answers_for_an_egress_address_holds_it_as_long_as_a_policy_leaves_with_it() {
    let with_target = "spec: {nodeSelector: {matchLabels: {egress: 'true'}}}, status: {mark: 0x11000000, nodeList: [
        {name: n1, status: Ready, active: true, mark: 0x13000000}, {name: n3, status: Ready, mark: 0x14000000}]}";
    let given =
        "spec: {appliedTo: {podSelector: {matchLabels: {app: shop}}}, egressIP: {ipv4: 10.6.1.60}},
        status: {egressGateway: g, egressIP: {ipv4: 10.6.1.60}, node: n1}";
    let held = |index: &mut Index| {
        index
            .desired()
            .addresses
            .held
            .into_iter()
            .map(|(ip, device)| format!("{ip} {device}"))
            .collect::<Vec<_>>()
    };
    let mut index = index([gateway("g", with_target), policy("p", given)]);
    assert_eq!(held(&mut index), ["10.6.1.60 eth0"], "without any pod, too");
    let networks = imbl::OrdMap::unit("10.6.1.0/24".parse().unwrap(), "eth1".to_owned());
    let routers: imbl::OrdMap<_, _> = [(
        ("eth1".to_owned(), Family::V4),
        "10.6.1.1".parse::<IpAddr>().unwrap(),
    )]
    .into_iter()
    .collect();
    index.set_attachments(Attachments {
        networks: networks.clone(),
        routers: routers.clone(),
        ..Attachments::default()
    });
    assert_eq!(
        held(&mut index),
        ["10.6.1.60 eth1"],
        "where its neighbours are"
    );
    let addresses = imbl::OrdSet::unit("10.6.1.60".parse().unwrap());
    index.set_attachments(Attachments {
        networks,
        addresses,
        routers,
        ..Attachments::default()
    });
    assert!(held(&mut index).is_empty(), "the host has it without us");
    index.set_attachments(Attachments::default());
    index.apply(policy("p", &given.replace("node: n1", "node: n3")));
    assert!(held(&mut index).is_empty(), "another node answers for it");
    index.apply(policy(
        "p",
        &given.replace(
            "egressIP: {ipv4: 10.6.1.60}}",
            "egressIP: {ipv4: 10.6.1.61}}",
        ),
    ));
    assert!(
        held(&mut index).is_empty(),
        "the policy wants another one by now"
    );
    index.apply(policy("p", given));
    assert_eq!(held(&mut index), ["10.6.1.60 eth0"]);
    index.set_contested(BTreeSet::from(["10.6.1.60".parse().unwrap()]));
    assert!(
        held(&mut index).is_empty(),
        "another node answers for it, whatever the status says"
    );
    index.set_contested(BTreeSet::from(["10.6.1.61".parse().unwrap()]));
    assert_eq!(held(&mut index), ["10.6.1.60 eth0"]);
    index.apply(Change::Gateway(GatewayName::from("g"), None));
    assert!(
        held(&mut index).is_empty(),
        "nothing leaves by a gateway that is gone"
    );
    index.apply(gateway("g", with_target));
    index.apply(Change::Policy(PolicyName::from("p"), None));
    assert!(held(&mut index).is_empty());
}

#[test]
fn an_egress_address_is_taken_and_left_with_only_once_nobody_else_is_known_to_have_it() {
    let with_target = "spec: {nodeSelector: {matchLabels: {egress: 'true'}}, egressIPs: {ipv4: [10.6.1.60-10.6.1.63]}}, status: {
        mark: 0x11000000, nodeList: [{name: n1, status: Ready, active: true, mark: 0x13000000}, {name: n3, status: Unknown, mark: 0x14000000}]}";
    let given = "spec: {appliedTo: {podSelector: {matchLabels: {app: shop}}}, destCIDR: [10.6.1.0/24], egressIP: {ipv4: 10.6.1.60}},
        status: {egressGateway: g, egressIP: {ipv4: 10.6.1.60}, node: n1}";
    let address: IpAddr = "10.6.1.60".parse().unwrap();
    let mut index = index([
        gateway("g", with_target),
        policy("p", given),
        pod("near", "n1", "10.244.1.10", "shop"),
    ]);
    let asked = |addresses: &egressgateway::AddressesDesired| {
        addresses
            .held
            .keys()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    index.set_granted(Some(BTreeSet::new()));
    let desired = index.desired();
    assert_eq!(
        (desired.addresses.held.len(), asked(&index.questions().own)),
        (0, vec!["10.6.1.60".to_owned()])
    );
    assert_eq!(
        verdicts(&desired),
        BTreeMap::from([(range("10.6.1.0/24"), Verdict::Hold)])
    );
    let class = index.policies_of("10.244.1.10".parse().unwrap()).unwrap();
    assert_eq!(
        index
            .decision(&class, "10.6.1.9".parse().unwrap())
            .unwrap()
            .reason,
        Reason::NotTaken
    );
    index.set_granted(Some(BTreeSet::from([address])));
    assert!(index.desired().addresses.held.contains_key(&address));
    assert_eq!(
        asked(&index.questions().own),
        ["10.6.1.60"],
        "for as long as it is the node's"
    );
    // What the host has without us, nobody takes, and nobody asks for.
    index.set_granted(Some(BTreeSet::new()));
    index.set_attachments(Attachments {
        addresses: imbl::OrdSet::unit(address),
        ..Attachments::default()
    });
    let translated = |verdict: &Verdict| {
        matches!(
            verdict,
            Verdict::Egress {
                source_nat: SourceNat::Address(_),
                ..
            }
        )
    };
    assert!(verdicts(&index.desired()).values().all(translated));
    assert_eq!(asked(&index.questions().own), [""; 0]);
    index.set_attachments(Attachments::default());
    // A candidate asks, and pods of its own go where the address is.
    index.apply(policy(
        "p",
        &given.replace("node: n1", "node: n3, candidate: n1"),
    ));
    let elsewhere = verdicts(&index.desired());
    assert!(elsewhere.values().all(translated), "{elsewhere:?}");
    let questions = index.questions();
    assert_eq!(
        (asked(&questions.own), asked(&questions.candidate)),
        (vec![], vec!["10.6.1.60".to_owned()])
    );
}

#[test]
fn the_next_ready_node_takes_over_when_the_active_one_does_not_answer() {
    let mut index = index([
        gateway("g", GATEWAY),
        egress_node("n2", 2),
        egress_node("n3", 3),
    ]);
    index.set_down(BTreeSet::from([NodeName::from("n2")]));
    assert_eq!(ways(&mut index), ["n3"]);
    index.set_down(BTreeSet::from([NodeName::from("n2"), NodeName::from("n3")]));
    assert!(
        ways(&mut index).is_empty(),
        "the target stays, without a way: unreachable"
    );
}

#[test]
fn where_no_node_is_ready_the_last_choice_stays_unless_it_does_not_answer() {
    for status in ["NotReady", "Unknown"] {
        let silent = GATEWAY.replace("status: Ready", &format!("status: {status}"));
        let mut index = index([
            gateway("g", &silent),
            egress_node("n2", 2),
            egress_node("n3", 3),
        ]);
        assert_eq!(ways(&mut index), ["n2"], "the active one");
        assert_eq!(
            probed(&mut index),
            ["n2"],
            "and nobody else is asked whether it lives"
        );
        index.set_down(BTreeSet::from([NodeName::from("n2")]));
        assert!(ways(&mut index).is_empty());
        assert_eq!(probed(&mut index), ["n2"], "it may answer again");
        index.set_down(BTreeSet::new());
        index.apply(gateway("g", &silent.replace(", active: true", "")));
        assert!(ways(&mut index).is_empty(), "the controller took it out");
        assert!(probed(&mut index).is_empty());
    }
}

#[test]
fn nodes_that_are_not_ready_are_never_chosen_where_others_are() {
    let mut index = index([
        gateway(
            "g",
            &GATEWAY.replacen("status: Ready", "status: NotReady", 1),
        ),
        egress_node("n3", 3),
    ]);
    assert_eq!(ways(&mut index), ["n3"]);
    index.set_down(BTreeSet::from([NodeName::from("n3")]));
    assert!(ways(&mut index).is_empty());
}

fn probed(index: &mut Index) -> Vec<String> {
    index.apply(policy("p", SHOP));
    index.apply(pod("a", "n1", "10.244.1.10", "shop"));
    index.desired();
    index
        .gateway_nodes()
        .iter()
        .map(ToString::to_string)
        .collect()
}

#[test]
fn ecmp_uses_every_active_node() {
    let both = GATEWAY
        .replace("mark:", "forwardMethod: ecmp, mark:")
        .replace("n3, status: Ready", "n3, status: Ready, active: true");
    assert_eq!(ways(&mut index([gateway("g", &both)])), ["n2", "n3"]);
}

#[test]
fn connections_are_balanced_where_the_gateway_says_so_even_over_one_node() {
    let balanced = |text: &str| {
        index([gateway("g", text)])
            .desired()
            .balanced
            .contains(&TargetId::FIRST)
    };
    assert!(!balanced(GATEWAY));
    assert!(
        balanced(&GATEWAY.replace("mark:", "forwardMethod: ecmp, mark:")),
        "with one active node"
    );
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

fn policies() -> impl Strategy<Value = Change> {
    let subject = prop::sample::select(vec![
        "podSelector: {matchLabels: {app: shop}}",
        "podSelector: {matchLabels: {app: blog}}",
        "podSelector: {matchExpressions: [{key: app, operator: Exists}]}, namespaceSelector: {matchLabels: {team: a}}",
        "podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [shop]}]}",
        "ipv4PodSubnet: 10.244.1.0/29",
        "ipv4PodSubnet: 10.244.1.0/30",
        "ipv4PodSubnet: 10.244.1.0/30, podSelector: {}",
    ]);
    let network = || {
        prop::sample::select(vec![
            "10.6.1.0/24",
            "10.6.1.128/25",
            "10.6.0.0/16",
            "fd00:6::/64",
        ])
    };
    let networks = move |most| prop::collection::vec(network(), 0..most);
    (
        0..5_u8,
        subject,
        networks(3),
        networks(2),
        0..3_u32,
        0..4_u8,
        0..6_u8,
    )
        .prop_map(|(name, subject, to, except, priority, gateway, owner)| {
            let named = if gateway == 3 {
                String::new()
            } else {
                format!("egressGatewayName: g{gateway}, ")
            };
            let rest = format!("destCIDR: {to:?}, exceptCIDR: {except:?}, priority: {priority}");
            let owned = format!(", status: {{egressIP: {{ipv4: 10.6.1.6{name}}}, node: n{owner}}}");
            let status = if owner > 3 { "" } else { &owned };
            policy(
                &format!("p{name}"),
                &format!("spec: {{{named}appliedTo: {{{subject}}}, {rest}}}{status}"),
            )
        })
}

fn gateways() -> impl Strategy<Value = Change> {
    let members = prop::collection::vec(
        (
            1..4_u8,
            prop::sample::select(vec!["Ready", "NotReady"]),
            any::<bool>(),
        ),
        0..3,
    );
    (
        0..3_u8,
        any::<bool>(),
        prop::sample::select(vec!["NodeAddress", "None"]),
        members,
    )
        .prop_map(|(name, marked, nat, members)| {
            let mark = if marked {
                format!("mark: {}, ", u32::from(0x20 + name) << 24)
            } else {
                String::new()
            };
            let members = members.iter().map(|(node, status, active)| {
                let mark = u32::from(0x30 + node) << 24;
                format!("{{name: n{node}, status: {status}, active: {active}, mark: {mark}}}")
            });
            let members = members.collect::<Vec<_>>().join(",");
            let spec = format!(
                "spec: {{sourceNAT: {nat}, nodeSelector: {{matchLabels: {{egress: 'true'}}}}}}"
            );
            gateway(
                &format!("g{name}"),
                &format!("{spec}, status: {{{mark}nodeList: [{members}]}}"),
            )
        })
}

/// Objects from a small world, so that they meet often.
fn change() -> impl Strategy<Value = Change> {
    let app = prop::sample::select(vec!["shop", "blog", "db"]);
    let pods = (0..8_u8, 1..3_u8, 0..6_u8, app, any::<bool>()).prop_map(
        |(name, node, address, app, gone)| {
            let name = format!("pod{name}");
            if gone {
                Change::Pod(PodName::new("default", name), None)
            } else {
                pod(
                    &name,
                    &format!("n{node}"),
                    &format!("10.244.1.{address}"),
                    app,
                )
            }
        },
    );
    let namespaces = any::<bool>().prop_map(|team| {
        let labels = team
            .then(|| ("team".to_owned(), "a".to_owned()))
            .into_iter()
            .collect();
        Change::Namespace(Arc::from("default"), Some(Namespace { labels }))
    });
    let gone = (0..5_u8, 0..4_u8).prop_map(|(name, kind)| match kind {
        0 => Change::Policy(PolicyName::from(format!("p{name}")), None),
        1 => Change::Gateway(GatewayName::from(format!("g{name}")), None),
        2 => Change::Node(NodeName::from(format!("n{name}")), None),
        _ => Change::EgressNode(NodeName::from(format!("n{name}")), None),
    });
    let nodes = (1..4_u8).prop_map(|name| {
        node(
            &format!("n{name}"),
            &format!("10.24{name}.0.0/24"),
            &format!("10.6.0.{name}"),
        )
    });
    let egress_nodes = (1..4_u8).prop_map(|name| egress_node(&format!("n{name}"), name));
    prop_oneof![4 => policies(), 3 => gateways(), 6 => pods, 1 => namespaces, 3 => gone, 1 => nodes, 1 => egress_nodes]
}

/// The object that a change speaks of.
fn object_of(change: &Change) -> String {
    match change {
        Change::Pod(name, _) => format!("pod {name}"),
        Change::Namespace(name, _) => format!("namespace {name}"),
        Change::Node(name, _) => format!("node {name}"),
        Change::EgressNode(name, _) => format!("egress node {name}"),
        Change::Gateway(name, _) => format!("gateway {name}"),
        Change::Policy(name, _) => format!("policy {name}"),
        Change::ClusterNetworks(_) => "networks".to_owned(),
        Change::PodNetworks(_) => "pod networks".to_owned(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]
    #[test]
    fn whatever_the_order_of_events_the_index_is_a_rebuild_from_the_final_world(
        changes in prop::collection::vec((change(), any::<bool>(), any::<bool>()), 1..40),
        down in prop::collection::btree_set(1..4_u8, 0..2),
    ) {
        let mut stepwise = index([]);
        let mut contested = BTreeSet::new();
        for (change, look, others) in &changes {
            stepwise.apply(change.clone());
            if *look {
                stepwise.desired();
            }
            contested = others.then(|| [[10, 6, 1, 60].into(), [10, 6, 1, 62].into()].into()).unwrap_or_default();
            stepwise.set_contested(contested.clone());
        }
        let down: BTreeSet<NodeName> = down.iter().map(|name| NodeName::from(format!("n{name}"))).collect();
        stepwise.set_down(down.clone());
        let last: BTreeMap<String, Change> = changes.into_iter().map(|(change, _, _)| (object_of(&change), change)).collect();
        for order in [last.values().cloned().collect::<Vec<_>>(), last.values().rev().cloned().collect()] {
            let mut rebuilt = index(order);
            rebuilt.set_down(down.clone());
            rebuilt.set_contested(contested.clone());
            prop_assert_eq!(stepwise.desired(), rebuilt.desired());
            prop_assert_eq!(stepwise.needs_all_pods(), rebuilt.needs_all_pods());
        }
    }
}

#[test]
fn pods_that_are_told_of_before_the_networks_that_they_are_in_are_no_strangers() {
    let mut index = Index::new(settings());
    index.apply(pod("a", "n1", "10.244.1.10", "shop"));
    index.apply(node("n1", "10.244.1.0/24", "10.6.0.1"));
    assert!(
        !index.needs_all_pods(),
        "the first lists come in any order, and nothing was settled yet"
    );
}

#[test]
fn where_nodes_do_not_tell_their_networks_pods_are_known_one_by_one_and_strangers_wait() {
    let untold = |name: &str, address: &str| {
        let node = Node {
            addresses: vec![address.parse().unwrap()],
            ready: true,
            ..Node::default()
        };
        Change::Node(NodeName::from(name), Some(node))
    };
    let all = "spec: {appliedTo: {podSelector: {matchLabels: {app: shop}}}}";
    let pods = [
        pod("a", "n1", "10.244.1.10", "shop"),
        pod("c", "n2", "10.244.2.10", "blog"),
    ];
    let nodes = [
        untold("n1", "10.6.0.1"),
        untold("n2", "10.6.0.2"),
        gateway("g", GATEWAY),
        policy("p", all),
    ];
    let mut index = Index::new(IndexSettings {
        start_gate: true,
        ..settings()
    });
    let underlay = Underlay {
        device: "eth0".into(),
        index: 2,
        address: "10.6.0.1".parse().unwrap(),
        mtu: 1500,
    };
    index.set_underlay(imbl::OrdMap::unit(Family::V4, underlay));
    for change in nodes.into_iter().chain(pods) {
        index.apply(change);
    }
    let is_exempt = |desired: &NodeDesired, address: &str| {
        let address: std::net::IpAddr = address.parse().unwrap();
        desired
            .policy
            .exempt
            .iter()
            .any(|network| network.contains(&address))
    };
    let gate = |desired: &NodeDesired| {
        let gate = desired.policy.start_gate.clone().unwrap();
        let texts = |networks: imbl::OrdSet<ipnet::IpNet>| {
            networks.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        (
            texts(gate.local),
            texts(gate.wide),
            gate.outside.iter().cloned().collect::<Vec<_>>(),
        )
    };
    let desired = index.desired();
    assert!(index.needs_all_pods() && index.pod_networks_are_unknown());
    assert!(
        is_exempt(&desired, "10.244.1.10")
            && is_exempt(&desired, "10.244.2.10")
            && !is_exempt(&desired, "10.244.2.11")
    );
    let (local, wide, outside) = gate(&desired);
    assert_eq!(wide, ["0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1"]);
    assert_eq!((local, outside), (Vec::new(), vec!["eth0".to_owned()]));
    // A pod that comes or goes is followed.
    index.apply(pod("d", "n2", "10.244.2.11", "blog"));
    assert!(is_exempt(&index.desired(), "10.244.2.11"));
    index.apply(Change::Pod(PodName::new("default", "d"), None));
    assert!(!is_exempt(&index.desired(), "10.244.2.11"));
    // The CNI's objects say where pods are.
    index.apply(Change::PodNetworks(vec!["10.244.0.0/16".parse().unwrap()]));
    let desired = index.desired();
    assert!(!index.needs_all_pods() && !index.pod_networks_are_unknown());
    assert!(is_exempt(&desired, "10.244.2.11"));
    assert_eq!(
        gate(&desired),
        (
            Vec::new(),
            vec!["10.244.0.0/16".to_owned()],
            vec!["eth0".to_owned()]
        )
    );
    // A pod elsewhere shows that it is not true.
    index.apply(pod("e", "n1", "10.99.0.1", "blog"));
    let desired = index.desired();
    assert!(
        index.needs_all_pods()
            && index.pod_networks_are_unknown()
            && is_exempt(&desired, "10.99.0.1")
    );
    assert!(gate(&desired).1.contains(&"0.0.0.0/1".to_owned()));
    // Where a Node says where its pods are, its sources tell alone.
    index.apply(Change::Pod(PodName::new("default", "e"), None));
    index.apply(Change::PodNetworks(Vec::new()));
    index.apply(node("n1", "10.244.1.0/24", "10.6.0.1"));
    assert_eq!(
        gate(&index.desired()),
        (vec!["10.244.1.0/24".to_owned()], Vec::new(), Vec::new())
    );
    assert!(!index.pod_networks_are_unknown());
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
