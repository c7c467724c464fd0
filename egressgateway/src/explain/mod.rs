//! What a new connection meets and why, from manifests alone: no cluster, no kernel.
//!
//! [`Manifests`] are read from YAML, [`Offline`] is the cluster that they describe once the
//! controller has come to rest, and [`explain`] follows one connection through what its node and
//! its exit would hold. Nothing is decided here: every answer is read from the
//! [`Index`](crate::index::Index) and from the [`NodeDesired`](crate::NodeDesired) that the drivers
//! are given.
//!
//! ```
//! use std::sync::Arc;
//! use egressgateway::{Encapsulation, LocalEnd, NextHop, OverlayLinks, Peer, explain::{Manifests, Offline, OfflineSettings, Verdict, explain}, model::{Family, PodName}};
//!
//! struct Direct;
//! impl Encapsulation for Direct {
//!     fn kind(&self) -> &'static str { "direct" }
//!     fn next_hop(&self, _: &LocalEnd, peer: &Peer, family: Family) -> Option<NextHop> {
//!         Some(NextHop { device: "tunnel".into(), via: peer.overlay(family)?, encap: None })
//!     }
//!     fn links(&self, _: &LocalEnd) -> OverlayLinks {
//!         OverlayLinks { devices: Default::default(), port: 7789, mtu: Default::default() }
//!     }
//! }
//!
//! let mut manifests = Manifests::default();
//! manifests.read("cluster.yaml", r#"
//! apiVersion: v1
//! kind: Node
//! metadata: {name: node1}
//! status: {addresses: [{type: InternalIP, address: 10.6.0.11}]}
//! ---
//! apiVersion: v1
//! kind: Pod
//! metadata: {name: a, namespace: default}
//! spec: {nodeName: node1, containers: []}
//! status: {podIPs: [{ip: 10.244.1.10}]}
//! "#);
//! let cluster = Offline::new(&manifests, OfflineSettings::of_tunnel(Arc::new(Direct)));
//! let answer = explain(&cluster, &PodName::new("default", "a"), "192.0.2.1".parse()?)?;
//! assert_eq!(answer.verdict, Verdict::Pass);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod explanation;
mod manifest;
mod offline;
mod settings;
mod simulate;
mod structure;
mod way;

pub use explanation::{Cause, Exit, Explanation, Step, Verdict};
pub use manifest::{Finding, ManifestWarning, Manifests, Origin};
pub use offline::Offline;
pub use settings::{OfflineSettings, Statuses, UNDERLAY_DEVICE, UNDERLAY_INDEX, UNDERLAY_MTU};
pub use way::{ExplainError, explain};
