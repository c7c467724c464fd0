//! What the kernel has, read back.

pub(crate) mod monitor;
pub(crate) mod statement;
pub(crate) mod table;
