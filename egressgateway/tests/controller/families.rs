//! Policies that can never work in one of their address families.

use egressgateway::{api::EgressGatewayPolicyStatus, controller::events};

use crate::api::{Api, told};

/// A gateway node of a cluster whose pods have both families.
fn dual(source_nat: &str) -> Api {
    let mut api = Api::default();
    api.node("a", "{egress: 'true'}");
    let node = api.nodes.get_mut("a").unwrap();
    node.pod_networks = [
        "10.42.0.0/24".parse().unwrap(),
        "fd42::/64".parse().unwrap(),
    ]
    .into();
    node.addresses.push("fd00:6::1".parse().unwrap());
    let status = api
        .egress_nodes
        .get_mut("a")
        .unwrap()
        .status
        .get_or_insert_default();
    status.physical_interface_ipv4 = Some("10.6.0.1".to_owned());
    status.physical_interface_ipv6 = Some("fd00:6::1".to_owned());
    api.gateway(
        "gw",
        &format!("{{nodeSelector: {{matchLabels: {{egress: 'true'}}}}, {source_nat}}}"),
    );
    api
}

const POOL_V4: &str = "sourceNAT: EgressIP, egressIPs: {ipv4: [10.6.1.60-10.6.1.63]}";
const EVERYTHING: &str = "appliedTo: {podSelector: {matchLabels: {app: shop}}}";

fn accepted(api: &mut Api, rest: &str) -> String {
    api.policy("p", 1, &format!("{{{rest}}}"));
    api.settle();
    told(&api.policy_status("p").conditions, "Accepted")
}

#[test]
fn a_pool_without_a_family_that_the_pods_have_is_told_by_the_policies_that_need_one() {
    let mut api = dual(POOL_V4);
    let held = "True FamilyUnsupported: EgressGateway gw; IPv6 is held for good: the pool of EgressGateway gw has no IPv6 addresses";
    assert_eq!(accepted(&mut api, EVERYTHING), held);
    let news = events::of_policy(
        &EgressGatewayPolicyStatus::default(),
        api.policy_status("p"),
    );
    assert!(
        news.iter()
            .any(|event| event.warning && event.reason == "FamilyUnsupported"),
        "{news:?}"
    );
    let both = format!("{EVERYTHING}, destCIDR: [10.9.0.0/16, 'fd09::/16']");
    assert_eq!(accepted(&mut api, &both), held);
    let fine = "True Accepted: EgressGateway gw";
    assert_eq!(
        accepted(&mut api, &format!("{EVERYTHING}, destCIDR: [10.9.0.0/16]")),
        fine,
        "it governs no IPv6"
    );
    assert_eq!(
        accepted(&mut api, "appliedTo: {ipv4PodSubnet: 10.42.0.0/16}"),
        fine,
        "nor does this one"
    );
    assert_eq!(
        accepted(&mut api, "appliedTo: {ipv6PodSubnet: 'fd42::/64'}"),
        held
    );
    api.nodes.get_mut("a").unwrap().pod_networks = ["10.42.0.0/24".parse().unwrap()].into();
    assert_eq!(accepted(&mut api, EVERYTHING), fine, "no pod has IPv6");
    let mut api = dual("sourceNAT: EgressIP, egressIPs: {ipv4: [10.6.1.60], ipv6: ['fd00:6::60']}");
    assert_eq!(accepted(&mut api, EVERYTHING), fine);
}

#[test]
fn a_tunnel_and_nodes_without_a_family_are_told_too() {
    let mut api = dual("sourceNAT: NodeAddress");
    assert_eq!(
        accepted(&mut api, EVERYTHING),
        "True Accepted: EgressGateway gw"
    );
    let status = api
        .egress_nodes
        .get_mut("a")
        .unwrap()
        .status
        .as_mut()
        .unwrap();
    let v4 = status.physical_interface_ipv4.take();
    status.physical_interface_ipv6 = None;
    assert_eq!(
        accepted(&mut api, EVERYTHING),
        "True Accepted: EgressGateway gw",
        "its agent has said nothing yet"
    );
    api.egress_nodes
        .get_mut("a")
        .unwrap()
        .status
        .as_mut()
        .unwrap()
        .physical_interface_ipv4 = v4;
    let held = "True FamilyUnsupported: EgressGateway gw; IPv6 is held for good: ";
    assert_eq!(
        accepted(&mut api, EVERYTHING),
        format!("{held}no node of EgressGateway gw has an IPv6 address")
    );
    api.settings.overlay.pop();
    assert_eq!(
        accepted(&mut api, EVERYTHING),
        format!("{held}the tunnel has no IPv6 network")
    );
}
