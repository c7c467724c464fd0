//! A Kubernetes API server in this process, for the ordinary `kube` client: enough of the real
//! one's rules to test controllers against, and faults on demand.
//!
//! It runs on a thread of its own, in the network namespace of whoever started it, so a test that
//! blocks does not block it.

mod admission;
mod apply;
mod fault;
mod http;
mod metadata;
mod patch;
mod resource;
mod selector;
mod server;
mod shared;
mod status;
mod store;
mod watch;
mod write;
mod yaml;

pub use fault::{Effect, Fault};
pub use server::{ApiServer, Reader};
pub use shared::Requests;
