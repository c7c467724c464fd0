//! Changes of the product itself while pods speak.

use std::time::Duration;

use egressgateway_testkit::e2e::{NAMESPACE, NODES, OUTSIDE_NETWORKS, Space, Variant, eventually};

use crate::{
    Run, node_address,
    watch::{Allowed, Watch},
};

const PATIENCE: Duration = Duration::from_secs(120);

/// A gateway of two nodes with flows through it; the one that carries them.
fn begin<'a>(run: &'a Run, space: &Space<'_>) -> (String, Watch<'a>) {
    space.gateway(&["node1", "node2"]);
    space.policy(&OUTSIDE_NETWORKS);
    let active = space.active();
    let watch = Watch::everywhere(run, space, &active);
    (active, watch)
}

/// Ends the flows: all went on to the end, with no other source than the gateway's, and no
/// connection ended.
fn all_went_on(event: &str, active: &str, watch: Watch<'_>) {
    let sources = |outside| vec![node_address(active, outside)];
    watch
        .end(
            event,
            &Allowed {
                sources: &sources,
                ends: 0,
            },
        )
        .unwrap_or_else(|wrong| panic!("{wrong}"));
}

pub(crate) fn agents_are_replaced_under_flows(run: &Run) {
    let space = run.site.space("rollout");
    let (active, watch) = begin(run, &space);
    let target = "daemonset/egressgateway-agent";
    run.site
        .tool(
            "kubectl",
            &["--namespace", NAMESPACE, "rollout", "restart", target],
        )
        .unwrap();
    run.site.rolled_out(target).unwrap();
    all_went_on("all agents are replaced", &active, watch);
}

pub(crate) fn the_backend_is_replaced_under_flows(run: &Run) {
    let (own, other) = backends(run);
    let space = run.site.space("backend");
    let (active, watch) = begin(run, &space);
    for backend in [other, own] {
        choose_backend(run, backend);
    }
    all_went_on(
        "another backend by `helm upgrade`, and back",
        &active,
        watch,
    );
}

/// The backend that policies have here, and the other one.
pub(crate) fn backends(run: &Run) -> (&'static str, &'static str) {
    if run.site.variant() == Variant::Legacy {
        ("netfilter", "nftables")
    } else {
        ("nftables", "netfilter")
    }
}

/// Gives all nodes this backend, and waits until nothing of the other one is left.
pub(crate) fn choose_backend(run: &Run, backend: &str) {
    run.site
        .upgrade_chart(&["--set", &format!("config.policyBackend={backend}")])
        .unwrap();
    for node in NODES {
        eventually(
            &format!("nothing but {backend} is on {node}"),
            PATIENCE,
            || match of_another_backend(run, node, backend)? {
                left if left.is_empty() => Ok(()),
                left => Err(left.join("\n")),
            },
        );
    }
}

/// What is there of the backend that is not this one.
fn of_another_backend(run: &Run, node: &str, backend: &str) -> Result<Vec<String>, String> {
    let (read, ours): (_, fn(&str) -> bool) = if backend == "nftables" {
        // What lets forwarded packets pass is the same with both.
        ("iptables-save; ip6tables-save", |line| {
            line.starts_with(":EGW-") && !line.starts_with(":EGW-TRANSIT")
        })
    } else {
        // A table for what others translate is beside the other backend's rules.
        ("nft list tables", |line| line == "table inet egressgateway")
    };
    Ok(run
        .site
        .on_node(node, read)?
        .lines()
        .filter(|line| ours(line))
        .map(str::to_owned)
        .collect())
}
