//! The daemons against an API server in this process, and a kernel that only remembers.

#![allow(clippy::unwrap_used, missing_docs)]

mod absence;
mod agent;
mod boot;
mod controller;
mod kernel;
mod ports;
mod support;
