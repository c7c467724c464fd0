//! Who reaches whom, and with which source.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use egressgateway_testkit::{
    lab::{
        Cni, Families, ForwardPolicy, Lab, MANAGEMENT, NodeSpec, PodSpec, Protocol, RuleTool,
        ServerSpec, ServiceSpec,
    },
    netns::have_root,
};

use super::{SHORT, lab};

/// What every world must do: pods reach pods, servers, services and node ports, in each family, and
/// are seen with the right source.
pub(crate) fn everything_works(lab: &Lab) {
    let a = lab.pod("node1", "pod-a").unwrap();
    let b = lab.pod("node2", "pod-b").unwrap();
    let c = lab.pod("node2", "pod-c").unwrap();
    let families: Vec<bool> = a.addresses().iter().map(IpAddr::is_ipv4).collect();
    let addresses = ["10.6.1.10", "198.51.100.7", "fd00:6::1:10", "fd00:6:1::10"];
    let server = lab
        .server(
            addresses
                .into_iter()
                .filter(|address| families.contains(&!address.contains(':'))),
        )
        .unwrap();
    let service = lab.service(ServiceSpec::new("web", 80), &[&b, &c]).unwrap();
    let (node1, node2) = (lab.node("node1"), lab.node("node2"));

    for (own, other) in a.addresses().iter().zip(b.endpoints()) {
        assert_eq!(
            a.connect_tcp(other).unwrap().ip(),
            *own,
            "a pod on another node sees the pod's own address"
        );
        assert_eq!(a.connect_udp(other).unwrap().ip(), *own);
    }
    for (own, other) in c.addresses().iter().zip(b.endpoints()) {
        assert_eq!(
            c.connect_tcp(other).unwrap().ip(),
            *own,
            "and so does a pod on the same node"
        );
    }
    for endpoint in server.endpoints() {
        assert_eq!(
            a.connect_tcp(*endpoint).unwrap().ip(),
            node1.like(endpoint.ip()),
            "a server sees the node: {endpoint}"
        );
        assert_eq!(
            b.connect_udp(*endpoint).unwrap().ip(),
            node2.like(endpoint.ip())
        );
        assert_eq!(
            node1.connect_tcp(*endpoint).unwrap().ip(),
            node1.like(endpoint.ip()),
            "also from the node itself"
        );
    }
    for (own, address) in a.addresses().iter().zip(service.addresses()) {
        let before = (b.seen().len(), c.seen().len());
        for _ in 0..16 {
            assert_eq!(
                a.connect_tcp(*address).unwrap().ip(),
                *own,
                "a service's pods see the client pod"
            );
        }
        assert_eq!(a.connect_udp(*address).unwrap().ip(), *own);
        assert!(
            b.seen().len() > before.0 && c.seen().len() > before.1,
            "both pods of a service are chosen at times"
        );
    }
    for endpoint in server.endpoints() {
        let port = SocketAddr::new(node1.like(endpoint.ip()), service.node_port());
        let seen = server.connect_tcp(port).unwrap().ip();
        // Across the overlay, the node's address is that of the overlay's device.
        let overlay = node1.run("ip -o addr show type vxlan").unwrap();
        assert!(
            seen == node1.like(seen) || overlay.contains(&format!("{seen}/")),
            "a node port hides the client, but shows {seen}"
        );
    }
}

#[test]
fn a_routed_world_works_in_both_families() {
    if have_root() {
        everything_works(&lab());
    }
}

#[test]
fn an_overlay_works_with_strict_reverse_path_filters_and_a_drop_policy() {
    if have_root() {
        let lab = Lab::builder()
            .nodes(["node1", "node2"])
            .cni(Cni::Vxlan)
            .rp_filter(1)
            .forward_policy(ForwardPolicy::DropButPods);
        everything_works(&lab.build().unwrap());
    }
}

#[test]
fn each_family_works_alone() {
    if have_root() {
        everything_works(
            &Lab::builder()
                .nodes(["node1", "node2"])
                .families(Families::V4)
                .build()
                .unwrap(),
        );
        everything_works(
            &Lab::builder()
                .nodes(["node1", "node2"])
                .families(Families::V6)
                .cni(Cni::Vxlan)
                .build()
                .unwrap(),
        );
    }
}

#[test]
fn every_tool_can_write_the_rules_where_only_workloads_and_services_may_pass() {
    if have_root() {
        for tool in [
            RuleTool::Nft,
            RuleTool::IptablesNft,
            RuleTool::IptablesLegacy,
        ] {
            let lab = Lab::builder()
                .nodes(["node1", "node2"])
                .rules_by(tool)
                .forward_policy(ForwardPolicy::DropButWorkloads);
            everything_works(&lab.build().unwrap());
        }
    }
}

#[test]
fn transit_is_dropped_where_only_workloads_may_pass() {
    if !have_root() {
        return;
    }
    for (policy, passes) in [
        (ForwardPolicy::Accept, true),
        (ForwardPolicy::DropButWorkloads, false),
    ] {
        let lab = Lab::builder()
            .nodes(["node1", "node2"])
            .forward_policy(policy)
            .build()
            .unwrap();
        let server = lab.server(["198.51.100.7"]).unwrap();
        let (node1, node2) = (lab.node("node1"), lab.node("node2"));
        node1
            .run(&format!(
                "ip route replace default via {} dev eth0",
                node2.v4()
            ))
            .unwrap();
        assert_eq!(
            node1.cannot_reach(server.v4(), SHORT).is_err(),
            passes,
            "{policy:?}"
        );
    }
}

#[test]
fn a_node_port_with_the_policy_local_shows_the_client() {
    if !have_root() {
        return;
    }
    let lab = lab();
    let a = lab.pod("node1", "pod-a").unwrap();
    let server = lab.server(["10.6.1.10"]).unwrap();
    let service = lab
        .service(ServiceSpec::new("web", 80).local(), &[&a])
        .unwrap();
    let at = |node: &str| SocketAddr::new(lab.node(node).v4().into(), service.node_port());
    assert_eq!(
        server.connect_tcp(at("node1")).unwrap().ip(),
        server.v4().ip()
    );
    server.cannot_reach(at("node2"), SHORT).unwrap();
}

#[test]
fn servers_answer_pod_addresses_only_when_asked_to() {
    if !have_root() {
        return;
    }
    let lab = Lab::builder()
        .nodes(["node1"])
        .masquerade(false)
        .build()
        .unwrap();
    let pod = lab.pod("node1", "pod-a").unwrap();
    let addresses = ["10.6.1.10", "fd00:6::1:10", "198.51.100.7", "fd00:6:1::10"];
    let other = ["10.6.1.11", "fd00:6::1:11", "198.51.100.8", "fd00:6:1::11"];
    let (plain, knowing) = (
        lab.server(addresses).unwrap(),
        lab.add_server(&ServerSpec::new(other).routes_to_pods())
            .unwrap(),
    );
    for endpoint in plain.endpoints() {
        pod.cannot_reach(*endpoint, SHORT).unwrap();
    }
    for endpoint in knowing.endpoints() {
        let own = if endpoint.is_ipv4() {
            pod.v4()
        } else {
            pod.v6()
        };
        assert_eq!(pod.connect_tcp(*endpoint).unwrap().ip(), own);
    }
}

#[test]
fn the_management_network_is_for_nodes_and_not_for_pods() {
    if !have_root() {
        return;
    }
    let lab = lab();
    let api = lab.root().respond(&[MANAGEMENT.into()], 6443).unwrap();
    let pod = lab.pod("node1", "pod-a").unwrap();
    let node1 = lab.node("node1");
    let at = SocketAddr::new(MANAGEMENT.into(), 6443);
    assert_eq!(node1.connect_tcp(at).unwrap().ip(), node1.management());
    pod.cannot_reach(at, SHORT).unwrap();
    assert!(
        api.sources()
            .iter()
            .all(|source| source.ip() == node1.management())
    );
    let capture = lab.capture().unwrap();
    node1.connect_udp(at).unwrap();
    assert_eq!(
        capture.count(|packet| packet.touches(MANAGEMENT.into())),
        0,
        "the underlay carries none of it"
    );
}

#[test]
fn a_node_may_have_a_second_interface_and_other_addresses() {
    if !have_root() {
        return;
    }
    let spec = |name: &str, n: u8| {
        let (v4, second) = (
            format!("10.6.0.{}", 100 + n),
            [format!("10.7.0.{n}/16"), format!("fd00:7::{n}/64")],
        );
        NodeSpec::new(name)
            .address(&v4)
            .second_interface(second.iter().map(String::as_str))
            .label("egress", "true")
    };
    let lab = Lab::builder()
        .node(spec("a", 1))
        .node(spec("b", 2))
        .build()
        .unwrap();
    let (a, b) = (lab.node("a"), lab.node("b"));
    assert_eq!(b.v4().to_string(), "10.6.0.102");
    let second: Vec<IpAddr> = vec!["10.7.0.2".parse().unwrap(), "fd00:7::2".parse().unwrap()];
    b.respond(&second, 7000).unwrap();
    assert_eq!(
        a.connect_tcp((second[0], 7000).into())
            .unwrap()
            .ip()
            .to_string(),
        "10.7.0.1"
    );
    assert_eq!(
        a.connect_tcp((second[1], 7000).into())
            .unwrap()
            .ip()
            .to_string(),
        "fd00:7::1"
    );
    let capture = lab.capture().unwrap();
    a.connect_udp((second[0], 7000).into()).unwrap();
    assert_eq!(
        capture.count(|packet| packet.destination == second[0] && packet.protocol == Protocol::Udp),
        1
    );
}

#[test]
fn objects_describe_the_world() {
    if !have_root() {
        return;
    }
    let lab = Lab::builder()
        .node(NodeSpec::new("node1").label("egress", "true"))
        .build()
        .unwrap();
    lab.namespace("shop", [("team", "shop")]);
    let pod = lab
        .pod(
            "node1",
            PodSpec::new("pod-a")
                .namespace("shop")
                .label("app", "shopping"),
        )
        .unwrap();
    lab.pod(
        "node1",
        PodSpec::new("proxy")
            .namespace("kube-system")
            .host_network(),
    )
    .unwrap();
    let objects = lab.objects();
    let find = |kind: &str, name: &str| {
        objects
            .iter()
            .find(|o| o["kind"] == kind && o["metadata"]["name"] == name)
            .unwrap()
    };
    let node: k8s_openapi::api::core::v1::Node =
        serde_json::from_value(find("Node", "node1").clone()).unwrap();
    assert_eq!(
        node.spec.unwrap().pod_cidrs.unwrap(),
        ["10.244.1.0/24", "fd10:1::/64"]
    );
    let addresses: BTreeSet<String> = node
        .status
        .unwrap()
        .addresses
        .unwrap()
        .into_iter()
        .map(|address| address.address)
        .collect();
    assert!(
        ["10.6.0.11", "fd00:6::11", "node1"]
            .iter()
            .all(|address| addresses.contains(*address)),
        "{addresses:?}"
    );
    assert_eq!(node.metadata.labels.unwrap()["egress"], "true");
    let object: k8s_openapi::api::core::v1::Pod =
        serde_json::from_value(find("Pod", "pod-a").clone()).unwrap();
    let ips: Vec<String> = object
        .status
        .unwrap()
        .pod_ips
        .unwrap()
        .into_iter()
        .map(|ip| ip.ip)
        .collect();
    assert_eq!(
        ips,
        pod.addresses()
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    );
    assert_eq!(
        find("Namespace", "shop")["metadata"]["labels"]["team"],
        "shop"
    );
    assert_eq!(find("Pod", "proxy")["status"]["podIP"], "10.6.0.11");
    let ready =
        |ready| lab.node_object("node1", ready)["status"]["conditions"][0]["status"].clone();
    assert_eq!((ready(true), ready(false)), ("True".into(), "False".into()));
}
