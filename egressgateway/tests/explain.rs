//! What explanations say, and which object they name.
#![allow(clippy::unwrap_used)]

use std::{net::IpAddr, sync::Arc};

use egressgateway::{
    Encapsulation, LocalEnd, NextHop, OverlayLinks, Peer,
    explain::{
        Cause, ExplainError, Explanation, Manifests, Offline, OfflineSettings, Statuses, Verdict,
        explain,
    },
    model::{Family, NodeName, PodName},
};

/// A tunnel that carries a family where both ends have it.
struct Tunnel;

impl Encapsulation for Tunnel {
    fn kind(&self) -> &'static str {
        "test"
    }

    fn next_hop(&self, _: &LocalEnd, peer: &Peer, family: Family) -> Option<NextHop> {
        peer.underlay(family)?;
        Some(NextHop {
            device: "tunnel".to_owned(),
            via: peer.overlay(family)?,
            encap: None,
        })
    }

    fn links(&self, local: &LocalEnd) -> OverlayLinks {
        let mtu = local
            .underlay
            .iter()
            .map(|(family, underlay)| (*family, underlay.mtu - 50))
            .collect();
        OverlayLinks {
            devices: ["tunnel".to_owned()].into_iter().collect(),
            port: 7789,
            mtu,
        }
    }
}

/// node1 is a client, node2 and node3 are exits; node3 is not ready. Pod a is selected, pod b is
/// not, pod c runs on the exit.
const CLUSTER: &str = r#"
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Node, metadata: {name: node1}, spec: {podCIDRs: [10.244.1.0/24, "fd10:1::/64"]}, status: {addresses: [{type: InternalIP, address: 10.6.0.11}]}}
- {apiVersion: v1, kind: Node, metadata: {name: node2, labels: {egress: "true"}}, spec: {podCIDR: 10.244.2.0/24}, status: {addresses: [{type: InternalIP, address: 10.6.0.12}]}}
- {apiVersion: v1, kind: Node, metadata: {name: node3, labels: {egress: "true"}}, status: {conditions: [{type: Ready, status: "False"}], addresses: [{type: InternalIP, address: 10.6.0.13}]}}
- {apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {team: shop}}}
- {apiVersion: v1, kind: Pod, metadata: {name: a, namespace: shop, labels: {app: a}}, spec: {nodeName: node1, containers: []}, status: {podIPs: [{ip: 10.244.1.10}, {ip: "fd10:1::10"}]}}
- {apiVersion: v1, kind: Pod, metadata: {name: b, namespace: shop, labels: {app: b}}, spec: {nodeName: node1, containers: []}, status: {podIPs: [{ip: 10.244.1.11}]}}
- {apiVersion: v1, kind: Pod, metadata: {name: c, namespace: shop, labels: {app: a}}, spec: {nodeName: node2, containers: []}, status: {podIPs: [{ip: 10.244.2.10}]}}
- {apiVersion: v1, kind: Pod, metadata: {name: host, namespace: shop, labels: {app: a}}, spec: {nodeName: node2, hostNetwork: true, containers: []}, status: {podIPs: [{ip: 10.6.0.12}]}}
- {apiVersion: v1, kind: Pod, metadata: {name: new, namespace: shop, labels: {app: a}}, spec: {containers: []}}
- {apiVersion: egressgateway.spidernet.io/v1, kind: EgressGateway, metadata: {name: egw}, spec: {nodeSelector: {matchLabels: {egress: "true"}}}}
- {apiVersion: egressgateway.spidernet.io/v1, kind: EgressGatewayPolicy, metadata: {name: wide}, spec: {egressGatewayName: egw, appliedTo: {podSelector: {matchLabels: {app: a}}}, destCIDR: [10.6.0.0/16, "fd00::/16"], exceptCIDR: [10.6.7.0/24]}}
- {apiVersion: egressgateway.spidernet.io/v1, kind: EgressGatewayPolicy, metadata: {name: narrow}, spec: {egressGatewayName: egw, appliedTo: {podSelector: {matchLabels: {app: a}}}, destCIDR: [10.6.1.0/24]}}
- {apiVersion: egressgateway.spidernet.io/v1, kind: EgressGatewayPolicy, metadata: {name: lost}, spec: {egressGatewayName: nowhere, appliedTo: {podSelector: {matchLabels: {app: a}}}, destCIDR: [10.9.0.0/16]}}
"#;

fn cluster(statuses: Statuses, text: &str) -> Offline {
    let mut manifests = Manifests::default();
    manifests.read("cluster.yaml", text);
    assert_eq!(manifests.findings(), []);
    Offline::new(
        &manifests,
        OfflineSettings::of_tunnel(Arc::new(Tunnel)).with_statuses(statuses),
    )
}

fn ask(cluster: &Offline, pod: &str, destination: &str) -> Result<Explanation, ExplainError> {
    explain(
        cluster,
        &PodName::new("shop", pod),
        destination.parse().unwrap(),
    )
}

#[test]
fn every_answer_has_its_cause() {
    let cluster = cluster(Statuses::Planned, CLUSTER);
    assert!(cluster.is_settled());
    for (pod, destination, verdict, cause) in [
        ("a", "10.6.2.1", Verdict::Egress, Cause::Steered),
        ("a", "10.6.7.1", Verdict::Pass, Cause::Exception),
        (
            "a",
            "192.0.2.1",
            Verdict::Pass,
            Cause::NoPolicyForDestination,
        ),
        ("a", "10.9.0.1", Verdict::Drop, Cause::NoGateway),
        ("a", "10.6.0.13", Verdict::Pass, Cause::Exempt),
        ("a", "10.244.2.10", Verdict::Pass, Cause::Exempt),
        ("a", "fd00::1", Verdict::Drop, Cause::NoTunnel),
        ("b", "10.6.2.1", Verdict::Pass, Cause::NotSelected),
        ("c", "10.6.2.1", Verdict::Egress, Cause::Steered),
        ("host", "10.6.2.1", Verdict::Pass, Cause::NotGoverned),
    ] {
        let answer = ask(&cluster, pod, destination).unwrap();
        assert_eq!((answer.verdict, answer.cause), (verdict, cause), "{answer}");
    }
}

#[test]
fn the_exit_and_the_address_outside_are_named() {
    let cluster = cluster(Statuses::Planned, CLUSTER);
    for pod in ["a", "c"] {
        let answer = ask(&cluster, pod, "10.6.2.1").unwrap();
        assert_eq!(answer.node.as_deref(), Some("node2"));
        assert_eq!(answer.source, Some(IpAddr::from([10, 6, 0, 12])));
        assert_eq!(answer.policy.as_deref(), Some("wide"));
        assert_eq!(answer.gateway.as_deref(), Some("egw"));
    }
    assert_eq!(
        ask(&cluster, "a", "10.6.1.9").unwrap().to_string(),
        "shop/a (10.244.1.10) to 10.6.1.9: egress, because EgressGatewayPolicy narrow governs it and EgressGateway egw carries it
  leaves through node2 as 10.6.0.12
  - Pod shop/a: runs on node1
  - EgressGatewayPolicy narrow: selects the pod and governs the destination with a /24 prefix
  - EgressGatewayPolicy lost: selects the pod and does not name this destination
  - EgressGatewayPolicy wide: governs it too and loses: a /16 prefix is less specific than /24
  - EgressGateway egw: node2 is Ready and active, node3 is NotReady
  - Node node2: gives it 10.6.0.12, the address that its EgressNode names
"
    );
}

#[test]
fn where_the_pods_node_translates_its_ports_are_named_and_without_any_it_is_held() {
    let distributed = CLUSTER.replace(
        "spec: {nodeSelector: {matchLabels: {egress: \"true\"}}}",
        "spec: {nodeSelector: {matchLabels: {egress: \"true\"}}, nat: Distributed, sourceNAT: EgressIP, egressIPs: {ipv4: [10.6.1.60-10.6.1.61]}}",
    );
    assert_ne!(distributed, CLUSTER);
    let settled = cluster(Statuses::Planned, &distributed);
    assert!(settled.is_settled());
    for (pod, node) in [("a", "node1"), ("c", "node2")] {
        let answer = ask(&settled, pod, "10.6.1.9").unwrap();
        assert_eq!(
            (answer.verdict, answer.cause),
            (Verdict::Egress, Cause::Steered),
            "{answer}"
        );
        assert_eq!(answer.node.as_deref(), Some("node2"), "{answer}");
        assert_eq!(answer.source, Some([10, 6, 1, 60].into()), "{answer}");
        let blocks =
            &settled.index(&node.into()).unwrap().egress_nodes()[&NodeName::from(node)].blocks;
        let block = blocks[&IpAddr::from([10, 6, 1, 60])].first().unwrap();
        assert_eq!(block.len(), 4);
        let says = format!(
            "Node {node}: translates it to 10.6.1.60, ports {} to {}\n",
            block.first(),
            block.last()
        );
        assert!(answer.to_string().contains(&says), "{answer}");
    }
    let statuses = distributed
        .replace(", kind: EgressGateway, metadata: {name: egw}", ", kind: EgressGateway, status: {mark: 0x11000000, nodeList: [{name: node2, status: Ready, active: true}]}, metadata: {name: egw}")
        .replace("metadata: {name: narrow}", "metadata: {name: narrow}, status: {egressGateway: egw, egressIP: {ipv4: 10.6.1.60}, node: node2}");
    let node = |name: &str, number: u8, ports: &str| {
        format!("- {{apiVersion: egressgateway.spidernet.io/v1, kind: EgressNode, metadata: {{name: {name}}}, spec: {{}}, status: {{vxlanIPv4IP: 172.31.0.{number}/16,
   tunnelMac: '66:00:00:00:00:0{number}', physicalInterface: eth0, physicalInterfaceIPv4: 10.6.0.1{number}{ports}}}}}\n")
    };
    let has = ", portBlocks: [{address: 10.6.1.60, first: 2048, last: 3071}, {address: 10.6.1.60, first: 4096, last: 4351}]";
    for (ports, cause, says) in [
        (
            "",
            Cause::Held,
            "the pod's node has no ports of the egress address yet",
        ),
        (
            has,
            Cause::Steered,
            "Node node1: translates it to 10.6.1.60, ports 2048 to 3071, 4096 to 4351\n",
        ),
    ] {
        let text = format!(
            "{statuses}{}{}",
            node("node1", 1, ports),
            node("node2", 2, "")
        );
        let answer = ask(&cluster(Statuses::Given, &text), "a", "10.6.1.9").unwrap();
        assert_eq!(answer.cause, cause, "{answer}");
        assert!(answer.to_string().contains(says), "{answer}");
    }
}

#[test]
fn without_a_ready_node_it_is_dropped_and_without_a_mark_it_is_held() {
    let dark = CLUSTER.replace("{name: node2, labels: {egress: \"true\"}}", "{name: node2}");
    let answer = ask(&cluster(Statuses::Planned, &dark), "a", "10.6.1.9").unwrap();
    assert_eq!(
        (answer.verdict, answer.cause),
        (Verdict::Drop, Cause::NoReadyNode),
        "{answer}"
    );
    let answer = ask(&cluster(Statuses::Given, CLUSTER), "a", "10.6.1.9").unwrap();
    assert_eq!(
        (answer.verdict, answer.cause),
        (Verdict::Drop, Cause::Held),
        "{answer}"
    );
    assert!(answer.reason.contains("no mark"), "{answer}");
}

#[test]
fn what_can_not_be_asked_is_refused_with_the_reason() {
    let cluster = cluster(Statuses::Planned, CLUSTER);
    assert_eq!(
        ask(&cluster, "none", "10.6.1.1").unwrap_err().to_string(),
        "there is no Pod shop/none"
    );
    assert_eq!(
        ask(&cluster, "new", "10.6.1.1").unwrap_err().to_string(),
        "Pod shop/new is on no node: spec.nodeName is absent"
    );
    assert_eq!(
        ask(&cluster, "b", "fd00::1").unwrap_err().to_string(),
        "Pod shop/b has no IPv6 address"
    );
    let elsewhere = CLUSTER.replace(
        "{nodeName: node2, containers",
        "{nodeName: node9, containers",
    );
    let cluster = self::cluster(Statuses::Planned, &elsewhere);
    assert_eq!(
        ask(&cluster, "c", "10.6.2.1").unwrap_err().to_string(),
        "Pod shop/c is on Node node9, which does not exist"
    );
}

#[test]
fn the_nodes_agree_on_marks_and_addresses() {
    let cluster = cluster(Statuses::Planned, CLUSTER);
    let names: Vec<&NodeName> = cluster.nodes().collect();
    assert_eq!(
        names,
        ["node1", "node2", "node3"]
            .map(NodeName::from)
            .iter()
            .collect::<Vec<_>>()
    );
    for node in names {
        let desired = cluster.for_drivers(node).unwrap();
        assert_eq!(desired.tunnel.peers.len(), 2, "{node}");
        assert!(desired.tunnel.local.is_some(), "{node}");
        let ways = desired.policy.targets.union(desired.policy.exits);
        assert_eq!(ways.len(), 1, "{node}");
    }
}

#[test]
fn the_nodes_address_is_named_and_what_it_is_by_another_device() {
    let exit = "
- {apiVersion: egressgateway.spidernet.io/v1, kind: EgressNode, metadata: {name: node2}, spec: {}, status: {physicalInterface: eth0,
   physicalInterfaceIPv4: 10.6.0.12, interfaces: [
    {name: eth0, ipv4: [10.6.0.212/32, 10.6.0.12/16], sourceIPv4: 10.6.0.12},
    {name: eth1, ipv4: [10.7.0.12/16], sourceIPv4: 10.7.0.12}]}}
";
    let answer = ask(
        &cluster(Statuses::Planned, &format!("{CLUSTER}{exit}")),
        "a",
        "10.6.2.1",
    )
    .unwrap();
    assert_eq!(answer.source, Some([10, 6, 0, 12].into()));
    let says = "Node node2: gives it 10.6.0.12, the address that its EgressNode names, 10.7.0.12 if its routes lead by eth1";
    assert!(answer.to_string().contains(says), "{answer}");
}
