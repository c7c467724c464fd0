//! What changes while the cluster runs.

use std::time::Duration;

use egressgateway_testkit::{
    lab::{Pod, PodSpec, Response},
    pace::patient,
};

use crate::world::{
    CLIENT, DataPath, GATEWAY, GATEWAYS, GOVERNED, OTHER, World, policy, usual_policy,
};

/// How often a stream sends.
const STEP: Duration = Duration::from_millis(5);

pub(crate) fn pods_that_speak_before_they_are_known_leak_nothing(path: &DataPath) {
    /// How many pods.
    const RACERS: usize = 20;
    let world = World::governed(path);
    let capture = world.cluster.lab.capture().unwrap();
    let mut early = 0;
    for number in 0..RACERS {
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
            std::thread::sleep(Duration::from_millis(30));
            world.cluster.api.put(racer.object()).unwrap();
            for report in speaking.into_iter().map(|thread| thread.join().unwrap()) {
                let gateway = world.cluster.lab.node(GATEWAYS[0]).addresses();
                assert!(
                    report.sources.keys().all(|source| gateway.contains(source)),
                    "{:?}",
                    report.sources
                );
                early += usize::from(report.lost() > 0);
            }
        });
        racer.delete().unwrap();
        world
            .cluster
            .api
            .delete("Pod", "default", &format!("racer-{number}"))
            .unwrap();
    }
    assert!(
        early > RACERS,
        "only {early} streams began before their pod was known"
    );
    assert_eq!(world.leaks(&capture), [""; 0]);
    world.cluster.eventually("what was held is counted", || {
        let held = world.counted("client-2", "drop_start_gate");
        if held > 0.0 {
            Ok(())
        } else {
            Err(world.cluster.metrics("client-2", 5810).unwrap_or_default())
        }
    });
}

pub(crate) fn a_new_pod_is_governed_and_an_address_that_changes_hands_is_not(path: &DataPath) {
    let world = World::governed(path);
    let new = world
        .cluster
        .pod("client-2", PodSpec::new("new").label("app", "shopping"));
    let addresses = new.addresses().to_vec();
    world.leaves_by(&new, GOVERNED, GATEWAYS[0]);
    new.delete().unwrap();
    world.cluster.api.delete("Pod", "default", "new").unwrap();
    let heir = world
        .cluster
        .pod("client-2", PodSpec::new("heir").label("app", "blog"));
    assert_eq!(heir.addresses(), addresses, "the address is used again");
    world.leaves_by(&heir, GOVERNED, "client-2");
}

pub(crate) fn the_label_of_a_namespace_decides(path: &DataPath) {
    let world = World::start(path);
    world.cluster.lab.namespace("team", [("tier", "none")]);
    let pod = world
        .cluster
        .lab
        .pod(
            CLIENT,
            PodSpec::new("member")
                .namespace("team")
                .label("app", "shopping"),
        )
        .unwrap();
    world.cluster.publish();
    world.make_gateway();
    world.cluster.apply(&usual_policy().replace(
        "appliedTo: {",
        "appliedTo: {namespaceSelector: {matchLabels: {tier: gold}}, ",
    ));
    world.leaves_by(&pod, GOVERNED, CLIENT);
    world.cluster.lab.namespace("team", [("tier", "gold")]);
    world.cluster.publish();
    world.leaves_by(&pod, GOVERNED, GATEWAYS[0]);
    world.leaves_by(&world.shop, GOVERNED, CLIENT);
}

pub(crate) fn moving_the_label_moves_the_traffic(path: &DataPath) {
    let world = World::governed(path);
    world.cluster.label_node(GATEWAYS[0], "egress", None);
    world.leaves_by(&world.shop, GOVERNED, GATEWAYS[1]);
    world.leaves_by(&world.local, GOVERNED, GATEWAYS[1]);
    world.cluster.node_ready(GATEWAYS[1], false);
    world
        .cluster
        .label_node(GATEWAYS[0], "egress", Some("true"));
    world.leaves_by(&world.shop, GOVERNED, GATEWAYS[0]);
    world.leaves_by(&world.local, GOVERNED, GATEWAYS[0]);
}

pub(crate) fn what_began_before_a_policy_does_not_go_on_past_it(path: &DataPath) {
    let world = World::start(path);
    world.leaves_by(&world.shop, GOVERNED, CLIENT);
    let open = |pod: &Pod, to| {
        world
            .endpoints(to)
            .into_iter()
            .map(|endpoint| pod.open_tcp(endpoint).unwrap())
            .collect::<Vec<_>>()
    };
    let (mut sessions, local) = (open(&world.shop, GOVERNED), open(&world.local, GOVERNED));
    let (mut others, mut elsewhere) = (open(&world.blog, GOVERNED), open(&world.shop, OTHER));
    let streams: Vec<_> = world
        .endpoints(GOVERNED)
        .into_iter()
        .map(|to| world.shop.stream(to, STEP).start().unwrap())
        .collect();
    world.cluster.apply(GATEWAY);
    world.cluster.apply(&usual_policy());
    for stream in &streams {
        let gateway = |response: &Response| {
            world
                .cluster
                .lab
                .node(GATEWAYS[0])
                .addresses()
                .contains(&response.source.ip())
        };
        stream
            .wait_for(patient(Duration::from_secs(10)), gateway)
            .unwrap();
    }
    world.leaves_by(&world.shop, GOVERNED, GATEWAYS[0]);
    let ended = |node: &str| {
        world
            .cluster
            .metric(node, "egressgateway_agent_connections_ended_total")
            .unwrap_or_default()
    };
    // A session and a stream of each family here; on the gateway the sessions alone.
    let [wanted, there] =
        [2 * sessions.len(), local.len()].map(|number| f64::from(u32::try_from(number).unwrap()));
    world
        .cluster
        .eventually("what began before is ended, and counted", || {
            let (here, at_gateway) = (ended(CLIENT), ended(GATEWAYS[0]));
            if here >= wanted && at_gateway >= there {
                Ok(())
            } else {
                Err(format!("{here} on the client, {at_gateway} on the gateway"))
            }
        });
    for session in others.iter_mut().chain(&mut elsewhere) {
        session.echo().unwrap();
    }
    let capture = world.cluster.lab.capture().unwrap();
    for session in &mut sessions {
        assert!(
            session.echo().is_err(),
            "the session that began with the client's address is reset"
        );
    }
    for stream in streams {
        stream.finish().unwrap();
    }
    assert_eq!(world.leaks(&capture), [""; 0]);
}

pub(crate) fn an_open_connection_goes_on_while_other_policies_come_and_go(path: &DataPath) {
    let world = World::governed(path);
    let mut flows: Vec<_> = world
        .endpoints(GOVERNED)
        .into_iter()
        .map(|endpoint| world.shop.open_tcp(endpoint).unwrap())
        .collect();
    let other = policy("  destCIDR: [\"10.6.2.0/24\", \"fd00:6:2::/64\"]\n")
        .replace("name: shopping", "name: more");
    for _ in 0..3 {
        world.cluster.apply(&other);
        world.leaves_by(&world.shop, OTHER, GATEWAYS[0]);
        world.cluster.delete("EgressGatewayPolicy", "more");
        world.leaves_by(&world.shop, OTHER, CLIENT);
        for flow in &mut flows {
            flow.echo().unwrap();
        }
    }
}

pub(crate) fn a_deleted_policy_lets_go(path: &DataPath) {
    let world = World::governed(path);
    let capture = world.cluster.lab.capture().unwrap();
    let mut flow = world.shop.open_tcp(world.endpoints(GOVERNED)[0]).unwrap();
    world.cluster.delete("EgressGatewayPolicy", "shopping");
    world.leaves_by(&world.shop, GOVERNED, CLIENT);
    // What began under the policy ends as it began: with the gateway's address, or not at all.
    let _ = flow.echo();
    // The capture has caught up once it shows what was sent after it.
    let (blog, server) = (world.blog.v4(), world.endpoints(OTHER)[0]);
    let client = world.cluster.lab.node(CLIENT).like(blog);
    world.blog.connect_tcp(server).unwrap();
    capture
        .wait_for(patient(Duration::from_secs(5)), |packet| {
            packet.is_bare(client, server.ip())
        })
        .unwrap();
    let (pod, server) = (world.shop.v4(), world.endpoints(GOVERNED)[0].ip());
    assert_eq!(
        capture.count(|packet| packet.is_bare(pod, server)),
        0,
        "no bare pod address on the wire"
    );
}
