//! From one pod event to the kernel, on a gateway that must know 100,000 pods, with 10,000
//! policies: through the index, the plan and netlink.
//!
//! Times of one run on one machine. Needs root.
#![allow(missing_docs, clippy::unwrap_used)]

use std::time::{Duration, Instant};

use egressgateway::Outcome;
use egressgateway_benchmarks::{
    cluster::{Size, index, pod},
    layout::Layout,
    namespace::{alone, have_root},
    statistics::Figures,
};

fn main() {
    if !have_root() {
        return;
    }
    let quick = std::env::args().any(|argument| argument == "--quick");
    let (size, events) = if quick {
        (
            Size {
                pods: 1_000,
                policies: 100,
            },
            20,
        )
    } else {
        (
            Size {
                pods: 100_000,
                policies: 10_000,
            },
            600,
        )
    };
    println!(
        "{} pods, {} policies, {events} pod events",
        size.pods, size.policies
    );
    println!(
        "{:<30} {:>10} {:>10} {:>10} {:>10} {:>10} {:>14}",
        "one pod event to kernel, ms", "p50", "p90", "p99", "longest", "", "from nothing"
    );
    for layout in Layout::ALL {
        let Some((nothing, times)) = alone(|| measure(layout, size, events)) else {
            continue;
        };
        let figures = Figures::of_times(&times);
        let at = |percent| format!("{:.2}", figures.percentile(percent));
        let nothing = format!("{:.0}", nothing.as_secs_f64() * 1e3);
        println!(
            "{layout:<30} {:>10} {:>10} {:>10} {:>10} {nothing:>14}",
            at(50),
            at(90),
            at(99),
            at(100)
        );
    }
}

/// How long everything took, and then each event; none for the layout that no backend writes.
fn measure(layout: Layout, size: Size, events: u32) -> Option<(Duration, Vec<Duration>)> {
    let mut reconciler = layout.reconciler()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut index = index(size);
    let desired = index.desired();
    assert_eq!(
        desired.policy.pods.len(),
        size.pods as usize,
        "this node is a gateway that must know every pod"
    );
    let start = Instant::now();
    runtime
        .block_on(reconciler.reconcile(&desired.policy))
        .unwrap();
    let nothing = start.elapsed();
    let times = (0..events).map(|event| {
        let change = pod(event.wrapping_mul(7919) % size.pods, event % 3 + 1, size);
        let start = Instant::now();
        index.apply(change);
        let outcome = runtime
            .block_on(reconciler.reconcile(&index.desired().policy))
            .unwrap();
        let time = start.elapsed();
        assert_eq!(outcome, Outcome::Applied);
        time
    });
    Some((nothing, times.collect()))
}
