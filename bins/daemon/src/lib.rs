//! What the daemons share: arguments, logs, the client, probes and shutdown. Everything that is
//! global to a process is set here.
//!
//! ```
//! use clap::Command;
//! use egressgateway_daemon::{CommonArguments, command, configuration};
//!
//! let matches = command(Command::new("daemon")).try_get_matches_from(["daemon", "--tunnel-vni=7", "--listen=127.0.0.1:9000"])?;
//! let common = CommonArguments::parse(&matches).map_err(|failure| failure.to_string())?;
//! let environment = |name: &str| (name == "EGRESSGATEWAY_TUNNEL_PORT").then(|| "4000".to_owned());
//! let config = configuration(&matches, environment).map_err(|failure| failure.to_string())?;
//! assert_eq!((config.tunnel.vni, config.tunnel.port), (7, 4000));
//! assert_eq!(common.listen, Some("127.0.0.1:9000".parse()?));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Then, in this order: [`install_logs`], [`install_tls`], [`runtime`], and in it
//! [`shutdown_on_signal`], [`client`], [`listen`], [`serve`] and [`follow_configuration`].

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod arguments;
mod client;
mod http;
mod listen;
mod process;
mod reload;

pub use arguments::{CommonArguments, Failure, LogFormat, command, configuration, lease_duration};
pub use client::client;
pub use http::{listen, serve};
pub use listen::listen_at;
pub use process::{install_logs, install_tls, runtime, shutdown_on_signal};
pub use reload::follow_configuration;
