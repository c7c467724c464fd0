//! An operator with the whole agent inside: its own client, its own metrics registry, its own shutdown.
//!
//! It runs on every node with `NODE_NAME` set, needs `CAP_NET_ADMIN`, `CAP_NET_RAW` and `nft`, and finds the API server as `kubectl` does, or by the
//! service account of its pod. Ctrl-C ends it; the data path stays as it is.

use std::{error::Error, sync::Arc, time::Duration};

use egressgateway::{
    Drivers, PolicyBackend as _, Reconciler,
    index::IndexSettings,
    model::NodeName,
    runtime::{Agent, AgentSettings},
};
use egressgateway_backend_nftables::{Nftables, NftablesSettings};
use egressgateway_netlink::{
    ConnectionTable, EchoProber, EgressAddresses, KernelHost, NeighbourAnnouncer, NeighbourInquirer, Netlink, ParentChoice, Steering,
    SteeringSettings,
};
use egressgateway_tunnel_vxlan::{Vxlan, VxlanSettings, VxlanShape};
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio_util::sync::CancellationToken;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    // What is global to a process is the program's choice; the library sets nothing.
    rustls::crypto::ring::default_provider().install_default().map_err(|_| "a crypto provider is installed already")?;
    let client = kube::Client::try_default().await?;
    let mut registry = Registry::default();
    let shutdown = CancellationToken::new();

    let node = NodeName::from(std::env::var("NODE_NAME").map_err(|_| "NODE_NAME is not set")?);
    let mut settings = IndexSettings::of_node(node);
    settings.cluster_networks = vec!["10.96.0.0/12".parse()?]; // Never steered, like what Nodes and ServiceCIDR objects tell.
    let agent = agent(client, AgentSettings::new(settings))?.with_metrics(registry.sub_registry_with_prefix("operator"));
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
            println!("{}", if was_ready { "this node is as it should be" } else { "this node is not as it should be" });
        }
    }
    shutdown.cancel();
    running.await??;
    let mut metrics = String::new();
    encode(&mut metrics, &registry)?;
    print!("{metrics}");
    Ok(())
}

/// An agent over VXLAN and nftables. Another tunnel or backend is another line here.
fn agent(client: kube::Client, settings: AgentSettings) -> Result<Agent, egressgateway::Error> {
    let netlink = Netlink::open()?;
    let vxlan = VxlanSettings::default();
    let hook = Arc::new(()); // Asked before every write; this one always agrees.
    let nftables = Nftables::new(NftablesSettings::default(), hook.clone());
    let drivers = Drivers {
        tunnel: Box::new(Reconciler::new(Vxlan::new(netlink.clone(), vxlan.clone(), hook.clone()))),
        steering: Box::new(Reconciler::new(Steering::new(netlink.clone(), SteeringSettings::default(), hook.clone()))),
        addresses: Box::new(Reconciler::new(EgressAddresses::new(netlink.clone(), hook))),
        policy: Box::new(Reconciler::new(nftables.clone())),
    };
    let connections = ConnectionTable::new(netlink.clone());
    let host = KernelHost::new(netlink, ParentChoice::Auto);
    let agent = Agent::new(client, settings, drivers, Arc::new(VxlanShape(vxlan)), Arc::new(host));
    let agent = agent.with_announcer(Arc::new(NeighbourAnnouncer::new())).with_inquirer(Arc::new(NeighbourInquirer::new()));
    let agent = agent.with_connections(Arc::new(connections), nftables.destination_view()).with_prober(Arc::new(EchoProber::new(1)));
    Ok(agent.with_monitor(Arc::new(nftables.monitor()?)).with_counters(Arc::new(nftables)))
}
