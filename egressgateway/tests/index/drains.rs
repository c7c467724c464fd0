//! Connections while nodes are drained.

use std::collections::{BTreeMap, BTreeSet};

use egressgateway::{
    index::Index,
    model::{NodeName, SourceNat, TargetId, Verdict},
};

use super::*;

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
