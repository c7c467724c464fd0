//! Manifests, and the cluster that they describe.

use std::{net::IpAddr, sync::Arc};

use egressgateway::{
    Driver as _, Encapsulation,
    explain::{Finding, Manifests, Offline, OfflineSettings, explain},
    model::PodName,
};
use egressgateway_backend_netfilter::{Netfilter, NetfilterSettings};
use egressgateway_backend_nftables::{Nftables, NftablesSettings};
use egressgateway_tunnel_vxlan::VxlanShape;

/// Manifests are read. Each finding says where it is. Of what was read without an error the
/// controller comes to rest, and a node has a plan or a reason why not.
pub(crate) fn manifests(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let mut manifests = Manifests::default();
    manifests.read("cluster.yaml", text);
    for finding in manifests.findings() {
        assert!(finding.to_string().starts_with("cluster.yaml: document "));
    }
    if manifests.findings().iter().any(Finding::is_error) {
        return;
    }
    let tunnel: Arc<dyn Encapsulation> = Arc::new(VxlanShape::default());
    let cluster = Offline::new(&manifests, OfflineSettings::of_tunnel(tunnel));
    assert!(cluster.is_settled(), "the controller does not come to rest");
    let _ = cluster.troubles();
    // What the others hold is planned by the same code.
    for node in cluster.nodes().take(1) {
        let Some(desired) = cluster.for_drivers(node) else {
            panic!("nothing is desired of {node}");
        };
        let _ = cluster.unknown(node);
        let nftables = Nftables::offline(NftablesSettings::default());
        let plan = nftables.plan(
            &desired.policy,
            &egressgateway_backend_nftables::NftState::default(),
        );
        let _ = plan.map(|change| change.plan.to_string());
        let netfilter = Netfilter::offline(NetfilterSettings::default());
        let plan = netfilter.plan(
            &desired.policy,
            &egressgateway_backend_netfilter::NetfilterState::default(),
        );
        let _ = plan.map(|change| change.plan.to_string());
    }
    let pod = PodName::new("default", "a");
    for destination in [IpAddr::from([10, 6, 1, 92]), IpAddr::from([0xfd; 16])] {
        let _ = explain(&cluster, &pod, destination).map(|answer| answer.to_string());
    }
}
