//! What an agent's session tells its watches and tasks.

use tokio::sync::watch;

use super::{
    settings::AgentSettings,
    tasks::{probes::Ends, status::Report},
    watches::own_pods,
};
use crate::{
    AddressesDesired, NodeDesired, Questions,
    api::EgressNodeStatus,
    node::liveness::LivenessSettings,
    runtime::kube::{observed::Observed, watch::Scope},
};

/// The channels that the session writes.
pub(crate) struct Outputs {
    /// The pods that are watched.
    pub(crate) pods: watch::Sender<Scope>,
    /// The policies that are watched; a new round of the same is a new list.
    pub(crate) policies: watch::Sender<Scope>,
    /// The last round of policies that was listed, and taken over.
    pub(crate) listed_policies: watch::Sender<u64>,
    /// The status of the own EgressNode, as it is.
    pub(crate) own: watch::Sender<Option<Observed<EgressNodeStatus>>>,
    /// The status of the own EgressNode, as it should be.
    pub(crate) reports: watch::Sender<Option<Report>>,
    pub(crate) in_force: watch::Sender<Option<NodeDesired>>,
    /// The egress addresses that this node answers for.
    pub(crate) held: watch::Sender<AddressesDesired>,
    /// The gateway nodes that are probed.
    pub(crate) probed: watch::Sender<Ends>,
    /// The egress addresses that are asked for before they are taken.
    pub(crate) questions: watch::Sender<Option<Questions>>,
    pub(crate) liveness: watch::Sender<LivenessSettings>,
    /// Whether connections are ended that began before their policy.
    pub(crate) resets: watch::Sender<bool>,
}

impl Outputs {
    pub(crate) fn new(settings: &AgentSettings) -> Self {
        Self {
            pods: watch::Sender::new(own_pods(&settings.index.node)),
            policies: watch::Sender::new(Scope::default()),
            listed_policies: watch::Sender::new(0),
            own: watch::Sender::new(None),
            reports: watch::Sender::new(None),
            in_force: watch::Sender::new(None),
            held: watch::Sender::default(),
            probed: watch::Sender::default(),
            questions: watch::Sender::new(None),
            liveness: watch::Sender::new(settings.liveness),
            resets: watch::Sender::new(settings.reset_connections),
        }
    }
}
