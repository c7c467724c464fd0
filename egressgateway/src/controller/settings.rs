use std::time::Duration;

use ipnet::IpNet;

use crate::{
    api::ForwardMethod,
    model::{GatewayName, MarkMask},
};

/// What the plan depends on besides the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerSettings {
    /// How gateways forward that don't say it themselves.
    pub forward_method: ForwardMethod,
    /// The gateway of policies that name none.
    pub default_gateway: Option<GatewayName>,
    /// Networks of the tunnel's addresses, at most one of each family.
    pub overlay: Vec<IpNet>,
    /// Further networks of the cluster that no pool may be in, such as those of Services.
    pub cluster_networks: Vec<IpNet>,
    /// Whether the networks of pods that Nodes tell are networks of the cluster too.
    pub auto_cluster_networks: bool,
    /// The mask that marks are written under.
    pub mask: MarkMask,
    /// How long connections through a drained node go on; none: they are moved at once.
    pub drain_grace: Duration,
}

impl Default for ControllerSettings {
    fn default() -> Self {
        Self {
            forward_method: ForwardMethod::default(),
            default_gateway: None,
            overlay: Vec::new(),
            cluster_networks: Vec::new(),
            auto_cluster_networks: true,
            mask: MarkMask::default(),
            drain_grace: Duration::ZERO,
        }
    }
}
