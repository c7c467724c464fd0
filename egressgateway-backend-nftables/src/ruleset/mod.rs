//! What the rules are made of, and the rules.

pub(crate) mod ast;
pub(crate) mod chains;
mod classify;
mod exit;
mod forward;
pub(crate) mod names;
mod outer;
mod prerouting;
mod rule;
