//! Connection tracking in the kernel.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::Mutex,
};

use egressgateway::{Connection, Connections, model::MarkMask};
use egressgateway_netlink::{ConnectionTable, Netlink};
use egressgateway_testkit::{netns::in_namespace, shell::run};

/// A pod's two addresses on this side of a cable, and servers beyond it. Port 7 is a service that is translated, port 8 has a zone of its own,
/// ports 9 and 10 have marks.
const NETWORK: &str = "
    ip link add pod0 type veth peer name far0
    for end in pod0 far0; do ip link set $end addrgenmode none; done
    ip address add 10.244.0.5/16 dev pod0
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
            chain marks { type filter hook output priority mangle; udp dport 9 ct mark set 0x11000000; udp dport 10 ct mark set 0x00ff0001; }
        }
END";

fn send(from: &str, to: &str) {
    let (from, to): (IpAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
    UdpSocket::bind((from, 5000)).unwrap().send_to(b"hello", to).unwrap();
}

/// What the table tells of, as "SOURCE DESTINATION TRANSLATED MARK".
async fn told(table: &ConnectionTable) -> BTreeSet<String> {
    let told = Mutex::new(BTreeSet::new());
    let note = |connection: &Connection| {
        let Connection { source, destination, translated, mark } = connection;
        told.lock().unwrap().insert(format!("{source} {destination} {translated} {mark:x}"));
        false
    };
    assert_eq!(table.forget(&note).await.unwrap(), 0);
    told.into_inner().unwrap()
}

#[test]
fn exactly_the_stale_connections_are_forgotten() {
    in_namespace(|| async {
        run(NETWORK);
        for to in ["10.6.1.10:53", "10.6.1.11:53", "10.6.1.12:7", "10.6.1.13:8", "10.6.1.14:9", "10.6.1.15:10", "224.0.0.9:53"] {
            send("10.244.0.5", to);
        }
        send("fd00:244::5", "[fd00:6::10]:53");
        let table = ConnectionTable::new(Netlink::open().unwrap(), MarkMask::default());
        let all = [
            "10.244.0.5 10.6.1.10 10.6.1.10 0",
            "10.244.0.5 10.6.1.11 10.6.1.11 0",
            "10.244.0.5 10.6.1.12 10.6.9.9 0",
            "10.244.0.5 10.6.1.13 10.6.1.13 0",
            "10.244.0.5 10.6.1.15 10.6.1.15 ff0001",
            "fd00:244::5 fd00:6::10 fd00:6::10 0",
        ];
        assert_eq!(told(&table).await, all.map(str::to_owned).into(), "neither what is pinned nor what is for a group");
        let stale = |connection: &Connection| !["10.6.1.11", "10.6.1.15"].contains(&connection.destination.to_string().as_str());
        assert_eq!(table.forget(&stale).await.unwrap(), 4);
        assert_eq!(told(&table).await, [all[1], all[4]].map(str::to_owned).into());
        assert_eq!(table.forget(&stale).await.unwrap(), 0);
    });
}

#[test]
fn what_ends_at_this_host_is_not_asked_about() {
    in_namespace(|| async {
        run(NETWORK);
        run("ip link add ipvs0 type bridge; ip address add 10.96.0.10/32 dev ipvs0; ip link set lo up");
        send("10.244.0.5", "10.96.0.10:53");
        send("10.244.0.5", "10.6.1.10:53");
        let table = ConnectionTable::new(Netlink::open().unwrap(), MarkMask::default());
        assert_eq!(told(&table).await, BTreeSet::from(["10.244.0.5 10.6.1.10 10.6.1.10 0".to_owned()]));
    });
}

#[test]
fn many_connections_take_many_messages() {
    in_namespace(|| async {
        run(NETWORK);
        let socket = UdpSocket::bind("10.244.0.5:5000").unwrap();
        for number in 0..2000_u16 {
            let [high, low] = number.to_be_bytes();
            socket.send_to(b"hello", (IpAddr::from([10, 6, high, low]), 53)).unwrap();
        }
        let table = ConnectionTable::new(Netlink::open().unwrap(), MarkMask::default());
        assert_eq!(told(&table).await.len(), 2000);
        assert_eq!(table.forget(&|_| true).await.unwrap(), 2000);
        assert!(told(&table).await.is_empty());
    });
}
