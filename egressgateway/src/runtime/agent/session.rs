//! An agent at work: what happens becomes something due, and what is due is done.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    bounded::{self, bounded},
    builder::Agent,
    deadlines::Deadlines,
    driver_health::{self, DriversHealth},
    inputs::{Event, Inputs, Interest},
    outputs::Outputs,
    port_requests::PortRequests,
    reconciler::{InForce, NodeReconciler},
    settings::AgentSettings,
    state_file::StateFile,
    tasks::{
        boot_state,
        probes::Ends,
        spawn::spawn,
        status::{POD_NETWORKS_ADVICE, Relaying, Report},
    },
    watches::{AgentUpdate, own_pods},
};
use crate::{
    Encapsulation, Error, ErrorKind, Host, NodeDesired, Outcome, PolicyDesired, ProbeAddress,
    Questions, Underlay,
    api::Interface,
    index::{Index, IndexSettings},
    model::Family,
    plan::Overlap,
    runtime::{
        health::Health,
        kube::{
            initial_sync::InitialSync,
            watch::{Message, Scope},
            watches::kind,
        },
        metrics::AgentMetrics,
    },
    world::Change,
};

impl Agent {
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

/// A running agent.
pub(crate) struct Session {
    settings: AgentSettings,
    inputs: Inputs,
    outputs: Outputs,
    deadlines: Deadlines,
    initial_sync: InitialSync,
    index: Index,
    reconciler: NodeReconciler,
    drivers_health: DriversHealth,
    encapsulation: Arc<dyn Encapsulation>,
    host: Arc<dyn Host>,
    interfaces: Option<Vec<Interface>>,
    underlay: imbl::OrdMap<Family, Underlay>,
    /// Whether nothing says which addresses pods have, as the log has it.
    pod_networks_unknown: bool,
    /// Listeners know of a policy in force, and not yet of the ways that came with it.
    told_in_part: bool,
    /// The overlay addresses that can't be used, as the log has them.
    overlaps: Vec<Overlap>,
    /// The egress addresses that the kernel held when the agent started.
    inherited: Inherited,
    /// What it asks for of egress addresses that it translates to itself.
    ports: PortRequests,
    state: Option<Arc<StateFile>>,
    /// What waits until everything was listed; none where nothing does, and once something was
    /// listed.
    hold: Option<PolicyDesired>,
    metrics: AgentMetrics,
    health: Health,
}

/// The egress addresses that the kernel holds when the agent starts.
#[derive(Debug)]
enum Inherited {
    /// Nobody is asked for addresses, so they make no difference.
    NotAsked,
    /// The host was not read yet.
    Unknown,
    Known(BTreeSet<IpAddr>),
}

impl Session {
    /// Starts all that an agent does besides converging.
    pub(crate) fn start(agent: Agent, shutdown: &CancellationToken) -> Self {
        let outputs = Outputs::new(&agent.settings);
        let (mut inputs, answers, kinds) = Inputs::open(&agent, &outputs);
        spawn(&agent, &outputs, answers, &mut inputs, shutdown);
        let asks = agent.inquirer.is_some();
        let mut session = Self::new(agent, inputs, outputs, kinds);
        session
            .index
            .set_can_relay(session.settings.relay_lacking.is_none());
        if asks {
            session.inherited = Inherited::Unknown;
            session.index.set_granted(Some(BTreeSet::new()));
        }
        session
    }

    /// Starts watching, and nothing that writes.
    pub(crate) fn start_reading(agent: Agent) -> Self {
        let outputs = Outputs::new(&agent.settings);
        let (inputs, _, kinds) = Inputs::open(&agent, &outputs);
        Self::new(agent, inputs, outputs, kinds)
    }

    fn new(agent: Agent, inputs: Inputs, outputs: Outputs, kinds: BTreeSet<&'static str>) -> Self {
        let Agent {
            settings,
            drivers,
            encapsulation,
            host,
            state,
            metrics,
            health,
            ..
        } = agent;
        let drivers_health = DriversHealth::default();
        let drivers = driver_health::instrument(drivers, &drivers_health, &metrics);
        Self {
            inputs,
            outputs,
            deadlines: Deadlines::new(&settings, Instant::now()),
            initial_sync: InitialSync::new(kinds),
            index: Index::new(settings.index.clone()),
            reconciler: NodeReconciler::new(drivers, encapsulation.clone(), metrics.clone()),
            drivers_health,
            encapsulation,
            host,
            interfaces: None,
            underlay: imbl::OrdMap::new(),
            pod_networks_unknown: false,
            told_in_part: false,
            overlaps: Vec::new(),
            inherited: Inherited::NotAsked,
            ports: PortRequests::default(),
            state,
            hold: None,
            settings,
            metrics,
            health,
        }
    }

    pub(crate) async fn run(mut self, shutdown: CancellationToken) -> Result<(), Error> {
        if let Some(file) = self.state.clone() {
            self.hold = boot_state::recall(file, &self.metrics).await;
        }
        self.keep_hold().await;
        loop {
            self.wait(&shutdown).await?;
            if shutdown.is_cancelled() {
                break;
            }
            self.work().await;
        }
        Ok(())
    }

    pub(crate) async fn dry_run(mut self, shutdown: CancellationToken) -> Result<String, Error> {
        while !shutdown.is_cancelled() {
            self.refresh().await;
            if self.may_write() {
                return self.reconciler.dry_run(&self.index.desired()).await;
            }
            self.wait(&shutdown).await?;
        }
        Err(Error::new(
            ErrorKind::Transient,
            format!(
                "ended before these were listed: {}",
                self.initial_sync.missing().join(", ")
            ),
        ))
    }

    /// Waits until there may be something to do, and takes in everything that waits.
    async fn wait(&mut self, shutdown: &CancellationToken) -> Result<(), Error> {
        let deadlines = [self.deadlines.next(self.hold.is_some()), self.ports.next()];
        let deadline = deadlines.into_iter().flatten().min();
        let interest = Interest {
            host: self.deadlines.awaits_host(),
            policy: self.deadlines.awaits_policy(),
        };
        let event = self.inputs.next(deadline, interest, shutdown).await?;
        self.on_event(event);
        for message in self.inputs.waiting() {
            self.apply(message);
        }
        self.follow_needed_pods();
        Ok(())
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Updates(messages) => {
                for message in messages {
                    self.apply(message);
                }
            }
            Event::Host(changed) => self.host_changed(&changed),
            Event::Policy(changed) => self.policy_changed(&changed),
            Event::GatewaysDown(nodes) => {
                self.index.set_down(nodes);
                self.deadlines.converge_soon();
            }
            Event::Conflicts(addresses) => {
                self.index.set_contested(addresses);
                // Two nodes must never hold one address: skip the retry delay.
                self.deadlines.converge_now();
            }
            Event::Asked(findings) => {
                self.index.set_granted(Some(findings.granted));
                self.index.set_silent(findings.silent);
                self.deadlines.converge_soon();
            }
            Event::Untracked => self.deadlines.converge_soon(),
            Event::Settings(changed) => self.settings_changed(*changed),
            Event::Wake => {}
        }
    }

    fn apply(&mut self, message: Message<AgentUpdate>) {
        match message {
            Message::Updates(updates) => {
                for update in updates {
                    let change = match update {
                        AgentUpdate::World(change) => *change,
                        AgentUpdate::Pod(name, pod) => Change::Pod(name, pod),
                        AgentUpdate::Own(change, observed) => {
                            self.outputs
                                .own
                                .send_replace(observed.map(|observed| *observed));
                            *change
                        }
                    };
                    if self.index.apply(change) {
                        self.deadlines.converge_soon();
                    }
                }
            }
            Message::Synced(kind, scope) => {
                tracing::debug!(kind, ?scope, "listed");
                if kind == kind::POLICIES {
                    self.outputs.listed_policies.send_replace(scope.round);
                }
                self.initial_sync.synced(kind, scope);
            }
            Message::Interrupted(kind, error) => {
                tracing::warn!(kind, %error, "watch failed; starting again");
                self.metrics.watch.restarted(kind);
            }
        }
    }

    /// Takes over what may change while the agent runs.
    fn settings_changed(&mut self, changed: AgentSettings) {
        let fixed = &self.settings.index;
        let (node, auto_cluster_networks) = (fixed.node.clone(), fixed.auto_cluster_networks);
        self.settings.index = IndexSettings {
            node,
            auto_cluster_networks,
            ..changed.index
        };
        self.index.configure(self.settings.index.clone());
        self.deadlines.converge_soon();
        self.outputs.liveness.send_replace(changed.liveness);
        self.outputs.resets.send_replace(changed.reset_connections);
        self.settings.hold_at_boot = changed.hold_at_boot;
        self.deadlines.check_hold(Instant::now());
    }

    /// Asks for the egress addresses that the node is to take, once everything was listed.
    fn follow_questions(&mut self) {
        let Inherited::Known(held) = &mut self.inherited else {
            return;
        };
        let questions = self.index.questions();
        if self.outputs.questions.borrow().is_none() {
            // What the kernel holds and the node shall not have goes now, and is asked for if it
            // comes back.
            held.retain(|address| questions.own.held.contains_key(address));
            self.index.set_granted(Some(held.clone()));
        }
        tell(
            &self.outputs.questions,
            &Some(Questions {
                held: held.clone(),
                ..questions
            }),
        );
    }

    /// Asks for the ports that this node's pods need.
    fn follow_ports(&mut self) {
        let nodes = self.index.egress_nodes();
        let said = nodes.get(&self.settings.index.node).map(|own| &own.wanted);
        let nothing = BTreeMap::new();
        self.ports.follow(
            &self.index.ports_wanted(),
            said.unwrap_or(&nothing),
            Instant::now(),
        );
    }

    /// Probes what this node may send to, once there is a way there.
    fn follow_gateways(&mut self, desired: &NodeDesired) {
        let nodes = self.index.gateway_nodes();
        let mut ends = Ends::new();
        if let Some(local) = &desired.tunnel.local {
            for node in nodes {
                let Some(peer) = desired.tunnel.peers.get(&node) else {
                    continue;
                };
                for family in Family::ALL {
                    if let Some(hop) = self.encapsulation.next_hop(local, peer, family) {
                        ends.insert(
                            (node.clone(), family),
                            ProbeAddress {
                                device: hop.device,
                                address: hop.via,
                            },
                        );
                    }
                }
            }
        }
        tell(&self.outputs.probed, &ends);
    }

    fn needed_pods(&mut self) -> Scope {
        if self.index.needs_all_pods() {
            Scope::default()
        } else {
            own_pods(&self.settings.index.node)
        }
    }

    fn follow_needed_pods(&mut self) {
        let needed = self.needed_pods();
        self.outputs.pods.send_if_modified(|scope| {
            let other = *scope != needed;
            if other {
                tracing::info!(all = needed.fields.is_none(), "pod watch scope changed");
                *scope = needed;
            }
            other
        });
    }

    fn host_changed(&mut self, changed: &Result<(), Error>) {
        if let Err(error) = changed {
            tracing::warn!(
                error = error.chain(),
                "cannot follow links and routes; changes may have been missed"
            );
        }
        self.deadlines.host_changed(Instant::now());
    }

    fn policy_changed(&mut self, changed: &Result<(), Error>) {
        match changed {
            // Or the backend itself: what was written and what is there are compared before
            // anything is said.
            Ok(()) => tracing::debug!("packet filter may have changed; reading it again"),
            Err(error) => tracing::warn!(
                error = error.chain(),
                "cannot follow the packet filter; changes may have been missed"
            ),
        }
        self.deadlines.policy_changed(Instant::now());
    }

    fn may_write(&mut self) -> bool {
        let needed = self.needed_pods();
        self.interfaces.is_some() && self.initial_sync.is_open(&needed)
    }

    /// Reads again what it is time to read again.
    async fn refresh(&mut self) {
        if self.deadlines.must_read_host(Instant::now()) {
            self.read_host().await;
            self.reconciler.forget_links_and_routes();
            self.deadlines.converge_soon();
        }
        if self.deadlines.must_restore_policy(Instant::now()) {
            self.deadlines.restoring_policy(Instant::now());
            self.restore_policy().await;
            self.deadlines.converge_soon();
            self.deadlines.check_hold(Instant::now());
        }
        if self.ports.expire(Instant::now()) {
            self.deadlines.converge_soon();
        }
        if self.deadlines.must_resync(Instant::now()) {
            self.reconciler.forget_all();
            self.deadlines.resyncing(Instant::now());
        }
    }

    /// Whatever else is due, what was in force is there again first: only so is it known who
    /// changed it.
    async fn restore_policy(&mut self) {
        match self.reconciler.restore_policy().await {
            Ok(Outcome::Applied) => {
                tracing::warn!("restored the packet filter after a foreign change");
            }
            Ok(Outcome::Unchanged) => {}
            Err(error) => tracing::warn!(
                kind = error.kind.as_str(),
                error = error.chain(),
                "cannot restore the packet filter"
            ),
        }
    }

    /// Does what is due.
    async fn work(&mut self) {
        self.refresh().await;
        if self.deadlines.must_converge(Instant::now()) && self.may_write() {
            self.hold = None;
            self.converge().await;
        }
        self.keep_hold().await;
    }

    /// Sees to it that what was governed before a boot waits as long as nothing else may be
    /// written.
    async fn keep_hold(&mut self) {
        let Some(hold) = self
            .hold
            .as_ref()
            .filter(|_| self.deadlines.must_check_hold(Instant::now()))
        else {
            return;
        };
        match self.reconciler.hold(hold, self.settings.hold_at_boot).await {
            Ok(holding) => {
                self.deadlines.holds();
                self.metrics.holding(holding);
                let known = self
                    .outputs
                    .in_force
                    .send_replace(holding.then(|| NodeDesired {
                        policy: hold.clone(),
                        ..NodeDesired::default()
                    }))
                    .is_some();
                if holding && !known {
                    let governed = hold
                        .start_gate
                        .as_ref()
                        .map_or(0, |gate| gate.governed.len());
                    tracing::warn!(
                        governed,
                        "blocking traffic to destinations governed before the boot until the initial sync"
                    );
                }
                self.settings.kernel_backoff.succeeded();
            }
            Err(error) => {
                let delay = self.settings.kernel_backoff.delay();
                self.deadlines.hold_failed(delay, Instant::now());
                tracing::error!(
                    kind = error.kind.as_str(),
                    error = error.chain(),
                    "cannot block traffic to destinations governed before the boot"
                );
            }
        }
    }

    async fn read_host(&mut self) {
        self.deadlines.reading_host(Instant::now());
        let host = &self.host;
        let read = async {
            Ok::<_, Error>((
                host.underlay().await?,
                host.interfaces().await?,
                host.attachments().await?,
                host.routes().await?,
            ))
        };
        match bounded("read of the host", bounded::LIMIT, read).await {
            Ok((underlay, interfaces, mut attachments, routes)) => {
                let egress = std::mem::take(&mut attachments.egress);
                if matches!(self.inherited, Inherited::Unknown) {
                    let held: BTreeSet<IpAddr> = egress.into_iter().collect();
                    self.index.set_granted(Some(held.clone()));
                    self.inherited = Inherited::Known(held);
                }
                self.index.set_attachments(attachments);
                self.index.set_host_routes(routes);
                if self.underlay != underlay || self.interfaces.is_none() {
                    self.index.set_underlay(underlay.clone());
                    self.underlay = underlay;
                }
                self.interfaces = Some(interfaces);
            }
            Err(error) => {
                tracing::error!(
                    kind = error.kind.as_str(),
                    error = error.chain(),
                    "cannot read links, addresses and routes"
                );
                self.deadlines.host_failed(Instant::now());
            }
        }
    }

    /// Once for each.
    fn tell_overlaps(&mut self) {
        let overlaps = self.index.overlaps();
        for overlap in overlaps
            .iter()
            .filter(|overlap| !self.overlaps.contains(overlap))
        {
            tracing::warn!(
                "{overlap}: it is not used, and nothing is taken from the host; choose another tunnel.ipv4CIDR or tunnel.ipv6CIDR"
            );
        }
        self.overlaps = overlaps.to_vec();
    }

    /// Once each time that it begins.
    fn tell_unknown_networks(&mut self) -> bool {
        let unknown = self.index.pod_networks_are_unknown();
        if unknown && !self.pod_networks_unknown {
            tracing::warn!("{POD_NETWORKS_ADVICE}");
        }
        self.pod_networks_unknown = unknown;
        unknown
    }

    /// Tells what is in force, where that is news. A policy is as soon as its driver says so; the
    /// ways are once everything succeeded.
    fn tell_in_force(&mut self, desired: &NodeDesired, result: &Result<Outcome, Error>) {
        let policy = self.reconciler.in_force();
        let told = &self.outputs.in_force;
        match (policy, result) {
            (InForce::Unknown, _) | (InForce::Unchanged, Err(_)) => {}
            (InForce::Written, Err(_)) => {
                let former = told.borrow().clone().unwrap_or_default();
                told.send_replace(Some(NodeDesired {
                    policy: desired.policy.clone(),
                    addressed: desired.addressed.clone(),
                    ..former
                }));
                self.told_in_part = true;
            }
            (_, Ok(outcome)) => {
                let is_news = policy == InForce::Written
                    || *outcome == Outcome::Applied
                    || self.told_in_part
                    || told.borrow().is_none();
                if is_news {
                    told.send_replace(Some(desired.clone()));
                }
                self.told_in_part = false;
            }
        }
    }

    fn relaying(&self) -> Relaying {
        match &self.settings.relay_lacking {
            _ if !self.index.relays() => Relaying::NotAsked,
            Some(lacking) => Relaying::Lacking(lacking.clone()),
            None => Relaying::Asked(self.drivers_health.relay.read()),
        }
    }

    async fn converge(&mut self) {
        self.metrics.watch.synced();
        self.deadlines.converging();
        let desired = self.index.desired();
        self.follow_questions();
        let result = self.reconciler.converge(&desired).await;
        match &result {
            Ok(_) => {
                self.settings.kernel_backoff.succeeded();
                self.deadlines.converged();
            }
            Err(error) if error.kind.is_retryable() => {
                let delay = self.settings.kernel_backoff.delay();
                self.deadlines.retry_after(delay, Instant::now());
            }
            Err(_) => self.deadlines.converged(),
        }
        self.tell_in_force(&desired, &result);
        if result.is_ok() {
            self.metrics.holding(false);
            self.follow_gateways(&desired);
        }
        // After a failure too: of an address that could not be had the announcer says so, and the
        // others are here.
        tell(&self.outputs.held, &desired.addresses);
        self.health.set_ready(result.is_ok());
        self.tell_overlaps();
        let pod_networks_unknown = self.tell_unknown_networks();
        let tracking = self.inputs.untracked.tell(&self.index.surroundings());
        self.follow_ports();
        let findings = self.inputs.findings().clone();
        let report = Report {
            underlay: self.underlay.clone(),
            interfaces: self.interfaces.clone().unwrap_or_default(),
            addressed: desired.tunnel.local.is_some(),
            tunnel_mtu: desired
                .tunnel
                .local
                .as_ref()
                .map(|local| self.encapsulation.links(local).mtu)
                .unwrap_or_default(),
            overlaps: self.index.overlaps().to_vec(),
            conflicts: findings.conflicts,
            silent: findings.silent,
            ports: self.ports.asked(),
            pod_networks_unknown,
            tracking,
            tunnel: self.drivers_health.tunnel.read(),
            steering: self.drivers_health.steering.read(),
            policy: self.drivers_health.policy.read(),
            relay: self.relaying(),
            backend: self.settings.backend.clone(),
        };
        self.metrics.tunnel_ready(report.is_tunnel_ready());
        self.outputs.reports.send_replace(Some(report));
    }
}

/// Says it to those who listen, unless they know it.
fn tell<T: Clone + PartialEq>(listeners: &watch::Sender<T>, now: &T) {
    listeners.send_if_modified(|before| {
        let changed = before != now;
        if changed {
            before.clone_from(now);
        }
        changed
    });
}
