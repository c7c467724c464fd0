//! How long the controller waits for a sign of life of this node.

use std::time::Duration;

use clap::Args;
use egressgateway::runtime::LeaseSettings;
use egressgateway_daemon::lease_duration;

/// The Lease is renewed so many times as often as it would run out.
const RENEWALS: u32 = 4;

/// How long the Lease of the agent lasts.
#[derive(Args, Clone, Debug)]
pub(crate) struct LeaseArguments {
    /// How long the node's Lease lasts without being renewed, in whole seconds: then the controller
    /// takes the node out of gateways. It is renewed four times as often.
    #[arg(long, env = "EGRESSGATEWAY_LEASE_DURATION", value_name = "DURATION", default_value = "40s", value_parser = lease_duration)]
    lease_duration: Duration,
}

impl LeaseArguments {
    /// The Lease in this namespace.
    pub(crate) fn settings(&self, namespace: &str) -> LeaseSettings {
        LeaseSettings::new(
            namespace,
            self.lease_duration,
            self.lease_duration / RENEWALS,
        )
    }
}
