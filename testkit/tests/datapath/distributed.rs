//! Sources are translated on the pods' own nodes: connections outlive their gateway.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use egressgateway_testkit::lab::{Namespace, PodSpec};
use serde_json::Value;

use crate::{
    address_holders::{self, Given, is_given, owned_by, seen_as_given, wait_given},
    failover::{drain, probed},
    open_connections::Open,
    world::{CLIENT, DataPath, GATEWAYS, World, usual_policy},
};

/// The usual gateway with a pool of one address of each family, which pods' own nodes translate to.
fn gateway() -> String {
    address_holders::gateway(1).replace("spec: {", "spec: {nat: Distributed, portsPerNode: 256, ")
}

/// The usual policy in force with egress addresses, which are with the first gateway node.
fn distributed(world: World) -> (World, [IpAddr; 2]) {
    world.make_gateway();
    world.cluster.apply(&gateway());
    world.cluster.apply(&usual_policy());
    let Given { addresses, node } = wait_given(&world, "shopping");
    assert_eq!(node, GATEWAYS[0]);
    for pod in [&world.shop, &world.local] {
        seen_as_given(&world, pod, addresses);
    }
    (world, addresses)
}

/// The ports that a node has of an address, as its EgressNode says.
fn ports(world: &World, node: &str, address: IpAddr) -> BTreeSet<u16> {
    let status = world.cluster.status("EgressNode", node);
    let blocks = status["portBlocks"].as_array().into_iter().flatten();
    let port = |value: &Value| u16::try_from(value.as_u64().unwrap()).unwrap();
    blocks
        .filter(|block| block["address"] == address.to_string())
        .flat_map(|block| port(&block["first"])..=port(&block["last"]))
        .collect()
}

/// The sources that a server sees of several connections of a pod.
fn seen(pod: &Namespace, to: SocketAddr) -> BTreeSet<SocketAddr> {
    (0..8)
        .flat_map(|_| [pod.connect_tcp(to), pod.connect_udp(to)])
        .map(Result::unwrap)
        .collect()
}

/// As the kernel prints it in its table of connections: IPv6 with all digits.
fn printed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => {
            let groups = address.segments().map(|group| format!("{group:04x}"));
            groups.join(":")
        }
    }
}

/// The connections that a node tracks from an egress address to a server: what another node has
/// translated.
fn tracked(world: &World, node: &str, address: IpAddr, server: IpAddr) -> Vec<String> {
    let table = world
        .cluster
        .lab
        .node(node)
        .run("cat /proc/net/nf_conntrack")
        .unwrap();
    let ends = format!("src={} dst={} ", printed(address), printed(server));
    assert!(!table.is_empty(), "the node tracks what its own pod began");
    table
        .lines()
        .filter(|line| line.contains(&ends))
        .map(str::to_owned)
        .collect()
}

pub(crate) fn each_node_has_ports_of_its_own_and_gateways_keep_nothing(path: &DataPath) {
    let (world, addresses) = distributed(World::start(path));
    let capture = world.cluster.lab.capture().unwrap();
    let other = world
        .cluster
        .pod("client-2", PodSpec::new("other").label("app", "shopping"));
    seen_as_given(&world, &other, addresses);
    let places = [
        (&*world.shop, CLIENT),
        (&*other, "client-2"),
        (&*world.local, GATEWAYS[0]),
    ];
    for (endpoint, address) in world
        .endpoints(crate::world::GOVERNED)
        .into_iter()
        .zip(addresses)
    {
        let mut all = BTreeSet::new();
        for (pod, node) in places {
            let own = ports(&world, node, address);
            assert_eq!(own.len(), 256, "{node}");
            for source in seen(pod, endpoint) {
                assert_eq!(source.ip(), address, "{node}");
                assert!(own.contains(&source.port()), "{node}: {source}, {own:?}");
            }
            all.extend(own);
        }
        assert_eq!(all.len(), 3 * 256, "no port is two nodes'");
        assert_eq!(
            tracked(&world, GATEWAYS[0], address, endpoint.ip()),
            [""; 0]
        );
    }
    assert_eq!(world.leaks_besides(&capture, &addresses), [""; 0]);
}

pub(crate) fn connections_go_on_through_drains_and_back(path: &DataPath) {
    let (world, addresses) = distributed(World::start(path));
    let world = probed(world);
    let next = world
        .cluster
        .pod(GATEWAYS[1], PodSpec::new("next").label("app", "shopping"));
    seen_as_given(&world, &next, addresses);
    let capture = world.cluster.lab.capture().unwrap();
    let mut open = [&*world.shop, &*world.local, &*next].map(|pod| Open::from(&world, pod));
    for (drained, taken) in [(GATEWAYS[0], GATEWAYS[1]), (GATEWAYS[1], GATEWAYS[0])] {
        drain(&world, drained, Some("true"));
        is_given(&world, taken, addresses);
        owned_by(&world, addresses, taken);
        for open in &mut open {
            open.datagrams_go_on_as(&world, addresses);
            open.sessions_go_on();
        }
        drain(&world, drained, None);
    }
    for open in open {
        open.finish("two drains");
    }
    assert_eq!(world.leaks_besides(&capture, &addresses), [""; 0]);
}

pub(crate) fn connections_go_on_when_their_gateway_loses_its_power(path: &DataPath) {
    let world = World::start_with_leases_of(path, Duration::from_secs(4));
    let (world, addresses) = distributed(world);
    let world = probed(world);
    let next = world
        .cluster
        .pod(GATEWAYS[1], PodSpec::new("next").label("app", "shopping"));
    seen_as_given(&world, &next, addresses);
    let capture = world.cluster.lab.capture().unwrap();
    let mut open = [&*world.shop, &*next].map(|pod| Open::from(&world, pod));
    world.cluster.lab.node(GATEWAYS[0]).power_off().unwrap();
    is_given(&world, GATEWAYS[1], addresses);
    for open in &mut open {
        open.datagrams_go_on_as(&world, addresses);
        open.sessions_go_on();
    }
    for open in open {
        open.finish("without its power");
    }
    assert_eq!(world.leaks_besides(&capture, &addresses), [""; 0]);
}

pub(crate) fn a_standby_takes_the_address_of_a_lost_node_without_the_api_server(path: &DataPath) {
    let (world, addresses) = distributed(World::start(path));
    let mut world = probed(world);
    let capture = world.cluster.lab.capture().unwrap();
    let mut open = Open::from(&world, &world.shop);
    world.cluster.api.stop();
    world.cluster.lab.node(GATEWAYS[0]).power_off().unwrap();
    for address in addresses {
        let here = || {
            let standby = world.cluster.lab.node(GATEWAYS[1]);
            let held = standby.run(&format!("ip -o addr show to {address}"));
            match held.map_err(|error| error.to_string())?.as_str() {
                "" => Err(format!("nobody has {address}")),
                _ => Ok(()),
            }
        };
        world
            .cluster
            .eventually("the standby has the address", here);
    }
    open.datagrams_go_on_as(&world, addresses);
    open.sessions_go_on();
    // It had the address all the time: nobody told it anything. Two holders do no harm.
    world.cluster.lab.node(GATEWAYS[0]).power_on().unwrap();
    owned_by(&world, addresses, GATEWAYS[0]);
    open.datagrams_go_on_as(&world, addresses);
    open.sessions_go_on();
    open.finish("a standby without the API server");
    assert_eq!(world.leaks_besides(&capture, &addresses), [""; 0]);
}

pub(crate) fn a_tunnel_and_a_table_that_are_deleted_come_back_and_no_connection_ends(
    path: &DataPath,
) {
    let (world, addresses) = distributed(World::start(path));
    let mut open = Open::from(&world, &world.shop);
    let gateway = world.cluster.lab.node(GATEWAYS[0]);
    for deed in [
        "nft delete table netdev egressgateway_relay",
        "nft delete table inet egressgateway_relay",
        "ip link del egress-vxlan-v4",
        "ip link del egress-vxlan-v6",
    ] {
        gateway.run(deed).unwrap();
        open.datagrams_go_on_as(&world, addresses);
        open.sessions_go_on();
    }
    open.finish("what somebody deleted");
}

pub(crate) fn connections_end_when_another_node_begins_to_translate(path: &DataPath) {
    let (world, addresses) = distributed(World::start(path));
    let mut before = Open::from(&world, &world.shop);
    world.cluster.apply(&address_holders::gateway(1));
    world.cluster.eventually("the gateway translates", || {
        let status = world.cluster.status("EgressGateway", "exit");
        let marks = status["nodeList"].as_array().into_iter().flatten();
        if marks.into_iter().any(|node| node["mark"].is_number()) {
            Ok(())
        } else {
            Err(status.to_string())
        }
    });
    before.datagrams_go_on_as(&world, addresses);
    before.sessions_are_reset(&world);
    let mut after = Open::from(&world, &world.shop);
    world.cluster.apply(&gateway());
    after.datagrams_go_on_as(&world, addresses);
    after.sessions_are_reset(&world);
}
