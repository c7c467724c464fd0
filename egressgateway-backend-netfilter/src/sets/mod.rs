//! What the sets hold.

pub(crate) mod content;
pub(crate) mod numbers;
pub(crate) mod roles;
pub(crate) mod set;
