//! A pod: an address behind its node.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    ops::Deref,
    sync::Arc,
};

use super::{
    cables,
    constants::{POD_DEVICE, PORT, pod_v4, pod_v6},
    lock::locked,
    namespace::Namespace,
    objects,
    options::Families,
    responder::Seen,
    running::Running,
    topology::PodFacts,
};

/// First host number of pods in their node's network.
const FIRST_HOST: usize = 10;

/// A pod to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodSpec {
    namespace: String,
    name: String,
    labels: BTreeMap<String, String>,
    host_network: bool,
}

impl PodSpec {
    /// A pod with this name in the namespace `default`.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            namespace: "default".into(),
            name: name.into(),
            labels: BTreeMap::new(),
            host_network: false,
        }
    }

    /// In this namespace, which comes into being with its first pod.
    #[must_use]
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// With this label.
    #[must_use]
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// In its node's network namespace, with its node's addresses.
    #[must_use]
    pub const fn host_network(mut self) -> Self {
        self.host_network = true;
        self
    }
}

impl From<&str> for PodSpec {
    fn from(name: &str) -> Self {
        Self::new(name)
    }
}

/// A pod.
#[derive(Debug, Clone)]
pub struct Pod {
    network: Namespace,
    facts: PodFacts,
    seen: Option<Seen>,
}

impl Deref for Pod {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.network
    }
}

impl Pod {
    /// Makes it: its namespace, its cable, its answering side at [`PORT`].
    pub(super) fn create(running: &Arc<Running>, node: &str, spec: PodSpec) -> io::Result<Self> {
        let topology = &running.topology;
        let node = topology.node(node)?;
        let facts = {
            let mut state = locked(&running.state);
            if state
                .pods
                .iter()
                .any(|pod| pod.namespace == spec.namespace && pod.name == spec.name)
            {
                let text = format!("pod {}/{} is there already", spec.namespace, spec.name);
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
            }
            let addresses = if spec.host_network {
                node.addresses()
            } else {
                free_addresses(&state.pods, node.n, topology.settings.families)?
            };
            let PodSpec {
                namespace,
                name,
                labels,
                host_network,
            } = spec;
            let facts = PodFacts {
                namespace,
                name,
                node: node.name.clone(),
                labels,
                addresses,
                host_network,
            };
            let labels = BTreeMap::from([(
                "kubernetes.io/metadata.name".to_owned(),
                facts.namespace.clone(),
            )]);
            state
                .namespaces
                .entry(facts.namespace.clone())
                .or_insert(labels);
            state.pods.push(facts.clone());
            facts
        };
        if facts.host_network {
            let network = Namespace {
                running: Arc::clone(running),
                name: Some(facts.node.clone()),
            };
            return Ok(Self {
                network,
                facts,
                seen: None,
            });
        }
        let name = format!("pod.{}.{}", facts.namespace, facts.name);
        let device = format!("{}{}", POD_DEVICE, running.next_number());
        running.sandbox.script(
            None,
            &cables::pod(topology, node, &name, &device, &facts.addresses),
        )?;
        let rules = running.rules().pod(&device);
        if !rules.is_empty() {
            running.sandbox.script(Some(&node.name), &rules)?;
        }
        let network = Namespace {
            running: Arc::clone(running),
            name: Some(name),
        };
        let seen = network.respond(&facts.addresses, PORT)?;
        Ok(Self {
            network,
            facts,
            seen: Some(seen),
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.facts.name
    }

    /// Its Kubernetes namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.facts.namespace
    }

    /// The node it runs on.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.facts.node
    }

    /// Its addresses, IPv4 first.
    #[must_use]
    pub fn addresses(&self) -> &[IpAddr] {
        &self.facts.addresses
    }

    /// Its IPv4 address.
    ///
    /// # Panics
    /// In a lab without IPv4.
    #[must_use]
    pub fn v4(&self) -> IpAddr {
        *self
            .facts
            .addresses
            .iter()
            .find(|address| address.is_ipv4())
            .expect("a lab with IPv4")
    }

    /// Its IPv6 address.
    ///
    /// # Panics
    /// In a lab without IPv6.
    #[must_use]
    pub fn v6(&self) -> IpAddr {
        *self
            .facts
            .addresses
            .iter()
            .find(|address| address.is_ipv6())
            .expect("a lab with IPv6")
    }

    /// Where it answers, IPv4 first.
    #[must_use]
    pub fn endpoints(&self) -> Vec<SocketAddr> {
        self.facts
            .addresses
            .iter()
            .map(|address| SocketAddr::new(*address, PORT))
            .collect()
    }

    /// The sources that it has seen at its [`endpoints`](Self::endpoints).
    #[must_use]
    pub fn seen(&self) -> Vec<SocketAddr> {
        self.seen.as_ref().map(Seen::sources).unwrap_or_default()
    }

    /// Its Kubernetes object.
    #[must_use]
    pub fn object(&self) -> serde_json::Value {
        objects::pod(&self.facts, &self.network.running.topology)
    }

    /// Deletes it: its namespace and cable go (open sockets in it hold the namespace, without its
    /// cable), its addresses are free again.
    ///
    /// # Errors
    /// When the lab has ended.
    pub fn delete(self) -> io::Result<()> {
        let running = &self.network.running;
        locked(&running.state)
            .pods
            .retain(|pod| pod.namespace != self.facts.namespace || pod.name != self.facts.name);
        match &self.network.name {
            Some(name) if !self.facts.host_network => running
                .sandbox
                .script(
                    None,
                    &format!("ip -n {name} link del eth0\nip netns del {name}"),
                )
                .map(drop),
            _ => Ok(()),
        }
    }
}

/// The lowest addresses that no pod of the node has.
fn free_addresses(pods: &[PodFacts], n: u8, families: Families) -> io::Result<Vec<IpAddr>> {
    let addresses = |host: u8| {
        let both = [IpAddr::from(pod_v4(n, host)), IpAddr::from(pod_v6(n, host))];
        both.into_iter()
            .filter(move |address| families.has(*address))
            .collect::<Vec<_>>()
    };
    let taken = |candidate: &Vec<IpAddr>| {
        pods.iter().any(|pod| {
            pod.addresses
                .iter()
                .any(|address| candidate.contains(address))
        })
    };
    let mut candidates = (0..=254u8).skip(FIRST_HOST).map(addresses);
    candidates
        .find(|candidate| !taken(candidate))
        .ok_or_else(|| io::Error::other("the node's pod network is full"))
}
