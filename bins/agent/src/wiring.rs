//! From the configuration to the parts that an agent is made of: the only place that names a tunnel and a backend.

use std::sync::Arc;

use egressgateway::{
    CounterSource, DestinationView, Drivers, Encapsulation, PolicyDesired, PolicyMonitor, Reconcile, Reconciler, TunnelDesired,
    UntrackingRules,
    config::{Config, ReplyPath},
    index::IndexSettings,
    liveness::LivenessSettings,
    model::NodeName,
    runtime::AgentSettings,
    spec::Problem,
};
use egressgateway_daemon::Failure;
use egressgateway_netlink::{
    ConnectionTable, EchoProber, EgressAddresses, KernelHost, NeighbourAnnouncer, NeighbourInquirer, Netlink, ParentChoice, Steering,
    SteeringSettings,
};

use crate::{
    backend::{self, Backend},
    tunnel::{self, Tunnel},
};

/// What drives this node's kernel.
pub(crate) struct Node {
    pub(crate) drivers: Drivers,
    pub(crate) encapsulation: Arc<dyn Encapsulation>,
    pub(crate) host: KernelHost,
    pub(crate) counters: Arc<dyn CounterSource>,
    pub(crate) monitor: Arc<dyn PolicyMonitor>,
    pub(crate) connections: ConnectionTable,
    pub(crate) view: DestinationView,
    pub(crate) prober: EchoProber,
    pub(crate) announcer: NeighbourAnnouncer,
    pub(crate) inquirer: NeighbourInquirer,
    /// What others take out of connection tracking.
    pub(crate) untracking: Vec<Arc<dyn UntrackingRules>>,
    /// Which policy backend, and why.
    pub(crate) backend: String,
}

/// The drivers that the configuration names; nothing of the kernel is changed.
///
/// # Errors
/// When it names one that is not built in, or the kernel can't be spoken to.
pub(crate) async fn node(config: &Config) -> Result<Node, Failure> {
    check(config)?;
    let Backend { policy, counters, monitor, view, why } = backend::choose(config).await?;
    let (netlink, parent) = (Netlink::open()?, config.tunnel.parent.clone().map_or(ParentChoice::Auto, ParentChoice::Named));
    let Tunnel { driver, encapsulation } = tunnel::choose(config, &netlink).await?;
    let keeps_connections = Steering::keeps_connections_on(&netlink).await?;
    if !keeps_connections {
        tracing::warn!(
            "this kernel has no resilient groups of next hops (Linux 5.14): connections through the nodes of a gateway that balances may be \
             assigned anew whenever one goes or comes"
        );
    }
    Ok(Node {
        drivers: drivers(config, &netlink, keeps_connections, driver, policy),
        encapsulation,
        monitor,
        connections: ConnectionTable::new(netlink.clone()),
        view,
        // As ping(8) does: of two programs on a host, each has a number of its own.
        prober: EchoProber::new(u16::try_from(std::process::id() & 0xffff).unwrap_or_default()),
        announcer: NeighbourAnnouncer::new(),
        inquirer: NeighbourInquirer::new(),
        untracking: backend::untracking(),
        counters,
        host: KernelHost::new(netlink, parent),
        backend: why,
    })
}

/// The drivers that remove what any configuration may have left.
///
/// # Errors
/// When the configuration names what is not built in, or the kernel can't be spoken to.
pub(crate) async fn removal(config: &Config) -> Result<Drivers, Failure> {
    check(config)?;
    let netlink = Netlink::open()?;
    Ok(drivers(config, &netlink, true, tunnel::removal(config, &netlink), backend::removal(config).await?))
}

fn check(config: &Config) -> Result<(), Failure> {
    let problems = unknown(config);
    if problems.is_empty() { Ok(()) } else { Err(problems.into()) }
}

fn drivers(
    config: &Config,
    netlink: &Netlink,
    keeps_connections: bool,
    tunnel: Box<dyn Reconcile<TunnelDesired>>,
    policy: Box<dyn Reconcile<PolicyDesired>>,
) -> Drivers {
    let steering = SteeringSettings {
        table_base: config.routing.table_base,
        rule_priority: config.routing.rule_priority,
        protocol: config.routing.protocol,
        mask: config.mark.mask,
        keeps_connections,
    };
    Drivers {
        tunnel,
        steering: Box::new(Reconciler::new(Steering::new(netlink.clone(), steering, Arc::new(())))),
        addresses: Box::new(Reconciler::new(EgressAddresses::new(netlink.clone(), Arc::new(())))),
        policy,
    }
}

/// What the configuration names and this agent does not have.
fn unknown(config: &Config) -> Vec<Problem> {
    let mut problems: Vec<Problem> = tunnel::unknown(config).into_iter().chain(backend::unknown(config)).collect();
    if config.reply_path != ReplyPath::Cni {
        problems.push(Problem::new("replyPath", "tunnel", "must be cni: answers through the tunnel are not built in"));
    }
    problems
}

/// How the agent of this node works, but for its Lease.
pub(crate) fn settings(config: &Config, node: NodeName) -> AgentSettings {
    let mut settings = AgentSettings::new(IndexSettings {
        node,
        forward_method: config.forward_method,
        default_gateway: config.default_egress_gateway.clone(),
        cluster_networks: config.cluster_cidrs.extra.clone(),
        auto_cluster_networks: config.cluster_cidrs.auto,
        start_gate: config.start_gate,
    });
    settings.mask = config.mark.mask;
    settings.liveness = LivenessSettings { interval: config.failover.interval, multiplier: config.failover.multiplier };
    settings.reset_connections = config.reset_connections;
    settings.hold_at_boot = config.hold_at_boot;
    settings
}
