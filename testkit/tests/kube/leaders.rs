//! Of two controllers one leads, and of two agents of a node one works, whatever becomes of the
//! other.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use egressgateway_testkit::{
    kube::API_PORT,
    lab::{MANAGEMENT, Process},
    pace::patient,
    relay::Relay,
};
use k8s_openapi::jiff::Timestamp;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    assets,
    daemons::{Installed, LEASE, NAMESPACE, NODES},
    objects::{changed, settled},
};

const RELAY_PORT: u16 = 6445;
/// Where the second controller on a node counts.
const SECOND_PORT: u16 = 5821;

#[test]
fn a_dead_leader_is_followed_within_its_lease_and_a_late_one_changes_nothing() {
    let Some(assets) = assets() else { return };
    let mut installed = Installed::start(assets);
    installed.govern();
    let at = |port| SocketAddr::from((MANAGEMENT, port));
    let relay = Relay::start(
        &installed.kubernetes.lab.root(),
        at(RELAY_PORT),
        at(API_PORT),
    )
    .unwrap();
    installed.start_controller_by(RELAY_PORT, "controller-b");
    a_killed_leader_is_followed_and_nothing_changes(&mut installed);
    what_a_leader_sends_too_late_is_refused(&mut installed, &relay);
    a_second_agent_ends_and_takes_over_once_the_first_is_gone(&mut installed);
}

fn a_killed_leader_is_followed_and_nothing_changes(installed: &mut Installed) {
    has_looked(installed, "controller-b");
    let before = settled(&installed.kubernetes);
    let killed = Instant::now();
    installed.kill("controller-a", Signal::SIGKILL);
    let renewed = lease_time(installed, "renewTime");
    leads(installed.daemon("controller-b"));
    let took = killed.elapsed();
    let acquired = lease_time(installed, "acquireTime");
    let between = Duration::try_from(acquired.duration_since(renewed)).unwrap();
    eprintln!(
        "a leader killed: the next led {took:?} later, {between:?} after the last renewal; the lease lasts {LEASE:?}"
    );
    assert!(between >= LEASE, "both led: {between:?}");
    // It is told of a renewal at once, so there is nothing to add but the time that requests and
    // logs take.
    assert!(
        took < LEASE + patient(Duration::from_millis(500)),
        "{took:?}"
    );
    installed
        .kubernetes
        .eventually("the new leader has planned", || {
            let metrics = installed.metrics(NODES[0], SECOND_PORT);
            let planned = metrics.lines().find_map(|line| {
                line.strip_prefix("egressgateway_controller_plan_duration_seconds_count ")
            });
            if planned.is_some_and(|count| count != "0") {
                Ok(())
            } else {
                Err(metrics.clone())
            }
        });
    assert_eq!(
        changed(&before, &settled(&installed.kubernetes)),
        Vec::<String>::new()
    );
    assert_eq!(writes(installed, "controller-b", ""), Vec::<String>::new());
}

/// The leader's requests reach the server, but not before another one leads and has changed the
/// same object; and it was stopped meanwhile.
fn what_a_leader_sends_too_late_is_refused(installed: &mut Installed, relay: &Relay) {
    installed.start_controller("another-a");
    has_looked(installed, "another-a");
    // It works, and has as many connections to the server at hand as it will need: a handshake that
    // is held back says nothing of a request.
    installed.node_ready("gateway-1", false);
    installed.active("gateway-2");
    installed.node_ready("gateway-1", true);
    installed.node_ready("gateway-2", false);
    installed.active("gateway-1");
    holds_back_what_the_leader_wants(installed, relay, |relay| {
        relay.requests() + relay.handshakes()
    });
    relay.release();
    installed.ready("gateway-2", true);
    installed.node_ready("gateway-2", false);
    installed.ready("gateway-2", false);
    holds_back_what_the_leader_wants(installed, relay, Relay::requests);
    installed
        .daemon("controller-b")
        .kill(Signal::SIGSTOP)
        .unwrap();
    leads(installed.daemon("another-a"));
    let acquired = lease_time(installed, "acquireTime").to_string();
    // What is true changes further, and the new leader says so.
    installed.node_ready("gateway-1", false);
    installed.active("gateway-2");
    let before = settled(&installed.kubernetes);
    relay.release();
    installed
        .kubernetes
        .eventually("what it sent is refused", || {
            let codes = answers(installed, "controller-b", "egressgateways");
            if codes.contains(&409) {
                Ok(())
            } else {
                Err(format!("{codes:?}"))
            }
        });
    installed
        .daemon("controller-b")
        .kill(Signal::SIGCONT)
        .unwrap();
    installed
        .daemon("controller-b")
        .wait_for_log("no longer leading", patient(LEASE * 2))
        .unwrap();
    assert_eq!(
        changed(&before, &settled(&installed.kubernetes)),
        Vec::<String>::new()
    );
    assert_eq!(
        writes(installed, "controller-b", &acquired),
        Vec::<String>::new()
    );
}

/// Lets gateway-2 be ready, and waits until the leader's writes of that and the renewal of its
/// Lease wait at the relay, as `waiting` counts them.
fn holds_back_what_the_leader_wants(
    installed: &Installed,
    relay: &Relay,
    waiting: impl Fn(&Relay) -> usize,
) {
    let wants = || {
        let log = installed.log("controller-b");
        let wants = log
            .lines()
            .filter(|line| line.contains("plan differs from the cluster; writing"));
        wants
            .map(|line| {
                serde_json::from_str::<Value>(line).unwrap()["writes"]
                    .as_u64()
                    .unwrap()
            })
            .collect::<Vec<_>>()
    };
    let before = wants().len();
    relay.hold();
    installed.node_ready("gateway-2", true);
    installed.kubernetes.eventually(
        "the leader wants to write, and what it sends is held back",
        || {
            let (wants, waiting) = (wants(), waiting(relay));
            let writes: u64 = wants[before..].iter().sum();
            let all = writes > 0 && waiting as u64 > writes;
            if all {
                Ok(())
            } else {
                Err(format!(
                    "{wants:?} {waiting} handshakes: {}",
                    relay.handshakes()
                ))
            }
        },
    );
}

fn a_second_agent_ends_and_takes_over_once_the_first_is_gone(installed: &mut Installed) {
    let (first, second, third) = ("agent-gateway-2", "second-agent", "third-agent");
    let before = settled(&installed.kubernetes);
    installed.daemon(first).kill(Signal::SIGSTOP).unwrap();
    installed.start_agent(second, "gateway-2");
    let ended = installed
        .daemon(second)
        .wait(patient(Duration::from_secs(10)))
        .unwrap();
    let said = installed.log(second);
    assert_eq!(ended.code(), Some(1), "{said}");
    assert!(
        said.contains("another agent of this node may be running") && said.contains("5810"),
        "{said}"
    );
    assert_eq!(
        answers(installed, second, ""),
        Vec::<u64>::new(),
        "it asks nothing of the API server"
    );
    installed.daemon(first).kill(Signal::SIGCONT).unwrap();
    installed.kill(first, Signal::SIGTERM);
    installed.start_agent(third, "gateway-2");
    installed
        .kubernetes
        .eventually("the next agent is ready", || {
            let metrics =
                installed.metrics("gateway-2", egressgateway_testkit::cluster::AGENT_PORT);
            if metrics.contains("egressgateway_agent_tunnel_ready 1") {
                Ok(())
            } else {
                Err(installed.log(third))
            }
        });
    let changed = changed(&before, &settled(&installed.kubernetes));
    for status in [
        "EgressNode gateway-2",
        "EgressGateway exit",
        "EgressGatewayPolicy shopping",
    ] {
        assert!(
            before.contains_key(status) && !changed.iter().any(|name| name == status),
            "{changed:?}"
        );
    }
}

/// Waits until a candidate knows who leads.
fn has_looked(installed: &Installed, controller: &str) {
    installed
        .kubernetes
        .eventually("it has read the leader's Lease", || {
            if answers(installed, controller, "leases").contains(&200) {
                Ok(())
            } else {
                Err(installed.log(controller))
            }
        });
}

fn leads(controller: &Process) {
    controller
        .wait_for_log("\"leading\"", patient(LEASE * 3))
        .unwrap();
}

fn lease_time(installed: &Installed, field: &str) -> Timestamp {
    let lease = installed.kubernetes.get(&format!(
        "lease/egressgateway-controller --namespace {NAMESPACE}"
    ));
    lease["spec"][field]
        .as_str()
        .unwrap_or_else(|| panic!("{lease}"))
        .parse()
        .unwrap()
}

/// What a daemon's pod asked for of a resource (empty: of any), as the API server wrote it down
/// when it had answered.
fn requests(installed: &Installed, pod: &str, resource: &str) -> Vec<Value> {
    let mut requests = installed.kubernetes.audit();
    requests.retain(|request| {
        let own = request["user"]["extra"]["authentication.kubernetes.io/pod-name"][0] == pod;
        own && request["stage"] == "ResponseComplete"
            && (resource.is_empty() || request["objectRef"]["resource"] == resource)
    });
    requests
}

/// How requests that change or read single objects were answered.
fn answers(installed: &Installed, pod: &str, resource: &str) -> Vec<u64> {
    requests(installed, pod, resource)
        .iter()
        .filter_map(|request| request["responseStatus"]["code"].as_u64())
        .collect()
}

/// Writes of our objects, and of Events about them, after a time, that were not refused.
fn writes(installed: &Installed, pod: &str, after: &str) -> Vec<String> {
    let mut requests = requests(installed, pod, "");
    requests.retain(|request| {
        let (verb, group) = (
            request["verb"].as_str().unwrap_or_default(),
            request["objectRef"]["apiGroup"]
                .as_str()
                .unwrap_or_default(),
        );
        let writes = ["create", "update", "patch", "delete"].contains(&verb)
            && ["egressgateway.spidernet.io", "events.k8s.io"].contains(&group);
        let late = request["stageTimestamp"].as_str().unwrap_or_default() > after;
        writes
            && late
            && request["responseStatus"]["code"]
                .as_u64()
                .is_some_and(|code| code < 300)
    });
    requests.iter().map(Value::to_string).collect()
}
