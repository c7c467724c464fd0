//! An agent at work: what happens becomes something due, and what is due is done.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use kube::Api;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    bounded::{self, bounded},
    builder::Agent,
    driver_health::{self, DriversHealth},
    reconciler::NodeReconciler,
    settings::{AgentSettings, MANAGER},
    state_file::StateFile,
    tasks::{
        address_acquisition::Findings,
        address_conflicts::{AddressConflictDetector, Channels},
        announcements::Announcements,
        boot_state::{self, BootStateWriter},
        counters,
        lease::{LeaseRenewer, Renewal},
        probes::{Ends, GatewayProbes},
        stale_connections::StaleConnections,
        status::{POD_NETWORKS_ADVICE, Report, StatusWriter},
        untracked::Untracked,
    },
    watches::{AgentUpdate, own_pods, spawn_watches},
};
use crate::{
    AddressesDesired, Encapsulation, Error, ErrorKind, Host, NodeDesired, Outcome, PolicyDesired,
    PolicyMonitor, ProbeAddress, Questions,
    api::{EgressNodeStatus, Interface},
    index::{Index, IndexSettings},
    liveness::LivenessSettings,
    model::{Family, NodeName},
    plan::Overlap,
    runtime::{
        health::Health,
        join::ended_alone,
        kube::{
            initial_sync::InitialSync,
            interner::Interner,
            observed::Observed,
            watch::{Message, Scope},
            watches::{Watches, kind},
        },
        metrics::AgentMetrics,
        time::wait_until,
    },
    world::Change,
};

/// How many messages may wait for the loop; watches wait once there are more.
const INBOX: usize = 4096;

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
    index: Index,
    initial_sync: InitialSync,
    reconciler: NodeReconciler,
    drivers_health: DriversHealth,
    host: Arc<dyn Host>,
    monitor: Option<Arc<dyn PolicyMonitor>>,
    interfaces: Option<Vec<Interface>>,
    underlay: imbl::OrdMap<crate::model::Family, crate::Underlay>,
    /// Whether nothing says which addresses pods have, as the log has it.
    pod_networks_unknown: bool,
    /// What others take out of connection tracking.
    untracked: Untracked,
    /// The overlay addresses that can't be used, as the log has them.
    overlaps: Vec<Overlap>,
    inbox: mpsc::Receiver<Message<AgentUpdate>>,
    pods: watch::Sender<Scope>,
    /// The policies that are watched, and the last round of them that was listed.
    policies: (watch::Sender<Scope>, watch::Sender<u64>),
    own: watch::Sender<Option<Observed<EgressNodeStatus>>>,
    reports: watch::Sender<Option<Report>>,
    in_force: watch::Sender<Option<NodeDesired>>,
    /// The egress addresses that this node answers for.
    held: watch::Sender<AddressesDesired>,
    encapsulation: Arc<dyn Encapsulation>,
    /// The gateway nodes that are probed, and those of them that are down.
    probed: watch::Sender<Ends>,
    down: (
        watch::Sender<BTreeSet<NodeName>>,
        watch::Receiver<BTreeSet<NodeName>>,
    ),
    /// The egress addresses that others were heard to answer for.
    conflicting_addresses: (
        watch::Sender<BTreeSet<IpAddr>>,
        watch::Receiver<BTreeSet<IpAddr>>,
    ),
    /// The egress addresses that are asked for before they are taken, and what that came to.
    questions: watch::Sender<Option<Questions>>,
    findings: (watch::Sender<Findings>, watch::Receiver<Findings>),
    /// Those that the kernel held when the agent started; none before the host was read. Only where
    /// they are asked for.
    inherited: Inherited,
    state: Option<Arc<StateFile>>,
    /// What waits until everything was listed; none where nothing does, and once something was
    /// listed.
    hold: Option<PolicyDesired>,
    /// Settings as they are now, and those of them that others follow.
    changes: watch::Receiver<AgentSettings>,
    liveness: watch::Sender<LivenessSettings>,
    resets: watch::Sender<bool>,
    metrics: AgentMetrics,
    health: Health,
    tasks: JoinSet<()>,
    due: Deadlines,
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

/// What is to be done, and when.
#[derive(Debug)]
struct Deadlines {
    /// The desired state may have changed.
    converge: bool,
    /// Not before: the last attempt failed.
    retry: Option<Instant>,
    /// The host changed and is read again then.
    host: Option<Instant>,
    /// The host was read last.
    host_read: Option<Instant>,
    /// The packet filter was changed by somebody else and is read again then.
    policy: Option<Instant>,
    /// It was read for such a reason last.
    policy_read: Option<Instant>,
    /// Before everything was listed: the kernel may lack what waits, or have what does not wait any
    /// more. Not before then.
    hold: Option<Instant>,
    /// Everything is read again then.
    resync: Instant,
}

impl Session {
    /// Starts all that an agent does besides converging.
    pub(crate) fn start(agent: Agent, shutdown: &CancellationToken) -> Self {
        let client = agent.client.clone();
        let (sources, connections) = (agent.counters.clone(), agent.connections.clone());
        let (prober, announcer, inquirer) = (
            agent.prober.clone(),
            agent.announcer.clone(),
            agent.inquirer.clone(),
        );
        let untracking = agent.untracking.clone();
        let mut session = Self::start_reading(agent);
        let settings = session.settings.clone();
        let writer = StatusWriter {
            nodes: Api::all(client.clone()),
            node: settings.index.node.clone(),
            manager: MANAGER,
            backoff: settings.api_backoff.clone(),
            patience: settings.patience,
            metrics: session.metrics.write.clone(),
        };
        session
            .tasks
            .spawn(writer.run(session.reports.subscribe(), session.own.subscribe()));
        let renewals = watch::Sender::new(None);
        if let Some(inquirer) = inquirer {
            session.inherited = Inherited::Unknown;
            session.index.set_granted(Some(BTreeSet::new()));
            let detector = AddressConflictDetector::new(
                inquirer,
                settings.lease.duration,
                session.channels(&renewals),
                session.metrics.clone(),
            );
            session.tasks.spawn(detector.run());
        }
        let renewer = LeaseRenewer {
            client,
            node: settings.index.node.clone(),
            manager: MANAGER,
            settings: settings.lease.clone(),
            backoff: settings.api_backoff.clone(),
            metrics: session.metrics.lease.clone(),
            renewals,
        };
        session.tasks.spawn(renewer.run(shutdown.clone()));
        if let Some(prober) = prober {
            let gateways = GatewayProbes::new(
                prober,
                session.liveness.subscribe(),
                session.metrics.clone(),
            );
            session
                .tasks
                .spawn(gateways.run(session.probed.subscribe(), session.down.0.clone()));
        }
        if let Some(announcer) = announcer {
            let announcements = Announcements {
                announcer,
                metrics: session.metrics.clone(),
            };
            session
                .tasks
                .spawn(announcements.run(session.held.subscribe()));
        }
        if let Some((connections, view)) = connections {
            let stale = StaleConnections {
                connections,
                view,
                mask: settings.mask,
                wanted: session.resets.subscribe(),
                may_hold_governed: true,
                resync: settings.resync,
                backoff: settings.kernel_backoff.clone(),
                metrics: session.metrics.clone(),
            };
            session.tasks.spawn(stale.run(session.in_force.subscribe()));
        }
        if let Some(file) = session.state.clone() {
            let writer = BootStateWriter {
                file,
                backoff: settings.kernel_backoff.clone(),
                metrics: session.metrics.clone(),
            };
            session
                .tasks
                .spawn(writer.run(session.in_force.subscribe()));
        }
        if let Some(rules) = untracking {
            session.tasks.spawn(
                session
                    .untracked
                    .reader(rules, settings.spacing, settings.resync)
                    .run(),
            );
        }
        if let Some(source) = sources {
            session.tasks.spawn(counters::read(
                source,
                settings.counters,
                session.metrics.clone(),
            ));
        }
        session
    }

    fn channels(&self, renewals: &watch::Sender<Option<Renewal>>) -> Channels {
        Channels {
            held: self.held.subscribe(),
            renewals: renewals.subscribe(),
            policies: self.policies.0.clone(),
            listed: self.policies.1.subscribe(),
            conflicting_addresses: self.conflicting_addresses.0.clone(),
            questions: self.questions.subscribe(),
            findings: self.findings.0.clone(),
        }
    }

    /// Starts watching, and nothing that writes.
    pub(crate) fn start_reading(agent: Agent) -> Self {
        let Agent {
            client,
            settings,
            changes,
            drivers,
            encapsulation,
            host,
            monitor,
            state,
            metrics,
            health,
            ..
        } = agent;
        let (out, inbox) = mpsc::channel(INBOX);
        let (pods, pod_scope) = watch::channel(own_pods(&settings.index.node));
        let (policies, policy_scope) = watch::channel(Scope::default());
        let drivers_health = DriversHealth::default();
        let drivers = driver_health::instrument(drivers, &drivers_health, &metrics);
        let mut tasks = JoinSet::new();
        let watches = Watches {
            client,
            out,
            backoff: settings.api_backoff.clone(),
            metrics: metrics.watch.clone(),
            interner: Interner::default(),
        };
        let kinds = spawn_watches(&watches, &settings, (pod_scope, policy_scope), &mut tasks);
        let now = Instant::now();
        Self {
            index: Index::new(settings.index.clone()),
            initial_sync: InitialSync::new(kinds),
            reconciler: NodeReconciler::new(drivers, encapsulation.clone(), metrics.clone()),
            encapsulation,
            due: Deadlines {
                converge: true,
                retry: None,
                host: Some(now),
                host_read: None,
                policy: None,
                policy_read: None,
                hold: Some(now),
                resync: now + settings.resync,
            },
            underlay: imbl::OrdMap::new(),
            overlaps: Vec::new(),
            pod_networks_unknown: false,
            untracked: Untracked::default(),
            interfaces: None,
            own: watch::Sender::new(None),
            reports: watch::Sender::new(None),
            in_force: watch::Sender::default(),
            held: watch::Sender::default(),
            probed: watch::Sender::default(),
            down: watch::channel(BTreeSet::new()),
            conflicting_addresses: watch::channel(BTreeSet::new()),
            questions: watch::Sender::default(),
            findings: watch::channel(Findings::default()),
            inherited: Inherited::NotAsked,
            policies: (policies, watch::Sender::new(0)),
            state,
            hold: None,
            changes,
            liveness: watch::Sender::new(settings.liveness),
            resets: watch::Sender::new(settings.reset_connections),
            settings,
            drivers_health,
            host,
            monitor,
            inbox,
            pods,
            metrics,
            health,
            tasks,
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
        let retry = self.due.retry.filter(|_| self.due.converge);
        let hold = self.due.hold.filter(|_| self.hold.is_some());
        let wake = [
            retry,
            self.due.host,
            self.due.policy,
            hold,
            Some(self.due.resync),
        ]
        .into_iter()
        .flatten()
        .min();
        let mut batch = Vec::new();
        tokio::select! {
            () = shutdown.cancelled() => {}
            _ = self.inbox.recv_many(&mut batch, INBOX) => {}
            changed = self.host.changed(), if self.due.host.is_none() => self.host_changed(&changed),
            Ok(()) = self.down.1.changed() => self.gateways_changed(),
            Ok(()) = self.conflicting_addresses.1.changed() => self.conflicts_changed(),
            Ok(()) = self.findings.1.changed() => self.findings_changed(),
            () = self.untracked.changed() => self.due.converge = true,
            Ok(()) = self.changes.changed() => self.settings_changed(),
            changed = policy_changed(self.monitor.as_deref()), if self.due.policy.is_none() => self.policy_changed(&changed),
            Some(ended) = self.tasks.join_next() => if !shutdown.is_cancelled() {
                return Err(ended_alone(ended));
            },
            () = wait_until(wake) => {}
        }
        while let Ok(message) = self.inbox.try_recv() {
            batch.push(message);
        }
        for message in batch {
            self.apply(message);
        }
        self.follow_needed_pods();
        Ok(())
    }

    fn apply(&mut self, message: Message<AgentUpdate>) {
        match message {
            Message::Updates(updates) => {
                for update in updates {
                    let change = match update {
                        AgentUpdate::World(change) => *change,
                        AgentUpdate::Pod(name, pod) => Change::Pod(name, pod),
                        AgentUpdate::Own(change, observed) => {
                            self.own.send_replace(observed.map(|observed| *observed));
                            *change
                        }
                    };
                    self.due.converge |= self.index.apply(change);
                }
            }
            Message::Synced(kind, scope) => {
                tracing::debug!(kind, ?scope, "listed");
                if kind == kind::POLICIES {
                    self.policies.1.send_replace(scope.round);
                }
                self.initial_sync.synced(kind, scope);
            }
            Message::Interrupted(kind, error) => {
                tracing::warn!(kind, %error, "watch starts again");
                self.metrics.watch.restarted(kind);
            }
        }
    }

    /// Takes over what may change while the agent runs.
    fn settings_changed(&mut self) {
        let changed = self.changes.borrow_and_update().clone();
        let fixed = &self.settings.index;
        let (node, auto_cluster_networks) = (fixed.node.clone(), fixed.auto_cluster_networks);
        self.settings.index = IndexSettings {
            node,
            auto_cluster_networks,
            ..changed.index
        };
        self.index.configure(self.settings.index.clone());
        self.due.converge = true;
        self.liveness.send_replace(changed.liveness);
        self.resets.send_replace(changed.reset_connections);
        self.settings.hold_at_boot = changed.hold_at_boot;
        self.due.hold = Some(Instant::now());
    }

    fn gateways_changed(&mut self) {
        self.index.set_down(self.down.1.borrow_and_update().clone());
        self.due.converge = true;
    }

    /// Of two nodes that answer for an address one is too many: nothing that failed before keeps it
    /// here.
    fn conflicts_changed(&mut self) {
        self.index
            .set_contested(self.conflicting_addresses.1.borrow_and_update().clone());
        self.due.converge = true;
        self.due.retry = None;
    }

    /// What nobody else has may be taken, and what somebody has is told.
    fn findings_changed(&mut self) {
        self.index
            .set_granted(Some(self.findings.1.borrow_and_update().granted.clone()));
        self.due.converge = true;
    }

    /// Asks for the egress addresses that the node is to take, once everything was listed.
    fn follow_questions(&mut self) {
        let Inherited::Known(held) = &mut self.inherited else {
            return;
        };
        let questions = self.index.questions();
        if self.questions.borrow().is_none() {
            // What the kernel holds and the node shall not have goes now, and is asked for if it
            // comes back.
            held.retain(|address| questions.own.held.contains_key(address));
            self.index.set_granted(Some(held.clone()));
        }
        tell(
            &self.questions,
            &Some(Questions {
                held: held.clone(),
                ..questions
            }),
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
        tell(&self.probed, &ends);
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
        self.pods.send_if_modified(|scope| {
            let other = *scope != needed;
            if other {
                tracing::info!(
                    all = needed.fields.is_none(),
                    "the pods that are followed change"
                );
                *scope = needed;
            }
            other
        });
    }

    /// Several changes of the host become one read soon after the first, and reads keep `spacing`
    /// apart.
    fn host_changed(&mut self, changed: &Result<(), Error>) {
        if let Err(error) = changed {
            tracing::warn!(
                error = error.chain(),
                "changes of the host may have been missed"
            );
        }
        let soon = Instant::now() + self.settings.quiet;
        self.due.host = Some(
            self.due
                .host_read
                .map_or(soon, |read| soon.max(read + self.settings.spacing)),
        );
    }

    /// The first change is answered at once: until then governed traffic may be without its rules.
    /// More of them keep `spacing` apart.
    fn policy_changed(&mut self, changed: &Result<(), Error>) {
        match changed {
            // Or the backend itself: what was written and what is there are compared before
            // anything is said.
            Ok(()) => tracing::debug!("the packet filter may have changed; it is read again"),
            Err(error) => tracing::warn!(
                error = error.chain(),
                "changes of the packet filter may have been missed"
            ),
        }
        let now = Instant::now();
        self.due.policy = Some(
            self.due
                .policy_read
                .map_or(now, |read| now.max(read + self.settings.spacing)),
        );
    }

    fn may_write(&mut self) -> bool {
        let needed = self.needed_pods();
        self.interfaces.is_some() && self.initial_sync.is_open(&needed)
    }

    /// Reads again what it is time to read again.
    async fn refresh(&mut self) {
        if self.due.host.is_some_and(|at| at <= Instant::now()) {
            self.read_host().await;
            self.reconciler.forget_links_and_routes();
            self.due.converge = true;
        }
        if self.due.policy.is_some_and(|at| at <= Instant::now()) {
            self.due.policy = None;
            self.due.policy_read = Some(Instant::now());
            self.restore_policy().await;
            self.due.converge = true;
            self.due.hold = Some(Instant::now());
        }
        if self.due.resync <= Instant::now() {
            self.reconciler.forget_all();
            self.due.resync = Instant::now() + self.settings.resync;
            self.due.converge = true;
            self.due.hold = Some(Instant::now());
        }
    }

    /// Whatever else is due, what was in force is there again first: only so is it known who
    /// changed it.
    async fn restore_policy(&mut self) {
        match self.reconciler.restore_policy().await {
            Ok(Outcome::Applied) => tracing::warn!(
                "somebody else changed the packet filter; what was in force is there again"
            ),
            Ok(Outcome::Unchanged) => {}
            Err(error) => tracing::warn!(
                kind = error.kind.as_str(),
                error = error.chain(),
                "the packet filter was not restored"
            ),
        }
    }

    /// Does what is due.
    async fn work(&mut self) {
        self.refresh().await;
        let waits = self.due.retry.is_some_and(|at| at > Instant::now());
        if self.due.converge && !waits && self.may_write() {
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
            .filter(|_| self.due.hold.is_some_and(|at| at <= Instant::now()))
        else {
            return;
        };
        match self.reconciler.hold(hold, self.settings.hold_at_boot).await {
            Ok(holding) => {
                self.due.hold = None;
                self.metrics.holding(holding);
                let known = self
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
                        "traffic of pods to what was governed before the boot waits until everything was listed"
                    );
                }
                self.settings.kernel_backoff.succeeded();
            }
            Err(error) => {
                self.due.hold = Some(Instant::now() + self.settings.kernel_backoff.delay());
                tracing::error!(
                    kind = error.kind.as_str(),
                    error = error.chain(),
                    "what was governed before the boot can't be held"
                );
            }
        }
    }

    async fn read_host(&mut self) {
        self.due.host_read = Some(Instant::now());
        self.due.host = None;
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
                    "the host can't be read"
                );
                self.due.host =
                    Some(Instant::now() + self.settings.spacing.max(self.settings.quiet));
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

    async fn converge(&mut self) {
        self.metrics.watch.synced();
        self.due.converge = false;
        let desired = self.index.desired();
        self.follow_questions();
        let result = self.reconciler.converge(&desired).await;
        self.due.retry = match &result {
            Ok(_) => {
                self.settings.kernel_backoff.succeeded();
                None
            }
            Err(error) if error.kind.is_retryable() => {
                self.due.converge = true;
                Some(Instant::now() + self.settings.kernel_backoff.delay())
            }
            Err(_) => None,
        };
        let unknown = self.in_force.borrow().is_none();
        if matches!(&result, Ok(outcome) if *outcome == Outcome::Applied || unknown) {
            self.in_force.send_replace(Some(desired.clone()));
        }
        if result.is_ok() {
            self.metrics.holding(false);
            self.follow_gateways(&desired);
        }
        // After a failure too: of an address that could not be had the announcer says so, and the
        // others are here.
        tell(&self.held, &desired.addresses);
        self.health.set_ready(result.is_ok());
        self.tell_overlaps();
        let pod_networks_unknown = self.tell_unknown_networks();
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
            conflicts: self.findings.1.borrow().conflicts.clone(),
            silent: self.findings.1.borrow().silent.clone(),
            pod_networks_unknown,
            tracking: self.untracked.tell(&self.index.surroundings()),
            tunnel: self.drivers_health.tunnel.read(),
            steering: self.drivers_health.steering.read(),
            policy: self.drivers_health.policy.read(),
            backend: self.settings.backend.clone(),
        };
        self.metrics.tunnel_ready(report.is_tunnel_ready());
        self.reports.send_replace(Some(report));
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

async fn policy_changed(monitor: Option<&dyn PolicyMonitor>) -> Result<(), Error> {
    match monitor {
        Some(monitor) => monitor.changed().await,
        None => std::future::pending().await,
    }
}
