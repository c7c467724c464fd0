//! A pod, its node, a gateway and a server, each a network namespace, with a tunnel between the two
//! nodes.
//!
//! ```text
//! pod 10.244.1.10 ── client 10.6.0.11 ══ tunnel 172.31.0.0/24 ══ 10.6.0.12 gateway ── 10.6.1.0/24, server .92
//! ```

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use crate::{
    command::shell,
    conntrack::Conntrack,
    layout::{self, Layout},
    namespace::Namespace,
    policies::{CLIENT, GATEWAY, POD, Role, TUNNEL, TUNNEL_PORT, desired},
};

/// The server that answers. Its other addresses in the policy's destination take packets and do
/// nothing with them.
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 6, 1, 92);
/// The gateway's address before the server: the source that the server must see.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 6, 1, 254);
/// Fresh source ports of the pod.
const PORTS: u16 = 400;
/// Addresses beside the server.
const TAKERS: u8 = 64;
const PORT: u16 = 9;
/// After this time a packet counts as lost.
const PATIENCE: Duration = Duration::from_secs(5);

/// What lies on the packets' way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// A route into the tunnel, and nothing else: no connection tracking, no source translation.
    Bare,
    /// A route into the tunnel, connection tracking on both nodes and source translation at the
    /// gateway, as any cluster has them.
    NoPolicy,
    /// The same, but into the tunnel by a mark that one rule gives to everything: what any policy
    /// by marks costs at least.
    Marked,
    /// So many policies, the last of which is the pod's.
    Policies(Layout, u32),
}

/// The four namespaces and the pod's sockets.
#[derive(Debug)]
pub struct World {
    way: Way,
    client: Namespace,
    server: Namespace,
    conntracks: [Conntrack; 2],
    flow: UdpSocket,
    answering: UdpSocket,
    ports: Vec<UdpSocket>,
    /// Connections made so far.
    made: usize,
}

impl World {
    /// Builds the world and programs both nodes. `number` keeps worlds apart.
    #[must_use]
    pub fn new(number: usize, way: Way) -> Self {
        let [pod, client, gateway, server] = ["pod", "client", "gateway", "server"]
            .map(|name| Namespace::new(format!("{name}{number}")));
        join(&pod, &client, &gateway, &server);
        if way != Way::Bare {
            for node in [&client, &gateway] {
                node.enter(|| shell(CLUSTER));
            }
        }
        match way {
            Way::Bare | Way::NoPolicy => drop(client.enter(|| shell(ROUTE))),
            Way::Marked => drop(client.enter(|| shell(&[STEERING, MARK].concat()))),
            Way::Policies(layout, count) => {
                client.enter(|| {
                    shell(STEERING);
                    program(layout, count, Role::Client);
                });
                gateway.enter(|| program(layout, count, Role::Gateway));
            }
        }
        let conntracks = [&client, &gateway].map(|node| node.enter(Conntrack::open));
        let bind = |address: Ipv4Addr, port| UdpSocket::bind((address, port)).expect("a socket");
        let answering = server.enter(|| bind(SERVER, PORT));
        let (flow, ports) =
            pod.enter(|| (bind(POD, 0), (0..PORTS).map(|_| bind(POD, 0)).collect()));
        flow.connect((SERVER, PORT)).expect("a route");
        for socket in [&flow, &answering] {
            socket.set_read_timeout(Some(PATIENCE)).expect("a socket");
        }
        Self {
            way,
            client,
            server,
            conntracks,
            flow,
            answering,
            ports,
            made: 0,
        }
    }

    /// What lies on the way.
    #[must_use]
    pub fn way(&self) -> Way {
        self.way
    }

    /// Forgets all connections on both nodes.
    pub fn forget(&self) {
        self.conntracks.iter().for_each(Conntrack::flush);
    }

    /// Opens one connection, with an answer. The server must see the source that the way says.
    pub fn open(&self) {
        // What came before fills the server's buffer.
        self.answering.set_nonblocking(true).expect("a socket");
        while self.answering.recv(&mut [0; 64]).is_ok() {}
        self.answering.set_nonblocking(false).expect("a socket");
        self.flow.send(b"question").expect("to send");
        let (_, source) = self
            .answering
            .recv_from(&mut [0; 64])
            .unwrap_or_else(|error| panic!("{:?}: no question: {error}", self.way));
        assert_eq!(
            source.ip() == POD,
            self.way == Way::Bare,
            "{:?}: the server sees {source}",
            self.way
        );
        assert!(
            source.ip() == POD || source.ip() == OUTSIDE,
            "{:?}: the server sees {source}",
            self.way
        );
        self.answering
            .send_to(b"answer", source)
            .expect("to answer");
        self.flow
            .recv(&mut [0; 64])
            .unwrap_or_else(|error| panic!("{:?}: no answer: {error}", self.way));
    }

    /// Sends one more packet of that connection.
    pub fn send(&self) {
        self.flow.send(&[0; 18]).expect("to send");
    }

    /// Sends the first packet of one more connection.
    pub fn connect(&mut self) {
        let (ports, takers) = (self.ports.len(), usize::from(TAKERS));
        let number = self.made;
        self.made += 1;
        let host = u8::try_from(number / ports % takers + 1).expect("an address of the network");
        let port = u16::try_from(1024 + number / ports / takers).expect("a port");
        let taker = SocketAddr::from((Ipv4Addr::new(10, 6, 1, host), port));
        self.ports[number % ports]
            .send_to(&[0; 18], taker)
            .expect("to send");
    }

    /// How many packets entered the tunnel, and how many came to the server.
    #[must_use]
    pub fn passed(&self) -> (u64, u64) {
        (self.client.packets(TUNNEL).1, self.server.packets("eth0").0)
    }
}

/// Programs the node that the calling thread is in.
fn program(layout: Layout, count: u32, role: Role) {
    match layout.reconciler() {
        Some(mut reconciler) => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime
                .block_on(reconciler.reconcile(&desired(count, role)))
                .unwrap_or_else(|error| panic!("{layout}: {}", error.chain()));
        }
        // Its gateway has nothing that depends on policies; the cluster's masquerade lets packets
        // out.
        None if role == Role::Gateway => {}
        None => layout::load(&layout.batch(count, role)),
    }
}

/// What is there with any policy and with none: connection tracking, as for kube-proxy and the CNI,
/// and a masquerade of what leaves a node. The tunnel's outer packets are tracked nowhere, so that
/// this is no difference between the ways.
const CLUSTER: &str = "nft -f - <<END
table inet cluster {
  chain arriving { type filter hook prerouting priority -300; udp dport 7789 notrack; }
  chain leaving { type filter hook output priority -300; udp dport 7789 notrack; }
  chain forward { type filter hook forward priority 0; ct state invalid drop; }
  chain post { type nat hook postrouting priority 100; oifname \"out0\" masquerade; }
}
END
";

const ROUTE: &str = "ip route add 10.6.1.0/24 via 172.31.0.2 dev egress-vxlan-v4\n";

const MARK: &str = "nft -f - <<END
table inet everything {
  chain arriving { type filter hook prerouting priority mangle; iifname \"pod0\" meta mark set meta mark and 0x00ffffff or 0x11000000; }
}
END
";

/// What the agent's routing does: marked packets take the tunnel, but for the tunnel's own, which
/// inherit the mark.
const STEERING: &str = "ip rule add pref 98 iif lo fwmark 0x11000000/0xff000000 lookup main
ip rule add pref 99 fwmark 0x11000000/0xff000000 lookup 100
ip route add default via 172.31.0.2 dev egress-vxlan-v4 onlink table 100
";

/// Devices, addresses and routes. Neighbours are known, so that no other packets are on the way.
fn join(pod: &Namespace, client: &Namespace, gateway: &Namespace, server: &Namespace) {
    let [pod, client, gateway, server] = [pod, client, gateway, server].map(Namespace::name);
    // Answers take the underlay, not the tunnel.
    let sysctls = [(pod, 0), (client, 1), (gateway, 1), (server, 0)].map(|(namespace, forwards)| {
        format!(
            "ip netns exec {namespace} sysctl -qw net.ipv4.ip_forward={forwards} net.ipv4.conf.all.rp_filter=0 \
             net.ipv4.conf.default.rp_filter=0\n"
        )
    });
    let veths = [
        (client, "pod0", pod),
        (client, "eth0", gateway),
        (gateway, "out0", server),
    ]
    .map(|(namespace, device, other)| {
        format!("ip -n {namespace} link add {device} type veth peer name eth0 netns {other}\n")
    });
    let tunnel = format!("{TUNNEL} type vxlan id 100 dstport {TUNNEL_PORT} nolearning dev eth0");
    let links = format!(
        "ip -n {client} link add address 02:00:00:00:00:01 {tunnel} local {CLIENT} remote {GATEWAY}
ip -n {gateway} link add address 02:00:00:00:00:02 {tunnel} local {GATEWAY} remote {CLIENT}
ip -n {server} link set eth0 address 02:00:00:00:00:03
"
    );
    let addresses = [
        (pod, "eth0", POD),
        (client, "pod0", Ipv4Addr::new(10, 244, 1, 1)),
        (client, "eth0", CLIENT),
        (gateway, "eth0", GATEWAY),
        (client, TUNNEL, Ipv4Addr::new(172, 31, 0, 1)),
        (gateway, TUNNEL, Ipv4Addr::new(172, 31, 0, 2)),
        (gateway, "out0", OUTSIDE),
        (server, "eth0", SERVER),
    ]
    .map(|(namespace, device, address)| {
        format!("ip -n {namespace} addr add {address}/24 dev {device}\nip -n {namespace} link set {device} up\n")
    });
    let takers = (1..=TAKERS)
        .map(|host| Ipv4Addr::new(10, 6, 1, host))
        .chain([SERVER]);
    let neighbours: Vec<String> = takers
        .map(|taker| {
            format!("neigh replace {taker} lladdr 02:00:00:00:00:03 dev out0 nud permanent\n")
        })
        .collect();
    let routes = format!(
        "ip -n {pod} route add default via 10.244.1.1
ip -n {client} route add default via {GATEWAY}
ip -n {gateway} route add 10.244.1.0/24 via {CLIENT}
ip -n {server} route add 10.244.1.0/24 via {OUTSIDE}
ip -n {client} neigh replace 172.31.0.2 lladdr 02:00:00:00:00:02 dev {TUNNEL} nud permanent
ip -n {gateway} -batch - <<END
{}END
",
        neighbours.concat()
    );
    shell(
        &[
            sysctls.concat(),
            veths.concat(),
            links,
            addresses.concat(),
            routes,
        ]
        .concat(),
    );
}
