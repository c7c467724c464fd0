use std::num::NonZero;

use egressgateway::{Error, ErrorKind};
use tokio::{
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;
use tracing::Span;
use tracing_subscriber::EnvFilter;

use crate::arguments::{CommonArguments, Failure, LogFormat};

/// Chooses the process's provider of cryptography.
///
/// # Errors
/// When another one was chosen before.
pub fn install_tls() -> Result<(), Error> {
    let installed = rustls::crypto::ring::default_provider().install_default();
    installed.map_err(|_| {
        Error::new(
            ErrorKind::Conflict,
            "another provider of cryptography was installed before",
        )
    })
}

/// Sends the process's logs to standard error.
///
/// # Errors
/// When the level can't be parsed.
pub fn install_logs(arguments: &CommonArguments) -> Result<(), Failure> {
    let usage = |error: &dyn std::fmt::Display| {
        Failure::Usage(vec![format!(
            "--log-level: \"{}\": {error}",
            arguments.log_level
        )])
    };
    let filter = EnvFilter::builder()
        .parse(&arguments.log_level)
        .map_err(|error| usage(&error))?;
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let installed = match arguments.log_format {
        LogFormat::Json => logs
            .json()
            .flatten_event(true)
            .with_span_list(false)
            .try_init(),
        LogFormat::Text => logs.with_ansi(false).try_init(),
    };
    installed.map_err(|error| usage(&error))
}

/// How many threads work at most: a daemon waits nearly always, and on a host with many processors
/// each thread would be memory for nothing.
const THREADS: usize = 4;

/// What a daemon runs in. Every line of its logs has the fields of `span`, whichever of its parts
/// writes it.
///
/// # Errors
/// When threads can't be started.
pub fn runtime(span: &Span) -> Result<Runtime, Error> {
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
    let span = span.clone();
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    // Tasks that are spawned have no span of their own; their thread has this one, for as long as
    // it lives.
    builder
        .worker_threads(processors.min(THREADS))
        .on_thread_start(move || std::mem::forget(span.clone().entered()))
        .enable_all();
    builder
        .build()
        .map_err(|error| Error::from_io(error, "start the runtime"))
}

/// A token that SIGTERM or SIGINT cancels.
///
/// # Errors
/// When signals can't be listened to.
pub fn shutdown_on_signal() -> Result<CancellationToken, Error> {
    let listen = |kind| signal(kind).map_err(|error| Error::from_io(error, "listen to signals"));
    let (mut terminate, mut interrupt) = (
        listen(SignalKind::terminate())?,
        listen(SignalKind::interrupt())?,
    );
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
