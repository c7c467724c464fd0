//! The pure parts of planning: overlaps settled, gateways resolved, verdicts found. Functions of their arguments, nothing else.

mod exempt;
mod flatten;
mod gateway;
mod network;
mod overlap;
mod place;
mod pod_networks;
mod reserved;

pub use exempt::{direct, exempt};
pub(crate) use flatten::without;
pub use flatten::{Claim, Rank, Stretch, claims, cover, merge};
pub use gateway::{GatewayProblem, Reason, candidates, forward_method, resolve, unless_withheld, verdict};
pub use network::{Way, exit_networks, way};
pub use overlap::{Overlap, holder, in_the_way};
pub use place::place;
pub use pod_networks::{OwnPods, PodNetworks};
pub use reserved::{ClusterNetwork, Holder, cluster_networks, hosts, misplaced, misplaced_pool, owner, reserved, usable};
