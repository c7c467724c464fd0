//! Kubernetes egress gateway as a library.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod allocator;
pub mod api;
pub mod config;
pub mod controller;
mod converge;
mod driver;
mod error;
pub mod explain;
mod host;
pub mod index;
pub mod model;
pub mod plan;
mod policy;
#[cfg(feature = "runtime")]
pub mod runtime;
pub mod spec;
mod steering;
#[cfg(feature = "testing")]
pub mod testing;
mod tunnel;
pub mod world;

pub use converge::{Drivers, DriversDesired, NodeDesired};
pub use driver::{Change, Driver, Outcome, Plan, Reconcile, Reconciler, WriteHook};
pub use error::{Error, ErrorKind};
pub use host::Host;
pub use policy::{Counter, CounterSource, Overlay, PolicyBackend, PolicyDesired, PolicyMonitor, StartGate};
pub use steering::{Encap, NextHop, SteeringDesired};
pub use tunnel::{Encapsulation, LocalEnd, OverlayLinks, Peer, Tunnel, TunnelDesired, Underlay};
