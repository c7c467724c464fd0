//! The pure parts of planning: overlaps settled, gateways resolved, verdicts found. Functions of their arguments, nothing else.

mod exempt;
mod flatten;
mod gateway;
mod place;

pub use exempt::{direct, exempt};
pub use flatten::{Claim, Rank, Stretch, claims, cover, merge};
pub use gateway::{GatewayProblem, Reason, candidates, forward_method, resolve, unless_contested, verdict};
pub use place::place;
