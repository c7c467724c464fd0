//! Which addresses of a pool are given, and to which node.

use std::collections::BTreeSet;

use egressgateway::world::Node;

use crate::api::{Api, told};

const GATEWAY: &str = "{nodeSelector: {matchLabels: {egress: 'true'}}, sourceNAT: EgressIP, egressIPs: {ipv4: [POOL]}}";

fn two_nodes(pool: &str) -> Api {
    let mut api = Api::default();
    api.node("a", "{egress: 'true'}");
    api.node("b", "{egress: 'true'}");
    api.gateway("gw", &GATEWAY.replace("POOL", pool));
    api
}

fn policies(api: &mut Api, names: &[&str]) {
    for name in names {
        api.policy(name, 1, &format!("{{appliedTo: {{podSelector: {{matchLabels: {{app: {name}}}}}}}, destCIDR: [10.9.0.0/16]}}"));
    }
}

fn state(api: &mut Api, name: &str, address: &str) {
    let spec = format!(
        "{{appliedTo: {{podSelector: {{matchLabels: {{app: shop}}}}}}, egressIP: {{ipv4: {address}}}}}"
    );
    api.policy(name, 1, &spec);
}

fn given(api: &Api, names: &[&str]) -> BTreeSet<String> {
    names
        .iter()
        .filter_map(|name| Some(api.egress_ip(name)?.0.to_owned()))
        .collect()
}

fn addresses(texts: &[&str]) -> BTreeSet<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

fn accepted(api: &Api, name: &str) -> String {
    told(&api.policy_status(name).conditions, "Accepted")
}

#[test]
fn a_networks_edges_its_routers_and_its_nodes_are_given_to_nobody() {
    let mut api = two_nodes("10.6.0.0/29");
    api.interface("a", "10.6.0.1/29", "10.6.0.6");
    api.interface("b", "10.6.0.2/29", "10.6.0.6");
    api.interface("b", "10.6.0.3/29", "10.6.0.6");
    policies(&mut api, &["p1", "p2", "p3"]);
    api.settle();
    assert_eq!(
        given(&api, &["p1", "p2", "p3"]),
        addresses(&["10.6.0.4", "10.6.0.5"])
    );
    assert!(
        accepted(&api, "p3").starts_with("False EgressIPExhausted: "),
        "{}",
        accepted(&api, "p3")
    );
    for (address, whose) in [
        (
            "10.6.0.0",
            "it is the first or the last address of network 10.6.0.0/29",
        ),
        (
            "10.6.0.7",
            "it is the first or the last address of network 10.6.0.0/29",
        ),
        ("10.6.0.6", "it is the router of Node b"),
        ("10.6.0.2", "Node b has it"),
    ] {
        state(&mut api, "p4", address);
        api.settle();
        assert_eq!(api.egress_ip("p4"), None);
        let rule = format!("must not be in use: {whose}");
        assert_eq!(
            accepted(&api, "p4"),
            format!("False EgressIPInUse: spec.egressIP.ipv4: \"{address}\": {rule}")
        );
    }
}

#[test]
fn an_address_that_somebody_put_on_a_gateway_node_is_for_the_policy_that_states_it() {
    let mut api = two_nodes("10.6.1.60-10.6.1.61");
    api.node("c", "{}");
    api.interface("a", "10.6.1.60/16", "10.6.255.254");
    api.interface("c", "10.6.1.61/16", "10.6.255.254");
    policies(&mut api, &["p1"]);
    api.settle();
    assert_eq!(api.egress_ip("p1"), None, "both are in use");
    state(&mut api, "p2", "10.6.1.60");
    state(&mut api, "p3", "10.6.1.61");
    api.settle();
    assert_eq!(
        (api.egress_ip("p2").unwrap().0, api.egress_ip("p3")),
        ("10.6.1.60", None),
        "that of another node is its own"
    );
}

#[test]
fn an_address_that_a_node_brings_along_is_taken_back_and_the_policy_gets_another_one() {
    let mut api = two_nodes("10.6.1.60-10.6.1.62");
    policies(&mut api, &["p1", "p2"]);
    state(&mut api, "p3", "10.6.1.62");
    api.settle();
    assert_eq!(
        given(&api, &["p1", "p2"]),
        addresses(&["10.6.1.60", "10.6.1.61"])
    );
    api.gateway("gw", &GATEWAY.replace("POOL", "10.6.1.60-10.6.1.63"));
    api.nodes.insert(
        "late".to_owned(),
        Node {
            addresses: vec!["10.6.1.60".parse().unwrap()],
            ..Node::default()
        },
    );
    api.settle();
    assert_eq!(
        given(&api, &["p1", "p2"]),
        addresses(&["10.6.1.61", "10.6.1.63"]),
        "who had it has another one, and nobody else's moves"
    );
    api.nodes.get_mut("late").unwrap().addresses = vec!["10.6.1.62".parse().unwrap()];
    api.settle();
    let refused = "False EgressIPInUse: spec.egressIP.ipv4: \"10.6.1.62\": must not be in use: Node late has it";
    assert_eq!(
        (api.egress_ip("p3"), accepted(&api, "p3").as_str()),
        (None, refused)
    );
    assert_eq!(
        given(&api, &["p1", "p2"]),
        addresses(&["10.6.1.61", "10.6.1.63"]),
        "what is free again tempts nobody away"
    );
    api.nodes.remove("late");
    api.settle();
    assert_eq!(
        (
            api.egress_ip("p3").unwrap().0,
            accepted(&api, "p3").as_str()
        ),
        ("10.6.1.62", "True Accepted: EgressGateway gw")
    );
}

#[test]
fn of_a_pool_in_a_network_of_the_cluster_nothing_is_given_and_the_gateway_says_so() {
    for (pool, whose) in [
        (
            "10.42.0.200-10.42.0.210",
            "the network of the pods of Node a: 10.42.0.0/24",
        ),
        (
            "172.31.0.1-172.31.0.9",
            "the network of the tunnel: 172.31.0.0/16",
        ),
        ("10.96.0.10", "a network of the cluster: 10.96.0.0/12"),
    ] {
        let mut api = two_nodes(pool);
        api.nodes
            .get_mut("a")
            .unwrap()
            .pod_networks
            .insert("10.42.0.0/24".parse().unwrap());
        api.settings.cluster_networks = vec!["10.96.0.0/12".parse().unwrap()];
        policies(&mut api, &["p1"]);
        state(&mut api, "p2", pool.split('-').next().unwrap());
        api.settle();
        let ready = told(&api.gateway_status("gw").conditions, "Ready");
        let rule = format!("must not overlap {whose}");
        assert_eq!(
            ready,
            format!("False PoolInClusterNetwork: spec.egressIPs.ipv4: \"{pool}\": {rule}")
        );
        assert_eq!(given(&api, &["p1", "p2"]), BTreeSet::new());
        assert!(
            accepted(&api, "p2").starts_with("False EgressIPOutsidePool: "),
            "{}",
            accepted(&api, "p2")
        );
    }
}

#[test]
fn an_address_goes_to_a_node_whose_network_holds_it_and_to_any_where_none_has_it() {
    let mut api = two_nodes("10.8.0.60-10.8.0.66");
    api.node("c", "{egress: 'true'}");
    api.interface("a", "10.6.0.1/24", "10.6.0.254");
    api.interface("b", "10.8.0.1/24", "10.8.0.254");
    api.interface("c", "10.8.0.2/24", "10.8.0.254");
    policies(&mut api, &["p1", "p2", "p3"]);
    api.settle();
    let nodes = |api: &Api| {
        ["p1", "p2", "p3"].map(|name| api.egress_ip(name).unwrap().1.unwrap().to_owned())
    };
    assert_eq!(nodes(&api), ["b", "c", "b"]);
    for node in ["b", "c"] {
        api.nodes.get_mut(node).unwrap().ready = false;
    }
    api.settle();
    assert_eq!(nodes(&api), ["a", "a", "a"], "nobody better is Ready");
    api.nodes.get_mut("c").unwrap().ready = true;
    api.settle();
    assert_eq!(nodes(&api), ["c", "c", "c"], "there nobody asks for it");
    api.nodes.get_mut("b").unwrap().ready = true;
    api.settle();
    assert_eq!(nodes(&api), ["c", "c", "c"], "as good a node moves nothing");
    let mut routed = two_nodes("192.0.2.1-192.0.2.9");
    routed.interface("a", "10.6.0.1/24", "10.6.0.254");
    routed.interface("b", "10.8.0.1/24", "10.8.0.254");
    policies(&mut routed, &["p1", "p2", "p3"]);
    routed.settle();
    assert_eq!(nodes(&routed), ["a", "b", "a"]);
}
