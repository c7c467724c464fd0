//! What the rules are made of, and the rules.

pub(crate) mod barriers;
pub(crate) mod chains;
mod classify;
mod exit;
pub(crate) mod forward;
pub(crate) mod number_trees;
mod prerouting;
mod raw;
mod render;
pub(crate) mod save;
pub(crate) mod table;
pub(crate) mod tree;
