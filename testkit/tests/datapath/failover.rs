//! Gateways go, and traffic goes on.

use std::time::Duration;

use egressgateway_testkit::{
    cluster::agent,
    lab::{Response, Stream},
    pace::patient,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::world::{CLIENT, DataPath, GATEWAY, GATEWAYS, GOVERNED, World, usual_policy};

/// How often a stream sends.
const STEP: Duration = Duration::from_millis(1);

/// Governed, and both gateways have answered probes of the client.
pub(crate) fn probed(world: World) -> World {
    world
        .cluster
        .eventually("the client's probes are answered", || {
            let answered = world
                .cluster
                .metric(CLIENT, "egressgateway_agent_probes_answered_total")
                .unwrap_or_default();
            if answered >= 20.0 {
                Ok(())
            } else {
                Err(format!("{answered} answers"))
            }
        });
    world
}

fn streams(world: &World) -> Vec<Stream> {
    world
        .endpoints(GOVERNED)
        .into_iter()
        .map(|to| world.shop.stream(to, STEP).start().unwrap())
        .collect()
}

/// Waits until every stream is seen with this node's address.
fn moved_to(world: &World, streams: &[Stream], node: &str) {
    for stream in streams {
        let there = |response: &Response| {
            world
                .cluster
                .lab
                .node(node)
                .addresses()
                .contains(&response.source.ip())
        };
        stream
            .wait_for(patient(Duration::from_secs(10)), there)
            .unwrap_or_else(|error| panic!("{error}\n{}", world.cluster.logs()));
    }
}

pub(crate) fn a_gateway_without_power_is_left_at_once_without_the_api_server(path: &DataPath) {
    let mut world = probed(World::governed(path));
    let capture = world.cluster.lab.capture().unwrap();
    world.cluster.api.stop();
    let streams = streams(&world);
    world.cluster.lab.node(GATEWAYS[0]).power_off().unwrap();
    moved_to(&world, &streams, GATEWAYS[1]);
    for stream in streams {
        eprintln!(
            "traffic goes on after {:?}",
            stream.finish().unwrap().longest_gap
        );
    }
    world.leaves_by(&world.shop, GOVERNED, GATEWAYS[1]);
    assert_eq!(world.leaks(&capture), [""; 0]);
    assert_eq!(
        world
            .cluster
            .metric(CLIENT, "egressgateway_agent_gateways_down"),
        Some(1.0)
    );
}

pub(crate) fn gateways_that_nobody_hears_of_carry_traffic_as_long_as_they_answer(path: &DataPath) {
    let world = probed(World::governed(path));
    let capture = world.cluster.lab.capture().unwrap();
    let streams = streams(&world);
    for node in GATEWAYS {
        world.cluster.node_ready(node, false);
    }
    world.cluster.eventually("all nodes are silent", || {
        let status = world.cluster.status("EgressGateway", "exit");
        let silent = |condition: &Value| {
            condition["type"] == "Ready" && condition["reason"] == "AllNodesSilent"
        };
        if status["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .any(silent)
        {
            Ok(())
        } else {
            Err(status.to_string())
        }
    });
    let answered = || {
        world
            .cluster
            .metric(CLIENT, "egressgateway_agent_probes_answered_total")
            .unwrap_or_default()
    };
    let before = answered();
    world
        .cluster
        .eventually("the client goes on to ask the active one", || {
            if answered() >= before + 20.0 {
                Ok(())
            } else {
                Err(format!("{before} {}", answered()))
            }
        });
    for pod in [&world.shop, &world.local] {
        world.leaves_by(pod, GOVERNED, GATEWAYS[0]);
    }
    for stream in streams {
        let report = stream.finish().unwrap();
        let moved = report.responses.iter().find(|response| {
            !world
                .cluster
                .lab
                .node(GATEWAYS[0])
                .addresses()
                .contains(&response.source.ip())
        });
        assert!(moved.is_none(), "{moved:?}");
    }
    for node in GATEWAYS {
        world.cluster.lab.node(node).power_off().unwrap();
    }
    world.is_dropped(&world.shop, GOVERNED);
    assert_eq!(world.leaks(&capture), [""; 0]);
}

pub(crate) fn with_all_gateways_without_power_nothing_leaves_and_one_that_is_back_carries_everything(
    path: &DataPath,
) {
    let world = probed(World::governed(path));
    let capture = world.cluster.lab.capture().unwrap();
    for node in GATEWAYS {
        world.cluster.lab.node(node).power_off().unwrap();
    }
    world.cluster.eventually("no gateway is left", || {
        let down = world
            .cluster
            .metric(CLIENT, "egressgateway_agent_gateways_down");
        if down == Some(2.0) {
            Ok(())
        } else {
            Err(format!("{down:?} are down"))
        }
    });
    world.is_dropped(&world.shop, GOVERNED);
    world.cluster.eventually("the drops are counted", || {
        if world.counted(CLIENT, "drop_no_gateway") >= 1.0 {
            Ok(())
        } else {
            Err(world.cluster.metrics(CLIENT, 5810).unwrap_or_default())
        }
    });
    world.cluster.lab.node(GATEWAYS[1]).power_on().unwrap();
    world.leaves_by(&world.shop, GOVERNED, GATEWAYS[1]);
    assert_eq!(world.leaks(&capture), [""; 0]);
}

pub(crate) fn a_gateways_agent_that_is_killed_or_restarted_is_no_failure(path: &DataPath) {
    let mut world = probed(World::governed(path));
    let streams = streams(&world);
    world.cluster.kill(&agent(GATEWAYS[0]), Signal::SIGKILL);
    // Much longer than a silent node is waited for.
    std::thread::sleep(Duration::from_secs(2));
    world.cluster.start_agent(GATEWAYS[0]);
    world.cluster.eventually("the new agent converged", || {
        let synced = world
            .cluster
            .metric(GATEWAYS[0], "egressgateway_agent_synced");
        if synced == Some(1.0) {
            Ok(())
        } else {
            Err(format!("{synced:?}"))
        }
    });
    for stream in streams {
        let report = stream.finish().unwrap();
        assert_eq!(report.lost(), 0, "of {}", report.sent);
        assert_eq!(report.sources.len(), 1, "{:?}", report.sources);
    }
    assert_eq!(
        world
            .cluster
            .metric(CLIENT, "egressgateway_agent_gateways_lost_total"),
        Some(0.0)
    );
}

pub(crate) fn a_dead_gateway_leaves_the_balance(path: &DataPath) {
    let world = World::start(path);
    world
        .cluster
        .apply(&GATEWAY.replace("spec: {", "spec: {forwardMethod: ecmp, "));
    world.cluster.apply(&usual_policy());
    let seen = |world: &World, endpoint| {
        let seen = world
            .shop
            .connect_many(endpoint, 32)
            .map_err(|error| error.to_string())?;
        Ok::<_, String>(
            seen.iter()
                .map(std::net::SocketAddr::ip)
                .collect::<std::collections::BTreeSet<_>>(),
        )
    };
    let both = |world: &World| {
        for endpoint in world.endpoints(GOVERNED) {
            world.cluster.eventually("both gateways are used", || {
                let seen = seen(world, endpoint)?;
                if seen.len() == 2 {
                    Ok(())
                } else {
                    Err(format!("{seen:?}"))
                }
            });
        }
    };
    both(&world);
    let world = probed(world);
    world.cluster.lab.node(GATEWAYS[0]).power_off().unwrap();
    world.leaves_by(&world.shop, GOVERNED, GATEWAYS[1]);
    let through_the_one_left = |world: &World| {
        for endpoint in world.endpoints(GOVERNED) {
            let left = world.cluster.lab.node(GATEWAYS[1]).like(endpoint.ip());
            let seen = world.shop.connect_from(endpoint, 20_000..20_064).unwrap();
            assert!(seen.iter().all(|seen| seen.ip() == left), "{seen:?}");
        }
    };
    through_the_one_left(&world);
    world.cluster.lab.node(GATEWAYS[0]).power_on().unwrap();
    both(&world);
    through_the_one_left(&world);
}

/// As `egressctl` does it, which has tests of its own.
pub(crate) fn drain(world: &World, node: &str, value: Option<&str>) {
    let patch = json!({"metadata": {"annotations": {"egressgateway.spidernet.io/drain": value}}});
    world.cluster.api.merge("Node", "", node, &patch).unwrap();
}

pub(crate) fn a_drained_gateway_is_left_without_a_leak_and_stands_by_afterwards(path: &DataPath) {
    let world = with_grace(path, "0s");
    let capture = world.cluster.lab.capture().unwrap();
    let mut flows: Vec<_> = world
        .endpoints(GOVERNED)
        .into_iter()
        .map(|to| world.shop.open_tcp(to).unwrap())
        .collect();
    let before = streams(&world);
    drain(&world, GATEWAYS[0], Some("true"));
    moved_to(&world, &before, GATEWAYS[1]);
    for stream in before {
        eprintln!(
            "traffic goes on after {:?}",
            stream.finish().unwrap().longest_gap
        );
    }
    world.leaves_by(&world.shop, GOVERNED, GATEWAYS[1]);
    world.leaves_by(&world.local, GOVERNED, GATEWAYS[1]);
    for flow in &mut flows {
        assert!(
            flow.echo().is_err(),
            "docs/failover.md says that connections through the drained node end where there is no grace time"
        );
    }

    let after = streams(&world);
    moved_to(&world, &after, GATEWAYS[1]);
    let probes = world.cluster.lab.capture().unwrap();
    drain(&world, GATEWAYS[0], None);
    let drained = world.cluster.lab.node(GATEWAYS[0]);
    world.cluster.eventually(
        "the client counts on the node again, and so probes it",
        || {
            let probes = probes.count(|packet| {
                packet.from == CLIENT
                    && packet.inner.is_some()
                    && drained.addresses().contains(&packet.destination)
            });
            if probes > 20 {
                Ok(())
            } else {
                Err(format!("{probes} probes"))
            }
        },
    );
    moved_to(&world, &after, GATEWAYS[1]);
    for stream in after {
        let report = stream.finish().unwrap();
        assert_eq!(
            (report.sources.len(), report.lost()),
            (1, 0),
            "{:?}",
            report.sources
        );
    }
    world.leaves_by(&world.shop, GOVERNED, GATEWAYS[1]);
    assert_eq!(world.leaks(&capture), [""; 0]);
}

/// Governed and probed, with this grace time of drained nodes.
fn with_grace(path: &DataPath, time: &str) -> World {
    probed(
        World::start_with(path, &format!("failover: {{drainGracePeriod: {time}}}\n"))
            .with_usual_policy(),
    )
}

/// Drained, with new connections through the other gateway already, and those from before still
/// through this one.
fn in_grace(world: &World, before: &[Stream]) {
    drain(world, GATEWAYS[0], Some("true"));
    world.leaves_by(&world.shop, GOVERNED, GATEWAYS[1]);
    let drained = world.cluster.lab.node(GATEWAYS[0]).addresses();
    for stream in before {
        let answer = stream
            .wait_for(patient(Duration::from_secs(5)), |_| true)
            .unwrap();
        assert!(
            drained.contains(&answer.source.ip()),
            "moved already: {answer:?}"
        );
    }
}

pub(crate) fn connections_through_a_drained_gateway_go_on_for_the_grace_time_and_are_moved_then(
    path: &DataPath,
) {
    let world = with_grace(path, "15s");
    let capture = world.cluster.lab.capture().unwrap();
    let mut flows: Vec<_> = world
        .endpoints(GOVERNED)
        .into_iter()
        .map(|to| world.shop.open_tcp(to).unwrap())
        .collect();
    let before = streams(&world);
    in_grace(&world, &before);
    for flow in &mut flows {
        flow.echo().unwrap();
    }
    for endpoint in world.endpoints(GOVERNED) {
        let new = world.cluster.lab.node(GATEWAYS[1]).like(endpoint.ip());
        assert_eq!(
            world.shop.connect_tcp(endpoint).unwrap().ip(),
            new,
            "new connections don't go back"
        );
    }
    world.cluster.eventually("the grace time is over", || {
        let status = world.cluster.status("EgressGateway", "exit");
        if status["draining"].is_null() {
            Ok(())
        } else {
            Err(status.to_string())
        }
    });
    moved_to(&world, &before, GATEWAYS[1]);
    for flow in &mut flows {
        assert!(flow.echo().is_err(), "the time is over");
    }
    for stream in before {
        let report = stream.finish().unwrap();
        eprintln!(
            "{:?}, longest gap {:?}, {} lost",
            report.sources,
            report.longest_gap,
            report.lost()
        );
    }
    world.leaves_by(&world.shop, GOVERNED, GATEWAYS[1]);
    world.leaves_by(&world.local, GOVERNED, GATEWAYS[1]);
    assert_eq!(world.leaks(&capture), [""; 0]);
}

pub(crate) fn a_drained_gateway_that_dies_in_its_grace_time_is_left_at_once(path: &DataPath) {
    let world = with_grace(path, "1h");
    let capture = world.cluster.lab.capture().unwrap();
    let before = streams(&world);
    in_grace(&world, &before);
    world.cluster.lab.node(GATEWAYS[0]).power_off().unwrap();
    moved_to(&world, &before, GATEWAYS[1]);
    for stream in before {
        eprintln!(
            "traffic goes on after {:?}",
            stream.finish().unwrap().longest_gap
        );
    }
    assert_eq!(world.leaks(&capture), [""; 0]);
}
