//! Nodes that say nothing of their pods' networks, as with CNIs that manage addresses themselves.

use std::time::Duration;

use egressgateway_testkit::lab::{Families, PodSpec, ServiceSpec};
use serde_json::json;

use crate::world::{CLIENT, DataPath, GATEWAYS, GOVERNED, Place, World, lab, policy};

/// A cluster whose Nodes have no `podCIDRs`, with these further lines in the configuration.
fn untold(path: &DataPath, more: &str) -> World {
    let world = Place::make(lab(), Families::Dual).without_daemons(path, more);
    forget(&world);
    world.start_daemons()
}

fn forget(world: &World) {
    for node in world.cluster.lab.nodes() {
        let nothing = json!({"spec": {"podCIDR": null, "podCIDRs": null}});
        world
            .cluster
            .api
            .merge("Node", "", node.name(), &nothing)
            .unwrap();
    }
}

fn says_that_networks_are_unknown(world: &World, node: &str) -> bool {
    let status = world.cluster.status("EgressNode", node);
    status["conditions"].as_array().is_some_and(|all| {
        all.iter()
            .any(|condition| condition["type"] == "PodNetworksUnknown")
    })
}

fn early_pods_leak_nothing(path: &DataPath, more: &str) {
    let world = untold(path, more).with_usual_policy();
    let capture = world.cluster.lab.capture().unwrap();
    for number in 0..5 {
        let racer = world
            .cluster
            .lab
            .pod(
                "client-2",
                PodSpec::new(format!("racer-{number}")).label("app", "shopping"),
            )
            .unwrap();
        std::thread::scope(|scope| {
            let speak = |to| {
                racer
                    .stream(to, Duration::from_millis(1))
                    .fresh_ports()
                    .start()
                    .unwrap()
                    .finish()
                    .unwrap()
            };
            let speaking: Vec<_> = world
                .endpoints(GOVERNED)
                .into_iter()
                .map(|to| scope.spawn(move || speak(to)))
                .collect();
            // Some of it is under way before anybody has heard of the pod.
            std::thread::sleep(Duration::from_millis(30));
            world.cluster.api.put(racer.object()).unwrap();
            for thread in speaking {
                thread.join().unwrap();
            }
        });
        world.leaves_by(&racer, GOVERNED, GATEWAYS[0]);
        racer.delete().unwrap();
        world
            .cluster
            .api
            .delete("Pod", "default", &format!("racer-{number}"))
            .unwrap();
    }
    assert_eq!(world.leaks(&capture), [""; 0]);
    world
        .cluster
        .eventually("the start gate held what came first", || {
            let held = world.counted("client-2", "drop_start_gate");
            if held > 0.0 {
                Ok(())
            } else {
                Err(format!("{held} packets"))
            }
        });
    // Who is known and has no policy is let go.
    world.leaves_by(&world.blog, GOVERNED, CLIENT);
    assert_eq!(
        says_that_networks_are_unknown(&world, "client-2"),
        more.is_empty()
    );
}

pub(crate) fn pods_that_speak_before_they_are_known_leak_nothing_where_nobody_tells_their_networks(
    path: &DataPath,
) {
    early_pods_leak_nothing(path, "");
}

pub(crate) fn pods_that_speak_before_they_are_known_leak_nothing_where_the_configuration_tells_networks(
    path: &DataPath,
) {
    early_pods_leak_nothing(
        path,
        "clusterCIDRs: {extra: [10.244.0.0/16, 'fd10::/16', 10.96.0.0/16, 'fd96::/112']}\n",
    );
}

pub(crate) fn pods_and_services_are_reached_as_the_pod_itself_where_nobody_tells_their_networks(
    path: &DataPath,
) {
    let world = untold(path, "");
    let far = world.cluster.pod("client-2", "far");
    let service = world
        .cluster
        .lab
        .service(ServiceSpec::new("web", 80), &[&far])
        .unwrap();
    world.cluster.publish();
    forget(&world);
    world.make_gateway();
    world.cluster.apply(&policy(""));
    world.leaves_by(&world.shop, GOVERNED, GATEWAYS[0]);
    for (own, (pod, service)) in world.shop.addresses().iter().zip(
        far.endpoints()
            .into_iter()
            .zip(service.addresses().to_vec()),
    ) {
        for to in [pod, service] {
            let seen = world
                .shop
                .connect_tcp(to)
                .unwrap_or_else(|error| panic!("{to}: {error}\n{}", world.cluster.logs()));
            assert_eq!(seen.ip(), *own, "{to}");
        }
    }
    // A pod that comes later is known as soon as it is told of.
    let late = world.cluster.pod("client-2", "late");
    for (own, to) in world.shop.addresses().iter().zip(late.endpoints()) {
        world.seen_as(&world.shop, to, *own);
    }
    assert!(says_that_networks_are_unknown(&world, CLIENT));
}
