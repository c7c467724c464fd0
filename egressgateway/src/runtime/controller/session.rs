//! A controller at work: watches, plans wholesale, and writes what differs, as long as it leads.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use k8s_openapi::{
    api::{coordination::v1::Lease, core::v1 as core},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
    jiff::Timestamp,
};
use kube::{
    Api, Client, Resource,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    builder::Controller,
    cache::{ControllerUpdate, ObjectCache},
    events::{EventWriter, Regarding},
    settings::{ControllerSettings, MANAGER},
    writes::{Version, Write, writes},
};
use crate::{
    Error, ErrorKind,
    allocator::Allocator,
    api::{EgressGateway, EgressGatewayPolicy, EgressNode, GatewayNodeStatus},
    controller::{self, Event},
    model::{MarkMask, NodeName},
    runtime::{
        health::Health,
        join::ended_alone,
        kube::{
            agent_lease,
            cluster_networks::ClusterNetworks,
            contact::Contact,
            election::{Election, Leading},
            errors,
            initial_sync::InitialSync,
            interner::Interner,
            observed::Observed,
            partial::Partial,
            watch::{Key, Message, Received, Scope, key},
            watches::{self, Watches, kind},
        },
        metrics::ControllerMetrics,
        time::wait_until,
    },
};

/// How many messages may wait for the loop.
const INBOX: usize = 4096;
/// How many requests are under way at once.
const CONCURRENCY: usize = 8;

impl Controller {
    /// Works until shutdown, then hands leadership over.
    ///
    /// # Errors
    /// When one of its parts ended on its own, which is a defect.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Error> {
        let health = self.health.clone();
        let result = Session::start(self, &shutdown).run(shutdown).await;
        health.set_ready(false);
        health.end();
        result
    }
}

/// A running controller.
pub(crate) struct Session {
    client: Client,
    settings: ControllerSettings,
    allocator: Arc<dyn Allocator>,
    plan_settings: watch::Receiver<controller::ControllerSettings>,
    cache: ObjectCache,
    initial_sync: InitialSync,
    inbox: mpsc::Receiver<Message<ControllerUpdate>>,
    leading: watch::Receiver<Leading>,
    /// Answers of the API server to the election.
    contact: watch::Receiver<Option<Contact>>,
    metrics: ControllerMetrics,
    events: EventWriter,
    health: Health,
    watch_tasks: JoinSet<()>,
    election: JoinSet<()>,
    /// The next plan; none: nothing changed.
    plan: Option<Instant>,
    resync: Instant,
    /// When it was last looked whether a Lease went stale, by the time in which Leases age.
    looked: Instant,
    /// When the next grace time of a drained node ends.
    grace: Option<Instant>,
}

impl Session {
    pub(crate) fn start(controller: Controller, shutdown: &CancellationToken) -> Self {
        let Controller {
            client,
            settings,
            allocator,
            plan: plan_settings,
            cluster,
            metrics,
            health,
        } = controller;
        let (out, inbox) = mpsc::channel(INBOX);
        let (leader, leading) = watch::channel(None);
        let (answers, contact) = watch::channel(None);
        let (mut watch_tasks, mut election) = (JoinSet::new(), JoinSet::new());
        let watches = Watches {
            client: client.clone(),
            out,
            backoff: settings.backoff.clone(),
            metrics: metrics.watch.clone(),
            interner: Interner::default(),
        };
        spawn_watches(&watches, &settings, &mut watch_tasks);
        if plan_settings.borrow().auto_cluster_networks {
            let networks: ClusterNetworks<ControllerUpdate> = ClusterNetworks {
                client: watches.client,
                interval: settings.networks,
                backoff: watches.backoff,
                out: watches.out,
            };
            watch_tasks.spawn(networks.run());
        }
        let candidate = Election::new(
            client.clone(),
            settings.election.clone(),
            metrics.lease.clone(),
            answers,
        );
        election.spawn(candidate.run(leader, shutdown.clone()));
        let initial_sync = InitialSync::new([
            kind::NODES,
            kind::EGRESS_NODES,
            kind::GATEWAYS,
            kind::POLICIES,
            kind::LEASES,
        ]);
        let events = EventWriter::new(
            client.clone(),
            &settings.election.identity,
            metrics.write.clone(),
        );
        let looked = Instant::now();
        let resync = looked + settings.resync;
        Self {
            client,
            settings,
            allocator,
            plan_settings,
            cache: ObjectCache {
                cluster,
                ..ObjectCache::default()
            },
            initial_sync,
            inbox,
            leading,
            contact,
            metrics,
            events,
            health,
            watch_tasks,
            election,
            plan: None,
            resync,
            looked,
            grace: None,
        }
    }

    pub(crate) async fn run(mut self, shutdown: CancellationToken) -> Result<(), Error> {
        loop {
            self.wait(&shutdown).await?;
            tokio::select! {
                // What a silent API server does not answer keeps nobody from ending: it names a
                // version, and the next leader plans again.
                () = shutdown.cancelled() => break,
                () = self.work() => {}
            }
        }
        // The election hands over before the process ends.
        while self.election.join_next().await.is_some() {}
        Ok(())
    }

    async fn wait(&mut self, shutdown: &CancellationToken) -> Result<(), Error> {
        let now = Instant::now();
        let expiry = self.cache.lease_tracker.next_expiry(self.looked);
        let open = self.initial_sync.is_open(&Scope::default());
        let term = self.leading.borrow().filter(|until| *until > now);
        let plan = self.plan.filter(|_| open && term.is_some());
        let wake = [plan, expiry, term, self.grace, Some(self.resync)]
            .into_iter()
            .flatten()
            .min();
        let mut batch = Vec::new();
        tokio::select! {
            () = shutdown.cancelled() => {}
            _ = self.inbox.recv_many(&mut batch, INBOX) => {}
            Ok(()) = self.plan_settings.changed() => self.plan_soon(),
            Ok(()) = self.leading.changed() => self.leader_changed(term.is_some()),
            Ok(()) = self.contact.changed() => {}
            Some(ended) = self.watch_tasks.join_next() => return Err(ended_alone(ended)),
            Some(ended) = self.election.join_next() => if !shutdown.is_cancelled() {
                return Err(ended_alone(ended));
            },
            () = wait_until(wake) => {}
        }
        self.look_at_leases(expiry);
        while let Ok(message) = self.inbox.try_recv() {
            batch.push(message);
        }
        for message in batch {
            self.apply(message);
        }
        Ok(())
    }

    /// A Lease that went stale since the last look changes the plan.
    fn look_at_leases(&mut self, expiry: Option<Instant>) {
        self.cache
            .lease_tracker
            .heard(*self.contact.borrow_and_update());
        self.looked = self.cache.lease_tracker.clock(Instant::now());
        if expiry.is_some_and(|at| at <= self.looked) {
            self.plan_soon();
        }
    }

    /// A new leader plans at once.
    fn leader_changed(&mut self, led: bool) {
        let leads = self.leads();
        self.metrics.leading(leads);
        if leads && !led {
            self.metrics.elected();
            self.plan = Some(Instant::now());
        }
    }

    fn leads(&self) -> bool {
        self.leading
            .borrow()
            .is_some_and(|until| Instant::now() < until)
    }

    fn plan_soon(&mut self) {
        let soon = Instant::now() + self.settings.settle;
        self.plan = Some(self.plan.map_or(soon, |at| at.min(soon)));
    }

    fn apply(&mut self, message: Message<ControllerUpdate>) {
        match message {
            Message::Updates(updates) => {
                let now = Instant::now();
                let mut news = false;
                for update in updates {
                    news |= self.cache.apply(update, now);
                }
                if news {
                    self.plan_soon();
                }
            }
            Message::Synced(kind, scope) => {
                tracing::debug!(kind, "listed");
                self.initial_sync.synced(kind, scope);
                if kind == kind::LEASES {
                    self.cache.lease_tracker.listed();
                }
                if self.initial_sync.is_open(&Scope::default()) && !self.health.is_ready() {
                    self.metrics.watch.synced();
                    self.health.set_ready(true);
                    self.plan_soon();
                }
            }
            Message::Interrupted(kind, error) => {
                tracing::warn!(kind, %error, "watch failed; starting again");
                self.metrics.watch.restarted(kind);
                if kind == kind::LEASES {
                    self.cache.lease_tracker.interrupted(Instant::now());
                }
            }
        }
    }

    /// Tells what agents have found. Who does not lead leaves it to the one who does.
    async fn tell_news(&mut self) {
        let news = self.cache.news();
        let term = self
            .leading
            .borrow()
            .filter(|until| Instant::now() < *until);
        if let Some(until) = term.filter(|_| self.initial_sync.is_open(&Scope::default())) {
            let writer = self.events.clone();
            let tell = |(regarding, event): (Regarding, Event)| {
                let writer = writer.clone();
                async move { writer.write(&regarding, &event, until).await }
            };
            futures::stream::iter(news)
                .map(tell)
                .buffer_unordered(CONCURRENCY)
                .collect::<()>()
                .await;
        }
    }

    async fn work(&mut self) {
        self.tell_news().await;
        let now = Instant::now();
        if self.resync <= now {
            self.resync = now + self.settings.resync;
            self.plan_soon();
        }
        if self.grace.is_some_and(|end| end <= now) {
            self.grace = None;
            self.plan_soon();
        }
        self.metrics.leading(self.leads());
        let due = self.plan.is_some_and(|at| at <= now);
        if due && self.leads() && self.initial_sync.is_open(&Scope::default()) {
            self.plan = None;
            self.plan_and_write().await;
        }
    }

    async fn plan_and_write(&mut self) {
        let began = Instant::now();
        let mut fresh = self.cache.lease_tracker.fresh(began);
        let clock = Timestamp::now();
        {
            let mut cluster = self.cache.cluster.write();
            for node in self
                .cache
                .lease_tracker
                .unproven()
                .filter(|node| is_unknown(&cluster, node))
            {
                fresh.remove(node);
            }
            cluster.fresh_leases = fresh;
            cluster.stale_leases = self.cache.lease_tracker.stale(began);
            cluster.now = clock.as_second();
        }
        let plan = controller::plan(
            &self.cache.cluster.read(),
            &*self.allocator,
            &self.plan_settings.borrow_and_update(),
        );
        let agents = self.cache.cluster.read().fresh_leases.len();
        self.grace = grace_end(&plan, clock, began);
        self.metrics.planned_for(&plan);
        let writes = writes(plan, &self.cache, clock);
        self.metrics.planned(began.elapsed(), agents, writes.len());
        if writes.is_empty() {
            self.settings.backoff.succeeded();
            return;
        }
        tracing::info!(
            writes = writes.len(),
            "plan differs from the cluster; writing"
        );
        let writes: Vec<_> = writes
            .into_iter()
            .map(|write| (write.events(&self.cache), write))
            .collect();
        let this = &*self;
        let performed =
            futures::stream::iter(writes).map(|(news, write)| this.perform(write, news));
        let results: Vec<_> = performed.buffer_unordered(CONCURRENCY).collect().await;
        let (mut failed, mut again) = (false, false);
        for result in results {
            match result {
                Ok(Some(update)) => {
                    again |= self.cache.apply(update, Instant::now());
                }
                Ok(None) => {}
                Err(error) => failed |= error.kind.is_retryable(),
            }
        }
        if failed {
            self.plan = Some(Instant::now() + self.settings.backoff.delay());
        } else if again {
            self.settings.backoff.succeeded();
            self.plan_soon();
        }
    }

    /// Sends one request, unless leadership ended, and tells the news in it; returns what it made
    /// of the object.
    ///
    /// Its answer is awaited no longer than leadership is sure to last. The request may still
    /// arrive after that: it names a version.
    async fn perform(
        &self,
        write: Write,
        news: Option<(Regarding, Vec<Event>)>,
    ) -> Result<Option<ControllerUpdate>, Error> {
        let Some(until) = self
            .leading
            .borrow()
            .filter(|until| Instant::now() < *until)
        else {
            return Ok(None);
        };
        let (kind, object, description) = (write.kind(), write.object(), write.describe());
        let result = match tokio::time::timeout_at(until, self.send(write)).await {
            Ok(result) => result.map_err(|error| errors::from_api(error, description.clone())),
            Err(_) => Err(Error::new(
                ErrorKind::Transient,
                format!("{description}: no answer before leadership had to be renewed"),
            )),
        };
        self.metrics.write.wrote(
            kind,
            result.as_ref().map(|_| ()).map_err(|error| error.kind),
        );
        match &result {
            Ok(_) => tracing::debug!(object, "{description}"),
            Err(error) if error.kind == ErrorKind::Conflict => {
                tracing::debug!(
                    object,
                    error = error.chain(),
                    "write conflict; planning again"
                );
            }
            Err(error) => tracing::warn!(
                object,
                kind = error.kind.as_str(),
                error = error.chain(),
                "write failed"
            ),
        }
        if let (Ok(_), Some((regarding, events))) = (&result, news) {
            for event in &events {
                if event.reason == controller::events::ACTIVE_NODES_CHANGED {
                    self.metrics.active_changed();
                }
                self.events.write(&regarding, event, until).await;
            }
        }
        result
    }

    async fn send(&self, write: Write) -> Result<Option<ControllerUpdate>, kube::Error> {
        let mask = self.settings.plan.mask;
        Ok(match write {
            Write::Create(name, uid) => {
                let nodes: Api<EgressNode> = Api::all(self.client.clone());
                let node = nodes
                    .create(&PostParams::default(), &new_egress_node(name.as_str(), uid))
                    .await?;
                egress_node(&key(&node), Some(&Ok(node)))
            }
            Write::Delete(name, uid, resource_version) => {
                let nodes: Api<EgressNode> = Api::all(self.client.clone());
                let preconditions = Preconditions {
                    uid: Some(uid),
                    resource_version,
                };
                nodes
                    .delete(
                        name.as_str(),
                        &DeleteParams {
                            preconditions: Some(preconditions),
                            ..DeleteParams::default()
                        },
                    )
                    .await?;
                None
            }
            Write::Forget(node, uid, resource_version) => {
                let leases: Api<Lease> =
                    Api::namespaced(self.client.clone(), &self.settings.agents);
                let preconditions = Preconditions {
                    uid: Some(uid),
                    resource_version,
                };
                let parameters = DeleteParams {
                    preconditions: Some(preconditions),
                    ..DeleteParams::default()
                };
                leases
                    .delete(&agent_lease::lease_of(&node), &parameters)
                    .await?;
                None
            }
            Write::EgressNode(name, status, version) => {
                let mut status = serde_json::to_value(status).map_err(kube::Error::SerdeError)?;
                let held = self.cache.egress_nodes.get(&name);
                if held.is_some_and(|held| !held.status.port_blocks.is_empty()) {
                    // Somebody else may have written them. A field that is absent stays theirs.
                    if let Some(fields) = status.as_object_mut() {
                        fields.entry("portBlocks").or_insert_with(|| json!([]));
                    }
                }
                let node = self
                    .apply_status::<EgressNode>(name.as_str(), version, &status)
                    .await?;
                egress_node(&key(&node), Some(&Ok(node)))
            }
            Write::Gateway(name, status, version) => {
                let object = self
                    .apply_status::<EgressGateway>(name.as_str(), version, &status)
                    .await?;
                gateway(&key(&object), Some(&Ok(object)), mask)
            }
            Write::Policy(name, status, version) => {
                let object = self
                    .apply_status::<EgressGatewayPolicy>(name.as_str(), version, &status)
                    .await?;
                policy(&key(&object), Some(&Ok(object)))
            }
        })
    }

    async fn apply_status<K>(
        &self,
        name: &str,
        version: Version,
        status: &impl Serialize,
    ) -> Result<K, kube::Error>
    where
        K: Resource<DynamicType = (), Scope = kube::core::ClusterResourceScope>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug,
    {
        let metadata = ObjectMeta {
            name: Some(name.to_owned()),
            resource_version: version,
            ..ObjectMeta::default()
        };
        let body = json!({"apiVersion": K::api_version(&()), "kind": K::kind(&()), "metadata": metadata, "status": status});
        let objects: Api<K> = Api::all(self.client.clone());
        objects
            .patch_status(
                name,
                &PatchParams::apply(MANAGER).force(),
                &Patch::Apply(&body),
            )
            .await
    }
}

/// Whether a gateway's status says that the agent of this node did not renew its Lease in time.
fn is_unknown(cluster: &controller::Cluster, node: &NodeName) -> bool {
    let mut members = cluster
        .gateways
        .values()
        .flat_map(|gateway| &gateway.state.members);
    members.any(|member| member.node == *node && member.status == GatewayNodeStatus::Unknown)
}

/// When the first of the grace times ends.
fn grace_end(plan: &controller::ClusterPlan, clock: Timestamp, now: Instant) -> Option<Instant> {
    let ends = plan
        .gateways
        .values()
        .filter_map(|status| Some(status.draining.as_ref()?.until.0))
        .min()?;
    Some(now + Duration::try_from(ends.duration_since(clock)).unwrap_or_default())
}

fn new_egress_node(name: &str, uid: String) -> EgressNode {
    let owner = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: name.to_owned(),
        uid,
        controller: Some(true),
        ..OwnerReference::default()
    };
    let metadata = ObjectMeta {
        name: Some(name.to_owned()),
        owner_references: Some(vec![owner]),
        ..ObjectMeta::default()
    };
    EgressNode {
        metadata,
        ..EgressNode::default()
    }
}

fn spawn_watches(
    watches: &Watches<ControllerUpdate>,
    settings: &ControllerSettings,
    tasks: &mut JoinSet<()>,
) {
    let everything = || watch::channel(Scope::default()).1;
    let agents = Scope {
        labels: Some(format!(
            "{}={}",
            agent_lease::LABEL,
            agent_lease::LABEL_VALUE
        )),
        ..Scope::default()
    };
    let mask = settings.plan.mask;
    let nodes = watches.all::<Partial<core::Node>>(
        kind::NODES,
        everything(),
        Box::new(|key, received| watches::node(key, received).map(ControllerUpdate::World)),
    );
    tasks.spawn(nodes.run());
    tasks.spawn(
        watches
            .all::<EgressNode>(kind::EGRESS_NODES, everything(), Box::new(egress_node))
            .run(),
    );
    let gateways = watches.all::<EgressGateway>(
        kind::GATEWAYS,
        everything(),
        Box::new(move |key, received| gateway(key, received, mask)),
    );
    tasks.spawn(gateways.run());
    tasks.spawn(
        watches
            .all::<EgressGatewayPolicy>(kind::POLICIES, everything(), Box::new(policy))
            .run(),
    );
    let leases = Api::namespaced(watches.client.clone(), &settings.agents);
    tasks.spawn(
        watches
            .of::<Lease>(
                kind::LEASES,
                leases,
                watch::channel(agents).1,
                Box::new(lease),
            )
            .run(),
    );
}

fn egress_node(key: &Key, received: Option<&Received<EgressNode>>) -> Option<ControllerUpdate> {
    let change = watches::egress_node(key, received)?;
    let node = watches::known(received).ok()?;
    let observed = node.map(|node| Observed::new(node, node.status.clone().unwrap_or_default()));
    Some(ControllerUpdate::EgressNode(
        (&*key.name).into(),
        change,
        observed,
    ))
}

/// A gateway that can't be read keeps what is known of it: marks must outlive a mistake.
fn gateway(
    key: &Key,
    received: Option<&Received<EgressGateway>>,
    mask: MarkMask,
) -> Option<ControllerUpdate> {
    let gateway = watches::known(received).ok()?;
    let observed =
        gateway.map(|gateway| Observed::new(gateway, gateway.status.clone().unwrap_or_default()));
    Some(ControllerUpdate::Gateway(
        (&*key.name).into(),
        watches::gateway(key, received, mask),
        observed,
    ))
}

fn policy(key: &Key, received: Option<&Received<EgressGatewayPolicy>>) -> Option<ControllerUpdate> {
    let policy = watches::known(received).ok()?;
    let observed =
        policy.map(|policy| Observed::new(policy, policy.status.clone().unwrap_or_default()));
    Some(ControllerUpdate::Policy(
        (&*key.name).into(),
        watches::policy(key, received),
        observed,
    ))
}

fn lease(key: &Key, received: Option<&Received<Lease>>) -> Option<ControllerUpdate> {
    let node = agent_lease::node_of(&key.name)?;
    let lease = watches::known(received).ok()?;
    Some(ControllerUpdate::Lease(
        node,
        lease.map(|lease| Observed::new(lease, lease.spec.clone().unwrap_or_default())),
    ))
}
