//! What the sets hold.

pub(crate) mod elements;
pub(crate) mod ranges;
