//! Changes of the product itself while pods speak.

use std::time::Duration;

use egressgateway_testkit::e2e::{Flows, NAMESPACE, NODES, OUTSIDE, OUTSIDE_NETWORKS, Space, Variant, eventually};

use crate::{Run, node_address};

const PATIENCE: Duration = Duration::from_secs(120);

/// Flows of governed pods on the active gateway, on the other one and on a third node, of both families.
fn flows(space: &Space<'_>, active: &str) -> Vec<(String, Flows)> {
    let wanted: Vec<String> = NODES[1..].iter().map(|node| format!("governed-{node}")).collect();
    let wanted: Vec<_> = wanted.iter().zip(&NODES[1..]).map(|(name, node)| (name.as_str(), *node, true)).collect();
    let pods = space.pods(&wanted);
    let mut flows = Vec::new();
    for pod in pods {
        for outside in OUTSIDE {
            space.wait_for_source(&pod, outside, node_address(active, outside));
            let place = if pod.node == active { "the gateway itself".to_owned() } else { format!("{}, not the gateway", pod.node) };
            flows.push((place, pod.client.flows(outside)));
        }
    }
    flows
}

/// Ends the flows: all went on to the end, with no other source than the gateway's, and no connection ended.
fn all_went_on(run: &Run, event: &str, active: &str, flows: Vec<(String, Flows)>) {
    // What is slow is not what is broken.
    let answered: Vec<bool> = flows.iter().map(|(_, flows)| flows.all_answered(PATIENCE)).collect();
    let mut wrong = Vec::new();
    for (((place, flows), answered), outside) in flows.into_iter().zip(answered).zip(OUTSIDE.into_iter().cycle()) {
        let measured = flows.finish();
        run.table.add(event, &place, if outside.is_ipv4() { "IPv4" } else { "IPv6" }, &measured);
        let expected = node_address(active, outside);
        for (flow, kind) in measured.iter().zip(["datagrams", "connection", "new connections"]) {
            let others: Vec<_> = flow.sources.keys().filter(|source| **source != expected).collect();
            if !answered || flow.ended > 0 || !others.is_empty() {
                wrong.push(format!(
                    "{place}, {outside}, {kind}: answered {answered}, sources {:?}, ended {} {:?}",
                    flow.sources, flow.ended, flow.error
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{event}:\n{}", wrong.join("\n"));
}

pub(crate) fn agents_are_replaced_under_flows(run: &Run) {
    let space = run.site.space("rollout");
    space.gateway(&["node1", "node2"]);
    space.policy(&OUTSIDE_NETWORKS);
    let active = space.active();
    let flows = flows(&space, &active);
    let target = "daemonset/egressgateway-agent";
    run.site.tool("kubectl", &["--namespace", NAMESPACE, "rollout", "restart", target]).unwrap();
    run.site.rolled_out(target).unwrap();
    all_went_on(run, "agents replaced", &active, flows);
}

pub(crate) fn the_backend_is_replaced_under_flows(run: &Run) {
    let (own, other) = if run.site.variant() == Variant::Legacy { ("netfilter", "nftables") } else { ("nftables", "netfilter") };
    let space = run.site.space("backend");
    space.gateway(&["node1", "node2"]);
    space.policy(&OUTSIDE_NETWORKS);
    let active = space.active();
    let flows = flows(&space, &active);
    for backend in [other, own] {
        run.site.upgrade_chart(&["--set", &format!("config.policyBackend={backend}")]).unwrap();
        for node in NODES {
            eventually(&format!("nothing but {backend} is on {node}"), PATIENCE, || match of_another_backend(run, node, backend)? {
                left if left.is_empty() => Ok(()),
                left => Err(left.join("\n")),
            });
        }
    }
    all_went_on(run, "backend replaced, and again", &active, flows);
}

/// What is there of the backend that is not this one.
fn of_another_backend(run: &Run, node: &str, backend: &str) -> Result<Vec<String>, String> {
    let (read, ours): (_, fn(&str) -> bool) = if backend == "nftables" {
        // What lets forwarded packets pass is the same with both.
        ("iptables-save; ip6tables-save", |line| line.starts_with(":EGW-") && !line.starts_with(":EGW-TRANSIT"))
    } else {
        // A table for what others translate is beside the other backend's rules.
        ("nft list tables", |line| line == "table inet egressgateway")
    };
    Ok(run.site.on_node(node, read)?.lines().filter(|line| ours(line)).map(str::to_owned).collect())
}
