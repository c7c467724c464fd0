//! How a controller works.

use std::time::Duration;

use crate::{
    controller,
    runtime::kube::{backoff::Backoff, election::ElectionSettings},
};

/// Field manager of what controllers write.
pub(crate) const MANAGER: &str = "egressgateway-controller";

/// How a controller works.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ControllerSettings {
    /// What its plans depend on.
    pub plan: controller::ControllerSettings,
    /// How one of several controllers becomes the leader.
    pub election: ElectionSettings,
    /// Namespace of the agents' Leases.
    pub agents: String,
    /// How long changes are gathered before the next plan.
    pub settle: Duration,
    /// How often a leader compares everything again, and tries again what failed for good.
    pub resync: Duration,
    /// How often the networks of Services are read.
    pub networks: Duration,
    /// Delays between failed requests to the API server.
    pub backoff: Backoff,
}

impl ControllerSettings {
    /// Settings that suit production; agents' Leases are where the leader's is.
    #[must_use]
    pub fn new(plan: controller::ControllerSettings, election: ElectionSettings) -> Self {
        Self {
            plan,
            agents: election.namespace.clone(),
            election,
            settle: Duration::from_millis(50),
            resync: Duration::from_secs(300),
            networks: Duration::from_secs(300),
            backoff: Backoff::default(),
        }
    }
}
