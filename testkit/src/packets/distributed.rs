//! Connections that a node translates itself, to its ports of an egress address, whichever gateway
//! carries them.

use std::{
    io::{Read, Write},
    process::{Child, Command, Stdio},
};

use egressgateway::{
    model::{SourceNat, Verdict},
    testing::distributed::{distributed_client, distributed_exit},
};

use super::lab::{Backend, Host, Lab, Neighbour, arrived};
use crate::{netns::in_namespace, shell::run};

/// The marks of the target that this node translates itself.
const ROUTES: &str = "ip rule add pref 99 fwmark 0x15000000/0xff000000 lookup 100
ip -6 rule add pref 99 fwmark 0x15000000/0xff000000 lookup 100
";

/// The server, reached through the gateway at the far end of the overlay, and the gateway's way
/// back for an answer: by the overlay.
const FAR: &str = "ip addr add 10.6.7.7/32 dev lo; ip addr add fd00::7:7/128 dev lo nodad
ip route add 10.6.0.210 via 172.31.0.1 src 10.6.7.7; ip -6 route add fd00::210 via fd31::1 src fd00::7:7
";

/// The server on the network outside.
const OUTSIDE: &str = "ip addr add 10.6.7.7/16 dev eth0; ip addr add fd00::7:7/104 dev eth0 nodad
ip route add 10.6.0.210 dev eth0 src 10.6.7.7; ip -6 route add fd00::210 dev eth0 src fd00::7:7
";

/// Tells everybody who asks, by UDP or TCP, the address and port that it sees.
const SERVER: &str = r"
import selectors, socket
s = selectors.DefaultSelector()
for family in (socket.AF_INET, socket.AF_INET6):
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        k = socket.socket(family, kind)
        k.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6: k.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        k.bind(('', 7007))
        if kind == socket.SOCK_STREAM: k.listen()
        s.register(k, selectors.EVENT_READ, 'udp' if kind == socket.SOCK_DGRAM else 'listen')
print('ready', flush=True)
while True:
    for key, _ in s.select():
        k = key.fileobj
        if key.data == 'listen':
            s.register(k.accept()[0], selectors.EVENT_READ, 'tcp')
        elif key.data == 'udp':
            _, peer = k.recvfrom(100)
            k.sendto(f'{peer[0]} {peer[1]}\n'.encode(), peer)
        elif k.recv(100):
            peer = k.getpeername()
            k.send(f'{peer[0]} {peer[1]}\n'.encode())
        else:
            s.unregister(k); k.close()
";

/// One connection: for each line of the standard input it asks once and prints the answer, or
/// "nothing" where none came.
const CLIENT: &str = r"
import socket, sys
k = socket.socket(socket.AF_INET6 if ':' in sys.argv[2] else socket.AF_INET, socket.SOCK_DGRAM if sys.argv[1] == 'udp' else socket.SOCK_STREAM)
k.settimeout(float(sys.argv[3]))
try:
    k.connect((sys.argv[2], 7007))
    for line in sys.stdin:
        k.send(b'x')
        print(k.recv(100).decode().strip(), flush=True)
except OSError:
    print('nothing', flush=True)
";

/// Sends a packet of a protocol without ports.
const PORTLESS: &str = "python3 -c \"import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, 47).sendto(b'\\0' * 20, ('10.6.7.7', 0))\"";

/// A program in a neighbour, until it is dropped.
struct Program(Child);

impl Program {
    fn start(at: &Neighbour, script: &str, arguments: &[&str]) -> Self {
        let child = Command::new("nsenter")
            .args(["-t", &at.pid(), "-n", "python3", "-c", script])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self(child)
    }

    /// A server at a neighbour, once it listens.
    fn server(at: &Neighbour) -> Self {
        let mut server = Self::start(at, SERVER, &[]);
        assert_eq!(server.line(), "ready");
        server
    }

    fn line(&mut self) -> String {
        let out = self.0.stdout.as_mut().unwrap();
        let mut line = Vec::new();
        let mut byte = [0];
        while out.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap()
    }

    /// Asks the server over this connection; what it sees.
    fn ask(&mut self) -> String {
        self.0.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        self.line()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// A connection of the pod to the server, patient or not.
fn connection(pod: &Neighbour, protocol: &str, server: &str, seconds: &str) -> Program {
    Program::start(pod, CLIENT, &[protocol, server, seconds])
}

/// Whether the server saw the address and a port of one of this node's blocks.
fn is_ours(seen: &str, address: &str) -> bool {
    let Some((from, port)) = seen.split_once(' ') else {
        return false;
    };
    let port: u16 = port.parse().unwrap();
    from == address && ((2048..=3071).contains(&port) || (8192..=8447).contains(&port))
}

/// Into the tunnel with the egress address, and back.
///
/// # Panics
/// When a packet goes elsewhere.
pub fn what_its_own_node_translates_enters_the_tunnel_with_its_ports_and_is_answered<D: Backend>(
    host: Host<D>,
) {
    in_namespace(move || async move {
        let lab = Lab::new(&host);
        run(ROUTES);
        lab.far.run(FAR);
        lab.program(&distributed_client()).await;
        let _server = Program::server(&lab.far);
        for protocol in ["udp", "tcp"] {
            for (server, address) in [("10.6.7.7", "10.6.0.210"), ("fd00::7:7", "fd00::210")] {
                let mut connection = connection(&lab.pod, protocol, server, "20");
                let first = connection.ask();
                assert!(is_ours(&first, address), "{protocol} {server}: {first}");
                assert_eq!(connection.ask(), first, "it keeps its port");
            }
        }
        lab.count("steered", 4).await;
        lab.count("tunnelled", 4).await;
        lab.count("exited", 0).await;
        lab.pod.run("ping -c 1 -W 20 10.6.7.7");
        lab.pod.run(PORTLESS);
        lab.count("drop_no_port", 1).await;
        assert_eq!(lab.server.seen_at_all(), "", "nothing reached the server");
    });
}

/// Nobody's answers, and what the far end sends with somebody's egress address.
///
/// # Panics
/// When a packet goes elsewhere.
pub fn what_a_relay_has_not_seen_is_not_passed_on<D: Backend>(host: Host<D>) {
    in_namespace(move || async move {
        let lab = Lab::new(&host);
        lab.far.run(FAR);
        // A node that is not the address' holder: its pods' answers come by the overlay.
        lab.program(&distributed_client()).await;
        lab.far.run("echo x > /dev/udp/10.6.0.210/2050");
        lab.count("drop_unknown_source", 1).await;
        // Another node's packet, translated there.
        lab.far.run(
            "ip route del 10.6.0.210; ip addr add 10.6.0.210/32 dev lo\n\
             ip route replace 10.6.1.92 via 172.31.0.1 src 10.6.0.210",
        );
        run("ip route add 10.6.0.210 via 172.31.0.2 dev egress-vxlan-v4");
        lab.far.send("10.6.1.92");
        lab.count("drop_unknown_source", 2).await;
        assert_eq!(lab.server.seen("10.6.0.210"), 0);
        // A relay keeps it untracked, and says so by the mark.
        run("nft -f - <<END
add table inet relay
add chain inet relay pre { type filter hook prerouting priority -301; }
add rule inet relay pre iifname egress-vxlan-v4 ip saddr 10.6.0.210 notrack meta mark set 0x10000000 accept
END");
        lab.far.send("10.6.1.92");
        arrived(&lab.server, "10.6.0.210", 1).await;
        lab.count("drop_unknown_source", 2).await;
        assert_eq!(lab.server.seen("10.6.1.1"), 0, "nobody else translates it");
    });
}

/// A gateway that is the pod's own node, and is so no longer.
///
/// # Panics
/// When a packet goes elsewhere.
pub fn a_gateways_own_pod_leaves_here_and_goes_on_through_another_gateway<D: Backend>(
    host: Host<D>,
) {
    in_namespace(move || async move {
        let lab = Lab::new(&host);
        run(ROUTES);
        run("ip addr add 10.6.0.210/32 dev out0; ip addr add fd00::210/128 dev out0 nodad");
        lab.server.run(OUTSIDE);
        lab.far.run(FAR);
        lab.program(&distributed_exit()).await;
        let _here = Program::server(&lab.server);
        let _there = Program::server(&lab.far);
        for (server, address) in [("10.6.7.7", "10.6.0.210"), ("fd00::7:7", "fd00::210")] {
            let mut connection = connection(&lab.pod, "udp", server, "20");
            let first = connection.ask();
            assert!(is_ours(&first, address), "{server}: {first}");
            lab.program(&distributed_client()).await;
            assert_eq!(connection.ask(), first, "through the other gateway");
            lab.program(&distributed_exit()).await;
            assert_eq!(connection.ask(), first, "and from here again");
        }
        lab.count("exited", 2).await;
    });
}

/// The same connection where the gateway translates.
fn by_gateway(verdict: Verdict) -> Verdict {
    match verdict {
        Verdict::Egress {
            target,
            source_nat: SourceNat::Ports(_),
        } => Verdict::Egress {
            target,
            source_nat: SourceNat::NodeAddress,
        },
        other => other,
    }
}

/// Without ports, and where the gateway begins to let pods' nodes translate.
///
/// # Panics
/// When a packet goes elsewhere.
pub fn what_began_before_its_node_translated_does_not_leave<D: Backend>(host: Host<D>) {
    in_namespace(move || async move {
        let lab = Lab::new(&host);
        run(ROUTES);
        lab.server.run(OUTSIDE);
        let mut desired = distributed_client();
        desired.blocks.clear();
        lab.program(&desired).await;
        lab.pod.send("10.6.7.7");
        lab.count("drop_held", 1).await;
        // A gateway translates, elsewhere.
        let mut centralized = distributed_client();
        centralized.distributed.clear();
        centralized.destinations = centralized
            .destinations
            .into_iter()
            .map(|(place, verdict)| (place, by_gateway(verdict)))
            .collect();
        lab.program(&centralized).await;
        let mut open = lab.pod.connect("10.6.7.7");
        let mut lines = open.stdin.take().unwrap();
        lines.write_all(b"1\n").unwrap();
        arrived(&lab.far, "10.244.1.10", 1).await;
        lab.program(&distributed_exit()).await;
        lines.write_all(b"2\n").unwrap();
        lab.count("drop_no_gateway", 1).await;
        assert_eq!(lab.server.seen_at_all(), "", "its own address stays inside");
        drop(lines);
        open.wait().unwrap();
    });
}
