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

mod builder;
mod cables;
mod capture;
mod cluster;
mod components;
mod conntrack;
pub mod constants;
mod flow;
mod lock;
mod namespace;
mod node;
mod objects;
mod options;
mod packet;
mod pod;
mod process;
mod responder;
mod rules;
mod running;
mod sandbox;
mod server;
mod service;
mod stream;
mod topology;
mod translation;

pub use builder::{Builder, NodeSpec};
pub use capture::Capture;
pub use cluster::Lab;
pub use constants::{
    MANAGEMENT, PODS_V4, PODS_V6, PORT, ROUTER_V4, ROUTER_V6, SERVICES_V4, SERVICES_V6,
};
pub use flow::Flow;
pub use namespace::{Namespace, PATIENCE};
pub use node::Node;
pub use options::{ChainInsertMode, Cni, Components, Families, ForwardPolicy, RuleTool};
pub use packet::{Packet, Protocol};
pub use pod::{Pod, PodSpec};
pub use process::{Process, ProcessSpec};
pub use responder::Seen;
pub use server::{Server, ServerSpec};
pub use service::{Service, ServiceSpec};
pub use stream::{Response, Stream, StreamReport, StreamSpec};
