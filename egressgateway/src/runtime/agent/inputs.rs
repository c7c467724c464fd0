//! What an agent's session is told by its watches, its tasks, the host and its embedder.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    builder::Agent,
    outputs::Outputs,
    settings::AgentSettings,
    tasks::{address_acquisition::Findings, untracked::Untracked},
    watches::{AgentUpdate, spawn_watches},
};
use crate::{
    Error, Host, PolicyMonitor,
    model::NodeName,
    runtime::{
        join::ended_alone,
        kube::{interner::Interner, watch::Message, watches::Watches},
        time::wait_until,
    },
};

/// How many messages may wait for the session; watches wait once there are more.
const INBOX: usize = 4096;

/// The channels that the session reads.
pub(crate) struct Inputs {
    inbox: mpsc::Receiver<Message<AgentUpdate>>,
    settings: watch::Receiver<AgentSettings>,
    host: Arc<dyn Host>,
    monitor: Option<Arc<dyn PolicyMonitor>>,
    down: watch::Receiver<BTreeSet<NodeName>>,
    conflicting_addresses: watch::Receiver<BTreeSet<IpAddr>>,
    findings: watch::Receiver<Findings>,
    /// What others take out of connection tracking.
    pub(crate) untracked: Untracked,
    /// None of them ends before shutdown.
    pub(crate) tasks: JoinSet<()>,
}

/// The channels on which tasks answer.
pub(crate) struct Answers {
    /// The gateway nodes that are down.
    pub(crate) down: watch::Sender<BTreeSet<NodeName>>,
    /// The egress addresses that others were heard to answer for.
    pub(crate) conflicting_addresses: watch::Sender<BTreeSet<IpAddr>>,
    /// What came of asking for egress addresses.
    pub(crate) findings: watch::Sender<Findings>,
}

/// What the session is told.
pub(crate) enum Event {
    /// The watches sent something.
    Updates(Vec<Message<AgentUpdate>>),
    /// Links or routes of the host changed; an error where changes may have been missed.
    Host(Result<(), Error>),
    /// The packet filter changed; an error where changes may have been missed.
    Policy(Result<(), Error>),
    /// These gateway nodes are down.
    GatewaysDown(BTreeSet<NodeName>),
    /// Others answer for these egress addresses.
    Conflicts(BTreeSet<IpAddr>),
    /// What questions about egress addresses came to.
    Asked(Findings),
    /// Others' rules for connection tracking were read.
    Untracked,
    /// Settings as they are now.
    Settings(Box<AgentSettings>),
    /// The deadline has come, or shutdown.
    Wake,
}

/// Which changes would be news.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Interest {
    pub(crate) host: bool,
    pub(crate) policy: bool,
}

impl Inputs {
    /// Starts watching, and nothing that writes. Returns what must be listed before anything is
    /// written too.
    pub(crate) fn open(
        agent: &Agent,
        outputs: &Outputs,
    ) -> (Self, Answers, BTreeSet<&'static str>) {
        let (out, inbox) = mpsc::channel(INBOX);
        let watches = Watches {
            client: agent.client.clone(),
            out,
            backoff: agent.settings.api_backoff.clone(),
            metrics: agent.metrics.watch.clone(),
            interner: Interner::default(),
        };
        let mut tasks = JoinSet::new();
        let scopes = (outputs.pods.subscribe(), outputs.policies.subscribe());
        let kinds = spawn_watches(&watches, &agent.settings, scopes, &mut tasks);
        let answers = Answers {
            down: watch::Sender::default(),
            conflicting_addresses: watch::Sender::default(),
            findings: watch::Sender::default(),
        };
        let inputs = Self {
            inbox,
            settings: agent.changes.clone(),
            host: agent.host.clone(),
            monitor: agent.monitor.clone(),
            down: answers.down.subscribe(),
            conflicting_addresses: answers.conflicting_addresses.subscribe(),
            findings: answers.findings.subscribe(),
            untracked: Untracked::default(),
            tasks,
        };
        (inputs, answers, kinds)
    }

    /// Waits for news, the deadline or shutdown.
    ///
    /// # Errors
    /// When a task ended before shutdown.
    pub(crate) async fn next(
        &mut self,
        deadline: Option<Instant>,
        interest: Interest,
        shutdown: &CancellationToken,
    ) -> Result<Event, Error> {
        let mut batch = Vec::new();
        Ok(tokio::select! {
            () = shutdown.cancelled() => Event::Wake,
            _ = self.inbox.recv_many(&mut batch, INBOX) => Event::Updates(batch),
            changed = self.host.changed(), if interest.host => Event::Host(changed),
            Ok(()) = self.down.changed() => Event::GatewaysDown(self.down.borrow_and_update().clone()),
            Ok(()) = self.conflicting_addresses.changed() => {
                Event::Conflicts(self.conflicting_addresses.borrow_and_update().clone())
            }
            Ok(()) = self.findings.changed() => {
                Event::Asked(self.findings.borrow_and_update().clone())
            }
            () = self.untracked.changed() => Event::Untracked,
            Ok(()) = self.settings.changed() => {
                Event::Settings(Box::new(self.settings.borrow_and_update().clone()))
            }
            changed = policy_changed(self.monitor.as_deref()), if interest.policy => Event::Policy(changed),
            Some(ended) = self.tasks.join_next() => {
                if !shutdown.is_cancelled() {
                    return Err(ended_alone(ended));
                }
                Event::Wake
            }
            () = wait_until(deadline) => Event::Wake,
        })
    }

    /// What else the watches sent.
    pub(crate) fn waiting(&mut self) -> Vec<Message<AgentUpdate>> {
        std::iter::from_fn(|| self.inbox.try_recv().ok()).collect()
    }

    /// What came of asking for egress addresses up to now.
    pub(crate) fn findings(&self) -> watch::Ref<'_, Findings> {
        self.findings.borrow()
    }
}

async fn policy_changed(monitor: Option<&dyn PolicyMonitor>) -> Result<(), Error> {
    match monitor {
        Some(monitor) => monitor.changed().await,
        None => std::future::pending().await,
    }
}
