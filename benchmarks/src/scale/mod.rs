//! What the daemons cost in a large cluster: a real API server, real daemons, and everybody else's
//! part played.
//!
//! The controller and some agents are real processes on nodes of a lab. All other nodes exist in
//! the API server alone: their kubelets' heartbeats and their agents' Leases and statuses are sent
//! from here, as often as the real ones are. Pods are objects without a process.

mod daemons;
mod load;
mod measure;
mod objects;
mod reading;
mod report;
mod rollout;
mod server;
mod size;

pub use daemons::CONTROLLER;
pub use measure::{Figures, Times, measure};
pub use reading::{Memory, Phase, Usage};
pub use report::report;
pub use size::{AGENTS, FOLLOWER, Size};
