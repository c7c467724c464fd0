//! How long leadership lasts.

use std::time::Duration;

use clap::Args;
use egressgateway::runtime::ElectionSettings;
use egressgateway_daemon::lease_duration;

/// Of this many looks at the Lease within its duration, one must succeed.
const LOOKS: u32 = 5;

/// How long leadership lasts.
#[derive(Args, Clone, Debug)]
pub(crate) struct ElectionArguments {
    /// How long leadership lasts without being renewed, in whole seconds; a dead leader is followed
    /// after so long. It is renewed five times as often.
    #[arg(long, env = "EGRESSGATEWAY_LEADER_LEASE", value_name = "DURATION", default_value = "15s", value_parser = lease_duration)]
    leader_lease: Duration,
}

impl ElectionArguments {
    /// The election in which `identity` stands.
    pub(crate) fn settings(&self, namespace: &str, identity: String) -> ElectionSettings {
        let mut settings = ElectionSettings::new(namespace, identity);
        (settings.duration, settings.retry) = (self.leader_lease, self.leader_lease / LOOKS);
        settings
    }
}
