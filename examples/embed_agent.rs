//! An operator with the whole agent inside: its own client, its own metrics registry, its own
//! shutdown.
//!
//! It runs on every node with `NODE_NAME` set, needs `CAP_NET_ADMIN`, `CAP_NET_RAW` and `nft`, and
//! finds the API server as `kubectl` does, or by the service account of its pod. Ctrl-C ends it;
//! the data path stays as it is.

use std::{error::Error, time::Duration};

use egressgateway_linux::{AgentBuilder, Config};
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
    let shutdown = CancellationToken::new();

    let node = std::env::var("NODE_NAME").map_err(|_| "NODE_NAME is not set")?;
    let mut config = Config::default();
    config.cluster_cidrs.extra = vec!["10.96.0.0/12".parse()?]; // Never steered, like what Nodes and ServiceCIDR objects tell.
    config.state_file = std::env::var_os("STATE_FILE").map(Into::into); // Without one, nothing is held after a boot.
    let agent = AgentBuilder::new(node.as_str())
        .config(config)
        .build(client)
        .await?;
    let agent = agent.with_metrics(registry.sub_registry_with_prefix("operator"));
    let health = agent.health();
    let running = tokio::spawn(agent.run(shutdown.clone()));

    // Here the operator does its own work. This one only watches its agent.
    let (mut stop, mut was_ready) = (std::pin::pin!(tokio::signal::ctrl_c()), false);
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    loop {
        tokio::select! {
            signal = &mut stop => break signal?,
            _ = tick.tick() => {}
        }
        if was_ready != health.is_ready() {
            was_ready = health.is_ready();
            println!(
                "{}",
                if was_ready {
                    "this node is as it should be"
                } else {
                    "this node is not as it should be"
                }
            );
        }
    }
    shutdown.cancel();
    running.await??;
    let mut metrics = String::new();
    encode(&mut metrics, &registry)?;
    print!("{metrics}");
    Ok(())
}
