//! A controller, put together by its embedder.

use std::sync::Arc;

use prometheus_client::registry::Registry;
use tokio::sync::watch;

use super::{admission::Admission, settings::ControllerSettings, shared_cluster::SharedCluster};
use crate::{
    allocator::Allocator,
    controller,
    runtime::{
        health::Health,
        metrics::{ControllerMetrics, Reloads},
    },
};

/// Makes EgressNodes, allots addresses and marks, elects gateways, and writes the statuses that say
/// so.
///
/// All of it follows from [`controller::plan`], so a new leader goes on where the last one stopped.
/// Controllers that do not lead watch as well, and write nothing.
pub struct Controller {
    pub(crate) client: kube::Client,
    pub(crate) settings: ControllerSettings,
    pub(crate) allocator: Arc<dyn Allocator>,
    /// What plans depend on, as it is now.
    pub(crate) plan: watch::Receiver<controller::ControllerSettings>,
    pub(crate) cluster: SharedCluster,
    pub(crate) metrics: ControllerMetrics,
    pub(crate) health: Health,
}

impl std::fmt::Debug for Controller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Controller")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl Controller {
    /// A controller over a client that the caller made.
    #[must_use]
    pub fn new(
        client: kube::Client,
        settings: ControllerSettings,
        allocator: Arc<dyn Allocator>,
    ) -> Self {
        let plan = watch::channel(settings.plan.clone()).1;
        let (cluster, metrics, health) = (
            SharedCluster::default(),
            ControllerMetrics::default(),
            Health::default(),
        );
        Self {
            client,
            settings,
            allocator,
            plan,
            cluster,
            metrics,
            health,
        }
    }

    /// What plans depend on may change while the controller runs; the mask and the networks of the
    /// tunnel must stay.
    #[must_use]
    pub fn with_plan(mut self, plan: watch::Receiver<controller::ControllerSettings>) -> Self {
        self.plan = plan;
        self
    }

    /// Where reloads of the configuration are counted.
    #[must_use]
    pub fn reloads(&self) -> Reloads {
        self.metrics.reloads.clone()
    }

    /// Registers what the controller counts, under the prefix `egressgateway_controller`.
    #[must_use]
    pub fn with_metrics(self, registry: &mut Registry) -> Self {
        self.metrics.register(registry);
        self
    }

    /// Answers the reviews of admission webhooks from what this controller sees; it works as long
    /// as the controller runs.
    #[must_use]
    pub fn admission(&self) -> Admission {
        Admission {
            cluster: self.cluster.clone(),
            settings: self.plan.clone(),
            health: self.health.clone(),
            metrics: self.metrics.admission.clone(),
        }
    }

    /// What probes ask; ready once everything was listed, leader or not.
    #[must_use]
    pub fn health(&self) -> Health {
        self.health.clone()
    }
}
