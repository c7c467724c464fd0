//! What the daemons count, in a registry of the embedder's.

mod agent;
mod common;
mod controller;
#[cfg(test)]
mod tests;

pub use self::common::Reloads;
pub(crate) use self::{
    agent::AgentMetrics,
    common::{LeaseMetrics, WatchMetrics, WriteMetrics},
    controller::{AdmissionMetrics, ControllerMetrics},
};
