//! One measurement: builds the cluster, waits until it is settled, changes it, and reads what each
//! daemon did meanwhile.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use super::{
    daemons::{CONTROL, CONTROLLER, Daemons},
    load,
    objects::{self, PodId},
    reading::{Phase, Sample},
    rollout::Pods,
    server::{Server, Tally, said},
    size::{AGENTS, FOLLOWER, NAMESPACE, PLAIN, Size},
};
use egressgateway_testkit::{
    kube::Kubernetes,
    lab::{Lab, Node, NodeSpec},
    pace::patient,
};

/// The range that the policy for every pod governs.
const EVERYWHERE: &str = "21.0.0.0/8";
/// How long anything may take to come true.
const PATIENCE: Duration = Duration::from_secs(300);
/// How often it is looked at.
const GLANCE: Duration = Duration::from_millis(20);
/// How long nothing may happen before everything counts as settled.
const QUIET: Duration = Duration::from_secs(3);

/// How long is measured.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// While nothing changes.
    pub idle: Duration,
    /// After a policy for every pod came.
    pub change: Duration,
}

/// What was measured.
#[derive(Clone, Debug)]
pub struct Figures {
    /// The cluster.
    pub size: Size,
    /// From the start of the agents until everything is settled; all objects were there before.
    pub start: Phase,
    /// While nothing changes but Leases and heartbeats.
    pub idle: Phase,
    /// While pods are replaced, and until everything is settled.
    pub rollout: Phase,
    /// After a policy for every pod came.
    pub change: Phase,
    /// How long until each agent's kernel had everything: after its start, after the last request
    /// of the rollout, after a single pod, and after the policy for every pod.
    pub settled: [BTreeMap<String, Duration>; 4],
    /// Replaced pods of each agent's own node.
    pub own: BTreeMap<String, usize>,
}

/// Builds the cluster and measures. Needs root, and the programs of a control plane.
///
/// # Errors
/// When a daemon ends, something is refused, or something never comes true.
///
/// # Panics
/// When the control plane does not come up.
pub fn measure(assets: PathBuf, size: Size, times: Times) -> Result<Figures, String> {
    size.check()?;
    let nodes = AGENTS.map(|(name, gateway)| match gateway {
        Some(gateway) => NodeSpec::new(name).label(
            "exit",
            if gateway == PLAIN {
                "plain"
            } else {
                "addressed"
            },
        ),
        None => NodeSpec::new(name),
    });
    let lab = Lab::builder()
        .nodes(nodes)
        .nodes([CONTROL])
        .build()
        .map_err(said)?;
    let kubernetes = Kubernetes::start(assets, lab);
    let root = kubernetes.lab.root();
    let inside = root.clone();
    // Every socket is to be inside, whichever thread opens it.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .on_thread_start(move || {
            inside
                .move_in()
                .unwrap_or_else(|error| panic!("the lab's root: {error}"));
        })
        .enable_all()
        .build()
        .map_err(said)?;
    root.enter(|| runtime.block_on(Measurement::run(&kubernetes, size, times)))
        .map_err(said)?
}

/// A cluster that is measured.
struct Measurement<'a> {
    kubernetes: &'a Kubernetes,
    server: Server,
    size: Size,
    daemons: Daemons,
    pods: Pods,
    tally: Tally,
}

impl<'a> Measurement<'a> {
    async fn run(kubernetes: &'a Kubernetes, size: Size, times: Times) -> Result<Figures, String> {
        let server = Server::new(&kubernetes.kubeconfig_of_admin()).await?;
        let mut run = Self {
            kubernetes,
            server,
            size,
            daemons: Daemons::default(),
            pods: Pods::new(size),
            tally: Tally::default(),
        };
        run.populate().await?;
        tracing::info!("everything exists; the agents start");
        let before = run.sample()?;
        let started = run.start_agents()?;
        run.quiet()?;
        let idle_from = run.sample()?;
        let start = idle_from.since(&before, kubernetes, &run.daemons)?;
        tracing::info!("idle");
        tokio::time::sleep(times.idle).await;
        let rollout_from = run.sample()?;
        let idle = rollout_from.since(&idle_from, kubernetes, &run.daemons)?;
        tracing::info!("rollout");
        let replaced = run.pods.replace(&run.server).await?;
        let own = AGENTS.iter().enumerate().map(|(number, (name, _))| {
            (
                (*name).to_owned(),
                replaced
                    .iter()
                    .filter(|id| id.node(&size) == number)
                    .count(),
            )
        });
        let own = own.collect();
        let rolled = run.kernels_have_pods(Instant::now())?;
        run.quiet()?;
        let change_from = run.sample()?;
        let rollout = change_from.since(&rollout_from, kubernetes, &run.daemons)?;
        tracing::info!("single changes");
        let single = run.one_pod_more().await?;
        let everywhere = run.policy_for_all().await?;
        tokio::time::sleep(times.change).await;
        let change = run
            .sample()?
            .since(&change_from, kubernetes, &run.daemons)?;
        let (sent, failed) = run.tally.check()?;
        tracing::info!(sent, failed, "requests of the other nodes");
        run.daemons.end()?;
        Ok(Figures {
            size,
            start,
            idle,
            rollout,
            change,
            settled: [started, rolled, single, everywhere],
            own,
        })
    }

    fn sample(&self) -> Result<Sample, String> {
        self.tally.check()?;
        Sample::now(self.kubernetes, &self.daemons)
    }

    /// Everything but the agents: the chart, nodes, the controller, gateways, policies, pods.
    async fn populate(&mut self) -> Result<(), String> {
        let chart = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../charts/egressgateway")
            .canonicalize()
            .map_err(said)?;
        self.kubernetes
            .kubectl(&format!("create namespace {NAMESPACE}"))?;
        self.kubernetes.helm(&format!(
            "install eg {} --namespace {NAMESPACE}",
            chart.display()
        ))?;
        for namespace in objects::namespaces() {
            self.server.post("/api/v1/namespaces", &namespace).await?;
            let name = namespace["metadata"]["name"].as_str().unwrap_or_default();
            self.server
                .post(
                    &format!("/api/v1/namespaces/{name}/serviceaccounts"),
                    &objects::account(),
                )
                .await?;
        }
        self.server
            .post(
                &format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts"),
                &objects::account(),
            )
            .await?;
        let is_node = |object: &serde_json::Value| {
            object["kind"] == "Node" && object["metadata"]["name"] != CONTROL
        };
        self.kubernetes
            .put(self.kubernetes.lab.objects().into_iter().filter(is_node));
        let nodes = load::nodes(self.size);
        load::register(&self.server, &nodes).await?;
        self.daemons.start_controller(self.kubernetes)?;
        self.until("every node has its address in the overlay", async |run| {
            let list = run
                .server
                .get("/apis/egressgateway.spidernet.io/v1/egressnodes")
                .await?;
            let items = list["items"].as_array().into_iter().flatten();
            let addressed = items
                .filter(|node| node["status"]["vxlanIPv4IP"].is_string())
                .count();
            if addressed == run.size.nodes {
                Ok(())
            } else {
                Err(format!("{addressed} of {}", run.size.nodes))
            }
        })
        .await?;
        load::build_tunnels(&self.server, &nodes).await?;
        load::live(&self.server, &nodes, &self.tally);
        let gateways = "/apis/egressgateway.spidernet.io/v1/egressgateways";
        let [plain, addressed] = objects::gateways(&self.size);
        self.until("webhooks answer", async |run| {
            run.server.post(gateways, &plain).await
        })
        .await?;
        self.server.post(gateways, &addressed).await?;
        let policies = "/apis/egressgateway.spidernet.io/v1/egressgatewaypolicies";
        let start = Instant::now();
        for app in 0..self.size.policies {
            // One after the other: each is reviewed by the controller, which shares the processors
            // with everybody here, and may be late.
            self.until("a policy is admitted", async |run| {
                run.server
                    .post(policies, &objects::policy(app))
                    .await
                    .inspect_err(|error| tracing::warn!(error, "policy"))
            })
            .await?;
        }
        tracing::info!(seconds = start.elapsed().as_secs(), "policies exist");
        self.pods.create(&self.server).await?;
        self.quiet()
    }

    fn start_agents(&mut self) -> Result<BTreeMap<String, Duration>, String> {
        let start = Instant::now();
        for (node, _) in AGENTS {
            self.daemons.start_agent(self.kubernetes, node)?;
        }
        self.kernels_have_pods(start)
    }

    /// Waits until every agent's kernel knows the pods that it must know, and no others; how long
    /// after `since` each did.
    fn kernels_have_pods(&self, since: Instant) -> Result<BTreeMap<String, Duration>, String> {
        self.kernels(since, |number, node| {
            let exits = |id: PodId| AGENTS[number].0 == FOLLOWER && objects::is_addressed(id.app);
            let wanted = self.pods.addresses(|id, on| on == number || exits(id));
            let held = held_pods(node)?;
            if held == wanted {
                Ok(())
            } else {
                Err(format!("{} addresses, {} wanted", held.len(), wanted.len()))
            }
        })
    }

    /// Waits until every agent's kernel is as `check` wants it.
    fn kernels(
        &self,
        since: Instant,
        check: impl Fn(usize, &Node) -> Result<(), String> + Sync,
    ) -> Result<BTreeMap<String, Duration>, String> {
        let wait = |number: usize, name: &str| {
            let node = self.kubernetes.lab.node(name);
            loop {
                match check(number, &node) {
                    Ok(()) => return Ok((name.to_owned(), since.elapsed())),
                    Err(refusal) if since.elapsed() > patient(PATIENCE) => {
                        return Err(format!(
                            "{name}: never settled: {refusal}\n{}",
                            self.daemons.log(name)
                        ));
                    }
                    Err(_) => thread::sleep(GLANCE),
                }
            }
        };
        thread::scope(|scope| {
            let waits: Vec<_> = AGENTS
                .iter()
                .enumerate()
                .map(|(number, (name, _))| scope.spawn(move || wait(number, name)))
                .collect();
            waits
                .into_iter()
                .map(|thread| {
                    thread
                        .join()
                        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })
                .collect()
        })
    }

    async fn until<T>(
        &self,
        what: &str,
        check: impl AsyncFn(&Self) -> Result<T, String>,
    ) -> Result<T, String> {
        let start = Instant::now();
        loop {
            match check(self).await {
                Ok(value) => return Ok(value),
                Err(refusal) if start.elapsed() > patient(PATIENCE) => {
                    return Err(format!(
                        "never: {what}: {refusal}\n{}",
                        self.daemons.log(CONTROLLER)
                    ));
                }
                Err(_) => tokio::time::sleep(GLANCE * 10).await,
            }
        }
    }

    /// Waits until no daemon writes anything but Leases for a while.
    fn quiet(&self) -> Result<(), String> {
        let writes = || -> Result<u64, String> {
            self.tally.check()?;
            let mut sum = 0;
            for daemon in self.daemons.0.values() {
                let metrics = format!(
                    "curl --silent --show-error http://127.0.0.1:{}/metrics",
                    daemon.port
                );
                let text = self
                    .kubernetes
                    .lab
                    .node(&daemon.node)
                    .run(&metrics)
                    .map_err(said)?;
                let samples = text
                    .lines()
                    .filter(|line| line.contains("_api_writes_total{"));
                sum += samples
                    .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
                    .sum::<u64>();
            }
            Ok(sum)
        };
        let (start, mut before, mut since) = (Instant::now(), writes()?, Instant::now());
        while since.elapsed() < QUIET {
            thread::sleep(GLANCE * 10);
            let now = writes()?;
            if now != before {
                (before, since) = (now, Instant::now());
            }
            if start.elapsed() > patient(PATIENCE) {
                return Err("the daemons never stop writing".to_owned());
            }
        }
        Ok(())
    }

    /// A pod more on each agent's node, while nothing else changes.
    async fn one_pod_more(&mut self) -> Result<BTreeMap<String, Duration>, String> {
        self.pods.one_more_each(&self.server, AGENTS.len()).await?;
        self.kernels_have_pods(Instant::now())
    }

    /// A policy that governs every pod: no agent is not concerned.
    async fn policy_for_all(&self) -> Result<BTreeMap<String, Duration>, String> {
        let mut policy = objects::policy(self.size.policies);
        policy["spec"]["appliedTo"]["podSelector"]["matchLabels"] =
            serde_json::json!({"tier": "backend"});
        policy["spec"]["destCIDR"] = serde_json::json!([EVERYWHERE]);
        self.server
            .post(
                "/apis/egressgateway.spidernet.io/v1/egressgatewaypolicies",
                &policy,
            )
            .await?;
        self.kernels(Instant::now(), |_, node| {
            let held = node
                .run("nft list map inet egressgateway verdicts4")
                .map_err(said)?;
            if held.contains(EVERYWHERE) {
                Ok(())
            } else {
                Err(format!("no {EVERYWHERE}"))
            }
        })
    }
}

/// The addresses of pods that a node's kernel classifies.
fn held_pods(node: &Node) -> Result<BTreeSet<String>, String> {
    let text = node
        .run("nft list map inet egressgateway pods4; nft list map inet egressgateway pods6")
        .map_err(said)?;
    let elements = text
        .split("elements = {")
        .skip(1)
        .filter_map(|rest| rest.split('}').next());
    Ok(elements
        .flat_map(|part| part.split(','))
        .filter_map(|element| Some(element.split_once(" : ")?.0.trim().to_owned()))
        .collect())
}
