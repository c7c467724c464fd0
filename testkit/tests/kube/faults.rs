//! A control plane that dies, forgets and is slow, while connections run through a gateway.

use std::{net::SocketAddr, thread, time::Duration};

use egressgateway_testkit::{
    cluster::{AGENT_PORT, CONTROLLER_PORT},
    lab::PORT,
    pace::patient,
};
use nix::sys::signal::Signal;

use crate::{
    assets,
    daemons::{Installed, NODES, SERVER},
};

/// How long etcd stands still at a time: longer than a third of a lease, shorter than what makes an
/// API server give up.
const STALL: Duration = Duration::from_secs(2);
/// Lines of a daemon's log about one fault: each of its watches may fail several times until the
/// server is back.
const LINES: usize = 150;

#[test]
fn connections_run_on_while_the_control_plane_dies_forgets_and_is_slow_and_the_daemons_find_back() {
    let Some(assets) = assets() else { return };
    let mut installed = Installed::start(assets);
    installed.govern();
    let to = SERVER.map(|server| SocketAddr::new(server.parse().unwrap(), PORT));
    let mut connections = to.map(|to| installed.shop.open_tcp(to).unwrap());
    let streams = to.map(|to| {
        installed
            .shop
            .stream(to, Duration::from_millis(5))
            .start()
            .unwrap()
    });
    let mut run_on = |what: &str| {
        for connection in &mut connections {
            connection
                .echo()
                .unwrap_or_else(|error| panic!("{what}: {error}"));
        }
    };
    a_server_that_forgot_what_a_watch_has_seen(&mut installed, &mut run_on);
    a_slow_etcd(&installed, &mut run_on);
    for (stream, to) in streams.into_iter().zip(to) {
        let report = stream.finish().unwrap();
        let gateway = installed.kubernetes.lab.node("gateway-1").like(to.ip());
        assert_eq!(
            report.sources.keys().collect::<Vec<_>>(),
            [&gateway],
            "{to}"
        );
        assert_eq!(
            report.lost(),
            0,
            "{to}: of {}, longest gap {:?}",
            report.sent,
            report.longest_gap
        );
        eprintln!(
            "{to}: {} datagrams, none lost, longest gap {:?}",
            report.sent, report.longest_gap
        );
    }
    // What changes from now on arrives.
    installed
        .kubernetes
        .kubectl("label node gateway-1 egress-")
        .unwrap();
    installed.leaves_by("gateway-2");
    nobody_was_restarted_or_flooded_its_log(&installed);
}

/// The server is killed and comes back on its port; an agent that slept meanwhile continues its
/// watches from a past that is gone.
fn a_server_that_forgot_what_a_watch_has_seen(
    installed: &mut Installed,
    run_on: &mut impl FnMut(&str),
) {
    let agent = "agent-client-1";
    installed.daemon(agent).kill(Signal::SIGSTOP).unwrap();
    installed
        .kubernetes
        .kubectl(
            "annotate nodes,egressgateways,egressgatewaypolicies,egressnodes --all asleep=true",
        )
        .unwrap();
    // So that each watch, the last one too, has seen less than what is there.
    installed
        .kubernetes
        .kubectl("annotate namespace default asleep=true")
        .unwrap();
    installed.kubernetes.compact();
    installed.kubernetes.kill_server();
    run_on("without an API server");
    installed.leaves_by("gateway-1");
    installed.kubernetes.start_server();
    run_on("with an API server that is back");
    installed.daemon(agent).kill(Signal::SIGCONT).unwrap();
    installed
        .kubernetes
        .eventually("the agent hears that its past is gone", || {
            let log = installed.log(agent);
            if log.contains("too old resource version") {
                Ok(())
            } else {
                Err(log)
            }
        });
    for (node, port, prefix) in [
        (NODES[0], AGENT_PORT, "agent"),
        (NODES[1], AGENT_PORT, "agent"),
        (NODES[0], CONTROLLER_PORT, "controller"),
    ] {
        for watch in [
            "egressgateways",
            "egressgatewaypolicies",
            "egressnodes",
            "nodes",
        ] {
            let counted =
                format!("egressgateway_{prefix}_watch_restarts_total{{watch=\"{watch}\"}}");
            installed
                .kubernetes
                .eventually(&format!("{counted} at {node} counts"), || {
                    let metrics = installed.metrics(node, port);
                    if metrics.lines().any(|line| line.starts_with(&counted)) {
                        Ok(())
                    } else {
                        Err(metrics)
                    }
                });
        }
    }
    run_on("after the agent found back");
}

fn a_slow_etcd(installed: &Installed, run_on: &mut impl FnMut(&str)) {
    for _ in 0..3 {
        installed.kubernetes.pause_etcd();
        // The time of a fault, not of a wait for something.
        thread::sleep(patient(STALL));
        run_on("while etcd stands still");
        installed.kubernetes.resume_etcd();
        thread::sleep(patient(STALL / 4));
    }
    installed
        .kubernetes
        .eventually("the API server is ready again", || {
            installed.kubernetes.kubectl("get --raw /readyz")
        });
    run_on("after etcd went on");
}

fn nobody_was_restarted_or_flooded_its_log(installed: &Installed) {
    for (name, daemon) in &installed.daemons {
        assert!(
            daemon.status().unwrap().is_none(),
            "{name} ended:\n{}",
            installed.log(name)
        );
        let log = installed.log(name);
        let errors: Vec<&str> = log
            .lines()
            .filter(|line| line.contains("\"level\":\"ERROR\""))
            .collect();
        assert!(errors.is_empty(), "{name}: {errors:#?}");
        let warnings = log
            .lines()
            .filter(|line| line.contains("\"level\":\"WARN\""))
            .count();
        eprintln!("{name}: {warnings} warnings");
        assert!(warnings < LINES, "{name}:\n{log}");
    }
}
