//! Whatever users write: it is accepted, or refused with the field, the value and the rule; it
//! never stops a daemon.

#![allow(clippy::unwrap_used)]

use egressgateway::{
    api::{self, crds},
    model::MarkMask,
    spec::{GatewaySpec, PolicySpec, Problem},
    world,
};
use k8s_openapi::api::core::v1 as core;
use kube::core::cel::Validator;
use proptest::prelude::*;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Case {
    name: String,
    kind: String,
    spec: Value,
    field: String,
    value: String,
    rule: String,
    cel: Option<String>,
}

fn cases() -> Vec<Case> {
    serde_saphyr::from_str(include_str!("fixtures/manifests/bad.yaml")).unwrap()
}

fn problems(kind: &str, spec: &Value) -> Vec<Problem> {
    match kind {
        "EgressGateway" => GatewaySpec::parse(&serde_json::from_value(spec.clone()).unwrap()).err(),
        "EgressGatewayPolicy" => {
            PolicySpec::parse(&serde_json::from_value(spec.clone()).unwrap()).err()
        }
        _ => None,
    }
    .unwrap_or_default()
}

/// What the rules of the CRD say about an object.
fn rules(object: &Value) -> Vec<String> {
    let crd = crds()
        .into_iter()
        .find(|crd| crd.spec.names.kind == object["kind"].as_str().unwrap())
        .unwrap();
    let schema = serde_json::to_value(&crd.spec.versions[0].schema).unwrap();
    let errors = Validator::new()
        .validate(&schema["openAPIV3Schema"], object, None)
        .err();
    errors
        .into_iter()
        .flatten()
        .map(|error| error.to_string())
        .collect()
}

fn object(kind: &str, name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "egressgateway.spidernet.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec})
}

#[test]
fn every_bad_manifest_is_refused_with_field_value_and_rule() {
    assert!(cases().len() >= 20);
    for case in cases() {
        let problems = problems(&case.kind, &case.spec);
        let problem = problems
            .iter()
            .find(|problem| problem.field == case.field && problem.value == case.value);
        let problem = problem.unwrap_or_else(|| panic!("{}: {problems:?}", case.name));
        assert!(
            problem.rule.contains(&case.rule),
            "{}: {problem}",
            case.name
        );
        assert_eq!(
            problems.len(),
            1,
            "{}: one mistake, one problem: {problems:?}",
            case.name
        );
    }
}

#[test]
fn the_rules_of_the_crds_refuse_them_too_where_they_can() {
    for case in cases() {
        let said = rules(&object(&case.kind, "x", &case.spec));
        match case.cel {
            Some(expected) => assert!(
                said.iter().any(|message| message.contains(&expected)),
                "{}: {said:?}",
                case.name
            ),
            None => assert!(said.is_empty(), "{}: {said:?}", case.name),
        }
    }
}

#[test]
fn a_name_that_is_too_long_is_refused_by_rule() {
    let spec = json!({"nodeSelector": {"matchLabels": {"a": "b"}}});
    assert!(rules(&object("EgressGateway", &"x".repeat(63), &spec)).is_empty());
    assert!(
        rules(&object("EgressGateway", &"x".repeat(64), &spec))[0]
            .contains("must have at most 63 characters")
    );
}

#[test]
fn the_proposals_objects_and_every_addition_are_accepted() {
    let objects: Vec<Value> =
        serde_saphyr::from_multiple(include_str!("fixtures/manifests/good.yaml")).unwrap();
    for mut object in objects {
        if object["spec"].is_null() {
            // As an API server does with a default.
            object["spec"] = json!({});
        }
        assert_eq!(rules(&object), Vec::<String>::new(), "{object}");
        assert_eq!(
            problems(object["kind"].as_str().unwrap(), &object["spec"]),
            [],
            "{object}"
        );
    }
}

/// Any JSON, with the names of fields among its keys and the texts of fields among its strings.
fn anything() -> impl Strategy<Value = Value> {
    let text = prop_oneof![
        "\\PC{0,12}",
        proptest::sample::select(vec![
            "10.0.0.0/8",
            "10.0.0.1/8",
            "fd00::/64",
            "10.0.0.9-10.0.0.1",
            "-",
            "/",
            "::",
            "True",
            "Ready",
            "In",
            "EgressIP",
            "ecmp"
        ])
        .prop_map(str::to_owned),
    ];
    let key = proptest::sample::select(vec![
        "metadata",
        "name",
        "uid",
        "labels",
        "annotations",
        "generation",
        "spec",
        "status",
        "nodeSelector",
        "matchLabels",
        "matchExpressions",
        "key",
        "operator",
        "values",
        "egressIPs",
        "ipv4",
        "ipv6",
        "appliedTo",
        "podSelector",
        "ipv4PodSubnet",
        "destCIDR",
        "exceptCIDR",
        "egressIP",
        "priority",
        "nodeList",
        "mark",
        "conditions",
        "type",
        "podIPs",
        "podIP",
        "ip",
        "addresses",
        "address",
        "podCIDRs",
        "phase",
        "vxlanIPv4IP",
        "tunnelMac",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        text.prop_map(Value::from)
    ];
    leaf.prop_recursive(6, 64, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(key.clone().prop_map(str::to_owned), inner, 0..6)
                .prop_map(|map| json!(map)),
        ]
    })
}

fn read<T: DeserializeOwned, R>(value: &Value, from_api: impl Fn(&T) -> R) {
    let mut object = value.clone();
    if let Some(map) = object.as_object_mut() {
        map.entry("metadata").or_insert_with(|| json!({}));
    }
    if let Ok(object) = serde_json::from_value::<T>(object) {
        from_api(&object);
    }
}

proptest! {
    #[test]
    fn no_object_stops_a_daemon(value in anything(), spec in anything(), status in anything()) {
        for value in [value, json!({"metadata": {"name": "x"}, "spec": spec, "status": status}), json!({"spec": {}, "status": status})] {
            read(&value, core_node);
            read(&value, world::Pod::from_api);
            read(&value, world::Namespace::from_api);
            read(&value, world::EgressNode::from_api);
            read(&value, world::Policy::from_api);
            read(&value, |gateway: &api::EgressGateway| world::Gateway::from_api(gateway, MarkMask::default()));
        }
    }

    #[test]
    fn no_text_stops_a_daemon(texts in proptest::collection::vec("[-0-9a-f.:/ ]{0,20}|\\PC{0,20}", 6), number in any::<u32>()) {
        let [a, b, c, d, e, f] = <[String; 6]>::try_from(texts).unwrap();
        let selector = json!({"matchLabels": {&a: &b}, "matchExpressions": [{"key": &c, "operator": &d, "values": [&e]}]});
        let policy = json!({"metadata": {}, "spec": {"appliedTo": {"podSelector": selector, "ipv4PodSubnet": &a}, "destCIDR": [&b, &c], "priority": number,
            "egressIP": {"ipv4": &d, "ipv6": &e}, "egressGatewayName": &f}, "status": {"egressIP": {"ipv4": &a}, "node": &b}});
        let _ = world::Policy::from_api(&serde_json::from_value(policy).unwrap());
        let gateway = json!({"metadata": {}, "spec": {"nodeSelector": selector, "egressIPs": {"ipv4": [&a, &b], "ipv6": [&c, &d]}},
            "status": {"mark": number, "nodeList": [{"name": &e, "status": "Ready", "egressIPs": [&f]}]}});
        let _ = world::Gateway::from_api(&serde_json::from_value(gateway).unwrap(), MarkMask::default());
        let node = json!({"metadata": {}, "spec": {}, "status": {"vxlanIPv4IP": &a, "vxlanIPv6IP": &b, "tunnelMac": &c, "physicalInterfaceIPv4": &d}});
        let _ = world::EgressNode::from_api(&serde_json::from_value(node).unwrap());
    }
}

fn core_node(node: &core::Node) -> world::Node {
    world::Node::from_api(node)
}

#[test]
fn a_huge_object_is_read_in_full() {
    let networks: Vec<String> = (0..60_000_u32)
        .map(|number| format!("10.{}.{}.0/24", (number >> 8) & 0xff, number & 0xff))
        .collect();
    let spec = json!({"appliedTo": {"ipv4PodSubnet": "10.0.0.0/8"}, "destCIDR": networks});
    let problems = problems("EgressGatewayPolicy", &spec);
    assert_eq!(problems.len(), 0, "{:?}", problems.first());
}
