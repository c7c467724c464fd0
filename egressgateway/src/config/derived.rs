//! What else the configuration is made of, and what follows from it.

use ipnet::IpNet;

use super::Config;
use crate::controller::ControllerSettings;

impl Config {
    /// Networks of the tunnel's addresses, IPv4 first.
    #[must_use]
    pub fn overlay(&self) -> Vec<IpNet> {
        self.tunnel
            .ipv4_cidr
            .map(IpNet::from)
            .into_iter()
            .chain(self.tunnel.ipv6_cidr.map(IpNet::from))
            .collect()
    }

    /// What of it the controller's plan depends on.
    #[must_use]
    pub fn controller_settings(&self) -> ControllerSettings {
        ControllerSettings {
            forward_method: self.forward_method,
            default_gateway: self.default_egress_gateway.clone(),
            overlay: self.overlay(),
            cluster_networks: self.cluster_cidrs.extra.clone(),
            auto_cluster_networks: self.cluster_cidrs.auto,
            mask: self.mark.mask,
            drain_grace: self.failover.drain_grace_period,
        }
    }
}
