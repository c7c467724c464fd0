//! What the daemons cost: read from the kernel, from the API server's audit log and from the
//! daemons' own metrics.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use super::{
    daemons::{Daemon, Daemons},
    server::said,
    size::NAMESPACE,
};
use egressgateway_testkit::{kube::Kubernetes, lab::constants::MANAGEMENT_DEVICE};

/// One daemon, read once; everything but memory only grows.
#[derive(Clone, Debug, Default)]
pub(super) struct Reading {
    memory: Memory,
    processor: Duration,
    received: u64,
    events: BTreeMap<String, u64>,
}

/// Resident memory, in KiB.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// All of it (`VmRSS`), the program's text included.
    pub resident: u64,
    /// Of it, what is no file (`RssAnon`): the heap, mostly.
    pub own: u64,
    /// The most that it ever was (`VmHWM`).
    pub peak: u64,
}

/// What a daemon did in a while.
#[derive(Clone, Debug, Default)]
pub struct Usage {
    /// Its requests, by verb and resource such as `patch leases`, as the API server wrote them
    /// down.
    pub requests: BTreeMap<String, u64>,
    /// Objects that its lists and watches told it of, by watch.
    pub events: BTreeMap<String, u64>,
    /// Bytes that it received from the API server, as its node's device counts them: TLS and
    /// headers included.
    pub received: u64,
    /// Processor time.
    pub processor: Duration,
    /// Memory at the end of it.
    pub memory: Memory,
}

/// All daemons, read at the same time.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    at: Timestamp,
    daemons: BTreeMap<String, Reading>,
}

/// A while, and what each daemon did in it.
#[derive(Clone, Debug, Default)]
pub struct Phase {
    /// How long it was.
    pub length: Duration,
    /// What each daemon did, by its name.
    pub usage: BTreeMap<String, Usage>,
}

impl Usage {
    /// Requests of a verb, or of a verb and a resource.
    #[must_use]
    pub fn requests_of(&self, prefix: &str) -> u64 {
        self.requests
            .iter()
            .filter(|(request, _)| request.starts_with(prefix))
            .map(|(_, number)| number)
            .sum()
    }

    /// Requests besides Lease renewals, new watches, and periodic reads of Service and pod
    /// networks.
    #[must_use]
    pub fn work(&self) -> BTreeMap<String, u64> {
        let routine = |request: &str| {
            let resource = request.split(' ').nth(1).unwrap_or_default();
            request.starts_with("watch ")
                || matches!(
                    resource,
                    "leases"
                        | "servicecidrs"
                        | "services"
                        | "ippools"
                        | "ciliumnodes"
                        | "ciliumpodippools"
                )
        };
        self.requests
            .iter()
            .filter(|(request, _)| !routine(request))
            .map(|(request, number)| (request.clone(), *number))
            .collect()
    }

    /// All requests.
    #[must_use]
    pub fn all_requests(&self) -> u64 {
        self.requests_of("")
    }
}

impl Sample {
    pub(super) fn now(kubernetes: &Kubernetes, daemons: &Daemons) -> Result<Self, String> {
        daemons.check()?;
        let read = |(name, daemon): (&String, &Daemon)| {
            let (id, port) = (daemon.process.id(), daemon.port);
            let script = format!(
                "getconf CLK_TCK; cat /sys/class/net/{MANAGEMENT_DEVICE}/statistics/rx_bytes; sed 's/.*) //' /proc/{id}/stat
                 cat /proc/{id}/status; curl --silent --show-error http://127.0.0.1:{port}/metrics"
            );
            let text = kubernetes
                .lab
                .node(&daemon.node)
                .run(&script)
                .map_err(said)?;
            Ok((
                name.clone(),
                reading(&text).ok_or_else(|| format!("{name}: what is this: {text}"))?,
            ))
        };
        let daemons = daemons.0.iter().map(read).collect::<Result<_, String>>()?;
        Ok(Self {
            at: Timestamp::now(),
            daemons,
        })
    }

    /// What happened since `before`.
    pub(super) fn since(
        &self,
        before: &Self,
        kubernetes: &Kubernetes,
        daemons: &Daemons,
    ) -> Result<Phase, String> {
        let mut requests = requests(kubernetes, daemons, before.at, self.at)?;
        let nothing = Reading::default();
        let usage = self.daemons.iter().map(|(name, now)| {
            let then = before.daemons.get(name).unwrap_or(&nothing);
            let events = now
                .events
                .iter()
                .map(|(watch, seen)| (watch.clone(), seen - then.events.get(watch).unwrap_or(&0)));
            let usage = Usage {
                requests: requests.remove(name).unwrap_or_default(),
                events: events.filter(|(_, seen)| *seen > 0).collect(),
                received: now.received - then.received,
                processor: now.processor.saturating_sub(then.processor),
                memory: now.memory,
            };
            (name.clone(), usage)
        });
        Ok(Phase {
            length: self.at.duration_since(before.at).unsigned_abs(),
            usage: usage.collect(),
        })
    }
}

fn reading(text: &str) -> Option<Reading> {
    let mut lines = text.lines();
    let mut number = || lines.next()?.trim().parse::<u64>().ok();
    let (ticks, received) = (number()?, number()?);
    // From the third field of stat on: user and system time are the 14th and the 15th, in ticks.
    let fields: Vec<&str> = lines.next()?.split_whitespace().collect();
    let spent = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    let memory = |name: &str| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix(" kB")?.parse().ok()
    };
    let events = text.lines().filter_map(|line| {
        let (_, sample) = line.split_once("_watch_events_total{watch=\"")?;
        let (watch, seen) = sample.split_once("\"} ")?;
        Some((watch.to_owned(), seen.trim().parse().ok()?))
    });
    Some(Reading {
        memory: Memory {
            resident: memory("VmRSS")?,
            own: memory("RssAnon")?,
            peak: memory("VmHWM")?,
        },
        processor: Duration::from_millis(spent * 1000 / ticks),
        received,
        events: events.collect(),
    })
}

/// The daemons' requests between two samples. Who sent one is told by the address that it came
/// from: each daemon has a node of its own.
fn requests(
    kubernetes: &Kubernetes,
    daemons: &Daemons,
    from: Timestamp,
    to: Timestamp,
) -> Result<BTreeMap<String, BTreeMap<String, u64>>, String> {
    let accounts = format!("system:serviceaccount:{NAMESPACE}:egressgateway-");
    let address = |node: &str| kubernetes.lab.node(node).management().to_string();
    let names: BTreeMap<String, &String> = daemons
        .0
        .iter()
        .map(|(name, daemon)| (address(&daemon.node), name))
        .collect();
    let mut requests: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
    for event in kubernetes.audit_with(&accounts) {
        let text = |pointer: &str| {
            event
                .pointer(pointer)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let at: Timestamp = text("/requestReceivedTimestamp").parse().map_err(said)?;
        // A watch is written down when it begins and when it ends, everything else when it is
        // answered.
        let stage = if text("/verb") == "watch" {
            "ResponseStarted"
        } else {
            "ResponseComplete"
        };
        if at < from || at >= to || text("/stage") != stage {
            continue;
        }
        let source = text("/sourceIPs/0");
        let name = *names
            .get(&source)
            .ok_or_else(|| format!("a daemon's request from {source}"))?;
        let subresource = text("/objectRef/subresource");
        let slash = if subresource.is_empty() { "" } else { "/" };
        let request = format!(
            "{} {}{slash}{subresource}",
            text("/verb"),
            text("/objectRef/resource")
        );
        *requests
            .entry(name.clone())
            .or_default()
            .entry(request)
            .or_default() += 1;
    }
    Ok(requests)
}
