//! What a node translates for a service.

use std::net::{IpAddr, SocketAddr};

use super::topology::ServiceFacts;

/// One service address on one node, and who answers.
#[derive(Debug, Clone)]
pub(super) struct Translation {
    /// `None`: any address of the node.
    pub(super) address: Option<IpAddr>,
    pub(super) port: u16,
    /// All of one family.
    pub(super) backends: Vec<SocketAddr>,
    pub(super) ipv4: bool,
    /// Translate the source too, so that answers come back this way.
    pub(super) masquerade: bool,
}

/// What a node with the pods `own` translates.
pub(super) fn translations(service: &ServiceFacts, own: &[SocketAddr]) -> Vec<Translation> {
    let of_family = |backends: &[SocketAddr], ipv4: bool| {
        backends
            .iter()
            .filter(|to| to.is_ipv4() == ipv4)
            .copied()
            .collect::<Vec<_>>()
    };
    let cluster = service.addresses.iter().map(|address| Translation {
        address: Some(*address),
        port: service.port,
        backends: of_family(&service.backends, address.is_ipv4()),
        ipv4: address.is_ipv4(),
        masquerade: false,
    });
    let node = service.addresses.iter().map(|address| Translation {
        address: None,
        port: service.node_port,
        backends: of_family(
            if service.local {
                own
            } else {
                &service.backends
            },
            address.is_ipv4(),
        ),
        ipv4: address.is_ipv4(),
        masquerade: !service.local,
    });
    cluster.chain(node).collect()
}
