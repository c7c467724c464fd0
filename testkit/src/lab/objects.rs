//! The Kubernetes objects that describe the lab.

use serde_json::{Value, json};

use super::{
    constants::PORT,
    lock::locked,
    running::Running,
    topology::{NodeFacts, PodFacts, ServiceFacts, Topology},
};

/// Every object of the lab: namespaces, nodes, pods, services.
pub(super) fn all(running: &Running) -> Vec<Value> {
    let state = locked(&running.state);
    let namespaces = state.namespaces.iter().map(|(name, labels)| {
        json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": name, "labels": labels, "uid": uid("namespace", name)},
            "status": {"phase": "Active"},
        })
    });
    let nodes = running.topology.nodes.iter().map(|facts| node(facts, true));
    let pods = state.pods.iter().map(|facts| pod(facts, &running.topology));
    namespaces
        .chain(nodes)
        .chain(pods)
        .chain(state.services.iter().map(service))
        .collect()
}

/// A Node.
pub(super) fn node(facts: &NodeFacts, ready: bool) -> Value {
    let networks = facts.pod_networks();
    let mut addresses: Vec<Value> = facts
        .addresses()
        .iter()
        .map(|address| json!({"type": "InternalIP", "address": address.to_string()}))
        .collect();
    addresses.push(json!({"type": "Hostname", "address": facts.name}));
    let (status, reason) = if ready {
        ("True", "KubeletReady")
    } else {
        ("False", "KubeletNotReady")
    };
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": facts.name, "labels": facts.labels, "uid": uid("node", &facts.name)},
        "spec": {"podCIDR": networks.first(), "podCIDRs": networks},
        "status": {
            "addresses": addresses,
            "conditions": [{"type": "Ready", "status": status, "reason": reason}],
        },
    })
}

/// A Pod that runs and is ready.
pub(super) fn pod(facts: &PodFacts, topology: &Topology) -> Value {
    let hosts = topology
        .node(&facts.node)
        .map(NodeFacts::addresses)
        .unwrap_or_default();
    let (hosts, own): (Vec<Value>, Vec<Value>) = (
        hosts.iter().map(|ip| json!({"ip": ip})).collect(),
        facts.addresses.iter().map(|ip| json!({"ip": ip})).collect(),
    );
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": facts.name, "namespace": facts.namespace, "labels": facts.labels,
            "uid": uid("pod", &format!("{}/{}", facts.namespace, facts.name)),
        },
        "spec": {"nodeName": facts.node, "hostNetwork": facts.host_network, "containers": [{"name": "main", "image": "main"}]},
        "status": {
            "phase": "Running",
            "podIP": facts.addresses.first(), "podIPs": own,
            "hostIP": hosts.first().map(|host| host["ip"].clone()), "hostIPs": hosts,
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

fn service(facts: &ServiceFacts) -> Value {
    let families: Vec<&str> = facts
        .addresses
        .iter()
        .map(|address| if address.is_ipv4() { "IPv4" } else { "IPv6" })
        .collect();
    let port = |protocol: &str| {
        json!({
            "name": protocol.to_lowercase(), "protocol": protocol, "port": facts.port,
            "targetPort": PORT, "nodePort": facts.node_port,
        })
    };
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": facts.name, "namespace": "default", "uid": uid("service", &facts.name)},
        "spec": {
            "type": "NodePort", "clusterIP": facts.addresses.first(), "clusterIPs": facts.addresses, "ipFamilies": families,
            "ports": [port("TCP"), port("UDP")],
            "externalTrafficPolicy": if facts.local { "Local" } else { "Cluster" },
        },
    })
}

/// An id that is the same in every run (FNV-1a of kind and name).
fn uid(kind: &str, name: &str) -> String {
    let hash = |offset: u64| {
        let bytes = kind.bytes().chain([b'/']).chain(name.bytes());
        bytes.fold(0xcbf2_9ce4_8422_2325 ^ offset, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
    };
    let (high, low) = (hash(0), hash(1));
    format!(
        "{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}",
        high >> 32,
        high >> 16 & 0xffff,
        high & 0xfff,
        low >> 52,
        low & 0xffff_ffff_ffff
    )
}
