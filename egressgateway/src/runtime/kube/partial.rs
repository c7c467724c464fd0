//! Pods and Nodes as they are read from an API server: without the fields that nobody here asks
//! for, which are nearly all.
//!
//! A list brings some hundred objects at once. Read whole, a Pod takes some fifty times the memory
//! of what egress needs of it, and an allocator does not give all of that back.

use std::{borrow::Cow, collections::BTreeMap};

use k8s_openapi::{
    api::core::v1::{Node, NodeSpec, NodeStatus, Pod, PodSpec, PodStatus},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::Resource;
use serde::{Deserialize, Deserializer};

/// An object of which only some fields were read; the others are empty.
#[derive(Clone, Debug)]
pub(crate) struct Partial<K>(pub(crate) K);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
}

impl From<Metadata> for ObjectMeta {
    fn from(metadata: Metadata) -> Self {
        let Metadata {
            name,
            namespace,
            uid,
            resource_version,
            labels,
            annotations,
        } = metadata;
        Self {
            name,
            namespace,
            uid,
            resource_version,
            labels,
            annotations,
            ..Self::default()
        }
    }
}

#[derive(Deserialize)]
struct PodFields {
    metadata: Metadata,
    spec: Option<PodSpecFields>,
    status: Option<PodStatusFields>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodSpecFields {
    node_name: Option<String>,
    host_network: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodStatusFields {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<k8s_openapi::api::core::v1::PodIP>>,
}

impl<'de> Deserialize<'de> for Partial<Pod> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let PodFields {
            metadata,
            spec,
            status,
        } = PodFields::deserialize(deserializer)?;
        let metadata = ObjectMeta {
            annotations: None,
            ..metadata.into()
        };
        let spec = spec.map(|spec| PodSpec {
            node_name: spec.node_name,
            host_network: spec.host_network,
            ..PodSpec::default()
        });
        let status = status.map(|status| PodStatus {
            phase: status.phase,
            pod_ip: status.pod_ip,
            pod_ips: status.pod_ips,
            ..PodStatus::default()
        });
        Ok(Self(Pod {
            metadata,
            spec,
            status,
        }))
    }
}

#[derive(Deserialize)]
struct NodeFields {
    metadata: Metadata,
    spec: Option<NodeSpecFields>,
    status: Option<NodeStatusFields>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct NodeSpecFields {
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
    unschedulable: Option<bool>,
}

#[derive(Deserialize)]
struct NodeStatusFields {
    addresses: Option<Vec<k8s_openapi::api::core::v1::NodeAddress>>,
    conditions: Option<Vec<k8s_openapi::api::core::v1::NodeCondition>>,
}

impl<'de> Deserialize<'de> for Partial<Node> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let NodeFields {
            metadata,
            spec,
            status,
        } = NodeFields::deserialize(deserializer)?;
        let spec = spec.map(|spec| NodeSpec {
            pod_cidr: spec.pod_cidr,
            pod_cidrs: spec.pod_cidrs,
            unschedulable: spec.unschedulable,
            ..NodeSpec::default()
        });
        let status = status.map(|status| NodeStatus {
            addresses: status.addresses,
            conditions: status.conditions,
            ..NodeStatus::default()
        });
        Ok(Self(Node {
            metadata: metadata.into(),
            spec,
            status,
        }))
    }
}

impl<K: Resource> Resource for Partial<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(kind: &Self::DynamicType) -> Cow<'_, str> {
        K::kind(kind)
    }

    fn group(kind: &Self::DynamicType) -> Cow<'_, str> {
        K::group(kind)
    }

    fn version(kind: &Self::DynamicType) -> Cow<'_, str> {
        K::version(kind)
    }

    fn plural(kind: &Self::DynamicType) -> Cow<'_, str> {
        K::plural(kind)
    }

    fn meta(&self) -> &ObjectMeta {
        self.0.meta()
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.0.meta_mut()
    }
}

#[cfg(test)]
mod tests {
    use kube::core::DeserializeGuard;
    use serde_json::{Value, json};

    use super::*;
    use crate::world;

    fn pod() -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "a", "namespace": "team", "uid": "u", "resourceVersion": "7", "labels": {"app": "a"}, "annotations": {"much": "text"},
                "managedFields": [{"manager": "kubelet", "operation": "Update", "fieldsV1": {"f:status": {}}}],
            },
            "spec": {"nodeName": "n", "hostNetwork": false, "containers": [{"name": "main", "image": "main"}]},
            "status": {
                "phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}],
                "containerStatuses": [{"name": "main", "ready": true, "restartCount": 0, "image": "main", "imageID": "x"}],
            },
        })
    }

    fn node() -> Value {
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {
                "name": "n", "uid": "u", "resourceVersion": "7", "labels": {"egress": "true"},
                "annotations": {"egressgateway.spidernet.io/drain": "true"},
            },
            "spec": {"podCIDR": "10.0.0.0/24", "podCIDRs": ["10.0.0.0/24", "fd00::/64"], "unschedulable": true},
            "status": {
                "addresses": [{"type": "InternalIP", "address": "10.6.0.1"}],
                "conditions": [{"type": "Ready", "status": "True"}],
                "images": [{"names": ["main"], "sizeBytes": 1}],
            },
        })
    }

    #[test]
    fn nothing_that_egress_needs_of_pods_and_nodes_is_left_out() {
        let (whole, partial): (Pod, Partial<Pod>) = (
            serde_json::from_value(pod()).unwrap(),
            serde_json::from_value(pod()).unwrap(),
        );
        assert_eq!(
            world::Pod::from_api(&partial.0),
            world::Pod::from_api(&whole)
        );
        assert_eq!(
            (
                &partial.0.metadata.namespace,
                &partial.0.metadata.resource_version
            ),
            (&whole.metadata.namespace, &whole.metadata.resource_version)
        );
        for (path, value) in [
            ("/spec/hostNetwork", json!(true)),
            ("/status/phase", json!("Succeeded")),
        ] {
            let mut ended = pod();
            *ended.pointer_mut(path).unwrap() = value;
            assert_eq!(
                world::Pod::from_api(&serde_json::from_value::<Partial<Pod>>(ended).unwrap().0),
                None,
                "{path}"
            );
        }
        let (whole, partial): (Node, Partial<Node>) = (
            serde_json::from_value(node()).unwrap(),
            serde_json::from_value(node()).unwrap(),
        );
        assert_eq!(
            world::Node::from_api(&partial.0),
            world::Node::from_api(&whole)
        );
        assert!(world::Node::from_api(&partial.0).is_drained());
    }

    #[test]
    fn the_rest_of_a_pod_and_of_a_node_is_not_kept() {
        let pod: Partial<Pod> = serde_json::from_value(pod()).unwrap();
        assert_eq!(
            (pod.0.metadata.managed_fields, pod.0.metadata.annotations),
            (None, None)
        );
        assert_eq!(pod.0.spec.unwrap().containers, []);
        assert_eq!(pod.0.status.unwrap().container_statuses, None);
        let node: Partial<Node> = serde_json::from_value(node()).unwrap();
        assert_eq!(node.0.status.unwrap().images, None);
    }

    #[test]
    fn a_field_that_is_not_what_it_should_be_is_told_and_the_object_keeps_its_name() {
        let mut odd = pod();
        odd["status"]["podIPs"] = json!("10.0.0.1");
        let guard: DeserializeGuard<Partial<Pod>> = serde_json::from_value(odd).unwrap();
        assert_eq!(guard.meta().name.as_deref(), Some("a"));
        assert!(guard.0.is_err());
    }
}
