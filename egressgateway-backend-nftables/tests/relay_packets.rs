//! Packets through a relay: clients that translate by hand, a gateway, and what is outside.
//!
//! ```text
//!   pod ── c1 ┐                                  c1, c2: clients   10.6.0.11, .12   tunnel 172.31.0.11, .12
//!          c2 ┼─ 10.6.0.0/24 ── router ── 10.9.0.0/24 ── server
//!     gateway ┘  (the test's own namespace)      egress addresses 10.6.0.100, fd06::100, on the gateway
//! ```
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    fs::File,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use egressgateway::{
    CounterSource, Driver, NextHop, Plan, RelayDesired, RelayNode,
    model::{MacAddress, NodeName},
    testing::worlds::ip,
};
use egressgateway_backend_nftables::{NftablesSettings, Relay};
use egressgateway_testkit::{
    netns::{in_namespace, wait_for_links},
    shell::run,
};
use nix::sched::{CloneFlags, setns};

/// Namespaces by `ip netns`, which the test's own `/run` holds. The gateway is the test's own.
const NETWORK: &str = r#"
mkdir -p /run/netns
quiet='net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.all.accept_dad=0
       net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 net.ipv4.icmp_ratelimit=0 net.ipv6.icmp.ratelimit=0'
sysctl -qw $quiet
ip link set lo up
for n in lan router server c1 c2 pod; do ip netns add $n; ip -n $n link set lo up; ip netns exec $n sysctl -qw $quiet; done
ip -n lan link add lan type bridge mcast_snooping 0; ip -n lan link set lan up
port() { # NAME, as seen from $2...
    ip -n lan link add $1 type veth peer name eth0 netns $2; ip -n lan link set $1 master lan up
}
port p1 c1; port p2 c2; port p3 router
ip link add eth0 type veth peer name p4 netns lan; ip -n lan link set p4 master lan up
ip netns attach gateway $$
host() { # NUMBER, then how to run ip there
    local number=$1; shift
    "$@" link set eth0 up
    "$@" addr add 10.6.0.$number/24 dev eth0; "$@" addr add fd06::$number/64 dev eth0 nodad
    [ $number = 1 ] || { "$@" route add default via 10.6.0.1; "$@" -6 route add default via fd06::1; }
}
host 1 ip -n router; host 11 ip -n c1; host 12 ip -n c2; host 21 ip
ip -n router link add eth1 type veth peer name eth0 netns server
ip -n router link set eth1 up; ip -n server link set eth0 up
ip -n router addr add 10.9.0.1/24 dev eth1; ip -n router addr add fd09::1/64 dev eth1 nodad
ip -n server addr add 10.9.0.2/24 dev eth0; ip -n server addr add fd09::2/64 dev eth0 nodad
ip -n server route add default via 10.9.0.1; ip -n server -6 route add default via fd09::1
ip -n c1 link add pod type veth peer name eth0 netns pod; ip -n c1 link set pod up; ip -n pod link set eth0 up
ip -n c1 addr add 192.168.1.1/24 dev pod; ip -n c1 addr add fd10::1/64 dev pod nodad
ip -n pod addr add 192.168.1.2/24 dev eth0; ip -n pod addr add fd10::2/64 dev eth0 nodad
ip -n pod route add default via 192.168.1.1 mtu 1450; ip -n pod -6 route add default via fd10::1 mtu 1450
for f in -4 -6; do ip -n c1 $f rule add iif pod lookup 100 pref 99; done
ip addr add 10.6.0.100/32 dev eth0; ip addr add fd06::100/128 dev eth0 nodad preferred_lft 0
ip addr add 192.168.3.2/32 dev lo; ip addr add fd30::2/128 dev lo
# What any node has: connection tracking, and rules of others against what belongs to no connection.
nft -f - <<END
table inet others {
    counter answer_mark { }
    counter tracked { }
    counter scratch_left { }
    counter said { }
    chain raw { type filter hook prerouting priority -300; iifname "vx" meta mark & 0xff000000 == 0x10000000 counter name answer_mark meta mark set meta mark & 0x00ffffff; }
    chain forward { type filter hook forward priority filter; ct state invalid counter drop; iifname "vx" ct state != untracked counter name tracked; }
    chain left { type filter hook postrouting priority 300; udp dport 7789 meta priority & ffff:0 == e667:0 counter name scratch_left; }
    chain said { type filter hook output priority 0; icmp type destination-unreachable counter name said; icmpv6 type destination-unreachable counter name said; }
    chain own {
        type nat hook postrouting priority srcnat
        ip saddr 192.168.3.2 meta l4proto { tcp, udp, icmp } snat ip to 10.6.0.100:4096-4351
        ip6 saddr fd30::2 meta l4proto { tcp, udp, ipv6-icmp } snat ip6 to [fd06::100]:4096-4351
    }
}
END
"#;

/// The tunnel's device of one node, with its hardware address, and the ways to the others.
fn tunnel(number: u8) -> String {
    format!(
        "ip link add vx address {} mtu 1450 type vxlan id 100 dstport 7789 local 10.6.0.{number} dev eth0 nolearning udpcsum
         sysctl -qw net.ipv4.conf.vx.rp_filter=2 net.ipv4.conf.vx.accept_local=1
         ip link set vx up; ip addr add 172.31.0.{number}/16 dev vx; ip addr add fd31::{number}/112 dev vx nodad
         {}",
        mac(number),
        peers(number)
    )
}

/// The ways to the others, which go when the device's own hardware address changes.
fn peers(number: u8) -> String {
    let peers = [11, 12, 21].into_iter().filter(|peer| *peer != number);
    let lines: Vec<String> = peers
        .map(|peer| {
            format!(
                "bridge fdb replace {mac} dev vx dst 10.6.0.{peer} self permanent
                 ip neigh replace 172.31.0.{peer} lladdr {mac} dev vx nud permanent
                 ip -6 neigh replace fd31::{peer} lladdr {mac} dev vx nud permanent",
                mac = mac(peer)
            )
        })
        .collect();
    lines.join("\n")
}

fn mac(number: u8) -> MacAddress {
    MacAddress([0xfe, 0, 0, 0, 0, number])
}

fn within(namespace: &str, lines: &str) -> String {
    run(&format!(
        "ip netns exec {namespace} bash -e <<'LINES'\n{lines}\nLINES"
    ))
}

/// A client's translation to these ports.
fn translates_to(namespace: &str, ports: &str) {
    within(
        namespace,
        &format!(
            "nft -f - <<END
table inet client
delete table inet client
table inet client {{
    chain post {{
        type nat hook postrouting priority 95
        oifname \"vx\" meta l4proto {{ tcp, udp, icmp }} snat ip to 10.6.0.100:{ports}
        oifname \"vx\" meta l4proto {{ tcp, udp, ipv6-icmp }} snat ip6 to [fd06::100]:{ports}
    }}
}}
END"
        ),
    );
}

/// Runs `work` on a thread in that namespace.
fn at<T: Send>(namespace: &str, work: impl FnOnce() -> T + Send) -> T {
    let file = File::open(format!("/run/netns/{namespace}")).unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

const ADDRESSES: [&str; 2] = ["10.6.0.100", "fd06::100"];
const SERVERS: [&str; 2] = ["10.9.0.2", "fd09::2"];
const PORT: u16 = 7000;
const PATIENCE: Duration = Duration::from_secs(1);
/// A machine with much to do loses packets.
const ATTEMPTS: usize = 5;

fn node(number: u8) -> (NodeName, RelayNode) {
    let hops = [format!("172.31.0.{number}"), format!("fd31::{number}")].map(|via| NextHop {
        device: "vx".to_owned(),
        via: ip(&via),
        encap: None,
    });
    let node = RelayNode {
        hops: hops.into_iter().collect(),
        underlay: [
            ip(&format!("10.6.0.{number}")),
            ip(&format!("fd06::{number}")),
        ]
        .into_iter()
        .collect(),
        mac: mac(number),
    };
    (NodeName::from(format!("node{number}").as_str()), node)
}

/// c1 has ports 2048 to 3071, c2 3072 to 4095, the gateway 4096 to 4351.
fn desired() -> RelayDesired {
    let units = [(11, 8..=11), (12, 12..=15), (21, 16..=16)];
    let bindings = units.into_iter().flat_map(|(number, units)| {
        units.flat_map(move |unit| {
            ADDRESSES.map(|address| ((ip(address), unit), node(number).0.clone()))
        })
    });
    RelayDesired {
        addresses: ADDRESSES.map(ip).into_iter().collect(),
        bindings: bindings.collect(),
        own: Some(node(21).0),
        nodes: [node(11), node(12)].into_iter().collect(),
        outside: ["eth0".to_owned()].into_iter().collect(),
        overlay: ["vx".to_owned()].into_iter().collect(),
        port: 7789,
    }
}

struct World {
    relay: Relay,
}

impl World {
    async fn new() -> Self {
        run(NETWORK);
        run(&tunnel(21));
        within("c1", &tunnel(11));
        within("c2", &tunnel(12));
        wait_for_links();
        within(
            "c1",
            "ip route add default via 172.31.0.21 dev vx onlink table 100; ip -6 route add default via fd31::21 dev vx onlink table 100",
        );
        within(
            "c2",
            "ip route add 10.9.0.0/24 via 172.31.0.21 dev vx onlink; ip -6 route add fd09::/64 via fd31::21 dev vx onlink",
        );
        translates_to("c1", "2048-3071");
        translates_to("c2", "3072-4095");
        for server in SERVERS {
            at("server", || serve(ip(server)));
        }
        let world = Self {
            relay: Relay::new(NftablesSettings::default(), Arc::new(())),
        };
        world.reach(&desired()).await;
        world
    }

    /// Whether there was something to do.
    async fn reach(&self, desired: &RelayDesired) -> bool {
        let observed = self.relay.observe().await.unwrap();
        let change = self.relay.plan(desired, &observed).unwrap();
        self.relay.apply(&change.plan).await.unwrap();
        !change.plan.is_empty()
    }

    async fn counted(&self) -> BTreeMap<String, u64> {
        let counters = self.relay.counters().await.unwrap().into_iter();
        counters
            .map(|(name, counter)| (name, counter.packets))
            .filter(|(_, packets)| *packets != 0)
            .collect()
    }

    /// What was counted since then, by name, without how often.
    async fn counted_since(&self, before: &BTreeMap<String, u64>) -> Vec<String> {
        let now = self.counted().await.into_iter();
        now.filter(|(name, packets)| before.get(name) != Some(packets))
            .map(|(name, _)| name)
            .collect()
    }
}

/// Echoes what comes by UDP and TCP, with the source first.
fn serve(address: IpAddr) {
    let udp = UdpSocket::bind((address, PORT)).unwrap();
    let tcp = TcpListener::bind((address, PORT)).unwrap();
    std::thread::spawn(move || {
        let mut buffer = vec![0; 65536];
        while let Ok((length, from)) = udp.recv_from(&mut buffer) {
            let answer = [format!("{from} ").as_bytes(), &buffer[..length]].concat();
            let _ = udp.send_to(&answer, from);
        }
    });
    std::thread::spawn(move || {
        for stream in tcp.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let _ = write!(stream, "{} ", stream.peer_addr().unwrap());
                let mut buffer = [0; 1024];
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    let _ = stream.write_all(&buffer[..length]);
                }
            });
        }
    });
}

/// The source that the server sees of a datagram of this length, and whether the echo is whole.
fn ask_udp(namespace: &str, from: &str, server: &str, length: usize) -> Option<SocketAddr> {
    at(namespace, || {
        let socket = UdpSocket::bind((ip(from), 0)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.connect((ip(server), PORT)).unwrap();
        let data = vec![b'x'; length];
        let mut buffer = vec![0; 65536];
        for _ in 0..ATTEMPTS {
            let _ = socket.send(&data);
            if let Ok(length) = socket.recv(&mut buffer) {
                let text = String::from_utf8(buffer[..length].to_vec()).unwrap();
                let (source, echo) = text.split_once(' ').unwrap();
                assert_eq!(echo.len(), data.len());
                return Some(source.parse().unwrap());
            }
        }
        None
    })
}

/// A connection that has begun, with the source that the server sees.
fn open_tcp(namespace: &str, server: &str) -> Option<(TcpStream, SocketAddr)> {
    at(namespace, || {
        let address = SocketAddr::new(ip(server), PORT);
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE * 4).ok()?;
        stream.set_read_timeout(Some(PATIENCE * 4)).unwrap();
        let mut source = String::new();
        while !source.ends_with(' ') {
            let mut byte = [0];
            stream.read_exact(&mut byte).ok()?;
            source.push(char::from(byte[0]));
        }
        Some((stream, source.trim().parse().unwrap()))
    })
}

fn echo_tcp(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"data")?;
    stream.read_exact(&mut [0; 4])
}

/// One ping; what it says.
fn ping(namespace: &str, options: &str, server: &str) -> String {
    within(
        namespace,
        &format!("ping -n -c 3 -i 0.2 -W 2 {options} {server} 2>&1 || true"),
    )
}

fn answered(said: &str) -> bool {
    said.contains("bytes from")
}

/// What the gateway's connection tracking holds of the egress addresses.
fn tracked() -> String {
    let entries = std::fs::read_to_string("/proc/thread-self/net/nf_conntrack").unwrap_or_default();
    // IPv6 addresses are written in full there.
    let lines = entries
        .lines()
        .filter(|line| line.contains("10.6.0.100") || line.contains(":0100 "));
    lines.map(|line| line.to_owned() + "\n").collect()
}

fn others(counter: &str) -> u64 {
    let text = run(&format!("nft list counter inet others {counter}"));
    let number = text.split("packets ").nth(1).unwrap();
    number.split(' ').next().unwrap().parse().unwrap()
}

const PODS: [(&str, &str); 2] = [("192.168.1.2", "10.9.0.2"), ("fd10::2", "fd09::2")];
const OWN: [(&str, &str); 2] = [("192.168.3.2", "10.9.0.2"), ("fd30::2", "fd09::2")];

#[test]
fn connections_go_out_and_come_back_and_the_gateway_keeps_nothing_of_them() {
    in_namespace(|| async {
        let world = World::new().await;
        for ((pod, server), egress) in PODS.into_iter().zip(ADDRESSES) {
            let mine = |source: SocketAddr| {
                source.ip() == ip(egress) && (2048..3072).contains(&source.port())
            };
            assert!(
                ask_udp("pod", pod, server, 10).is_some_and(mine),
                "{server}"
            );
            let (mut stream, source) = open_tcp("pod", server).unwrap();
            assert!(mine(source), "{source}");
            echo_tcp(&mut stream).unwrap();
            // The kernel hands on many segments as one.
            let mut writer = stream.try_clone().unwrap();
            let sent = std::thread::spawn(move || writer.write_all(&vec![b'x'; 2_000_000]));
            stream.read_exact(&mut vec![0; 2_000_000]).unwrap();
            sent.join().unwrap().unwrap();
            assert!(answered(&ping("pod", "", server)), "{server}");
            // From c2's block, by c2.
            let theirs = ask_udp(
                "c2",
                if pod.contains(':') {
                    "fd31::12"
                } else {
                    "172.31.0.12"
                },
                server,
                10,
            );
            assert!(
                theirs.is_some_and(|source| (3072..4096).contains(&source.port())),
                "{theirs:?}"
            );
        }
        assert_eq!(tracked(), "");
        assert_eq!(others("tracked"), 0);
        assert!(others("answer_mark") > 10, "the policy table is told");
        assert_eq!(world.counted().await, BTreeMap::new());
        run("sysctl -qw net.ipv4.conf.vx.accept_local=0");
        assert!(
            !answered(&ping("pod", "-c 1 -W 1", SERVERS[0])),
            "the tunnel's device needs that parameter while the address is here"
        );
    });
}

#[test]
fn errors_find_the_pod_that_they_are_about() {
    in_namespace(|| async {
        let world = World::new().await;
        within("router", "ip link set eth1 mtu 1300");
        for (pod, server) in PODS {
            let refused = at("pod", || {
                let socket = UdpSocket::bind((ip(pod), 0)).unwrap();
                socket.set_read_timeout(Some(PATIENCE)).unwrap();
                socket.connect((ip(server), PORT + 1)).unwrap();
                (0..ATTEMPTS).any(|_| {
                    let _ = socket.send(b"x");
                    socket
                        .recv(&mut [0; 16])
                        .is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
                })
            });
            assert!(refused, "{server}: nothing listens there");
            let narrow = ping("pod", "-M do -s 1350", server);
            assert!(
                narrow.contains("mtu=1300") || narrow.contains("mtu = 1300"),
                "{narrow}"
            );
            // What the gateway itself says goes to its own address.
            let too_far = ping("pod", "-t 2", server);
            let gateway = if pod.contains(':') {
                "fd31::21"
            } else {
                "172.31.0.21"
            };
            assert!(
                too_far.contains("exceeded")
                    && (too_far.contains(gateway)
                        || too_far.contains("10.6.0.21")
                        || too_far.contains("fd06::21")
                        || too_far.contains("100")),
                "{too_far}"
            );
        }
        assert_eq!(tracked(), "");
        assert_eq!(world.counted().await, BTreeMap::new());
    });
}

#[test]
fn errors_of_pods_go_out() {
    in_namespace(|| async {
        let world = World::new().await;
        for (pod, server) in PODS {
            // The pod asks and goes away; the late answer finds nobody, and the server is told.
            let told = at("server", || {
                let late = UdpSocket::bind((ip(server), PORT + 2)).unwrap();
                late.set_read_timeout(Some(PATIENCE)).unwrap();
                let mut buffer = [0; 16];
                let source = (0..ATTEMPTS).find_map(|_| {
                    at("pod", || {
                        let socket = UdpSocket::bind((ip(pod), 0)).unwrap();
                        let _ = socket.send_to(b"x", (ip(server), PORT + 2));
                    });
                    late.recv_from(&mut buffer).ok().map(|(_, source)| source)
                });
                late.connect(source.unwrap()).unwrap();
                (0..ATTEMPTS).any(|_| {
                    let _ = late.send(b"x");
                    late.recv(&mut buffer)
                        .is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
                })
            });
            assert!(told, "{server}");
        }
        assert_eq!(world.counted().await, BTreeMap::new());
    });
}

#[test]
fn fragments_find_their_way_and_none_goes_without_the_first() {
    in_namespace(|| async {
        let world = World::new().await;
        for (pod, server) in PODS {
            for length in [2000, 4000, 20000] {
                assert!(
                    ask_udp("pod", pod, server, length).is_some(),
                    "{server} {length}"
                );
            }
            assert!(answered(&ping("pod", "-s 4000", server)), "{server}");
        }
        for (own, server) in OWN {
            assert!(ask_udp("gateway", own, server, 4000).is_some(), "{own}");
        }
        assert_eq!(tracked_by_others(), "");
        assert_eq!(others("scratch_left"), 0);
        assert_eq!(world.counted().await, BTreeMap::new());
        // The same answers, without what carries the ports.
        within(
            "router",
            "nft 'table netdev t { chain c { type filter hook egress device eth0 priority 0; ip frag-off & 0x1fff == 0 ip frag-off & 0x2000 != 0 drop; }; }'",
        );
        let before = world.counted().await;
        at("pod", || {
            let socket = UdpSocket::bind((ip(PODS[0].0), 0)).unwrap();
            socket
                .send_to(&[b'x'; 4000], (ip(PODS[0].1), PORT))
                .unwrap();
        });
        let end = Instant::now() + PATIENCE * 5;
        while world.counted_since(&before).await != ["drop_fragment"] {
            assert!(Instant::now() < end, "{:?}", world.counted().await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
}

/// What is tracked of others' ports.
fn tracked_by_others() -> String {
    let port = |word: &str| {
        let port = word.split_once("port=")?.1.parse::<u16>().ok()?;
        (2048..4096).contains(&port).then_some(())
    };
    let lines = tracked();
    let lines = lines
        .lines()
        .filter(|line| line.split(' ').any(|word| port(word).is_some()));
    lines.map(|line| line.to_owned() + "\n").collect()
}

#[test]
fn this_nodes_own_connections_go_up_the_stack() {
    in_namespace(|| async {
        let world = World::new().await;
        for (own, server) in OWN {
            let source = ask_udp("gateway", own, server, 10);
            assert!(
                source.is_some_and(|source| (4096..4352).contains(&source.port())),
                "{source:?}"
            );
            let refused = at("gateway", || {
                let socket = UdpSocket::bind((ip(own), 0)).unwrap();
                socket.set_read_timeout(Some(PATIENCE)).unwrap();
                socket.connect((ip(server), PORT + 1)).unwrap();
                let _ = socket.send(b"x");
                socket.recv(&mut [0; 16]).unwrap_err().kind()
            });
            assert_eq!(refused, ErrorKind::ConnectionRefused, "{server}");
            assert!(
                answered(&ping("gateway", &format!("-I {own}"), server)),
                "{own}"
            );
        }
        // Who pings an egress address is answered by the node that has it, and by nobody else.
        for address in ADDRESSES {
            assert!(answered(&ping("server", "", address)), "{address}");
        }
        assert_eq!(world.counted().await, BTreeMap::new());
        run("ip addr del 10.6.0.100/32 dev eth0");
        within("router", "ip route add 10.6.0.100 via 10.6.0.21");
        assert!(!answered(&ping("server", "", ADDRESSES[0])));
        assert_eq!(world.counted_since(&BTreeMap::new()).await, ["drop_other"]);
        // A routed address works as well.
        assert!(ask_udp("pod", PODS[0].0, PODS[0].1, 10).is_some());
    });
}

#[test]
fn what_a_node_does_not_have_it_cant_use() {
    in_namespace(|| async {
        let world = World::new().await;
        let other_mac = |number: u8| {
            let address = format!("ip link set vx address {}\n{}", mac(number), peers(11));
            within("c1", &address);
        };
        let refused = |ports: &'static str, counter: &'static str| {
            let world = &world;
            async move {
                translates_to("c1", ports);
                let before = world.counted().await;
                for (pod, server) in PODS {
                    let heard = at("pod", || {
                        let socket = UdpSocket::bind((ip(pod), 0)).unwrap();
                        socket
                            .set_read_timeout(Some(Duration::from_millis(300)))
                            .unwrap();
                        let _ = socket.send_to(b"x", (ip(server), PORT));
                        socket.recv(&mut [0; 16]).is_ok()
                    });
                    assert!(!heard, "{ports}");
                    let short = ping("pod", "-c 1 -W 1", server);
                    assert!(!answered(&short), "{ports}");
                }
                assert_eq!(world.counted_since(&before).await, [counter], "{ports}");
            }
        };
        refused("3072-4095", "drop_not_owner").await;
        refused("5120-5375", "drop_not_owner").await;
        refused("4096-4351", "drop_not_owner").await;
        other_mac(12);
        refused("3072-4095", "drop_not_peer").await;
        refused("2048-3071", "drop_not_peer").await;
        other_mac(11);
        translates_to("c1", "2048-3071");
        assert!(
            ask_udp("pod", PODS[0].0, PODS[0].1, 10).is_some(),
            "as ever"
        );
        // A node without ports is free to use the tunnel, but not as one that has some.
        let mut fewer = desired();
        fewer.nodes.remove(&node(11).0);
        fewer.bindings = fewer
            .bindings
            .iter()
            .filter(|(_, name)| **name != node(11).0)
            .map(|(place, name)| (*place, name.clone()))
            .collect();
        world.reach(&fewer).await;
        within("c1", "nft flush ruleset");
        let probe = |said: &str| answered(said);
        assert!(
            probe(&ping("c1", "", "172.31.0.21")),
            "it may use the tunnel"
        );
        other_mac(12);
        refused("3072-4095", "drop_not_peer").await;
    });
}

#[test]
fn what_is_nobodys_answer_is_dropped_and_nothing_of_it_is_seen_outside() {
    in_namespace(|| async {
        let world = World::new().await;
        for (address, server) in ADDRESSES.into_iter().zip(SERVERS) {
            for (port, counter) in [(5120, Some("drop_no_block")), (22, Some("drop_no_block"))] {
                let before = world.counted().await;
                let heard = at("server", || {
                    let socket = UdpSocket::bind((ip(server), 0)).unwrap();
                    socket.connect((ip(address), port)).unwrap();
                    socket
                        .set_read_timeout(Some(Duration::from_millis(300)))
                        .unwrap();
                    let _ = socket.send(b"x");
                    let said = socket.recv(&mut [0; 16]).unwrap_err().kind();
                    let to = SocketAddr::new(ip(address), port);
                    let tcp = TcpStream::connect_timeout(&to, Duration::from_millis(300));
                    (said, tcp.unwrap_err().kind())
                });
                assert_eq!(heard, (ErrorKind::WouldBlock, ErrorKind::TimedOut));
                assert_eq!(
                    world.counted_since(&before).await,
                    counter.into_iter().collect::<Vec<_>>(),
                    "{address} {port}"
                );
            }
        }
        assert_eq!(tracked(), "");
    });
}

/// A switch that does not know where a host is sends a frame everywhere. The one that it is not for
/// must not pass it on: it would arrive twice.
#[test]
fn frames_for_other_hosts_are_left_alone() {
    in_namespace(|| async {
        let world = World::new().await;
        let before = world.counted().await;
        within(
            "router",
            "ip neigh replace 10.6.0.100 lladdr fe:00:00:00:00:99 dev eth0 nud permanent",
        );
        run("nft add table netdev seen; nft add chain netdev seen every '{ type filter hook ingress device eth0 priority -301; }'
             nft add rule netdev seen every ip daddr 10.6.0.100 counter");
        at("server", || {
            let socket = UdpSocket::bind((ip(SERVERS[0]), 0)).unwrap();
            for _ in 0..ATTEMPTS {
                socket.send_to(b"x", (ip(ADDRESSES[0]), 5120)).unwrap();
            }
        });
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(
            run("nft list table netdev seen").contains("packets 5"),
            "the switch floods"
        );
        assert_eq!(world.counted_since(&before).await, [""; 0]);
    });
}

#[test]
fn without_its_table_answers_are_dropped_and_connections_wait() {
    in_namespace(|| async {
        let world = World::new().await;
        for server in SERVERS {
            let (mut stream, _) = open_tcp("pod", server).unwrap();
            echo_tcp(&mut stream).unwrap();
            run("nft delete table netdev egressgateway_relay");
            stream
                .set_read_timeout(Some(Duration::from_millis(700)))
                .unwrap();
            let waits = echo_tcp(&mut stream).unwrap_err().kind();
            assert_eq!(waits, ErrorKind::WouldBlock, "nobody resets it");
            assert!(world.counted().await["drop_unforwarded"] > 0);
            assert!(world.reach(&desired()).await);
            stream.set_read_timeout(Some(PATIENCE * 10)).unwrap();
            stream.read_exact(&mut [0; 4]).unwrap();
            echo_tcp(&mut stream).unwrap();
        }
    });
}

#[test]
fn no_answer_reaches_this_host_while_the_rules_are_replaced() {
    in_namespace(|| async {
        let world = World::new().await;
        let ended = Arc::new(AtomicBool::new(false));
        let mut pods = Vec::new();
        for (pod, server) in PODS {
            let server = at("server", || {
                UdpSocket::bind((ip(server), PORT + 3)).unwrap()
            });
            let to = server.local_addr().unwrap();
            pods.push(at("pod", || UdpSocket::bind((ip(pod), 0)).unwrap()));
            pods.last().unwrap().send_to(b"x", to).unwrap();
            let ended = Arc::clone(&ended);
            std::thread::spawn(move || {
                let (_, source) = server.recv_from(&mut [0; 16]).unwrap();
                while !ended.load(Ordering::SeqCst) {
                    let _ = server.send_to(b"x", source);
                    std::thread::sleep(Duration::from_micros(200));
                }
            });
        }
        let mut other = desired();
        other.port = 7790;
        for round in 0..20 {
            let next = if round % 2 == 0 {
                other.clone()
            } else {
                desired()
            };
            assert!(world.reach(&next).await);
        }
        assert_eq!(others("said"), 0);
        // As it would be if they went first.
        run("nft 'delete table netdev egressgateway_relay; delete table inet egressgateway_relay'");
        let end = Instant::now() + PATIENCE * 5;
        while others("said") == 0 {
            assert!(Instant::now() < end, "answers came all the time");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        ended.store(true, Ordering::SeqCst);
    });
}

#[test]
fn a_tunnel_that_was_made_anew_is_used_after_the_next_read() {
    in_namespace(|| async {
        let world = World::new().await;
        let (mut stream, _) = open_tcp("pod", SERVERS[0]).unwrap();
        echo_tcp(&mut stream).unwrap();
        assert!(!world.reach(&desired()).await, "nothing has changed");
        run("ip link del vx");
        run(&tunnel(21));
        stream
            .set_read_timeout(Some(Duration::from_millis(700)))
            .unwrap();
        assert_eq!(
            echo_tcp(&mut stream).unwrap_err().kind(),
            ErrorKind::WouldBlock,
            "the old rules know the old device"
        );
        assert!(world.reach(&desired()).await);
        stream.set_read_timeout(Some(PATIENCE * 10)).unwrap();
        stream.read_exact(&mut [0; 4]).unwrap();
        echo_tcp(&mut stream).unwrap();
        // Rules are replaced under a connection without any harm to it.
        let mut other = desired();
        other.port = 7790;
        for next in [other, desired()] {
            assert!(world.reach(&next).await);
            echo_tcp(&mut stream).unwrap();
        }
        assert_eq!(tracked(), "");
    });
}

#[test]
fn ports_that_change_hands_lead_to_the_next_owner() {
    in_namespace(|| async {
        let world = World::new().await;
        let mut next = desired();
        for unit in 8..=11 {
            for address in ADDRESSES {
                next.bindings.insert((ip(address), unit), node(12).0);
            }
        }
        let change = world
            .relay
            .plan(&next, &world.relay.observe().await.unwrap())
            .unwrap();
        assert!(!change.plan.to_string().contains("add rule"));
        world.relay.apply(&change.plan).await.unwrap();
        translates_to("c2", "2048-3071");
        let source = ask_udp("c2", "172.31.0.12", SERVERS[0], 10).unwrap();
        assert!((2048..3072).contains(&source.port()));
        let before = world.counted().await;
        assert!(!answered(&ping("pod", "-c 1 -W 1", SERVERS[0])));
        assert_eq!(world.counted_since(&before).await, ["drop_not_owner"]);
    });
}
