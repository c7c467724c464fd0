//! The control plane's absence.

use std::{fmt::Write as _, net::SocketAddr, thread, time::Duration};

use egressgateway_testkit::e2e::{NAMESPACE, NODES, OUTSIDE_NETWORKS, Site, Space, eventually};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::{
    Run, node_address,
    watch::{Allowed, Measurement, Watch},
};

/// How long after its return somebody may still draw conclusions: those that were seen came within
/// 70 seconds.
const AFTERMATH: Duration = Duration::from_secs(75);
const PATIENCE: Duration = Duration::from_secs(120);
/// Longer than an agent takes until it reads the counters of the packet filter again.
const COUNTED: Duration = Duration::from_secs(20);
/// Where the leading controller may be: with the API server, and elsewhere.
const LEADERS: [&str; 2] = [NODES[0], NODES[3]];

/// A way in which the API server is away.
#[derive(Clone, Copy, Debug)]
struct Absence {
    seconds: u64,
    signal: Signal,
    /// The node of the leading controller, if it matters.
    leader: Option<&'static str>,
}

/// How many packets a node's agent has counted that had no way out.
fn dropped(site: &Site, node: &str) -> u64 {
    let metrics = SocketAddr::from(([127, 0, 0, 1], 5810));
    let client = site.client_on(node);
    eventually(&format!("the metrics of {node}"), PATIENCE, || {
        let page = client
            .get(metrics, "/metrics")
            .map_err(|error| error.to_string())?;
        let line = page.lines().find(|line| {
            line.starts_with("egressgateway_agent_packets_total")
                && line.contains("rule=\"drop_no_gateway\"")
        });
        let value = line
            .and_then(|line| line.split_whitespace().last())
            .ok_or_else(|| format!("no counter: {page}"))?;
        value.parse().map_err(|error| format!("{value}: {error}"))
    })
}

pub(crate) fn the_api_server_is_away(run: &Run) {
    let space = run.site.space("absence");
    space.gateway(&["node1", "node2"]);
    space.policy(&OUTSIDE_NETWORKS);
    // Longer than an agent's Lease and than what Kubernetes gives a kubelet.
    let absence = Absence {
        seconds: 60,
        signal: Signal::SIGKILL,
        leader: None,
    };
    absence
        .happens(run, &space, "the API server is away for 60 s")
        .unwrap_or_else(|wrong| panic!("{wrong}"));
}

impl Absence {
    /// All ways, in an order in which any few that follow each other have much of them.
    fn all() -> Vec<Self> {
        let signals = [Signal::SIGKILL, Signal::SIGTERM];
        let mut all = Vec::new();
        for turn in 0..4 {
            for (number, seconds) in [60, 180, 20].into_iter().enumerate() {
                let (signal, leader) = ((turn + number) % 2, (turn / 2 + number) % 2);
                all.push(Self {
                    seconds,
                    signal: signals[signal],
                    leader: Some(LEADERS[leader]),
                });
            }
        }
        all
    }

    /// Lets it happen under flows. None of their packets is lost for want of a gateway, no
    /// connection ends, and no source is another.
    fn happens(
        self,
        run: &Run,
        space: &Space<'_>,
        event: &str,
    ) -> Result<Vec<Measurement>, String> {
        let site = &run.site;
        let active = space.active();
        if let Some(leader) = self.leader {
            lead_on(site, leader);
        }
        let watch = Watch::everywhere(run, space, &active);
        // What was dropped before is counted by then.
        thread::sleep(COUNTED);
        let before = NODES.map(|node| dropped(site, node));
        site.stop_service(NODES[0], "kube-apiserver", self.signal);
        thread::sleep(Duration::from_secs(self.seconds));
        site.start_service(NODES[0], "kube-apiserver");
        thread::sleep(AFTERMATH);
        let after = NODES.map(|node| dropped(site, node));
        // A connection that ends or does not begin is what a gap of seconds looks like, on a
        // machine of any speed.
        let sources = |outside| vec![node_address(&active, outside)];
        let measurements = watch.end(
            event,
            &Allowed {
                sources: &sources,
                ends: 0,
            },
        )?;
        // A gap of any length would be packets that had no way.
        if after != before {
            return Err(format!(
                "packets that were dropped because no gateway was there, by node: {before:?} before, {after:?} after"
            ));
        }
        Ok(measurements)
    }
}

/// Has the controllers where one of them is with the API server. The other one is on a node that is
/// no gateway.
fn place_controllers(site: &Site) {
    let nodes = json!([{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": LEADERS}]}]);
    let affinity = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": nodes}}});
    let tolerations =
        json!([{"key": "node-role.kubernetes.io/control-plane", "operator": "Exists"}]);
    let values = [
        format!("controller.affinity={affinity}"),
        format!("controller.tolerations={tolerations}"),
    ];
    site.upgrade_chart(&["--set-json", &values[0], "--set-json", &values[1]])
        .unwrap();
}

/// Lets the controller of a node lead: the other one is deleted as long as it does.
fn lead_on(site: &Site, node: &str) {
    eventually(&format!("the controller of {node} leads"), PATIENCE, || {
        let lease = site
            .api()
            .get("Lease", NAMESPACE, "egressgateway-controller")?;
        let leader = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
        let pod = site.api().get("Pod", NAMESPACE, leader)?;
        let place = pod["spec"]["nodeName"].as_str().unwrap_or_default();
        if place == node {
            return Ok(());
        }
        site.rolled_out("deployment/egressgateway-controller")?;
        site.tool(
            "kubectl",
            &["--namespace", NAMESPACE, "delete", "pod", leader],
        )?;
        Err(format!("that of {place} led"))
    });
    site.rolled_out("deployment/egressgateway-controller")
        .unwrap();
}

/// Lets the API server be away so many times, in all ways by turns; a table of the gaps, and what
/// was not allowed.
pub(crate) fn absences(run: &Run, rounds: usize) -> (String, Vec<String>) {
    let space = run.site.space("absences");
    space.gateway(&["node1", "node2"]);
    space.policy(&OUTSIDE_NETWORKS);
    place_controllers(&run.site);
    let mut table =
        "| away | ended by | the leader is | longest gap of datagrams | of a connection | of new ones | without answer | ended | not \
                     governed, beside them | the machine's pause | |\n|---|---|---|---|---|---|---|---|---|---|---|"
            .to_owned();
    let mut wrong = Vec::new();
    for absence in Absence::all().into_iter().cycle().take(rounds) {
        let Absence {
            seconds,
            signal,
            leader,
        } = absence;
        let place = if leader == Some(NODES[0]) {
            "beside it"
        } else {
            "elsewhere"
        };
        let event =
            format!("the API server is away for {seconds} s, {signal}, the leader is {place}");
        run.site.say(&event);
        let row = match absence.happens(run, &space, &event) {
            Ok(measurements) => gaps(&measurements),
            Err(error) => {
                run.site.say(&error);
                wrong.push(error);
                "| | | | | | | | **failed** |".to_owned()
            }
        };
        let row = format!("| {seconds} s | {signal} | {place} {row}");
        run.site.say(&row);
        let _ = write!(table, "\n{row}");
    }
    (table, wrong)
}

/// The longest gaps of governed pods by kinds of flows, and of the other one's datagrams.
fn gaps(measurements: &[Measurement]) -> String {
    let longest = |governed: bool, kind: usize| {
        let own = measurements.iter().filter(|own| own.governed == governed);
        own.map(|own| own.measured[kind].gap.0)
            .max()
            .unwrap_or_default()
            .as_millis()
    };
    let flows = || {
        measurements
            .iter()
            .filter(|own| own.governed)
            .flat_map(|own| &own.measured)
    };
    let sent: usize = flows().map(|flow| flow.sent).sum();
    let answered: usize = flows()
        .map(|flow| flow.sources.values().sum::<usize>())
        .sum();
    let ended: usize = flows().map(|flow| flow.ended).sum();
    let pause = measurements
        .iter()
        .map(|own| own.measured[0].pause)
        .max()
        .unwrap_or_default()
        .as_millis();
    let [datagrams, connection, new] = [0, 1, 2].map(|kind| longest(true, kind));
    let lost = sent.saturating_sub(answered);
    format!(
        "| {datagrams} ms | {connection} ms | {new} ms | {lost} of {sent} | {ended} | {} ms | {pause} ms | |",
        longest(false, 0)
    )
}
