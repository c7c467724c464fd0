//! The tunnel's network beside what the hosts reach there: nothing of it is taken away.

use std::{net::IpAddr, time::Duration};

use egressgateway_testkit::{
    cluster::{CONTROLLER, agent},
    lab::{Families, ServerSpec},
};
use nix::sys::signal::Signal;

use crate::world::{CLIENT, DataPath, GATEWAYS, GOVERNED, Place, World, lab, policy};

/// A network that hosts and servers of these checks are in.
const SHARED: &str = ", ipv4CIDR: 172.31.0.0/16, ipv6CIDR: 'fd31::/112'";
/// Servers in it, behind the router.
const FAR: [&str; 2] = ["172.31.40.7", "fd31::4007"];
/// Every node with the last part of its address in a network inside of it.
const NODES: [(&str, u8); 4] = [
    (CLIENT, 11),
    ("client-2", 12),
    (GATEWAYS[0], 13),
    (GATEWAYS[1], 14),
];

/// What an EgressNode says of a condition: its status, and its message.
fn condition(world: &World, node: &str, name: &str) -> Option<(String, String)> {
    let status = world.cluster.status("EgressNode", node);
    let condition = status["conditions"]
        .as_array()?
        .iter()
        .find(|condition| condition["type"] == name)?
        .clone();
    Some((
        condition["status"].as_str()?.to_owned(),
        condition["message"].as_str()?.to_owned(),
    ))
}

/// The overlay address of a node.
fn overlay(world: &World, node: &str, field: &str) -> IpAddr {
    let text = world.cluster.status("EgressNode", node)[field]
        .as_str()
        .unwrap()
        .to_owned();
    text.split('/').next().unwrap().parse().unwrap()
}

pub(crate) fn what_hosts_reach_in_the_tunnels_network_stays_theirs(path: &DataPath) {
    let place = Place::make(lab(), Families::Dual);
    place.lab.add_server(&ServerSpec::new(FAR)).unwrap();
    for (node, last) in NODES {
        place
            .lab
            .node(node)
            .run(&format!("ip addr add 172.31.0.{last}/20 dev eth0; ip addr add fd31::{last}/118 dev eth0 nodad preferred_lft 0"))
            .unwrap();
    }
    let world = place.with_tunnel(path, SHARED);
    for endpoint in world.endpoints(FAR) {
        let own = world.cluster.lab.node(CLIENT).like(endpoint.ip());
        world.seen_as(&world.blog, endpoint, own);
        let seen = world
            .cluster
            .lab
            .node(CLIENT)
            .connect_tcp(endpoint)
            .unwrap();
        assert!(
            seen.ip() == own || seen.ip().to_string().ends_with("11"),
            "the node itself is seen as {seen}"
        );
    }
    world
        .cluster
        .lab
        .node(CLIENT)
        .run("ping -c 1 -W 5 172.31.0.12; ping -c 1 -W 5 fd31::12")
        .unwrap();
    for (node, _) in NODES {
        for field in ["vxlanIPv4IP", "vxlanIPv6IP"] {
            // Once the agents have said what they are attached to.
            world.cluster.eventually(
                &format!("{node} has a tunnel address outside of the nodes' networks"),
                || match overlay(&world, node, field) {
                    IpAddr::V4(address) if address.octets()[2] < 16 => Err(address.to_string()),
                    IpAddr::V6(address) if address.segments()[7] < 0x400 => {
                        Err(address.to_string())
                    }
                    _ => Ok(()),
                },
            );
        }
        assert_eq!(condition(&world, node, "NetworkOverlap"), None);
    }
    // What a policy governs there is steered like everything else.
    world.make_gateway();
    world.cluster.apply(&policy(""));
    world.leaves_by(&world.shop, FAR, GATEWAYS[0]);
    world.leaves_by(&world.shop, GOVERNED, GATEWAYS[0]);
}

pub(crate) fn a_peers_address_that_the_host_reaches_elsewhere_is_left_alone(path: &DataPath) {
    let world = World::governed(path);
    let capture = world.cluster.lab.capture().unwrap();
    let client = world.cluster.lab.node(CLIENT);
    let there: Vec<IpAddr> = ["vxlanIPv4IP", "vxlanIPv6IP"]
        .map(|field| overlay(&world, GATEWAYS[0], field))
        .into();
    for address in &there {
        client
            .run(&format!(
                "ip route add {address} dev eth0 metric 5000 proto static"
            ))
            .unwrap();
    }
    for address in &there {
        world
            .cluster
            .eventually("the host's own route is the only one", || {
                let routes = client
                    .run(&format!(
                        "ip -{} route show {address}",
                        if address.is_ipv4() { 4 } else { 6 }
                    ))
                    .unwrap();
                if routes.contains("dev eth0") && !routes.contains("egress") {
                    Ok(())
                } else {
                    Err(routes)
                }
            });
    }
    world.cluster.eventually("the node says so", || {
        match condition(&world, CLIENT, "NetworkOverlap") {
            Some((status, message))
                if status == "True" && message.contains(&there[0].to_string()) =>
            {
                Ok(())
            }
            other => Err(format!("{other:?}")),
        }
    });
    assert_eq!(world.leaks(&capture), [""; 0]);
    for address in &there {
        client
            .run(&format!("ip route del {address} dev eth0 metric 5000"))
            .unwrap();
    }
    world.leaves_by(&world.shop, GOVERNED, GATEWAYS[0]);
    world.cluster.eventually("the node says it no more", || {
        match condition(&world, CLIENT, "NetworkOverlap") {
            None => Ok(()),
            Some(said) => Err(format!("{said:?}")),
        }
    });
    assert_eq!(world.leaks(&capture), [""; 0]);
}

pub(crate) fn a_cluster_that_gets_another_tunnel_network_loses_next_to_nothing(path: &DataPath) {
    let mut world = Place::make(lab(), Families::Dual)
        .with_tunnel(path, SHARED)
        .with_usual_policy();
    let capture = world.cluster.lab.capture().unwrap();
    world.cluster.configure(&format!(
        "policyBackend: {}\ntunnel: {{kind: {}}}\n",
        path.backend, path.tunnel
    ));
    let streams: Vec<_> = world
        .endpoints(GOVERNED)
        .into_iter()
        .map(|to| {
            world
                .shop
                .stream(to, Duration::from_millis(10))
                .fresh_ports()
                .start()
                .unwrap()
        })
        .collect();
    for (node, _) in NODES {
        world.cluster.kill(&agent(node), Signal::SIGTERM);
        if path.tunnel == "vxlan" {
            // As a former version had it.
            let own = overlay(&world, node, "vxlanIPv4IP");
            let addresses = format!(
                "ip addr add {own}/16 dev egress-vxlan-v4; ip addr del {own}/32 dev egress-vxlan-v4"
            );
            world.cluster.lab.node(node).run(&addresses).unwrap();
        }
    }
    world.cluster.kill(CONTROLLER, Signal::SIGTERM);
    world.cluster.start_controller();
    world.cluster.start_agents();
    for (node, _) in NODES {
        world.cluster.eventually(
            &format!("{node} has an address of the other network"),
            || {
                let own = overlay(&world, node, "vxlanIPv4IP");
                let routes = world
                    .cluster
                    .lab
                    .node(node)
                    .run("ip route show; ip addr show")
                    .unwrap_or_default();
                if routes.contains(&own.to_string()) && !routes.contains("172.31.0.") {
                    Ok(())
                } else {
                    Err(routes)
                }
            },
        );
    }
    world.cluster.tunnels_built();
    world.leaves_by(&world.shop, GOVERNED, GATEWAYS[0]);
    for stream in streams {
        let report = stream.finish().unwrap();
        eprintln!(
            "{} of {} lost, at most {:?} without an answer",
            report.lost(),
            report.sent,
            report.longest_gap
        );
        assert!(
            report.lost() * 2 < report.sent,
            "{} of {} lost",
            report.lost(),
            report.sent
        );
    }
    assert_eq!(world.leaks(&capture), [""; 0]);
}
