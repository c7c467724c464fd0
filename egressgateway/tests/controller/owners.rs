//! Which node keeps an egress address, and which takes it over.

use egressgateway::controller::events;

use crate::api::{Api, mac_of, told};

const ADDRESS: &str = "10.6.1.60";
const STRANGER: &str = "02:00:00:00:00:99";

/// Two gateway nodes of which `a` has the address of the policy.
fn start(pool: &str) -> Api {
    let mut api = Api::default();
    for (name, address) in [("a", "10.6.0.1/16"), ("b", "10.6.0.2/16")] {
        api.node(name, "{egress: 'true'}");
        api.interface(name, address, "10.6.255.254");
    }
    let pool = format!("sourceNAT: EgressIP, egressIPs: {{ipv4: [{pool}]}}");
    api.gateway(
        "gw",
        &format!("{{nodeSelector: {{matchLabels: {{egress: 'true'}}}}, {pool}}}"),
    );
    api.policy(
        "p",
        1,
        "{appliedTo: {podSelector: {matchLabels: {app: shop}}}, destCIDR: [10.9.0.0/16]}",
    );
    api.settle();
    assert_eq!(api.egress_ip("p"), Some((ADDRESS, Some("a"))));
    api
}

fn node(api: &Api) -> (Option<&str>, Option<&str>) {
    let status = api.policy_status("p");
    (status.node.as_deref(), status.candidate.as_deref())
}

fn accepted(api: &Api) -> String {
    told(&api.policy_status("p").conditions, "Accepted")
}

#[test]
fn an_address_whose_agent_is_gone_stays_as_long_as_somebody_answers_for_it_and_moves_when_nobody_does()
 {
    let mut api = start("10.6.1.60-10.6.1.62");
    let before = api.policy_status("p").clone();
    api.fresh.remove("a");
    api.settle();
    assert_eq!(node(&api), (Some("a"), Some("b")));
    let gone =
        "True AgentGone: EgressGateway gw; the agent of node a, which has the addresses, is gone";
    assert_eq!(
        accepted(&api),
        format!("{gone}; b asks whether it still answers for them")
    );
    let news = events::of_policy(&before, api.policy_status("p"));
    assert!(
        news.iter()
            .any(|event| event.warning && event.reason == "AgentGone"),
        "{news:?}"
    );
    api.conflicts("b", &[(ADDRESS, &mac_of("a"))]);
    api.settle();
    assert_eq!(
        (node(&api), api.egress_ip("p").unwrap().0),
        ((Some("a"), Some("b")), ADDRESS)
    );
    assert_eq!(
        accepted(&api),
        format!("{gone}; b hears that it still answers for them")
    );
    api.nodes.get_mut("a").unwrap().ready = false;
    api.settle();
    assert_eq!(
        node(&api),
        (Some("a"), Some("b")),
        "whatever Kubernetes says of the node: its kernel answers"
    );
    api.conflicts("b", &[]);
    api.silent("b", &[ADDRESS]);
    api.settle();
    assert_eq!(
        (node(&api), accepted(&api).as_str()),
        ((Some("b"), None), "True Accepted: EgressGateway gw")
    );
}

#[test]
fn an_agent_that_comes_back_in_time_has_lost_nothing() {
    let mut api = start("10.6.1.60-10.6.1.62");
    api.fresh.remove("a");
    api.settle();
    api.fresh.insert("a".to_owned());
    api.silent("b", &[ADDRESS]);
    api.settle();
    assert_eq!(
        (node(&api), accepted(&api).as_str()),
        ((Some("a"), None), "True Accepted: EgressGateway gw")
    );
}

#[test]
fn a_lost_node_whose_agent_may_live_is_told_at_once_and_gets_the_address_back_if_its_kernel_answers_all_along()
 {
    let mut api = start("10.6.1.60-10.6.1.62");
    api.nodes.get_mut("a").unwrap().ready = false;
    api.settle();
    assert_eq!(node(&api), (Some("b"), None), "its Lease is fresh");
    api.conflicts("b", &[(ADDRESS, &mac_of("a"))]);
    api.settle();
    assert_eq!(
        (node(&api), api.egress_ip("p").unwrap().0),
        ((Some("a"), Some("b")), ADDRESS)
    );
    api.fresh.remove("a");
    api.settle();
    assert_eq!(
        node(&api),
        (Some("a"), Some("b")),
        "it does not go back and forth"
    );
    api.conflicts("b", &[]);
    api.silent("b", &[ADDRESS]);
    api.settle();
    assert_eq!(node(&api), (Some("b"), None));
}

#[test]
fn without_a_ready_node_an_address_stays_and_the_policy_says_that_the_agent_is_gone() {
    let mut api = start("10.6.1.60-10.6.1.62");
    api.fresh.clear();
    api.settle();
    assert_eq!(node(&api), (Some("a"), None));
    assert_eq!(
        accepted(&api),
        "True AgentGone: EgressGateway gw; the agent of node a, which has the addresses, is gone"
    );
}

#[test]
fn the_node_of_another_gateway_is_no_owner_whose_agent_could_be_gone() {
    let mut api = start("10.6.1.60-10.6.1.62");
    let policy = |gateway| {
        format!(
            "{{appliedTo: {{podSelector: {{matchLabels: {{app: shop}}}}}}, destCIDR: [10.9.0.0/16], egressGatewayName: {gateway}}}"
        )
    };
    api.policy("p", 1, &policy("gw"));
    let pool = "sourceNAT: EgressIP, egressIPs: {ipv4: [10.6.1.70]}";
    api.gateway(
        "other",
        &format!("{{nodeSelector: {{matchLabels: {{egress: 'true'}}}}, {pool}}}"),
    );
    api.fresh.clear();
    api.settle();
    assert_eq!(node(&api), (Some("a"), None));
    api.policy("p", 1, &policy("other"));
    // Planning again says the same.
    api.settle();
    assert_eq!(
        (node(&api), accepted(&api).as_str()),
        ((None, None), "True Accepted: EgressGateway other")
    );
}

#[test]
fn an_address_that_a_stranger_has_is_given_to_nobody_and_the_gateway_says_whose_it_is() {
    let mut api = start("10.6.1.60-10.6.1.61");
    let before = api.gateway_status("gw").clone();
    api.conflicts("a", &[(ADDRESS, STRANGER)]);
    api.settle();
    assert_eq!(
        api.egress_ip("p"),
        Some(("10.6.1.61", Some("a"))),
        "the next one"
    );
    let whose = format!("10.6.1.60: {STRANGER} answers for it, as Node a hears");
    assert_eq!(
        told(&api.gateway_status("gw").conditions, "AddressesFree"),
        format!("False AddressesInUse: {whose}")
    );
    let news = events::of_gateway(&before, api.gateway_status("gw"));
    assert!(
        news.iter()
            .any(|event| event.warning && event.reason == "AddressesInUse" && event.note == whose),
        "{news:?}"
    );
    api.policy(
        "q",
        2,
        "{appliedTo: {podSelector: {matchLabels: {app: other}}}, destCIDR: [10.9.0.0/16]}",
    );
    api.policy(
        "r",
        2,
        "{appliedTo: {podSelector: {matchLabels: {app: third}}}, egressIP: {ipv4: 10.6.1.60}}",
    );
    api.settle();
    assert_eq!((api.egress_ip("q"), api.egress_ip("r")), (None, None));
    let told_of = |api: &Api, name: &str| told(&api.policy_status(name).conditions, "Accepted");
    assert!(
        told_of(&api, "q").ends_with(&format!("is exhausted: 2 addresses are held; {whose}")),
        "{}",
        told_of(&api, "q")
    );
    let rule = format!("must not be in use: {STRANGER} answers for it, as Node a hears");
    assert_eq!(
        told_of(&api, "r"),
        format!("False EgressIPInUse: spec.egressIP.ipv4: \"10.6.1.60\": {rule}")
    );
    api.conflicts("a", &[]);
    api.settle();
    assert_eq!(
        api.egress_ip("r").unwrap().0,
        ADDRESS,
        "once the stranger is gone"
    );
    assert_eq!(
        api.egress_ip("p").unwrap().0,
        "10.6.1.61",
        "and nobody moves back"
    );
    assert_eq!(
        told(&api.gateway_status("gw").conditions, "AddressesFree"),
        "True Free: "
    );
}

#[test]
fn the_addresses_of_a_lost_node_are_spread_over_those_that_take_them_over() {
    let mut api = start("10.6.1.60-10.6.1.66");
    for name in ["c", "d"] {
        api.node(name, "{egress: 'true'}");
        api.interface(
            name,
            if name == "c" {
                "10.6.0.3/16"
            } else {
                "10.6.0.4/16"
            },
            "10.6.255.254",
        );
    }
    for name in ["q", "r"] {
        api.policy(name, 2, &format!("{{appliedTo: {{podSelector: {{matchLabels: {{app: {name}}}}}}}, destCIDR: [10.9.0.0/16]}}"));
        api.policies.get_mut(name).unwrap().metadata.annotations =
            Some([("egressgateway.spidernet.io/node".to_owned(), "a".to_owned())].into());
    }
    api.settle();
    for name in ["q", "r"] {
        api.policies.get_mut(name).unwrap().metadata.annotations = None;
    }
    api.fresh.remove("a");
    api.settle();
    let candidates = ["p", "q", "r"].map(|name| api.policy_status(name).candidate.clone().unwrap());
    assert_eq!(candidates, ["b", "c", "d"]);
}
