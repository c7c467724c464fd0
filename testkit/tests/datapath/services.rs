//! What is reached by another address than its own: servers outside behind services, services
//! behind load balancers.

use std::net::{IpAddr, SocketAddr};

use egressgateway_testkit::lab::{Families, Namespace, PORT, RuleTool};

use crate::world::{CLIENT, DataPath, EXCEPTED, GATEWAYS, GOVERNED, World, lab, policy};

/// On hosts whose rules are kept with iptables, where the netfilter backend is at home; and with
/// nft for the other one.
fn start(path: &DataPath) -> World {
    let tool = if path.backend == "netfilter" {
        RuleTool::IptablesLegacy
    } else {
        RuleTool::Nft
    };
    World::start_in(path, lab().rules_by(tool), Families::Dual)
}

/// Every node translates `address` and `port` to `to`, as a service proxy does; masquerading it
/// all, or not.
fn translate(world: &World, address: &str, port: u16, to: SocketAddr, masquerade: bool) {
    let (header, tool, length) = if to.is_ipv4() {
        ("ip", "iptables-legacy", 32)
    } else {
        ("ip6", "ip6tables-legacy", 128)
    };
    for node in world.cluster.lab.nodes() {
        for protocol in ["tcp", "udp"] {
            let rules = if node
                .run("nft list table inet cni >/dev/null 2>&1 && echo nft || true")
                .unwrap()
                .is_empty()
            {
                let rule = format!(
                    "{tool} -w -t nat -A CNI-SERVICES -d {address}/{length} -p {protocol} --dport {port} -j"
                );
                let mark = if masquerade {
                    format!("{rule} MARK --set-xmark 0x4000/0x4000\n")
                } else {
                    String::new()
                };
                format!("{mark}{rule} DNAT --to-destination {to}")
            } else {
                let rule = format!(
                    "nft add rule inet cni services {header} daddr {address} {protocol} dport {port}"
                );
                let mark = if masquerade {
                    format!("{rule} meta mark set meta mark or 0x4000\n")
                } else {
                    String::new()
                };
                format!("{mark}{rule} dnat {header} to {to}")
            };
            node.run(&rules).unwrap();
        }
    }
}

/// Waits for an answer; whatever answers has seen this source and no other.
fn only_seen_as(world: &World, from: &Namespace, to: SocketAddr, expected: IpAddr) {
    world
        .cluster
        .eventually(&format!("{from:?} → {to} is answered"), || {
            for seen in [from.connect_tcp(to), from.connect_udp(to)] {
                assert_eq!(
                    seen.map_err(|error| error.to_string())?.ip(),
                    expected,
                    "{from:?} → {to}"
                );
            }
            Ok(())
        });
}

/// A service, a load balancer's address and a port of the pod's own node, each in front of a server
/// outside: the server decides.
pub(crate) fn a_server_outside_is_governed_behind_whatever_address_it_is_reached(path: &DataPath) {
    let world = start(path).with_usual_policy();
    let capture = world.cluster.lab.capture().unwrap();
    let client = world.cluster.lab.node(CLIENT);
    for (masquerade, number) in [(false, 200), (true, 201)] {
        for ((governed, excepted), own) in world
            .endpoints(GOVERNED)
            .into_iter()
            .zip(world.endpoints(EXCEPTED))
            .zip(client.addresses())
        {
            let fronts = if own.is_ipv4() {
                [
                    (format!("10.96.0.{number}"), 389),
                    (format!("10.6.9.{number}"), 389),
                    (own.to_string(), 30000 + number),
                ]
            } else {
                [
                    (format!("fd96::{number}"), 389),
                    (format!("fd00:6::9:{number}"), 389),
                    (own.to_string(), 30000 + number),
                ]
            };
            for (front, port) in fronts {
                translate(&world, &front, port, governed, masquerade);
                translate(&world, &front, port + 1000, excepted, masquerade);
                let at = |port| SocketAddr::new(front.parse().unwrap(), port);
                only_seen_as(
                    &world,
                    &world.shop,
                    at(port),
                    world.cluster.lab.node(GATEWAYS[0]).like(own),
                );
                only_seen_as(&world, &world.shop, at(port + 1000), own);
                only_seen_as(&world, &world.blog, at(port), own);
            }
        }
    }
    // Governed pods' packets alone are looked at: others' leave by their node, to the same server.
    let pods = world.shop.addresses();
    for server in world.endpoints(GOVERNED) {
        assert_eq!(
            capture.count(|packet| pods.iter().any(|pod| packet.is_bare(*pod, server.ip()))),
            0
        );
        let tunnelled = capture.count(|packet| {
            pods.iter()
                .any(|pod| packet.is_tunnelled(*pod, server.ip()))
        });
        assert!(tunnelled > 0, "{server}");
    }
}

/// Where nothing stands between translation and routing, nothing of it leaves; and it comes back by
/// itself.
pub(crate) fn what_classifies_services_is_put_back_and_nothing_leaks_meanwhile(path: &DataPath) {
    if path.backend != "netfilter" {
        return;
    }
    let world = start(path).with_usual_policy();
    let client = world.cluster.lab.node(CLIENT);
    for (front, governed) in ["10.96.0.200", "fd96::200"]
        .into_iter()
        .zip(world.endpoints(GOVERNED))
    {
        translate(&world, front, 389, governed, false);
        let at = SocketAddr::new(front.parse().unwrap(), 389);
        let gateway = world.cluster.lab.node(GATEWAYS[0]).like(at.ip());
        only_seen_as(&world, &world.shop, at, gateway);
        let capture = world.cluster.lab.capture().unwrap();
        for _ in 0..10 {
            client
                .run("nft delete table inet egressgateway_services 2>/dev/null || true")
                .unwrap();
            // Whatever it met, it was not the node's address that was seen.
            if let Ok(seen) = world.shop.connect_udp(at) {
                assert_eq!(seen.ip(), gateway);
            }
        }
        only_seen_as(&world, &world.shop, at, gateway);
        assert_eq!(world.leaks(&capture), [""; 0]);
    }
}

/// A load balancer of the cluster itself, in front of pods and of what listens on a node, while
/// everything outside is governed.
pub(crate) fn load_balancers_of_the_own_cluster_are_reached_where_everything_outside_is_governed(
    path: &DataPath,
) {
    let world = start(path);
    let far = world.cluster.pod("client-2", "far");
    let client_2 = world.cluster.lab.node("client-2");
    client_2.respond(&client_2.addresses(), 9443).unwrap();
    world.make_gateway();
    world.cluster.apply(&policy(""));
    world.leaves_by(&world.shop, GOVERNED, GATEWAYS[0]);
    let host: Vec<SocketAddr> = client_2
        .addresses()
        .into_iter()
        .map(|address| SocketAddr::new(address, 9443))
        .collect();
    for (masquerade, number) in [(false, 210), (true, 220)] {
        for (backends, number) in [(far.endpoints(), number), (host.clone(), number + 1)] {
            for (front, backend) in [format!("10.6.9.{number}"), format!("fd00:6::9:{number}")]
                .into_iter()
                .zip(backends)
            {
                translate(&world, &front, 443, backend, masquerade);
                let at = SocketAddr::new(front.parse().unwrap(), 443);
                // As without a policy: the pod's own address or its node's, which is for other
                // rules to say.
                let other = world.blog.connect_tcp(at).unwrap().ip();
                let blog = world.blog.addresses().contains(&other);
                let own = world
                    .shop
                    .addresses()
                    .iter()
                    .copied()
                    .find(|address| address.is_ipv4() == other.is_ipv4())
                    .unwrap();
                world.seen_as(&world.shop, at, if blog { own } else { other });
            }
        }
    }
}

/// An address that a control plane or a load balancer keeps on some node, in no object of the
/// cluster.
pub(crate) fn an_address_that_only_its_node_knows_of_is_reached_wherever_it_is(path: &DataPath) {
    let world = start(path);
    world.make_gateway();
    world.cluster.apply(&policy(""));
    world.leaves_by(&world.shop, GOVERNED, GATEWAYS[0]);
    for (node, last) in [(GATEWAYS[0], 50), (GATEWAYS[1], 51), (CLIENT, 52)] {
        let holder = world.cluster.lab.node(node);
        let (v4, v6) = (format!("10.6.9.{last}"), format!("fd00:6::9:{last}"));
        // Not preferred, so that no connection leaves with it.
        holder
            .run(&format!(
                "ip addr add {v4}/32 dev eth0; ip addr add {v6}/128 dev eth0 nodad preferred_lft 0"
            ))
            .unwrap();
        let addresses = [v4, v6].map(|address| address.parse().unwrap());
        holder.respond(&addresses, PORT).unwrap();
        for address in addresses {
            for pod in [&world.shop, &world.local] {
                let at = SocketAddr::new(address, PORT);
                world
                    .cluster
                    .eventually(&format!("{pod:?} reaches {at} on {node}"), || {
                        pod.connect_tcp(at)
                            .and_then(|_| pod.connect_udp(at))
                            .map_err(|error| error.to_string())
                    });
            }
        }
    }
}
