//! What every node of a cluster would program, from manifests alone: no root, no cluster, no
//! kernel.
//!
//! `cargo run --example dry_run [FILE]...` reads Nodes, Pods, Namespaces and the egress gateway's
//! objects, or else `cluster.yaml` next to this file.

use std::{error::Error, fs, sync::Arc};

use egressgateway::{
    Driver,
    explain::{Finding, Manifests, Offline, OfflineSettings},
};
use egressgateway_backend_nftables::{Nftables, NftablesSettings};
use egressgateway_netlink::{EgressAddresses, Steering, SteeringSettings};
use egressgateway_tunnel_vxlan::{Vxlan, VxlanSettings, VxlanShape};

fn main() -> Result<(), Box<dyn Error>> {
    let mut manifests = Manifests::default();
    let files: Vec<String> = std::env::args().skip(1).collect();
    if files.is_empty() {
        manifests.read("cluster.yaml", include_str!("cluster.yaml"));
    }
    for file in &files {
        manifests.read(
            file,
            &fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?,
        );
    }
    for finding in manifests.findings() {
        eprintln!("{finding}");
    }
    if manifests.findings().iter().any(Finding::is_error) {
        return Err("nothing is planned from manifests that are wrong".into());
    }

    // The controller's decisions are planned too, until it has nothing more to change; then each
    // node's state follows.
    let shape = VxlanShape(VxlanSettings::default());
    let cluster = Offline::new(&manifests, OfflineSettings::of_tunnel(Arc::new(shape)));
    // Drivers that only plan: they were given no kernel.
    let tunnel = Vxlan::offline(VxlanSettings::default());
    let steering = Steering::offline(SteeringSettings::default());
    let policy = Nftables::offline(NftablesSettings::default());
    for node in cluster.nodes() {
        let desired = cluster.for_drivers(node).ok_or("a node without a state")?;
        println!(
            "### {node}: packet filter\n{}",
            from_nothing(&policy, &desired.policy)?
        );
        println!(
            "### {node}: tunnel\n{}",
            from_nothing(&tunnel, &desired.tunnel)?
        );
        println!(
            "### {node}: routing\n{}",
            from_nothing(&steering, &desired.steering)?
        );
        println!(
            "### {node}: addresses\n{}",
            from_nothing(&EgressAddresses::offline(), &desired.addresses)?
        );
    }
    Ok(())
}

/// The plan for a kernel that holds nothing of ours yet. Given what a kernel holds, it would be the
/// difference.
fn from_nothing<D: Driver>(
    driver: &D,
    desired: &D::Desired,
) -> Result<D::Plan, egressgateway::Error> {
    Ok(driver.plan(desired, &D::State::default())?.plan)
}
