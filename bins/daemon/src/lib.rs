//! What the daemons share: arguments, logs, the client, probes and shutdown. Everything that is global to a process is set here.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod arguments;
mod http;
mod process;

pub use arguments::{CommonArguments, Failure, LogFormat, command, configuration};
pub use http::{listen, serve};
pub use process::{client, install_logs, install_tls, shutdown_on_signal};
