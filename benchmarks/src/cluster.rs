//! A large cluster as a gateway sees it: a hundred thousand pods, ten thousand policies.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use egressgateway::{
    api::{EgressGateway, EgressGatewayPolicy},
    index::{Index, IndexSettings},
    model::{GatewayName, MarkMask, NodeName, PodName, PolicyName},
    world::{self, Change, Labels, Namespace, Pod},
};

/// How large it is.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Pods, on five hundred nodes.
    pub pods: u32,
    /// Policies, each for the pods of one application.
    pub policies: u32,
}

/// The index of the gateway's node, which must know every pod.
#[must_use]
pub fn index(size: Size) -> Index {
    let mut index = Index::new(IndexSettings::of_node(NodeName::from("gateway")));
    for change in objects(size) {
        index.apply(change);
    }
    index
}

/// Everything that there is.
///
/// # Panics
/// Never: all objects can be read.
#[must_use]
pub fn objects(size: Size) -> Vec<Change> {
    let gateway: EgressGateway = serde_saphyr::from_str(
        "{apiVersion: egressgateway.spidernet.io/v1, kind: EgressGateway, metadata: {name: g},
          spec: {sourceNAT: None, nodeSelector: {matchLabels: {egress: 'true'}}},
          status: {mark: 0x11000000, nodeList: [{name: gateway, status: Ready, active: true}]}}",
    )
    .unwrap();
    let gateway = world::Gateway::from_api(&gateway, MarkMask::default());
    let namespace = Change::Namespace(Arc::from("default"), Some(Namespace::default()));
    let objects = [
        Change::Gateway(GatewayName::from("g"), Some(gateway)),
        namespace,
    ];
    let policies = (0..size.policies).map(|number| policy(number, 1));
    objects
        .into_iter()
        .chain(policies)
        .chain((0..size.pods).map(|number| pod(number, 0, size)))
        .collect()
}

/// Every policy selects one application, and some overlap in their destinations; `third` tells
/// apart what one of them was and is.
///
/// # Panics
/// Never: the object can be read.
#[must_use]
pub fn policy(number: u32, third: u32) -> Change {
    let object: EgressGatewayPolicy = serde_json::from_value(serde_json::json!({
        "apiVersion": "egressgateway.spidernet.io/v1", "kind": "EgressGatewayPolicy", "metadata": {"name": format!("policy-{number}")},
        "spec": {
            "appliedTo": {"podSelector": {"matchLabels": {"app": format!("app-{number}")}}},
            "destCIDR": [format!("10.{}.{third}.0/24", number % 200), "172.20.0.0/16", "172.20.128.0/17"],
            "exceptCIDR": ["172.20.9.0/24"],
        },
    }))
    .unwrap();
    Change::Policy(
        PolicyName::from(format!("policy-{number}")),
        Some(world::Policy::from_api(&object)),
    )
}

/// A pod, of another application for each `shift`.
#[must_use]
pub fn pod(number: u32, shift: u32, size: Size) -> Change {
    let app = format!("app-{}", (number + shift) % size.policies);
    let labels = Labels::from([
        ("app".to_owned(), app),
        ("pod-template-hash".to_owned(), format!("{number:x}")),
    ]);
    let address = IpAddr::V4(Ipv4Addr::from_bits(0x64_40_00_00 + number));
    let node = Some(NodeName::from(format!("node-{}", number % 500)));
    Change::Pod(
        PodName::new("default", format!("pod-{number}")),
        Some(Pod {
            labels,
            node,
            addresses: [address].into(),
        }),
    )
}
