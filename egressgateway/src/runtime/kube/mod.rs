//! What both daemons do with the API server: watches, backoff, elections and Leases.

pub(super) mod agent_lease;
pub(super) mod backoff;
pub(super) mod cluster_networks;
pub(super) mod conditions;
pub(super) mod contact;
pub(super) mod election;
pub(super) mod errors;
pub(super) mod initial_sync;
pub(super) mod interner;
pub(super) mod observed;
pub(super) mod owner;
pub(super) mod partial;
pub(super) mod watch;
pub(super) mod watches;

pub use self::{backoff::Backoff, election::ElectionSettings, errors::from_api as api_error};
