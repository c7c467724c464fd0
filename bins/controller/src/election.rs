//! How long leadership lasts.

use std::time::Duration;

use clap::Args;
use egressgateway::runtime::ElectionSettings;
use egressgateway_daemon::Failure;

/// Of this many looks at the Lease within its duration, one must succeed.
const LOOKS: u32 = 5;
const LIMIT: Duration = Duration::from_secs(3600);

/// How long leadership lasts.
#[derive(Args, Clone, Debug)]
pub(crate) struct ElectionArguments {
    /// How long leadership lasts without being renewed, in whole seconds; a dead leader is followed after so long. It is renewed five times as often.
    #[arg(long, env = "EGRESSGATEWAY_LEADER_LEASE", value_name = "DURATION", default_value = "15s", value_parser = humantime::parse_duration)]
    leader_lease: Duration,
}

impl ElectionArguments {
    /// The election in which `identity` stands.
    ///
    /// # Errors
    /// When the duration is none that a Lease can have.
    pub(crate) fn settings(&self, namespace: &str, identity: String) -> Result<ElectionSettings, Failure> {
        let duration = self.leader_lease;
        if duration.subsec_nanos() != 0 || duration.is_zero() || duration > LIMIT {
            let given = humantime::format_duration(duration);
            return Err(Failure::Usage(vec![format!("--leader-lease: \"{given}\": must be whole seconds from 1s to 1h, such as 15s")]));
        }
        let mut settings = ElectionSettings::new(namespace, identity);
        (settings.duration, settings.retry) = (duration, duration / LOOKS);
        Ok(settings)
    }
}
