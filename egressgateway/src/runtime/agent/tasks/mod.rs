//! What an agent does besides converging, each a task of its own.

pub(super) mod address_acquisition;
pub(super) mod address_conflicts;
pub(super) mod announcements;
pub(super) mod boot_state;
pub(super) mod counters;
pub(super) mod lease;
mod lease_fence;
pub(super) mod probes;
pub(super) mod stale_connections;
pub(super) mod status;
pub(super) mod untracked;
