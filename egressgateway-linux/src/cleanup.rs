//! Taking everything of ours off a host.

use std::sync::Arc;

use egressgateway::{Drivers, DriversDesired, Reconciler, config::Config, runtime::StateFile};
use egressgateway_netlink::{EgressAddresses, Netlink, Steering};

use crate::{
    agent::{steering_settings, unknown_reply_path},
    backend,
    error::BuildError,
    relay, tunnel,
};

/// Removes what agents left on this host, whatever backends and tunnels they had: tables, chains,
/// sets, rules, routes, devices, addresses and the state file.
///
/// No agent may run on the host meanwhile: it would make everything again.
#[derive(Clone, Debug)]
pub struct Cleanup {
    config: Config,
}

impl Cleanup {
    /// The configuration says where the state file is, which routing tables, rules and bits of
    /// marks are ours, and which interfaces are told apart by it.
    #[must_use]
    pub const fn new(config: Config) -> Self {
        Self { config }
    }

    /// What [`Self::run`] would do, as commands.
    ///
    /// # Errors
    /// When the configuration names what is not compiled in, or the kernel can't be read.
    pub async fn plan(&self) -> Result<String, BuildError> {
        let plan = self
            .drivers()
            .await?
            .dry_run(&DriversDesired::default())
            .await?;
        let state_file = self.config.state_file.as_ref().filter(|path| path.exists());
        Ok(plan
            + &state_file
                .map(|path| format!("rm {}\n", path.display()))
                .unwrap_or_default())
    }

    /// Removes everything; what is gone already is no error.
    ///
    /// # Errors
    /// When the configuration names what is not compiled in, or the kernel or the file system
    /// refuses.
    pub async fn run(&self) -> Result<(), BuildError> {
        self.drivers().await?.remove_all().await?;
        backend::forget_probe(&self.config).await?;
        if let Some(path) = &self.config.state_file {
            StateFile::remove(path)?;
        }
        Ok(())
    }

    async fn drivers(&self) -> Result<Drivers, BuildError> {
        let config = &self.config;
        let unknown = tunnel::unknown(config)
            .into_iter()
            .chain(backend::unknown(config))
            .chain(unknown_reply_path(config));
        let problems: Vec<_> = unknown.collect();
        if !problems.is_empty() {
            return Err(BuildError::Config(problems));
        }
        let netlink = Netlink::open()?;
        let hook = Arc::new(());
        Ok(Drivers {
            tunnel: tunnel::removal(config, &netlink),
            steering: Box::new(Reconciler::new(Steering::new(
                netlink.clone(),
                steering_settings(config, true),
                hook.clone(),
            ))),
            addresses: Box::new(Reconciler::new(EgressAddresses::new(netlink, hook))),
            relay: relay::removal(config).await?,
            policy: backend::removal(config).await?,
        })
    }
}
