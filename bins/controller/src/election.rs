//! How long leadership lasts.

use std::time::Duration;

use clap::Args;
use egressgateway_daemon::lease_duration;

/// How long leadership lasts.
#[derive(Args, Clone, Debug)]
pub(crate) struct ElectionArguments {
    /// How long leadership lasts without being renewed, in whole seconds; a dead leader is followed
    /// after so long. It is renewed five times as often.
    #[arg(long, env = "EGRESSGATEWAY_LEADER_LEASE", value_name = "DURATION", default_value = "15s", value_parser = lease_duration)]
    pub(crate) leader_lease: Duration,
}
