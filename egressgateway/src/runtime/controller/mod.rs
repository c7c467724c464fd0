//! The controller: one cache of the cluster, one plan, one writer at a time.

mod admission;
mod builder;
mod cache;
mod events;
mod from_config;
mod lease_tracker;
mod session;
mod settings;
mod shared_cluster;
mod writes;

pub use self::{
    admission::{Admission, Review},
    builder::Controller,
    from_config::ControllerBuilder,
    settings::ControllerSettings,
};
