//! One node: what it must hold, how it gets there, and what it keeps over a boot.

mod converge;
pub mod liveness;
mod persisted;

pub use self::{
    converge::{Drivers, DriversDesired, NodeDesired},
    persisted::PersistedPolicy,
};
