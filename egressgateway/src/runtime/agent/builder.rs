//! An agent, put together by its embedder.

use std::sync::Arc;

use prometheus_client::registry::Registry;
use tokio::sync::watch;

use super::{settings::AgentSettings, state_file::StateFile};
use crate::{
    Announcer, Connections, CounterSource, DestinationView, Drivers, Encapsulation, Host, Inquirer,
    PolicyMonitor, Prober, UntrackingRules,
    runtime::{
        health::Health,
        metrics::{AgentMetrics, Reloads},
    },
};

/// Keeps one node's kernel in line with the cluster.
///
/// Watches what its node needs, and nothing before everything was listed once changes the kernel.
/// It says how it fares in its EgressNode's status and that it lives in a Lease. When it ends, the
/// data path stays as it is.
pub struct Agent {
    pub(crate) client: kube::Client,
    pub(crate) settings: AgentSettings,
    pub(crate) changes: watch::Receiver<AgentSettings>,
    pub(crate) drivers: Drivers,
    pub(crate) encapsulation: Arc<dyn Encapsulation>,
    pub(crate) host: Arc<dyn Host>,
    pub(crate) counters: Option<Arc<dyn CounterSource>>,
    pub(crate) monitor: Option<Arc<dyn PolicyMonitor>>,
    pub(crate) connections: Option<(Arc<dyn Connections>, DestinationView)>,
    pub(crate) prober: Option<Arc<dyn Prober>>,
    pub(crate) announcer: Option<Arc<dyn Announcer>>,
    pub(crate) inquirer: Option<Arc<dyn Inquirer>>,
    pub(crate) state: Option<Arc<StateFile>>,
    pub(crate) untracking: Option<Arc<dyn UntrackingRules>>,
    pub(crate) metrics: AgentMetrics,
    pub(crate) health: Health,
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
}
