//! Every example is run, as its reader would.
#![allow(clippy::unwrap_used)]

mod custom_backend;
mod custom_tunnel;
mod dry_run;
mod embed_agent;
mod embed_controller;
mod embed_in_operator;
mod node;
#[cfg(feature = "outside")]
mod outside;
mod support;
