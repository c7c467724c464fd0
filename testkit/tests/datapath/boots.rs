//! A node boots: nothing of ours is in its kernel, and the API server may be away.

use std::time::{Duration, Instant};

use egressgateway_testkit::{cluster::agent, pace::patient};
use nix::sys::signal::Signal;

use crate::world::{CLIENT, DataPath, EXCEPTED, GATEWAYS, GOVERNED, OTHER, World};

/// How often a governed connection is tried.
const STEP: Duration = Duration::from_millis(5);

const HOLDING: &str = "egressgateway_agent_holding";

/// As after a boot, before anything was started: what the agent keeps in a file is all that is left
/// of it.
fn boot(world: &mut World, node: &str) {
    let kept = world
        .cluster
        .eventually("what is governed is remembered", || {
            let text = std::fs::read_to_string(world.cluster.state_file(node))
                .map_err(|error| error.to_string())?;
            if text.contains("10.6.1.") {
                Ok(text)
            } else {
                Err(text)
            }
        });
    world.cluster.kill(&agent(node), Signal::SIGKILL);
    world.cluster.cleanup(node);
    std::fs::write(world.cluster.state_file(node), kept).unwrap();
    let left = world
        .cluster
        .lab
        .node(node)
        .run("nft list tables; ip -o link show; ip rule show; ip -6 rule show")
        .unwrap();
    assert!(
        !left.contains("egress") && !left.contains("fwmark"),
        "{left}"
    );
}

fn configure(world: &World, path: &DataPath, more: &str) {
    world.cluster.configure(&format!(
        "policyBackend: {}\ntunnel: {{kind: {}}}\n{more}",
        path.backend, path.tunnel
    ));
}

fn holds(world: &World, wanted: f64) {
    world
        .cluster
        .eventually("the agent says whether it holds", || {
            let holding = world.cluster.metric(CLIENT, HOLDING);
            if holding == Some(wanted) {
                Ok(())
            } else {
                Err(format!("{holding:?}"))
            }
        });
}

pub(crate) fn after_a_boot_what_was_governed_waits_until_the_api_server_is_back(path: &DataPath) {
    let mut world = World::governed(path);
    boot(&mut world, CLIENT);
    world.cluster.api.stop();
    world.leaves_by(&world.shop, GOVERNED, CLIENT);
    let mut early: Vec<_> = world
        .endpoints(GOVERNED)
        .into_iter()
        .map(|to| world.shop.open_tcp(to).unwrap())
        .collect();
    world.cluster.start_agent(CLIENT);
    holds(&world, 1.0);
    let capture = world.cluster.lab.capture().unwrap();
    // However often the agent starts in this time.
    for _ in 0..2 {
        for pod in [&world.shop, &world.blog] {
            world.is_dropped(pod, GOVERNED);
        }
        world.leaves_by(&world.shop, OTHER, CLIENT);
        world.leaves_by(&world.shop, EXCEPTED, CLIENT);
        world.cluster.kill(&agent(CLIENT), Signal::SIGKILL);
        world.cluster.start_agent(CLIENT);
        holds(&world, 1.0);
    }
    for flow in &mut early {
        assert!(
            flow.echo().is_err(),
            "a session that began before the agent did is reset"
        );
    }
    world.cluster.eventually("what waits is counted", || {
        if world.counted(CLIENT, "drop_start_gate") > 0.0 {
            Ok(())
        } else {
            Err(world.cluster.metrics(CLIENT, 5810).unwrap_or_default())
        }
    });
    let back = Instant::now();
    std::thread::scope(|scope| {
        // A stream gives up where nothing answers for a while, as here.
        let stubborn = |to| loop {
            match world.shop.stream(to, STEP).fresh_ports().start() {
                Err(error) if back.elapsed() > patient(Duration::from_secs(60)) => {
                    panic!("{error}")
                }
                Err(_) => {}
                Ok(stream) => return stream.finish().unwrap(),
            }
        };
        let tries: Vec<_> = world
            .endpoints(GOVERNED)
            .into_iter()
            .map(|to| scope.spawn(move || stubborn(to)))
            .collect();
        world
            .cluster
            .lab
            .root()
            .enter(|| world.cluster.api.resume_listening())
            .unwrap();
        let gateway = world.cluster.lab.node(GATEWAYS[0]).addresses();
        for report in tries.into_iter().map(|thread| thread.join().unwrap()) {
            assert!(
                report.sources.keys().all(|source| gateway.contains(source)),
                "{:?}",
                report.sources
            );
        }
    });
    eprintln!(
        "traffic goes on {:?} after the API server is back",
        back.elapsed()
    );
    assert_eq!(world.leaks(&capture), [""; 0]);
    world.leaves_by(&world.shop, GOVERNED, GATEWAYS[0]);
    world.leaves_by(&world.blog, GOVERNED, CLIENT);
    holds(&world, 0.0);
}

pub(crate) fn where_nothing_is_to_wait_after_a_boot_it_leaves_as_if_there_were_no_policy(
    path: &DataPath,
) {
    let mut world = World::governed(path);
    boot(&mut world, CLIENT);
    world.cluster.api.stop();
    configure(&world, path, "holdAtBoot: false\n");
    world.cluster.start_agent(CLIENT);
    world.cluster.eventually("the agent has started", || {
        let interrupted = world
            .cluster
            .log(&agent(CLIENT))
            .matches("watch failed; starting again")
            .count();
        if interrupted > 0 {
            Ok(())
        } else {
            Err("no watch failed yet".to_owned())
        }
    });
    world.leaves_by(&world.shop, GOVERNED, CLIENT);
    configure(&world, path, "holdAtBoot: true\n");
    world.is_dropped(&world.shop, GOVERNED);
    configure(&world, path, "holdAtBoot: false\n");
    world.leaves_by(&world.shop, GOVERNED, CLIENT);
    std::fs::write(world.cluster.state_file(CLIENT), "{").unwrap();
    world.cluster.kill(&agent(CLIENT), Signal::SIGKILL);
    configure(&world, path, "holdAtBoot: true\n");
    world.cluster.start_agent(CLIENT);
    world.cluster.eventually("a damaged file is told", || {
        let log = world.cluster.log(&agent(CLIENT));
        if log.contains("it is damaged") && log.contains("cannot read state file") {
            Ok(())
        } else {
            Err("not told".to_owned())
        }
    });
    world.leaves_by(&world.shop, GOVERNED, CLIENT);
    let root = world.cluster.lab.root();
    root.enter(|| world.cluster.api.resume_listening()).unwrap();
    world.leaves_by(&world.shop, GOVERNED, GATEWAYS[0]);
}
