//! What changes the kernel.

pub(crate) mod command;
pub(crate) mod element_batch;
pub(crate) mod plan;
