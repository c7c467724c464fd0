//! Packets through the kernel: a node between a pod, a server and the far end of its overlay.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use egressgateway::{CounterSource, Driver, PolicyDesired, model::SourceNat};
use egressgateway_backend_nftables::{Nftables, NftablesSettings};
use egressgateway_testkit::netns::in_namespace;
use support::{class, command, egress, gateway, ip, range, target, world};

/// Another network namespace, there as long as its process.
struct Neighbour(Child);

impl Neighbour {
    fn new() -> Self {
        let mut child =
            Command::new("unshare").args(["-n", "sh", "-c", "echo ready; exec sleep 600"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self(child)
    }

    /// Runs lines of a shell in it.
    fn run(&self, script: &str) -> String {
        let pid = self.0.id().to_string();
        command(&["nsenter", "-t", &pid, "-n", "bash", "-e"], script).unwrap_or_else(|error| panic!("{script}: {error}"))
    }

    /// Sends one datagram of a new connection.
    fn send(&self, destination: &str) {
        self.run(&format!("echo x > /dev/udp/{destination}/9"));
    }

    /// A connection that sends a datagram per line.
    fn connect(&self, destination: &str) -> Child {
        let script = format!("exec 3<>/dev/udp/{destination}/9; while read line; do echo $line >&3; done");
        let pid = self.0.id().to_string();
        Command::new("nsenter").args(["-t", &pid, "-n", "bash", "-c", &script]).stdin(Stdio::piped()).spawn().unwrap()
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

/// Counts by source what arrives for port 9.
const SEEN: &str = "nft -f - <<END
add table inet seen
add set inet seen from4 { type ipv4_addr; flags dynamic; size 64; counter; }
add set inet seen from6 { type ipv6_addr; flags dynamic; size 64; counter; }
add chain inet seen pre { type filter hook prerouting priority 0; }
add rule inet seen pre udp dport 9 add @from4 { ip saddr }
add rule inet seen pre udp dport 9 add @from6 { ip6 saddr }
END
";

struct Lab {
    pod: Neighbour,
    server: Neighbour,
    far: Neighbour,
    nftables: Nftables,
}

impl Lab {
    fn new() -> Self {
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
             ip -6 route add default via fd31::2 dev egress-vxlan-v4 table 100\n\
             nft add table inet cni\nnft 'add chain inet cni post { type nat hook postrouting priority 100; }'\n\
             nft add rule inet cni post oifname != pod0 masquerade\n";
        command(&["bash", "-e"], &script).unwrap();
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
        Self { pod, server, far, nftables: Nftables::new(NftablesSettings::default(), Arc::new(())) }
    }

    async fn program(&self, desired: &PolicyDesired) {
        let change = self.nftables.plan(desired, &self.nftables.observe().await.unwrap()).unwrap();
        self.nftables.apply(&change.plan).await.unwrap();
    }

    async fn counted(&self) -> BTreeMap<String, u64> {
        self.nftables.counters().await.unwrap().into_iter().map(|(name, counter)| (name, counter.packets)).collect()
    }

    /// Waits until the counter has this value, so that the packet is where it goes.
    async fn count(&self, counter: &str, expected: u64) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.counted().await[counter] != expected {
            assert!(Instant::now() < deadline, "{counter} should be {expected}: {:?}", self.counted().await);
            tokio::task::yield_now().await;
        }
    }
}

/// Waits until so many datagrams with this source arrived.
async fn arrived(at: &Neighbour, source: &str, expected: u64) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while at.seen(source) != expected {
        assert!(Instant::now() < deadline, "{source} should have arrived {expected} times, not {}", at.seen(source));
        tokio::task::yield_now().await;
    }
}

#[test]
fn a_steered_pod_enters_the_overlay_with_its_own_address_or_does_not_leave() {
    in_namespace(|| async {
        let lab = Lab::new();
        lab.program(&world()).await;
        lab.pod.send("10.6.1.92");
        arrived(&lab.far, "10.244.1.10", 1).await;
        lab.pod.send("fd00::1:92");
        arrived(&lab.far, "fd10:244:1::10", 1).await;
        lab.count("steered", 2).await;
        lab.count("tunnelled", 2).await;
        command(&["bash", "-e"], "ip rule del pref 99; ip -6 rule del pref 99").unwrap();
        lab.pod.send("10.6.1.92");
        lab.count("drop_no_gateway", 1).await;
        lab.pod.send("fd00::1:92");
        lab.count("drop_no_gateway", 2).await;
        lab.pod.send("10.6.3.1");
        lab.count("drop_held", 1).await;
        lab.pod.send("10.6.1.93");
        lab.count("drop_start_gate", 1).await;
        assert_eq!(lab.server.run("nft list ruleset | grep -c 'counter packets' || true"), "0\n", "nothing reached the server");
    });
}

#[test]
fn a_connection_keeps_its_way_when_the_policy_goes_and_ends_with_its_target() {
    in_namespace(|| async {
        let lab = Lab::new();
        let mut desired = world();
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
        assert_eq!((lab.far.seen("10.244.1.10"), lab.server.seen("10.244.1.10")), (2, 0));
        drop(lines);
        connection.wait().unwrap();
    });
}

#[test]
fn what_exits_leaves_as_the_policy_says_and_strangers_do_not() {
    in_namespace(|| async {
        let lab = Lab::new();
        let mut desired = gateway();
        desired.destinations.remove(&(class(2), range("0.0.0.0/0")));
        desired.destinations.insert((class(2), range("10.6.1.0/24")), egress(0x11, SourceNat::Address(ip("10.6.0.201"))));
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
