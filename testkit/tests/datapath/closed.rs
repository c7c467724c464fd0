//! What the product must not open: the way into a node's tunnel, and the way past network policies.

use std::net::IpAddr;

use egressgateway_testkit::{
    cluster::agent,
    lab::{Families, ForwardPolicy, Namespace, RuleTool},
};
use nix::sys::signal::Signal;

use crate::{
    restarts::first_plan_is_empty,
    world::{CLIENT, DataPath, GATEWAY, GATEWAYS, GOVERNED, Place, World, lab, policy},
};

/// A pod wraps a datagram in the tunnel's own format, with another pod as the inner source, and sends it to the tunnel of a gateway: its node
/// would masquerade it with the address of a peer.
pub(crate) fn a_pod_can_not_send_through_the_tunnel_of_a_node_as_somebody_else(path: &DataPath) {
    let world = World::governed(path);
    let gateway = world.cluster.lab.node(GATEWAYS[0]);
    let capture = world.cluster.lab.capture().unwrap();
    let (before, mut sent) = (world.counted(CLIENT, "drop_not_peer"), 0.0);
    let pairs: Vec<_> = world.shop.addresses().iter().copied().zip(world.local.addresses().iter().copied()).collect();
    for outer in gateway.addresses() {
        for (source, destination) in &pairs {
            forge(&world.blog, outer, &mac(&gateway), *source, *destination);
            sent += 1.0;
        }
    }
    // What came after it on the same way has arrived.
    world.leaves_by(&world.blog, GOVERNED, CLIENT);
    for (source, destination) in pairs {
        assert_eq!(capture.count(|packet| packet.is_tunnelled(source, destination)), 0, "{source} → {destination}");
    }
    world.cluster.eventually("all of it is counted at the pod's own node", || {
        let counted = world.counted(CLIENT, "drop_not_peer") - before;
        if counted < sent { Err(format!("{counted} of {sent}")) } else { Ok(()) }
    });
}

/// The hardware address of a node's end of the tunnel.
fn mac(node: &Namespace) -> String {
    node.run("cat /sys/class/net/egress-vxlan-v4/address").unwrap().trim().to_owned()
}

fn forge(from: &Namespace, outer: IpAddr, mac: &str, source: IpAddr, destination: IpAddr) {
    let script = format!(
        "python3 - <<'END'
import socket, struct, ipaddress
source, destination, outer = [ipaddress.ip_address(text) for text in ('{source}', '{destination}', '{outer}')]
udp = struct.pack('!HHHH', 4000, 9, 9, 0) + b'x'
if source.version == 4:
    head = struct.pack('!BBHHHBBH', 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0)
    total = sum(struct.unpack('!10H', head + source.packed + destination.packed))
    total = (total & 0xffff) + (total >> 16)
    packet = head[:10] + struct.pack('!H', ~total & 0xffff) + source.packed + destination.packed + udp
else:
    packet = struct.pack('!IHBB', 6 << 28, len(udp), 17, 64) + source.packed + destination.packed + udp
frame = bytes.fromhex('{mac}'.replace(':', '')) + bytes.fromhex('020000000009') + struct.pack('!H', 0x0800 if source.version == 4 else 0x86dd)
vxlan = struct.pack('!II', 0x08000000, 100 << 8)
socket.socket(socket.AF_INET if outer.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM).sendto(vxlan + frame + packet, ('{outer}', 7789))
END
"
    );
    from.run(&script).unwrap();
}

/// Nobody told the product about pod networks, so that a pod's address is governed like any other: the gateway carries such connections, and
/// whoever keeps network policies there decides about them as about all others.
pub(crate) fn a_gateway_opens_no_way_past_the_network_policies_of_its_own_pods(path: &DataPath) {
    let lab = lab().rules_by(RuleTool::IptablesNft).forward_policy(ForwardPolicy::DropButPods);
    let world = Place::make(lab, Families::Dual).with_configured_daemons(path, "clusterCIDRs: {auto: false}\n");
    world.cluster.apply(GATEWAY);
    world.cluster.apply(&policy(""));
    world.leaves_by(&world.shop, GOVERNED, GATEWAYS[0]);
    let gateway = world.cluster.lab.node(GATEWAYS[0]);
    for pod in world.local.addresses() {
        let (program, length) = if pod.is_ipv4() { ("iptables-nft", 32) } else { ("ip6tables-nft", 128) };
        // Behind the first rule, which is the product's.
        gateway
            .run(&format!("{program} -S FORWARD | sed -n 2p | grep -q EGW-; {program} -I FORWARD 2 -d {pod}/{length} -j REJECT"))
            .unwrap();
    }
    let pod: Vec<String> = world.local.addresses().iter().map(ToString::to_string).collect();
    world.is_dropped(&world.shop, [&pod[0], &pod[1]]);
    world.leaves_by(&world.shop, GOVERNED, GATEWAYS[0]);
}

/// Somebody keeps network policies as kube-router does: with a chain that it puts before all others whenever a policy changes.
pub(crate) fn those_who_keep_network_policies_may_come_first_and_exits_pass(path: &DataPath) {
    let lab = lab().rules_by(RuleTool::IptablesNft).forward_policy(ForwardPolicy::DropButWorkloads);
    let mut world = World::start_in(path, lab, Families::Dual).with_usual_policy();
    let gateway = world.cluster.lab.node(GATEWAYS[0]);
    for pod in world.local.addresses() {
        let (program, length) = if pod.is_ipv4() { ("iptables-nft", 32) } else { ("ip6tables-nft", 128) };
        let script = format!(
            "{program} -N KUBE-POD-FW-LOCAL; {program} -A KUBE-POD-FW-LOCAL -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
             {program} -A KUBE-POD-FW-LOCAL -j REJECT
             {program} -N KUBE-ROUTER-FORWARD; {program} -A KUBE-ROUTER-FORWARD -d {pod}/{length} -j KUBE-POD-FW-LOCAL
             {program} -I FORWARD -j KUBE-ROUTER-FORWARD"
        );
        gateway.run(&script).unwrap();
    }
    world.cluster.kill(&agent(GATEWAYS[0]), Signal::SIGKILL);
    world.cluster.start_agent(GATEWAYS[0]);
    first_plan_is_empty(&world, GATEWAYS[0]);
    for program in ["iptables-nft", "ip6tables-nft"] {
        let first = gateway.run(&format!("{program} -S FORWARD | sed -n 2p")).unwrap();
        assert!(first.contains("KUBE-ROUTER-FORWARD"), "{program}: {first}");
    }
    world.leaves_by(&world.shop, GOVERNED, GATEWAYS[0]);
    world.leaves_by(&world.local, GOVERNED, GATEWAYS[0]);
}
