//! One pod event, one policy event and a full build at 100,000 pods and 10,000 policies, through index and plan.
//!
//! Times of one run on one machine: compare the rows with each other, not with another run.
#![allow(missing_docs, clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use egressgateway::{
    api::{EgressGateway, EgressGatewayPolicy},
    index::{Index, IndexSettings},
    model::{GatewayName, MarkMask, NodeName, PodName, PolicyName},
    world::{self, Change, Namespace, Pod},
};

struct Size {
    pods: u32,
    policies: u32,
    events: u32,
}

fn main() {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let size =
        if quick { Size { pods: 1_000, policies: 100, events: 200 } } else { Size { pods: 100_000, policies: 10_000, events: 4_000 } };
    let changes = world(&size);

    let start = Instant::now();
    let mut index = Index::new(IndexSettings::of_node(NodeName::from("gateway")));
    for change in changes {
        index.apply(change);
    }
    let desired = index.desired();
    let build = start.elapsed();
    assert_eq!(desired.policy.pods.len(), size.pods as usize, "this node is a gateway that must know every pod");

    let mut pod_events = Vec::new();
    for event in 0..size.events {
        let number = event.wrapping_mul(7919) % size.pods;
        let change = pod(number, event % 3 + 1, &size);
        pod_events.push(measure(&mut index, change));
    }
    let mut policy_events = Vec::new();
    for event in 0..(size.events / 20).max(10) {
        policy_events.push(measure(&mut index, policy(event % size.policies, 250 - event % 50)));
    }
    println!("{} pods, {} policies, {} entries of destinations", size.pods, size.policies, desired.policy.destinations.len());
    println!("{:<24} {:>12} {:>12}", "through the index", "p50", "p99");
    print_row("one pod event", pod_events);
    print_row("one policy event", policy_events);
    println!("{:<24} {:>12}", "full build", micros(build));
}

fn measure(index: &mut Index, change: Change) -> Duration {
    let before = index.desired();
    let start = Instant::now();
    index.apply(change);
    let after = index.desired();
    // What every driver does first: find the difference of two versions.
    let differences =
        before.policy.pods.diff(&after.policy.pods).count() + before.policy.destinations.diff(&after.policy.destinations).count();
    let time = start.elapsed();
    assert!(differences < 100_000);
    time
}

fn print_row(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |percent: usize| micros(times[(times.len() * percent / 100).min(times.len() - 1)]);
    println!("{what:<24} {:>12} {:>12}", at(50), at(99));
}

fn micros(time: Duration) -> String {
    format!("{} µs", time.as_micros())
}

fn world(size: &Size) -> Vec<Change> {
    let gateway: EgressGateway = serde_yaml::from_str(
        "{apiVersion: egressgateway.spidernet.io/v1, kind: EgressGateway, metadata: {name: g},
          spec: {sourceNAT: None, nodeSelector: {matchLabels: {egress: 'true'}}},
          status: {mark: 0x11000000, nodeList: [{name: gateway, status: Ready, active: true}]}}",
    )
    .unwrap();
    let gateway = world::Gateway::from_api(&gateway, MarkMask::default());
    let namespace = Change::Namespace(Arc::from("default"), Some(Namespace::default()));
    let objects = [Change::Gateway(GatewayName::from("g"), Some(gateway)), namespace];
    let policies = (0..size.policies).map(|number| policy(number, 1));
    objects.into_iter().chain(policies).chain((0..size.pods).map(|number| pod(number, 0, size))).collect()
}

/// Every policy selects one application, and some overlap in their destinations.
fn policy(number: u32, third: u32) -> Change {
    let object: EgressGatewayPolicy = serde_json::from_value(serde_json::json!({
        "apiVersion": "egressgateway.spidernet.io/v1", "kind": "EgressGatewayPolicy", "metadata": {"name": format!("policy-{number}")},
        "spec": {
            "appliedTo": {"podSelector": {"matchLabels": {"app": format!("app-{number}")}}},
            "destCIDR": [format!("10.{}.{third}.0/24", number % 200), "172.20.0.0/16", "172.20.128.0/17"],
            "exceptCIDR": ["172.20.9.0/24"],
        },
    }))
    .unwrap();
    Change::Policy(PolicyName::from(format!("policy-{number}")), Some(world::Policy::from_api(&object)))
}

fn pod(number: u32, shift: u32, size: &Size) -> Change {
    let app = format!("app-{}", (number + shift) % size.policies);
    let labels = BTreeMap::from([("app".to_owned(), app), ("pod-template-hash".to_owned(), format!("{number:x}"))]);
    let address = IpAddr::V4(Ipv4Addr::from_bits(0x64_40_00_00 + number));
    let node = Some(NodeName::from(format!("node-{}", number % 500)));
    Change::Pod(PodName::new("default", format!("pod-{number}")), Some(Pod { labels, node, addresses: BTreeSet::from([address]) }))
}
