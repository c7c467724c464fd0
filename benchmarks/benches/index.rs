//! One pod event, one policy event and a full build at 100,000 pods and 10,000 policies, through
//! index and plan.
//!
//! Times of one run on one machine: compare the rows with each other, not with another run.
#![allow(missing_docs, clippy::unwrap_used)]

use std::time::{Duration, Instant};

use egressgateway::{
    index::{Index, IndexSettings},
    model::NodeName,
    world::Change,
};
use egressgateway_benchmarks::cluster::{Size, objects, pod, policy};

fn main() {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let (size, events) = if quick {
        (
            Size {
                pods: 1_000,
                policies: 100,
            },
            200_u32,
        )
    } else {
        (
            Size {
                pods: 100_000,
                policies: 10_000,
            },
            4_000,
        )
    };
    let changes = objects(size);

    let start = Instant::now();
    let mut index = Index::new(IndexSettings::of_node(NodeName::from("gateway")));
    for change in changes {
        index.apply(change);
    }
    let desired = index.desired();
    let build = start.elapsed();
    assert_eq!(
        desired.policy.pods.len(),
        size.pods as usize,
        "this node is a gateway that must know every pod"
    );

    let mut pod_events = Vec::new();
    for event in 0..events {
        let number = event.wrapping_mul(7919) % size.pods;
        let change = pod(number, event % 3 + 1, size);
        pod_events.push(measure(&mut index, change));
    }
    let mut policy_events = Vec::new();
    for event in 0..(events / 20).max(10) {
        policy_events.push(measure(
            &mut index,
            policy(event % size.policies, 250 - event % 50),
        ));
    }
    println!(
        "{} pods, {} policies, {} entries of destinations",
        size.pods,
        size.policies,
        desired.policy.destinations.len()
    );
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
    let differences = before.policy.pods.diff(&after.policy.pods).count()
        + before
            .policy
            .destinations
            .diff(&after.policy.destinations)
            .count();
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
