use egressgateway::{api::EgressNodePhase, model::NodeName};

use crate::api::{Api, told};

fn address(api: &Api, name: &str) -> Option<String> {
    api.egress_nodes[name]
        .status
        .as_ref()
        .unwrap()
        .vxlan_ipv4_ip
        .clone()
}

#[test]
fn every_node_has_an_egress_node_and_no_other_does() {
    let mut api = Api::default();
    api.node("a", "{}");
    api.node("b", "{}");
    api.egress_nodes.remove("a");
    api.nodes.remove("b");
    let plan = api.plan();
    assert_eq!(
        plan.create.into_iter().collect::<Vec<_>>(),
        [(NodeName::from("a"), "uid-a".to_owned())]
    );
    assert_eq!(
        plan.delete.into_iter().collect::<Vec<_>>(),
        [NodeName::from("b")]
    );
    assert!(!plan.egress_nodes.contains_key("b"));
}

#[test]
fn nodes_get_the_lowest_free_address_and_keep_it() {
    let mut api = Api::default();
    api.node("b", "{}");
    api.settle();
    assert_eq!(address(&api, "b").unwrap(), "172.31.0.1/16");
    api.node("a", "{}");
    api.settle();
    assert_eq!(
        (address(&api, "b").unwrap(), address(&api, "a").unwrap()),
        ("172.31.0.1/16".to_owned(), "172.31.0.2/16".to_owned())
    );
    api.nodes.remove("b");
    api.settle();
    api.node("c", "{}");
    api.settle();
    assert_eq!(
        (address(&api, "a").unwrap(), address(&api, "c").unwrap()),
        ("172.31.0.2/16".to_owned(), "172.31.0.1/16".to_owned())
    );
}

#[test]
fn a_node_without_a_family_gets_no_address_of_it() {
    let mut api = Api::default();
    api.node("a", "{}");
    api.settle();
    assert_eq!(
        api.egress_nodes["a"].status.as_ref().unwrap().vxlan_ipv6_ip,
        None
    );
    api.nodes
        .get_mut("a")
        .unwrap()
        .addresses
        .push("fd00::11".parse().unwrap());
    api.settle();
    assert_eq!(
        api.egress_nodes["a"]
            .status
            .as_ref()
            .unwrap()
            .vxlan_ipv6_ip
            .as_deref(),
        Some("fd31::1/112")
    );
    api.nodes.get_mut("a").unwrap().addresses.clear();
    api.settle();
    assert_eq!(
        (address(&api, "a"), api.phase("a")),
        (None, EgressNodePhase::Pending)
    );
}

#[test]
fn a_parent_with_a_family_that_the_node_does_not_tell_counts() {
    let mut api = Api::default();
    api.node("a", "{}");
    api.egress_nodes
        .get_mut("a")
        .unwrap()
        .status
        .as_mut()
        .unwrap()
        .physical_interface_ipv6 = Some("fd00::11".to_owned());
    api.settle();
    assert_eq!(
        api.egress_nodes["a"]
            .status
            .as_ref()
            .unwrap()
            .vxlan_ipv6_ip
            .as_deref(),
        Some("fd31::1/112")
    );
}

#[test]
fn an_exhausted_network_is_a_phase_and_a_condition_and_recovers() {
    let mut api = Api::default();
    api.settings.overlay = vec!["172.31.0.0/30".parse().unwrap()];
    for name in ["a", "b", "c"] {
        api.node(name, "{}");
    }
    api.settle();
    assert_eq!(
        [api.phase("a"), api.phase("b"), api.phase("c")],
        [
            EgressNodePhase::Init,
            EgressNodePhase::Init,
            EgressNodePhase::Failed
        ]
    );
    let message = told(
        &api.egress_nodes["c"].status.as_ref().unwrap().conditions,
        "AddressAssigned",
    );
    assert_eq!(
        message,
        "False PoolExhausted: pool 172.31.0.1-172.31.0.2 is exhausted: 2 addresses are held"
    );
    api.nodes.remove("a");
    api.settle();
    assert_eq!(
        (api.phase("c"), address(&api, "c").unwrap()),
        (EgressNodePhase::Init, "172.31.0.1/30".to_owned())
    );
}

#[test]
fn two_nodes_never_keep_the_same_address() {
    let mut api = Api::default();
    api.node("a", "{}");
    api.node("b", "{}");
    api.settle();
    api.egress_nodes
        .get_mut("a")
        .unwrap()
        .status
        .as_mut()
        .unwrap()
        .vxlan_ipv4_ip = Some("172.31.0.2/16".to_owned());
    api.egress_nodes
        .get_mut("b")
        .unwrap()
        .status
        .as_mut()
        .unwrap()
        .phase = Some(EgressNodePhase::Succeeded);
    api.settle();
    assert_eq!(
        (address(&api, "a").unwrap(), address(&api, "b").unwrap()),
        ("172.31.0.1/16".to_owned(), "172.31.0.2/16".to_owned())
    );
}

#[test]
fn an_address_of_another_network_is_replaced() {
    let mut api = Api::default();
    api.node("a", "{}");
    for foreign in [
        "10.0.0.1/16",
        "172.31.0.7/24",
        "172.31.0.0/16",
        "172.31.255.255/16",
        "nonsense",
    ] {
        api.egress_nodes
            .get_mut("a")
            .unwrap()
            .status
            .as_mut()
            .unwrap()
            .vxlan_ipv4_ip = Some(foreign.to_owned());
        api.settle();
        assert_eq!(
            address(&api, "a").unwrap(),
            "172.31.0.1/16",
            "instead of {foreign}"
        );
    }
}

#[test]
fn succeeded_is_the_agents_word_and_stays_while_nothing_changed() {
    let mut api = Api::default();
    api.node("a", "{}");
    api.settle();
    assert_eq!(api.phase("a"), EgressNodePhase::Init);
    api.egress_nodes
        .get_mut("a")
        .unwrap()
        .status
        .as_mut()
        .unwrap()
        .phase = Some(EgressNodePhase::Succeeded);
    api.settle();
    assert_eq!(api.phase("a"), EgressNodePhase::Succeeded);
    api.tunnel("a", false);
    api.settle();
    assert_eq!(api.phase("a"), EgressNodePhase::Init);
    api.tunnel("a", true);
    api.egress_nodes
        .get_mut("a")
        .unwrap()
        .status
        .as_mut()
        .unwrap()
        .phase = Some(EgressNodePhase::Succeeded);
    api.settings.overlay = vec!["172.16.0.0/16".parse().unwrap()];
    api.settle();
    assert_eq!(
        (api.phase("a"), address(&api, "a").unwrap()),
        (EgressNodePhase::Init, "172.16.0.1/16".to_owned())
    );
}

#[test]
fn the_hardware_address_follows_from_the_nodes_uid() {
    let mut api = Api::default();
    api.node("a", "{}");
    api.settle();
    let before = api.egress_nodes["a"]
        .status
        .as_ref()
        .unwrap()
        .tunnel_mac
        .clone();
    api.nodes.get_mut("a").unwrap().uid = "another".to_owned();
    api.settle();
    assert_ne!(
        api.egress_nodes["a"].status.as_ref().unwrap().tunnel_mac,
        before
    );
}
