//! A node between a pod, a server and the far end of its overlay, each in a network namespace.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use egressgateway::{Change, CounterSource, Driver, PolicyDesired};

use crate::{
    pace::{fewer, patient},
    shell::{command, run},
};

/// What classifies the packets, and what the host's rules are kept with.
#[derive(Clone, Copy, Debug)]
pub struct Host<D> {
    /// The backend.
    pub backend: fn() -> D,
    /// Lines of a shell: a CNI that masquerades whatever leaves by another device than `pod0`.
    pub masquerade: &'static str,
    /// Lines of a shell that load what a version left that named sets and chains otherwise, for the
    /// worlds `client` and `gateway`.
    pub former: fn(&str) -> String,
    /// Whether the backend, on its own, can give a way to what somebody has translated.
    pub steers_translated: bool,
}

/// A policy backend as these checks need it.
pub trait Backend: Driver<Desired = PolicyDesired> + CounterSource + 'static {}

impl<D: Driver<Desired = PolicyDesired> + CounterSource + 'static> Backend for D {}

/// Another network namespace, there as long as its process.
pub(super) struct Neighbour(Child);

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
    pub(super) fn run(&self, script: &str) -> String {
        let pid = self.0.id().to_string();
        command(&["nsenter", "-t", &pid, "-n", "bash", "-e"], script)
            .unwrap_or_else(|error| panic!("{script}: {error}"))
    }

    pub(super) fn pid(&self) -> String {
        self.0.id().to_string()
    }

    /// Sends one datagram of a new connection.
    pub(super) fn send(&self, destination: &str) {
        self.run(&format!("echo x > /dev/udp/{destination}/9"));
    }

    /// A connection that sends a datagram per line.
    pub(super) fn connect(&self, destination: &str) -> Child {
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
    pub(super) fn flood(&self, destinations: &[&str]) -> Flood {
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
    pub(super) fn seen_at_all(&self) -> String {
        self.run(
            "(nft list set inet seen from4; nft list set inet seen from6) | grep elements || true",
        )
    }

    /// How many datagrams came with this source.
    pub(super) fn seen(&self, source: &str) -> u64 {
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
pub(super) struct Flood(Child);

impl Drop for Flood {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

const FLOOD: &str = "while :; do for to; do echo x > /dev/udp/$to/9; done; done";

/// Counts by source what arrives for port 9. Linux 5.10 counts nothing where the set itself says
/// so.
pub(super) const SEEN: &str = "nft -f - <<END
add table inet seen
add set inet seen from4 { type ipv4_addr; flags dynamic; size 64; }
add set inet seen from6 { type ipv6_addr; flags dynamic; size 64; }
add chain inet seen pre { type filter hook prerouting priority 0; }
add rule inet seen pre udp dport 9 add @from4 { ip saddr counter }
add rule inet seen pre udp dport 9 add @from6 { ip6 saddr counter }
END
";

/// A node, and its neighbours.
pub(super) struct Lab<D> {
    pub(super) pod: Neighbour,
    pub(super) server: Neighbour,
    pub(super) far: Neighbour,
    pub(super) backend: D,
}

impl<D: Backend> Lab<D> {
    pub(super) fn new(host: &Host<D>) -> Self {
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

    pub(super) async fn program(&self, desired: &PolicyDesired) {
        let change = self
            .backend
            .plan(desired, &self.backend.observe().await.unwrap())
            .unwrap();
        self.backend.apply(&change.plan).await.unwrap();
    }

    /// Goes through these states again and again while first packets of connections come.
    pub(super) async fn race(
        &self,
        from: &Neighbour,
        to: &[&str],
        rounds: usize,
        states: &[PolicyDesired],
    ) {
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

    pub(super) async fn counted(&self) -> BTreeMap<String, u64> {
        self.backend
            .counters()
            .await
            .unwrap()
            .into_iter()
            .map(|(name, counter)| (name, counter.packets))
            .collect()
    }

    /// Waits until the counter has this value, so that the packet is where it goes.
    pub(super) async fn count(&self, counter: &str, expected: u64) {
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
pub(super) async fn arrived(at: &Neighbour, source: &str, expected: u64) {
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
