use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use k8s_openapi::api::core::v1 as core;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_yaml::Value;

use crate::{
    api,
    model::{GatewayName, NodeName, PodName, PolicyName},
    spec::Problem,
    world,
};

/// Group and version of the three custom resources.
const OURS: &str = "egressgateway.spidernet.io/v1";

/// Where an object was read from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    /// Name of the file, as the caller gave it.
    pub file: String,
    /// Number of the document in the file, from 1.
    pub document: usize,
    /// Kind and name, such as `EgressGateway egw`; empty where a document has neither.
    pub object: String,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: document {}", self.file, self.document)?;
        if self.object.is_empty() { Ok(()) } else { write!(f, ": {}", self.object) }
    }
}

/// Something about a manifest that its author should know.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// Where.
    pub origin: Origin,
    /// What.
    pub remark: Remark,
}

/// What was found in a manifest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Remark {
    /// A kind that says nothing about egress; it is left out.
    Ignored,
    /// Something that the API server or the webhook would refuse.
    Wrong(Problem),
}

impl Finding {
    /// Whether the cluster would refuse it.
    #[must_use]
    pub fn is_error(&self) -> bool {
        matches!(self.remark, Remark::Wrong(_))
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.remark {
            Remark::Ignored => write!(f, "{}: says nothing about egress and is left out", self.origin),
            Remark::Wrong(problem) => write!(f, "{}: {problem}", self.origin),
        }
    }
}

/// Objects read from YAML, and what was wrong with them.
#[derive(Clone, Debug, Default)]
pub struct Manifests {
    pub(super) nodes: BTreeMap<NodeName, core::Node>,
    pub(super) namespaces: BTreeMap<Arc<str>, world::Namespace>,
    pub(super) pods: BTreeMap<PodName, core::Pod>,
    pub(super) egress_nodes: BTreeMap<NodeName, api::EgressNode>,
    pub(super) gateways: BTreeMap<GatewayName, api::EgressGateway>,
    pub(super) policies: BTreeMap<PolicyName, api::EgressGatewayPolicy>,
    seen: BTreeSet<String>,
    findings: Vec<Finding>,
}

impl Manifests {
    /// Reads every document of a YAML text; `file` is what findings call it. What can't be read is left out and found.
    pub fn read(&mut self, file: &str, text: &str) {
        for (index, document) in serde_yaml::Deserializer::from_str(text).enumerate() {
            let origin = Origin { file: file.to_owned(), document: index + 1, object: String::new() };
            match Value::deserialize(document) {
                Ok(Value::Null) => {}
                Ok(value) => self.take(&origin, &value),
                // Nothing behind a syntax error can be trusted to be a document.
                Err(error) => return self.wrong(&origin, Problem::new("(document)", "", format!("must be YAML: {error}"))),
            }
        }
    }

    /// What was found so far, in the order of reading.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    fn wrong(&mut self, origin: &Origin, problem: Problem) {
        self.findings.push(Finding { origin: origin.clone(), remark: Remark::Wrong(problem) });
    }

    fn take(&mut self, origin: &Origin, value: &Value) {
        let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (version, kind) = (text(value, "apiVersion"), text(value, "kind"));
        if kind.is_empty() {
            return self.wrong(origin, Problem::new("kind", "", "must name the kind of the object"));
        }
        if let Some(items) = value.get("items").and_then(Value::as_sequence).filter(|_| kind.ends_with("List")) {
            for item in items {
                self.take(origin, item);
            }
            return;
        }
        let metadata = value.get("metadata").cloned().unwrap_or_default();
        let (namespace, name) = (text(&metadata, "namespace"), text(&metadata, "name"));
        let full = if namespace.is_empty() { name.clone() } else { format!("{namespace}/{name}") };
        let origin = Origin { object: format!("{kind} {full}").trim().to_owned(), ..origin.clone() };
        let known = match version.as_str() {
            OURS => matches!(kind.as_str(), "EgressGateway" | "EgressNode" | "EgressGatewayPolicy"),
            "v1" => matches!(kind.as_str(), "Node" | "Pod" | "Namespace"),
            _ => false,
        };
        if !known {
            return self.findings.push(Finding { origin, remark: Remark::Ignored });
        }
        if name.is_empty() {
            return self.wrong(&origin, Problem::new("metadata.name", "", "must be given"));
        }
        if !self.seen.insert(origin.object.clone()) {
            return self.wrong(&origin, Problem::new("metadata.name", full, "must be the only object of that kind and name"));
        }
        self.keep(&origin, &kind, value, &namespace, &name);
    }

    fn keep(&mut self, origin: &Origin, kind: &str, value: &Value, namespace: &str, name: &str) {
        match kind {
            "EgressGateway" => {
                if let Some(gateway) = self.strictly::<api::EgressGateway>(origin, value) {
                    self.refuse(origin, world::Gateway::from_api(&gateway, crate::model::MarkMask::default()).spec);
                    self.gateways.insert(name.into(), gateway);
                }
            }
            "EgressGatewayPolicy" => {
                if let Some(policy) = self.strictly::<api::EgressGatewayPolicy>(origin, value) {
                    self.refuse(origin, world::Policy::from_api(&policy).spec);
                    self.policies.insert(name.into(), policy);
                }
            }
            "EgressNode" => {
                // `spec:` without anything behind it is how people write that nothing is asked.
                let mut value = value.clone();
                if value.get("spec").is_none_or(Value::is_null) {
                    value["spec"] = Value::Mapping(serde_yaml::Mapping::new());
                }
                if let Some(node) = self.typed::<api::EgressNode>(origin, &value) {
                    self.egress_nodes.insert(name.into(), node);
                }
            }
            "Node" => {
                if let Some(node) = self.typed(origin, value) {
                    self.nodes.insert(name.into(), node);
                }
            }
            "Pod" => {
                if let Some(pod) = self.typed(origin, value) {
                    let namespace = if namespace.is_empty() { "default" } else { namespace };
                    self.pods.insert(PodName::new(namespace, name), pod);
                }
            }
            _ => {
                if let Some(namespace) = self.typed::<core::Namespace>(origin, value) {
                    self.namespaces.insert(name.into(), world::Namespace::from_api(&namespace));
                }
            }
        }
    }

    fn refuse<T>(&mut self, origin: &Origin, parsed: Result<T, Vec<Problem>>) {
        for problem in parsed.err().into_iter().flatten() {
            self.wrong(origin, problem);
        }
    }

    /// Parses, and finds the fields of `spec` that nobody knows: a misspelt one would be lost silently.
    fn strictly<T: DeserializeOwned + Serialize>(&mut self, origin: &Origin, value: &Value) -> Option<T> {
        let object: T = self.typed(origin, value)?;
        let understood = serde_yaml::to_value(&object).unwrap_or_default();
        let mut unknown = Vec::new();
        compare("spec", value.get("spec"), understood.get("spec"), &mut unknown);
        for field in unknown {
            self.wrong(origin, Problem::new(field, "", "must be a field that the kind has"));
        }
        Some(object)
    }

    fn typed<T: DeserializeOwned>(&mut self, origin: &Origin, value: &Value) -> Option<T> {
        // Through text, because errors then name the path of the field.
        let text = serde_yaml::to_string(value).unwrap_or_default();
        let error = match serde_yaml::from_str(&text) {
            Ok(object) => return Some(object),
            Err(error) => error.to_string(),
        };
        let error = error.rsplit_once(" at line ").map_or(error.as_str(), |(error, _)| error);
        let (field, rule) = error.split_once(": ").filter(|(field, _)| !field.contains(' ')).unwrap_or(("(object)", error));
        let at = field.split('.').try_fold(value, |value, key| lookup(value, key));
        let found = at.and_then(|value| serde_yaml::to_string(value).ok()).unwrap_or_default();
        self.wrong(origin, Problem::new(field, found.trim(), rule));
        None
    }
}

/// A step of a path such as `destCIDR[2]`.
fn lookup<'a>(value: &'a Value, step: &str) -> Option<&'a Value> {
    let (key, indices) = step.split_once('[').unwrap_or((step, ""));
    let indices = indices.trim_end_matches(']').split("][").filter_map(|index| index.parse::<usize>().ok());
    indices.fold(value.get(key), |value, index| value?.get(index))
}

/// Fields of `given` that `understood` has lost.
fn compare(path: &str, given: Option<&Value>, understood: Option<&Value>, unknown: &mut Vec<String>) {
    match (given, understood) {
        (Some(Value::Mapping(given)), Some(Value::Mapping(understood))) => {
            for (key, value) in given {
                let path = format!("{path}.{}", key.as_str().unwrap_or("?"));
                compare(&path, Some(value), understood.get(key), unknown);
            }
        }
        (Some(given), None) if !is_empty(given) => unknown.push(path.to_owned()),
        _ => {}
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Sequence(list) => list.is_empty(),
        Value::Mapping(map) => map.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<String> {
        let mut manifests = Manifests::default();
        manifests.read("a.yaml", text);
        manifests.findings().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_mistake_is_named_by_file_document_field_value_and_rule() {
        let text = "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n---\napiVersion: egressgateway.spidernet.io/v1\nkind: EgressGatewayPolicy\nmetadata: {name: p}\nspec: {appliedTo: {ipv4PodSubnet: 10.0.0.0/16}, destCIDR: [10.6.1.7/24], destCidr: [10.0.0.0/8]}\n";
        assert_eq!(
            found(text),
            [
                "a.yaml: document 1: Deployment d: says nothing about egress and is left out",
                "a.yaml: document 2: EgressGatewayPolicy p: spec.destCidr: \"\": must be a field that the kind has",
                "a.yaml: document 2: EgressGatewayPolicy p: spec.destCIDR[0]: \"10.6.1.7/24\": must have its host bits zero: 10.6.1.0/24",
            ]
        );
    }

    #[test]
    fn a_value_of_the_wrong_type_is_named_with_its_path() {
        let text = "apiVersion: egressgateway.spidernet.io/v1\nkind: EgressGatewayPolicy\nmetadata: {name: p}\nspec: {appliedTo: {}, priority: high}\n";
        let found = found(text);
        assert!(found[0].starts_with("a.yaml: document 1: EgressGatewayPolicy p: spec.priority: \"high\": invalid type"), "{found:?}");
    }

    #[test]
    fn lists_are_opened_twins_refused_and_broken_yaml_is_no_panic() {
        let list = "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Node, metadata: {name: n}}\n- {apiVersion: v1, kind: Node, metadata: {name: n}}\n";
        assert_eq!(found(list), ["a.yaml: document 1: Node n: metadata.name: \"n\": must be the only object of that kind and name"]);
        assert!(found("a: [")[0].starts_with("a.yaml: document 1: (document): \"\": must be YAML: "));
        assert_eq!(found("a: 1"), ["a.yaml: document 1: kind: \"\": must name the kind of the object"]);
        assert!(found("---\n---\n# nothing\n").is_empty());
    }
}
