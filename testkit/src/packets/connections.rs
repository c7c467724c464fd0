//! The ways of connections: into the tunnel, out of a gateway, or nowhere.

use std::io::Write;

use egressgateway::{
    model::SourceNat,
    testing::worlds::{class, client, egress, gateway, ip, range, target},
};

use super::lab::{Backend, Host, Lab, arrived};
use crate::{netns::in_namespace, shell::run};

/// Somebody else's rules on the way out: what enters the overlay with a byte of ours, and all that
/// does.
const UNDERLAY: &str = r#"nft 'add table inet underlay; add chain inet underlay out { type filter hook postrouting priority 300; }
    add rule inet underlay out oifname "egress-vxlan-v4" meta l4proto udp meta mark & 0xff000000 != 0 counter
    add rule inet underlay out oifname "egress-vxlan-v4" meta l4proto udp counter'"#;

/// What is steered and can not go by the tunnel does not go at all.
///
/// # Panics
/// When a packet goes elsewhere.
pub fn a_steered_pod_enters_the_overlay_with_its_own_address_or_does_not_leave<D: Backend>(
    host: Host<D>,
) {
    in_namespace(move || async move {
        let lab = Lab::new(&host);
        lab.program(&client()).await;
        run(UNDERLAY);
        lab.pod.send("10.6.1.92");
        arrived(&lab.far, "10.244.1.10", 1).await;
        lab.pod.send("fd00::1:92");
        arrived(&lab.far, "fd10:244:1::10", 1).await;
        let seen = run("nft list chain inet underlay out");
        let packets: Vec<&str> = seen
            .split("packets ")
            .skip(1)
            .filter_map(|rest| rest.split(' ').next())
            .collect();
        assert_eq!(
            packets,
            ["0", "2"],
            "the underlay's rules meet our mark: {seen}"
        );
        lab.count("steered", 2).await;
        lab.count("tunnelled", 2).await;
        run("ip rule del pref 99; ip -6 rule del pref 99");
        lab.pod.send("10.6.1.92");
        lab.count("drop_no_gateway", 1).await;
        lab.pod.send("fd00::1:92");
        lab.count("drop_no_gateway", 2).await;
        lab.pod.send("10.6.3.1");
        lab.count("drop_held", 1).await;
        lab.pod.send("10.6.1.93");
        lab.count("drop_start_gate", 1).await;
        assert_eq!(lab.server.seen_at_all(), "", "nothing reached the server");
    });
}

/// The pin decides, not the policy of the moment.
///
/// # Panics
/// When a packet goes elsewhere.
pub fn a_connection_keeps_its_way_when_the_policy_goes_and_ends_with_its_target<D: Backend>(
    host: Host<D>,
) {
    in_namespace(move || async move {
        let lab = Lab::new(&host);
        let mut desired = client();
        lab.program(&desired).await;
        let mut connection = lab.pod.connect("10.6.1.92");
        let mut lines = connection.stdin.take().unwrap();
        lines.write_all(b"1\n").unwrap();
        arrived(&lab.far, "10.244.1.10", 1).await;
        desired.pods.clear();
        lab.program(&desired).await;
        lines.write_all(b"2\n").unwrap();
        arrived(&lab.far, "10.244.1.10", 2).await;
        lab.pod.send("10.6.1.92");
        arrived(&lab.server, "10.6.1.1", 1).await;
        desired.targets.remove(&target(0x11));
        lab.program(&desired).await;
        lines.write_all(b"3\n").unwrap();
        lab.count("drop_no_gateway", 1).await;
        desired.pods = client().pods;
        desired.exits.insert(target(0x11));
        lab.program(&desired).await;
        lines.write_all(b"4\n").unwrap();
        lab.count("drop_no_gateway", 2).await;
        lab.pod.send("10.6.1.92");
        arrived(&lab.server, "10.6.1.1", 2).await;
        assert_eq!(
            (lab.far.seen("10.244.1.10"), lab.server.seen("10.244.1.10")),
            (2, 0)
        );
        drop(lines);
        connection.wait().unwrap();
    });
}

/// Sources at the exit.
///
/// # Panics
/// When a packet goes elsewhere.
pub fn what_exits_leaves_as_the_policy_says_and_strangers_do_not<D: Backend>(host: Host<D>) {
    in_namespace(move || async move {
        let lab = Lab::new(&host);
        let mut desired = gateway();
        desired.destinations.remove(&(class(2), range("0.0.0.0/0")));
        desired.destinations.insert(
            (class(2), range("10.6.1.0/24")),
            egress(0x11, SourceNat::Address(ip("10.6.0.201"))),
        );
        lab.program(&desired).await;
        lab.pod.send("10.6.1.92");
        arrived(&lab.server, "10.6.1.1", 1).await;
        lab.pod.send("10.6.2.1");
        arrived(&lab.server, "10.6.0.200", 1).await;
        lab.pod.send("fd00::2:1");
        arrived(&lab.server, "fd00::200", 1).await;
        lab.far.send("10.6.1.92");
        arrived(&lab.server, "10.6.0.201", 1).await;
        lab.count("exited", 4).await;
        lab.far.send("10.6.2.1");
        lab.count("drop_unknown_source", 1).await;
        desired.overlay.unknown_may_exit = true;
        lab.program(&desired).await;
        lab.far.send("10.6.2.1");
        arrived(&lab.server, "10.6.1.1", 2).await;
        lab.server.run("echo x > /dev/udp/10.6.1.1/7789");
        lab.count("drop_not_peer", 1).await;
        assert_eq!(lab.server.seen("10.244.9.9"), 0);
    });
}

/// Kept sources leave no trace in connection tracking, all others do.
///
/// # Panics
/// When a packet goes elsewhere.
pub fn what_leaves_a_gateway_as_itself_is_not_tracked_and_the_rest_is<D: Backend>(host: Host<D>) {
    in_namespace(move || async move {
        let lab = Lab::new(&host);
        let mut desired = gateway();
        desired.destinations.remove(&(class(2), range("0.0.0.0/0")));
        desired.destinations.insert(
            (class(2), range("10.6.1.0/24")),
            egress(0x11, SourceNat::Keep),
        );
        lab.program(&desired).await;
        lab.far.send("10.6.1.92");
        arrived(&lab.server, "10.250.3.4", 1).await;
        assert_eq!(lab.counted().await["exited"], 0, "nobody translated it");
        desired.pods.insert(ip("10.250.3.4"), class(1));
        lab.program(&desired).await;
        lab.far.send("10.6.1.92");
        arrived(&lab.server, "10.6.1.1", 1).await;
        lab.count("exited", 1).await;
        desired.pods.remove(&ip("10.250.3.4"));
        desired.accepts.clear();
        lab.program(&desired).await;
        lab.far.send("10.6.1.92");
        lab.count("drop_no_gateway", 1).await;
        assert_eq!(lab.server.seen("10.250.3.4"), 1);
    });
}

/// A segment that begins nothing.
///
/// # Panics
/// When a packet goes elsewhere.
pub fn what_belongs_to_no_connection_does_not_leave<D: Backend>(host: Host<D>) {
    in_namespace(move || async move {
        let lab = Lab::new(&host);
        lab.program(&client()).await;
        // A TCP segment that begins nothing is invalid where connection tracking is strict.
        run("sysctl -qw net.netfilter.nf_conntrack_tcp_loose=0");
        lab.pod.run(STRAY);
        lab.count("drop_no_gateway", 1).await;
        assert_eq!(lab.server.seen("10.244.1.10"), 0);
    });
}

/// Rules of somebody else keep packets out of connection tracking.
///
/// # Panics
/// When a packet goes elsewhere.
pub fn what_others_do_not_track_does_not_leave<D: Backend>(host: Host<D>) {
    in_namespace(move || async move {
        let lab = Lab::new(&host);
        lab.program(&client()).await;
        run("nft 'add table inet hardening; add chain inet hardening pre { type filter hook prerouting priority -300; }
            add rule inet hardening pre udp dport 9 notrack'");
        lab.pod.send("10.6.1.92");
        lab.count("drop_untracked", 1).await;
        lab.pod.send("fd00::1:92");
        lab.count("drop_untracked", 2).await;
        let mut gateway = gateway();
        gateway.destinations.remove(&(class(2), range("0.0.0.0/0")));
        gateway.destinations.insert(
            (class(2), range("10.6.1.0/24")),
            egress(0x11, SourceNat::NodeAddress),
        );
        lab.program(&gateway).await;
        lab.far.send("10.6.1.92");
        lab.count("drop_untracked", 3).await;
        gateway.destinations.insert(
            (class(2), range("10.6.1.0/24")),
            egress(0x11, SourceNat::Keep),
        );
        lab.program(&gateway).await;
        lab.far.send("10.6.1.92");
        arrived(&lab.server, "10.250.3.4", 1).await;
        assert_eq!(lab.server.seen("10.244.1.10"), 0);
    });
}

/// Sends an acknowledgement of nothing: a raw TCP header, with its checksum.
const STRAY: &str = "python3 - <<END
import socket, struct
head = struct.pack('!HHIIBBHHH', 4000, 80, 7, 9, 5 << 4, 0x10, 1024, 0, 0)
pseudo = socket.inet_aton('10.244.1.10') + socket.inet_aton('10.6.1.92') + struct.pack('!BBH', 0, 6, len(head))
total = sum(struct.unpack('!%dH' % ((len(pseudo) + len(head)) // 2), pseudo + head))
total = (total & 0xffff) + (total >> 16)
total = ~((total & 0xffff) + (total >> 16)) & 0xffff
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
raw.sendto(head[:16] + struct.pack('!H', total) + head[18:], ('10.6.1.92', 0))
END
";
