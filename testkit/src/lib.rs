//! Test equipment of the egress gateway. Never published.

pub mod lab;
pub mod netns;
