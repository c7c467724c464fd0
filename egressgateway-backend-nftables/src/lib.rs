//! nftables policy backend: one own table, `inet egressgateway`.
//!
//! ```
//! use std::sync::Arc;
//! use egressgateway::{Driver, Plan, model::{ClassId, IpRange, SourceNat, TargetId, Verdict}, PolicyDesired, trace::{Trace, TracePacket, TraceVerdict}};
//! use egressgateway_backend_nftables::{Nftables, NftablesSettings, NftState};
//!
//! // Pod 10.244.1.10 leaves for 10.6.1.0/24 through target 0x11.
//! let (pod, class, target) = ("10.244.1.10".parse()?, ClassId::new(1).ok_or("0")?, TargetId::FIRST);
//! let destination = IpRange::from("10.6.1.0/24".parse::<ipnet::IpNet>()?);
//! let egress = Verdict::Egress { target, source_nat: SourceNat::NodeAddress };
//! let desired = PolicyDesired {
//!     pods: [(pod, class)].into_iter().collect(),
//!     destinations: [((class, destination), egress)].into_iter().collect(),
//!     targets: [target].into_iter().collect(),
//!     ..PolicyDesired::default()
//! };
//!
//! // A plan is a script for `nft -f -`, and the state afterwards can be asked about any packet without a kernel.
//! let nftables = Nftables::new(NftablesSettings::default(), Arc::new(()));
//! let change = nftables.plan(&desired, &NftState::default())?;
//! assert!(change.plan.to_string().contains("add element inet egressgateway pods4 { 10.244.1.10 : 0:1 }"));
//! let steered = change.after.trace(&TracePacket::new(pod, "10.6.1.92".parse()?));
//! assert!(matches!(steered, TraceVerdict::Accept { packet_mark: 0x1100_0000, connection_mark: 0x1100_0000, .. }));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The number of chains, sets and maps does not depend on the number of policies or pods; a target
//! adds two short chains. One pod's change is one element. Whatever is in the table is ours: rules
//! that somebody else adds there, or takes away, are noticed when the table is read, and the next
//! plan repairs them.
//!
//! - [`Nftables`] drives the kernel: [`Driver`], [`PolicyBackend`], [`CounterSource`],
//!   [`Nftables::probe`]; [`Nftables::offline`] only plans.
//! - [`NftState`] is what the table holds, and can be asked about any packet ([`Trace`]).
//! - [`Services`] works beside another backend that looks before destination translation.
//! - [`ExitGuard`] works beside another backend, whose translation others may come before.
//! - [`Relay`] passes on what other nodes have translated, beside either backend.

mod apply;
mod backend;
mod exit_guard;
#[doc(hidden)]
pub mod fuzzing;
mod lookup_probe;
mod observe;
mod relay;
mod ruleset;
mod services;
mod sets;
mod state;
mod trace;
mod untracking;

pub use apply::plan::NftPlan;
pub use backend::{Nftables, NftablesSettings};
#[cfg(doc)]
use egressgateway::{CounterSource, Driver, PolicyBackend, trace::Trace};
pub use exit_guard::{ExitGuard, ExitGuardPlan, ExitGuardState, ExitMarks};
pub use observe::monitor::NftMonitor;
pub use relay::{Relay, RelayPlan, RelayState};
pub use services::Services;
pub use state::NftState;
pub use untracking::NftUntracking;
