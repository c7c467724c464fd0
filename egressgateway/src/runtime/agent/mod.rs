//! The agent of one node: the cluster as the API server tells it in, the kernel as the drivers make
//! it out.

mod boot_state;
mod bounded;
mod builder;
mod driver_health;
mod reconciler;
mod session;
mod settings;
mod tasks;
mod watches;

pub use self::{
    boot_state::StateFile, builder::Agent, settings::AgentSettings, tasks::lease::LeaseSettings,
};
