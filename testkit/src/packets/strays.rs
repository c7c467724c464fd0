//! Packets that have no business where they go: from the overlay into the cluster, and from pods
//! into a tunnel.

use egressgateway::{
    model::SourceNat,
    testing::worlds::{class, client, egress, gateway, ip, range},
};

use super::lab::{Backend, Host, Lab, SEEN, arrived};
use crate::{netns::in_namespace, shell::run};

/// Nothing that a peer sends is delivered inside of the cluster, with whichever source.
///
/// # Panics
/// When a packet goes elsewhere.
pub fn what_comes_by_the_overlay_leaves_here_or_ends<D: Backend>(host: Host<D>) {
    in_namespace(move || async move {
        let lab = Lab::new(&host);
        let mut desired = gateway();
        desired.overlay.unknown_may_exit = true;
        desired.destinations.insert(
            (class(2), range("10.0.0.0/8")),
            egress(0x11, SourceNat::Keep),
        );
        desired.destinations.remove(&(class(2), range("0.0.0.0/0")));
        lab.program(&desired).await;
        run(SEEN);
        lab.pod.run(SEEN);
        lab.far.run(
            "ip route add 10.244.1.0/24 via 172.31.0.1 src 10.244.9.9; ip -6 route add fd10:244:1::/64 via fd31::1
             ip route add 10.6.0.11 via 172.31.0.1 src 10.250.3.4; ip route add 10.6.1.1 via 172.31.0.1 src 10.244.9.9
             ping -c 1 -W 5 172.31.0.1 >/dev/null; ping -c 1 -W 5 fd31::1 >/dev/null",
        );
        let strays = [
            "10.244.1.10",
            "fd10:244:1::10",
            "10.6.0.11",
            "172.31.0.1",
            "fd31::1",
        ];
        for (destination, sent) in strays.into_iter().zip(1..) {
            lab.far.send(destination);
            lab.count("drop_unknown_source", sent).await;
        }
        // What leaves as itself is not tracked, and may not enter the cluster so either.
        lab.far.run("ip addr add 10.250.3.5/32 dev lo; ip route add 10.244.1.99 via 172.31.0.1 src 10.250.3.5");
        lab.far.send("10.244.1.99");
        lab.count("drop_unknown_source", 6).await;
        lab.far.run(
            "ip addr add 10.6.1.1/32 dev lo; ip -6 addr add fd10:244:1::1/128 dev lo nodad
             ip -6 route add fd00::1:92 via fd31::1 src fd10:244:1::1",
        );
        lab.far.send("fd00::1:92");
        lab.count("drop_unknown_source", 7).await;
        assert_eq!(lab.pod.seen_at_all(), "", "nothing reached the pod");
        // An address of this host that nobody has told the cluster about is somewhere outside for
        // whoever sent this.
        lab.far.send("10.6.1.92");
        arrived(&lab.server, "10.250.3.4", 1).await;
    });
}

/// Peers are told by their addresses, and a node gives its own to what its pods send.
///
/// # Panics
/// When a packet goes elsewhere.
pub fn no_pod_reaches_the_tunnel_of_any_node<D: Backend>(host: Host<D>) {
    in_namespace(move || async move {
        let lab = Lab::new(&host);
        lab.program(&client()).await;
        // Services that lead to a node's tunnel, and what arrives where the next node is.
        run("nft -f - <<END
            table inet services {
              chain prerouting {
                type nat hook prerouting priority -100
                ip daddr 10.96.0.1 udp dport 53 dnat ip to 10.6.0.12:7789
                ip daddr 10.96.0.2 udp dport 53 dnat ip to 10.6.1.1:7789
                ip6 daddr fd96::1 udp dport 53 dnat ip6 to [fd00::12]:7789
                ip6 daddr fd96::2 udp dport 53 dnat ip6 to [fd00::1:1]:7789
              }
            }
END");
        lab.server.run(
            "ip addr add 10.6.0.12/16 dev eth0; ip addr add fd00::12/104 dev eth0 nodad
             nft 'add table inet tunnel; add chain inet tunnel in { type filter hook prerouting priority 0; }
             add rule inet tunnel in udp dport 7789 counter'",
        );
        run("ip route add 10.7.0.12 via 10.6.1.92; ip -6 route add fd07::12 via fd00::1:92");
        let addresses =
            ["10.6.0.12", "fd00::12", "10.6.1.1", "fd00::1:1"].map(|address| (address, 7789));
        let services =
            ["10.96.0.1", "10.96.0.2", "fd96::1", "fd96::2"].map(|address| (address, 53));
        // Further addresses of the other node; and groups that this node is in: a broadcast, all
        // hosts, all routers of a network, all nodes.
        let further = [
            "10.7.0.12",
            "fd07::12",
            "10.6.255.255",
            "224.0.0.1",
            "fd00::",
            "ff02::1%eth0",
        ]
        .map(|address| (address, 7789));
        for ((address, port), sent) in addresses
            .into_iter()
            .chain(services)
            .chain(further)
            .zip(1..)
        {
            lab.pod.run(&format!("echo x > /dev/udp/{address}/{port}"));
            lab.count("drop_not_peer", sent).await;
        }
        let arrived = lab.server.run("nft list chain inet tunnel in");
        assert!(arrived.contains("counter packets 0 "), "{arrived}");
        // Another port of the same node is none of our business.
        lab.pod.send("10.6.0.12");
        self::arrived(&lab.server, "10.6.1.1", 1).await;
    });
}

/// A node's masquerade makes a peer of any pod, so the address that is sent to counts as well:
/// peers send to the one that they know.
///
/// # Panics
/// When a packet goes elsewhere.
pub fn a_tunnel_takes_what_peers_send_to_the_address_that_they_know<D: Backend>(host: Host<D>) {
    in_namespace(move || async move {
        let lab = Lab::new(&host);
        let mut desired = client();
        desired.overlay.own = ["10.6.1.1", "fd00::1:1"].map(ip).into_iter().collect();
        lab.program(&desired).await;
        run("ip addr add 10.6.1.2/16 dev out0; ip addr add fd00::1:2/104 dev out0 nodad; ip addr add 10.7.0.11/32 dev lo
             nft 'add table inet taken; add chain inet taken in { type filter hook input priority 0; }
             add rule inet taken in udp dport 7789 counter'");
        lab.server.run(
            "ip addr add 10.6.0.12/16 dev eth0; ip addr add fd00::12/104 dev eth0 nodad; ip route add 10.7.0.11 via 10.6.1.1 src 10.6.0.12
             for own in 10.6.1.1 10.6.1.2; do ip route add $own dev eth0 src 10.6.0.12; done
             for own in fd00::1:1 fd00::1:2; do ip -6 route add $own dev eth0 src fd00::12; done",
        );
        let send =
            |address: &str| drop(lab.server.run(&format!("echo x > /dev/udp/{address}/7789")));
        for (address, sent) in ["10.6.1.2", "fd00::1:2", "10.7.0.11"].into_iter().zip(1..) {
            send(address);
            lab.count("drop_not_peer", sent).await;
        }
        ["10.6.1.1", "fd00::1:1"].into_iter().for_each(send);
        // What comes after them on the same way.
        send("10.7.0.11");
        lab.count("drop_not_peer", 4).await;
        assert!(
            run("nft list chain inet taken in").contains("counter packets 2 "),
            "{}",
            run("nft list chain inet taken in")
        );
        // The address that the node had before, as long as others may know it.
        desired.overlay.own.insert(ip("10.6.1.2"));
        lab.program(&desired).await;
        send("10.6.1.2");
        send("10.7.0.11");
        lab.count("drop_not_peer", 5).await;
        assert!(
            run("nft list chain inet taken in").contains("counter packets 3 "),
            "{}",
            run("nft list chain inet taken in")
        );
    });
}

/// A service is an address like any other until somebody translates it.
///
/// # Panics
/// When a packet goes elsewhere, or others' marks are lost.
pub fn what_is_translated_is_governed_by_where_it_leads_or_dropped<D: Backend>(host: Host<D>) {
    in_namespace(move || async move {
        let lab = Lab::new(&host);
        lab.program(&client()).await;
        run("nft -f - <<END
            table inet services {
              chain prerouting {
                type nat hook prerouting priority -100
                udp dport 53 meta mark set meta mark or 0x4000
                ip daddr 10.96.0.1 udp dport 53 dnat ip to 10.6.1.92:9
                ip6 daddr fd96::1 udp dport 53 dnat ip6 to [fd00::1:92]:9
                ip daddr 10.96.0.2 udp dport 53 dnat ip to 10.6.4.1:9
                ip daddr 10.6.2.9 udp dport 53 dnat ip to 10.244.1.99:9
              }
              chain marks { ct mark & 0x0000ffff != 0 drop; meta mark & 0x4000 == 0 drop; counter; }
              chain postrouting {
                type filter hook postrouting priority 200
                oifname out0 udp dport 9 jump marks
              }
            }
END");
        lab.pod.run(SEEN);
        lab.server.run("ip addr add 10.6.4.1/16 dev eth0");
        let send = |address: &str| drop(lab.pod.run(&format!("echo x > /dev/udp/{address}/53")));
        for (front, pod, sent) in [
            ("10.96.0.1", "10.244.1.10", 1),
            ("fd96::1", "fd10:244:1::10", 2),
        ] {
            send(front);
            if host.steers_translated {
                arrived(&lab.far, pod, 1).await;
                lab.count("steered", sent).await;
            } else {
                lab.count("drop_no_gateway", sent).await;
            }
        }
        assert_eq!(lab.server.seen_at_all(), "", "nothing leaves from here");
        send("10.96.0.2");
        arrived(&lab.server, "10.6.1.1", 1).await;
        assert!(
            run("nft list chain inet services marks").contains("counter packets 1 "),
            "others' marks are as they were"
        );
        // Sent to an address that is governed, and translated to one of the cluster.
        send("10.6.2.9");
        arrived(&lab.pod, "10.244.1.10", 1).await;
    });
}
