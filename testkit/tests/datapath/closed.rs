//! What the product must not open: the way into a node's tunnel, and the way past network policies.

use std::net::IpAddr;

use egressgateway_testkit::{
    cluster::agent,
    lab::{Families, ForwardPolicy, Namespace, RuleTool},
};
use nix::sys::signal::Signal;

use crate::{
    restarts::first_plan_is_empty,
    world::{CLIENT, DataPath, GATEWAYS, GOVERNED, Place, World, lab, policy},
};

/// A pod wraps a datagram in the tunnel's own format, with another pod as the inner source, and
/// sends it to the tunnel of a gateway: its node would masquerade it with the address of a peer.
pub(crate) fn a_pod_can_not_send_through_the_tunnel_of_a_node_as_somebody_else(path: &DataPath) {
    let world = World::governed(path);
    let gateway = world.cluster.lab.node(GATEWAYS[0]);
    let capture = world.cluster.lab.capture().unwrap();
    let (before, mut sent) = (world.counted(CLIENT, "drop_not_peer"), 0.0);
    let pairs: Vec<_> = world
        .shop
        .addresses()
        .iter()
        .copied()
        .zip(world.local.addresses().iter().copied())
        .collect();
    for outer in gateway.addresses() {
        for (source, destination) in &pairs {
            forge(
                path,
                &world.blog,
                outer,
                &mac(&gateway),
                *source,
                *destination,
            );
            sent += 1.0;
        }
    }
    // What came after it on the same way has arrived.
    world.leaves_by(&world.blog, GOVERNED, CLIENT);
    for (source, destination) in pairs {
        assert_eq!(
            capture.count(|packet| packet.is_tunnelled(source, destination)),
            0,
            "{source} → {destination}"
        );
    }
    world
        .cluster
        .eventually("all of it is counted at the pod's own node", || {
            let counted = world.counted(CLIENT, "drop_not_peer") - before;
            if counted < sent {
                Err(format!("{counted} of {sent}"))
            } else {
                Ok(())
            }
        });
}

/// The same to addresses of the gateway that peers don't use: one that the cluster knows, which the
/// pod's node refuses, and one that nobody knows, which only the gateway can. And to groups that
/// the pod's own node is in.
pub(crate) fn a_pod_can_not_send_through_the_tunnel_by_another_address_of_a_node(path: &DataPath) {
    let world = World::governed(path);
    let lab = &world.cluster.lab;
    let (gateway, client) = (lab.node(GATEWAYS[0]), lab.node(CLIENT));
    gateway
        .run(
            "ip addr add 10.6.0.213/16 dev eth0; ip addr add fd00:6::d5/64 dev eth0 nodad
             ip addr add 10.9.0.13/32 dev lo; ip addr add fd00:9::d/128 dev lo",
        )
        .unwrap();
    for address in gateway.addresses() {
        let hidden = if address.is_ipv4() {
            "10.9.0.13"
        } else {
            "fd00:9::d"
        };
        client
            .run(&format!("ip route add {hidden} via {address}"))
            .unwrap();
    }
    world
        .cluster
        .eventually("everybody knows the further address", || {
            let status = world.cluster.status("EgressNode", GATEWAYS[0])["interfaces"].to_string();
            if status.contains("10.6.0.213/") && status.contains("fd00:6::d5/") {
                Ok(())
            } else {
                Err(status)
            }
        });
    let servers: Vec<IpAddr> = GOVERNED.iter().map(|text| text.parse().unwrap()).collect();
    let capture = lab.capture().unwrap();
    let send = |outer: &str, end: &Namespace| {
        for (source, server) in world.shop.addresses().iter().zip(&servers) {
            forge(path, &world.blog, outer, &mac(end), *source, *server);
        }
    };
    let before = [CLIENT, GATEWAYS[0]].map(|node| world.counted(node, "drop_not_peer"));
    for group in ["10.6.255.255", "224.0.0.1", "fd00:6::", "ff02::1%eth0"] {
        send(group, &client);
    }
    for hidden in ["10.9.0.13", "fd00:9::d"] {
        send(hidden, &gateway);
    }
    for ((node, before), sent) in [CLIENT, GATEWAYS[0]]
        .into_iter()
        .zip(before)
        .zip([8.0, 4.0])
    {
        world
            .cluster
            .eventually(&format!("all of it is counted at {node}"), || {
                let counted = world.counted(node, "drop_not_peer") - before;
                if counted < sent {
                    Err(format!("{counted} of {sent}"))
                } else {
                    Ok(())
                }
            });
    }
    // The pod's node learns of the further addresses some time after they are told.
    for known in ["10.6.0.213", "fd00:6::d5"] {
        world.cluster.eventually(
            &format!("what is sent to {known} does not leave the pod's node"),
            || {
                let wire = lab.capture().unwrap();
                send(known, &gateway);
                // What came after it on the same way has arrived.
                world.leaves_by(&world.blog, GOVERNED, CLIENT);
                let left =
                    wire.count(|packet| packet.destination == known.parse::<IpAddr>().unwrap());
                if left > 0 {
                    Err(format!("{left} left"))
                } else {
                    Ok(())
                }
            },
        );
    }
    let forged = capture
        .packets()
        .into_iter()
        .filter(|packet| packet.innermost().destination_port == FORGED && packet.inner.is_none());
    assert_eq!(
        forged
            .map(|packet| format!("{packet:?}"))
            .collect::<Vec<_>>(),
        [""; 0],
        "unpacked and sent on"
    );
}

/// The inner destination port of what is forged.
const FORGED: u16 = 9;

/// The hardware address of a node's end of the tunnel.
fn mac(node: &Namespace) -> String {
    node.run("cat /sys/class/net/egress-*/address | head -n 1")
        .unwrap()
        .trim()
        .to_owned()
}

fn forge(
    path: &DataPath,
    from: &Namespace,
    outer: impl std::fmt::Display,
    mac: &str,
    source: IpAddr,
    destination: IpAddr,
) {
    // Both number their networks in the upper three bytes of a word.
    let head = if path.tunnel == "geneve" {
        "0x00006558"
    } else {
        "0x08000000"
    };
    let script = format!(
        "python3 - <<'END'
import socket, struct, ipaddress
source, destination = [ipaddress.ip_address(text) for text in ('{source}', '{destination}')]
family, *_, outer = socket.getaddrinfo('{outer}', 7789, 0, socket.SOCK_DGRAM)[0]
udp = struct.pack('!HHHH', 4000, {FORGED}, 9, 0) + b'x'
if source.version == 4:
    head = struct.pack('!BBHHHBBH', 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0)
    total = sum(struct.unpack('!10H', head + source.packed + destination.packed))
    total = (total & 0xffff) + (total >> 16)
    packet = head[:10] + struct.pack('!H', ~total & 0xffff) + source.packed + destination.packed + udp
else:
    packet = struct.pack('!IHBB', 6 << 28, len(udp), 17, 64) + source.packed + destination.packed + udp
frame = bytes.fromhex('{mac}'.replace(':', '')) + bytes.fromhex('020000000009') + struct.pack('!H', 0x0800 if source.version == 4 else 0x86dd)
tunnel = struct.pack('!II', {head}, 100 << 8)
socket.socket(family, socket.SOCK_DGRAM).sendto(tunnel + frame + packet, outer)
END
"
    );
    from.run(&script).unwrap();
}

/// Nobody told the product about pod networks, so that a pod's address is governed like any other:
/// the gateway carries such connections, and whoever keeps network policies there decides about
/// them as about all others.
pub(crate) fn a_gateway_opens_no_way_past_the_network_policies_of_its_own_pods(path: &DataPath) {
    let lab = lab()
        .rules_by(RuleTool::IptablesNft)
        .forward_policy(ForwardPolicy::DropButPods);
    let world = Place::make(lab, Families::Dual)
        .with_configured_daemons(path, "clusterCIDRs: {auto: false}\n");
    world.make_gateway();
    world.cluster.apply(&policy(""));
    world.leaves_by(&world.shop, GOVERNED, GATEWAYS[0]);
    let gateway = world.cluster.lab.node(GATEWAYS[0]);
    for pod in world.local.addresses() {
        let (program, length) = if pod.is_ipv4() {
            ("iptables-nft", 32)
        } else {
            ("ip6tables-nft", 128)
        };
        // Behind the first rule, which is the product's.
        world
            .cluster
            .eventually("the product's rule is the first one", || {
                let rules = gateway
                    .run(&format!("{program} -S FORWARD"))
                    .map_err(|error| error.to_string())?;
                if rules
                    .lines()
                    .nth(1)
                    .is_some_and(|first| first.contains("EGW-"))
                {
                    Ok(())
                } else {
                    Err(rules)
                }
            });
        gateway
            .run(&format!(
                "{program} -I FORWARD 2 -d {pod}/{length} -j REJECT"
            ))
            .unwrap();
    }
    let pod: Vec<String> = world
        .local
        .addresses()
        .iter()
        .map(ToString::to_string)
        .collect();
    world.is_dropped(&world.shop, [&pod[0], &pod[1]]);
    world.leaves_by(&world.shop, GOVERNED, GATEWAYS[0]);
}

/// Somebody keeps network policies as kube-router does: with a chain that it puts before all others
/// whenever a policy changes.
pub(crate) fn those_who_keep_network_policies_may_come_first_and_exits_pass(path: &DataPath) {
    let lab = lab()
        .rules_by(RuleTool::IptablesNft)
        .forward_policy(ForwardPolicy::DropButWorkloads);
    let mut world = World::start_in(path, lab, Families::Dual).with_usual_policy();
    let gateway = world.cluster.lab.node(GATEWAYS[0]);
    for pod in world.local.addresses() {
        let (program, length) = if pod.is_ipv4() {
            ("iptables-nft", 32)
        } else {
            ("ip6tables-nft", 128)
        };
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
        let first = gateway
            .run(&format!("{program} -S FORWARD | sed -n 2p"))
            .unwrap();
        assert!(first.contains("KUBE-ROUTER-FORWARD"), "{program}: {first}");
    }
    world.leaves_by(&world.shop, GOVERNED, GATEWAYS[0]);
    world.leaves_by(&world.local, GOVERNED, GATEWAYS[0]);
}
