//! Addresses that go from one pod to another.

use std::{net::IpAddr, time::Duration};

use egressgateway_testkit::e2e::{END, OUTSIDE, OUTSIDE_NETWORKS, Site, eventually};

use crate::{Run, node_address};

const NODE: &str = "node3";
const PATIENCE: Duration = Duration::from_secs(120);

/// Lets the pod end by itself; its object stays.
fn complete(site: &Site, space: &str, name: &str) {
    site.tool("kubectl", &["--namespace", space, "exec", name, "--", "touch", END]).unwrap();
    eventually(&format!("{name} is completed"), PATIENCE, || {
        let phase = site.api().get("Pod", space, name)?["status"]["phase"].as_str().unwrap_or_default().to_owned();
        if phase == "Succeeded" { Ok(()) } else { Err(phase) }
    });
}

/// Waits until the plugin that gives addresses has these back, and lets it give them to the next pod: it remembers the last one that it gave.
fn offer_again(site: &Site, given: [IpAddr; 2]) {
    let folder = "/var/lib/cni/networks/pods";
    eventually("the addresses are free", PATIENCE, || {
        let [first, second] = given;
        site.on_node(NODE, &format!("test ! -e {folder}/{first} -a ! -e {folder}/{second}")).map(|_| ())
    });
    for (range, address) in given.into_iter().enumerate() {
        let before = match address {
            IpAddr::V4(address) => IpAddr::from((u32::from(address) - 1).to_be_bytes()),
            IpAddr::V6(address) => IpAddr::from((u128::from(address) - 1).to_be_bytes()),
        };
        site.on_node(NODE, &format!("printf {before} >{folder}/last_reserved_ip.{range}")).unwrap();
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
    assert_eq!(heir.addresses, once.addresses, "the test needs the same addresses again");
    for outside in OUTSIDE {
        space.wait_for_source(&heir, outside, node_address(NODE, outside));
    }
    let kept = run.site.api().get("Pod", space.name(), &once.name).unwrap();
    assert_eq!(kept["status"]["podIP"], once.addresses[0].to_string(), "the completed pod's object still has the address");
}
