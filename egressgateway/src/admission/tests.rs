use super::*;
use crate::{
    api::{
        EgressGateway, EgressGatewayPolicy, EgressGatewayPolicySpec, EgressGatewaySpec, EgressNode,
    },
    controller::{Cluster, ControllerSettings},
    model::{GatewayName, MarkMask},
    spec::Problem,
    world::{self, Change},
};

fn read<T: serde::de::DeserializeOwned>(yaml: &str) -> T {
    serde_saphyr::from_str(yaml).unwrap()
}

/// Two gateways with pools, three policies of the first one, and a node.
fn cluster() -> Cluster {
    let mut cluster = Cluster::default();
    for (name, spec) in [
        (
            "a",
            "{nodeSelector: {matchLabels: {e: a}}, sourceNAT: EgressIP, egressIPs: {ipv4: [10.6.1.60-10.6.1.66], ipv6: ['fd00:6::60/124']}}",
        ),
        (
            "b",
            "{nodeSelector: {matchLabels: {e: b}}, egressIPs: {ipv4: [10.6.2.0/28]}}",
        ),
    ] {
        let gateway: EgressGateway = read(&format!("{{metadata: {{name: {name}}}, spec: {spec}}}"));
        cluster.apply(Change::Gateway(
            name.into(),
            Some(world::Gateway::from_api(&gateway, MarkMask::default())),
        ));
    }
    for (name, rest) in [
        (
            "states",
            "{egressGatewayName: a, appliedTo: {podSelector: {matchLabels: {x: s}}}, egressIP: {ipv4: 10.6.1.60}}",
        ),
        (
            "given",
            "{egressGatewayName: a, appliedTo: {podSelector: {matchLabels: {x: g}}}}",
        ),
        ("broken", "{egressGatewayName: a, appliedTo: {}}"),
    ] {
        let ips = if name == "given" {
            "{ipv4: 10.6.1.61, ipv6: 'fd00:6::61'}"
        } else {
            "{}"
        };
        let policy = format!(
            "{{metadata: {{name: {name}}}, spec: {rest}, status: {{egressGateway: a, egressIP: {ips}}}}}"
        );
        let policy: EgressGatewayPolicy = read(&policy);
        cluster.apply(Change::Policy(
            name.into(),
            Some(world::Policy::from_api(&policy)),
        ));
    }
    let node = world::Node {
        addresses: vec!["10.6.0.1".parse().unwrap()],
        ..world::Node::default()
    };
    cluster.apply(Change::Node("node-1".into(), Some(node)));
    let outer: EgressNode =
        read("{metadata: {name: node-1}, spec: {}, status: {physicalInterfaceIPv6: 'fd00:7::1'}}");
    cluster.apply(Change::EgressNode(
        "node-1".into(),
        Some(world::EgressNode::from_api(&outer)),
    ));
    cluster
}

fn gateway(pool: &str) -> EgressGatewaySpec {
    read(&format!(
        "{{nodeSelector: {{matchLabels: {{e: c}}}}, egressIPs: {{{pool}}}}}"
    ))
}

fn policy(rest: &str) -> EgressGatewayPolicySpec {
    read(&format!(
        "{{appliedTo: {{podSelector: {{matchLabels: {{x: n}}}}}}, {rest}}}"
    ))
}

fn said(request: &Request) -> Vec<String> {
    review(&cluster(), &ControllerSettings::default(), request)
        .problems
        .iter()
        .map(ToString::to_string)
        .collect()
}

fn create_gateway(pool: &str) -> Vec<String> {
    said(&Request::Gateway(Asked {
        name: "c".to_owned(),
        old: None,
        new: Some(gateway(pool)),
    }))
}

fn update_gateway(name: &str, old: &str, new: &str) -> Vec<String> {
    said(&Request::Gateway(Asked {
        name: name.to_owned(),
        old: Some(gateway(old)),
        new: Some(gateway(new)),
    }))
}

fn create_policy(name: &str, rest: &str) -> Vec<String> {
    said(&Request::Policy(Asked {
        name: name.to_owned(),
        old: None,
        new: Some(policy(rest)),
    }))
}

/// What is said of a deletion, which is never refused.
fn delete_gateway(cluster: &Cluster, settings: &ControllerSettings, name: &str) -> Vec<String> {
    let request = Request::Gateway(Asked {
        name: name.to_owned(),
        old: Some(gateway("")),
        new: None,
    });
    let Decision { problems, warnings } = review(cluster, settings, &request);
    assert_eq!(problems, []);
    warnings.iter().map(ToString::to_string).collect()
}

#[test]
fn every_refusal_names_field_value_and_rule() {
    let a = "ipv4: [10.6.1.60-10.6.1.66], ipv6: ['fd00:6::60/124']";
    let of_other = "must not overlap the pool of EgressGateway a: 10.6.1.60-10.6.1.66";
    let table = [
        (create_gateway("ipv4: [10.7.0.1, 10.6.1.66/31]"), format!("spec.egressIPs.ipv4[1]: \"10.6.1.66/31\": {of_other}")),
        (
            create_gateway("ipv4: [10.6.0.0/24]"),
            "spec.egressIPs.ipv4[0]: \"10.6.0.0/24\": must not contain the address of Node node-1: 10.6.0.1".to_owned(),
        ),
        (
            create_gateway("ipv6: ['fd00:7::/64']"),
            "spec.egressIPs.ipv6[0]: \"fd00:7::/64\": must not contain the address of Node node-1: fd00:7::1".to_owned(),
        ),
        (
            create_gateway("ipv4: [10.6.9.9-10.6.9.1]"),
            "spec.egressIPs.ipv4[0]: \"10.6.9.9-10.6.9.1\": must be a range of one family whose first address is not behind its last"
                .to_owned(),
        ),
        (
            update_gateway("a", a, "ipv4: [10.6.1.61-10.6.1.66], ipv6: ['fd00:6::60/124']"),
            "spec.egressIPs.ipv4: \"10.6.1.60\": must stay in the pool: EgressGatewayPolicy states uses it".to_owned(),
        ),
        (
            update_gateway("a", a, "ipv4: [10.6.1.60-10.6.1.66]"),
            "spec.egressIPs.ipv6: \"fd00:6::61\": must stay in the pool: EgressGatewayPolicy given uses it".to_owned(),
        ),
        (
            create_policy("n", "egressGatewayName: a, egressIP: {ipv4: 10.6.1.67}"),
            "spec.egressIP.ipv4: \"10.6.1.67\": must be in the pool of EgressGateway a: 10.6.1.60-10.6.1.66; fd00:6::60/124".to_owned(),
        ),
        (
            create_policy("n", "egressGatewayName: a, egressIP: {ipv4: 10.6.1.60}"),
            "spec.egressIP.ipv4: \"10.6.1.60\": must not be in use: EgressGatewayPolicy states has it".to_owned(),
        ),
        (
            create_policy("n", "egressGatewayName: a, egressIP: {ipv6: 'fd00:6::61'}"),
            "spec.egressIP.ipv6: \"fd00:6::61\": must not be in use: EgressGatewayPolicy given has it".to_owned(),
        ),
        (
            create_policy("n", "destCIDR: [10.0.0.1/8]"),
            "spec.destCIDR[0]: \"10.0.0.1/8\": must have its host bits zero: 10.0.0.0/8".to_owned(),
        ),
    ];
    for (said, expected) in table {
        assert_eq!(said, [expected]);
    }
}

#[test]
fn what_is_right_is_admitted() {
    assert_eq!(
        create_gateway("ipv4: [10.6.3.0/24], ipv6: ['fd00:8::/64']"),
        [] as [String; 0]
    );
    assert_eq!(
        create_policy("n", "egressGatewayName: a, egressIP: {ipv4: 10.6.1.66}"),
        [] as [String; 0]
    );
    assert_eq!(
        create_policy(
            "states",
            "egressGatewayName: a, egressIP: {ipv4: 10.6.1.60}"
        ),
        [] as [String; 0],
        "its own address"
    );
    let grown = update_gateway(
        "a",
        "ipv4: [10.6.1.60-10.6.1.66]",
        "ipv4: [10.6.1.60-10.6.1.70]",
    );
    assert_eq!(grown, [] as [String; 0], "its own pool");
    assert_eq!(
        delete_gateway(&cluster(), &ControllerSettings::default(), "b"),
        [] as [String; 0],
        "nobody uses it"
    );
}

#[test]
fn a_policy_may_come_before_its_gateway_and_is_told_that_it_waits() {
    let request = Request::Policy(Asked {
        name: "n".to_owned(),
        old: None,
        new: Some(policy(
            "egressGatewayName: later, egressIP: {ipv4: 10.9.9.9}",
        )),
    });
    let Decision { problems, warnings } =
        review(&cluster(), &ControllerSettings::default(), &request);
    assert_eq!(problems, []);
    let waits = "EgressGateway later does not exist: traffic that the policy governs is held until one is found";
    assert_eq!(
        warnings,
        [Problem::new("spec.egressGatewayName", "later", waits)]
    );
}

#[test]
fn a_gateway_may_go_before_its_policies_and_is_told_which_of_them_wait() {
    let held = "EgressGatewayPolicies use it, and traffic that they govern is held from now on: broken, given, states";
    assert_eq!(
        delete_gateway(&cluster(), &ControllerSettings::default(), "a"),
        [format!("metadata.name: \"a\": {held}")]
    );
}

#[test]
fn a_policy_that_names_no_gateway_uses_the_default_or_the_only_one() {
    let mut cluster = cluster();
    cluster.policies.clear();
    let unnamed = EgressGatewayPolicy {
        spec: policy(""),
        ..EgressGatewayPolicy::default()
    };
    cluster.apply(Change::Policy(
        "unnamed".into(),
        Some(world::Policy::from_api(&unnamed)),
    ));
    let none = ControllerSettings::default();
    assert_eq!(
        delete_gateway(&cluster, &none, "b").len(),
        0,
        "of several it uses none"
    );
    let default = ControllerSettings {
        default_gateway: Some(GatewayName::from("b")),
        ..none.clone()
    };
    assert!(delete_gateway(&cluster, &default, "b")[0].ends_with("from now on: unnamed"));
    cluster.gateways.remove(&GatewayName::from("a"));
    assert!(delete_gateway(&cluster, &none, "b")[0].ends_with("from now on: unnamed"));
}

#[test]
fn an_update_is_held_to_what_it_changes() {
    let wrong = "ipv4: [10.6.0.1]";
    assert_eq!(
        update_gateway("c", wrong, "ipv4: [10.7.0.1, 10.6.0.1]"),
        [] as [String; 0],
        "it was there before"
    );
    assert_eq!(
        update_gateway("c", wrong, "ipv4: [10.6.0.1, 10.6.2.1]").len(),
        1,
        "the second mistake is new"
    );
}

#[test]
fn a_pool_in_a_network_of_the_cluster_is_refused_by_whose_it_is() {
    let mut cluster = cluster();
    let node = world::Node {
        pod_networks: ["10.42.0.0/24".parse().unwrap()].into(),
        ..world::Node::default()
    };
    cluster.apply(Change::Node("node-2".into(), Some(node)));
    cluster.apply(Change::ClusterNetworks(vec![
        "10.96.0.0/12".parse().unwrap(),
    ]));
    let settings = ControllerSettings {
        overlay: vec!["172.31.0.0/16".parse().unwrap()],
        ..ControllerSettings::default()
    };
    let said = |settings: &ControllerSettings, pool: &str| {
        let request = Request::Gateway(Asked {
            name: "c".to_owned(),
            old: None,
            new: Some(gateway(&format!("ipv4: [{pool}]"))),
        });
        review(&cluster, settings, &request)
            .problems
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    for (pool, whose) in [
        (
            "10.42.0.0-10.42.0.9",
            "the network of the pods of Node node-2: 10.42.0.0/24",
        ),
        ("172.31.255.1", "the network of the tunnel: 172.31.0.0/16"),
        (
            "10.0.0.0/8",
            "the network of the pods of Node node-2: 10.42.0.0/24",
        ),
        ("10.96.0.10", "a network of the cluster: 10.96.0.0/12"),
    ] {
        let refused = format!("spec.egressIPs.ipv4[0]: \"{pool}\": must not overlap {whose}");
        assert!(
            said(&settings, pool).contains(&refused),
            "{:?}",
            said(&settings, pool)
        );
    }
    let strange = ControllerSettings {
        auto_cluster_networks: false,
        ..settings
    };
    assert_eq!(
        said(&strange, "10.42.0.0-10.42.0.9"),
        [""; 0],
        "what Nodes say of pods is not to be believed"
    );
}
