//! What `make bench-scale` measures, of a small cluster: bounds that must hold in a large one too.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{collections::BTreeMap, time::Duration};

use egressgateway_benchmarks::scale::{
    AGENTS, CONTROLLER, FOLLOWER, Figures, Phase, Size, Times, Usage, measure,
};
use egressgateway_testkit::{kube, netns::have_root};

const SIZE: Size = Size {
    nodes: 20,
    pods: 200,
    policies: 20,
    rollout: 40,
};
const TIMES: Times = Times {
    idle: Duration::from_secs(12),
    change: Duration::from_secs(1),
};
/// How often an agent renews its Lease, in seconds.
const RENEWAL: u64 = 10;
/// What a watch tells of a pod that is replaced: the new one created, placed, being started and
/// ready; the old one to be deleted, ended and gone.
const CHANGES: u64 = 7;

fn usage<'a>(phase: &'a Phase, daemon: &str) -> &'a Usage {
    phase
        .usage
        .get(daemon)
        .unwrap_or_else(|| panic!("no figures of {daemon}"))
}

fn nothing() -> BTreeMap<String, u64> {
    BTreeMap::new()
}

/// Pods that the watch of an agent tells of in a rollout, and how many were replaced of those that
/// it follows.
fn told(figures: &Figures, agent: &str) -> (u64, u64) {
    let followed = if agent == FOLLOWER {
        SIZE.rollout
    } else {
        figures.own[agent]
    };
    let told = usage(&figures.rollout, agent)
        .events
        .get("pods")
        .copied()
        .unwrap_or_default();
    (told, u64::try_from(followed).unwrap())
}

#[test]
fn what_daemons_ask_for_and_are_told_of_does_not_grow_with_pods_of_other_nodes() {
    let Some(assets) = have_root().then(kube::assets).flatten() else {
        return;
    };
    let figures = measure(assets, SIZE, TIMES).unwrap_or_else(|error| panic!("{error}"));
    for (agent, _) in AGENTS {
        let idle = usage(&figures.idle, agent);
        let renewals = figures.idle.length.as_secs() / RENEWAL + 1;
        let renewed = idle.requests_of("patch leases");
        assert!(
            (1..=renewals).contains(&renewed),
            "{agent} renewed its Lease {renewed} times, at most {renewals} were due: {idle:?}"
        );
        assert_eq!(idle.work(), nothing(), "{agent}, idle");
        assert_eq!(
            usage(&figures.rollout, agent).work(),
            nothing(),
            "{agent}, while pods are replaced"
        );
        let (told, replaced) = told(&figures, agent);
        assert!(
            told >= CHANGES * replaced,
            "{agent} was told {told} times of {replaced} pods: the figure is wrong"
        );
        assert!(
            told <= (CHANGES + 1) * replaced,
            "{agent} was told {told} times of {replaced} pods"
        );
        let started = usage(&figures.start, agent);
        assert_eq!(
            started.requests_of("patch egressnodes"),
            1,
            "{agent} says once that its tunnel is built: {started:?}"
        );
    }
    assert!(
        figures.own.values().all(|own| *own < SIZE.rollout / 4),
        "the nodes' own pods are few: {:?}",
        figures.own
    );
    let controller = usage(&figures.rollout, CONTROLLER);
    assert_eq!(
        controller.work(),
        nothing(),
        "the controller, while pods are replaced"
    );
    assert_eq!(
        controller.events.get("pods"),
        None,
        "the controller follows no pods"
    );
    // The policy itself, and its gateway where that one's status changes: not one request for each
    // of the nodes or pods.
    let changed: u64 = usage(&figures.change, CONTROLLER).work().values().sum();
    assert!(
        (1..=6).contains(&changed),
        "{:?}",
        usage(&figures.change, CONTROLLER)
    );
}
