//! Watch loops, leases and status writing over a `kube::Client` that the caller makes. Nothing here
//! sets a global.

mod agent;
mod agent_loop;
mod agent_watches;
mod announcements;
mod boot_hold;
mod bounded;
mod claims;
mod controller;
mod convergence;
mod doubt;
mod gateway_probes;
mod health;
mod kube;
mod metrics;
mod node_status;
mod presence;
mod recorded;
mod stale_connections;
mod state_file;
mod taking;
mod tasks;
mod time;
mod untracked;

pub use self::{
    controller::{Admission, Controller, ControllerSettings, Review},
    kube::{Backoff, ElectionSettings},
};
pub use agent::{Agent, AgentSettings};
pub use health::Health;
pub use metrics::Reloads;
pub use presence::LeaseSettings;
pub use state_file::StateFile;
