//! What the derived schemas can't say: bounds, CEL rules, merge keys and printer columns.
//!
//! Every text, list and map under a rule has an upper bound, for an API server refuses rules whose
//! cost it can't estimate.
//! <https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#validation-rules>

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::{Value, json};

use super::{EgressGateway, EgressGatewayPolicy, EgressNode};
use crate::spec::{ALL_PODS, PODS_OF_NAMESPACES};

/// Longest name of a gateway or a policy; it fits a label value.
const MAX_NAME: usize = 63;
/// Most entries of a pool, for each family.
const MAX_POOL_ENTRIES: usize = 128;
/// Most destinations, and most exceptions, of one policy.
const MAX_DESTINATIONS: usize = 1000;
/// Most labels and expressions of a selector, and most values of an expression.
const MAX_REQUIREMENTS: usize = 32;
/// Longest CIDR: IPv6 in full with its prefix length.
const MAX_CIDR: usize = 43;
/// Longest pool entry: two IPv6 addresses in full, or with spaces around the dash.
const MAX_POOL_ENTRY: usize = 81;

const SCHEMA: &str = "/spec/versions/0/schema/openAPIV3Schema";

/// The three CustomResourceDefinitions, as the chart installs them.
///
/// # Panics
/// Never for the types of this crate: a test generates all of them.
#[must_use]
pub fn crds() -> Vec<CustomResourceDefinition> {
    let mut crds = [
        EgressGateway::crd(),
        EgressNode::crd(),
        EgressGatewayPolicy::crd(),
    ]
    .map(|crd| json!(crd));
    for crd in &mut crds {
        integers(crd);
    }
    let [gateway, node, policy] = &mut crds;
    gateway_rules(gateway);
    node_rules(node);
    policy_rules(policy);
    crds.into_iter()
        .map(|crd| {
            serde_json::from_value(crd)
                .expect("a changed schema is still a CustomResourceDefinition")
        })
        .collect()
}

fn gateway_rules(crd: &mut Value) {
    rule(crd, "", &name_rule("EgressGateway"));
    let spec = "/properties/spec";
    rule(
        crd,
        spec,
        &json!({"rule": "!has(self.sourceNAT) || self.sourceNAT != 'EgressIP' || has(self.egressIPs)", "fieldPath": ".egressIPs",
            "message": "must give a pool where sourceNAT is EgressIP", "reason": "FieldValueRequired"}),
    );
    rule(
        crd,
        spec,
        &json!({"rule": "!has(self.nat) || self.nat != 'Distributed' || (has(self.sourceNAT) && self.sourceNAT == 'EgressIP')", "fieldPath": ".nat",
            "message": "Distributed needs egress addresses: sourceNAT must be EgressIP"}),
    );
    let ports = "/properties/spec/properties/portsPerNode";
    rule(
        crd,
        ports,
        &json!({"rule": "self in [256, 512, 1024, 2048, 4096, 8192, 16384]", "message": "must be a power of two from 256 to 16384"}),
    );
    selector(crd, "/properties/spec/properties/nodeSelector");
    not_empty(
        crd,
        "/properties/spec/properties/nodeSelector",
        "must not be empty: name the nodes that may be gateways",
    );
    for (name, family) in [("ipv4", 4), ("ipv6", 6)] {
        let list = format!("/properties/spec/properties/egressIPs/properties/{name}");
        set(crd, &list, "maxItems", json!(MAX_POOL_ENTRIES));
        let items = format!("{list}/items");
        set(crd, &items, "maxLength", json!(MAX_POOL_ENTRY));
        let entry = format!(
            "self.contains('/') ? isCIDR(self) && cidr(self) == cidr(self).masked() && cidr(self).ip().family() == {family} \
             : self.split('-').size() <= 2 && self.split('-').all(part, isIP(part.trim()) && ip(part.trim()).family() == {family})"
        );
        rule(
            crd,
            &items,
            &json!({"rule": entry, "message": format!("must be an IPv{family} address, a CIDR with its host bits zero, or a range first-last")}),
        );
    }
    for (name, family) in [("ipv4", 4), ("ipv6", 6)] {
        let router =
            format!("/properties/spec/properties/egressIPs/properties/router/properties/{name}");
        set(crd, &router, "maxLength", json!(MAX_CIDR));
        let text = format!("isIP(self) && ip(self).family() == {family}");
        rule(
            crd,
            &router,
            &json!({"rule": text, "message": format!("must be an IPv{family} address")}),
        );
    }
    merge_by(crd, "/properties/status/properties/conditions", "type");
    merge_by(crd, "/properties/status/properties/nodeList", "name");
    columns(
        crd,
        &[
            ("Method", "string", ".status.forwardMethod"),
            (
                "Active",
                "string",
                ".status.nodeList[?(@.active==true)].name",
            ),
            (
                "Ready",
                "string",
                ".status.conditions[?(@.type==\"Ready\")].status",
            ),
            (
                "Reason",
                "string",
                ".status.conditions[?(@.type==\"Ready\")].reason",
            ),
        ],
    );
}

fn node_rules(crd: &mut Value) {
    // `spec:` without a value, as people write it, becomes an empty object.
    set(crd, "/properties/spec", "default", json!({}));
    if let Some(schema) = crd.pointer_mut(SCHEMA).and_then(Value::as_object_mut) {
        schema.remove("required");
    }
    merge_by(crd, "/properties/status/properties/conditions", "type");
    columns(
        crd,
        &[
            ("Phase", "string", ".status.phase"),
            ("TunnelIPv4", "string", ".status.vxlanIPv4IP"),
            ("TunnelIPv6", "string", ".status.vxlanIPv6IP"),
            ("MAC", "string", ".status.tunnelMac"),
            ("Interface", "string", ".status.physicalInterface"),
        ],
    );
}

fn policy_rules(crd: &mut Value) {
    rule(crd, "", &name_rule("EgressGatewayPolicy"));
    let spec = "/properties/spec/properties";
    let gateway = format!("{spec}/egressGatewayName");
    set(crd, &gateway, "minLength", json!(1));
    set(crd, &gateway, "maxLength", json!(MAX_NAME));
    set(
        crd,
        &format!("{spec}/priority"),
        "maximum",
        json!(crate::spec::MAX_PRIORITY),
    );
    for name in ["destCIDR", "exceptCIDR"] {
        set(
            crd,
            &format!("{spec}/{name}"),
            "maxItems",
            json!(MAX_DESTINATIONS),
        );
        cidr(crd, &format!("{spec}/{name}/items"), None);
    }
    for (name, family) in [("ipv4", 4), ("ipv6", 6)] {
        let address = format!("{spec}/egressIP/properties/{name}");
        set(crd, &address, "maxLength", json!(MAX_CIDR));
        let text = format!("isIP(self) && ip(self).family() == {family}");
        rule(
            crd,
            &address,
            &json!({"rule": text, "message": format!("must be an IPv{family} address")}),
        );
        cidr(
            crd,
            &format!("{spec}/appliedTo/properties/{name}PodSubnet"),
            Some(family),
        );
    }
    subject_rules(crd, &format!("{spec}/appliedTo"));
    merge_by(crd, "/properties/status/properties/conditions", "type");
    columns(
        crd,
        &[
            ("Gateway", "string", ".status.egressGateway"),
            ("IPv4", "string", ".status.egressIP.ipv4"),
            ("IPv6", "string", ".status.egressIP.ipv6"),
            ("Node", "string", ".status.node"),
            (
                "Accepted",
                "string",
                ".status.conditions[?(@.type==\"Accepted\")].status",
            ),
        ],
    );
}

fn subject_rules(crd: &mut Value, applied_to: &str) {
    let subnets = "has(self.ipv4PodSubnet) || has(self.ipv6PodSubnet)";
    rule(
        crd,
        applied_to,
        &json!({"rule": format!("!(has(self.podSelector) && ({subnets}))"), "message": "must have either podSelector or pod subnets, not both"}),
    );
    rule(
        crd,
        applied_to,
        &json!({"rule": format!("has(self.podSelector) || has(self.namespaceSelector) || {subnets}"),
            "message": "must have podSelector, ipv4PodSubnet or ipv6PodSubnet"}),
    );
    rule(
        crd,
        applied_to,
        &json!({"rule": format!("!has(self.namespaceSelector) || has(self.podSelector) || {subnets}"), "fieldPath": ".podSelector",
            "message": PODS_OF_NAMESPACES, "reason": "FieldValueRequired"}),
    );
    rule(
        crd,
        applied_to,
        &json!({"rule": format!("!has(self.namespaceSelector) || !({subnets})"), "fieldPath": ".namespaceSelector",
            "message": "must be absent where pods are chosen by subnet", "reason": "FieldValueForbidden"}),
    );
    let pods = format!("{applied_to}/properties/podSelector");
    selector(crd, &pods);
    let filled = filled("self.podSelector");
    rule(
        crd,
        applied_to,
        &json!({"rule": format!("!has(self.podSelector) || has(self.namespaceSelector) || {subnets} || {filled}"), "fieldPath": ".podSelector",
            "message": ALL_PODS}),
    );
    selector(crd, &format!("{applied_to}/properties/namespaceSelector"));
}

/// A canonical CIDR, of one family where one is given.
fn cidr(crd: &mut Value, path: &str, family: Option<u8>) {
    set(crd, path, "maxLength", json!(MAX_CIDR));
    rule(
        crd,
        path,
        &json!({"rule": "isCIDR(self)", "message": "must be a CIDR, such as 10.6.1.0/24 or fd00:6::/64"}),
    );
    let canonical = "!isCIDR(self) || cidr(self) == cidr(self).masked()";
    rule(
        crd,
        path,
        &json!({"rule": canonical, "message": "must have its host bits zero"}),
    );
    if let Some(family) = family {
        let text = format!("!isCIDR(self) || cidr(self).ip().family() == {family}");
        rule(
            crd,
            path,
            &json!({"rule": text, "message": format!("must be IPv{family}")}),
        );
    }
}

/// Bounds of a label selector, and which operator wants values.
fn selector(crd: &mut Value, path: &str) {
    let labels = format!("{path}/properties/matchLabels");
    set(crd, &labels, "maxProperties", json!(MAX_REQUIREMENTS));
    set(
        crd,
        &format!("{labels}/additionalProperties"),
        "maxLength",
        json!(63),
    );
    let expressions = format!("{path}/properties/matchExpressions");
    set(crd, &expressions, "maxItems", json!(MAX_REQUIREMENTS));
    let expression = format!("{expressions}/items");
    set(
        crd,
        &format!("{expression}/properties/key"),
        "maxLength",
        json!(317),
    );
    set(
        crd,
        &format!("{expression}/properties/operator"),
        "enum",
        json!(["In", "NotIn", "Exists", "DoesNotExist"]),
    );
    set(
        crd,
        &format!("{expression}/properties/values"),
        "maxItems",
        json!(MAX_REQUIREMENTS),
    );
    set(
        crd,
        &format!("{expression}/properties/values/items"),
        "maxLength",
        json!(63),
    );
    let values = "self.operator in ['In', 'NotIn'] ? has(self.values) && size(self.values) > 0 : !has(self.values) || size(self.values) == 0";
    let message =
        "values must not be empty for In and NotIn, and must be empty for Exists and DoesNotExist";
    rule(
        crd,
        &expression,
        &json!({"rule": values, "fieldPath": ".values", "message": message}),
    );
}

fn not_empty(crd: &mut Value, path: &str, message: &str) {
    rule(
        crd,
        path,
        &json!({"rule": filled("self"), "message": message}),
    );
}

/// CEL: a selector names a label.
fn filled(selector: &str) -> String {
    format!(
        "(has({selector}.matchLabels) && size({selector}.matchLabels) > 0) \
         || (has({selector}.matchExpressions) && size({selector}.matchExpressions) > 0)"
    )
}

fn name_rule(kind: &str) -> Value {
    json!({"rule": format!("size(self.metadata.name) <= {MAX_NAME}"), "message": format!("the name of an {kind} must have at most {MAX_NAME} characters")})
}

/// Numbers without a sign in Rust are `int32` or `int64` here: API servers know no other formats, and
/// OpenAPI no smaller one that holds a mark.
fn integers(value: &mut Value) {
    match value {
        Value::Object(map) => {
            let format = map.get("format").and_then(Value::as_str);
            let known = match format.filter(|_| map.get("type") == Some(&json!("integer"))) {
                Some("uint16") => Some(("int32", u32::from(u16::MAX))),
                Some("uint32") => Some(("int64", u32::MAX)),
                _ => None,
            };
            if let Some((format, maximum)) = known {
                map.insert("format".to_owned(), json!(format));
                map.insert("minimum".to_owned(), json!(0));
                map.insert("maximum".to_owned(), json!(maximum));
            }
            map.values_mut().for_each(integers);
        }
        Value::Array(items) => items.iter_mut().for_each(integers),
        _ => {}
    }
}

/// Writers of single entries don't overwrite each other's.
fn merge_by(crd: &mut Value, path: &str, key: &str) {
    set(crd, path, "x-kubernetes-list-type", json!("map"));
    set(crd, path, "x-kubernetes-list-map-keys", json!([key]));
}

fn columns(crd: &mut Value, columns: &[(&str, &str, &str)]) {
    let column = |(name, kind, path): &(&str, &str, &str)| json!({"name": name, "type": kind, "jsonPath": path});
    let mut all: Vec<Value> = columns.iter().map(column).collect();
    all.push(column(&("Age", "date", ".metadata.creationTimestamp")));
    if let Some(version) = crd.pointer_mut("/spec/versions/0") {
        version["additionalPrinterColumns"] = json!(all);
    }
}

fn rule(crd: &mut Value, path: &str, rule: &Value) {
    let schema = at(crd, path);
    match schema
        .get_mut("x-kubernetes-validations")
        .and_then(Value::as_array_mut)
    {
        Some(rules) => rules.push(rule.clone()),
        None => schema["x-kubernetes-validations"] = json!([rule]),
    }
}

fn set(crd: &mut Value, path: &str, key: &str, value: Value) {
    at(crd, path)[key] = value;
}

fn at<'a>(crd: &'a mut Value, path: &str) -> &'a mut Value {
    crd.pointer_mut(&format!("{SCHEMA}{path}"))
        .expect("the path of a field of the derived schema")
}
