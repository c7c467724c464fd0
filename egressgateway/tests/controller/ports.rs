//! Gateways whose pods' own nodes translate: ports, marks and drains.

use std::time::Duration;

use egressgateway::{
    api::{AddressPorts, PortsWanted},
    world::Labels,
};

use super::gateways::*;
use crate::api::{Api, told};

const POOL: &str = "sourceNAT: EgressIP, egressIPs: {ipv4: [10.6.1.60-10.6.1.61]}";

/// Three nodes, the gateway of all of them, and a policy with an address.
fn distributed() -> Api {
    let mut api = three();
    translate(&mut api, "nat: Distributed, portsPerNode: 16384");
    let spec = "{appliedTo: {podSelector: {matchLabels: {app: shop}}}}";
    api.policy("p", 0, spec);
    api.settle();
    api
}

fn translate(api: &mut Api, nat: &str) {
    api.gateway("gw", &format!("{{{SELECTS}, {POOL}, {nat}}}"));
}

fn ask(api: &mut Api, node: &str, wanted: &[(&str, u16)]) {
    let wanted = wanted.iter().map(|(address, units)| PortsWanted {
        address: (*address).to_owned(),
        units: *units,
    });
    let node = api.egress_nodes.get_mut(node).unwrap();
    node.status.get_or_insert_default().ports_wanted = wanted.collect();
}

fn blocks(api: &Api, node: &str) -> Vec<AddressPorts> {
    let status = api.egress_nodes[node].status.as_ref();
    status
        .map(|status| status.port_blocks.clone())
        .unwrap_or_default()
}

fn accepted(api: &Api) -> String {
    told(
        &api.policies["p"].status.as_ref().unwrap().conditions,
        "Accepted",
    )
}

#[test]
fn nodes_have_the_ports_that_they_ask_for_and_the_policy_says_who_waits() {
    let mut api = distributed();
    assert_eq!(blocks(&api, "b"), []);
    assert_eq!(accepted(&api), "True Accepted: EgressGateway gw");
    for name in ["a", "e"] {
        api.node(name, "{}");
    }
    for name in ["b", "c", "d"] {
        ask(&mut api, name, &[("10.6.1.60", 64), ("10.6.1.61", 64)]);
    }
    ask(&mut api, "e", &[("10.6.1.60", 64)]);
    api.settle();
    let of_b = blocks(&api, "b");
    assert_eq!(
        of_b.iter()
            .map(|ports| ports.address.as_str())
            .collect::<Vec<_>>(),
        ["10.6.1.60"],
        "nobody has the other address"
    );
    assert_eq!(of_b[0].last - of_b[0].first, 16383);
    assert_eq!(
        blocks(&api, "e")[0].last - blocks(&api, "e")[0].first,
        8191,
        "the largest that is left"
    );
    assert_eq!(accepted(&api), "True Accepted: EgressGateway gw");
    for name in ["a", "e"] {
        ask(&mut api, name, &[("10.6.1.60", 64)]);
    }
    let status = api
        .egress_nodes
        .get_mut("e")
        .unwrap()
        .status
        .as_mut()
        .unwrap();
    status.port_blocks[0] = AddressPorts {
        address: "10.6.1.60".to_owned(),
        first: 1024,
        last: 16383,
    };
    api.settle();
    assert_eq!(
        accepted(&api),
        "False PortsExhausted: no ports of 10.6.1.60 are left for a: what pods there send is held; divide the pods among more policies, or set a \
         smaller spec.portsPerNode, which counts for blocks that are given from then on"
    );
    assert_eq!(blocks(&api, "b"), of_b);
    api.nodes.remove("b");
    api.settle();
    assert_eq!(blocks(&api, "a"), of_b);
    assert_eq!(accepted(&api), "True Accepted: EgressGateway gw");
}

#[test]
fn what_the_controller_gives_leaves_alone_what_agents_say() {
    let mut api = distributed();
    ask(&mut api, "b", &[("10.6.1.60", 4)]);
    let plan = api.settle();
    assert!(
        plan.egress_nodes
            .values()
            .all(|status| status.ports_wanted.is_empty())
    );
    assert_eq!(blocks(&api, "b").len(), 1);
}

#[test]
fn nodes_of_a_gateway_have_marks_of_their_own_only_where_they_translate() {
    let mut api = distributed();
    let marks = |api: &Api| -> (Option<u32>, Vec<u32>) {
        let status = api.gateway_status("gw");
        let members = status.node_list.iter().filter_map(|node| node.mark);
        (status.mark, members.collect())
    };
    assert_eq!(marks(&api), (Some(0x1100_0000), vec![]));
    let status = api.gateway_status("gw");
    assert_eq!(
        status.node_list[0].egress_ips,
        ["10.6.1.60"],
        "it answers for it"
    );
    for _ in 0..2 {
        translate(&mut api, "nat: Centralized");
        api.settle();
        assert_eq!(marks(&api), (Some(0x1100_0000), vec![0x1300_0000]));
        translate(&mut api, "nat: Distributed");
        api.settle();
        assert_eq!(marks(&api), (Some(0x1100_0000), vec![]));
    }
}

#[test]
fn a_drain_takes_effect_at_once_where_gateways_have_no_connections() {
    let mut api = distributed();
    api.settings.drain_grace = Duration::from_secs(60);
    api.now = 1000;
    api.settle();
    let before = api.active("gw")[0].to_owned();
    drain(&mut api, &before);
    api.settle();
    let status = api.gateway_status("gw");
    assert_ne!(api.active("gw"), [before.as_str()]);
    assert_eq!(
        (status.mark, status.former_mark, status.draining.clone()),
        (Some(0x1100_0000), None, None)
    );
    // Where the grace time has begun already, it ends with the change.
    api.nodes.get_mut(&before).unwrap().annotations = Labels::default();
    translate(&mut api, "nat: Centralized");
    api.settle();
    let active = api.active("gw")[0].to_owned();
    drain(&mut api, &active);
    api.settle();
    assert!(api.gateway_status("gw").draining.is_some());
    translate(&mut api, "nat: Distributed");
    api.settle();
    let status = api.gateway_status("gw");
    assert_eq!((status.former_mark, status.draining.clone()), (None, None));
}
