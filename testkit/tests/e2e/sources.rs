//! The chart, and whose address the server outside sees.

use egressgateway_testkit::e2e::{
    NAMESPACE, NODES, OUTSIDE, OUTSIDE_NETWORKS, RELEASE, has_condition,
};

use crate::{Run, node_address};

pub(crate) fn the_chart_is_ready_and_its_own_test_passes(run: &Run) {
    let agents = run
        .site
        .api()
        .list("Pod", NAMESPACE, "app.kubernetes.io/component=agent")
        .unwrap();
    let mut nodes: Vec<&str> = agents
        .iter()
        .filter(|agent| has_condition(agent, "Ready"))
        .filter_map(|agent| agent["spec"]["nodeName"].as_str())
        .collect();
    nodes.sort_unstable();
    assert_eq!(
        nodes, NODES,
        "an agent is Ready on each node, the tainted one too"
    );
    let said = run
        .site
        .tool(
            "helm",
            &["test", RELEASE, "--namespace", NAMESPACE, "--timeout", "3m"],
        )
        .unwrap();
    assert!(said.contains("Succeeded"), "{said}");
}

pub(crate) fn governed_pods_leave_through_the_gateway_and_others_by_themselves(run: &Run) {
    let space = run.site.space("sources");
    space.gateway(&["node1", "node2"]);
    space.policy(&OUTSIDE_NETWORKS);
    let active = space.active();
    let mut wanted = Vec::new();
    for node in &NODES[1..] {
        wanted.push((format!("governed-{node}"), *node, true));
        wanted.push((format!("free-{node}"), *node, false));
    }
    let wanted: Vec<_> = wanted
        .iter()
        .map(|(name, node, governed)| (name.as_str(), *node, *governed))
        .collect();
    let began = run.site.seen().len();
    for pod in space.pods(&wanted) {
        let exit = if pod.name.starts_with("governed") {
            &active
        } else {
            &pod.node
        };
        for outside in OUTSIDE {
            let expected = node_address(exit, outside);
            // The first one may have to wait for the agent to hear of the pod.
            space.wait_for_source(&pod, outside, expected);
            assert_eq!(
                pod.client.ask_udp(outside).unwrap(),
                expected,
                "{}: datagrams",
                pod.name
            );
        }
    }
    // Not one that the server saw had another source, the first ones included.
    for seen in &run.site.seen()[began..] {
        if let Some(node) = seen.who.strip_prefix("governed-") {
            assert_eq!(
                seen.source,
                node_address(&active, seen.source),
                "the governed pod of {node}: {seen:?}"
            );
        }
    }
}
