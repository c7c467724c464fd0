//! What an agent does besides converging, each a task of its own.

pub(super) mod address_acquisition;
mod address_conflicts;
mod announcements;
pub(super) mod boot_state;
mod counters;
pub(super) mod lease;
mod lease_fence;
pub(super) mod probes;
pub(super) mod spawn;
mod stale_connections;
pub(super) mod status;
pub(super) mod untracked;
