//! Daemons come and go; the data path stays.

use std::time::Duration;

use egressgateway_testkit::{
    cluster::{CONTROLLER, agent},
    lab::Flow,
    pace::patient,
};
use nix::sys::signal::Signal;

use crate::world::{CLIENT, DataPath, GATEWAYS, GOVERNED, OTHER, World, policy};

/// How much later a round kills the agent than the one before. Eight rounds reach over the time that an
/// agent takes for a change.
const LATER: Duration = Duration::from_millis(9);
/// The number of first converges of a fresh agent that changed nothing.
const UNCHANGED: &str = "egressgateway_agent_converges_total{first=\"true\",outcome=\"unchanged\"}";

pub(crate) fn first_plan_is_empty(world: &World, node: &str) {
    let unchanged =
        world
            .cluster
            .eventually(&format!("the new agent of {node} converged once"), || {
                let text = world
                    .cluster
                    .metrics(node, 5810)
                    .map_err(|error| error.to_string())?;
                let first = |line: &&str| {
                    line.starts_with("egressgateway_agent_converges_total{first=\"true\"")
                        && !line.ends_with(" 0")
                };
                text.lines().find(first).map(str::to_owned).ok_or(text)
            });
    let said = || {
        format!(
            "{}\n{}",
            world.cluster.metrics(node, 5810).unwrap_or_default(),
            world.cluster.log(&agent(node))
        )
    };
    assert_eq!(unchanged, format!("{UNCHANGED} 1"), "{}", said());
}

fn go_on(flows: &mut [Flow]) {
    for flow in flows {
        flow.echo().unwrap();
    }
}

pub(crate) fn agents_and_controller_killed_at_any_time_change_nothing(path: &DataPath) {
    let mut world = World::governed(path);
    let capture = world.cluster.lab.capture().unwrap();
    let mut flows: Vec<_> = world
        .endpoints(GOVERNED)
        .into_iter()
        .map(|endpoint| world.shop.open_tcp(endpoint).unwrap())
        .collect();
    for node in [CLIENT, GATEWAYS[0]] {
        world.cluster.kill(&agent(node), Signal::SIGKILL);
        go_on(&mut flows);
        world.leaves_by(&world.shop, GOVERNED, GATEWAYS[0]);
        world.cluster.start_agent(node);
        first_plan_is_empty(&world, node);
        go_on(&mut flows);
    }
    world.cluster.kill(CONTROLLER, Signal::SIGKILL);
    world.cluster.start_controller();
    world.cluster.eventually("the new controller leads", || {
        let leading = world.cluster.log(CONTROLLER).matches("\"leading\"").count();
        if leading == 2 {
            Ok(())
        } else {
            Err(format!("{leading} times"))
        }
    });
    go_on(&mut flows);
    world.leaves_by(&world.shop, GOVERNED, GATEWAYS[0]);
    assert_eq!(world.leaks(&capture), [""; 0]);
}

pub(crate) fn an_agent_catches_up_with_what_changed_while_it_was_dead(path: &DataPath) {
    let mut world = World::governed(path);
    let capture = world.cluster.lab.capture().unwrap();
    world.cluster.kill(&agent(CLIENT), Signal::SIGKILL);
    world.cluster.label_node(GATEWAYS[0], "egress", None);
    world.leaves_by(&world.local, GOVERNED, GATEWAYS[1]);
    world.cluster.start_agent(CLIENT);
    world.leaves_by(&world.shop, GOVERNED, GATEWAYS[1]);
    assert_eq!(world.leaks(&capture), [""; 0]);
    world.cluster.kill(&agent(CLIENT), Signal::SIGKILL);
    world.cluster.apply(&policy(
        "  destCIDR: [\"10.6.2.0/24\", \"fd00:6:2::/64\"]\n",
    ));
    world.cluster.start_agent(CLIENT);
    world.leaves_by(&world.shop, OTHER, GATEWAYS[1]);
    world.leaves_by(&world.shop, GOVERNED, CLIENT);
}

pub(crate) fn a_shutdown_leaves_the_data_path_as_it_is(path: &DataPath) {
    let mut world = World::governed(path);
    for node in [CLIENT, GATEWAYS[0]] {
        world.cluster.kill(&agent(node), Signal::SIGTERM);
    }
    world.cluster.kill(CONTROLLER, Signal::SIGTERM);
    world.leaves_by(&world.shop, GOVERNED, GATEWAYS[0]);
    world.leaves_by(&world.local, GOVERNED, GATEWAYS[0]);
    world.leaves_by(&world.blog, GOVERNED, CLIENT);
}

pub(crate) fn an_agent_killed_in_the_middle_of_changes_leaks_nothing_and_ends_up_right(
    path: &DataPath,
) {
    let mut world = World::governed(path);
    let capture = world.cluster.lab.capture().unwrap();
    let wide = |third: usize| {
        policy(&format!(
            "  destCIDR: [\"10.6.1.0/24\", \"fd00:6:1::/64\", \"10.9.{third}.0/24\"]\n"
        ))
    };
    for round in 0..8 {
        // The next state is applied while the agent is between any two of its steps, or has not
        // begun.
        world.cluster.apply(&wide(round));
        world
            .cluster
            .label_node(GATEWAYS[round % 2], "egress", None);
        world
            .cluster
            .label_node(GATEWAYS[(round + 1) % 2], "egress", Some("true"));
        // Time itself is what varies here: nothing is waited for, and no step of the agent can be told from
        // outside. Each round kills it later, and what is checked holds whenever the kill comes.
        std::thread::sleep(patient(LATER * u32::try_from(round).unwrap()));
        world.cluster.kill(&agent(CLIENT), Signal::SIGKILL);
        world.cluster.start_agent(CLIENT);
        world.leaves_by(&world.shop, GOVERNED, GATEWAYS[(round + 1) % 2]);
    }
    assert_eq!(world.leaks(&capture), [""; 0]);
}

/// Prints what a node has of a backend.
fn traces(backend: &str) -> &'static str {
    match backend {
        "nftables" => "nft list tables | grep 'inet egressgateway$' || true",
        "netfilter" => {
            "for p in iptables-nft ip6tables-nft iptables-legacy ip6tables-legacy; do $p-save 2>/dev/null | grep EGW- | head -1; done; ipset list -n | grep egw- || true; nft list tables | grep egressgateway_ || true"
        }
        other => panic!("what does {other} leave behind?"),
    }
}

pub(crate) fn another_backend_takes_over_without_a_gap_and_nothing_of_this_one_stays(
    path: &DataPath,
) {
    let mut world = World::governed(path);
    let capture = world.cluster.lab.capture().unwrap();
    let mut flows: Vec<_> = world
        .endpoints(GOVERNED)
        .into_iter()
        .map(|endpoint| world.shop.open_tcp(endpoint).unwrap())
        .collect();
    let other = if path.backend == "nftables" {
        "netfilter"
    } else {
        "nftables"
    };
    world.cluster.configure(&format!(
        "policyBackend: {other}\ntunnel: {{kind: {}}}\n",
        path.tunnel
    ));
    for node in [CLIENT, GATEWAYS[0]] {
        let has =
            |world: &World, backend| world.cluster.lab.node(node).run(traces(backend)).unwrap();
        assert!(!has(&world, path.backend).is_empty() && has(&world, other).is_empty());
        world.cluster.kill(&agent(node), Signal::SIGKILL);
        world.cluster.start_agent(node);
        world.cluster.eventually(
            &format!("{node} has nothing of {} any more", path.backend),
            || {
                for endpoint in world.endpoints(GOVERNED) {
                    world
                        .shop
                        .connect_udp(endpoint)
                        .map_err(|error| error.to_string())?;
                }
                let left = has(&world, path.backend);
                if left.is_empty() { Ok(()) } else { Err(left) }
            },
        );
        assert!(!has(&world, other).is_empty(), "{node} has {other}");
        go_on(&mut flows);
        world.leaves_by(&world.shop, GOVERNED, GATEWAYS[0]);
        world
            .cluster
            .eventually("the node's condition says which backend", || {
                let conditions = world.cluster.status("EgressNode", node)["conditions"].to_string();
                if conditions.contains(&format!("in {other}"))
                    && conditions.contains("as configured")
                {
                    Ok(())
                } else {
                    Err(conditions)
                }
            });
    }
    assert_eq!(world.leaks(&capture), [""; 0]);
}
