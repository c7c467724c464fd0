//! How long the controller waits for a sign of life of this node.

use std::time::Duration;

use clap::Args;
use egressgateway::runtime::LeaseSettings;
use egressgateway_daemon::Failure;

/// The Lease is renewed so many times as often as it would run out.
const RENEWALS: u32 = 4;
const LIMIT: Duration = Duration::from_secs(3600);

/// How long the Lease of the agent lasts.
#[derive(Args, Clone, Debug)]
pub(crate) struct LeaseArguments {
    /// How long the node's Lease lasts without being renewed, in whole seconds: then the controller takes the node out of gateways. It is renewed four times as often.
    #[arg(long, env = "EGRESSGATEWAY_LEASE_DURATION", value_name = "DURATION", default_value = "40s", value_parser = humantime::parse_duration)]
    lease_duration: Duration,
}

impl LeaseArguments {
    /// The Lease in this namespace.
    ///
    /// # Errors
    /// When the duration is none that a Lease can have.
    pub(crate) fn settings(&self, namespace: &str) -> Result<LeaseSettings, Failure> {
        let duration = self.lease_duration;
        if duration.subsec_nanos() != 0 || duration.is_zero() || duration > LIMIT {
            let given = humantime::format_duration(duration);
            return Err(Failure::Usage(vec![format!("--lease-duration: \"{given}\": must be whole seconds from 1s to 1h, such as 40s")]));
        }
        Ok(LeaseSettings { namespace: namespace.to_owned(), duration, renew: duration / RENEWALS })
    }
}
