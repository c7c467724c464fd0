//! A whole cluster in one process tree: the lab's nodes and pods, an API server, and the daemons as
//! real processes.
//!
//! Every call blocks; nothing here needs a runtime.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{
    apiserver::ApiServer,
    lab::{Lab, MANAGEMENT, Pod, PodSpec, Process, ProcessSpec},
    pace::patient,
};

/// Where an agent serves health and metrics, on its node.
pub const AGENT_PORT: u16 = 5810;

/// Where the controller serves health and metrics, on its node.
pub const CONTROLLER_PORT: u16 = 5820;

/// Name of the controller among the daemons.
pub const CONTROLLER: &str = "controller";

/// Port of the API server on the management network.
const API_PORT: u16 = 6443;

/// How long anything in the cluster may take to come true before it counts as failed.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How often it is looked at.
const GLANCE: Duration = Duration::from_millis(50);

/// Between two probes of a gateway, unless settings say otherwise.
const PROBES: Duration = Duration::from_millis(150);
/// How long an agent's Lease lasts, unless arguments say otherwise.
const LEASE: Duration = Duration::from_secs(40);
/// How long a daemon may take to end.
const END: Duration = Duration::from_secs(10);

/// A running cluster; everything in it ends with it.
#[derive(Debug)]
pub struct Cluster {
    daemons: BTreeMap<String, Process>,
    /// Further arguments of agents.
    agent_arguments: Vec<String>,
    /// The API server.
    pub api: ApiServer,
    /// Nodes, pods, servers.
    pub lab: Lab,
    directory: tempfile::TempDir,
}

impl Cluster {
    /// Starts API server, controller (on the first node) and one agent per node, and waits until
    /// every node's tunnel is built.
    ///
    /// `config` is the daemons' configuration file.
    ///
    /// # Panics
    /// When a part does not come up: the message holds the daemons' logs.
    #[must_use]
    pub fn start(lab: Lab, config: &str) -> Self {
        let mut cluster = Self::without_daemons(lab, config);
        cluster.start_daemons();
        cluster
    }

    /// Starts controller and agents, and waits until every node's tunnel is built.
    ///
    /// # Panics
    /// When a part does not come up: the message holds the daemons' logs.
    pub fn start_daemons(&mut self) {
        self.start_controller();
        self.start_agents();
        self.tunnels_built();
        self.agents_seen();
    }

    /// The same before any daemon was started.
    ///
    /// # Panics
    /// When the API server can't start.
    #[must_use]
    pub fn without_daemons(lab: Lab, config: &str) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let address = SocketAddr::from((MANAGEMENT, API_PORT));
        let api = lab
            .root()
            .enter(|| ApiServer::start_at(address))
            .expect("the lab's root");
        let cluster = Self {
            daemons: BTreeMap::new(),
            agent_arguments: Vec::new(),
            api,
            lab,
            directory,
        };
        std::fs::write(cluster.kubeconfig(), cluster.api.kubeconfig()).expect("the kubeconfig");
        cluster.configure(config);
        cluster.publish();
        cluster
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Another configuration file, for daemons that start from now on.
    ///
    /// # Panics
    /// When it can't be written.
    pub fn configure(&self, config: &str) {
        std::fs::write(self.path("config.yaml"), config).expect("the configuration");
    }

    /// Agents that start from now on have these arguments besides the usual ones.
    pub fn start_agents_with(&mut self, arguments: &[&str]) {
        self.agent_arguments = arguments
            .iter()
            .map(|argument| (*argument).to_owned())
            .collect();
    }

    /// A kubeconfig that reaches the API server from every node.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.path("kubeconfig")
    }

    /// Puts the lab's namespaces, nodes, pods and services into the API server, as kubelets would.
    ///
    /// # Panics
    /// When the API server refuses one.
    pub fn publish(&self) {
        for object in self.lab.objects() {
            self.api
                .put(object)
                .unwrap_or_else(|error| panic!("{error}"));
        }
    }

    /// Makes a pod and tells the API server of it.
    ///
    /// # Panics
    /// When it can't be made.
    pub fn pod(&self, node: &str, spec: impl Into<PodSpec>) -> Pod {
        let pod = self
            .lab
            .pod(node, spec)
            .unwrap_or_else(|error| panic!("a pod on {node}: {error}"));
        self.api
            .put(pod.object())
            .unwrap_or_else(|error| panic!("{error}"));
        pod
    }

    /// Creates or replaces every object of a YAML text.
    ///
    /// # Panics
    /// When the API server refuses one.
    pub fn apply(&self, yaml: &str) {
        self.api
            .apply_yaml(yaml)
            .unwrap_or_else(|error| panic!("apply: {error}\n{yaml}"));
    }

    /// Deletes an object without a namespace.
    ///
    /// # Panics
    /// When there is none.
    pub fn delete(&self, kind: &str, name: &str) {
        self.api
            .delete(kind, "", name)
            .unwrap_or_else(|error| panic!("{error}"));
    }

    /// Sets a label of a node, or removes it.
    ///
    /// # Panics
    /// When there is no such node.
    pub fn label_node(&self, node: &str, key: &str, value: Option<&str>) {
        let patch = json!({"metadata": {"labels": {key: value}}});
        self.api
            .merge("Node", "", node, &patch)
            .unwrap_or_else(|error| panic!("{error}"));
    }

    /// Says that a node is ready, or not, as the node controller would.
    ///
    /// # Panics
    /// When there is no such node.
    pub fn node_ready(&self, node: &str, ready: bool) {
        let patch = json!({"status": self.lab.node_object(node, ready)["status"]});
        self.api
            .merge("Node", "", node, &patch)
            .unwrap_or_else(|error| panic!("{error}"));
    }

    /// Starts the controller, on the first node.
    ///
    /// # Panics
    /// When it can't be started.
    pub fn start_controller(&mut self) {
        let node = self.lab.nodes()[0].name().to_owned();
        self.start_daemon(
            CONTROLLER,
            &node,
            "egressgateway-controller",
            &["--identity", CONTROLLER],
        );
    }

    /// Starts the agent of every node.
    ///
    /// # Panics
    /// When one can't be started.
    pub fn start_agents(&mut self) {
        for node in self.lab.nodes() {
            self.start_agent(node.name());
        }
    }

    /// Starts the agent of a node.
    ///
    /// # Panics
    /// When it can't be started.
    pub fn start_agent(&mut self, node: &str) {
        let state = self.state_file(node).display().to_string();
        let further = self.agent_arguments.clone();
        let usual = ["--node-name", node, "--state-file", &state];
        let arguments: Vec<&str> = usual
            .into_iter()
            .chain(further.iter().map(String::as_str))
            .collect();
        self.start_daemon(&agent(node), node, "egressgateway-agent", &arguments);
    }

    /// Where the agent of a node keeps what it must know after a boot.
    #[must_use]
    pub fn state_file(&self, node: &str) -> PathBuf {
        self.path(&format!("{}.state.json", agent(node)))
    }

    fn start_daemon(&mut self, name: &str, node: &str, program: &str, arguments: &[&str]) {
        let spec = self.lab.node(node).program(binary(program));
        let mut spec = spec
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .arg("--config")
            .arg(self.path("config.yaml"))
            .args(arguments);
        if patient(PROBES) > PROBES {
            // A gateway that is as slow as the rest is not dead, and neither is one whose agent
            // takes a minute to start.
            spec = spec.env(
                "EGRESSGATEWAY_FAILOVER_INTERVAL",
                format!("{}ms", patient(PROBES).as_millis()),
            );
            spec = spec.env(
                "EGRESSGATEWAY_LEASE_DURATION",
                format!("{}s", patient(LEASE).as_secs()),
            );
        }
        self.start_as(name, spec);
    }

    /// Starts a daemon that is described otherwise, under a name for its log.
    ///
    /// # Panics
    /// When it can't be started.
    pub fn start_as(&mut self, name: &str, spec: ProcessSpec) {
        let process = spec
            .log_to(self.path(&format!("{name}.log")))
            .start()
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        self.daemons.insert(name.to_owned(), process);
    }

    /// A running daemon.
    ///
    /// # Panics
    /// When there is none of that name.
    #[must_use]
    pub fn daemon(&self, name: &str) -> &Process {
        self.daemons
            .get(name)
            .unwrap_or_else(|| panic!("no daemon {name}"))
    }

    /// Ends a daemon with a signal and waits until it is gone.
    ///
    /// # Panics
    /// When there is no such daemon, or it does not end.
    pub fn kill(&mut self, daemon: &str, signal: Signal) {
        let process = self
            .daemons
            .remove(daemon)
            .unwrap_or_else(|| panic!("no daemon {daemon}"));
        process
            .kill(signal)
            .and_then(|()| process.wait(patient(END)))
            .unwrap_or_else(|error| panic!("{daemon}: {error}"));
    }

    /// Ends every daemon at once.
    ///
    /// # Panics
    /// When one does not end.
    pub fn kill_all(&mut self) {
        let daemons: Vec<String> = self.daemons.keys().cloned().collect();
        for daemon in daemons {
            self.kill(&daemon, Signal::SIGKILL);
        }
    }

    /// Takes everything of the product off a node, where no agent runs any more.
    ///
    /// # Panics
    /// When that fails.
    pub fn cleanup(&self, node: &str) {
        let (program, config, state) = (
            binary("egressgateway-agent"),
            self.path("config.yaml"),
            self.state_file(node),
        );
        let command = format!(
            "{} --config {} --state-file {} cleanup",
            program.display(),
            config.display(),
            state.display()
        );
        self.lab
            .node(node)
            .run(&command)
            .unwrap_or_else(|error| panic!("cleanup: {error}"));
    }

    /// What a daemon wrote to its log, over all its lives.
    #[must_use]
    pub fn log(&self, daemon: &str) -> String {
        std::fs::read_to_string(self.path(&format!("{daemon}.log"))).unwrap_or_default()
    }

    /// The last lines of all logs, for the message of a failing test.
    #[must_use]
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for daemon in self.daemons.keys() {
            let log = self.log(daemon);
            let lines: Vec<&str> = log.lines().collect();
            let _ = writeln!(text, "--- {daemon}");
            for line in &lines[lines.len().saturating_sub(30)..] {
                let _ = writeln!(text, "{line}");
            }
        }
        text
    }

    /// A daemon's metrics, in the text format.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn metrics(&self, node: &str, port: u16) -> io::Result<String> {
        self.lab
            .node(node)
            .enter(|| get(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), "/metrics"))?
    }

    /// One value of an agent's metrics, by its name with labels as the text format shows them; none
    /// when it is absent.
    #[must_use]
    pub fn metric(&self, node: &str, name: &str) -> Option<f64> {
        let text = self.metrics(node, AGENT_PORT).ok()?;
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
    }

    /// Waits until every node's tunnel is built.
    ///
    /// # Panics
    /// When that takes too long.
    pub fn tunnels_built(&self) {
        self.eventually("every EgressNode is Succeeded", || {
            let built = |name: &str| {
                self.api
                    .get("EgressNode", "", name)
                    .is_some_and(|node| node["status"]["phase"] == "Succeeded")
            };
            self.of_every_node(built)
        });
    }

    /// Waits until every agent of the usual namespace holds its Lease: a gateway that is made then
    /// can choose every node.
    fn agents_seen(&self) {
        self.eventually("every agent holds its Lease", || {
            self.of_every_node(|name| {
                self.api
                    .get(
                        "Lease",
                        "kube-system",
                        &format!("egressgateway-agent-{name}"),
                    )
                    .is_some()
            })
        });
    }

    fn of_every_node(&self, is_so: impl Fn(&str) -> bool) -> Result<(), String> {
        let missing: Vec<String> = self
            .lab
            .nodes()
            .iter()
            .map(|node| node.name().to_owned())
            .filter(|name| !is_so(name))
            .collect();
        if missing.is_empty() {
            Ok(())
        } else {
            Err(format!("not yet: {}", missing.join(", ")))
        }
    }

    /// An object's status.
    #[must_use]
    pub fn status(&self, kind: &str, name: &str) -> Value {
        self.api
            .get(kind, "", name)
            .map(|mut object| object["status"].take())
            .unwrap_or_default()
    }

    /// Waits until `check` says yes.
    ///
    /// # Panics
    /// After [`PATIENCE`], with the last refusal and the daemons' logs.
    pub fn eventually<T>(&self, what: &str, check: impl Fn() -> Result<T, String>) -> T {
        let start = Instant::now();
        loop {
            match check() {
                Ok(value) => return value,
                Err(refusal) if start.elapsed() > patient(PATIENCE) => {
                    panic!("never: {what}: {refusal}\n{}", self.logs())
                }
                Err(_) => thread::sleep(GLANCE),
            }
        }
    }
}

/// The name of a node's agent among the daemons.
#[must_use]
pub fn agent(node: &str) -> String {
    format!("agent-{node}")
}

/// A program of this workspace, as built beside the running one.
///
/// # Panics
/// When it was not built: `cargo build --workspace --bins` does.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("the path of this program");
    let mut candidates = own
        .ancestors()
        .skip(1)
        .take(2)
        .map(|directory: &Path| directory.join(name));
    candidates
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("{name} is not built: cargo build --workspace --bins"))
}

/// The body of an HTTP answer.
fn get(address: SocketAddr, path: &str) -> io::Result<String> {
    let mut connection = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    connection.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(
        connection,
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    let (_, body) = answer
        .split_once("\r\n\r\n")
        .ok_or_else(|| io::Error::other("no answer"))?;
    Ok(body.to_owned())
}
