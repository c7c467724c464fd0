//! Links, addresses, routes, rules and neighbours of one network namespace, over rtnetlink.
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use egressgateway::{Driver, NextHop, SteeringDesired, model::TargetId};
//! use egressgateway_netlink::{Netlink, Steering, SteeringSettings};
//! use imbl::{OrdMap, OrdSet};
//!
//! # async fn example() -> Result<(), egressgateway::Error> {
//! let steering = Steering::new(Netlink::open()?, SteeringSettings::default(), Arc::new(()));
//!
//! let gateway = NextHop { device: "egress-vxlan-v4".into(), via: [172, 31, 0, 11].into(), encap: None };
//! let desired = SteeringDesired {
//!     targets: OrdMap::unit(TargetId::FIRST, OrdSet::unit(gateway)),
//!     ..SteeringDesired::default()
//! };
//! let change = steering.plan(&desired, &steering.observe().await?)?;
//! println!("{}", change.plan); // what `ip -batch` would be given
//! steering.apply(&change.plan).await?;
//! # Ok(()) }
//! ```
//!
//! [`Netlink`] is one connection with typed calls; errors are classified once, from the kernel's
//! number. [`Steering`] is the driver of `ip rule` and routing tables that every tunnel and every
//! policy backend shares. [`EgressAddresses`] is the driver of the addresses that a gateway answers
//! for; [`NeighbourAnnouncer`] tells the neighbours of them, and [`NeighbourInquirer`] asks who
//! else has them. [`KernelHost`] tells an agent what it must know of its host, and when somebody
//! changed it.
//!
//! A connection belongs to the network namespace of the thread that opened it.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod address;
mod announce;
mod conntrack;
pub mod constants;
mod echo;
mod egress_addresses;
mod family;
#[doc(hidden)]
pub mod fuzzing;
mod host;
mod link;
mod monitor;
mod neighbour;
mod netlink;
mod next_hop;
mod overlay;
mod peer_route;
mod reset;
mod route;
mod rule;
mod steering;
pub mod sysctl;

pub use address::Address;
pub use announce::{NeighbourAnnouncer, NeighbourInquirer};
pub use conntrack::ConnectionTable;
pub use echo::EchoProber;
pub use egress_addresses::{AddressStep, AddressesPlan, AddressesState, EgressAddresses};
pub use host::{KernelHost, ParentChoice};
pub use link::{GeneveLink, Link, LinkChange, VxlanLink};
pub use neighbour::{FdbEntry, Neighbour};
pub use netlink::Netlink;
pub use next_hop::NextHopObject;
pub use overlay::{OverlayDevice, OverlayStep, Parameters};
pub use peer_route::PeerRoute;
pub use route::{RouteAction, RouteKey, encap_words};
pub use rule::Rule;
pub use steering::{Route, Steering, SteeringPlan, SteeringSettings, SteeringState, SteeringStep};
