//! Scripts that lay the cables: switches, nodes, router, servers, pods.

use std::{fmt::Write, net::IpAddr};

use super::{
    constants::{
        MANAGEMENT, MANAGEMENT_DEVICE, OVERLAY_DEVICE, OVERLAY_PORT, OVERLAY_VNI, POD_TABLE,
        ROUTER, ROUTER_V4, ROUTER_V6, UNDERLAY, UNDERLAY_V4_PREFIX, UNDERLAY_V6_PREFIX,
        node_management, pod_v4, pod_v6,
    },
    options::Cni,
    topology::{NodeFacts, Topology},
};

/// Switch of the underlay in its namespace.
pub(super) const SWITCH: &str = "br0";
/// Switch of the nodes' second interfaces.
pub(super) const SECOND_SWITCH: &str = "br1";

/// The underlay's port of a node.
pub(super) fn node_port(n: u8) -> String {
    format!("n{n}-eth0")
}

/// The second switch's port of a node.
pub(super) fn node_second_port(n: u8) -> String {
    format!("n{n}-eth1")
}

/// The management network's port of a node, in the lab's root.
pub(super) fn node_management_port(n: u8) -> String {
    format!("n{n}-mgmt0")
}

/// Switches, router and all nodes.
pub(super) fn all(topology: &Topology) -> String {
    let mut script = switches();
    script.push_str(&router(topology));
    for node in &topology.nodes {
        script.push_str(&self::node(topology, node));
    }
    for node in &topology.nodes {
        script.push_str(&peers(topology, node));
    }
    script
}

/// Nodes forward between all their devices; not so with the management network.
pub(super) const MANAGEMENT_IS_NOT_FOR_PODS: &str = "nft -f - <<'END'
table inet management {
  chain forward { type filter hook forward priority -500; iifname \"mgmt0\" drop; oifname \"mgmt0\" drop; }
}
END
";

/// A new namespace in which addresses work at once, and router advertisements do nothing.
fn namespace(name: &str) -> String {
    let mut script = format!("ip netns add {name}\nip netns exec {name} sh -eu <<'END'\n");
    for scope in ["all", "default"] {
        let _ = writeln!(
            script,
            "echo 0 >/proc/sys/net/ipv6/conf/{scope}/accept_dad; echo 0 >/proc/sys/net/ipv6/conf/{scope}/accept_ra"
        );
        let _ = writeln!(script, "echo 0 >/proc/sys/net/ipv4/conf/{scope}/rp_filter");
    }
    script.push_str("END\n");
    let _ = writeln!(script, "ip -n {name} link set lo up");
    script
}

fn sysctls(namespace: &str, settings: &[(&str, u8)]) -> String {
    let mut script = format!("ip netns exec {namespace} sh -eu <<'END'\n");
    for (path, value) in settings {
        let _ = writeln!(script, "echo {value} >/proc/sys/net/{path}");
    }
    script.push_str("END\n");
    script
}

/// `ip -batch` lines in a namespace.
fn batch(namespace: &str, lines: &str) -> String {
    format!("ip -n {namespace} -batch - <<'END'\n{lines}END\n")
}

/// The switches are plain: no addresses of their own, no netfilter, no learning of multicast
/// groups.
fn switches() -> String {
    let mut script = namespace(UNDERLAY);
    script.push_str(&sysctls(
        UNDERLAY,
        &[
            ("ipv6/conf/all/disable_ipv6", 1),
            ("ipv6/conf/default/disable_ipv6", 1),
        ],
    ));
    let _ = writeln!(
        script,
        "ip netns exec {UNDERLAY} sh -eu <<'END'
for file in /proc/sys/net/bridge/bridge-nf-call-*; do [ ! -e $file ] || echo 0 >$file; done
END"
    );
    let mut lines = String::new();
    for switch in [SWITCH, SECOND_SWITCH] {
        let _ = writeln!(
            lines,
            "link add {switch} mtu 9000 type bridge mcast_snooping 0\nlink set {switch} up"
        );
    }
    script.push_str(&batch(UNDERLAY, &lines));
    let _ = writeln!(
        script,
        "ip link add mgmt type bridge mcast_snooping 0\nip link set mgmt up\nip addr add {MANAGEMENT}/24 dev mgmt"
    );
    script
}

/// A cable from `device` of a namespace to a port of a switch.
fn cable(namespace: &str, device: &str, switch: &str, port: &str, mtu: u16) -> String {
    let end = format!(
        "link add {device} mtu {mtu} type veth peer name {port} netns {UNDERLAY} mtu {mtu}\nlink set {device} up\n"
    );
    batch(namespace, &end) + &batch(UNDERLAY, &format!("link set {port} master {switch} up\n"))
}

/// The address with the underlay's prefix length, as an argument of `ip address add`.
fn on_link(address: IpAddr) -> String {
    match address {
        IpAddr::V4(_) => format!("addr add {address}/{UNDERLAY_V4_PREFIX} dev eth0\n"),
        IpAddr::V6(_) => format!("addr add {address}/{UNDERLAY_V6_PREFIX} dev eth0 nodad\n"),
    }
}

const fn forwarding() -> [(&'static str, u8); 4] {
    [
        ("ipv4/ip_forward", 1),
        ("ipv6/conf/all/forwarding", 1),
        ("ipv4/conf/all/send_redirects", 0),
        ("ipv4/conf/default/send_redirects", 0),
    ]
}

fn router(topology: &Topology) -> String {
    let mut script = namespace(ROUTER) + &sysctls(ROUTER, &forwarding());
    script.push_str(&cable(
        ROUTER,
        "eth0",
        SWITCH,
        "router",
        topology.settings.mtu,
    ));
    let families = topology.settings.families;
    let mut lines = String::new();
    if families.v4() {
        lines.push_str(&on_link(ROUTER_V4.into()));
    }
    if families.v6() {
        lines.push_str(&on_link(ROUTER_V6.into()));
    }
    for node in &topology.nodes {
        for (network, address) in node.pod_networks().iter().zip(node.addresses()) {
            let _ = writeln!(
                lines,
                "route add {network} via {address} dev eth0 table {POD_TABLE}"
            );
        }
    }
    script + &batch(ROUTER, &lines)
}

fn node(topology: &Topology, node: &NodeFacts) -> String {
    let NodeFacts { n, name, .. } = node;
    let mode = topology.settings.rp_filter;
    let mut script = namespace(name) + &sysctls(name, &forwarding());
    script.push_str(&sysctls(
        name,
        &[
            ("ipv4/conf/all/rp_filter", mode),
            ("ipv4/conf/default/rp_filter", mode),
        ],
    ));
    script.push_str(&cable(
        name,
        "eth0",
        SWITCH,
        &node_port(*n),
        topology.settings.mtu,
    ));
    let mut lines = String::new();
    for address in node.addresses() {
        lines.push_str(&on_link(address));
        let via = if address.is_ipv4() {
            IpAddr::from(ROUTER_V4)
        } else {
            IpAddr::from(ROUTER_V6)
        };
        let _ = writeln!(lines, "route add default via {via} dev eth0");
    }
    if !node.second.is_empty() {
        script.push_str(&cable(
            name,
            "eth1",
            SECOND_SWITCH,
            &node_second_port(*n),
            topology.settings.mtu,
        ));
        for address in &node.second {
            let _ = writeln!(
                lines,
                "addr add {address} dev eth1{}",
                if address.addr().is_ipv6() {
                    " nodad"
                } else {
                    ""
                }
            );
        }
    }
    let port = node_management_port(*n);
    let _ = writeln!(
        script,
        "ip link add {port} type veth peer name {MANAGEMENT_DEVICE} netns {name}\nip link set {port} master mgmt up"
    );
    let _ = writeln!(
        lines,
        "addr add {}/24 dev {MANAGEMENT_DEVICE}\nlink set {MANAGEMENT_DEVICE} up",
        node_management(*n)
    );
    if topology.settings.cni == Cni::Vxlan {
        lines.push_str(&overlay(topology, node));
    }
    script + &batch(name, &lines)
}

fn overlay_mac(n: u8) -> String {
    format!("0e:f1:00:00:00:{n:02x}")
}

fn overlay(topology: &Topology, node: &NodeFacts) -> String {
    let Some(local) = node.addresses().first().copied() else {
        return String::new();
    };
    let (mac, mtu) = (overlay_mac(node.n), topology.pod_mtu());
    let mut lines = format!(
        "link add {OVERLAY_DEVICE} address {mac} mtu {mtu} type vxlan id {OVERLAY_VNI} dstport {OVERLAY_PORT} local {local} dev eth0 nolearning
link set {OVERLAY_DEVICE} up\n"
    );
    if node.v4.is_some() {
        let _ = writeln!(
            lines,
            "addr add {}/32 dev {OVERLAY_DEVICE}",
            pod_v4(node.n, 0)
        );
    }
    if node.v6.is_some() {
        let _ = writeln!(
            lines,
            "addr add {}/128 dev {OVERLAY_DEVICE} nodad",
            pod_v6(node.n, 0)
        );
    }
    lines
}

/// A node's routes to the pods of all others.
fn peers(topology: &Topology, node: &NodeFacts) -> String {
    let (mut lines, mut forwarding_database) = (String::new(), String::new());
    for peer in topology.nodes.iter().filter(|peer| peer.n != node.n) {
        let addresses = peer.addresses();
        if topology.settings.cni == Cni::Routed {
            for (network, address) in peer.pod_networks().iter().zip(addresses) {
                let _ = writeln!(lines, "route add {network} via {address} dev eth0");
            }
            continue;
        }
        let mac = overlay_mac(peer.n);
        for network in peer.pod_networks() {
            let first = network.split('/').next().unwrap_or_default();
            let _ = writeln!(
                lines,
                "neigh add {first} lladdr {mac} dev {OVERLAY_DEVICE} nud permanent"
            );
            let _ = writeln!(
                lines,
                "route add {network} via {first} dev {OVERLAY_DEVICE} onlink"
            );
        }
        if let Some(address) = addresses.first() {
            let _ = writeln!(
                forwarding_database,
                "bridge -n {} fdb append {mac} dev {OVERLAY_DEVICE} dst {address}",
                node.name
            );
        }
    }
    if lines.is_empty() {
        String::new()
    } else {
        batch(&node.name, &lines) + &forwarding_database
    }
}

/// A pod's namespace, its cable to the node, and the node's route to it: one host route per
/// address, no bridge.
pub(super) fn pod(
    topology: &Topology,
    node: &NodeFacts,
    name: &str,
    device: &str,
    addresses: &[IpAddr],
) -> String {
    let mtu = topology.pod_mtu();
    let (mut inside, mut outside) = (String::new(), String::new());
    let _ = writeln!(
        inside,
        "link add eth0 mtu {mtu} type veth peer name {device} netns {} mtu {mtu}\nlink set eth0 up",
        node.name
    );
    let _ = writeln!(outside, "link set {device} up");
    for address in addresses {
        let (gateway, length, nodad) = match address {
            IpAddr::V4(_) => (IpAddr::from(pod_v4(node.n, 1)), 32, ""),
            IpAddr::V6(_) => (IpAddr::from(pod_v6(node.n, 1)), 128, " nodad"),
        };
        let _ = writeln!(
            outside,
            "addr add {gateway}/{length} dev {device}{nodad}\nroute add {address}/{length} dev {device}"
        );
        let _ = writeln!(
            inside,
            "addr add {address}/{length} dev eth0{nodad}\nroute add {gateway}/{length} dev eth0"
        );
        let _ = writeln!(
            inside,
            "route add default via {gateway} dev eth0 src {address}"
        );
    }
    namespace(name) + &batch(name, &inside) + &batch(&node.name, &outside)
}

/// A server: addresses of the underlay on its switch, all others behind the router.
pub(super) fn server(
    topology: &Topology,
    name: &str,
    k: u64,
    addresses: &[IpAddr],
    routes_to_pods: bool,
) -> String {
    let (here, beyond): (Vec<&IpAddr>, Vec<&IpAddr>) =
        addresses.iter().partition(|address| is_on_link(**address));
    let mut script = namespace(name);
    let mut lines = String::new();
    if !here.is_empty() {
        script.push_str(&cable(
            name,
            "eth0",
            SWITCH,
            &format!("server{k}"),
            topology.settings.mtu,
        ));
    }
    for address in &here {
        lines.push_str(&on_link(**address));
    }
    if routes_to_pods {
        for (network, via) in topology
            .nodes
            .iter()
            .flat_map(|node| node.pod_networks().into_iter().zip(node.addresses()))
        {
            if here
                .iter()
                .any(|address| address.is_ipv4() == via.is_ipv4())
            {
                let _ = writeln!(lines, "route add {network} via {via} dev eth0");
            }
        }
    }
    if !beyond.is_empty() {
        let mtu = topology.settings.mtu;
        let _ = writeln!(
            script,
            "ip -n {name} link add out0 mtu {mtu} type veth peer name server{k} netns {ROUTER} mtu {mtu}"
        );
        lines.push_str("link set out0 up\n");
        let (inside, outside) = behind_router(k, &beyond);
        script.push_str(&batch(ROUTER, &outside));
        for family in ["-4", "-6"].iter().filter(|_| routes_to_pods) {
            let _ = writeln!(
                script,
                "ip -n {ROUTER} {family} rule add iif server{k} lookup {POD_TABLE} priority {}",
                1000 + k
            );
        }
        lines.push_str(&inside);
    }
    script + &batch(name, &lines)
}

/// Lines for the server and for the router: a transfer network per server and family, host routes
/// to the server's addresses.
fn behind_router(k: u64, addresses: &[&IpAddr]) -> (String, String) {
    let (mut inside, mut outside) = (String::new(), format!("link set server{k} up\n"));
    for ipv4 in [true, false] {
        let (network, length, whole, nodad) = if ipv4 {
            (format!("100.64.{k}."), 30, 32, "")
        } else {
            (format!("fd64:{k:x}::"), 64, 128, " nodad")
        };
        let mut of_family = addresses
            .iter()
            .filter(|address| address.is_ipv4() == ipv4)
            .peekable();
        if of_family.peek().is_none() {
            continue;
        }
        let _ = writeln!(outside, "addr add {network}1/{length} dev server{k}{nodad}");
        let _ = writeln!(
            inside,
            "addr add {network}2/{length} dev out0{nodad}\nroute add default via {network}1 dev out0"
        );
        for address in of_family {
            let _ = writeln!(inside, "addr add {address}/{whole} dev lo{nodad}");
            let _ = writeln!(
                outside,
                "route add {address}/{whole} via {network}2 dev server{k}"
            );
        }
    }
    (inside, outside)
}

/// Whether an address lies in the nodes' network.
pub(super) fn is_on_link(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.octets()[..2] == ROUTER_V4.octets()[..2],
        IpAddr::V6(address) => address.segments()[..4] == ROUTER_V6.segments()[..4],
    }
}
