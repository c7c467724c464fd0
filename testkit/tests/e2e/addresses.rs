//! Addresses that go from one pod, or from one node, to another.

use std::{net::IpAddr, time::Duration};

use egressgateway_testkit::e2e::{END, NODES, OUTSIDE, OUTSIDE_NETWORKS, Site, eventually};
use serde_json::json;

use crate::{
    Run, node_address,
    watch::{Allowed, Watch},
};

const NODE: &str = "node3";
const PATIENCE: Duration = Duration::from_secs(120);

/// Lets the pod end by itself; its object stays.
fn complete(site: &Site, space: &str, name: &str) {
    site.tool(
        "kubectl",
        &["--namespace", space, "exec", name, "--", "touch", END],
    )
    .unwrap();
    eventually(&format!("{name} is completed"), PATIENCE, || {
        let phase = site.api().get("Pod", space, name)?["status"]["phase"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        if phase == "Succeeded" {
            Ok(())
        } else {
            Err(phase)
        }
    });
}

/// Waits until the plugin that gives addresses has these back, and lets it give them to the next
/// pod: it remembers the last one that it gave.
fn offer_again(site: &Site, given: [IpAddr; 2]) {
    let folder = "/var/lib/cni/networks/pods";
    eventually("the addresses are free", PATIENCE, || {
        let [first, second] = given;
        site.on_node(
            NODE,
            &format!("test ! -e {folder}/{first} -a ! -e {folder}/{second}"),
        )
        .map(|_| ())
    });
    for (range, address) in given.into_iter().enumerate() {
        let before = match address {
            IpAddr::V4(address) => IpAddr::from((u32::from(address) - 1).to_be_bytes()),
            IpAddr::V6(address) => IpAddr::from((u128::from(address) - 1).to_be_bytes()),
        };
        site.on_node(
            NODE,
            &format!("printf {before} >{folder}/last_reserved_ip.{range}"),
        )
        .unwrap();
    }
}

pub(crate) fn an_address_of_a_completed_pod_is_governed_no_more(run: &Run) {
    let space = run.site.space("completed");
    space.gateway(&["node1"]);
    space.policy(&OUTSIDE_NETWORKS);
    let once = space.pod_once("governed-once", NODE);
    for outside in OUTSIDE {
        space.wait_for_source(&once, outside, node_address("node1", outside));
    }
    complete(&run.site, space.name(), &once.name);
    offer_again(&run.site, once.addresses);
    let heir = space.pods(&[("free-heir", NODE, false)]).remove(0);
    assert_eq!(
        heir.addresses, once.addresses,
        "the test needs the same addresses again"
    );
    for outside in OUTSIDE {
        space.wait_for_source(&heir, outside, node_address(NODE, outside));
    }
    let kept = run.site.api().get("Pod", space.name(), &once.name).unwrap();
    assert_eq!(
        kept["status"]["podIP"],
        once.addresses[0].to_string(),
        "the completed pod's object still has the address"
    );
}

/// In the networks of the nodes, and of no node.
const EGRESS: [&str; 2] = ["10.6.0.60", "fd06:0:0:6::60"];

pub(crate) fn an_egress_address_is_moved_under_flows(run: &Run) {
    let space = run.site.space("moved");
    let [first, second] = EGRESS;
    let pool = json!({"ipv4": [first], "ipv6": [second]});
    space.gateway_with(
        &["node1", "node2"],
        &json!({"sourceNAT": "EgressIP", "egressIPs": pool}),
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
    let from = eventually("a node has the address", PATIENCE, holder);
    let to = if from == "node1" { "node2" } else { "node1" };
    let address =
        |outside: IpAddr| -> IpAddr { EGRESS[usize::from(outside.is_ipv6())].parse().unwrap() };
    let mut watch = Watch::beside(run, &space);
    let names: Vec<String> = NODES[1..]
        .iter()
        .map(|node| format!("governed-{node}"))
        .collect();
    let wanted: Vec<_> = names
        .iter()
        .zip(&NODES[1..])
        .map(|(name, node)| (name.as_str(), *node, true))
        .collect();
    for pod in space.pods(&wanted) {
        let place = match pod.node.as_str() {
            node if node == from => "the node that had the address",
            node if node == to => "the node that gets it",
            _ => "a node that is no gateway",
        };
        watch.governed(&space, place, &pod, &address);
    }
    run.site
        .own_tool("egressctl", &["move", first, to])
        .unwrap();
    assert_eq!(holder().unwrap(), to);
    // A connection ends whose server speaks first, or whose port somebody has at the new node; the
    // next one works, and none has another source.
    let sources = |outside| vec![address(outside)];
    watch
        .end(
            "an egress address is moved",
            &Allowed {
                sources: &sources,
                ends: 1,
            },
        )
        .unwrap_or_else(|wrong| panic!("{wrong}"));
}
