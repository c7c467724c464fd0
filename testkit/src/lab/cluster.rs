//! The running lab, as tests see it.

use std::{collections::BTreeMap, io, sync::Arc};

use super::{
    builder::Builder,
    cables,
    capture::Capture,
    constants,
    lock::locked,
    namespace::Namespace,
    node::Node,
    objects,
    pod::{Pod, PodSpec},
    running::Running,
    server::{Server, ServerSpec},
    service::{Service, ServiceSpec},
};

/// A simulated cluster. Dropped: all of it ends, and handles that are left answer with errors.
#[derive(Debug)]
pub struct Lab {
    running: Arc<Running>,
}

impl Lab {
    /// Describes a lab.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The lab's root namespace, where an API server may listen at [`MANAGEMENT`](constants::MANAGEMENT); no part of the
    /// underlay, out of reach for pods.
    #[must_use]
    pub fn root(&self) -> Namespace {
        Namespace {
            running: Arc::clone(&self.running),
            name: None,
        }
    }

    /// The router between underlay and the rest of the world.
    #[must_use]
    pub fn router(&self) -> Namespace {
        Namespace {
            running: Arc::clone(&self.running),
            name: Some(constants::ROUTER.into()),
        }
    }

    /// Cuts the underlay between these two nodes alone: each reaches everybody else. A node can be
    /// parted from one other at a time.
    ///
    /// # Errors
    /// When the lab has ended.
    ///
    /// # Panics
    /// When there is no such node.
    pub fn part(&self, nodes: [&str; 2]) -> io::Result<()> {
        self.isolate(nodes, "on")
    }

    /// Ends what [`part`](Self::part) began.
    ///
    /// # Errors
    /// When the lab has ended.
    ///
    /// # Panics
    /// When there is no such node.
    pub fn join(&self, nodes: [&str; 2]) -> io::Result<()> {
        self.isolate(nodes, "off")
    }

    /// Isolated ports of a switch do not reach each other, and all others do.
    fn isolate(&self, nodes: [&str; 2], state: &str) -> io::Result<()> {
        let command = |node| {
            format!(
                "bridge link set dev {} isolated {state}\n",
                cables::node_port(self.node(node).facts.n)
            )
        };
        self.running
            .sandbox
            .script(Some(constants::UNDERLAY), &nodes.map(command).concat())
            .map(drop)
    }

    /// A node by its name.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn node(&self, name: &str) -> Node {
        let facts = self
            .running
            .topology
            .node(name)
            .unwrap_or_else(|error| panic!("{error}"))
            .clone();
        Node {
            namespace: Namespace {
                running: Arc::clone(&self.running),
                name: Some(facts.name.clone()),
            },
            facts,
        }
    }

    /// All nodes, in the order given.
    #[must_use]
    pub fn nodes(&self) -> Vec<Node> {
        self.running
            .topology
            .nodes
            .iter()
            .map(|facts| self.node(&facts.name))
            .collect()
    }

    /// Makes a pod on a node; it answers at [`PORT`](constants::PORT).
    ///
    /// # Errors
    /// When there is one of that name already, or from the kernel.
    pub fn pod(&self, node: &str, pod: impl Into<PodSpec>) -> io::Result<Pod> {
        Pod::create(&self.running, node, pod.into())
    }

    /// Makes a pod with labels in the namespace `default`.
    ///
    /// # Errors
    /// As [`Lab::pod`].
    pub fn pod_with_labels<'a>(
        &self,
        node: &str,
        name: &str,
        labels: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> io::Result<Pod> {
        self.pod(
            node,
            labels
                .into_iter()
                .fold(PodSpec::new(name), |spec, (key, value)| {
                    spec.label(key, value)
                }),
        )
    }

    /// Labels a Kubernetes namespace, which comes into being if it is new.
    pub fn namespace<'a>(&self, name: &str, labels: impl IntoIterator<Item = (&'a str, &'a str)>) {
        let mut all = BTreeMap::from([("kubernetes.io/metadata.name".to_owned(), name.to_owned())]);
        all.extend(
            labels
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value.to_owned())),
        );
        locked(&self.running.state)
            .namespaces
            .insert(name.to_owned(), all);
    }

    /// Makes a server outside the cluster with routes to nodes, but none to pods; it answers at
    /// [`PORT`](constants::PORT) with the source it sees.
    ///
    /// # Errors
    /// When the lab lacks an address's family, or from the kernel.
    ///
    /// # Panics
    /// On what is no address.
    pub fn server<'a>(&self, addresses: impl IntoIterator<Item = &'a str>) -> io::Result<Server> {
        self.add_server(&ServerSpec::new(addresses))
    }

    /// Makes a server outside the cluster.
    ///
    /// # Errors
    /// As [`Lab::server`].
    pub fn add_server(&self, spec: &ServerSpec) -> io::Result<Server> {
        Server::create(&self.running, spec)
    }

    /// Makes a service in front of these pods' [`PORT`](constants::PORT), on every node.
    ///
    /// # Errors
    /// From the tool that writes the rules.
    pub fn service(&self, spec: ServiceSpec, pods: &[&Pod]) -> io::Result<Service> {
        Service::create(&self.running, spec, pods)
    }

    /// Captures the underlay from now on, at all ports there are: servers that are made later send
    /// unseen.
    ///
    /// # Errors
    /// From the kernel.
    pub fn capture(&self) -> io::Result<Capture> {
        Capture::start(&self.running)
    }

    /// The Kubernetes objects that describe the lab as it is: namespaces, nodes, pods, services.
    #[must_use]
    pub fn objects(&self) -> Vec<serde_json::Value> {
        objects::all(&self.running)
    }

    /// A node's object, with the condition Ready true, or unknown as of a node that is lost.
    ///
    /// # Panics
    /// When there is no such node.
    #[must_use]
    pub fn node_object(&self, name: &str, ready: bool) -> serde_json::Value {
        objects::node(&self.node(name).facts, ready)
    }

    /// Id of the process that holds the lab's namespaces.
    #[must_use]
    pub fn holder(&self) -> u32 {
        self.running.sandbox.holder()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.running.end();
    }
}

impl Builder {
    /// Makes the lab.
    ///
    /// # Errors
    /// Without root or one of the programs `unshare`, `nsenter`, `ip`, `bridge`, `nft` (or
    /// `iptables`, `ipset`), with what they said; and when nft is to write what only iptables can.
    pub fn build(self) -> io::Result<Lab> {
        Running::build(self).map(|running| Lab {
            running: Arc::new(running),
        })
    }
}
