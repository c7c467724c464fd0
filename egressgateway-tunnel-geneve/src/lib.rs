//! The overlay between nodes as one Geneve device of the kernel, for both families and over both.
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use egressgateway::{Driver, Encapsulation, LocalEnd, TunnelDesired};
//! use egressgateway_netlink::Netlink;
//! use egressgateway_tunnel_geneve::{Geneve, GeneveSettings};
//!
//! # async fn example(local: LocalEnd) -> Result<(), egressgateway::Error> {
//! let tunnel = Geneve::new(Netlink::open()?, GeneveSettings::default(), Arc::new(()));
//! println!("{:?}", tunnel.links(&local).devices);
//!
//! let desired = TunnelDesired { local: Some(local), ..TunnelDesired::default() };
//! let change = tunnel.plan(&desired, &tunnel.observe().await?)?;
//! println!("{}", change.plan); // a shell script that does the same
//! tunnel.apply(&change.plan).await?;
//! # Ok(()) }
//! ```
//!
//! `egress-geneve` takes the outer addresses of each packet from the route that led it there
//! (*metadata mode*, [RFC 8926] on the wire). Each peer has a permanent neighbour and a route to
//! each of its overlay addresses; those are for what nodes say to each other over the tunnel.
//! Routes that steer carry the outer addresses themselves: the kernel does not look for them behind
//! a next hop. An outer header gets a time to live of its own, because the kernel would write 0,
//! which no router forwards.
//!
//! Such a device accepts packets from anybody who knows its port: the policy backends drop what
//! comes from no peer.
//!
//! Its largest packet is what the narrowest underlay family of the node leaves room for. It is set,
//! because the kernel's choice would be 65,465 bytes, and followed when the underlay's changes.
//!
//! [RFC 8926]: https://www.rfc-editor.org/rfc/rfc8926

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod constants;
mod driver;
mod plan;
mod shape;
mod state;

pub use driver::Geneve;
pub use plan::{GenevePlan, GeneveStep};
pub use shape::{GeneveSettings, GeneveShape};
pub use state::{Device, GeneveState};
