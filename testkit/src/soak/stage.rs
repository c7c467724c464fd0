//! The cluster in which events happen.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::PoisonError,
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{
    event::{Event, NODES, PODS},
    foreign::{
        HAS_RULES, NO_ROUTES, NO_RULES, NO_TUNNEL, STATE, STRANGER, foreign_addresses, forget,
        second_address, stranger,
    },
    judge::{Finding, Historian, Judge, Timeline},
    objects::{gateway, policy, policy_name},
    oracle::{Way, ways},
    talk::{Book, Talker, serve, talk},
};
use crate::{
    apiserver::{Effect, Fault},
    cluster::{CONTROLLER, Cluster, agent},
    lab::{Capture, Lab, Node, NodeSpec, Pod, PodSpec},
    pace::patient,
};

/// Addresses of the servers outside.
const SERVERS: [[&str; 2]; 2] = [["10.6.1.10", "fd00:6:1::10"], ["10.6.2.10", "fd00:6:2::10"]];
/// How long everything may take until it is as the objects say, once nothing happens any more.
const PATIENCE: Duration = Duration::from_secs(25);
/// How long nothing may be answered before it counts as held.
const SILENCE: Duration = Duration::from_millis(300);
/// Namespace of the pods.
const NAMESPACE: &str = "shop";

/// The stage, and who plays on it.
pub(super) struct Stage {
    cluster: Cluster,
    backend: String,
    pods: BTreeMap<usize, (Pod, Talker)>,
    pods_made: usize,
    /// Daemons that do not run.
    away: BTreeSet<String>,
    /// Nodes whose rules somebody took away since the last calm.
    lenient: BTreeSet<String>,
    /// The same of the round before: what began then may be seen now.
    lenient_before: BTreeSet<String>,
    capture: Capture,
    book: Book,
    historian: Historian,
    judge: Judge,
    began: Instant,
    /// What happened since the calm before the last one.
    happened: [Timeline; 2],
    servers: Vec<IpAddr>,
    _listeners: Vec<Talker>,
}

impl Stage {
    /// A cluster with daemons and servers, and nothing in it.
    pub(super) fn set(backend: &str) -> Result<Self, String> {
        let text = |error: std::io::Error| error.to_string();
        let specs = NODES.iter().enumerate().map(|(n, name)| {
            if n < 2 {
                NodeSpec::new(*name)
            } else {
                NodeSpec::new(*name).label("egress", "true")
            }
        });
        let lab = Lab::builder().nodes(specs).build().map_err(text)?;
        lab.namespace(NAMESPACE, [("chosen", "yes")]);
        let (book, mut listeners, mut servers) = (Book::default(), Vec::new(), Vec::new());
        for addresses in SERVERS {
            let server = lab.server(addresses).map_err(text)?;
            listeners.extend(serve(&server, &book).map_err(text)?);
            servers.extend(server.endpoints().iter().map(std::net::SocketAddr::ip));
        }
        let cluster = Cluster::start(lab, &configuration(backend, 0));
        let capture = cluster.lab.capture().map_err(text)?;
        let historian = Historian::start(cluster.api.reader()).map_err(text)?;
        Ok(Self {
            cluster,
            backend: backend.to_owned(),
            pods: BTreeMap::new(),
            pods_made: 0,
            away: BTreeSet::new(),
            lenient: BTreeSet::new(),
            lenient_before: BTreeSet::new(),
            capture,
            book,
            historian,
            judge: Judge::default(),
            began: Instant::now(),
            happened: Default::default(),
            servers,
            _listeners: listeners,
        })
    }

    /// How many packets and how many sights of servers were judged.
    pub(super) const fn looked_at(&self) -> (usize, usize) {
        self.judge.judged
    }

    /// Lets one event happen.
    ///
    /// # Errors
    /// At a calm, with what is wrong.
    pub(super) fn happen(&mut self, event: &Event) -> Result<(), String> {
        self.happened[1].push((Instant::now(), format!("{event:?}")));
        match event {
            Event::Calm => return self.calm(),
            Event::Pause { milliseconds } => thread::sleep(Duration::from_millis(*milliseconds)),
            Event::Policy {
                policy: number,
                shape,
            } => self.cluster.apply(&policy(*number, *shape)),
            Event::NoPolicy { policy } => self.delete("EgressGatewayPolicy", &policy_name(*policy)),
            Event::Gateway { shape } => self.cluster.apply(&gateway(*shape)),
            Event::NoGateway => self.delete("EgressGateway", "exit"),
            Event::Pod {
                pod,
                node,
                governed,
            } => self.make_pod(*pod, node_name(*node), *governed)?,
            Event::NoPod { pod } => self.delete_pod(*pod)?,
            Event::Label { pod, governed } => {
                if let Some((pod, _)) = self.pods.get(&(pod % PODS)) {
                    self.merge(
                        "Pod",
                        NAMESPACE,
                        pod.name(),
                        &json!({"metadata": {"labels": {"app": app(*governed)}}}),
                    );
                }
            }
            Event::Namespace { chosen } => {
                let chosen = if *chosen { "yes" } else { "no" };
                self.merge(
                    "Namespace",
                    "",
                    NAMESPACE,
                    &json!({"metadata": {"labels": {"chosen": chosen}}}),
                );
            }
            Event::Member { node, is } => {
                self.cluster
                    .label_node(node_name(*node), "egress", is.then_some("true"));
            }
            Event::Ready { node, is } => self.cluster.node_ready(node_name(*node), *is),
            Event::Cordon { node, is } => self.merge(
                "Node",
                "",
                node_name(*node),
                &json!({"spec": {"unschedulable": is.then_some(true)}}),
            ),
            Event::Drain { node, is } => {
                self.annotate("Node", node_name(*node), "drain", is.then_some("true"));
            }
            Event::Move { policy, node } => self.annotate(
                "EgressGatewayPolicy",
                &policy_name(*policy),
                "node",
                Some(node_name(*node)),
            ),
            Event::Forget { node } => forget(&self.node(*node))?,
            Event::Untrack { node } => {
                self.run(
                    *node,
                    &stranger(
                        "type filter hook prerouting priority -300;",
                        &[
                            "ip saddr 10.244.0.0/16 notrack",
                            "ip6 saddr fd10::/16 notrack",
                        ],
                    ),
                )?;
            }
            Event::Masquerade { node } => self.run(
                *node,
                &stranger(
                    "type nat hook postrouting priority 50;",
                    &[
                        "ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 masquerade",
                        "ip6 saddr fd10::/16 ip6 daddr != fd10::/16 masquerade",
                    ],
                ),
            )?,
            Event::Address { node, address, is } => {
                self.run(*node, &second_address(node_name(*node), *address, *is))?;
            }
            Event::Firewall { node } => {
                self.run(
                    *node,
                    &stranger("type filter hook forward priority 10;", &["drop"]),
                )?;
            }
            Event::NoRules { node } => {
                self.lenient.insert(node_name(*node).to_owned());
                self.run(*node, NO_RULES)?;
            }
            Event::NoTunnel { node } => self.run(*node, NO_TUNNEL)?,
            Event::NoRoutes { node } => self.run(*node, NO_ROUTES)?,
            Event::Cut { node } => self.node(*node).cut().map_err(|error| error.to_string())?,
            Event::PowerOff { node } => self
                .node(*node)
                .power_off()
                .map_err(|error| error.to_string())?,
            Event::Unmanaged { node } => self
                .node(*node)
                .cut_management()
                .map_err(|error| error.to_string())?,
            Event::Restore => self.restore()?,
            Event::Fault { fault } => self.fault(*fault),
            Event::Kill { daemon } => self.end(*daemon, Signal::SIGKILL),
            Event::Stop { daemon } => self.end(*daemon, Signal::SIGTERM),
            Event::Start => self.start(),
            Event::Configure { variant } => self
                .cluster
                .configure(&configuration(&self.backend, *variant)),
        }
        self.historian.note();
        Ok(())
    }

    fn node(&self, number: usize) -> Node {
        self.cluster.lab.node(node_name(number))
    }

    fn run(&self, number: usize, script: &str) -> Result<(), String> {
        self.node(number)
            .run(script)
            .map(drop)
            .map_err(|error| error.to_string())
    }

    /// What is not there is not changed.
    fn merge(&self, kind: &str, namespace: &str, name: &str, patch: &Value) {
        let _ = self.cluster.api.merge(kind, namespace, name, patch);
    }

    fn annotate(&self, kind: &str, name: &str, key: &str, value: Option<&str>) {
        self.merge(kind, "", name, &json!({"metadata": {"annotations": {format!("egressgateway.spidernet.io/{key}"): value}}}));
    }

    fn delete(&self, kind: &str, name: &str) {
        let _ = self.cluster.api.delete(kind, "", name);
    }

    fn make_pod(&mut self, pod: usize, node: &str, governed: bool) -> Result<(), String> {
        let slot = pod % PODS;
        self.delete_pod(slot)?;
        self.pods_made += 1;
        let spec = PodSpec::new(format!("pod-{slot}-{}", self.pods_made))
            .namespace(NAMESPACE)
            .label("app", app(governed));
        // It speaks before anybody knows it.
        let pod = self
            .cluster
            .lab
            .pod(node, spec)
            .map_err(|error| error.to_string())?;
        let talker =
            talk(&pod, self.pods_made, &self.servers).map_err(|error| error.to_string())?;
        self.cluster.api.put(pod.object())?;
        self.pods.insert(slot, (pod, talker));
        Ok(())
    }

    fn delete_pod(&mut self, pod: usize) -> Result<(), String> {
        let Some((pod, talker)) = self.pods.remove(&(pod % PODS)) else {
            return Ok(());
        };
        drop(talker);
        self.cluster.api.delete("Pod", NAMESPACE, pod.name())?;
        pod.delete().map_err(|error| error.to_string())
    }

    fn fault(&self, number: usize) {
        let any = |verb, times, effect| {
            self.cluster.api.fault(Fault {
                verb,
                resource: None,
                query: None,
                times,
                effect,
            });
        };
        match number % 5 {
            0 => any(Some("update"), 5, Effect::Status(409)),
            1 => self.cluster.api.compact(),
            2 => any(None, 2, Effect::Hang),
            3 => any(None, 5, Effect::Reset),
            _ => self.cluster.api.drop_watches(),
        }
    }

    fn end(&mut self, daemon: usize, signal: Signal) {
        let name = NODES
            .get(daemon % (NODES.len() + 1))
            .map_or_else(|| CONTROLLER.to_owned(), |node| agent(node));
        if self.away.insert(name.clone()) {
            self.cluster.kill(&name, signal);
        }
    }

    fn start(&mut self) {
        for name in std::mem::take(&mut self.away) {
            match NODES.iter().find(|node| agent(node) == name) {
                Some(node) => self.cluster.start_agent(node),
                None => self.cluster.start_controller(),
            }
        }
    }

    fn restore(&self) -> Result<(), String> {
        self.cluster
            .lab
            .nodes()
            .iter()
            .try_for_each(|node| node.power_on().map_err(|error| error.to_string()))
    }

    /// Heals everything, waits until the cluster does what its objects say, and judges what was
    /// seen meanwhile.
    fn calm(&mut self) -> Result<(), String> {
        self.restore()?;
        for number in 0..NODES.len() {
            self.run(number, STRANGER)?;
        }
        self.cluster.api.heal();
        self.start();
        let until = Instant::now() + patient(PATIENCE);
        loop {
            let mut wrong = self.look()?;
            // Where nothing is governed there may be none.
            let governs = ways(&self.historian.now(), &self.servers)?
                .values()
                .any(Way::is_governed);
            wrong.extend(
                self.lenient
                    .iter()
                    .filter(|_| governs)
                    .filter(|node| !self.has_rules(node))
                    .map(|node| format!("{node} has no rules")),
            );
            // What leaks makes no calm: it is told before what is only late.
            let packets = self.capture.packets();
            if wrong.is_empty() || Instant::now() > until {
                self.capture.clear();
                let book =
                    std::mem::take(&mut *self.book.lock().unwrap_or_else(PoisonError::into_inner));
                let lenient = &self.lenient | &self.lenient_before;
                let judged =
                    self.judge
                        .judge(&self.historian, &self.servers, &packets, &book, &lenient);
                judged.map_err(|finding| self.tell(finding))?;
                self.lenient_before = std::mem::take(&mut self.lenient);
                self.happened = [std::mem::take(&mut self.happened[1]), Timeline::new()];
                let never = || {
                    let (story, state, logs) = (
                        self.story(Timeline::new()),
                        self.state(),
                        self.cluster.logs(),
                    );
                    format!("never: {}\n{story}\n{state}\n{logs}", wrong.join("; "))
                };
                return if wrong.is_empty() {
                    Ok(())
                } else {
                    Err(never())
                };
            }
        }
    }

    fn tell(&self, finding: Finding) -> String {
        let tracked = finding.tracked.iter().flat_map(|(node, address)| {
            let table = self
                .cluster
                .lab
                .node(node)
                .run("cat /proc/net/nf_conntrack")
                .unwrap_or_default();
            let of = |line: &&str| words(line).any(|word| word == *address);
            table
                .lines()
                .filter(of)
                .map(|line| format!("{node}: {line}"))
                .collect::<Vec<_>>()
        });
        let tracked = tracked.collect::<Vec<_>>().join("\n");
        format!(
            "{}\n{}\n{tracked}\n{}",
            finding.what,
            self.story(finding.known),
            self.cluster.logs()
        )
    }

    /// What each node's kernel holds that lets packets pass or not.
    fn state(&self) -> String {
        let of = |node: &Node| {
            format!(
                "--- state of {}\n{}",
                node.name(),
                node.run(STATE).unwrap_or_else(|error| error.to_string())
            )
        };
        self.cluster
            .lab
            .nodes()
            .iter()
            .map(of)
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// Whether what [`NO_RULES`] took is there again.
    fn has_rules(&self, node: &str) -> bool {
        self.cluster
            .lab
            .node(node)
            .run(HAS_RULES)
            .is_ok_and(|said| said.contains("yes"))
    }

    /// What happened, and what else is known, in its order and in seconds.
    fn story(&self, mut known: Timeline) -> String {
        known.extend(self.happened.iter().flatten().cloned());
        known.sort_by_key(|(at, _)| *at);
        let lines = known.iter().map(|(at, what)| {
            format!("{:9.3} {what}", at.duration_since(self.began).as_secs_f64())
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    /// What is not as the objects say.
    fn look(&self) -> Result<Vec<String>, String> {
        let ways = ways(&self.historian.now(), &self.servers)?;
        let look = |pod: &Pod| {
            let mut hosts = self.cluster.lab.node(pod.node()).addresses();
            hosts.extend(foreign_addresses(pod.node()));
            let mut wrong = Vec::new();
            for server in &self.servers {
                let to = std::net::SocketAddr::new(*server, crate::lab::PORT);
                let Some(way) = ways.get(&(format!("{NAMESPACE}/{}", pod.name()), *server)) else {
                    continue;
                };
                let allowed: Vec<IpAddr> = match way {
                    Way::Free => hosts.clone(),
                    Way::Through(sources, _) => sources.iter().copied().collect(),
                    Way::Held => Vec::new(),
                };
                let seen = if allowed.is_empty() {
                    pod.cannot_reach(to, patient(SILENCE))
                        .map_err(|error| error.to_string())
                } else {
                    match pod.connect_udp(to) {
                        Ok(seen) if allowed.contains(&seen.ip()) => Ok(()),
                        Ok(seen) => Err(format!("seen as {}", seen.ip())),
                        Err(error) => Err(error.to_string()),
                    }
                };
                if let Err(problem) = seen {
                    wrong.push(format!(
                        "{} on {} to {server}, which is {way:?}: {problem}",
                        pod.name(),
                        pod.node()
                    ));
                    break;
                }
            }
            wrong
        };
        let looks = thread::scope(|scope| {
            let threads: Vec<_> = self
                .pods
                .values()
                .map(|(pod, _)| scope.spawn(|| look(pod)))
                .collect();
            threads
                .into_iter()
                .flat_map(|thread| thread.join().unwrap_or_default())
                .collect()
        });
        Ok(looks)
    }
}

/// The addresses in a line of the kernel's table of connections.
fn words(line: &str) -> impl Iterator<Item = IpAddr> + '_ {
    line.split_whitespace()
        .filter_map(|word| word.split_once('=')?.1.parse().ok())
}

fn node_name(number: usize) -> &'static str {
    NODES[number % NODES.len()]
}

const fn app(governed: bool) -> &'static str {
    if governed { "governed" } else { "free" }
}

/// The daemons' file; variants differ in what changes at once.
fn configuration(backend: &str, variant: usize) -> String {
    let more = [
        "",
        "failover: {multiplier: 5}\n",
        "failover: {interval: 200ms}\n",
    ];
    format!("policyBackend: {backend}\n{}", more[variant % more.len()])
}
