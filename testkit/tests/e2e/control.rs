//! The control plane's absence.

use std::{net::SocketAddr, thread, time::Duration};

use egressgateway_testkit::e2e::{NODES, OUTSIDE, OUTSIDE_NETWORKS, Site, eventually};
use nix::sys::signal::Signal;

use crate::{Run, node_address};

/// Longer than an agent's Lease and than what Kubernetes gives a kubelet.
const AWAY: Duration = Duration::from_secs(60);
/// How long after its return somebody may still draw conclusions: those that were seen came within 70 seconds.
const AFTERMATH: Duration = Duration::from_secs(75);
const PATIENCE: Duration = Duration::from_secs(60);
/// Longer than an agent takes until it reads the counters of the packet filter again.
const COUNTED: Duration = Duration::from_secs(20);

/// How many packets a node's agent has counted that had no way out.
fn dropped(site: &Site, node: &str) -> u64 {
    let metrics = SocketAddr::from(([127, 0, 0, 1], 5810));
    let client = site.client_on(node);
    eventually(&format!("the metrics of {node}"), PATIENCE, || {
        let page = client.get(metrics, "/metrics").map_err(|error| error.to_string())?;
        let line =
            page.lines().find(|line| line.starts_with("egressgateway_agent_packets_total") && line.contains("rule=\"drop_no_gateway\""));
        let value = line.and_then(|line| line.split_whitespace().last()).ok_or_else(|| format!("no counter: {page}"))?;
        value.parse().map_err(|error| format!("{value}: {error}"))
    })
}

pub(crate) fn the_api_server_is_away(run: &Run) {
    let space = run.site.space("absence");
    space.gateway(&["node1", "node2"]);
    space.policy(&OUTSIDE_NETWORKS);
    let active = space.active();
    let wanted: Vec<String> = NODES[1..].iter().map(|node| format!("governed-{node}")).collect();
    let wanted: Vec<_> = wanted.iter().zip(&NODES[1..]).map(|(name, node)| (name.as_str(), *node, true)).collect();
    let mut flows = Vec::new();
    for pod in space.pods(&wanted) {
        for outside in OUTSIDE {
            space.wait_for_source(&pod, outside, node_address(&active, outside));
            flows.push((pod.node.clone(), pod.client.flows(outside)));
        }
    }
    run.site.stop_service(NODES[0], "kube-apiserver", Signal::SIGKILL);
    // What was dropped before is counted by then.
    thread::sleep(COUNTED);
    let before = NODES.map(|node| dropped(&run.site, node));
    thread::sleep(AWAY.saturating_sub(COUNTED));
    run.site.start_service(NODES[0], "kube-apiserver");
    thread::sleep(AFTERMATH);
    let answered: Vec<bool> = flows.iter().map(|(_, flows)| flows.all_answered(PATIENCE)).collect();
    let after = NODES.map(|node| dropped(&run.site, node));
    let mut wrong = Vec::new();
    for (((node, flows), answered), outside) in flows.into_iter().zip(answered).zip(OUTSIDE.into_iter().cycle()) {
        let measured = flows.finish();
        run.table.add("API server away for 60 s", &node, if outside.is_ipv4() { "IPv4" } else { "IPv6" }, &measured);
        let expected = node_address(&active, outside);
        for flow in &measured {
            // A connection that ends or does not begin is what a gap of seconds looks like, on a machine of any speed.
            if !answered || flow.ended > 0 || flow.sources.keys().any(|source| *source != expected) {
                wrong.push(format!("{node}, {outside}: answered {answered}, {flow:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // A gap of any length would be packets that had no way.
    assert_eq!(after, before, "packets that were dropped because no gateway was there, by node");
}
