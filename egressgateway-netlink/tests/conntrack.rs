//! Connection tracking in the kernel.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::Mutex,
    time::{Duration, Instant},
};

use egressgateway::{Connection, Connections, Ending};
use egressgateway_netlink::{ConnectionTable, Netlink};
use egressgateway_testkit::{netns::in_namespace, pace::patient, shell::run};
use socket2::{Domain, Protocol, Socket, Type};

/// A pod's two addresses on this side of a cable, and servers beyond it. Port 7 is a service that
/// is translated, port 8 has a zone of its own, ports 9 and 10 have marks. Two servers see other
/// addresses, of which one is not this host's.
const NETWORK: &str = "
    ip link add pod0 type veth peer name far0
    for end in pod0 far0; do ip link set $end addrgenmode none; done
    ip address add 10.244.0.5/16 dev pod0
    ip address add 10.244.0.6/16 dev pod0
    ip address add fd00:244::5/64 dev pod0 nodad
    ip link set pod0 up
    ip link set far0 up
    ip route add default via 10.244.0.1 dev pod0
    ip -6 route add default via fd00:244::1 dev pod0
    ip neighbour replace 10.244.0.1 lladdr 02:00:00:00:00:02 dev pod0
    ip neighbour replace fd00:244::1 lladdr 02:00:00:00:00:02 dev pod0
    nft -f - <<END
        table inet test {
            chain zones { type filter hook output priority raw; udp dport 8 ct zone set 8; }
            chain translate { type nat hook output priority -100; udp dport 7 dnat ip to 10.6.9.9; }
            chain sources { type nat hook postrouting priority 100; ip daddr 10.6.1.16 snat to 10.6.0.60; ip daddr 10.6.1.17 snat to 10.244.0.6; }
            chain marks { type filter hook output priority mangle; udp dport 9 ct mark set 0x11000000; udp dport 10 ct mark set 0x00ff0001; }
        }
END";

fn send(from: &str, to: &str) {
    let (from, to): (IpAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
    UdpSocket::bind((from, 5000))
        .unwrap()
        .send_to(b"hello", to)
        .unwrap();
}

/// What the table tells of, as "SOURCE DESTINATION TRANSLATED MARK", with the address that it
/// leaves with where that is another one.
async fn told(table: &ConnectionTable) -> BTreeSet<String> {
    let told = Mutex::new(BTreeSet::new());
    let note = |connection: &Connection| {
        let Connection {
            source,
            destination,
            translated,
            seen_as,
            is_own,
            mark,
            ..
        } = connection;
        let leaves = if seen_as == source {
            String::new()
        } else {
            format!(" as {seen_as}, own: {is_own}")
        };
        told.lock().unwrap().insert(format!(
            "{source} {destination} {translated} {mark:x}{leaves}"
        ));
        None
    };
    assert_eq!(table.forget(&note).await.unwrap(), 0);
    told.into_inner().unwrap()
}

#[test]
fn exactly_the_stale_connections_are_forgotten() {
    in_namespace(|| async {
        run(NETWORK);
        for to in [
            "10.6.1.10:53",
            "10.6.1.11:53",
            "10.6.1.12:7",
            "10.6.1.13:8",
            "10.6.1.14:9",
            "10.6.1.15:10",
            "10.6.1.16:53",
            "10.6.1.17:53",
            "224.0.0.9:53",
        ] {
            send("10.244.0.5", to);
        }
        send("fd00:244::5", "[fd00:6::10]:53");
        let table = ConnectionTable::new(Netlink::open().unwrap());
        let all = [
            "10.244.0.5 10.6.1.10 10.6.1.10 0",
            "10.244.0.5 10.6.1.11 10.6.1.11 0",
            "10.244.0.5 10.6.1.12 10.6.9.9 0",
            "10.244.0.5 10.6.1.13 10.6.1.13 0",
            "10.244.0.5 10.6.1.14 10.6.1.14 11000000",
            "10.244.0.5 10.6.1.15 10.6.1.15 ff0001",
            "10.244.0.5 10.6.1.16 10.6.1.16 0 as 10.6.0.60, own: false",
            "10.244.0.5 10.6.1.17 10.6.1.17 0 as 10.244.0.6, own: true",
            "fd00:244::5 fd00:6::10 fd00:6::10 0",
        ];
        assert_eq!(
            told(&table).await,
            all.map(str::to_owned).into(),
            "all but what is for a group"
        );
        let kept = ["10.6.1.11", "10.6.1.15"];
        let stale = |connection: &Connection| {
            (!kept.contains(&connection.destination.to_string().as_str())).then_some(Ending::Breaks)
        };
        assert_eq!(table.forget(&stale).await.unwrap(), 7);
        assert_eq!(
            told(&table).await,
            [all[1], all[5]].map(str::to_owned).into()
        );
        assert_eq!(table.forget(&stale).await.unwrap(), 0);
    });
}

/// Sends a packet without IP's header. Connection tracking does not look at checksums of what the
/// host itself sends.
fn send_raw(protocol: Protocol, to: &str, bytes: &[u8]) {
    let to: IpAddr = to.parse().unwrap();
    let socket = Socket::new(
        Domain::for_address((to, 0).into()),
        Type::RAW,
        Some(protocol),
    )
    .unwrap();
    socket
        .send_to(bytes, &SocketAddr::new(to, 0).into())
        .unwrap();
}

/// A TCP header from port 5000 to port 80.
fn tcp(flags: u8) -> [u8; 20] {
    let mut header = [0; 20];
    header[..4].copy_from_slice(&[0x13, 0x88, 0, 80]);
    (header[12], header[13], header[14]) = (5 << 4, flags, 0xff);
    header
}

#[test]
fn who_surely_began_a_connection_is_told_from_who_was_heard_first() {
    in_namespace(|| async {
        let (syn, ack) = (0x02, 0x10);
        run(NETWORK);
        send("10.244.0.5", "10.6.1.10:53");
        send_raw(Protocol::TCP, "10.6.1.11", &tcp(syn));
        send_raw(Protocol::TCP, "10.6.1.12", &tcp(ack));
        send_raw(
            Protocol::ICMPV4,
            "10.6.1.13",
            &[8, 0, 0xf7, 0xff, 0, 0, 0, 0],
        );
        send_raw(Protocol::ICMPV6, "fd00:6::14", &[128, 0, 0, 0, 0, 0, 0, 0]);
        send_raw(Protocol::TCP, "fd00:6::15", &tcp(ack));
        let began = Mutex::new(BTreeSet::new());
        let note = |connection: &Connection| {
            began.lock().unwrap().insert((
                connection.destination.to_string(),
                connection.is_opening_seen,
            ));
            None
        };
        ConnectionTable::new(Netlink::open().unwrap())
            .forget(&note)
            .await
            .unwrap();
        let all = [
            ("10.6.1.10", false),
            ("10.6.1.11", true),
            ("10.6.1.12", false),
            ("10.6.1.13", true),
            ("fd00:6::14", true),
            ("fd00:6::15", false),
        ];
        assert_eq!(
            began.into_inner().unwrap(),
            all.map(|(to, seen)| (to.to_owned(), seen)).into()
        );
    });
}

#[test]
fn what_ends_at_this_host_is_not_asked_about() {
    in_namespace(|| async {
        run(NETWORK);
        run(
            "ip link add ipvs0 type bridge; ip address add 10.96.0.10/32 dev ipvs0; ip link set lo up",
        );
        send("10.244.0.5", "10.96.0.10:53");
        send("10.244.0.5", "10.6.1.10:53");
        let table = ConnectionTable::new(Netlink::open().unwrap());
        assert_eq!(
            told(&table).await,
            BTreeSet::from(["10.244.0.5 10.6.1.10 10.6.1.10 0".to_owned()])
        );
    });
}

#[test]
fn many_connections_take_many_messages() {
    in_namespace(|| async {
        run(NETWORK);
        let socket = UdpSocket::bind("10.244.0.5:5000").unwrap();
        for number in 0..2000_u16 {
            let [high, low] = number.to_be_bytes();
            socket
                .send_to(b"hello", (IpAddr::from([10, 6, high, low]), 53))
                .unwrap();
        }
        let table = ConnectionTable::new(Netlink::open().unwrap());
        assert_eq!(told(&table).await.len(), 2000);
        assert_eq!(
            table.forget(&|_| Some(Ending::Resumes)).await.unwrap(),
            2000
        );
        assert!(told(&table).await.is_empty());
    });
}

#[test]
fn a_connection_that_an_answer_on_its_way_began_is_forgotten_too() {
    in_namespace(|| async {
        run(NETWORK);
        let server = "ip address add 10.6.1.20/32 dev far0";
        run(server);
        send("10.244.0.5", "10.6.1.20:53");
        run("ip address del 10.6.1.20/32 dev far0");
        let table = ConnectionTable::new(Netlink::open().unwrap());
        assert_eq!(table.forget(&|_| Some(Ending::Resumes)).await.unwrap(), 1);
        run(server);
        UdpSocket::bind("10.6.1.20:53")
            .unwrap()
            .send_to(b"answer", "10.244.0.5:5000")
            .unwrap();
        let tracked = || {
            std::fs::read_to_string("/proc/thread-self/net/nf_conntrack")
                .unwrap()
                .contains("src=10.6.1.20 ")
        };
        assert!(tracked());
        let deadline = Instant::now() + patient(Duration::from_secs(5));
        while tracked() {
            assert!(Instant::now() < deadline, "it is there still");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // What the pod begins itself stays.
        send("10.244.0.5", "10.6.1.20:53");
        tokio::time::sleep(patient(Duration::from_millis(2500))).await;
        assert!(
            std::fs::read_to_string("/proc/thread-self/net/nf_conntrack")
                .unwrap()
                .contains("src=10.244.0.5 dst=10.6.1.20 ")
        );
    });
}
