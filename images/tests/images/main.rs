//! The images: what is in their root file systems, and that the daemons run from them as the chart
//! says. No container engine is needed: the Containerfile only wraps what `scripts/rootfs` makes,
//! and is held to that.
#![allow(clippy::unwrap_used, missing_docs)]

mod containerfile;
mod contents;
mod running;

use std::path::PathBuf;

/// A path in the repository.
fn repository(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .join(path)
        .canonicalize()
        .unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(repository(path)).unwrap()
}
