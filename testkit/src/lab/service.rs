//! A Kubernetes service, translated on every node as kube-proxy does.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use super::{
    constants::{NODE_PORT, service_addresses},
    lock::locked,
    pod::Pod,
    running::Running,
    topology::ServiceFacts,
};

/// A service to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceSpec {
    name: String,
    port: u16,
    local: bool,
}

impl ServiceSpec {
    /// A service with this name and port, in the namespace `default`, with a node port, TCP and
    /// UDP.
    pub fn new(name: impl Into<String>, port: u16) -> Self {
        Self {
            name: name.into(),
            port,
            local: false,
        }
    }

    /// `externalTrafficPolicy: Local`: the node port serves pods of its own node only, and they see
    /// the client's address.
    #[must_use]
    pub const fn local(mut self) -> Self {
        self.local = true;
        self
    }
}

/// A service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    addresses: Vec<SocketAddr>,
    node_port: u16,
}

impl Service {
    pub(super) fn create(running: &Running, spec: ServiceSpec, pods: &[&Pod]) -> io::Result<Self> {
        let facts = {
            let mut state = locked(&running.state);
            let k = u8::try_from(state.services.len())
                .ok()
                .filter(|k| *k < 200)
                .ok_or_else(|| io::Error::other("too many services"))?;
            let (v4, v6) = service_addresses(k);
            let addresses = [IpAddr::from(v4), IpAddr::from(v6)]
                .into_iter()
                .filter(|address| running.topology.settings.families.has(*address));
            let facts = ServiceFacts {
                name: spec.name,
                addresses: addresses.collect(),
                port: spec.port,
                node_port: NODE_PORT + u16::from(k),
                local: spec.local,
                backends: pods.iter().flat_map(|pod| pod.endpoints()).collect(),
            };
            state.services.push(facts.clone());
            facts
        };
        for node in &running.topology.nodes {
            let own: Vec<SocketAddr> = pods
                .iter()
                .filter(|pod| pod.node() == node.name)
                .flat_map(|pod| pod.endpoints())
                .collect();
            running
                .sandbox
                .script(Some(&node.name), &running.rules().service(&facts, &own))?;
        }
        let addresses = facts
            .addresses
            .iter()
            .map(|address| SocketAddr::new(*address, facts.port))
            .collect();
        Ok(Self {
            addresses,
            node_port: facts.node_port,
        })
    }

    /// Its cluster addresses with its port, IPv4 first.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Its port on every node.
    #[must_use]
    pub const fn node_port(&self) -> u16 {
        self.node_port
    }
}
