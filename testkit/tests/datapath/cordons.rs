//! Nodes are cordoned, and gateways prefer others as long as there are any.

use egressgateway_testkit::lab::Families;
use serde_json::{Value, json};

use crate::{
    address_holders::{gateway, is_given, owned_by, seen_as_given, wait_given},
    world::{DataPath, GATEWAYS, GOVERNED, Place, World, lab, usual_policy},
};

fn cordon(world: &World, node: &str, cordoned: bool) {
    world
        .cluster
        .api
        .merge(
            "Node",
            "",
            node,
            &json!({"spec": {"unschedulable": cordoned}}),
        )
        .unwrap();
}

/// Waits for the reason of the gateway's condition Ready.
fn says(world: &World, reason: &str) {
    world
        .cluster
        .eventually(&format!("the gateway says {reason}"), || {
            let conditions = world.cluster.status("EgressGateway", "exit")["conditions"].take();
            let ready = |condition: &Value| {
                condition["type"] == "Ready"
                    && condition["status"] == "True"
                    && condition["reason"] == reason
            };
            if conditions.as_array().into_iter().flatten().any(ready) {
                Ok(())
            } else {
                Err(conditions.to_string())
            }
        });
}

pub(crate) fn with_every_gateway_cordoned_traffic_goes_on(path: &DataPath) {
    let world = Place::make(lab(), Families::Dual)
        .with_configured_daemons(path, "failover: {drainGracePeriod: 1s}\n")
        .with_usual_policy();
    let capture = world.cluster.lab.capture().unwrap();
    cordon(&world, GATEWAYS[0], true);
    world.leaves_by(&world.shop, GOVERNED, GATEWAYS[1]);
    says(&world, "Ready");
    cordon(&world, GATEWAYS[1], true);
    says(&world, "OnlyCordonedNodes");
    for pod in [&world.shop, &world.local] {
        world.leaves_by(pod, GOVERNED, GATEWAYS[1]);
    }
    cordon(&world, GATEWAYS[0], false);
    says(&world, "Ready");
    for pod in [&world.shop, &world.local] {
        world.leaves_by(pod, GOVERNED, GATEWAYS[0]);
    }
    assert_eq!(world.leaks(&capture), [""; 0]);
}

pub(crate) fn egress_addresses_leave_a_cordoned_node_and_stay_where_all_are_cordoned(
    path: &DataPath,
) {
    let world = World::start(path);
    world.cluster.apply(&gateway(7));
    world.cluster.apply(&usual_policy());
    let before = wait_given(&world, "shopping");
    seen_as_given(&world, &world.shop, before.addresses);
    let other = GATEWAYS
        .into_iter()
        .find(|node| *node != before.node)
        .unwrap();
    let capture = world.cluster.lab.capture().unwrap();
    cordon(&world, &before.node, true);
    owned_by(&world, before.addresses, other);
    seen_as_given(&world, &world.shop, before.addresses);
    cordon(&world, other, true);
    says(&world, "OnlyCordonedNodes");
    is_given(&world, other, before.addresses);
    seen_as_given(&world, &world.shop, before.addresses);
    assert_eq!(world.leaks_besides(&capture, &before.addresses), [""; 0]);
}
