//! All objects there are.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use egressgateway_testkit::{kube::Kubernetes, pace::patient};
use serde_json::Value;

/// Every object of every kind but Events, by kind, namespace and name.
pub(crate) fn objects(kubernetes: &Kubernetes) -> BTreeMap<String, Value> {
    let kinds = kubernetes
        .kubectl("api-resources --verbs=list -o name")
        .unwrap();
    let kinds: Vec<&str> = kinds
        .lines()
        .filter(|kind| !kind.starts_with("events") && !kind.starts_with("componentstatuses"))
        .collect();
    let list = kubernetes
        .kubectl(&format!("get {} --all-namespaces -o json", kinds.join(",")))
        .unwrap();
    let mut list: Value = serde_json::from_str(&list).unwrap();
    let items = list["items"].as_array_mut().unwrap().drain(..);
    items.map(|object| (name(&object), object)).collect()
}

fn name(object: &Value) -> String {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (kind, name) = (word(&object["kind"]), word(&object["metadata"]["name"]));
    match object["metadata"]["namespace"].as_str() {
        Some(namespace) => format!("{kind} {namespace}/{name}"),
        None => format!("{kind} {name}"),
    }
}

/// Every object but Leases, once nothing has changed for a while.
pub(crate) fn settled(kubernetes: &Kubernetes) -> BTreeMap<String, Value> {
    let look = || {
        let mut objects = objects(kubernetes);
        objects.retain(|name, _| !name.starts_with("Lease "));
        objects
    };
    let last = std::cell::RefCell::new(look());
    kubernetes.eventually("nothing changes", || {
        std::thread::sleep(patient(Duration::from_millis(500)));
        let now = look();
        let before = last.replace(now.clone());
        let changed = changed(&before, &now);
        if changed.is_empty() {
            Ok(now)
        } else {
            Err(format!("{changed:?}"))
        }
    })
}

/// Names of the objects that are not as they were, `resourceVersion` included.
pub(crate) fn changed(
    before: &BTreeMap<String, Value>,
    after: &BTreeMap<String, Value>,
) -> Vec<String> {
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    names
        .into_iter()
        .filter(|name| before.get(*name) != after.get(*name))
        .cloned()
        .collect()
}

/// Deletes what the controller manager would: objects all of whose owners are gone.
pub(crate) fn collect_garbage(kubernetes: &Kubernetes) {
    loop {
        let objects = objects(kubernetes);
        let alive: BTreeSet<&str> = objects
            .values()
            .filter_map(|object| object["metadata"]["uid"].as_str())
            .collect();
        let orphan = |object: &&Value| {
            let owners = object["metadata"]["ownerReferences"]
                .as_array()
                .filter(|owners| !owners.is_empty());
            owners.is_some_and(|owners| {
                owners
                    .iter()
                    .all(|owner| !alive.contains(owner["uid"].as_str().unwrap_or_default()))
            })
        };
        let orphans: Vec<&Value> = objects.values().filter(orphan).collect();
        if orphans.is_empty() {
            return;
        }
        for orphan in orphans {
            let (kind, metadata) = (orphan["kind"].as_str().unwrap(), &orphan["metadata"]);
            let namespace = metadata["namespace"]
                .as_str()
                .map(|namespace| format!(" --namespace {namespace}"))
                .unwrap_or_default();
            kubernetes
                .kubectl(&format!(
                    "delete {kind} {}{namespace} --wait=false",
                    metadata["name"].as_str().unwrap()
                ))
                .unwrap();
        }
    }
}
