//! The agent: one per node, keeps the node's kernel in line with the cluster.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod address;
mod cleanup;
mod failure;
mod lease;

use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Args as _, Command, FromArgMatches as _};
use egressgateway::{Error, ErrorKind, model::NodeName};
use egressgateway_daemon::{
    CommonArguments, Failure, client, command, configuration, follow_configuration, install_logs,
    install_tls, listen, runtime, serve, shutdown_on_signal,
};
use egressgateway_linux::{Agent, AgentBuilder, Config, LeaseSettings, agent_settings};
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    address::LISTEN,
    failure::{failure, taken},
    lease::LeaseArguments,
};

fn main() -> ExitCode {
    let matches = arguments().get_matches();
    match start(&matches) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            failure.exit_code()
        }
    }
}

fn arguments() -> Command {
    let dry_run = |help: &'static str| {
        Arg::new("dry-run")
            .long("dry-run")
            .action(ArgAction::SetTrue)
            .help(help)
    };
    let node = Arg::new("node-name")
        .long("node-name")
        .env("NODE_NAME")
        .value_name("NAME")
        .global(true)
        .help("Name of this node");
    let agent = Command::new("egressgateway-agent")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Keeps this node's kernel in line with the cluster")
        .arg(node)
        .arg(dry_run("Print what would be done to the kernel, and end"))
        .subcommand(Command::new("plan").about("Prints what would be done to the kernel"))
        .subcommand(cleanup::command(dry_run(
            "Print what would be removed, and end",
        )));
    let agent = command(agent);
    // Deriving would put the words about the arguments where those about the daemon belong.
    let about = agent.get_about().cloned().unwrap_or_default();
    LeaseArguments::augment_args(agent)
        .about(about)
        .long_about(None)
}

fn start(matches: &ArgMatches) -> Result<(), Failure> {
    let common = CommonArguments::parse(matches)?;
    let config = configuration(matches, |name| std::env::var(name).ok())?;
    install_logs(&common)?;
    install_tls()?;
    let span = tracing::error_span!("agent", node = matches.get_one::<String>("node-name"));
    let _entered = span.enter();
    runtime(&span)?.block_on(async {
        match matches.subcommand() {
            Some(("cleanup", arguments)) => cleanup::run(&config, &common, arguments).await,
            Some(_) => plan(&config, &common, node(matches)?).await,
            None if matches.get_flag("dry-run") => plan(&config, &common, node(matches)?).await,
            None => Box::pin(run(matches, config, &common, node(matches)?)).await,
        }
    })
}

fn node(matches: &ArgMatches) -> Result<NodeName, Failure> {
    let missing = || Failure::Usage(vec!["--node-name or NODE_NAME is required".to_owned()]);
    matches
        .get_one::<String>("node-name")
        .map(|name| NodeName::from(name.as_str()))
        .ok_or_else(missing)
}

async fn run(
    matches: &ArgMatches,
    config: Config,
    common: &CommonArguments,
    node: NodeName,
) -> Result<(), Failure> {
    let lease = LeaseArguments::from_arg_matches(matches)
        .map_err(|error| Failure::Usage(vec![error.to_string()]))?;
    let lease = lease.settings(&common.namespace);
    let shutdown = shutdown_on_signal()?;
    let mut registry = Registry::default();
    let changes = watch::Sender::new(agent_settings(&config, node.clone()));
    // First of all: of two agents in one network namespace the second ends here, before it has
    // asked or touched anything.
    let listener = listen(common, LISTEN).await.map_err(taken)?;
    let agent = agent(&config, common, node.clone(), lease)
        .await?
        .with_metrics(&mut registry)
        .with_changes(changes.subscribe());
    let health = agent.health();
    let served = tokio::spawn(serve(listener, registry, health, shutdown.clone()));
    let reloads = agent.reloads();
    let take = |config: &Config| drop(changes.send_replace(agent_settings(config, node.clone())));
    let result = tokio::select! {
        result = agent.run(shutdown.clone()) => result,
        () = follow_configuration(matches, |name| std::env::var(name).ok(), config, &reloads, take) => Ok(()),
    };
    shutdown.cancel();
    served
        .await
        .map_err(|error| Error::new(ErrorKind::Invalid, "probes").with_source(error))??;
    Ok(result?)
}

async fn plan(config: &Config, common: &CommonArguments, node: NodeName) -> Result<(), Failure> {
    let shutdown: CancellationToken = shutdown_on_signal()?;
    let lease = LeaseSettings::default();
    let text = agent(config, common, node, lease)
        .await?
        .dry_run(shutdown)
        .await?;
    print!("{text}");
    Ok(())
}

async fn agent(
    config: &Config,
    common: &CommonArguments,
    node: NodeName,
    lease: LeaseSettings,
) -> Result<Agent, Failure> {
    // The host first: what it lacks is said even where there is no API server to be asked.
    let prepared = AgentBuilder::new(node)
        .config(config.clone())
        .lease(lease)
        .prepare()
        .await
        .map_err(failure)?;
    Ok(prepared.agent(client(common.kubeconfig.as_deref()).await?))
}
