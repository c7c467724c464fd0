//! Watch loops, leases and status writing over a `kube::Client` that the caller makes. Nothing here
//! sets a global.

mod agent;
mod controller;
mod health;
mod join;
mod kube;
mod metrics;
mod time;

pub use self::{
    agent::{Agent, AgentSettings, LeaseSettings, StateFile},
    controller::{Admission, Controller, ControllerBuilder, ControllerSettings, Review},
    health::Health,
    kube::{Backoff, ElectionSettings, api_error},
    metrics::Reloads,
};
