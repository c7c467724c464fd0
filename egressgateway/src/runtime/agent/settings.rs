//! How an agent works.

use std::time::Duration;

use super::tasks::lease::LeaseSettings;
use crate::{
    index::IndexSettings, model::MarkMask, node::liveness::LivenessSettings,
    runtime::kube::backoff::Backoff,
};

/// Field manager of what agents write.
pub(crate) const MANAGER: &str = "egressgateway-agent";

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
    /// Why this node passes nothing on for gateways whose sources are translated on the pods' own
    /// nodes, in words, for the node's condition; none: it can.
    pub relay_lacking: Option<String>,
    /// How fast a silent gateway node is noticed.
    pub liveness: LivenessSettings,
    /// Whether connections are ended that began before the policy which governs them; see
    /// [`Agent::with_connections`](super::Agent::with_connections).
    pub reset_connections: bool,
    /// Whether, after a boot, what policies governed before waits until everything was listed; see
    /// [`Agent::with_state_file`](super::Agent::with_state_file).
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
            relay_lacking: None,
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
