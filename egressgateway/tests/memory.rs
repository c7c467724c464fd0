//! What an index keeps of each pod stays small: a gateway with egress addresses may have to know a
//! hundred thousand.
//!
//! A process of its own with this one test: what it has is read from the kernel.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{collections::HashSet, net::IpAddr, sync::Arc};

use egressgateway::{
    api::{EgressGateway, EgressGatewayPolicy},
    index::{Index, IndexSettings},
    model::{MarkMask, NodeName, PodName},
    world::{Change, Gateway, Labels, Pod, Policy},
};

const PODS: u32 = 40_000;
/// As many pods have the same labels, as those of a Deployment.
const REPLICAS: u32 = 20;
/// Its name, two addresses and their class take some nine hundred, trees of the standard library
/// that are half empty included. A set of pods for each address, or a tree of addresses for each
/// pod, would be hundreds more.
const BYTES: u64 = 1_200;

/// Memory of this process that is no file's, in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .unwrap();
    line.trim()
        .strip_suffix(" kB")
        .unwrap()
        .parse::<u64>()
        .unwrap()
        * 1024
}

fn pod(number: u32, labels: &Labels, node: &NodeName, namespace: &Arc<str>) -> Change {
    let addresses: [IpAddr; 2] = [
        (0x0a00_0000 + number).to_be_bytes().into(),
        (0xfd00_u128 << 112 | u128::from(number))
            .to_be_bytes()
            .into(),
    ];
    let pod = Pod {
        labels: labels.clone(),
        node: Some(node.clone()),
        addresses: addresses.into(),
    };
    Change::Pod(
        PodName::new(
            namespace.clone(),
            format!("app-{}-7d9c6bf5c8-{number:05x}", number / REPLICAS),
        ),
        Some(pod),
    )
}

#[test]
fn a_pod_of_another_node_takes_about_a_kilobyte() {
    let gateway: EgressGateway = serde_saphyr::from_str(
        "{metadata: {name: g}, spec: {sourceNAT: None, nodeSelector: {matchLabels: {egress: 'true'}}},
          status: {mark: 0x11000000, nodeList: [{name: gateway, status: Ready, active: true}]}}",
    )
    .unwrap();
    let policy: EgressGatewayPolicy = serde_saphyr::from_str(
        "{metadata: {name: p}, spec: {appliedTo: {podSelector: {matchLabels: {tier: web}}}, destCIDR: [10.6.1.0/24, 'fd06::/64']}}",
    )
    .unwrap();
    let mut index = Index::new(IndexSettings::of_node(NodeName::from("gateway")));
    index.apply(Change::Gateway(
        "g".into(),
        Some(Gateway::from_api(&gateway, MarkMask::default())),
    ));
    index.apply(Change::Policy("p".into(), Some(Policy::from_api(&policy))));
    assert!(index.needs_all_pods());
    let labels: Vec<Labels> = (0..PODS / REPLICAS)
        .map(|app| {
            [("app", format!("app-{app}")), ("tier", "web".to_owned())]
                .into_iter()
                .collect()
        })
        .collect();
    // Nodes and namespaces have one name each, and a reader of an API server keeps it once.
    let (nodes, namespace): (Vec<NodeName>, Arc<str>) = (
        (0..500).map(|node| format!("node-{node}").into()).collect(),
        "shop".into(),
    );
    let before = resident();
    for number in 0..PODS {
        index.apply(pod(
            number,
            &labels[(number / REPLICAS) as usize],
            &nodes[(number % 500) as usize],
            &namespace,
        ));
    }
    let desired = index.desired();
    let each = resident().saturating_sub(before) / u64::from(PODS);
    let classes: HashSet<_> = desired.policy.pods.values().collect();
    assert_eq!(
        (desired.policy.pods.len(), classes.len()),
        (2 * PODS as usize, 1),
        "each is known by both its addresses"
    );
    assert!(each < BYTES, "{each} bytes for each pod");
}
