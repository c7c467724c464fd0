//! The lab itself, before any egress gateway is in it.
#![allow(clippy::unwrap_used)]

mod life;
mod measuring;
mod traffic;

use std::time::Duration;

use egressgateway_testkit::lab::Lab;

const SHORT: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(10);

fn lab() -> Lab {
    Lab::builder().nodes(["node1", "node2"]).build().unwrap()
}
