//! The chart and the daemons on a real Kubernetes control plane.
#![allow(clippy::unwrap_used, missing_docs)]

#[macro_use]
#[path = "../apiserver/list.rs"]
mod list;

mod accounts;
mod chart;
mod daemons;
mod faults;
mod leaders;
mod listeners;
mod objects;
#[allow(dead_code)]
#[path = "../apiserver/rules.rs"]
mod rules;
mod server;
mod uninstall;
mod webhooks;

use std::path::{Path, PathBuf};

use egressgateway_testkit::{kube, netns::have_root};

/// The control plane's programs, where tests can make namespaces.
fn assets() -> Option<PathBuf> {
    have_root().then(kube::assets).flatten()
}

fn chart_directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../charts/egressgateway")
        .canonicalize()
        .unwrap()
}
