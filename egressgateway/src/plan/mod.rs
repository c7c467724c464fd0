//! The pure parts of planning: overlaps settled, gateways resolved, verdicts found. Functions of
//! their arguments, nothing else.

#[cfg(feature = "kubernetes")]
mod claims;
mod exempt;
#[cfg(feature = "kubernetes")]
mod gateway;
#[cfg(feature = "kubernetes")]
mod network;
mod overlap;
mod place;
mod pod_networks;
mod ranges;
#[cfg(feature = "kubernetes")]
mod reserved;
mod resolve_overlaps;

#[cfg(feature = "kubernetes")]
pub use claims::claims;
#[cfg(feature = "kubernetes")]
pub(crate) use claims::without;
pub use exempt::{direct, exempt};
#[cfg(feature = "kubernetes")]
pub use gateway::{
    GatewayProblem, Reason, candidates, forward_method, is_distributed, resolve, unless_withheld,
    verdict,
};
#[cfg(feature = "kubernetes")]
pub use network::{Way, exit_networks, way};
pub use overlap::{Overlap, holder, in_the_way};
pub use place::place;
pub use pod_networks::{OwnPods, PodNetworks};
#[cfg(feature = "kubernetes")]
pub(crate) use ranges::cut;
pub use ranges::merge;
#[cfg(feature = "kubernetes")]
pub use reserved::{
    ClusterNetwork, Holder, cluster_networks, hosts, misplaced, misplaced_pool, owner, reserved,
    usable,
};
pub use resolve_overlaps::{RangeClaim, Rank, ResolvedRange, resolve_overlaps};
