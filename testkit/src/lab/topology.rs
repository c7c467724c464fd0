//! What a lab is made of: nodes, pods and services with their names and addresses. Nothing here runs.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use ipnet::IpNet;

use super::{
    builder::{Builder, NodeSpec},
    constants,
    options::{Cni, RuleTool},
};

/// What does not change while the lab lives.
#[derive(Debug)]
pub(super) struct Topology {
    pub(super) settings: Builder,
    pub(super) nodes: Vec<NodeFacts>,
}

impl Topology {
    pub(super) fn new(settings: Builder) -> io::Result<Self> {
        if settings.nodes.len() > 200 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "more than 200 nodes",
            ));
        }
        if settings.components.has_kube_proxy() && settings.tool == RuleTool::Nft {
            let text = format!("{:?} needs iptables, not nft", settings.components);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let nodes: Vec<NodeFacts> = (1u8..)
            .zip(&settings.nodes)
            .map(|(n, spec)| NodeFacts::new(n, spec, &settings))
            .collect::<io::Result<_>>()?;
        Ok(Self { settings, nodes })
    }

    /// Largest packet of a pod.
    pub(super) fn pod_mtu(&self) -> u16 {
        match (self.settings.cni, self.settings.families.v4()) {
            (Cni::Routed, _) => self.settings.mtu,
            (Cni::Vxlan, true) => self.settings.mtu - 50,
            (Cni::Vxlan, false) => self.settings.mtu - 70,
        }
    }

    pub(super) fn node(&self, name: &str) -> io::Result<&NodeFacts> {
        let unknown = || io::Error::new(io::ErrorKind::NotFound, format!("no node {name}"));
        self.nodes
            .iter()
            .find(|node| node.name == name)
            .ok_or_else(unknown)
    }
}

/// One node.
#[derive(Debug, Clone)]
pub(super) struct NodeFacts {
    /// From 1.
    pub(super) n: u8,
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) v4: Option<Ipv4Addr>,
    pub(super) v6: Option<Ipv6Addr>,
    pub(super) second: Vec<IpNet>,
}

impl NodeFacts {
    fn new(n: u8, spec: &NodeSpec, settings: &Builder) -> io::Result<Self> {
        let (mut v4, mut v6) = (constants::node_v4(n), constants::node_v6(n));
        for address in &spec.addresses {
            match address {
                IpAddr::V4(address) => v4 = *address,
                IpAddr::V6(address) => v6 = *address,
            }
        }
        let sound = spec.name.bytes().all(|byte| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-".contains(&byte)
        });
        if spec.name.is_empty()
            || !sound
            || [constants::UNDERLAY, constants::ROUTER].contains(&spec.name.as_str())
        {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{:?} cannot name a node", spec.name),
            ));
        }
        let mut labels = BTreeMap::from([("kubernetes.io/hostname".to_owned(), spec.name.clone())]);
        labels.extend(spec.labels.iter().cloned());
        Ok(Self {
            n,
            name: spec.name.clone(),
            labels,
            v4: settings.families.v4().then_some(v4),
            v6: settings.families.v6().then_some(v6),
            second: spec.second.clone(),
        })
    }

    /// Addresses on the underlay, IPv4 first.
    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        self.v4
            .map(IpAddr::from)
            .into_iter()
            .chain(self.v6.map(IpAddr::from))
            .collect()
    }

    /// Pod networks, IPv4 first.
    pub(super) fn pod_networks(&self) -> Vec<String> {
        let v4 = self
            .v4
            .map(|_| format!("{}/24", constants::pod_v4(self.n, 0)));
        let v6 = self
            .v6
            .map(|_| format!("{}/64", constants::pod_v6(self.n, 0)));
        v4.into_iter().chain(v6).collect()
    }
}

/// One pod.
#[derive(Debug, Clone)]
pub(super) struct PodFacts {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) node: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) host_network: bool,
}

/// One service.
#[derive(Debug, Clone)]
pub(super) struct ServiceFacts {
    pub(super) name: String,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) port: u16,
    pub(super) node_port: u16,
    pub(super) local: bool,
    pub(super) backends: Vec<SocketAddr>,
}
