//! One node: the cluster as the API server tells it in, the kernel as the drivers make it out.

use std::{sync::Arc, time::Duration};

use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    agent_loop::Session,
    health::Health,
    kube::backoff::Backoff,
    metrics::{AgentMetrics, Reloads},
    presence::LeaseSettings,
    state_file::StateFile,
};
use crate::{
    Announcer, Connections, CounterSource, DestinationView, Drivers, Encapsulation, Error, Host,
    Inquirer, PolicyMonitor, Prober, UntrackingRules, index::IndexSettings,
    liveness::LivenessSettings, model::MarkMask,
};

/// Field manager of what agents write.
pub(super) const MANAGER: &str = "egressgateway-agent";

/// How an agent works.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AgentSettings {
    /// Which node this is, and what its desired state depends on.
    pub index: IndexSettings,
    /// The bits of marks that are ours.
    pub mask: MarkMask,
    /// Which policy backend is at work and why, in words, for the node's condition.
    pub backend: Option<String>,
    /// How fast a silent gateway node is noticed.
    pub liveness: LivenessSettings,
    /// Whether connections are ended that began before the policy which governs them; see
    /// [`Agent::with_connections`].
    pub reset_connections: bool,
    /// Whether, after a boot, what policies governed before waits until everything was listed; see
    /// [`Agent::with_state_file`].
    pub hold_at_boot: bool,
    /// The Lease by which the controller knows that the agent is alive.
    pub lease: LeaseSettings,
    /// How often the kernel is read completely, and what failed for good is tried again.
    pub resync: Duration,
    /// How long the host must be quiet after a change of links or routes before they are read
    /// again.
    pub quiet: Duration,
    /// How far apart such reads are at least, when the host is never quiet.
    pub spacing: Duration,
    /// How often packet counters are read.
    pub counters: Duration,
    /// How long a change of mere words, such as of a driver's last failure, may wait until it is
    /// written into the status.
    pub patience: Duration,
    /// How often the networks of services are read.
    pub networks: Duration,
    /// Delays between failed attempts to change the kernel.
    pub kernel_backoff: Backoff,
    /// Delays between failed requests to the API server.
    pub api_backoff: Backoff,
}

impl AgentSettings {
    /// Settings that suit production.
    #[must_use]
    pub fn new(index: IndexSettings) -> Self {
        Self {
            index,
            mask: MarkMask::default(),
            backend: None,
            liveness: LivenessSettings::default(),
            reset_connections: true,
            hold_at_boot: true,
            lease: LeaseSettings::default(),
            resync: Duration::from_secs(120),
            quiet: Duration::from_millis(100),
            spacing: Duration::from_secs(1),
            counters: Duration::from_secs(15),
            patience: Duration::from_secs(60),
            networks: Duration::from_secs(300),
            kernel_backoff: Backoff::new(Duration::from_millis(100), Duration::from_secs(5)),
            api_backoff: Backoff::default(),
        }
    }
}

/// Keeps one node's kernel in line with the cluster.
///
/// Watches what its node needs, and nothing before everything was listed once changes the kernel.
/// It says how it fares in its EgressNode's status and that it lives in a Lease. When it ends, the
/// data path stays as it is.
pub struct Agent {
    pub(super) client: kube::Client,
    pub(super) settings: AgentSettings,
    pub(super) changes: watch::Receiver<AgentSettings>,
    pub(super) drivers: Drivers,
    pub(super) encapsulation: Arc<dyn Encapsulation>,
    pub(super) host: Arc<dyn Host>,
    pub(super) counters: Option<Arc<dyn CounterSource>>,
    pub(super) monitor: Option<Arc<dyn PolicyMonitor>>,
    pub(super) connections: Option<(Arc<dyn Connections>, DestinationView)>,
    pub(super) prober: Option<Arc<dyn Prober>>,
    pub(super) announcer: Option<Arc<dyn Announcer>>,
    pub(super) inquirer: Option<Arc<dyn Inquirer>>,
    pub(super) state: Option<Arc<StateFile>>,
    pub(super) untracking: Option<Arc<dyn UntrackingRules>>,
    pub(super) metrics: AgentMetrics,
    pub(super) health: Health,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl Agent {
    /// An agent over a client and drivers that the caller made. `encapsulation` is the kind of
    /// tunnel that `drivers` builds.
    #[must_use]
    pub fn new(
        client: kube::Client,
        settings: AgentSettings,
        drivers: Drivers,
        encapsulation: Arc<dyn Encapsulation>,
        host: Arc<dyn Host>,
    ) -> Self {
        let (metrics, health) = (AgentMetrics::default(), Health::default());
        let changes = watch::channel(settings.clone()).1;
        Self {
            client,
            settings,
            changes,
            drivers,
            encapsulation,
            host,
            counters: None,
            monitor: None,
            connections: None,
            prober: None,
            announcer: None,
            inquirer: None,
            state: None,
            untracking: None,
            metrics,
            health,
        }
    }

    /// Settings that may change while the agent runs: of [`AgentSettings::index`] all but the node
    /// and whether networks are learnt, further [`AgentSettings::liveness`],
    /// [`AgentSettings::reset_connections`] and [`AgentSettings::hold_at_boot`]. The others stay as
    /// they were at the start.
    #[must_use]
    pub fn with_changes(mut self, changes: watch::Receiver<AgentSettings>) -> Self {
        self.changes = changes;
        self
    }

    /// Where reloads of the configuration are counted.
    #[must_use]
    pub fn reloads(&self) -> Reloads {
        self.metrics.reloads.clone()
    }

    /// Where packet counters are read from.
    #[must_use]
    pub fn with_counters(mut self, counters: Arc<dyn CounterSource>) -> Self {
        self.counters = Some(counters);
        self
    }

    /// How the agent notices that somebody else changed the packet filter; without it, the next
    /// complete read does.
    #[must_use]
    pub fn with_monitor(mut self, monitor: Arc<dyn PolicyMonitor>) -> Self {
        self.monitor = Some(monitor);
        self
    }

    /// Probes the gateway nodes that this node may send to, and goes on to the next one of a
    /// gateway when one is silent. Without it, only the controller's choice counts.
    #[must_use]
    pub fn with_prober(mut self, prober: Arc<dyn Prober>) -> Self {
        self.prober = Some(prober);
        self
    }

    /// Tells the neighbours which egress addresses came here. Without it, they find out when what
    /// they know of the former node is too old.
    #[must_use]
    pub fn with_announcer(mut self, announcer: Arc<dyn Announcer>) -> Self {
        self.announcer = Some(announcer);
        self
    }

    /// Once its Lease may be old, asks the neighbours who else has the egress addresses of this
    /// node, and lets go of what another node has, until it has heard from the API server. Without
    /// it, two nodes answer for an address until then.
    #[must_use]
    pub fn with_inquirer(mut self, inquirer: Arc<dyn Inquirer>) -> Self {
        self.inquirer = Some(inquirer);
        self
    }

    /// Ends connections of pods that began before the policy which now governs them, such as a
    /// database session from before: without it they go on with the source address that they began
    /// with. And ends those whose way or egress address is gone: without it they hang as long as
    /// somebody sends. `view` is the policy backend's.
    #[must_use]
    pub fn with_connections(
        mut self,
        connections: Arc<dyn Connections>,
        view: DestinationView,
    ) -> Self {
        self.connections = Some((connections, view));
        self
    }

    /// Where the node keeps what it governs over a boot. With it, an agent that finds a kernel
    /// without any policy of ours holds traffic of its pods to what was governed before, until
    /// everything was listed: without it, that traffic leaves with the node's address until then.
    #[must_use]
    pub fn with_state_file(mut self, file: StateFile) -> Self {
        self.state = Some(Arc::new(file));
        self
    }

    /// Looks for rules of others that take packets of pods out of connection tracking, and says so
    /// in the log and in the node's condition `PodsTracked`. Without it, only the counter of what
    /// is dropped for that reason shows it.
    #[must_use]
    pub fn with_untracking_rules(mut self, rules: Arc<dyn UntrackingRules>) -> Self {
        self.untracking = Some(rules);
        self
    }

    /// Registers what the agent counts, under the prefix `egressgateway_agent`.
    #[must_use]
    pub fn with_metrics(self, registry: &mut Registry) -> Self {
        self.metrics.register(registry);
        self
    }

    /// What probes ask; ready once everything was listed and as long as the last converge
    /// succeeded.
    #[must_use]
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// Works until shutdown.
    ///
    /// # Errors
    /// When one of its parts ended on its own, which is a defect. Failures of the kernel or the API
    /// server are no reason to end.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Error> {
        let health = self.health.clone();
        let result = Session::start(self, &shutdown).run(shutdown).await;
        health.set_ready(false);
        health.end();
        result
    }

    /// Lists everything once and says what [`Self::run`] would do to the kernel then; nothing is
    /// written anywhere.
    ///
    /// # Errors
    /// When the kernel can't be read, or shutdown comes first.
    pub async fn dry_run(self, shutdown: CancellationToken) -> Result<String, Error> {
        Session::start_reading(self).dry_run(shutdown).await
    }
}
