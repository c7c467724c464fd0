//! Nodes that are lost, and come back.

use std::{net::SocketAddr, time::Duration};

use egressgateway_testkit::e2e::{Flows, OUTSIDE, OUTSIDE_NETWORKS, eventually};

use crate::{Run, node_address};

const PATIENCE: Duration = Duration::from_secs(180);
/// The agent's port of metrics and probes.
const METRICS: u16 = 5810;

/// Waits until a node that came back has an agent that is ready. The node's own word counts: for a while, the API server has that of before.
fn wait_for_agent(run: &Run, node: &str) {
    let ready = SocketAddr::from(([127, 0, 0, 1], METRICS));
    let client = run.site.client_on(node);
    eventually(&format!("the agent of {node} is ready"), PATIENCE, || {
        let said = client.get(ready, "/readyz").map_err(|error| error.to_string())?;
        if said.contains("not ready") { Err(said) } else { Ok(()) }
    });
    run.site.wait_for_node(node);
}

pub(crate) fn a_gateway_loses_its_power(run: &Run) {
    let space = run.site.space("power");
    space.gateway(&["node1", "node2"]);
    space.policy(&OUTSIDE_NETWORKS);
    let lost = space.active();
    let next = if lost == "node1" { "node2" } else { "node1" };
    let pods = space.pods(&[("governed-third", "node3", true), ("governed-next", next, true)]);
    let mut flows: Vec<(&str, Flows)> = Vec::new();
    for pod in &pods {
        let place = if pod.node == next { "the gateway that takes over" } else { "a third node" };
        for outside in OUTSIDE {
            space.wait_for_source(pod, outside, node_address(&lost, outside));
            flows.push((place, pod.client.flows(outside)));
        }
    }
    run.site.lose_power(&lost).unwrap();
    let answered: Vec<bool> = flows.iter().map(|(_, flows)| flows.all_answered(PATIENCE)).collect();
    // As long as it takes the controller to see it too: nothing changes any more.
    eventually("the controller has chosen the other node", PATIENCE, || {
        let active = space.active();
        if active == next { Ok(()) } else { Err(active) }
    });
    let still: Vec<bool> = flows.iter().map(|(_, flows)| flows.all_answered(PATIENCE)).collect();
    let mut wrong = Vec::new();
    for (((place, flows), answered), outside) in flows.into_iter().zip(answered.iter().zip(&still)).zip(OUTSIDE.into_iter().cycle()) {
        let measured = flows.finish();
        run.table.add("gateway's power lost", place, if outside.is_ipv4() { "IPv4" } else { "IPv6" }, &measured);
        let allowed = [node_address(&lost, outside), node_address(next, outside)];
        for (flow, kind) in measured.iter().zip(["datagrams", "connection", "new connections"]) {
            let others = flow.sources.keys().any(|source| !allowed.contains(source));
            if answered != (&true, &true) || others || flow.last != Some(allowed[1]) {
                wrong.push(format!("{place}, {outside}, {kind}: answered {answered:?}, {flow:?}"));
            }
        }
    }
    run.site.boot(&lost).unwrap();
    wait_for_agent(run, &lost);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(space.active(), next, "who comes back does not take over");
}

pub(crate) fn a_node_reboots(run: &Run) {
    const NODE: &str = "node3";
    let space = run.site.space("reboot");
    space.gateway(&["node1"]);
    space.policy(&OUTSIDE_NETWORKS);
    let pod = space.governed(NODE);
    for outside in OUTSIDE {
        space.wait_for_source(&pod, outside, node_address("node1", outside));
    }
    run.site.lose_power(NODE).unwrap();
    run.site.boot(NODE).unwrap();
    // The kubelet may start the pod's container before there is an agent, and nothing of the product can help that.
    wait_for_agent(run, NODE);
    let began = run.site.seen().len();
    let again = eventually("the pod is back", PATIENCE, || {
        let again = space.find(&pod.name);
        again.client.ask(OUTSIDE[0]).map(|_| again).map_err(|error| error.to_string())
    });
    for outside in OUTSIDE {
        space.wait_for_source(&again, outside, node_address("node1", outside));
    }
    for seen in &run.site.seen()[began..] {
        assert!(seen.who != pod.name || seen.source == node_address("node1", seen.source), "{seen:?}");
    }
}
