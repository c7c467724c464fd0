//! From one state to another, with nothing wrong in between.

pub(crate) mod between;
#[cfg(test)]
mod intermediate_states;
pub(crate) mod plan;
