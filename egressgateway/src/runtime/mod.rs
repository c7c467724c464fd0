//! Watch loops, leases and status writing over a `kube::Client` that the caller makes. Nothing here sets a global.

mod admission;
mod agent;
mod agent_loop;
mod announcements;
mod backoff;
mod cluster_networks;
mod conditions;
mod controller;
mod controller_loop;
mod convergence;
mod election;
mod events;
mod failure;
mod feeds;
mod freshness;
mod gate;
mod gateway_probes;
mod health;
mod metrics;
mod mirror;
mod node_status;
mod observed;
mod presence;
mod recorded;
mod shared_cluster;
mod stale_connections;
mod watch;
mod writes;

pub use admission::{Admission, Review};
pub use agent::{Agent, AgentSettings};
pub use backoff::Backoff;
pub use controller::{Controller, ControllerSettings};
pub use election::ElectionSettings;
pub use health::Health;
pub use metrics::Reloads;
pub use presence::LeaseSettings;
