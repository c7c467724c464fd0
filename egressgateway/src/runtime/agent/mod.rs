//! The agent of one node: the cluster as the API server tells it in, the kernel as the drivers make
//! it out.

mod bounded;
mod builder;
mod deadlines;
mod driver_health;
mod inputs;
mod outputs;
mod port_requests;
mod reconciler;
mod session;
mod settings;
mod state_file;
mod tasks;
mod watches;

pub use self::{
    builder::Agent, settings::AgentSettings, state_file::StateFile, tasks::lease::LeaseSettings,
};
