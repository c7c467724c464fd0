//! The controller's plan: what it decides, and that it decides the same again.

#![allow(clippy::unwrap_used)]

mod api;
mod drains;
mod families;
mod gateways;
mod marks;
mod nodes;
mod owners;
mod policies;
mod pools;
mod ports;
mod properties;
