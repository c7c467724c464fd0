//! From a configuration to an agent: the only place that puts all parts together.

use std::sync::Arc;

use egressgateway::{
    AddressesDesired, DestinationView, Driver, Drivers, Encapsulation, PolicyBackend,
    PolicyDesired, Reconcile, Reconciler, TunnelDesired, Unmanaged,
    config::{Config, ReplyPath},
    index::IndexSettings,
    liveness::LivenessSettings,
    model::NodeName,
    runtime::{Agent, AgentSettings, LeaseSettings, StateFile},
    spec::Problem,
};
use egressgateway_netlink::{
    ConnectionTable, EchoProber, EgressAddresses, KernelHost, NeighbourAnnouncer,
    NeighbourInquirer, Netlink, ParentChoice, Steering, SteeringSettings,
};

use crate::{
    backend::{self, Backend},
    error::BuildError,
    relay::{self, NodeRelay},
    tunnel::{self, Tunnel},
};

/// Makes the agent of one node.
///
/// The configuration is the daemons' own and chooses everything that is not given here.
#[must_use]
pub struct AgentBuilder {
    node: NodeName,
    config: Config,
    lease: LeaseSettings,
    policy: Option<CustomPolicy>,
    tunnel: Option<Tunnel>,
    addresses: bool,
}

/// A backend of the program that embeds the agent.
struct CustomPolicy {
    driver: Box<dyn Reconcile<PolicyDesired>>,
    view: DestinationView,
    kind: &'static str,
}

impl std::fmt::Debug for AgentBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AgentBuilder")
            .field("node", &self.node)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl AgentBuilder {
    /// The agent of the node with this name, with the default configuration. The name is that of
    /// the Node object.
    pub fn new(node: impl Into<NodeName>) -> Self {
        Self {
            node: node.into(),
            config: Config::default(),
            lease: LeaseSettings::default(),
            policy: None,
            tunnel: None,
            addresses: true,
        }
    }

    /// Another configuration than the default one.
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// The Lease by which the controller knows that the agent is alive.
    pub fn lease(mut self, lease: LeaseSettings) -> Self {
        self.lease = lease;
        self
    }

    /// A policy backend instead of those that are compiled in. Nothing that other backends left on
    /// the host is removed. Where it counts or notices foreign changes, add
    /// [`Agent::with_counters`] and [`Agent::with_monitor`] to the agent.
    pub fn policy_backend(mut self, backend: impl PolicyBackend + 'static) -> Self {
        let (view, kind) = (backend.destination_view(), backend.kind());
        self.policy = Some(CustomPolicy {
            driver: Box::new(Reconciler::new(backend)),
            view,
            kind,
        });
        self
    }

    /// A tunnel instead of those that are compiled in. `encapsulation` describes what `driver`
    /// builds. Nothing that other tunnels left on the host is removed.
    pub fn tunnel(
        mut self,
        driver: impl Driver<Desired = TunnelDesired> + 'static,
        encapsulation: impl Encapsulation + 'static,
    ) -> Self {
        self.tunnel = Some(Tunnel {
            driver: Box::new(Reconciler::new(driver)),
            encapsulation: Arc::new(encapsulation),
        });
        self
    }

    /// Somebody else puts egress addresses on the host's devices, announces them and finds
    /// conflicts.
    pub const fn without_addresses(mut self) -> Self {
        self.addresses = false;
        self
    }

    /// Asks the host what it can do, and makes the agent over a client that the program made.
    ///
    /// Metrics, changes of the configuration and everything else that [`Agent`] offers are added to
    /// what is returned.
    ///
    /// # Errors
    /// As [`Self::prepare`].
    pub async fn build(self, client: kube::Client) -> Result<Agent, BuildError> {
        Ok(self.prepare().await?.agent(client))
    }

    /// Asks the host what it can do; what follows can't fail any more. The kernel is changed only
    /// by the probe of nftables, which takes away what it made.
    ///
    /// # Errors
    /// When the configuration is wrong, names what is not compiled in or what this host lacks, or
    /// the kernel can't be read.
    pub async fn prepare(self) -> Result<PreparedAgent, BuildError> {
        self.check()?;
        let mut settings = agent_settings(&self.config, self.node.clone());
        let Self {
            node,
            config,
            lease,
            policy,
            tunnel,
            addresses,
        } = self;
        let policy = match policy {
            Some(custom) => Policy::Custom(custom),
            None => Policy::BuiltIn(backend::choose(&config).await?),
        };
        let netlink = Netlink::open()?;
        let tunnel = match tunnel {
            Some(tunnel) => tunnel,
            None => tunnel::choose(&config, &netlink).await?,
        };
        let relay = relay::choose(&config, tunnel.encapsulation.as_ref()).await?;
        let keeps_connections = keeps_connections(&netlink).await?;
        settings.backend = Some(policy.description());
        settings.lease = lease;
        settings.relay_lacking.clone_from(&relay.lacking);
        tracing::info!(backend = policy.description(), "policy backend chosen");
        Ok(PreparedAgent {
            node,
            config,
            settings,
            policy,
            tunnel,
            relay,
            addresses,
            netlink,
            keeps_connections,
        })
    }

    /// What is wrong with the configuration, all at once.
    fn check(&self) -> Result<(), BuildError> {
        let mut problems = self.config.problems();
        if self.tunnel.is_none() {
            problems.extend(tunnel::unknown(&self.config));
        }
        if self.policy.is_none() {
            problems.extend(backend::unknown(&self.config));
        }
        problems.extend(unknown_reply_path(&self.config));
        if problems.is_empty() {
            Ok(())
        } else {
            Err(BuildError::Config(problems))
        }
    }
}

/// An agent that lacks only its client: the host has been asked, tunnel and policy backend are
/// chosen.
#[must_use]
pub struct PreparedAgent {
    node: NodeName,
    config: Config,
    settings: AgentSettings,
    policy: Policy,
    tunnel: Tunnel,
    relay: NodeRelay,
    addresses: bool,
    netlink: Netlink,
    keeps_connections: bool,
}

impl std::fmt::Debug for PreparedAgent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PreparedAgent")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl PreparedAgent {
    /// The agent over a client that the program made.
    pub fn agent(self, client: kube::Client) -> Agent {
        let Self {
            node,
            config,
            settings,
            policy,
            tunnel: Tunnel {
                driver,
                encapsulation,
            },
            relay,
            addresses,
            netlink,
            keeps_connections,
        } = self;
        let (policy, view, watchers) = policy.split();
        let hook = Arc::new(());
        let egress_addresses: Box<dyn Reconcile<AddressesDesired>> = if addresses {
            Box::new(Reconciler::new(EgressAddresses::new(
                netlink.clone(),
                hook.clone(),
            )))
        } else {
            Box::new(Unmanaged)
        };
        let steering = Steering::new(
            netlink.clone(),
            steering_settings(&config, keeps_connections),
            hook,
        );
        let drivers = Drivers {
            tunnel: driver,
            steering: Box::new(Reconciler::new(steering)),
            addresses: egress_addresses,
            relay: relay.driver,
            policy,
        };
        let parent = config
            .tunnel
            .parent
            .clone()
            .map_or(ParentChoice::Auto, ParentChoice::Named);
        let host = KernelHost::new(netlink.clone(), parent);
        // As ping(8) does: of two programs on a host, each has an identifier of its own.
        let prober =
            EchoProber::new(u16::try_from(std::process::id() & 0xffff).unwrap_or_default());
        let mut agent = Agent::new(client, settings, drivers, encapsulation, Arc::new(host))
            .with_prober(Arc::new(prober))
            .with_connections(Arc::new(ConnectionTable::new(netlink)), view)
            .with_untracking_rules(Arc::new(backend::untracking()));
        if addresses {
            agent = agent
                .with_announcer(Arc::new(NeighbourAnnouncer::new()))
                .with_inquirer(Arc::new(NeighbourInquirer::new()));
        }
        let (counters, monitors): (Vec<_>, Vec<_>) =
            watchers.into_iter().chain(relay.watchers).unzip();
        if !counters.is_empty() {
            agent = agent
                .with_counters(Arc::new(counters))
                .with_monitor(Arc::new(monitors));
        }
        match &config.state_file {
            Some(path) => agent.with_state_file(StateFile::new(path, node)),
            None => agent,
        }
    }
}

enum Policy {
    BuiltIn(Backend),
    Custom(CustomPolicy),
}

type Watchers = (
    Arc<dyn egressgateway::CounterSource>,
    Arc<dyn egressgateway::PolicyMonitor>,
);

impl Policy {
    fn description(&self) -> String {
        match self {
            Self::BuiltIn(backend) => backend.description.clone(),
            Self::Custom(custom) => format!("{}, given by the program", custom.kind),
        }
    }

    fn split(
        self,
    ) -> (
        Box<dyn Reconcile<PolicyDesired>>,
        DestinationView,
        Option<Watchers>,
    ) {
        match self {
            Self::BuiltIn(backend) => (
                backend.driver,
                backend.view,
                Some((backend.counters, backend.monitor)),
            ),
            Self::Custom(custom) => (custom.driver, custom.view, None),
        }
    }
}

/// What the configuration asks for and nobody can do yet.
pub(crate) fn unknown_reply_path(config: &Config) -> Option<Problem> {
    let rule = "must be cni: answers through the tunnel are not built in";
    (config.reply_path != ReplyPath::Cni).then(|| Problem::new("replyPath", "tunnel", rule))
}

/// Whether connections stay with their node of a gateway that balances, when another node goes or
/// comes.
async fn keeps_connections(netlink: &Netlink) -> Result<bool, BuildError> {
    let keeps = Steering::keeps_connections_on(netlink).await?;
    if !keeps {
        tracing::warn!(
            "this kernel has no resilient groups of next hops (Linux 5.14): connections through the nodes of a gateway that balances may be \
             reassigned whenever one goes or comes"
        );
    }
    Ok(keeps)
}

/// How a configuration lets a node route. `keeps_connections`: the kernel has resilient groups of
/// next hops, as [`Steering::keeps_connections_on`] tells.
#[must_use]
pub fn steering_settings(config: &Config, keeps_connections: bool) -> SteeringSettings {
    SteeringSettings::default()
        .with_table_base(config.routing.table_base)
        .with_rule_priority(config.routing.rule_priority)
        .with_protocol(config.routing.protocol)
        .with_mask(config.mark.mask)
        .with_keeps_connections(keeps_connections)
}

/// How a configuration lets the agent of a node work, but for its Lease and the description of its
/// backend. [`Agent::with_changes`] takes these when the configuration changes.
#[must_use]
pub fn agent_settings(config: &Config, node: NodeName) -> AgentSettings {
    let index = IndexSettings::of_node(node)
        .with_forward_method(config.forward_method)
        .with_default_gateway(config.default_egress_gateway.clone())
        .with_cluster_networks(config.cluster_cidrs.extra.clone())
        .with_auto_cluster_networks(config.cluster_cidrs.auto)
        .with_start_gate(config.start_gate);
    let mut settings = AgentSettings::new(index);
    settings.mask = config.mark.mask;
    settings.liveness = LivenessSettings::new(config.failover.interval, config.failover.multiplier);
    settings.reset_connections = config.reset_connections;
    settings.hold_at_boot = config.hold_at_boot;
    settings
}
