//! Egress addresses: who holds them, and what leaves with them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use egressgateway::{
    Attachments,
    index::Index,
    model::{Family, GatewayName, PolicyName, SourceNat, TargetId, Verdict},
    plan::Reason,
    world::Change,
};

use super::*;

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
