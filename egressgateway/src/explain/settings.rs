//! What an offline cluster must know besides its manifests.

use std::{fmt, sync::Arc};

use ipnet::IpNet;

use crate::{
    Encapsulation,
    allocator::{Allocator, LowestFree},
    api::ForwardMethod,
    config::Config,
    index::IndexSettings,
    model::{GatewayName, MarkMask, NodeName},
};

/// Device that every node's outer packets leave by, offline.
pub const UNDERLAY_DEVICE: &str = "eth0";
/// Its index.
pub const UNDERLAY_INDEX: u32 = 2;
/// Its MTU in bytes.
pub const UNDERLAY_MTU: u32 = 1500;

/// Where the statuses of an offline cluster come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Statuses {
    /// The controller continues from those in the manifests, as it does after a restart, until it
    /// has nothing more to change.
    #[default]
    Planned,
    /// Those in the manifests, as they stand. What has none is as the controller never saw it.
    Given,
}

/// What an offline cluster must know besides its manifests: the daemons' configuration.
#[derive(Clone)]
#[non_exhaustive]
pub struct OfflineSettings {
    /// Where a gateway's specification does not say.
    pub forward_method: ForwardMethod,
    /// The gateway of policies that name none.
    pub default_gateway: Option<GatewayName>,
    /// Networks that tunnel addresses come from, at most one of each family. The addresses of nodes
    /// are never steered.
    pub overlay: Vec<IpNet>,
    /// Further networks that are never steered, such as those of services.
    pub cluster_networks: Vec<IpNet>,
    /// Whether pod networks and addresses of Nodes are never steered.
    pub auto_cluster_networks: bool,
    /// Whether traffic of unknown pods to governed destinations waits.
    pub start_gate: bool,
    /// Where marks live.
    pub mask: MarkMask,
    /// Where statuses come from.
    pub statuses: Statuses,
    /// Who gives out addresses.
    pub allocator: Arc<dyn Allocator>,
    /// The kind of tunnel.
    pub encapsulation: Arc<dyn Encapsulation>,
}

impl OfflineSettings {
    /// Defaults of the configuration, for a kind of tunnel: overlay 198.19.0.0/16 and fd31::/112,
    /// everything else as [`IndexSettings::of_node`] has it.
    #[must_use]
    pub fn of_tunnel(encapsulation: Arc<dyn Encapsulation>) -> Self {
        Self {
            forward_method: ForwardMethod::default(),
            default_gateway: None,
            overlay: ["198.19.0.0/16", "fd31::/112"]
                .iter()
                .filter_map(|net| net.parse().ok())
                .collect(),
            cluster_networks: Vec::new(),
            auto_cluster_networks: true,
            start_gate: true,
            mask: MarkMask::default(),
            statuses: Statuses::default(),
            allocator: Arc::new(LowestFree),
            encapsulation,
        }
    }

    /// As a configuration of the daemons has it, for the kind of tunnel that it names.
    #[must_use]
    pub fn of_config(config: &Config, encapsulation: Arc<dyn Encapsulation>) -> Self {
        let plan = config.controller_settings();
        Self {
            forward_method: plan.forward_method,
            default_gateway: plan.default_gateway,
            overlay: plan.overlay,
            cluster_networks: plan.cluster_networks,
            auto_cluster_networks: plan.auto_cluster_networks,
            start_gate: config.start_gate,
            mask: plan.mask,
            ..Self::of_tunnel(encapsulation)
        }
    }

    /// Other statuses.
    #[must_use]
    pub fn with_statuses(mut self, statuses: Statuses) -> Self {
        self.statuses = statuses;
        self
    }

    /// The gateway of policies that name none.
    #[must_use]
    pub fn with_default_gateway(mut self, default_gateway: Option<GatewayName>) -> Self {
        self.default_gateway = default_gateway;
        self
    }

    pub(super) fn of_index(&self, node: &NodeName) -> IndexSettings {
        IndexSettings {
            node: node.clone(),
            forward_method: self.forward_method,
            default_gateway: self.default_gateway.clone(),
            cluster_networks: self.cluster_networks.clone(),
            auto_cluster_networks: self.auto_cluster_networks,
            start_gate: self.start_gate,
        }
    }
}

impl fmt::Debug for OfflineSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OfflineSettings")
            .field("tunnel", &self.encapsulation.kind())
            .finish_non_exhaustive()
    }
}
