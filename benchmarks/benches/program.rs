//! How long it takes to program 10,000 policies from nothing, against loading the same in one
//! batch, and to change one pod.
//!
//! Times of one run on one machine: compare the rows with each other, not with another run. Needs
//! root.
#![allow(missing_docs, clippy::unwrap_used)]

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use egressgateway::{Outcome, PolicyDesired};
use egressgateway_benchmarks::{
    command::run,
    layout::{self, Layout},
    namespace::{alone, have_root},
    policies::{Role, class, desired, pod},
    proposal,
    statistics::Figures,
};

struct Size {
    policies: u32,
    /// Namespaces that are programmed from nothing, by each layout and by hand.
    rounds: usize,
    /// Pods that come and go.
    events: u32,
}

/// What one layout took.
struct Times {
    cold: Vec<Duration>,
    batch: Vec<Duration>,
    plan: Vec<Duration>,
    event: Vec<Duration>,
}

fn main() {
    if !have_root() {
        return;
    }
    let quick = std::env::args().any(|argument| argument == "--quick");
    let size = if quick {
        Size {
            policies: 100,
            rounds: 1,
            events: 10,
        }
    } else {
        Size {
            policies: 10_000,
            rounds: 3,
            events: 200,
        }
    };
    let mut times = Layout::ALL.map(|_| Times {
        cold: Vec::new(),
        batch: Vec::new(),
        plan: Vec::new(),
        event: Vec::new(),
    });
    for round in 1..=size.rounds {
        eprintln!("round {round} of {}", size.rounds);
        for (layout, times) in Layout::ALL.into_iter().zip(&mut times) {
            alone(|| from_nothing(layout, &size, times));
            alone(|| by_hand(layout, &size, times));
        }
    }
    print(&size, &times);
}

/// Programs everything; then pods come and go.
fn from_nothing(layout: Layout, size: &Size, times: &mut Times) {
    let Some(mut reconciler) = layout.reconciler() else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut desired = desired(size.policies, Role::Both);
    let start = Instant::now();
    runtime.block_on(reconciler.reconcile(&desired)).unwrap();
    times.cold.push(start.elapsed());
    for number in 0..size.events {
        change(&mut desired, number, size);
        let start = Instant::now();
        let plan = runtime.block_on(reconciler.dry_run(&desired)).unwrap();
        times.plan.push(start.elapsed());
        assert!(
            plan.lines().filter(|line| !line.starts_with('#')).count() < 5,
            "one pod is a few entries, not\n{plan}"
        );
        let start = Instant::now();
        let outcome = runtime.block_on(reconciler.reconcile(&desired)).unwrap();
        times.event.push(start.elapsed());
        assert_eq!(outcome, Outcome::Applied);
    }
}

/// A pod comes, and goes with the next event.
fn change(desired: &mut PolicyDesired, event: u32, size: &Size) {
    let index = event / 2;
    let address = IpAddr::from(pod(size.policies + index));
    let known = &mut desired.start_gate.as_mut().unwrap().known;
    if event.is_multiple_of(2) {
        desired
            .pods
            .insert(address, class(index * 97 % size.policies + 1));
        known.insert(address);
    } else {
        desired.pods.remove(&address);
        known.remove(&address);
    }
}

/// Feeds the same elements to the host's tools in as few calls as there can be. The proposal's
/// layout has no other way.
fn by_hand(layout: Layout, size: &Size, times: &mut Times) {
    let batch = layout.batch(size.policies, Role::Both);
    let start = Instant::now();
    layout::load(&batch);
    times.batch.push(start.elapsed());
    if layout != Layout::Proposal {
        return;
    }
    for event in 0..size.events {
        let index = event / 2;
        let (verb, address) = (
            if event.is_multiple_of(2) {
                "add"
            } else {
                "del"
            },
            pod(size.policies + index).to_string(),
        );
        let set = proposal::source_set(index * 97 % size.policies + 1);
        let start = Instant::now();
        run(&["ipset", verb, &set, &address], "");
        times.event.push(start.elapsed());
    }
}

fn print(size: &Size, all: &[Times]) {
    println!(
        "{} policies with a pod each; {} rounds, {} events in each",
        size.policies, size.rounds, size.events
    );
    let (cold, batch, event) = ("from nothing, ms", "one batch by hand, ms", "a pod, ms");
    println!(
        "{:<30} {cold:>26} {batch:>26} {:>6} {event:>17} {:>17}",
        "", "ratio", "of it planning"
    );
    println!(
        "{:<30} {:>26} {:>26} {:>6} {:>17} {:>17}",
        "", "min / median / max", "min / median / max", "", "p50 / p99", "p50 / p99"
    );
    for (layout, times) in Layout::ALL.iter().zip(all) {
        let spread = |times: &[Duration]| {
            if times.is_empty() {
                "-".to_owned()
            } else {
                Figures::of_times(times).spread(0)
            }
        };
        let tail = |times: &[Duration]| {
            if times.is_empty() {
                return "-".to_owned();
            }
            let figures = Figures::of_times(times);
            format!(
                "{:.2} / {:.2}",
                figures.percentile(50),
                figures.percentile(99)
            )
        };
        let ratio = match &times.cold[..] {
            [] => "-".to_owned(),
            cold => format!(
                "{:.2}",
                Figures::of_times(cold).median() / Figures::of_times(&times.batch).median()
            ),
        };
        let (cold, batch) = (spread(&times.cold), spread(&times.batch));
        println!(
            "{layout:<30} {cold:>26} {batch:>26} {ratio:>6} {:>17} {:>17}",
            tail(&times.event),
            tail(&times.plan)
        );
    }
}
