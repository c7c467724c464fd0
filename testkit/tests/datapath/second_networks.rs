//! Egress addresses of another network than that of the default route: they are put there, and
//! leave there.

use std::net::IpAddr;

use egressgateway_testkit::lab::{Families, Node};

use crate::{
    own_addresses::{BEYOND, connect_second_network, with_second_network},
    world::{DataPath, GATEWAY, GATEWAYS, Place, World, policy},
};

/// A pool in the second network, with further fields.
fn gateway(more: &str) -> String {
    let pool =
        format!("{{ipv4: [\"10.7.0.60-10.7.0.66\"], ipv6: [\"fd00:7::60-fd00:7::66\"]{more}}}");
    GATEWAY.replace(
        "spec: {",
        &format!("spec: {{sourceNAT: EgressIP, egressIPs: {pool}, "),
    )
}

/// A default route of the second device, as DHCP on both interfaces leaves it.
fn second_default(node: &Node, device: &str) {
    node.run(&format!(
        "ip route add default via 10.7.255.254 dev {device} metric 500; ip -6 route add default via fd00:7::fffe dev {device} metric 5000"
    ))
    .unwrap();
}

/// With the strictest filter that the kernel has for IPv4.
fn filter_strictly(node: &Node) {
    node.run("for device in all eth0; do echo 1 >/proc/sys/net/ipv4/conf/$device/rp_filter; done")
        .unwrap();
}

fn place() -> Place {
    let place = Place::make(with_second_network(), Families::Dual);
    connect_second_network(&place.lab);
    place
}

/// Pods of the client and of the gateways are seen with the addresses of the second network.
fn leaves_by_the_second_network(world: &World, device: &str) {
    world.cluster.apply(&policy(
        "  destCIDR: [\"198.51.100.0/24\", \"2001:db8:51::/64\"]\n",
    ));
    let owner = world.cluster.eventually("the policy has a node", || {
        let status = world.cluster.status("EgressGatewayPolicy", "shopping");
        status["node"]
            .as_str()
            .map(str::to_owned)
            .ok_or_else(|| status.to_string())
    });
    for (to, address) in world
        .endpoints(BEYOND)
        .into_iter()
        .zip(["10.7.0.60", "fd00:7::60"])
    {
        let address: IpAddr = address.parse().unwrap();
        world.seen_as(&world.shop, to, address);
        world.seen_as(&world.local, to, address);
        let held = world
            .cluster
            .lab
            .node(&owner)
            .run(&format!("ip -o addr show dev {device} to {address}"))
            .unwrap();
        assert!(
            held.contains(&address.to_string()),
            "{address} is not on {device} of {owner}"
        );
    }
    let large = world
        .shop
        .open_tcp(world.endpoints(BEYOND)[0])
        .and_then(|mut flow| flow.echo_bytes(200_000));
    large.unwrap();
}

pub(crate) fn an_address_of_a_second_network_leaves_there_past_strict_filters(path: &DataPath) {
    let place = place();
    for node in GATEWAYS.map(|name| place.lab.node(name)) {
        second_default(&node, "eth1");
        filter_strictly(&node);
    }
    let world = place.with_daemons(path);
    world.cluster.apply(&gateway(""));
    leaves_by_the_second_network(&world, "eth1");
}

pub(crate) fn an_address_of_a_bridges_network_leaves_there(path: &DataPath) {
    let place = place();
    for (node, last) in GATEWAYS
        .map(|name| place.lab.node(name))
        .into_iter()
        .zip([13, 14])
    {
        node.run(&format!(
            "ip link add br-ext type bridge; ip link set br-ext up; ip addr flush dev eth1; ip link set eth1 master br-ext
             ip addr add 10.7.0.{last}/16 dev br-ext; ip -6 addr add fd00:7::{last}/64 dev br-ext nodad"
        ))
        .unwrap();
        second_default(&node, "br-ext");
    }
    let world = place.with_daemons(path);
    world.cluster.apply(&gateway(""));
    leaves_by_the_second_network(&world, "br-ext");
}

pub(crate) fn without_a_router_a_second_network_lets_nothing_out_and_says_why(path: &DataPath) {
    let place = place();
    for node in GATEWAYS.map(|name| place.lab.node(name)) {
        // The device is a physical one by its default route, which names no router.
        node.run("ip route add default dev eth1 metric 500; ip -6 route add default dev eth1 metric 5000").unwrap();
    }
    let world = place.with_daemons(path);
    world.cluster.apply(&gateway(""));
    world.cluster.apply(&policy(
        "  destCIDR: [\"198.51.100.0/24\", \"2001:db8:51::/64\"]\n",
    ));
    world
        .cluster
        .eventually("the policy says that there is no router", || {
            let status = world.cluster.status("EgressGatewayPolicy", "shopping");
            if status["conditions"].to_string().contains("NoRouter") {
                Ok(())
            } else {
                Err(status.to_string())
            }
        });
    world.is_dropped(&world.shop, BEYOND);
    world.cluster.apply(&gateway(
        ", router: {ipv4: 10.7.255.254, ipv6: \"fd00:7::fffe\"}",
    ));
    leaves_by_the_second_network(&world, "eth1");
}
