//! Watch loops, leases and status writing over a `kube::Client` that the caller makes. Nothing here
//! sets a global.

mod admission;
mod agent;
mod agent_loop;
mod agent_watches;
mod announcements;
mod boot_hold;
mod bounded;
mod claims;
mod controller;
mod controller_loop;
mod convergence;
mod doubt;
mod events;
mod freshness;
mod gateway_probes;
mod health;
mod kube;
mod metrics;
mod mirror;
mod node_status;
mod presence;
mod recorded;
mod shared_cluster;
mod stale_connections;
mod state_file;
mod taking;
mod tasks;
mod time;
mod untracked;
mod writes;

pub use self::kube::{Backoff, ElectionSettings};
pub use admission::{Admission, Review};
pub use agent::{Agent, AgentSettings};
pub use controller::{Controller, ControllerSettings};
pub use health::Health;
pub use metrics::Reloads;
pub use presence::LeaseSettings;
pub use state_file::StateFile;
