//! Nodes that are lost, and come back.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use egressgateway_testkit::e2e::{OUTSIDE, OUTSIDE_NETWORKS, eventually};
use serde_json::json;

use crate::{
    Run, node_address,
    watch::{Allowed, Watch},
};

const PATIENCE: Duration = Duration::from_secs(180);
/// The agent's port of metrics and probes.
const METRICS: u16 = 5810;

/// Waits until a node that came back has an agent that is ready. The node's own word counts: for a
/// while, the API server has that of before.
fn wait_for_agent(run: &Run, node: &str) {
    let ready = SocketAddr::from(([127, 0, 0, 1], METRICS));
    let client = run.site.client_on(node);
    eventually(&format!("the agent of {node} is ready"), PATIENCE, || {
        let said = client
            .get(ready, "/readyz")
            .map_err(|error| error.to_string())?;
        if said.contains("not ready") {
            Err(said)
        } else {
            Ok(())
        }
    });
    run.site.wait_for_node(node);
}

pub(crate) fn a_gateway_loses_its_power(run: &Run) {
    let space = run.site.space("power");
    space.gateway(&["node1", "node2"]);
    space.policy(&OUTSIDE_NETWORKS);
    let lost = space.active();
    let next = if lost == "node1" { "node2" } else { "node1" };
    let watch = |source: &str| {
        let mut watch = Watch::beside(run, &space);
        let pods = space.pods(&[
            ("governed-third", "node3", true),
            ("governed-next", next, true),
        ]);
        for (pod, place) in pods
            .iter()
            .zip(["a node that is no gateway", "the other gateway"])
        {
            watch.governed(&space, place, pod, &|outside| node_address(source, outside));
        }
        watch
    };
    let before = watch(&lost);
    run.site.lose_power(&lost).unwrap();
    let went_on = before.goes_on();
    // As long as it takes the controller to see it too: nothing changes any more.
    eventually("the controller has chosen the other node", PATIENCE, || {
        let active = space.active();
        if active == next { Ok(()) } else { Err(active) }
    });
    let sources = |outside| vec![node_address(&lost, outside), node_address(next, outside)];
    let taken_over = before.end(
        "the gateway's node loses its power",
        &Allowed {
            sources: &sources,
            ends: usize::MAX,
        },
    );

    let after = watch(next);
    run.site.boot(&lost).unwrap();
    wait_for_agent(run, &lost);
    let sources = |outside| vec![node_address(next, outside)];
    let stayed = after.end(
        "that node boots again",
        &Allowed {
            sources: &sources,
            ends: 0,
        },
    );
    for result in [went_on, taken_over.map(drop), stayed.map(drop)] {
        result.unwrap_or_else(|wrong| panic!("{wrong}"));
    }
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
    // The kubelet may start the pod's container before there is an agent, and nothing of the
    // product can help that.
    wait_for_agent(run, NODE);
    let began = run.site.seen().len();
    let again = eventually("the pod is back", PATIENCE, || {
        let again = space.find(&pod.name);
        again
            .client
            .ask(OUTSIDE[0])
            .map(|_| again)
            .map_err(|error| error.to_string())
    });
    for outside in OUTSIDE {
        space.wait_for_source(&again, outside, node_address("node1", outside));
    }
    for seen in &run.site.seen()[began..] {
        assert!(
            seen.who != pod.name || seen.source == node_address("node1", seen.source),
            "{seen:?}"
        );
    }
}

/// In the networks of the nodes, and of no node.
const EGRESS: [&str; 2] = ["10.6.0.61", "fd06:0:0:6::61"];

pub(crate) fn gateways_reboot_one_after_the_other_and_no_connection_ends(run: &Run) {
    let space = run.site.space("rolling");
    let [first, second] = EGRESS;
    space.gateway_with(
        &["node1", "node2"],
        &json!({
            "sourceNAT": "EgressIP", "egressIPs": {"ipv4": [first], "ipv6": [second]},
            "nat": "Distributed", "portsPerNode": 4096,
        }),
    );
    space.policy(&OUTSIDE_NETWORKS);
    let holder = || {
        let status = run
            .site
            .api()
            .get("EgressGatewayPolicy", "", space.name())?["status"]
            .clone();
        status["node"]
            .as_str()
            .map(str::to_owned)
            .ok_or_else(|| status.to_string())
    };
    let mut lost = eventually("a node has the address", PATIENCE, holder);
    let address =
        |outside: IpAddr| -> IpAddr { EGRESS[usize::from(outside.is_ipv6())].parse().unwrap() };
    let mut watch = Watch::beside(run, &space);
    for pod in space.pods(&[("governed-third", "node3", true)]) {
        watch.governed(&space, "a node that is no gateway", &pod, &address);
    }
    for _ in 0..2 {
        let next = if lost == "node1" { "node2" } else { "node1" };
        run.site.lose_power(&lost).unwrap();
        eventually("the other node has the address", PATIENCE, || {
            holder().and_then(|node| if node == next { Ok(()) } else { Err(node) })
        });
        watch.goes_on().unwrap_or_else(|silent| panic!("{silent}"));
        run.site.boot(&lost).unwrap();
        wait_for_agent(run, &lost);
        next.clone_into(&mut lost);
    }
    let sources = |outside| vec![address(outside)];
    watch
        .end(
            "both gateways reboot, one after the other",
            &Allowed {
                sources: &sources,
                ends: 0,
            },
        )
        .unwrap_or_else(|wrong| panic!("{wrong}"));
}
