//! The lab's own world, before any egress gateway is in it.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Read, Write},
    net::{IpAddr, SocketAddr},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use egressgateway_testkit::{
    lab::{
        Cni, Families, ForwardPolicy, Lab, MANAGEMENT, NodeSpec, PodSpec, Protocol, RuleTool,
        ServerSpec, ServiceSpec,
    },
    netns::have_root,
};
use nix::sys::signal::Signal;

const SHORT: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(10);
/// Set for the copy of this test program that makes a lab and waits to be killed.
const VICTIM: &str = "EGRESSGATEWAY_LAB_VICTIM";

fn lab() -> Lab {
    Lab::builder().nodes(["node1", "node2"]).build().unwrap()
}

/// What every world must do: pods reach pods, servers, services and node ports, in each family, and
/// are seen with the right source.
fn everything_works(lab: &Lab) {
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
fn a_capture_sees_every_packet_once_and_looks_into_tunnels() {
    if !have_root() {
        return;
    }
    let lab = Lab::builder()
        .nodes(["node1", "node2"])
        .cni(Cni::Vxlan)
        .build()
        .unwrap();
    let (a, b) = (
        lab.pod("node1", "pod-a").unwrap(),
        lab.pod("node2", "pod-b").unwrap(),
    );
    let server = lab.server(["10.6.1.10"]).unwrap();
    let node1 = lab.node("node1");
    let capture = lab.capture().unwrap();
    a.open_udp(b.endpoints()[0]).unwrap();
    a.open_udp(b.endpoints()[1]).unwrap();
    a.open_udp(server.v4()).unwrap();
    assert_eq!(
        capture.count(|packet| packet.is_tunnelled(a.v4(), b.v4())
            && packet.innermost().protocol == Protocol::Udp),
        1
    );
    assert_eq!(
        capture.count(|packet| packet.is_tunnelled(a.v6(), b.v6())
            && packet.innermost().protocol == Protocol::Udp),
        1
    );
    assert_eq!(
        capture
            .count(|packet| packet.is_bare(node1.v4().into(), server.v4().ip())
                && packet.from == "node1"),
        1
    );
    assert_eq!(
        capture.count(|packet| packet.is_bare(server.v4().ip(), node1.v4().into())
            && packet.from == "server1"),
        1
    );
    assert_eq!(
        capture.count(|packet| packet.is_bare(a.v4(), server.v4().ip())),
        0,
        "nothing untranslated"
    );
    assert!(
        capture
            .count(|packet| packet.protocol == Protocol::Arp && packet.source == server.v4().ip())
            > 0
    );
    // The switches' own repetition of a broadcast is not counted again.
    capture.clear();
    node1
        .run("ip neigh flush dev eth0; ip neigh add 10.6.9.9 lladdr ff:ff:ff:ff:ff:ff dev eth0")
        .unwrap();
    node1
        .enter(|| std::net::UdpSocket::bind("0.0.0.0:0")?.send_to(b"x", "10.6.9.9:9"))
        .unwrap()
        .unwrap();
    capture
        .wait_for(LONG, |packet| packet.destination_port == 9)
        .unwrap();
    assert_eq!(capture.count(|packet| packet.destination_port == 9), 1);
}

#[test]
fn a_flow_goes_on_and_a_stream_measures_the_gap_while_the_cable_is_out() {
    if !have_root() {
        return;
    }
    let lab = lab();
    let pod = lab.pod("node1", "pod-a").unwrap();
    let server = lab.server(["10.6.1.10"]).unwrap();
    let node1 = lab.node("node1");
    let mut flows = [
        pod.open_tcp(server.v4()).unwrap(),
        pod.open_udp(server.v4()).unwrap(),
    ];
    let steady = pod
        .stream(server.v4(), Duration::from_millis(5))
        .start()
        .unwrap();
    let stream = pod
        .stream(server.v4(), Duration::from_millis(5))
        .fresh_ports()
        .start()
        .unwrap();

    node1.cut().unwrap();
    assert!(
        node1
            .run("ip -o link show eth0")
            .unwrap()
            .contains("NO-CARRIER")
    );
    pod.cannot_reach(server.v4(), SHORT).unwrap();
    node1.restore().unwrap();
    stream.wait_for(LONG, |_| true).unwrap();

    for flow in &mut flows {
        assert_eq!(flow.echo().unwrap().ip(), node1.v4());
    }
    for report in [steady.finish().unwrap(), stream.finish().unwrap()] {
        assert!(
            report.longest_gap >= SHORT && report.longest_gap < LONG,
            "{:?}",
            report.longest_gap
        );
        assert!(report.lost() > 0 && report.sent > report.lost());
        assert_eq!(
            report.sources.keys().copied().collect::<Vec<_>>(),
            [IpAddr::from(node1.v4())]
        );
    }
    flows[0].echo_bytes(1 << 20).unwrap();
}

#[test]
fn a_node_without_power_is_out_of_everyones_reach() {
    if !have_root() {
        return;
    }
    let lab = lab();
    let node1 = lab.node("node1");
    let all = [
        IpAddr::from(node1.v4()),
        node1.v6().into(),
        node1.management().into(),
    ];
    node1.answer(&all, 7000).unwrap();
    let (node2, root) = (lab.node("node2"), lab.root());
    assert_eq!(
        node2.connect_tcp((node1.v4(), 7000).into()).unwrap().ip(),
        node2.v4()
    );
    assert_eq!(
        root.connect_tcp((node1.management(), 7000).into())
            .unwrap()
            .ip(),
        MANAGEMENT
    );
    node1.power_off().unwrap();
    node2
        .cannot_reach((node1.v4(), 7000).into(), SHORT)
        .unwrap();
    root.cannot_reach((node1.management(), 7000).into(), SHORT)
        .unwrap();
    node1.power_on().unwrap();
    assert_eq!(
        node2.connect_tcp((node1.v6(), 7000).into()).unwrap().ip(),
        node2.v6()
    );
    root.connect_tcp((node1.management(), 7000).into()).unwrap();
}

#[test]
fn the_management_network_is_for_nodes_and_not_for_pods() {
    if !have_root() {
        return;
    }
    let lab = lab();
    let api = lab.root().answer(&[MANAGEMENT.into()], 6443).unwrap();
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
fn a_program_runs_in_its_node_and_takes_signals() {
    if !have_root() {
        return;
    }
    let lab = lab();
    let node1 = lab.node("node1");
    let script = "trap 'echo term; exit 7' TERM; echo $GREETING; ip -o -4 addr show dev eth0; ls /sys/class/net; while :; do sleep 0.01; done";
    let process = node1
        .program("sh")
        .args(["-c", script])
        .env("GREETING", "hello")
        .start()
        .unwrap();
    process.wait_for_log("mgmt0", LONG).unwrap();
    let log = process.log().unwrap();
    assert!(
        log.contains("hello") && log.contains("10.6.0.11/16"),
        "{log}"
    );
    assert_eq!(process.status().unwrap(), None);
    assert_eq!(process.terminate(LONG).unwrap().code(), Some(7));
    process.wait_for_log("term", LONG).unwrap();

    let file = tempfile::NamedTempFile::new().unwrap();
    let process = node1
        .program("/bin/sleep")
        .arg("1000")
        .log_to(file.path())
        .start()
        .unwrap();
    process.kill(Signal::SIGKILL).unwrap();
    assert!(!process.wait(LONG).unwrap().success());
    assert!(
        node1
            .program("/no/such/program")
            .start()
            .and_then(|process| process.wait(LONG))
            .map_or(true, |status| !status.success())
    );

    let process = node1.program("sleep").arg("1000").start().unwrap();
    drop(lab);
    assert!(
        !process.wait(LONG).unwrap().success(),
        "a program ends with the lab"
    );
    assert!(
        node1.run("true").is_err(),
        "and a handle that is left says so"
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
    b.answer(&second, 7000).unwrap();
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

#[test]
fn a_deleted_pod_leaves_its_address_to_the_next() {
    if !have_root() {
        return;
    }
    let lab = lab();
    let (a, b) = (
        lab.pod("node1", "a").unwrap(),
        lab.pod("node1", "b").unwrap(),
    );
    assert!(lab.pod("node2", "a").is_err(), "names are unique");
    let address = a.v4();
    let at = a.endpoints()[0];
    a.delete().unwrap();
    b.cannot_reach(at, SHORT).unwrap();
    let c = lab.pod("node1", "c").unwrap();
    assert_eq!(c.v4(), address);
    assert_eq!(b.connect_tcp(at).unwrap().ip(), b.v4());
}

#[test]
fn two_labs_at_once_do_not_see_each_other() {
    if !have_root() {
        return;
    }
    let world = || {
        let lab = Lab::builder()
            .nodes(["node1", "node2"])
            .rules_by(RuleTool::IptablesLegacy)
            .build()
            .unwrap();
        everything_works(&lab);
        lab
    };
    let [first, second] = std::thread::scope(|scope| {
        [scope.spawn(world), scope.spawn(world)].map(|thread| thread.join().unwrap())
    });
    let server = first.server(["10.6.1.99"]).unwrap();
    let pod = |lab: &Lab| lab.pod("node1", "asks").unwrap();
    assert!(pod(&first).connect_tcp(server.v4()).is_ok());
    pod(&second).cannot_reach(server.v4(), SHORT).unwrap();
    drop(first);
    second.node("node1").run("ip link show eth0").unwrap();
}

#[test]
fn the_hosts_own_network_is_left_alone() {
    if !have_root() {
        return;
    }
    let host = || {
        [
            "ip -o link | wc -l",
            "ip netns list",
            "ip route",
            "grep -c netns /proc/mounts",
        ]
        .map(output)
    };
    let inside = |lab: &Lab| lab.root().run("readlink /proc/self/ns/net").unwrap();
    let before = host();
    let lab = lab();
    lab.pod("node1", "pod-a").unwrap();
    assert_ne!(
        inside(&lab).trim(),
        output("readlink /proc/self/ns/net").trim()
    );
    assert_eq!(host(), before);
}

fn output(command: &str) -> String {
    String::from_utf8(
        Command::new("sh")
            .args(["-c", command])
            .output()
            .unwrap()
            .stdout,
    )
    .unwrap()
}

/// Not a test of its own: the victim of the next one.
#[test]
fn victim() {
    if std::env::var_os(VICTIM).is_none() {
        return;
    }
    let lab = lab();
    lab.pod("node1", "pod-a").unwrap();
    let _stream = lab
        .node("node1")
        .stream("10.6.0.12:9".parse().unwrap(), SHORT);
    let process = lab
        .node("node1")
        .program("sleep")
        .arg("1000")
        .start()
        .unwrap();
    println!("\nholder {}", lab.holder());
    std::io::stdout().flush().unwrap();
    process.wait(Duration::from_secs(1000)).unwrap();
}

#[test]
fn everything_dies_with_the_process_even_by_sigkill() {
    if !have_root() {
        return;
    }
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "victim", "--nocapture"])
        .env(VICTIM, "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(victim.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    let holder: u32 = lines
        .find_map(|line| line.strip_prefix("holder ").map(|id| id.parse().unwrap()))
        .unwrap();
    let namespace = std::fs::read_link(format!("/proc/{holder}/ns/pid_for_children")).unwrap();
    assert!(
        processes_in(&namespace) >= 2,
        "the lab's first process and the sleeping one"
    );

    victim.kill().unwrap();
    victim.wait().unwrap();
    let deadline = Instant::now() + LONG;
    while processes_in(&namespace) > 0 || Path::new(&format!("/proc/{holder}")).exists() {
        assert!(
            Instant::now() < deadline,
            "{} processes are left",
            processes_in(&namespace)
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// How many processes live in a PID namespace; none where its last has ended.
fn processes_in(namespace: &Path) -> usize {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter(|process| {
            std::fs::read_link(process.path().join("ns/pid")).is_ok_and(|link| link == namespace)
        })
        .count()
}

#[test]
fn an_asynchronous_server_listens_in_the_labs_root() {
    if !have_root() {
        return;
    }
    let lab = lab();
    let listener = lab
        .root()
        .listen_tcp(SocketAddr::new(MANAGEMENT.into(), 0))
        .unwrap();
    let at = listener.local_addr().unwrap();
    let thread =
        std::thread::spawn(move || listener.accept().unwrap().0.write_all(b"hello").unwrap());
    let mut stream = lab
        .node("node2")
        .enter(|| std::net::TcpStream::connect(at))
        .unwrap()
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello");
    thread.join().unwrap();
}
