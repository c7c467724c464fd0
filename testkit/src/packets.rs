//! Packets through the kernel: a node between a pod, a server and the far end of its overlay. One
//! list for every policy backend.
//!
//! [`packet_tests!`](crate::packet_tests) makes a test of each check.
#![allow(clippy::unwrap_used)]

mod strays;

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use egressgateway::{
    Change, CounterSource, Driver, PolicyDesired,
    model::SourceNat,
    testing::worlds::{class, client, egress, gateway, ip, range, target},
};

use crate::{
    netns::in_namespace,
    pace::{fewer, patient},
    shell::{command, run},
};

pub use strays::{
    a_tunnel_takes_what_peers_send_to_the_address_that_they_know,
    no_pod_reaches_the_tunnel_of_any_node, what_comes_by_the_overlay_leaves_here_or_ends,
    what_is_translated_is_governed_by_where_it_leads_or_dropped,
};

/// What classifies the packets, and what the host's rules are kept with.
#[derive(Clone, Copy, Debug)]
pub struct Host<D> {
    /// The backend.
    pub backend: fn() -> D,
    /// Lines of a shell: a CNI that masquerades whatever leaves by another device than `pod0`.
    pub masquerade: &'static str,
    /// Whether the backend, on its own, can give a way to what somebody has translated.
    pub steers_translated: bool,
}

/// A policy backend as these checks need it.
pub trait Backend: Driver<Desired = PolicyDesired> + CounterSource + 'static {}

impl<D: Driver<Desired = PolicyDesired> + CounterSource + 'static> Backend for D {}

/// The checks as tests on one host: `packet_tests!(name, HOST)`.
#[macro_export]
macro_rules! packet_tests {
    ($name:ident, $host:expr) => {
        $crate::packet_tests! { $name, $host,
            a_steered_pod_enters_the_overlay_with_its_own_address_or_does_not_leave
            a_connection_keeps_its_way_when_the_policy_goes_and_ends_with_its_target
            what_exits_leaves_as_the_policy_says_and_strangers_do_not
            what_leaves_a_gateway_as_itself_is_not_tracked_and_the_rest_is
            what_belongs_to_no_connection_does_not_leave
            what_others_do_not_track_does_not_leave
            a_class_that_comes_changes_and_goes_lets_nothing_out_in_between
            an_exit_that_changes_uses_the_old_source_or_the_new_one
            what_comes_by_the_overlay_leaves_here_or_ends
            no_pod_reaches_the_tunnel_of_any_node
            a_tunnel_takes_what_peers_send_to_the_address_that_they_know
            what_is_translated_is_governed_by_where_it_leads_or_dropped
        }
    };
    ($name:ident, $host:expr, $($check:ident)+) => {
        mod $name {
            $(
                #[test]
                fn $check() {
                    $crate::packets::$check($host);
                }
            )+
        }
    };
}

/// Another network namespace, there as long as its process.
struct Neighbour(Child);

impl Neighbour {
    fn new() -> Self {
        let mut child = Command::new("unshare")
            .args(["-n", "sh", "-c", "echo ready; exec sleep 600"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "ready\n");
        Self(child)
    }

    /// Runs lines of a shell in it.
    fn run(&self, script: &str) -> String {
        let pid = self.0.id().to_string();
        command(&["nsenter", "-t", &pid, "-n", "bash", "-e"], script)
            .unwrap_or_else(|error| panic!("{script}: {error}"))
    }

    /// Sends one datagram of a new connection.
    fn send(&self, destination: &str) {
        self.run(&format!("echo x > /dev/udp/{destination}/9"));
    }

    /// A connection that sends a datagram per line.
    fn connect(&self, destination: &str) -> Child {
        let script =
            format!("exec 3<>/dev/udp/{destination}/9; while read line; do echo $line >&3; done");
        let pid = self.0.id().to_string();
        Command::new("nsenter")
            .args(["-t", &pid, "-n", "bash", "-c", &script])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// Sends first packets of connections to these, as many as it can.
    fn flood(&self, destinations: &[&str]) -> Flood {
        let pid = self.0.id().to_string();
        Flood(
            Command::new("nsenter")
                .args(["-t", &pid, "-n", "bash", "-c", FLOOD, "flood"])
                .args(destinations)
                .spawn()
                .unwrap(),
        )
    }

    /// What came, by source, as nft lists it.
    fn seen_at_all(&self) -> String {
        self.run(
            "(nft list set inet seen from4; nft list set inet seen from6) | grep elements || true",
        )
    }

    /// How many datagrams came with this source.
    fn seen(&self, source: &str) -> u64 {
        let listed = self.run("nft list set inet seen from4; nft list set inet seen from6");
        let after = listed.split(&format!(" {source} counter packets ")).nth(1);
        after.map_or(0, |text| text.split(' ').next().unwrap().parse().unwrap())
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Datagrams from ever new ports, until it is dropped.
struct Flood(Child);

impl Drop for Flood {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

const FLOOD: &str = "while :; do for to; do echo x > /dev/udp/$to/9; done; done";

/// Counts by source what arrives for port 9. Linux 5.10 counts nothing where the set itself says
/// so.
const SEEN: &str = "nft -f - <<END
add table inet seen
add set inet seen from4 { type ipv4_addr; flags dynamic; size 64; }
add set inet seen from6 { type ipv6_addr; flags dynamic; size 64; }
add chain inet seen pre { type filter hook prerouting priority 0; }
add rule inet seen pre udp dport 9 add @from4 { ip saddr counter }
add rule inet seen pre udp dport 9 add @from6 { ip6 saddr counter }
END
";

struct Lab<D> {
    pod: Neighbour,
    server: Neighbour,
    far: Neighbour,
    backend: D,
}

impl<D: Backend> Lab<D> {
    fn new(host: &Host<D>) -> Self {
        let [pod, server, far] = [(); 3].map(|()| Neighbour::new());
        let devices = [
            ("pod0", &pod, "10.244.1.1/24", "fd10:244:1::1/64"),
            ("out0", &server, "10.6.1.1/16", "fd00::1:1/104"),
            ("egress-vxlan-v4", &far, "172.31.0.1/24", "fd31::1/64"),
        ];
        let links = devices.map(|(device, neighbour, own, own6)| {
            let pid = neighbour.0.id();
            format!(
                "ip link add {device} type veth peer name eth0 netns {pid}\nip addr add {own} dev {device}\n\
                 ip addr add {own6} dev {device} nodad\nip link set {device} up\n"
            )
        });
        // A CNI that masquerades whatever leaves, and routes for the mark of target 11.
        let script = links.concat()
            + "ip link set lo up\nsysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.rp_filter=0 \
             net.ipv4.conf.egress-vxlan-v4.rp_filter=0\n\
             ip rule add pref 99 fwmark 0x11000000/0xff000000 lookup 100\nip -6 rule add pref 99 fwmark 0x11000000/0xff000000 lookup 100\n\
             ip route add default via 172.31.0.2 dev egress-vxlan-v4 table 100\n\
             ip -6 route add default via fd31::2 dev egress-vxlan-v4 table 100\n";
        // On a slow machine more time than the usual half minute passes between two datagrams of a
        // connection.
        run(&(script
            + host.masquerade
            + "\nsysctl -qw net.netfilter.nf_conntrack_udp_timeout=3600 net.netfilter.nf_conntrack_udp_timeout_stream=3600"));
        let up = "ip link set lo up; ip link set eth0 up\n";
        pod.run(&format!(
            "ip addr add 10.244.1.10/24 dev eth0; ip addr add 10.244.1.99/24 dev eth0; ip addr add fd10:244:1::10/64 dev eth0 nodad\n{up}\
             ip route add default via 10.244.1.1; ip -6 route add default via fd10:244:1::1\nip route add 10.6.1.93 via 10.244.1.1 src 10.244.1.99"
        ));
        server.run(&format!(
            "ip addr add 10.6.1.92/16 dev eth0; ip addr add 10.6.2.1/16 dev eth0\nip addr add fd00::1:92/104 dev eth0 nodad\n\
             ip addr add fd00::2:1/104 dev eth0 nodad\n{up}{SEEN}"
        ));
        far.run(&format!(
            "ip addr add 172.31.0.2/24 dev eth0; ip addr add fd31::2/64 dev eth0 nodad\nip addr add 10.244.9.9/32 dev lo; \
             ip addr add 10.250.3.4/32 dev lo\n{up}{SEEN}ip route add 10.6.1.92 via 172.31.0.1 src 10.250.3.4\n\
             ip route add 10.6.2.1 via 172.31.0.1 src 10.244.9.9"
        ));
        Self {
            pod,
            server,
            far,
            backend: (host.backend)(),
        }
    }

    async fn program(&self, desired: &PolicyDesired) {
        let change = self
            .backend
            .plan(desired, &self.backend.observe().await.unwrap())
            .unwrap();
        self.backend.apply(&change.plan).await.unwrap();
    }

    /// Goes through these states again and again while first packets of connections come.
    async fn race(&self, from: &Neighbour, to: &[&str], rounds: usize, states: &[PolicyDesired]) {
        // Before anything is there, nothing is governed.
        self.program(&states[0]).await;
        let mut state = self.backend.observe().await.unwrap();
        let flood = from.flood(to);
        let deadline = Instant::now() + patient(Duration::from_secs(10));
        while self.counted().await.values().all(|packets| *packets == 0) {
            assert!(
                Instant::now() < deadline,
                "no packet of the flood was counted"
            );
            tokio::task::yield_now().await;
        }
        for desired in std::iter::repeat_n(states, fewer(rounds)).flatten() {
            let Change { plan, after } = self.backend.plan(desired, &state).unwrap();
            self.backend.apply(&plan).await.unwrap();
            state = after;
        }
        drop(flood);
    }

    async fn counted(&self) -> BTreeMap<String, u64> {
        self.backend
            .counters()
            .await
            .unwrap()
            .into_iter()
            .map(|(name, counter)| (name, counter.packets))
            .collect()
    }

    /// Waits until the counter has this value, so that the packet is where it goes.
    async fn count(&self, counter: &str, expected: u64) {
        let deadline = Instant::now() + patient(Duration::from_secs(10));
        while self.counted().await[counter] != expected {
            assert!(
                Instant::now() < deadline,
                "{counter} should be {expected}: {:?}",
                self.counted().await
            );
            tokio::task::yield_now().await;
        }
    }
}

/// Waits until so many datagrams with this source arrived.
async fn arrived(at: &Neighbour, source: &str, expected: u64) {
    let deadline = Instant::now() + patient(Duration::from_secs(10));
    while at.seen(source) != expected {
        assert!(
            Instant::now() < deadline,
            "{source} should have arrived {expected} times, not {}",
            at.seen(source)
        );
        tokio::task::yield_now().await;
    }
}

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

/// A packet that comes while the rules change meets the old ones or the new ones, or is dropped;
/// never half of each.
///
/// # Panics
/// When a packet goes elsewhere.
pub fn a_class_that_comes_changes_and_goes_lets_nothing_out_in_between<D: Backend>(host: Host<D>) {
    /// How often all of it happens.
    const ROUNDS: usize = 40;
    in_namespace(move || async move {
        let lab = Lab::new(&host);
        // Who leads nowhere is held by the start gate; the others are steered. Nobody is let go.
        let mut unknown = client();
        for pod in ["10.244.1.10", "fd10:244:1::10"] {
            unknown.pods.remove(&ip(pod));
            unknown
                .start_gate
                .get_or_insert_default()
                .known
                .remove(&ip(pod));
        }
        unknown.destinations = unknown
            .destinations
            .into_iter()
            .filter(|((of, _), _)| *of != class(1))
            .collect();
        unknown.subnets = unknown
            .subnets
            .into_iter()
            .filter(|(_, of)| *of != class(1))
            .collect();
        let mut split = client();
        for (whole, parts) in [
            (
                "10.6.1.78-10.6.1.255",
                ["10.6.1.78-10.6.1.99", "10.6.1.100-10.6.1.255"],
            ),
            ("fd00::1:0/112", ["fd00::1:0/113", "fd00::1:8000/113"]),
        ] {
            split.destinations.remove(&(class(1), range(whole)));
            split.destinations.extend(parts.map(|part| {
                (
                    (class(1), range(part)),
                    egress(0x11, SourceNat::NodeAddress),
                )
            }));
        }
        let mut other = unknown.clone();
        for (pod, net) in [
            ("10.244.1.10", "10.6.0.0/16"),
            ("fd10:244:1::10", "fd00::/64"),
        ] {
            other.pods.insert(ip(pod), class(7));
            other
                .start_gate
                .get_or_insert_default()
                .known
                .insert(ip(pod));
            other
                .destinations
                .insert((class(7), range(net)), egress(0x11, SourceNat::NodeAddress));
        }
        lab.race(
            &lab.pod,
            &["10.6.1.92", "fd00::1:92"],
            ROUNDS,
            &[unknown, client(), split, other, client()],
        )
        .await;
        let counted = lab.counted().await;
        let [held, tunnelled] = ["drop_start_gate", "tunnelled"].map(|counter| counted[counter]);
        assert!(held > 0 && tunnelled > 0, "{counted:?}");
        assert_eq!(
            lab.server.seen_at_all(),
            "",
            "of {held} held and {tunnelled} steered"
        );
    });
}

/// The same at the exit.
///
/// # Panics
/// When a packet goes elsewhere.
pub fn an_exit_that_changes_uses_the_old_source_or_the_new_one<D: Backend>(host: Host<D>) {
    /// How often all of it happens.
    const ROUNDS: usize = 40;
    in_namespace(move || async move {
        let lab = Lab::new(&host);
        let mut unknown = gateway();
        unknown.destinations = unknown
            .destinations
            .into_iter()
            .filter(|((of, _), _)| *of != class(2))
            .collect();
        unknown.subnets = unknown
            .subnets
            .into_iter()
            .filter(|(_, of)| *of != class(2))
            .collect();
        let [one, other] = ["10.6.0.201", "10.6.0.202"].map(|source| {
            let mut desired = gateway();
            desired.destinations.remove(&(class(2), range("0.0.0.0/0")));
            desired.destinations.insert(
                (class(2), range("10.6.1.0/24")),
                egress(0x11, SourceNat::Address(ip(source))),
            );
            desired
        });
        lab.race(
            &lab.far,
            &["10.6.1.92"],
            ROUNDS,
            &[unknown, one.clone(), other, one],
        )
        .await;
        let counted = lab.counted().await;
        assert!(counted["drop_unknown_source"] > 0, "{counted:?}");
        let seen = ["10.6.0.201", "10.6.0.202"].map(|source| lab.server.seen(source));
        assert!(seen.iter().all(|seen| *seen > 0), "{seen:?}");
        assert_eq!(
            lab.server
                .run("nft list set inet seen from4 | grep -o ' counter packets' | wc -l"),
            "2\n",
            "no other source than these"
        );
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
