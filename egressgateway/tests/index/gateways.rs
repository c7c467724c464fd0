//! Which nodes of a gateway carry traffic.

use std::collections::BTreeSet;

use egressgateway::{
    index::Index,
    model::{NodeName, TargetId},
};

use super::*;

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
