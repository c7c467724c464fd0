use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use k8s_openapi::api::core::v1 as core;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::structure;
use crate::{
    api,
    model::{GatewayName, NodeName, PodName, PolicyName},
    spec::Problem,
    world, yaml,
};

/// Group of the three custom resources.
const GROUP: &str = "egressgateway.spidernet.io";
/// Their version.
const VERSION: &str = "v1";
/// Their kinds.
const KINDS: [&str; 3] = ["EgressGateway", "EgressGatewayPolicy", "EgressNode"];

/// Where an object was read from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
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
        if self.object.is_empty() {
            Ok(())
        } else {
            write!(f, ": {}", self.object)
        }
    }
}

/// Something about a manifest that its author should know.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct Finding {
    /// Where.
    pub origin: Origin,
    /// What.
    pub remark: ManifestWarning,
}

/// What was found in a manifest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum ManifestWarning {
    /// A kind that says nothing about egress; it is left out.
    Ignored,
    /// Something that the API server or the webhook would refuse.
    Wrong(Problem),
}

impl Finding {
    /// Whether the cluster would refuse it.
    #[must_use]
    pub fn is_error(&self) -> bool {
        matches!(self.remark, ManifestWarning::Wrong(_))
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.remark {
            ManifestWarning::Ignored => write!(
                f,
                "{}: says nothing about egress and is left out",
                self.origin
            ),
            ManifestWarning::Wrong(problem) => write!(f, "{}: {problem}", self.origin),
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
    /// Reads every document of a YAML text; `file` is what findings call it. What can't be read is
    /// left out and found.
    pub fn read(&mut self, file: &str, text: &str) {
        yaml::read_documents(text, |number, document| {
            let origin = Origin {
                file: file.to_owned(),
                document: number,
                object: String::new(),
            };
            match document {
                Ok(value) => self.take(&origin, &value),
                Err(error) => self.wrong(
                    &origin,
                    Problem::new("(document)", "", format!("must be YAML: {error}")),
                ),
            }
        });
    }

    /// What was found so far, in the order of reading.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    fn wrong(&mut self, origin: &Origin, problem: Problem) {
        self.findings.push(Finding {
            origin: origin.clone(),
            remark: ManifestWarning::Wrong(problem),
        });
    }

    fn take(&mut self, origin: &Origin, value: &Value) {
        let text = |value: &Value, key: &str| {
            value
                .get(key)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let (version, kind) = (text(value, "apiVersion"), text(value, "kind"));
        if kind.is_empty() {
            return self.wrong(
                origin,
                Problem::new("kind", "", "must name the kind of the object"),
            );
        }
        if let Some(items) = value
            .get("items")
            .and_then(Value::as_array)
            .filter(|_| kind.ends_with("List"))
        {
            for item in items {
                self.take(origin, item);
            }
            return;
        }
        let metadata = value.get("metadata").cloned().unwrap_or_default();
        let (namespace, name) = (text(&metadata, "namespace"), text(&metadata, "name"));
        let full = if namespace.is_empty() {
            name.clone()
        } else {
            format!("{namespace}/{name}")
        };
        let origin = Origin {
            object: format!("{kind} {full}").trim().to_owned(),
            ..origin.clone()
        };
        let known = match version.split_once('/') {
            Some((GROUP, VERSION)) if KINDS.contains(&kind.as_str()) => true,
            Some((GROUP, VERSION)) => {
                return self.wrong(
                    &origin,
                    Problem::new(
                        "kind",
                        kind,
                        format!("must be {} in {GROUP}/{VERSION}", KINDS.join(", ")),
                    ),
                );
            }
            Some((GROUP, _)) => {
                let rule = format!(
                    "must be {GROUP}/{VERSION}, the only version that is understood: {}",
                    KINDS.join(", ")
                );
                return self.wrong(&origin, Problem::new("apiVersion", version, rule));
            }
            None => version == "v1" && matches!(kind.as_str(), "Node" | "Pod" | "Namespace"),
            Some(_) => false,
        };
        if !known {
            return self.findings.push(Finding {
                origin,
                remark: ManifestWarning::Ignored,
            });
        }
        if name.is_empty() {
            return self.wrong(&origin, Problem::new("metadata.name", "", "must be given"));
        }
        if !self.seen.insert(origin.object.clone()) {
            return self.wrong(
                &origin,
                Problem::new(
                    "metadata.name",
                    full,
                    "must be the only object of that kind and name",
                ),
            );
        }
        let form = [
            structure::of_metadata(&kind, value),
            structure::of_custom_resource(&kind, value),
        ]
        .concat();
        for problem in &form {
            self.wrong(&origin, problem.clone());
        }
        self.keep(&origin, &kind, value, &namespace, &name, &form);
    }

    fn keep(
        &mut self,
        origin: &Origin,
        kind: &str,
        value: &Value,
        namespace: &str,
        name: &str,
        form: &[Problem],
    ) {
        match kind {
            "EgressGateway" => {
                if let Some(gateway) = self.typed::<api::EgressGateway>(origin, value, form) {
                    self.refuse(
                        origin,
                        world::Gateway::from_api(&gateway, crate::model::MarkMask::default()).spec,
                        form,
                    );
                    self.gateways.insert(name.into(), gateway);
                }
            }
            "EgressGatewayPolicy" => {
                if let Some(policy) = self.typed::<api::EgressGatewayPolicy>(origin, value, form) {
                    self.refuse(origin, world::Policy::from_api(&policy).spec, form);
                    self.policies.insert(name.into(), policy);
                }
            }
            "EgressNode" => {
                // `spec:` without anything behind it is how people write that nothing is asked.
                let mut value = value.clone();
                if value.get("spec").is_none_or(Value::is_null) {
                    value["spec"] = Value::Object(serde_json::Map::new());
                }
                if let Some(node) = self.typed::<api::EgressNode>(origin, &value, form) {
                    self.egress_nodes.insert(name.into(), node);
                }
            }
            "Node" => {
                if let Some(node) = self.typed(origin, value, form) {
                    self.nodes.insert(name.into(), node);
                }
            }
            "Pod" => {
                if let Some(pod) = self.typed(origin, value, form) {
                    let namespace = if namespace.is_empty() {
                        "default"
                    } else {
                        namespace
                    };
                    self.pods.insert(PodName::new(namespace, name), pod);
                }
            }
            _ => {
                if let Some(namespace) = self.typed::<core::Namespace>(origin, value, form) {
                    self.namespaces
                        .insert(name.into(), world::Namespace::from_api(&namespace));
                }
            }
        }
    }

    /// What the words of a spec say against it; what its form says is said once.
    fn refuse<T>(&mut self, origin: &Origin, parsed: Result<T, Vec<Problem>>, form: &[Problem]) {
        for problem in parsed
            .err()
            .into_iter()
            .flatten()
            .filter(|problem| form.iter().all(|known| known.field != problem.field))
        {
            self.wrong(origin, problem);
        }
    }

    fn typed<T: DeserializeOwned>(
        &mut self,
        origin: &Origin,
        value: &Value,
        form: &[Problem],
    ) -> Option<T> {
        let error = match serde_path_to_error::deserialize(value) {
            Ok(object) => return Some(object),
            // What is wrong with its form says so already.
            Err(_) if !form.is_empty() => return None,
            Err(error) => error,
        };
        let path = error.path().to_string();
        let steps: Vec<String> = error
            .path()
            .iter()
            .map(|step| format!("/{}", step.to_string().trim_matches(['[', ']'])))
            .collect();
        let pointer = steps.concat();
        let found = value.pointer(&pointer).map(|found| {
            found
                .as_str()
                .map_or_else(|| found.to_string(), str::to_owned)
        });
        let field = if path == "." { "(object)" } else { &path };
        self.wrong(
            origin,
            Problem::new(field, found.unwrap_or_default(), error.inner().to_string()),
        );
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<String> {
        let mut manifests = Manifests::default();
        manifests.read("a.yaml", text);
        manifests
            .findings()
            .iter()
            .map(ToString::to_string)
            .collect()
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

    /// What is found in a policy with this spec.
    fn in_policy(spec: &str) -> Vec<String> {
        let head = "a.yaml: document 1: EgressGatewayPolicy p: ";
        let found = found(&format!(
            "apiVersion: egressgateway.spidernet.io/v1\nkind: EgressGatewayPolicy\nmetadata: {{name: p}}\nspec: {{{spec}}}\n"
        ));
        found
            .into_iter()
            .map(|line| line.strip_prefix(head).unwrap_or(&line).to_owned())
            .collect()
    }

    #[test]
    fn a_value_of_the_wrong_type_is_named_with_its_path() {
        let pods = "appliedTo: {podSelector: {matchLabels: {a: b}}}";
        assert_eq!(
            in_policy(&format!("{pods}, priority: high"))[0],
            "spec.priority: \"high\": must be a whole number, and is text"
        );
        assert_eq!(
            in_policy(&format!("{pods}, priority: 1.5")),
            ["spec.priority: \"1.5\": must be a whole number"]
        );
        assert_eq!(
            in_policy(&format!("{pods}, priority: -1")),
            ["spec.priority: \"-1\": must be at least 0"]
        );
        assert_eq!(
            in_policy(&format!("{pods}, destCIDR: 10.6.1.0/24")),
            ["spec.destCIDR: \"10.6.1.0/24\": must be a list, and is text"]
        );
        assert_eq!(
            in_policy("appliedTo: {podSelector: {matchLabels: {egress: true}}}"),
            [
                "spec.appliedTo.podSelector.matchLabels.egress: \"true\": must be text, and is true or false: write it in quotes"
            ]
        );
    }

    #[test]
    fn an_unknown_field_is_found_at_any_depth_and_a_missing_one_is_named() {
        assert_eq!(
            in_policy(
                "appliedTo: {podSelector: {matchExpressions: [{key: a, operator: Exists, valeus: []}]}}"
            ),
            [
                "spec.appliedTo.podSelector.matchExpressions[0].valeus: \"\": must be a field that the kind has"
            ]
        );
        assert_eq!(
            in_policy("destCIDR: []"),
            ["spec.appliedTo: \"\": must be given"]
        );
        assert_eq!(
            in_policy("appliedTo: {podSelector: {matchExpressions: [{key: a, operator: Is}]}}"),
            [
                "spec.appliedTo.podSelector.matchExpressions[0].operator: \"Is\": must be In, NotIn, Exists or DoesNotExist"
            ]
        );
    }

    #[test]
    fn what_an_api_server_asks_of_names_and_labels_is_asked_of_every_kind() {
        let node = |metadata: &str| {
            let found = found(&format!(
                "{{apiVersion: v1, kind: Node, metadata: {{{metadata}}}}}"
            ));
            found
                .iter()
                .map(|line| {
                    line.rsplit_once(" metadata.")
                        .map_or(line.clone(), |(_, rest)| rest.to_owned())
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(
            node("name: n, labels: {egress: true}"),
            ["labels.egress: \"true\": must be text, and is true or false: write it in quotes"]
        );
        assert_eq!(
            node("name: n, labels: {rack: 7}"),
            ["labels.rack: \"7\": must be text, and is a number: write it in quotes"]
        );
        assert!(
            node("name: n, labels: {a: b c}")[0]
                .starts_with("labels.a: \"b c\": must have at most 63 letters")
        );
        assert!(
            node("name: n, labels: {/a: b}")[0]
                .starts_with("labels./a: \"/a\": must be a name of at most 63 characters")
        );
        assert!(node("name: Node_1")[0].starts_with("name: \"Node_1\": must be small letters"));
        let good = "name: n-1.example.com, labels: {egress: \"true\", node-role.kubernetes.io/egress: \"\"}, annotations: {a: any text at all}";
        assert_eq!(node(good), [""; 0]);
    }

    #[test]
    fn objects_of_other_versions_and_kinds_of_the_group_are_errors_that_name_what_is_understood() {
        let old = "{apiVersion: egressgateway.spidernet.io/v1beta1, kind: EgressPolicy, metadata: {name: p, namespace: n}}";
        assert_eq!(
            found(old),
            [
                "a.yaml: document 1: EgressPolicy n/p: apiVersion: \"egressgateway.spidernet.io/v1beta1\": must be egressgateway.spidernet.io/v1, \
              the only version that is understood: EgressGateway, EgressGatewayPolicy, EgressNode"
            ]
        );
        let unknown = found(
            "{apiVersion: egressgateway.spidernet.io/v1, kind: EgressPolicy, metadata: {name: p}}",
        );
        assert!(
            unknown[0].ends_with(
                "kind: \"EgressPolicy\": must be EgressGateway, EgressGatewayPolicy, EgressNode in egressgateway.spidernet.io/v1"
            )
        );
    }

    #[test]
    fn lists_are_opened_twins_refused_and_broken_yaml_is_no_panic() {
        let list = "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Node, metadata: {name: n}}\n- {apiVersion: v1, kind: Node, metadata: {name: n}}\n";
        assert_eq!(
            found(list),
            [
                "a.yaml: document 1: Node n: metadata.name: \"n\": must be the only object of that kind and name"
            ]
        );
        assert!(
            found("a: [")[0].starts_with("a.yaml: document 1: (document): \"\": must be YAML: ")
        );
        assert_eq!(
            found("a: 1"),
            ["a.yaml: document 1: kind: \"\": must name the kind of the object"]
        );
        assert!(found("---\n---\n# nothing\n").is_empty());
    }
}
