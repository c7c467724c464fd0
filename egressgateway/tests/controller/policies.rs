use std::collections::BTreeSet;

use egressgateway::world::Labels;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use crate::api::{Api, told};

const SHOP: &str = "appliedTo: {podSelector: {matchLabels: {app: shop}}}";

fn pool(api: &mut Api, source_nat: &str, pool: &str) {
    api.gateway(
        "gw",
        &format!("{{nodeSelector: {{matchLabels: {{egress: 'true'}}}}, sourceNAT: {source_nat}, egressIPs: {{ipv4: ['{pool}']}}}}"),
    );
}

fn two_nodes() -> Api {
    let mut api = Api::default();
    api.node("a", "{egress: 'true'}");
    api.node("b", "{egress: 'true'}");
    pool(&mut api, "EgressIP", "10.6.1.60-10.6.1.63");
    api
}

fn accepted(api: &Api, name: &str) -> String {
    told(&api.policy_status(name).conditions, "Accepted")
}

fn overlapping(api: &Api, name: &str) -> String {
    told(&api.policy_status(name).conditions, "Overlapping")
}

#[test]
fn addresses_spread_over_the_ready_nodes_and_are_seen_in_the_gateway() {
    let mut api = two_nodes();
    for name in ["p1", "p2", "p3"] {
        api.policy(name, 1, &format!("{{{SHOP}, destCIDR: [10.9.0.0/16]}}"));
    }
    api.settle();
    assert_eq!(api.egress_ip("p1"), Some(("10.6.1.60", Some("a"))));
    assert_eq!(api.egress_ip("p2"), Some(("10.6.1.61", Some("b"))));
    assert_eq!(api.egress_ip("p3"), Some(("10.6.1.62", Some("a"))));
    let status = api.gateway_status("gw");
    assert_eq!(status.node_list[0].egress_ips, ["10.6.1.60", "10.6.1.62"]);
    assert_eq!(
        (
            status.mark,
            status.node_list[0].mark,
            status.node_list[1].mark
        ),
        (Some(0x1100_0000), Some(0x1300_0000), Some(0x1400_0000))
    );
    let usage = status.ip_usage.clone().unwrap().ipv4;
    assert_eq!((usage.total, usage.used), (4, 3));
    assert_eq!(accepted(&api, "p1"), "True Accepted: EgressGateway gw");
}

#[test]
fn an_address_moves_only_when_its_node_is_lost_and_does_not_come_back() {
    let mut api = two_nodes();
    api.policy("p1", 1, &format!("{{{SHOP}, destCIDR: [10.9.0.0/16]}}"));
    api.policy("p2", 2, &format!("{{{SHOP}, destCIDR: [10.8.0.0/16]}}"));
    api.settle();
    api.fresh.remove("a");
    api.silent("b", &["10.6.1.60"]);
    api.settle();
    assert_eq!(
        (api.egress_ip("p1"), api.egress_ip("p2")),
        (
            Some(("10.6.1.60", Some("b"))),
            Some(("10.6.1.61", Some("b")))
        )
    );
    let mark = api.gateway_status("gw").node_list[0].mark;
    assert!(mark.is_some(), "pinned connections keep their meaning");
    api.fresh.insert("a".to_owned());
    api.settle();
    assert_eq!(api.egress_ip("p1"), Some(("10.6.1.60", Some("b"))));
    api.fresh.clear();
    api.settle();
    assert_eq!(
        api.egress_ip("p1"),
        Some(("10.6.1.60", Some("b"))),
        "nobody else could have it"
    );
}

fn prefer(api: &mut Api, policy: &str, node: Option<&str>) {
    let annotations = api
        .policies
        .get_mut(policy)
        .unwrap()
        .metadata
        .annotations
        .get_or_insert_default();
    annotations.remove("egressgateway.spidernet.io/node");
    annotations.extend(node.map(|node| {
        (
            "egressgateway.spidernet.io/node".to_owned(),
            node.to_owned(),
        )
    }));
}

#[test]
fn an_address_goes_to_the_node_that_somebody_asked_for_and_the_others_stay() {
    let mut api = two_nodes();
    for name in ["p1", "p2"] {
        api.policy(name, 1, &format!("{{{SHOP}, destCIDR: [10.9.0.0/16]}}"));
    }
    api.settle();
    prefer(&mut api, "p1", Some("b"));
    api.settle();
    assert_eq!(
        (api.egress_ip("p1"), api.egress_ip("p2")),
        (
            Some(("10.6.1.60", Some("b"))),
            Some(("10.6.1.61", Some("b")))
        )
    );
    assert_eq!(
        api.gateway_status("gw").node_list[1].egress_ips,
        ["10.6.1.60", "10.6.1.61"]
    );
    prefer(&mut api, "p1", None);
    api.settle();
    assert_eq!(
        api.egress_ip("p1"),
        Some(("10.6.1.60", Some("b"))),
        "a wish that was fulfilled and taken back moves nothing"
    );
    api.policy("p3", 2, &format!("{{{SHOP}, destCIDR: [10.8.0.0/16]}}"));
    api.settle();
    assert_eq!(
        api.egress_ip("p3"),
        Some(("10.6.1.62", Some("a"))),
        "what was moved on purpose counts where it is"
    );
}

#[test]
fn a_wish_that_stands_holds_whenever_its_node_is_ready_and_one_that_was_taken_back_does_not() {
    let mut api = two_nodes();
    api.policy("p1", 1, &format!("{{{SHOP}, destCIDR: [10.9.0.0/16]}}"));
    prefer(&mut api, "p1", Some("b"));
    api.settle();
    assert_eq!(api.egress_ip("p1"), Some(("10.6.1.60", Some("b"))));
    api.fresh.remove("b");
    api.silent("a", &["10.6.1.60"]);
    api.settle();
    assert_eq!(
        api.egress_ip("p1"),
        Some(("10.6.1.60", Some("a"))),
        "its node is lost: as without the wish"
    );
    assert_eq!(
        accepted(&api, "p1"),
        "True Accepted: EgressGateway gw; metadata.annotations[egressgateway.spidernet.io/node]: \"b\": must be a Ready node of EgressGateway gw"
    );
    api.fresh.insert("b".to_owned());
    api.settle();
    assert_eq!(
        (
            api.egress_ip("p1").unwrap().1,
            accepted(&api, "p1").as_str()
        ),
        (Some("b"), "True Accepted: EgressGateway gw")
    );
    api.fresh.remove("b");
    prefer(&mut api, "p1", None);
    api.settle();
    api.fresh.insert("b".to_owned());
    api.settle();
    assert_eq!(api.egress_ip("p1").unwrap().1, Some("a"));
}

#[test]
fn a_wish_for_a_node_that_is_none_of_the_gateways_moves_nothing() {
    let mut api = two_nodes();
    api.node("c", "{}");
    api.policy("p1", 1, &format!("{{{SHOP}, destCIDR: [10.9.0.0/16]}}"));
    for node in ["c", "nowhere", ""] {
        prefer(&mut api, "p1", Some(node));
        api.settle();
        assert_eq!(api.egress_ip("p1"), Some(("10.6.1.60", Some("a"))));
        assert_eq!(
            accepted(&api, "p1").contains("must be a Ready node of EgressGateway gw"),
            !node.is_empty()
        );
    }
}

#[test]
fn a_drained_node_gives_its_addresses_away_and_does_not_get_them_back() {
    let mut api = two_nodes();
    api.policy("p1", 1, &format!("{{{SHOP}, destCIDR: [10.9.0.0/16]}}"));
    api.settle();
    api.nodes.get_mut("a").unwrap().annotations = Labels::from([("drain".into(), "true".into())]);
    api.settle();
    assert_eq!(
        (api.egress_ip("p1").unwrap().1, api.active("gw")),
        (Some("b"), vec!["b"])
    );
    assert_eq!(api.gateway_status("gw").node_list[0].egress_ips, [""; 0]);
    api.nodes.get_mut("a").unwrap().annotations = Labels::default();
    api.settle();
    assert_eq!(
        (api.egress_ip("p1").unwrap().1, api.active("gw")),
        (Some("b"), vec!["b"])
    );
}

#[test]
fn node_marks_exist_only_where_egress_addresses_are_used() {
    let mut api = two_nodes();
    pool(&mut api, "NodeAddress", "10.6.1.60-10.6.1.63");
    api.policy("p1", 1, &format!("{{{SHOP}}}"));
    api.settle();
    assert!(
        api.gateway_status("gw")
            .node_list
            .iter()
            .all(|node| node.mark.is_none())
    );
    assert_eq!(api.egress_ip("p1"), None);
    api.policy(
        "p2",
        2,
        "{appliedTo: {ipv4PodSubnet: 10.0.0.0/16}, egressIP: {ipv4: 10.6.1.61}}",
    );
    api.settle();
    assert_eq!(api.egress_ip("p2"), Some(("10.6.1.61", Some("a"))));
    assert_eq!(
        api.gateway_status("gw").node_list[0].mark,
        Some(0x1300_0000)
    );
}

#[test]
fn a_stated_address_must_be_in_the_pool_and_belongs_to_the_older_policy() {
    let mut api = two_nodes();
    api.policy(
        "young",
        9,
        &format!("{{{SHOP}, egressIP: {{ipv4: 10.6.1.61}}}}"),
    );
    api.policy(
        "old",
        1,
        &format!("{{{SHOP}, destCIDR: [10.9.0.0/16], egressIP: {{ipv4: 10.6.1.61}}}}"),
    );
    api.policy(
        "outside",
        1,
        &format!("{{{SHOP}, destCIDR: [10.8.0.0/16], egressIP: {{ipv4: 10.7.0.1}}}}"),
    );
    api.settle();
    assert_eq!(
        (api.egress_ip("old"), api.egress_ip("young")),
        (Some(("10.6.1.61", Some("a"))), None)
    );
    assert_eq!(
        accepted(&api, "young"),
        "False Conflict: spec.egressIP.ipv4: \"10.6.1.61\": must not be in use: EgressGatewayPolicy old has it"
    );
    assert_eq!(
        accepted(&api, "outside"),
        "False EgressIPOutsidePool: spec.egressIP.ipv4: \"10.7.0.1\": must be in the pool of EgressGateway gw: 10.6.1.60/30"
    );
    api.policies.remove("old");
    api.settle();
    assert_eq!(
        (
            api.egress_ip("young").unwrap().0,
            accepted(&api, "young").as_str()
        ),
        ("10.6.1.61", "True Accepted: EgressGateway gw")
    );
}

#[test]
fn an_exhausted_pool_is_told_by_the_policy_and_the_gateway_and_recovers() {
    let mut api = two_nodes();
    pool(&mut api, "EgressIP", "10.6.1.60");
    api.policy("p1", 1, &format!("{{{SHOP}, destCIDR: [10.9.0.0/16]}}"));
    api.policy("p2", 2, &format!("{{{SHOP}, destCIDR: [10.8.0.0/16]}}"));
    api.settle();
    assert_eq!(
        accepted(&api, "p2"),
        "False EgressIPExhausted: EgressGateway gw: pool 10.6.1.60 is exhausted: 1 addresses are held"
    );
    assert!(
        told(&api.gateway_status("gw").conditions, "Ready").starts_with("False PoolExhausted: ")
    );
    api.policies.remove("p1");
    api.settle();
    assert_eq!(
        (
            api.egress_ip("p2").unwrap().0,
            accepted(&api, "p2").as_str()
        ),
        ("10.6.1.60", "True Accepted: EgressGateway gw")
    );
}

#[test]
fn of_seventy_policies_fifty_have_their_own_address_and_as_many_of_the_rest_follow_as_are_deleted()
{
    let mut api = two_nodes();
    let pools = "{ipv4: ['10.6.1.1-10.6.1.50'], ipv6: ['fd00:6::1-fd00:6::32']}";
    api.gateway("gw", &format!("{{nodeSelector: {{matchLabels: {{egress: 'true'}}}}, sourceNAT: EgressIP, egressIPs: {pools}}}"));
    let name = |number: u32| format!("p{number:02}");
    for number in 0..70 {
        api.policy(
            &name(number),
            number,
            &format!("{{{SHOP}, destCIDR: [10.{number}.0.0/16, 'fd10:{number}::/32']}}"),
        );
    }
    api.settle();
    let given = |api: &Api, number| {
        let status = api.policy_status(&name(number));
        let addresses = status
            .egress_ip
            .as_ref()
            .and_then(|given| Some((given.ipv4.clone()?, given.ipv6.clone()?)))?;
        Some((addresses, status.node.clone()?))
    };
    let (v4, v6): (BTreeSet<_>, BTreeSet<_>) =
        (0..50).map(|number| given(&api, number).unwrap().0).unzip();
    assert_eq!((v4.len(), v6.len()), (50, 50), "one to one");
    let exhausted = "False EgressIPExhausted: EgressGateway gw: pool 10.6.1.1-10.6.1.50 is exhausted: 50 addresses are held";
    for number in 50..70 {
        assert_eq!(
            (given(&api, number), accepted(&api, &name(number)).as_str()),
            (None, exhausted)
        );
    }
    let usage = api.gateway_status("gw").ip_usage.clone().unwrap();
    assert_eq!(
        [usage.ipv4, usage.ipv6].map(|usage| (usage.total, usage.used)),
        [(50, 50); 2]
    );

    let before: Vec<_> = (0..50).map(|number| given(&api, number)).collect();
    let freed: BTreeSet<u32> = (0..50).step_by(8).collect();
    for number in &freed {
        api.policies.remove(&name(*number));
    }
    api.settle();
    for number in (0..50).filter(|number| !freed.contains(number)) {
        assert_eq!(
            given(&api, number),
            before[number as usize],
            "what others have does not move"
        );
    }
    let heirs: Vec<u32> = (50..70)
        .filter(|number| given(&api, *number).is_some())
        .collect();
    assert_eq!(
        heirs,
        (50..57).collect::<Vec<_>>(),
        "the oldest of those who wait, as many as are gone"
    );
    let left: BTreeSet<_> = freed
        .iter()
        .map(|number| before[*number as usize].clone().unwrap().0)
        .collect();
    assert_eq!(
        heirs
            .iter()
            .map(|number| given(&api, *number).unwrap().0)
            .collect::<BTreeSet<_>>(),
        left
    );
    assert!((57..70).all(|number| accepted(&api, &name(number)) == exhausted));
}

#[test]
fn addresses_do_not_drift_while_nodes_go_down_one_after_the_other_and_come_back() {
    let mut api = two_nodes();
    api.node("c", "{egress: 'true'}");
    for name in ["p1", "p2", "p3"] {
        api.policy(name, 1, &format!("{{{SHOP}, destCIDR: [10.9.0.0/16]}}"));
    }
    api.settle();
    let nodes = |api: &Api| {
        ["p1", "p2", "p3"].map(|name| api.egress_ip(name).unwrap().1.unwrap().to_owned())
    };
    let addresses =
        |api: &Api| ["p1", "p2", "p3"].map(|name| api.egress_ip(name).unwrap().0.to_owned());
    let (all, first) = (addresses(&api), nodes(&api));
    assert_eq!(first, ["a", "b", "c"]);
    let mut change = |node: &str, ready: bool| {
        api.nodes.get_mut(node).unwrap().ready = ready;
        api.settle();
        assert_eq!(
            addresses(&api),
            all,
            "a policy keeps its address whatever becomes of nodes"
        );
        nodes(&api)
    };
    let one_down = change("a", false);
    assert_eq!(
        one_down,
        ["b", "b", "c"],
        "what the lost node had, and nothing else"
    );
    assert_eq!(change("b", false), ["c", "c", "c"]);
    assert_eq!(
        change("c", false),
        ["c", "c", "c"],
        "all down: nobody else could have them"
    );
    assert_eq!(
        change("b", true),
        ["b", "b", "b"],
        "one up: it has everything"
    );
    assert_eq!(change("c", true), ["b", "b", "b"]);
    assert_eq!(change("a", true), ["b", "b", "b"], "others up: no drift");
}

#[test]
fn addresses_follow_the_selector_from_node_to_node() {
    let mut api = two_nodes();
    api.policy("p1", 1, &format!("{{{SHOP}, destCIDR: [10.9.0.0/16]}}"));
    for node in ["b", "a", "b"] {
        for (name, other) in &mut api.nodes {
            other.labels = if name == node {
                [("egress".to_owned(), "true".to_owned())].into()
            } else {
                Labels::default()
            };
        }
        api.settle();
        assert_eq!(api.egress_ip("p1"), Some(("10.6.1.60", Some(node))));
        assert_eq!(
            api.gateway_status("gw")
                .node_list
                .iter()
                .map(|node| node.name.as_str())
                .collect::<Vec<_>>(),
            [node]
        );
    }
}

#[test]
fn pools_of_two_gateways_that_overlap_never_give_one_address_twice() {
    let mut api = two_nodes();
    pool(&mut api, "EgressIP", "10.6.1.60");
    api.gateway("other", "{nodeSelector: {matchLabels: {egress: 'true'}}, sourceNAT: EgressIP, egressIPs: {ipv4: [10.6.1.60/31]}}");
    api.policy("p1", 1, &format!("{{{SHOP}, egressGatewayName: gw}}"));
    api.policy(
        "p2",
        2,
        &format!("{{{SHOP}, egressGatewayName: other, destCIDR: [10.8.0.0/16]}}"),
    );
    api.settle();
    assert_eq!(
        (
            api.egress_ip("p1").unwrap().0,
            api.egress_ip("p2").unwrap().0
        ),
        ("10.6.1.60", "10.6.1.61")
    );
}

#[test]
fn the_condition_tells_why_a_policy_has_no_gateway() {
    let mut api = two_nodes();
    api.policy("p", 1, &format!("{{{SHOP}, egressGatewayName: nowhere}}"));
    api.settle();
    let missing = "False GatewayNotFound: spec.egressGatewayName: \"nowhere\": must lead to one EgressGateway: EgressGateway nowhere does not exist";
    assert_eq!(accepted(&api, "p"), missing);
    api.policy("p", 1, &format!("{{{SHOP}}}"));
    api.settle();
    assert_eq!(
        api.policy_status("p").egress_gateway.as_deref(),
        Some("gw"),
        "the only one"
    );
    api.gateway("second", "{nodeSelector: {matchLabels: {egress: 'true'}}}");
    api.settle();
    assert!(accepted(&api, "p").starts_with(
        "False AmbiguousGateway: spec.egressGatewayName: \"\": must lead to one EgressGateway: "
    ));
    assert_eq!(
        (
            api.policy_status("p").egress_gateway.clone(),
            api.egress_ip("p")
        ),
        (None, None)
    );
    api.settings.default_gateway = Some("second".into());
    api.settle();
    assert_eq!(
        api.policy_status("p").egress_gateway.as_deref(),
        Some("second")
    );
}

#[test]
fn an_invalid_policy_says_field_value_and_rule() {
    let mut api = two_nodes();
    api.policy("p", 1, &format!("{{{SHOP}, destCIDR: [10.6.1.1/24]}}"));
    api.settle();
    assert_eq!(
        accepted(&api, "p"),
        "False Invalid: spec.destCIDR[0]: \"10.6.1.1/24\": must have its host bits zero: 10.6.1.0/24"
    );
}

#[test]
fn policies_that_contradict_each_other_both_say_so_and_name_the_winner() {
    let mut api = two_nodes();
    pool(&mut api, "NodeAddress", "10.6.1.60");
    api.policy(
        "a-young",
        9,
        &format!("{{{SHOP}, destCIDR: [10.9.0.0/16, 10.8.0.0/16]}}"),
    );
    api.policy("z-old", 1, &format!("{{{SHOP}, destCIDR: [10.9.0.0/16]}}"));
    api.policy(
        "first",
        9,
        &format!("{{{SHOP}, destCIDR: [10.9.0.0/16], priority: 1}}"),
    );
    api.policy("longer", 9, &format!("{{{SHOP}, destCIDR: [10.9.9.0/24]}}"));
    api.policy(
        "hole",
        9,
        &format!("{{{SHOP}, destCIDR: [10.9.0.0/16], exceptCIDR: [10.9.0.0/16]}}"),
    );
    api.policy(
        "others",
        9,
        "{appliedTo: {podSelector: {matchLabels: {app: other}}}, destCIDR: [10.9.0.0/16]}",
    );
    api.settle();
    let rule = "same subject, destination and priority: the older policy wins, then the name";
    assert_eq!(
        overlapping(&api, "z-old"),
        format!("True Wins: wins 10.9.0.0/16 before a-young; {rule}")
    );
    assert_eq!(
        overlapping(&api, "a-young"),
        format!("True Conflict: yields 10.9.0.0/16 to z-old; {rule}")
    );
    for name in ["first", "longer", "hole", "others"] {
        assert_eq!(overlapping(&api, name), "False NoOverlap: ");
    }
    assert_eq!(accepted(&api, "a-young"), "True Accepted: EgressGateway gw");
}

#[test]
fn ten_thousand_contradicting_policies_cost_no_square() {
    let mut api = two_nodes();
    for number in 0..10_000 {
        api.policy(
            &format!("p{number:05}"),
            1,
            &format!("{{{SHOP}, destCIDR: [10.9.0.0/16]}}"),
        );
    }
    pool(&mut api, "NodeAddress", "10.6.1.60");
    let plan = api.plan();
    let message = told(&plan.policies["p00000"].conditions, "Overlapping");
    assert!(
        message.contains("p00001, p00002, p00003, p00004, p00005 and 9994 more"),
        "{message}"
    );
}

#[test]
fn each_condition_that_kubectl_shows_in_a_column_is_written() {
    let mut api = Api::default();
    api.node("b", "{egress: 'true'}");
    api.gateway("gw", "{nodeSelector: {matchLabels: {egress: 'true'}}}");
    api.policy(
        "p",
        1,
        "{appliedTo: {podSelector: {matchLabels: {app: a}}}, egressGatewayName: gw}",
    );
    api.settle();
    let columns = |kind: &str| -> Vec<String> {
        let crd = egressgateway::api::crds()
            .into_iter()
            .find(|crd| crd.spec.names.kind == kind)
            .unwrap();
        let columns = crd.spec.versions[0]
            .additional_printer_columns
            .clone()
            .unwrap_or_default();
        let shown = columns
            .iter()
            .filter_map(|column| column.json_path.split_once("@.type==\"")?.1.split_once('"'));
        shown.map(|(condition, _)| condition.to_owned()).collect()
    };
    let written = |conditions: &[Condition]| {
        conditions
            .iter()
            .map(|condition| condition.type_.clone())
            .collect::<Vec<_>>()
    };
    let (policy, gateway) = (
        written(&api.policy_status("p").conditions),
        written(&api.gateway_status("gw").conditions),
    );
    assert_ne!(columns("EgressGatewayPolicy"), [""; 0]);
    assert!(
        columns("EgressGatewayPolicy")
            .iter()
            .all(|shown| policy.contains(shown)),
        "{policy:?}"
    );
    assert!(
        columns("EgressGateway")
            .iter()
            .all(|shown| gateway.contains(shown)),
        "{gateway:?}"
    );
}
