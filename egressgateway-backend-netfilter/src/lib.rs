//! iptables and ipset policy backend: own chains, which begin with `EGW-`, and own sets, which
//! begin with `egw-`.
//!
//! ```
//! use egressgateway::{Driver, PolicyDesired, model::{ClassId, IpRange, SourceNat, TargetId, Verdict}};
//! use egressgateway_backend_netfilter::{Netfilter, NetfilterSettings, NetfilterState};
//!
//! // Pod 10.244.1.10 leaves for 10.6.1.0/24 through target 0x11.
//! let (pod, class, target) = ("10.244.1.10".parse::<std::net::IpAddr>()?, ClassId::new(1).ok_or("0")?, TargetId::FIRST);
//! let destination = IpRange::from("10.6.1.0/24".parse::<ipnet::IpNet>()?);
//! let egress = Verdict::Egress { target, source_nat: SourceNat::NodeAddress };
//! let desired = PolicyDesired {
//!     pods: [(pod, class)].into_iter().collect(),
//!     destinations: [((class, destination), egress)].into_iter().collect(),
//!     targets: [target].into_iter().collect(),
//!     ..PolicyDesired::default()
//! };
//!
//! // A plan is what ipset and iptables-restore would be given.
//! let change = Netfilter::offline(NetfilterSettings::default()).plan(&desired, &NetfilterState::default())?;
//! assert!(change.plan.to_string().contains("add egw-verdicts-00000001-v4 10.6.1.0/24 skbmark 0x11000000/0xff00ffff\n"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The number of rules that a packet passes does not depend on the number of policies or pods,
//! except where pods leave a gateway with their own address. One pod's change is one entry. Sets
//! are changed over netlink; chains are replaced as a whole, all of one table in one transaction.
//! Others' rules stay as they are; our jumps come first, and the next plan moves them there again.
//!
//! - [`Netfilter`] drives the kernel: [`Driver`], [`PolicyBackend`], [`CounterSource`],
//!   [`Netfilter::probe`]; [`Netfilter::offline`] only plans.
//! - [`NetfilterState`] is what our sets and chains hold, and can be asked about any packet
//!   ([`Trace`]).
//! - [`Transit`] works beside any backend on hosts whose iptables would drop what exits there.
//! - [`IptablesFlavour`]: rules are kept by `iptables-legacy` or `iptables-nft`, whichever the
//!   cluster uses.

mod backend;
mod contention;
mod exec;
#[doc(hidden)]
pub mod fuzzing;
mod mark_layout;
mod monitor;
mod names;
mod ruleset;
mod sets;
mod state;
mod trace;
mod transit;
mod transition;
mod untracking;

pub use backend::{ExitMarks, Netfilter, NetfilterSettings};
#[cfg(doc)]
use egressgateway::{CounterSource, Driver, PolicyBackend, trace::Trace};
pub use exec::flavour::IptablesFlavour;
pub use monitor::NetfilterMonitor;
pub use state::NetfilterState;
pub use transit::{Transit, TransitState};
pub use transition::plan::NetfilterPlan;
pub use untracking::IptablesUntracking;
