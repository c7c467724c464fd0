//! Kinds of objects that are served.

use std::collections::BTreeMap;

use egressgateway::api::{EgressGateway, EgressGatewayPolicy, EgressNode};
use kube::CustomResourceExt;
use serde_json::{Value, json};

/// A kind of object that is served.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Resource {
    pub(super) group: String,
    pub(super) version: String,
    pub(super) plural: String,
    pub(super) kind: String,
    pub(super) namespaced: bool,
    /// Its status is written through a subresource only, and its generation counts changes of the
    /// rest.
    pub(super) has_status: bool,
}

impl Resource {
    pub(super) fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.clone()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// Not from a CustomResourceDefinition.
    pub(super) fn built_in(&self) -> bool {
        BUILT_IN
            .iter()
            .any(|(group, _, plural, ..)| *group == self.group && *plural == self.plural)
    }

    /// An update without the version that it is based on is refused.
    pub(super) fn needs_version(&self) -> bool {
        !self.built_in() || self.plural == "leases"
    }
}

/// All kinds that are served.
#[derive(Debug)]
pub(super) struct Resources(BTreeMap<(String, String), Resource>);

/// Group, version, plural, kind, namespaced, status subresource.
const BUILT_IN: [(&str, &str, &str, &str, bool, bool); 10] = [
    ("", "v1", "nodes", "Node", false, true),
    ("", "v1", "namespaces", "Namespace", false, false),
    ("", "v1", "pods", "Pod", true, true),
    ("", "v1", "services", "Service", true, true),
    ("", "v1", "configmaps", "ConfigMap", true, false),
    ("", "v1", "events", "Event", true, false),
    ("events.k8s.io", "v1", "events", "Event", true, false),
    ("coordination.k8s.io", "v1", "leases", "Lease", true, false),
    (
        "networking.k8s.io",
        "v1",
        "servicecidrs",
        "ServiceCIDR",
        false,
        true,
    ),
    (
        "apiextensions.k8s.io",
        "v1",
        "customresourcedefinitions",
        "CustomResourceDefinition",
        false,
        true,
    ),
];

impl Default for Resources {
    fn default() -> Self {
        let mut resources = Self(BTreeMap::new());
        for (group, version, plural, kind, namespaced, has_status) in BUILT_IN {
            resources.add(Resource {
                group: group.to_owned(),
                version: version.to_owned(),
                plural: plural.to_owned(),
                kind: kind.to_owned(),
                namespaced,
                has_status,
            });
        }
        for definition in [
            EgressGateway::crd(),
            EgressNode::crd(),
            EgressGatewayPolicy::crd(),
        ] {
            resources.define(&serde_json::to_value(definition).unwrap_or_default());
        }
        resources
    }
}

impl Resources {
    fn add(&mut self, resource: Resource) {
        self.0
            .insert((resource.group.clone(), resource.plural.clone()), resource);
    }

    /// Serves what a CustomResourceDefinition defines, in its stored version.
    pub(super) fn define(&mut self, definition: &Value) {
        let spec = &definition["spec"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let versions = spec["versions"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        let Some(version) = versions.iter().find(|version| version["storage"] == true) else {
            return;
        };
        self.add(Resource {
            group: text(&spec["group"]),
            version: text(&version["name"]),
            plural: text(&spec["names"]["plural"]),
            kind: text(&spec["names"]["kind"]),
            namespaced: spec["scope"] == "Namespaced",
            has_status: !version["subresources"]["status"].is_null(),
        });
    }

    pub(super) fn find(&self, group: &str, plural: &str) -> Option<Resource> {
        self.0.get(&(group.to_owned(), plural.to_owned())).cloned()
    }

    pub(super) fn of_kind(&self, kind: &str) -> Option<Resource> {
        self.0
            .values()
            .find(|resource| resource.kind == kind)
            .cloned()
    }

    pub(super) fn of_object(&self, object: &Value) -> Option<Resource> {
        let kind = object["kind"].as_str()?;
        let api_version = object["apiVersion"].as_str()?;
        self.0
            .values()
            .find(|resource| resource.kind == kind && resource.api_version() == api_version)
            .cloned()
    }

    /// Discovery: the groups.
    pub(super) fn groups(&self) -> Value {
        let mut groups: BTreeMap<&str, &str> = BTreeMap::new();
        for resource in self
            .0
            .values()
            .filter(|resource| !resource.group.is_empty())
        {
            groups.insert(&resource.group, &resource.version);
        }
        let group = |(name, version): (&&str, &&str)| {
            let version = json!({"groupVersion": format!("{name}/{version}"), "version": version});
            json!({"name": name, "versions": [version], "preferredVersion": version})
        };
        json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups.iter().map(group).collect::<Vec<_>>()})
    }

    /// Discovery: the resources of a group and version.
    pub(super) fn list(&self, group: &str, version: &str) -> Value {
        let verbs = json!([
            "create",
            "delete",
            "deletecollection",
            "get",
            "list",
            "patch",
            "update",
            "watch"
        ]);
        let own = self
            .0
            .values()
            .filter(|resource| resource.group == group && resource.version == version);
        let list = own.flat_map(|resource| {
            let entry = |name: String| json!({"name": name, "singularName": "", "namespaced": resource.namespaced, "kind": resource.kind, "verbs": verbs});
            let status = resource.has_status.then(|| entry(format!("{}/status", resource.plural)));
            [entry(resource.plural.clone())].into_iter().chain(status)
        });
        let group_version = if group.is_empty() {
            version.to_owned()
        } else {
            format!("{group}/{version}")
        };
        json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": list.collect::<Vec<_>>()})
    }
}
