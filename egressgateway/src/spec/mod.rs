//! Objects as their users wrote them, parsed into the words of the model: parse, don't validate.
//!
//! What can't be parsed is a [`Problem`] that names the field, the value and the rule. It goes into
//! a condition and an event; it never stops a daemon.

mod gateway;
mod name;
mod network;
mod policy;
mod problem;
mod selector;

pub use gateway::GatewaySpec;
pub use name::parse_name;
pub use network::{parse_address, parse_network, parse_pool_entry};
pub(crate) use policy::{ALL_PODS, PODS_OF_NAMESPACES};
pub use policy::{DEFAULT_PRIORITY, MAX_PRIORITY, PolicySpec, Subject};
pub use problem::Problem;
pub use selector::{Requirement, Selector};
