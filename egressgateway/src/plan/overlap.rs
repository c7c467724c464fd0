use std::{fmt, net::IpAddr};

use imbl::OrdSet;
use ipnet::IpNet;

use crate::{HostRoute, model::NodeName};

/// An overlay address that this node can't use, because its host reaches or has it by other means.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Overlap {
    /// Whose overlay address it is.
    pub node: NodeName,
    /// The address.
    pub address: IpAddr,
    /// What the host has there.
    pub route: HostRoute,
}

impl fmt::Display for Overlap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            node,
            address,
            route:
                HostRoute {
                    network,
                    device,
                    gateway,
                },
        } = self;
        write!(
            f,
            "the tunnel address {address} of node {node} lies in {network}, which the host "
        )?;
        match gateway {
            _ if device.is_empty() => f.write_str("refuses"),
            Some(gateway) => write!(f, "reaches by {gateway} on {device}"),
            None => write!(f, "has on {device}"),
        }
    }
}

/// What of a host an overlay of this network may meet.
///
/// A default route never counts, and neither does a router's route to a network that holds the
/// whole overlay and more: it says where everything else goes, and a part of that was given to the
/// overlay.
#[must_use]
pub fn in_the_way(overlay: IpNet, routes: &OrdSet<HostRoute>) -> Vec<HostRoute> {
    let meets = |route: &&HostRoute| {
        let (network, net) = (route.network, overlay.trunc());
        let wider = network.contains(&net) && network != net;
        network.prefix_len() > 0 && (net.contains(&network) || (wider && route.gateway.is_none()))
    };
    routes.iter().filter(meets).cloned().collect()
}

/// The narrowest of these that holds an address.
#[must_use]
pub fn holder(address: IpAddr, routes: &[HostRoute]) -> Option<&HostRoute> {
    routes
        .iter()
        .filter(|route| route.network.contains(&address))
        .max_by_key(|route| route.network.prefix_len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(network: &str, device: &str, gateway: Option<&str>) -> HostRoute {
        HostRoute {
            network: network.parse().unwrap(),
            device: device.to_owned(),
            gateway: gateway.map(|text| text.parse().unwrap()),
        }
    }

    #[test]
    fn what_the_host_has_or_reaches_in_the_tunnels_network_is_not_the_tunnels() {
        let routes: OrdSet<_> = [
            route("172.31.16.0/20", "eth0", None),
            route("172.31.16.9/32", "eth1", Some("10.6.0.1")),
            route("172.31.0.0/16", "vpn0", Some("10.9.0.1")),
            route("172.16.0.0/12", "eth0", Some("10.6.0.1")),
            route("0.0.0.0/1", "tun0", Some("10.8.0.1")),
            route("10.6.0.0/16", "eth0", None),
            route("fd31::/64", "eth0", None),
        ]
        .into_iter()
        .collect();
        let met = in_the_way("172.31.0.1/16".parse().unwrap(), &routes);
        let holder = |address: &str| {
            holder(address.parse().unwrap(), &met).map(|route| route.network.to_string())
        };
        assert_eq!(holder("172.31.16.9").as_deref(), Some("172.31.16.9/32"));
        assert_eq!(holder("172.31.16.10").as_deref(), Some("172.31.16.0/20"));
        assert_eq!(
            holder("172.31.0.1").as_deref(),
            Some("172.31.0.0/16"),
            "the whole, by a router"
        );
        let met = in_the_way(
            "172.31.0.1/16".parse().unwrap(),
            &routes.without(&route("172.31.0.0/16", "vpn0", Some("10.9.0.1"))),
        );
        assert!(
            met.iter().all(|route| !route
                .network
                .contains(&"172.31.0.1".parse::<IpAddr>().unwrap())),
            "wider, and by a router: {met:?}"
        );
        let met = in_the_way("fd31::1/112".parse().unwrap(), &routes);
        assert_eq!(
            met,
            [route("fd31::/64", "eth0", None)],
            "on the link, however wide"
        );
    }
}
