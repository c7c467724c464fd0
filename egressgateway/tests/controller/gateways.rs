use egressgateway::{
    api::{ForwardMethod, GatewayNodeStatus, Interface},
    world::Labels,
};

use crate::api::{Api, told};

pub(crate) const EGRESS: &str = "{egress: 'true'}";
pub(crate) const SELECTS: &str = "nodeSelector: {matchLabels: {egress: 'true'}}";

pub(crate) fn three() -> Api {
    let mut api = Api::default();
    for name in ["b", "c", "d"] {
        api.node(name, EGRESS);
    }
    api.gateway("gw", &format!("{{{SELECTS}}}"));
    api.settle();
    api
}

pub(crate) fn order(api: &Api) -> Vec<&str> {
    api.gateway_status("gw")
        .node_list
        .iter()
        .map(|node| node.name.as_str())
        .collect()
}

pub(crate) fn ready(api: &Api) -> String {
    told(&api.gateway_status("gw").conditions, "Ready")
}

#[test]
fn the_first_ready_node_is_elected_and_stays_elected() {
    let mut api = three();
    assert_eq!(
        (order(&api), api.active("gw")),
        (vec!["b", "c", "d"], vec!["b"])
    );
    api.nodes.get_mut("b").unwrap().ready = false;
    api.settle();
    assert_eq!(api.active("gw"), ["c"]);
    api.nodes.get_mut("b").unwrap().ready = true;
    api.settle();
    assert_eq!(
        (order(&api), api.active("gw")),
        (vec!["b", "c", "d"], vec!["c"]),
        "a returning node does not take over"
    );
}

#[test]
fn a_new_node_is_appended_whatever_its_name() {
    let mut api = three();
    api.node("a", EGRESS);
    api.settle();
    assert_eq!(
        (order(&api), api.active("gw")),
        (vec!["b", "c", "d", "a"], vec!["b"])
    );
    api.nodes.get_mut("c").unwrap().labels = Labels::default();
    api.settle();
    assert_eq!(order(&api), ["b", "d", "a"]);
}

#[test]
fn a_nodes_status_tells_why_it_is_not_elected() {
    let mut api = three();
    let status = |api: &mut Api| {
        api.settle();
        api.gateway_status("gw").node_list[0].status
    };
    assert_eq!(status(&mut api), GatewayNodeStatus::Ready);
    api.fresh.remove("b");
    assert_eq!(
        status(&mut api),
        GatewayNodeStatus::Unknown,
        "its agent is silent"
    );
    api.nodes.get_mut("b").unwrap().ready = false;
    assert_eq!(
        status(&mut api),
        GatewayNodeStatus::NotReady,
        "the Node says so itself"
    );
    api.nodes.get_mut("b").unwrap().ready = true;
    api.fresh.insert("b".to_owned());
    api.nodes.get_mut("b").unwrap().cordoned = true;
    assert_eq!(
        status(&mut api),
        GatewayNodeStatus::Ready,
        "cordoned, but healthy: it comes last now"
    );
    assert_eq!(order(&api), ["c", "d", "b"]);
    let mut api = three();
    api.nodes.get_mut("b").unwrap().cordoned = false;
    api.nodes.get_mut("b").unwrap().annotations = Labels::from([("drain".into(), "true".into())]);
    assert_eq!(status(&mut api), GatewayNodeStatus::NotReady, "drained");
    api.nodes.get_mut("b").unwrap().annotations = Labels::default();
    api.tunnel("b", false);
    assert_eq!(status(&mut api), GatewayNodeStatus::NotReady, "no tunnel");
    api.tunnel("b", true);
    assert_eq!(status(&mut api), GatewayNodeStatus::Ready);
}

#[test]
fn where_all_nodes_fall_silent_those_that_carried_the_traffic_last_stay() {
    for method in ["active-passive", "ecmp"] {
        let mut api = three();
        api.gateway("gw", &format!("{{{SELECTS}, forwardMethod: {method}}}"));
        api.settle();
        let last: Vec<String> = api.active("gw").into_iter().map(str::to_owned).collect();
        api.nodes.get_mut("b").unwrap().ready = false;
        api.nodes.get_mut("c").unwrap().ready = false;
        api.fresh.clear();
        api.settle();
        assert_eq!(api.active("gw"), last, "{method}");
        let statuses: Vec<_> = api
            .gateway_status("gw")
            .node_list
            .iter()
            .map(|node| node.status)
            .collect();
        let told = [
            GatewayNodeStatus::NotReady,
            GatewayNodeStatus::NotReady,
            GatewayNodeStatus::Unknown,
        ];
        assert_eq!(statuses, told, "each member's status says what is known");
        api.fresh.insert("c".to_owned());
        api.nodes.get_mut("c").unwrap().ready = true;
        api.settle();
        assert_eq!(
            api.active("gw"),
            ["c"],
            "{method}: one that lives takes over from those that nobody hears of"
        );
    }
}

#[test]
fn a_node_that_was_taken_out_does_not_stay_where_the_others_are_silent() {
    let silent = || {
        let mut api = three();
        api.fresh.clear();
        api.settle();
        assert_eq!(api.active("gw"), ["b"]);
        api
    };
    let mut api = silent();
    drain(&mut api, "b");
    api.settle();
    assert_eq!(api.active("gw"), [""; 0], "drained");
    let mut api = silent();
    api.tunnel("b", false);
    api.settle();
    assert_eq!(api.active("gw"), [""; 0], "without a tunnel");
    api.tunnel("b", true);
    api.settle();
    assert_eq!(api.active("gw"), [""; 0], "it was not in use any more");
    let mut api = silent();
    api.nodes.remove("b");
    api.settle();
    assert_eq!(api.active("gw"), [""; 0], "deleted");
}

#[test]
fn a_gateway_whose_nodes_fall_silent_one_after_the_other_stays_with_the_last() {
    let mut api = three();
    for (lost, active) in [("b", "c"), ("c", "d"), ("d", "d")] {
        api.fresh.remove(lost);
        api.settle();
        assert_eq!(api.active("gw"), [active], "without {lost}");
    }
}

pub(crate) fn cordon(api: &mut Api, node: &str, cordoned: bool) {
    api.nodes.get_mut(node).unwrap().cordoned = cordoned;
    api.settle();
}

pub(crate) fn drain(api: &mut Api, node: &str) {
    api.nodes.get_mut(node).unwrap().annotations = Labels::from([("drain".into(), "true".into())]);
}

#[test]
fn other_nodes_are_preferred_to_cordoned_ones_and_the_last_that_is_left_goes_on_whatever_is_cordoned()
 {
    let mut api = three();
    cordon(&mut api, "b", true);
    assert_eq!(
        (api.active("gw"), ready(&api)),
        (
            vec!["c"],
            "True Ready: 3 Ready, 0 NotReady, 0 Unknown".to_owned()
        )
    );
    cordon(&mut api, "c", true);
    assert_eq!(api.active("gw"), ["d"]);
    cordon(&mut api, "d", true);
    assert_eq!(api.active("gw"), ["d"], "nobody is better");
    let only = "True OnlyCordonedNodes: every node that can carry traffic is cordoned: 3 Ready, 0 NotReady, 0 Unknown";
    assert_eq!(ready(&api), only);
    api.fresh.remove("d");
    api.settle();
    assert_eq!(
        api.active("gw"),
        ["c"],
        "a cordoned node carries traffic where the last other one is lost"
    );
    cordon(&mut api, "b", false);
    assert_eq!(
        (api.active("gw"), ready(&api)),
        (
            vec!["b"],
            "True Ready: 2 Ready, 0 NotReady, 1 Unknown".to_owned()
        )
    );
    drain(&mut api, "c");
    drain(&mut api, "b");
    api.settle();
    assert_eq!(
        api.active("gw"),
        [""; 0],
        "the annotation takes the last one out as well"
    );
}

#[test]
fn egress_addresses_leave_cordoned_nodes_for_others_and_stay_where_all_are_cordoned() {
    let mut api = three();
    api.gateway(
        "gw",
        &format!("{{{SELECTS}, sourceNAT: EgressIP, egressIPs: {{ipv4: ['10.6.1.60']}}}}"),
    );
    api.policy(
        "p",
        1,
        "{appliedTo: {podSelector: {matchLabels: {app: a}}}, egressGatewayName: gw}",
    );
    api.settle();
    let owner = |api: &Api| api.egress_ip("p").unwrap().1.unwrap().to_owned();
    assert_eq!(owner(&api), "b");
    cordon(&mut api, "b", true);
    assert_eq!(owner(&api), "c");
    cordon(&mut api, "d", true);
    cordon(&mut api, "c", true);
    assert_eq!(owner(&api), "c", "nobody is better");
    cordon(&mut api, "d", false);
    assert_eq!(owner(&api), "d");
    let wish = std::collections::BTreeMap::from([(
        "egressgateway.spidernet.io/node".to_owned(),
        "b".to_owned(),
    )]);
    api.policies.get_mut("p").unwrap().metadata.annotations = Some(wish);
    api.settle();
    assert_eq!(owner(&api), "b", "who asks for a cordoned node gets it");
}

#[test]
fn of_nodes_that_share_connections_the_cordoned_have_none_unless_all_are() {
    let mut api = three();
    api.gateway("gw", &format!("{{{SELECTS}, forwardMethod: ecmp}}"));
    cordon(&mut api, "b", true);
    cordon(&mut api, "c", true);
    assert_eq!(api.active("gw"), ["d"]);
    cordon(&mut api, "d", true);
    assert_eq!(api.active("gw").len(), 3);
}

#[test]
fn with_ecmp_every_ready_node_is_active() {
    let mut api = three();
    api.gateway("gw", &format!("{{{SELECTS}, forwardMethod: ecmp}}"));
    api.fresh.remove("c");
    api.settle();
    assert_eq!(api.active("gw"), ["b", "d"]);
    assert_eq!(
        api.gateway_status("gw").forward_method,
        Some(ForwardMethod::Ecmp)
    );
}

#[test]
fn the_configured_method_is_in_force_where_the_gateway_says_none() {
    let mut api = three();
    api.settings.forward_method = ForwardMethod::Ecmp;
    api.settle();
    assert_eq!(
        (
            api.gateway_status("gw").forward_method,
            api.active("gw").len()
        ),
        (Some(ForwardMethod::Ecmp), 3)
    );
}

#[test]
fn interfaces_are_those_that_the_agent_told() {
    let mut api = three();
    let eth0 = Interface {
        name: "eth0".to_owned(),
        ipv4: vec!["10.6.0.10/16".to_owned()],
        ..Interface::default()
    };
    api.egress_nodes
        .get_mut("b")
        .unwrap()
        .status
        .as_mut()
        .unwrap()
        .interfaces = vec![eth0.clone()];
    api.settle();
    assert_eq!(api.gateway_status("gw").node_list[0].interfaces, [eth0]);
}

#[test]
fn the_condition_tells_what_a_gateway_lacks() {
    let mut api = three();
    assert_eq!(ready(&api), "True Ready: 3 Ready, 0 NotReady, 0 Unknown");
    api.fresh.clear();
    api.settle();
    let silent = "no node gives a sign of life, and those that carried its traffic last go on";
    assert_eq!(
        ready(&api),
        format!("False AllNodesSilent: {silent}: 0 Ready, 0 NotReady, 3 Unknown")
    );
    api.tunnel("b", false);
    api.settle();
    assert_eq!(
        ready(&api),
        "False NoReadyNode: no node can carry traffic: 0 Ready, 1 NotReady, 2 Unknown"
    );
    api.gateway("gw", "{nodeSelector: {matchLabels: {no: such}}}");
    api.settle();
    assert_eq!(
        ready(&api),
        "False NoNodes: spec.nodeSelector matches no node"
    );
    api.gateway("gw", "{nodeSelector: {}}");
    api.settle();
    assert_eq!(
        ready(&api),
        "False Invalid: spec.nodeSelector: \"{}\": must not be empty: name the nodes that may be gateways"
    );
    api.gateway("gw", &format!("{{{SELECTS}}}"));
    api.gateways
        .get_mut("gw")
        .unwrap()
        .metadata
        .deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
        k8s_openapi::jiff::Timestamp::UNIX_EPOCH,
    ));
    api.settle();
    assert_eq!(ready(&api), "False Deleting: deletion was asked for");
}

#[test]
fn a_gateway_that_becomes_invalid_keeps_what_existing_connections_need() {
    let mut api = three();
    let (mark, active) = (api.gateway_status("gw").mark, api.active("gw").len());
    api.gateway("gw", "{nodeSelector: {}}");
    api.settle();
    assert_eq!(
        (api.gateway_status("gw").mark, api.active("gw").len()),
        (mark, active)
    );
    assert_eq!(order(&api), ["b", "c", "d"]);
}
