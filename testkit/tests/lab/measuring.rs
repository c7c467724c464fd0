//! What a lab measures: captures, flows and streams, while cables are out and without.

use std::{net::IpAddr, time::Duration};

use egressgateway_testkit::{
    lab::{Cni, Lab, MANAGEMENT, Protocol},
    netns::have_root,
};

use super::{LONG, SHORT, lab};

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
    node1.respond(&all, 7000).unwrap();
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
