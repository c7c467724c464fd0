//! What an admission webhook answers: what one object can't show by itself, but the cluster can.
//!
//! [`review`] and [`canonical`] are pure. The cluster that they are asked about may be a moment
//! old, so that two requests at the same time may both pass where one would not: what the
//! controller plans is right all the same, and says so in the objects' conditions. A refusal is the
//! earlier word, not the only one.

mod canonical;
mod gateway;
mod policy;
mod request;
mod review;
#[cfg(test)]
mod tests;

pub use self::{
    canonical::{Canonical, canonical},
    request::{Asked, Decision, Request},
    review::review,
};
