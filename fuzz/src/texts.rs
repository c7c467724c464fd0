//! Texts that people write, and a file that an agent keeps.

use std::net::IpAddr;

use egressgateway::{
    PersistedPolicy,
    admission::{self, Asked, Request},
    config::Config,
    controller::Cluster,
    model::{Family, Labels, MacAddress, NodeName},
    spec::{
        GatewaySpec, PolicySpec, Requirement, Selector, parse_address, parse_name, parse_network,
        parse_pool_entry,
    },
};
use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// A configuration file. Whatever is wrong names a rule. What is right, printed and read again, is
/// the same.
pub(crate) fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    match Config::parse(text) {
        Ok(config) => {
            let printed = serde_saphyr::to_string(&config).unwrap_or_default();
            assert_eq!(Config::parse(&printed).as_ref(), Ok(&config), "{printed}");
        }
        Err(problems) => {
            assert!(!problems.is_empty(), "refused for no reason");
            for problem in problems {
                assert!(
                    !problem.field.is_empty() && !problem.rule.is_empty(),
                    "{problem}"
                );
            }
        }
    }
}

/// A label selector in JSON. Its requirements, written as expressions and read again, are the same.
pub(crate) fn selector(bytes: &[u8]) {
    let Ok(selector) = serde_json::from_slice::<LabelSelector>(bytes) else {
        return;
    };
    match Selector::parse("spec.selector", &selector) {
        Ok(selector) => {
            let labels = Labels::from([("app".into(), "shopping".into())]);
            let matches = selector.matches(&labels);
            let written = LabelSelector {
                match_expressions: Some(selector.requirements().iter().map(expression).collect()),
                match_labels: None,
            };
            let again = Selector::parse("spec.selector", &written);
            assert_eq!(again.as_ref(), Ok(&selector));
            assert!(again.is_ok_and(|again| again.matches(&labels) == matches));
        }
        Err(problems) => assert!(!problems.is_empty(), "refused for no reason"),
    }
}

fn expression(requirement: &Requirement) -> LabelSelectorRequirement {
    let (key, operator, values) = match requirement {
        Requirement::In { key, values } => (key, "In", Some(values)),
        Requirement::NotIn { key, values } => (key, "NotIn", Some(values)),
        Requirement::Exists { key } => (key, "Exists", None),
        Requirement::DoesNotExist { key } => (key, "DoesNotExist", None),
    };
    LabelSelectorRequirement {
        key: key.clone(),
        operator: operator.to_owned(),
        values: values.map(|values| values.iter().cloned().collect()),
    }
}

/// The file that an agent keeps over a boot. What was read, written and read again is the same.
pub(crate) fn state_file(bytes: &[u8]) {
    let node = NodeName::from("node-1");
    if let Ok(state) = PersistedPolicy::parse(bytes, &node) {
        let _ = state.hold();
        let again = PersistedPolicy::parse(state.to_json(&node).as_bytes(), &node);
        assert_eq!(again.ok(), Some(state));
    }
}

/// Names, addresses, networks and pools' entries. What was read, printed and read again is the
/// same.
pub(crate) fn address(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let _ = parse_name("spec.name", text);
    if let Ok(mac) = text.parse::<MacAddress>() {
        assert_eq!(mac.to_string().parse(), Ok(mac));
    }
    if let Ok(address) = parse_address("spec.address", text, None) {
        let printed = address.to_string();
        assert_eq!(
            parse_address("", &printed, Some(Family::of(address))),
            Ok(address)
        );
    }
    if let Ok(network) = parse_network("spec.network", text, None) {
        let printed = network.to_string();
        assert_eq!(
            parse_network("", &printed, Some(Family::of(network.addr()))),
            Ok(network)
        );
    }
    for family in Family::ALL {
        let Ok(range) = parse_pool_entry("spec.pool", text, family) else {
            continue;
        };
        assert_eq!(parse_pool_entry("", &range.to_string(), family), Ok(range));
        let prefixes = range.prefixes();
        let ends = |net: Option<&IpNet>, end: fn(&IpNet) -> IpAddr| net.map(end);
        assert_eq!(ends(prefixes.first(), IpNet::network), Some(range.first()));
        assert_eq!(ends(prefixes.last(), IpNet::broadcast), Some(range.last()));
    }
}

/// What a webhook is asked, in JSON: a kind, and a spec that is to be so. The canonical form of a
/// spec is its own, and means what the spec means.
pub(crate) fn admission(bytes: &[u8]) {
    let Ok(asked) = serde_json::from_slice::<Value>(bytes) else {
        return;
    };
    let (kind, spec) = (asked["kind"].as_str().unwrap_or_default(), &asked["spec"]);
    let canonical = admission::canonical(kind, spec).spec;
    assert_eq!(admission::canonical(kind, &canonical).spec, canonical);
    let (before, after) = (spec, &canonical);
    let request = match kind {
        "EgressGateway" => {
            same_meaning(before, after, GatewaySpec::parse);
            typed(after).map(|new| Request::Gateway(asked_for(new)))
        }
        "EgressGatewayPolicy" => {
            same_meaning(before, after, PolicySpec::parse);
            typed(after).map(|new| Request::Policy(asked_for(new)))
        }
        _ => None,
    };
    if let Some(request) = request {
        let settings = Config::default().controller_settings();
        let _ = admission::review(&Cluster::default(), &settings, &request);
    }
}

fn asked_for<S>(new: S) -> Asked<S> {
    Asked {
        name: "a".to_owned(),
        old: None,
        new: Some(new),
    }
}

fn typed<S: DeserializeOwned>(spec: &Value) -> Option<S> {
    serde_json::from_value(spec.clone()).ok()
}

/// What is right before is the same after.
fn same_meaning<S: DeserializeOwned, T: PartialEq + std::fmt::Debug, E>(
    before: &Value,
    after: &Value,
    parse: impl Fn(&S) -> Result<T, E>,
) {
    let meaning = |spec| typed(spec).and_then(|spec| parse(&spec).ok());
    if let Some(meant) = meaning(before) {
        assert_eq!(meaning(after), Some(meant), "{before}");
    }
}
