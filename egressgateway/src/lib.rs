//! Kubernetes egress gateway as a library: traffic of chosen pods to chosen destinations leaves the
//! cluster through chosen nodes.
//!
//! ```
//! use egressgateway::{
//!     api::{EgressGateway, EgressGatewayPolicy},
//!     index::{Index, IndexSettings},
//!     model::{MarkMask, NodeName, PodName, TargetId, Verdict},
//!     world::{Change, Gateway, Labels, Pod, Policy},
//! };
//!
//! // The objects, as the API server has them once the controller has allotted a mark.
//! let gateway: EgressGateway = serde_saphyr::from_str("
//! metadata: {name: egressgateway}
//! spec: {nodeSelector: {matchLabels: {egress: 'true'}}}
//! status: {mark: 0x11000000, nodeList: [{name: node-2, status: Ready, active: true}]}
//! ")?;
//! let policy: EgressGatewayPolicy = serde_saphyr::from_str("
//! metadata: {name: policy}
//! spec: {appliedTo: {podSelector: {matchLabels: {app: shopping}}}, destCIDR: [10.6.1.0/24]}
//! ")?;
//! let address: std::net::IpAddr = "10.244.1.10".parse()?;
//! let pod = Pod {
//!     labels: Labels::from([("app".into(), "shopping".into())]),
//!     node: Some(NodeName::from("node-1")),
//!     addresses: [address].into(),
//! };
//!
//! // What node-1 must hold because of them. Nothing here touches a cluster or a kernel.
//! let mut index = Index::new(IndexSettings::of_node(NodeName::from("node-1")));
//! index.apply(Change::Gateway("egressgateway".into(), Some(Gateway::from_api(&gateway, MarkMask::default()))));
//! index.apply(Change::Policy("policy".into(), Some(Policy::from_api(&policy))));
//! index.apply(Change::Pod(PodName::new("default", "shopping-1"), Some(pod)));
//! let desired = index.desired();
//!
//! let class = desired.policy.pods[&address];
//! let (place, verdict) = desired.policy.destinations.get_min().ok_or("no destinations")?;
//! assert_eq!(place.0, class);
//! assert!(matches!(verdict, Verdict::Egress { target: TargetId::FIRST, .. }));
//! assert!(desired.paths[&TargetId::FIRST].contains(&NodeName::from("node-2")));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! - [`api`]: the three objects, with their definitions; [`spec`] is what they ask for once it is
//!   checked, [`world`] the whole cluster.
//! - [`controller`] and [`index`]: pure planning, for the cluster and for one node. [`explain`]
//!   asks both about a connection, [`admission`] the cluster about a change of an object.
//! - [`Driver`], [`Tunnel`], [`PolicyBackend`] and [`CounterSource`]: what drives a kernel.
//!   [`Drivers`] brings a node from one [`NodeDesired`] to the next; a [`Reconciler`] makes each
//!   step cost its difference. Drivers are crates of their own.
//! - [`trace`]: what a backend's rules do to a packet, asked without a kernel.
//! - `kubernetes` (feature, on by default): everything that knows Kubernetes' objects. Without it,
//!   the model, the contracts of drivers and the planning of ranges stay, and neither `kube` nor
//!   `k8s-openapi` is compiled.
//! - `runtime` (feature, on by default, includes `kubernetes`): the loops of agent and controller
//!   over a `kube::Client` that the caller makes.
//! - `testing` (feature): what every driver must promise, and every policy backend mean, as suites.
//!
//! The library sets nothing that is global to a process, and chooses no Kubernetes version: enable
//! a `v1_*` feature of `k8s-openapi`.

#![cfg_attr(test, allow(clippy::unwrap_used))]

#[cfg(feature = "kubernetes")]
pub mod admission;
pub mod allocator;
#[cfg(feature = "kubernetes")]
pub mod api;
#[cfg(feature = "kubernetes")]
pub mod config;
mod contracts;
#[cfg(feature = "kubernetes")]
pub mod controller;
mod driver;
#[cfg(feature = "kubernetes")]
pub mod explain;
#[cfg(feature = "kubernetes")]
pub mod index;
pub mod model;
mod node;
pub mod plan;
#[cfg(feature = "runtime")]
pub mod runtime;
#[cfg(feature = "kubernetes")]
pub mod spec;
#[cfg(feature = "testing")]
pub mod testing;
pub mod trace;
#[cfg(feature = "kubernetes")]
pub mod world;
#[cfg(feature = "kubernetes")]
mod yaml;

pub use contracts::{
    AddressesDesired, Announcer, Attachments, Connection, Connections, Counter, CounterSource,
    DestinationView, Encap, Encapsulation, Ending, ExitNetwork, ForeignChains, ForeignRule, Host,
    HostRoute, Inquirer, LocalEnd, NextHop, Overlay, OverlayLinks, PacketMatch, Peer,
    PolicyBackend, PolicyDesired, PolicyMonitor, ProbeAddress, Prober, Questions, RelayDesired,
    RelayNode, Staleness, StartGate, SteeringDesired, Surroundings, Tunnel, TunnelDesired,
    Underlay, UntrackingRule, UntrackingRules,
};
pub use driver::{
    Change, Driver, DriverChain, Error, ErrorKind, Handover, Outcome, Plan, Reconcile, Reconciler,
    Unmanaged, WriteHook,
};
pub use node::{Drivers, DriversDesired, NodeDesired, PersistedPolicy, liveness};
