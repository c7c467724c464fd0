//! The controller: one leader per cluster, plans and writes what agents follow.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod clean_nodes;
mod election;
mod webhook;

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    process::ExitCode,
};

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};
use egressgateway::{
    Error, ErrorKind,
    config::{Config, InvalidConfig},
    runtime::ControllerBuilder,
};
use egressgateway_daemon::{
    CommonArguments, Failure, client, command, configuration, follow_configuration, install_logs,
    install_tls, listen, runtime, serve, shutdown_on_signal,
};
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use crate::{election::ElectionArguments, webhook::WebhookArguments};

/// Where probes and metrics are served unless the arguments say otherwise.
const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 5820);

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
    let identity = Arg::new("identity")
        .long("identity")
        .env("POD_NAME")
        .value_name("NAME")
        .help("Name among candidates for leadership");
    let controller = Command::new("egressgateway-controller")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Allots addresses and marks, elects gateways, and says so in the objects' statuses")
        .arg(identity)
        .subcommand(clean_nodes::command());
    command(own_arguments(controller))
}

fn own_arguments(command: Command) -> Command {
    // Deriving would put the words about the arguments where those about the daemon belong.
    let about = command.get_about().cloned().unwrap_or_default();
    WebhookArguments::augment_args(ElectionArguments::augment_args(command))
        .about(about)
        .long_about(None)
}

fn start(matches: &ArgMatches) -> Result<(), Failure> {
    let common = CommonArguments::parse(matches)?;
    if let Some(("clean-nodes", arguments)) = matches.subcommand() {
        install_logs(&common)?;
        install_tls()?;
        return runtime(&tracing::Span::none())?.block_on(clean_nodes::run(&common, arguments));
    }
    let config = configuration(matches, |name| std::env::var(name).ok())?;
    let usage = |error: clap::Error| Failure::Usage(vec![error.to_string()]);
    let webhooks = WebhookArguments::from_arg_matches(matches).map_err(usage)?;
    let election = ElectionArguments::from_arg_matches(matches).map_err(usage)?;
    let identity = matches.get_one::<String>("identity").cloned();
    let identity = identity
        .ok_or_else(|| Failure::Usage(vec!["--identity or POD_NAME is required".to_owned()]))?;
    install_logs(&common)?;
    install_tls()?;
    let span = tracing::error_span!("controller", identity);
    let _entered = span.enter();
    let builder = ControllerBuilder::new(identity)
        .config(config.clone())
        .namespace(&common.namespace)
        .leader_lease(election.leader_lease);
    runtime(&span)?.block_on(run(matches, config, &common, builder, webhooks))
}

async fn run(
    matches: &ArgMatches,
    config: Config,
    common: &CommonArguments,
    builder: ControllerBuilder,
    webhooks: WebhookArguments,
) -> Result<(), Failure> {
    let shutdown = shutdown_on_signal()?;
    let mut registry = Registry::default();
    let client = client(common.kubeconfig.as_deref()).await?;
    let plan = watch::Sender::new(config.controller_settings());
    let controller = builder
        .build(client.clone())
        .map_err(|InvalidConfig(problems)| Failure::from(problems))?
        .with_metrics(&mut registry)
        .with_plan(plan.subscribe());
    let listener = listen(common, LISTEN).await?;
    let served = tokio::spawn(serve(
        listener,
        registry,
        controller.health(),
        shutdown.clone(),
    ));
    let webhooks = match webhook::listen(&webhooks).await? {
        Some(listener) => {
            let serving = webhook::serve(
                listener,
                webhooks,
                client,
                common.namespace.clone(),
                controller.admission(),
                shutdown.clone(),
            );
            Some(tokio::spawn(serving))
        }
        None => None,
    };
    let reloads = controller.reloads();
    let take = |config: &Config| drop(plan.send_replace(config.controller_settings()));
    let result = tokio::select! {
        result = controller.run(shutdown.clone()) => result,
        () = follow_configuration(matches, |name| std::env::var(name).ok(), config, &reloads, take) => Ok(()),
    };
    shutdown.cancel();
    served
        .await
        .map_err(|error| Error::new(ErrorKind::Invalid, "probes").with_source(error))??;
    if let Some(webhooks) = webhooks {
        webhooks
            .await
            .map_err(|error| Error::new(ErrorKind::Invalid, "webhooks").with_source(error))?;
    }
    Ok(result?)
}
