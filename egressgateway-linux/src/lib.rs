//! A whole egress gateway agent for a Linux node.
//!
//! [`AgentBuilder`] asks the host what it can do, chooses the tunnel and the policy backend, and
//! puts the parts together as the agent daemon does, which is its first user:
//!
//! ```no_run
//! use egressgateway_linux::{AgentBuilder, BuildError};
//!
//! # async fn example(client: kube::Client) -> Result<(), BuildError> {
//! let agent = AgentBuilder::new("node-1").build(client).await?;
//! # let shutdown = Default::default();
//! agent.run(shutdown).await?;
//! # Ok(())
//! # }
//! ```
//!
//! Each part can be replaced: [`AgentBuilder::policy_backend`], [`AgentBuilder::tunnel`],
//! [`AgentBuilder::without_addresses`]. What is compiled in is chosen by features: the tunnels
//! `vxlan` and `geneve`, the backends `nftables` and `netfilter`, all on by default. [`Cleanup`]
//! takes away what any agent left on the host.
//!
//! The process needs `CAP_NET_ADMIN` and `CAP_NET_RAW` in the host's network namespace. The library
//! sets no globals: the program installs a logger, a provider of cryptography for TLS, and signal
//! handlers, if it wants them.

#[cfg(not(any(feature = "vxlan", feature = "geneve")))]
compile_error!("an agent needs a tunnel: feature vxlan or geneve");
#[cfg(not(any(feature = "nftables", feature = "netfilter")))]
compile_error!("an agent needs a policy backend: feature nftables or netfilter");

mod agent;
mod backend;
mod cleanup;
mod error;
#[cfg(all(feature = "nftables", feature = "netfilter"))]
mod guarded;
mod relay;
mod tunnel;

pub use agent::{AgentBuilder, PreparedAgent, agent_settings, steering_settings};
pub use cleanup::Cleanup;
pub use egressgateway::{
    config::Config,
    runtime::{Agent, AgentSettings, LeaseSettings},
};
pub use error::BuildError;
pub use tunnel::OfflineTunnel;
