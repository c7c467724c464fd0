//! From a configuration to a controller, as the daemon has it.

use std::{sync::Arc, time::Duration};

use super::{builder::Controller, settings::ControllerSettings};
use crate::{
    allocator::{Allocator, LowestFree},
    config::{Config, InvalidConfig},
    runtime::kube::election::ElectionSettings,
    spec::Problem,
};

/// Where Leases are unless somebody says otherwise: as for the daemons.
const NAMESPACE: &str = "kube-system";
/// The longest that a dead leader may keep the others waiting.
const LONGEST_LEASE: Duration = Duration::from_secs(3600);

/// Makes the controller of a cluster.
///
/// The configuration is the daemons' own. Agents of the cluster must have the same one.
///
/// ```no_run
/// use egressgateway::runtime::ControllerBuilder;
///
/// # async fn example(client: kube::Client) -> Result<(), Box<dyn std::error::Error>> {
/// let controller = ControllerBuilder::new("operator-7d4f").build(client)?;
/// # let shutdown = Default::default();
/// controller.run(shutdown).await?;
/// # Ok(())
/// # }
/// ```
#[must_use]
pub struct ControllerBuilder {
    identity: String,
    namespace: String,
    config: Config,
    leader_lease: Option<Duration>,
    allocator: Arc<dyn Allocator>,
}

impl std::fmt::Debug for ControllerBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ControllerBuilder")
            .field("identity", &self.identity)
            .field("namespace", &self.namespace)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl ControllerBuilder {
    /// A controller with the default configuration. `identity` is unique among those of the
    /// cluster, such as the name of the pod: one of them leads, and the others are ready to.
    pub fn new(identity: impl Into<String>) -> Self {
        Self {
            identity: identity.into(),
            namespace: NAMESPACE.to_owned(),
            config: Config::default(),
            leader_lease: None,
            allocator: Arc::new(LowestFree),
        }
    }

    /// Another configuration than the default one.
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Where the Leases of controllers and agents are, instead of `kube-system`.
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// How long leadership lasts without being renewed, instead of 15 seconds: a dead leader is
    /// followed after so long.
    pub fn leader_lease(mut self, duration: Duration) -> Self {
        self.leader_lease = Some(duration);
        self
    }

    /// Who gives out egress addresses and tunnel addresses, instead of [`LowestFree`].
    pub fn allocator(mut self, allocator: impl Allocator + 'static) -> Self {
        self.allocator = Arc::new(allocator);
        self
    }

    /// The controller over a client that the program made. Metrics, webhooks and changes of the
    /// configuration are added to what is returned.
    ///
    /// # Errors
    /// When the configuration, the identity or the Lease's duration is wrong, with all that is.
    pub fn build(self, client: kube::Client) -> Result<Controller, InvalidConfig> {
        let mut problems = self.config.problems();
        if self.identity.is_empty() {
            problems.push(Problem::new("identity", "", "must be given"));
        }
        let mut election = ElectionSettings::new(self.namespace, self.identity);
        if let Some(lease) = self.leader_lease {
            if lease.subsec_nanos() != 0 || lease.is_zero() || lease > LONGEST_LEASE {
                problems.push(Problem::new(
                    "leader lease",
                    humantime::format_duration(lease),
                    "must be whole seconds from 1s to 1h, such as 15s",
                ));
            }
            election = election.lasting(lease);
        }
        if !problems.is_empty() {
            return Err(InvalidConfig(problems));
        }
        let settings = ControllerSettings::new(self.config.controller_settings(), election);
        Ok(Controller::new(client, settings, self.allocator))
    }
}
