//! Taking everything of ours off this node, beside no agent that would make it again.

use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command};
use egressgateway::{Error, runtime::Health};
use egressgateway_daemon::{CommonArguments, Failure, listen, serve, shutdown_on_signal};
use egressgateway_linux::{Cleanup, Config};
use prometheus_client::registry::Registry;

use crate::{
    address::LISTEN,
    failure::{failure, taken},
};

/// Between attempts of one that stays.
const PAUSE: Duration = Duration::from_secs(5);

pub(crate) fn command(dry_run: Arg) -> Command {
    let stay = Arg::new("stay")
        .long("stay")
        .action(ArgAction::SetTrue)
        .conflicts_with("dry-run");
    Command::new("cleanup")
        .about("Removes everything that is the egress gateway's from this node; refuses while an agent runs here")
        .arg(dry_run)
        .arg(stay.help("Keep trying, be ready once everything is removed, and stay until SIGTERM, as the pod of a DaemonSet must"))
}

pub(crate) async fn run(
    config: &Config,
    common: &CommonArguments,
    arguments: &ArgMatches,
) -> Result<(), Failure> {
    let cleanup = Cleanup::new(config.clone());
    if arguments.get_flag("dry-run") {
        print!("{}", cleanup.plan().await.map_err(failure)?);
        return Ok(());
    }
    // Whoever has this port is an agent at work: it would make again what is removed here, but for
    // the state file. None may start meanwhile.
    let listener = listen(common, LISTEN).await.map_err(taken)?;
    if !arguments.get_flag("stay") {
        return cleanup.run().await.map_err(failure);
    }
    let (shutdown, health) = (shutdown_on_signal()?, Health::default());
    let served = tokio::spawn(serve(
        listener,
        Registry::default(),
        health.clone(),
        shutdown.clone(),
    ));
    tokio::select! {
        () = until_removed(&cleanup) => {
            health.set_ready(true);
            tracing::info!("removed everything of the egress gateway from this node");
            shutdown.cancelled().await;
        }
        () = shutdown.cancelled() => {}
    }
    served.await.map_err(|error| {
        Error::new(egressgateway::ErrorKind::Invalid, "probes").with_source(error)
    })??;
    Ok(())
}

async fn until_removed(cleanup: &Cleanup) {
    while let Err(error) = cleanup.run().await {
        tracing::error!(%error, "cleanup is incomplete; trying again");
        tokio::time::sleep(PAUSE).await;
    }
}
