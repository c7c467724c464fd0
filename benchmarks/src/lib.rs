//! What the measurements share: namespaces of their own, many policies, the layouts that are
//! compared, and tables of figures. `scale` measures the daemons in a large cluster.
#![allow(clippy::missing_panics_doc, clippy::unwrap_used)]

pub mod cluster;
pub mod command;
pub mod conntrack;
pub mod layout;
pub mod namespace;
pub mod policies;
pub mod proposal;
pub mod scale;
pub mod statistics;
pub mod world;
