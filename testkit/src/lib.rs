//! Test equipment of the egress gateway. Never published.

pub mod apiserver;
pub mod cluster;
pub mod container;
pub mod e2e;
pub mod golden;
pub mod image;
pub mod kube;
pub mod lab;
pub mod netns;
pub mod pace;
pub mod packets;
pub mod page;
pub mod relay;
pub mod shell;
pub mod skip;
pub mod soak;
pub mod tunnels;
