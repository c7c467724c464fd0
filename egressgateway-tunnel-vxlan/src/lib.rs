//! The overlay between nodes as VXLAN devices of the kernel.
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use egressgateway::{Driver, Encapsulation, LocalEnd, TunnelDesired};
//! use egressgateway_netlink::Netlink;
//! use egressgateway_tunnel_vxlan::{Vxlan, VxlanSettings};
//!
//! # async fn example(local: LocalEnd) -> Result<(), egressgateway::Error> {
//! let tunnel = Vxlan::new(Netlink::open()?, VxlanSettings::default(), Arc::new(()));
//! println!("{:?}", tunnel.links(&local).devices);
//!
//! let desired = TunnelDesired { local: Some(local), ..TunnelDesired::default() };
//! let change = tunnel.plan(&desired, &tunnel.observe().await?)?;
//! println!("{}", change.plan); // a shell script that does the same
//! tunnel.apply(&change.plan).await?;
//! # Ok(()) }
//! ```
//!
//! One device for each family that the node has both an overlay and an underlay address of:
//! `egress-vxlan-v4` carries IPv4 over IPv4, `egress-vxlan-v6` IPv6 over IPv6. Nothing is learned
//! or flooded: each peer has one forwarding entry (hardware address to outer address, with the
//! parent device, so that the outer packet needs no second policy routing) and one permanent
//! neighbour (overlay address to hardware address).
//!
//! The overlay address is a single one, and each peer has a route of its own in the main table: no
//! network's route is made, so that nothing is taken that the host reaches otherwise. Steered
//! traffic does not need these routes, its next hops are `onlink`; what nodes say to each other
//! over the tunnel (an echo request to a gateway, and its answer) does.
//!
//! Outer UDP checksums are on: RFC 8200 wants them over IPv6, where an outer packet without one is
//! not accepted; over IPv4 they let network cards coalesce packets.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod constants;
mod driver;
mod plan;
mod shape;
mod state;

pub use driver::Vxlan;
pub use plan::{VxlanPlan, VxlanStep};
pub use shape::{VxlanSettings, VxlanShape};
pub use state::{Device, Remote, VxlanState};
