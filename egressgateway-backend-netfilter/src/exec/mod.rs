//! What talks to the kernel.

pub(crate) mod detect;
pub(crate) mod flavour;
pub(crate) mod ipset;
pub(crate) mod iptables;
pub(crate) mod writes;
