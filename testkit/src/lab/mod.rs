//! A cluster inside one process: nodes, pods and servers as network namespaces that are gone with
//! the process.
//!
//! Everything is in mount, network and PID namespaces of the lab's own: the host's network is not
//! touched, labs do not see each other, and when the process ends, in whatever way, the kernel ends
//! every program and namespace of the lab.
//!
//! ```text
//!   server1 (10.6.1.10 …)      server2 (198.51.100.1, fd00:6:1::10 …)
//!      │                          │
//!      │                        router 10.6.255.254, fd00:6::fffe
//!  ════╪═══════════ underlay ═════╪════════════════ 10.6.0.0/16, fd00:6::/64
//!      │ eth0                     │ eth0
//!    node1 10.6.0.11, fd00:6::11  node2 10.6.0.12, fd00:6::12  …
//!      │ veth…      │ mgmt0       │              │ mgmt0
//!    pods 10.244.1.0/24, fd10:1::/64             │
//!  ═════════════════╪═══════════ management ═════╪═ 192.168.77.0/24 ══ lab's root 192.168.77.1
//! ```
//!
//! The calls block: between them and an asynchronous test stands a thread (`spawn_blocking`), or an
//! API server with a runtime of its own.
//!
//! ```no_run
//! use egressgateway_testkit::lab::Lab;
//! # fn main() -> std::io::Result<()> {
//! let lab = Lab::builder().nodes(["node1", "node2"]).build()?;
//! let (pod, server) = (lab.pod("node1", "pod-a")?, lab.server(["10.6.1.10", "fd00:6:1::10"])?);
//! assert_eq!(pod.connect_tcp(server.v4())?.ip(), lab.node("node1").v4());
//! # Ok(())
//! # }
//! ```

mod answer;
mod builder;
mod cage;
mod capture;
mod components;
mod conntrack;
pub mod constants;
mod flow;
mod namespace;
mod node;
mod objects;
mod packet;
mod pod;
mod process;
mod rules;
mod server;
mod service;
mod stream;
mod topology;
mod world;

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

pub use answer::Seen;
pub use builder::{Builder, Cni, Families, ForwardPolicy, NodeSpec, RuleTool};
pub use capture::Capture;
pub use components::{ChainInsertMode, Components};
pub use constants::{
    MANAGEMENT, PODS_V4, PODS_V6, PORT, ROUTER_V4, ROUTER_V6, SERVICES_V4, SERVICES_V6,
};
pub use flow::Flow;
pub use namespace::{Namespace, PATIENCE};
pub use node::Node;
pub use packet::{Packet, Protocol};
pub use pod::{Pod, PodSpec};
pub use process::{Process, ProcessSpec};
pub use server::{Server, ServerSpec};
pub use service::{Service, ServiceSpec};
pub use stream::{Answer, Stream, StreamReport, StreamSpec};
use world::World;

/// A simulated cluster. Dropped: all of it ends, and handles that are left answer with errors.
#[derive(Debug)]
pub struct Lab {
    world: Arc<World>,
}

impl Lab {
    /// Describes a lab.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    fn over(world: World) -> Self {
        Self {
            world: Arc::new(world),
        }
    }

    /// The lab's root namespace, where an API server may listen at [`MANAGEMENT`]; no part of the
    /// underlay, out of reach for pods.
    #[must_use]
    pub fn root(&self) -> Namespace {
        Namespace {
            world: Arc::clone(&self.world),
            name: None,
        }
    }

    /// The router between underlay and the rest of the world.
    #[must_use]
    pub fn router(&self) -> Namespace {
        Namespace {
            world: Arc::clone(&self.world),
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
                topology::node_port(self.node(node).facts.n)
            )
        };
        self.world
            .cage
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
            .world
            .node(name)
            .unwrap_or_else(|error| panic!("{error}"))
            .clone();
        Node {
            namespace: Namespace {
                world: Arc::clone(&self.world),
                name: Some(facts.name.clone()),
            },
            facts,
        }
    }

    /// All nodes, in the order given.
    #[must_use]
    pub fn nodes(&self) -> Vec<Node> {
        self.world
            .nodes
            .iter()
            .map(|facts| self.node(&facts.name))
            .collect()
    }

    /// Makes a pod on a node; it answers at [`PORT`].
    ///
    /// # Errors
    /// When there is one of that name already, or from the kernel.
    pub fn pod(&self, node: &str, pod: impl Into<PodSpec>) -> io::Result<Pod> {
        Pod::create(self, node, pod.into())
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
        locked(&self.world.state)
            .namespaces
            .insert(name.to_owned(), all);
    }

    /// Makes a server outside the cluster with routes to nodes, but none to pods; it answers at
    /// [`PORT`] with the source it sees.
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
        Server::create(self, spec)
    }

    /// Makes a service in front of these pods' [`PORT`], on every node.
    ///
    /// # Errors
    /// From the tool that writes the rules.
    pub fn service(&self, spec: ServiceSpec, pods: &[&Pod]) -> io::Result<Service> {
        Service::create(self, spec, pods)
    }

    /// Captures the underlay from now on, at all ports there are: servers that are made later send
    /// unseen.
    ///
    /// # Errors
    /// From the kernel.
    pub fn capture(&self) -> io::Result<Capture> {
        Capture::start(&self.world)
    }

    /// The Kubernetes objects that describe the lab as it is: namespaces, nodes, pods, services.
    #[must_use]
    pub fn objects(&self) -> Vec<serde_json::Value> {
        objects::all(&self.world)
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
        self.world.cage.holder()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.world.end();
    }
}

/// Locks; what a panicking thread left is still good, as every change here is one assignment.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
