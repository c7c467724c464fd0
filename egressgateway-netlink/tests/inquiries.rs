//! Questions who else has an address, against kernels that have it, in namespaces of their own.

#![allow(clippy::unwrap_used)]

use std::{collections::BTreeSet, net::IpAddr, os::fd::AsRawFd as _, time::Duration};

use egressgateway::{AddressesDesired, Error, ErrorKind, Inquirer};
use egressgateway_netlink::NeighbourInquirer;
use egressgateway_testkit::{netns::in_namespace, pace::patient, shell::run};
use nix::{
    ifaddrs::getifaddrs,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, sendto, socket},
};

const ADDRESSES: [&str; 2] = ["10.6.0.60", "fd00:6::60"];

/// How long nothing must be heard before nobody says anything.
const SILENCE: Duration = Duration::from_millis(300);

/// This host with two devices, and another one, on one switch; the addresses are on the first
/// device of this host.
const HOSTS: &str = "ip link set lo up
ip link add switch type bridge mcast_snooping 0; ip link set switch addrgenmode none up; ip netns add other
for device in eth0 eth1; do
  ip link add $device type veth peer name port-$device; ip link set port-$device master switch
  for end in $device port-$device; do ip link set $end addrgenmode none up; done
done
ip link add port-other type veth peer name eth0 netns other; ip link set port-other master switch addrgenmode none up
ip -n other link set eth0 address 02:00:00:00:00:0c; ip -n other link set eth0 addrgenmode none up; ip -n other link set lo up
ip addr add 10.6.0.11/16 dev eth0; ip addr add fd00:6::11/64 dev eth0 nodad
ip addr add 10.6.0.60/32 dev eth0; ip addr add fd00:6::60/128 dev eth0 nodad
ip -n other addr add 10.6.0.12/16 dev eth0; ip -n other addr add fd00:6::12/64 dev eth0 nodad
for port in port-eth0 port-eth1 port-other; do
  for i in $(seq 500); do if bridge link show dev $port | grep -q 'state forwarding'; then break; fi; sleep 0.01; done
done
";

fn held(addresses: &[(&str, &str)]) -> AddressesDesired {
    let parse = |(address, device): &(&str, &str)| {
        (address.parse::<IpAddr>().unwrap(), (*device).to_owned())
    };
    AddressesDesired {
        held: addresses.iter().map(parse).collect(),
    }
}

fn both() -> AddressesDesired {
    held(&ADDRESSES.map(|address| (address, "eth0")))
}

/// Listens to all of them and asks for each.
fn ask(inquirer: &NeighbourInquirer, addresses: &AddressesDesired) -> Vec<(IpAddr, Error)> {
    inquirer.inquire(addresses, &addresses.held.keys().copied().collect())
}

fn taken_by_other() {
    run(
        "ip -n other addr add 10.6.0.60/32 dev eth0; ip -n other addr add fd00:6::60/128 dev eth0 nodad",
    );
}

/// Lets the other host announce all its addresses, as kernels do for a device with a new hardware
/// address.
fn announced_by_other(mac: &str) {
    run(&format!(
        "ip netns exec other sysctl -qw net.ipv4.conf.eth0.arp_notify=1 net.ipv6.conf.eth0.ndisc_notify=1
         ip -n other link set eth0 address {mac}"
    ));
}

/// What is heard until nobody has said anything new for a while.
async fn heard(inquirer: &NeighbourInquirer) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    while let Ok((address, mac)) = tokio::time::timeout(patient(SILENCE), inquirer.answered()).await
    {
        all.insert(format!("{address} {mac}"));
    }
    all
}

fn has_both(mac: &str) -> BTreeSet<String> {
    ADDRESSES.map(|address| format!("{address} {mac}")).into()
}

/// The packet sockets of this namespace.
fn sockets() -> usize {
    run("ss -0nH").lines().count()
}

#[test]
fn another_host_with_the_same_addresses_is_heard_when_it_is_asked() {
    in_namespace(|| async {
        run(HOSTS);
        taken_by_other();
        let inquirer = NeighbourInquirer::new();
        assert!(ask(&inquirer, &both()).is_empty());
        assert_eq!(heard(&inquirer).await, has_both("02:00:00:00:00:0c"));
        assert!(
            run("ip -n other neigh show")
                .lines()
                .all(|line| !line.contains(".60") && !line.contains("::60")),
            "and learns nothing"
        );
    });
}

#[test]
fn who_only_listens_asks_nobody() {
    in_namespace(|| async {
        run(HOSTS);
        taken_by_other();
        let inquirer = NeighbourInquirer::new();
        let one = BTreeSet::from(["10.6.0.60".parse().unwrap()]);
        assert!(inquirer.inquire(&both(), &one).is_empty());
        assert_eq!(
            heard(&inquirer).await,
            ["10.6.0.60 02:00:00:00:00:0c".to_owned()].into()
        );
    });
}

#[test]
fn another_host_that_announces_the_addresses_is_heard_without_being_asked() {
    in_namespace(|| async {
        run(HOSTS);
        let inquirer = NeighbourInquirer::new();
        assert!(ask(&inquirer, &both()).is_empty());
        assert_eq!(heard(&inquirer).await, BTreeSet::new());
        taken_by_other();
        assert_eq!(
            heard(&inquirer).await,
            BTreeSet::new(),
            "nobody has asked since, and nothing was announced"
        );
        announced_by_other("02:00:00:00:00:0d");
        assert_eq!(heard(&inquirer).await, has_both("02:00:00:00:00:0d"));
    });
}

#[test]
fn nobody_is_heard_where_only_this_host_answers_be_it_on_another_device() {
    in_namespace(|| async {
        run(HOSTS);
        let inquirer = NeighbourInquirer::new();
        // Nobody but this host asks, and hears, whom both devices answer.
        run("ip addr add fd00:6::60/128 dev eth1 nodad");
        let answers = run(
            "ip netns exec other sh -c 'ping -c 1 10.6.0.60 >/dev/null; ping -c 1 fd00:6::60 >/dev/null; ip neigh show'",
        );
        assert!(
            ADDRESSES
                .iter()
                .all(|address| answers.contains(&format!("{address} dev eth0 lladdr"))),
            "{answers}"
        );
        for _ in 0..3 {
            assert!(ask(&inquirer, &both()).is_empty());
            assert_eq!(heard(&inquirer).await, BTreeSet::new());
        }
    });
}

#[test]
fn what_is_said_in_a_vlan_is_said_of_another_networks_addresses() {
    in_namespace(|| async {
        run(HOSTS);
        let inquirer = NeighbourInquirer::new();
        assert!(ask(&inquirer, &both()).is_empty());
        // The host has no device of VLAN 5; in VLAN 0 a frame has a priority and belongs to no
        // VLAN.
        for (tag, expected) in [
            (Some(5), None),
            (Some(0), Some("10.6.0.60 02:00:00:00:00:0e")),
            (None, Some("10.6.0.60 02:00:00:00:00:0e")),
        ] {
            send_from("eth1", &arp_answer(tag));
            assert_eq!(
                heard(&inquirer).await,
                expected.into_iter().map(str::to_owned).collect(),
                "{tag:?}"
            );
        }
    });
}

/// An answer to everybody that 10.6.0.60 is at 02:00:00:00:00:0e.
fn arp_answer(vlan: Option<u8>) -> Vec<u8> {
    let mac = [2, 0, 0, 0, 0, 0x0e];
    let tag = vlan.map(|vlan| vec![0x81, 0, 0, vlan]).unwrap_or_default();
    let answer = [0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 2];
    [
        &[0xff; 6],
        mac.as_slice(),
        &tag,
        &answer,
        &mac,
        &[10, 6, 0, 60],
        &[0xff; 6],
        &[10, 6, 0, 60],
    ]
    .concat()
}

fn send_from(device: &str, frame: &[u8]) {
    let socket = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::empty(),
        None,
    )
    .unwrap();
    let mut devices = getifaddrs()
        .unwrap()
        .filter(|found| found.interface_name == device);
    let link = devices
        .find_map(|found| found.address?.as_link_addr().copied())
        .unwrap();
    sendto(socket.as_raw_fd(), frame, &link, MsgFlags::empty()).unwrap();
}

#[test]
fn sockets_are_open_as_long_as_there_is_something_to_ask() {
    in_namespace(|| async {
        run(HOSTS);
        taken_by_other();
        let inquirer = NeighbourInquirer::new();
        assert_eq!(sockets(), 0);
        for (addresses, expected) in [
            (both(), 2),
            (held(&[("10.6.0.60", "eth0")]), 1),
            (both(), 2),
            (held(&[]), 0),
        ] {
            assert!(ask(&inquirer, &addresses).is_empty());
            let _ = heard(&inquirer).await;
            assert_eq!(sockets(), expected, "{addresses:?}");
        }
    });
}

#[test]
fn a_device_that_is_gone_is_an_error_and_one_that_is_back_is_asked_again() {
    in_namespace(|| async {
        run(HOSTS);
        taken_by_other();
        let inquirer = NeighbourInquirer::new();
        assert!(ask(&inquirer, &both()).is_empty());
        run("ip link del eth0");
        let failures: Vec<_> = ask(&inquirer, &both())
            .into_iter()
            .map(|(_, error)| error.kind)
            .collect();
        assert_eq!(failures, [ErrorKind::Conflict; 2]);
        let _ = heard(&inquirer).await;
        assert_eq!(sockets(), 0);
        run("ip link add eth0 type veth peer name port-eth0; ip link set port-eth0 master switch addrgenmode none up
             ip link set eth0 addrgenmode none up
             for i in $(seq 500); do if bridge link show dev port-eth0 | grep -q 'state forwarding'; then break; fi; sleep 0.01; done");
        assert!(ask(&inquirer, &both()).is_empty());
        assert_eq!(heard(&inquirer).await, has_both("02:00:00:00:00:0c"));
    });
}
