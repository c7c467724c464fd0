use std::{num::NonZero, path::Path, time::Duration};

use egressgateway::{Error, ErrorKind};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::{
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;
use tracing::Span;
use tracing_subscriber::EnvFilter;

use crate::arguments::{CommonArguments, Failure, LogFormat};

/// A watch that says nothing for so long has lost its server: watches end on their own after less than five minutes.
const READ_TIMEOUT: Duration = Duration::from_secs(305);
/// For a connection to the API server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Chooses the process's provider of cryptography.
///
/// # Errors
/// When another one was chosen before.
pub fn install_tls() -> Result<(), Error> {
    let installed = rustls::crypto::ring::default_provider().install_default();
    installed.map_err(|_| Error::new(ErrorKind::Conflict, "another provider of cryptography was installed before"))
}

/// Where the client library says at level ERROR that a request had no answer. The daemons say and count it where they try again.
const REPEATED: &str = "kube_client::client::builder";

/// Sends the process's logs to standard error.
///
/// # Errors
/// When the level can't be parsed.
pub fn install_logs(arguments: &CommonArguments) -> Result<(), Failure> {
    let usage = |error: &dyn std::fmt::Display| Failure::Usage(vec![format!("--log-level: \"{}\": {error}", arguments.log_level)]);
    let mut filter = EnvFilter::builder().parse(&arguments.log_level).map_err(|error| usage(&error))?;
    if !arguments.log_level.contains("kube_client") {
        filter = filter.add_directive(format!("{REPEATED}=off").parse().map_err(|error| usage(&error))?);
    }
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let installed = match arguments.log_format {
        LogFormat::Json => logs.json().flatten_event(true).with_span_list(false).try_init(),
        LogFormat::Text => logs.with_ansi(false).try_init(),
    };
    installed.map_err(|error| usage(&error))
}

/// How many threads work at most: a daemon waits nearly always, and on a host with many processors each thread would be memory for nothing.
const THREADS: usize = 4;

/// What a daemon runs in. Every line of its logs has the fields of `span`, whichever of its parts writes it.
///
/// # Errors
/// When threads can't be started.
pub fn runtime(span: &Span) -> Result<Runtime, Error> {
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
    let span = span.clone();
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    // Tasks that are spawned have no span of their own; their thread has this one, for as long as it lives.
    builder.worker_threads(processors.min(THREADS)).on_thread_start(move || std::mem::forget(span.clone().entered())).enable_all();
    builder.build().map_err(|error| Error::from_io(error, "start the runtime"))
}

/// A client as the arguments say: a kubeconfig file, else the pod's service account or the usual places.
///
/// # Errors
/// When neither is there, or it can't be used.
pub async fn client(kubeconfig: Option<&Path>) -> Result<Client, Error> {
    let failed =
        |error: Box<dyn std::error::Error + Send + Sync>| Error::new(ErrorKind::Invalid, "connect to the API server").with_source(error);
    let mut config = match kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path).map_err(|error| failed(error.into()))?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(|error| failed(error.into()))?
        }
        None => Config::infer().await.map_err(|error| failed(error.into()))?,
    };
    config.read_timeout = Some(READ_TIMEOUT);
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    Client::try_from(config).map_err(|error| failed(error.into()))
}

/// A token that SIGTERM or SIGINT cancels.
///
/// # Errors
/// When signals can't be listened to.
pub fn shutdown_on_signal() -> Result<CancellationToken, Error> {
    let listen = |kind| signal(kind).map_err(|error| Error::from_io(error, "listen to signals"));
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let token = CancellationToken::new();
    let cancelled = token.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM"),
            _ = interrupt.recv() => tracing::info!("SIGINT"),
        }
        cancelled.cancel();
    });
    Ok(token)
}
