//! An operator with the whole controller inside: its own client, its own metrics registry, its own
//! shutdown.
//!
//! It runs once in a cluster, or more often: then one leads. `POD_NAME` tells them apart. It finds
//! the API server as `kubectl` does, or by the service account of its pod, and needs no rights on
//! any host. Ctrl-C ends it, and hands leadership over.

use std::error::Error;

use egressgateway::{config::Config, runtime::ControllerBuilder};
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio_util::sync::CancellationToken;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    // What is global to a process is the program's choice; the library sets nothing.
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| "a crypto provider is installed already")?;
    let client = kube::Client::try_default().await?;
    let mut registry = Registry::default();

    let identity = std::env::var("POD_NAME").map_err(|_| "POD_NAME is not set")?;
    let mut config = Config::default();
    config.tunnel.ipv6_cidr = None; // As the agents of this cluster have it.
    let controller = ControllerBuilder::new(identity)
        .config(config)
        .build(client)?
        .with_metrics(registry.sub_registry_with_prefix("operator"));
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(controller.run(shutdown.clone()));

    // Here the operator does its own work.
    tokio::signal::ctrl_c().await?;
    shutdown.cancel();
    running.await??;
    let mut metrics = String::new();
    encode(&mut metrics, &registry)?;
    print!("{metrics}");
    Ok(())
}
