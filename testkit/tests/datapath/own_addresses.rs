//! The node's own address is the one that its EgressNode names, whatever else its devices have.

use std::{cell::RefCell, net::IpAddr};

use egressgateway_testkit::lab::{Builder, Families, Lab, NodeSpec};
use serde_json::json;

use crate::{
    address_holders::STEP,
    world::{CLIENT, DataPath, GATEWAYS, GOVERNED, Place, World, lab, policy},
};

/// A floating address comes first on the gateway's device, as after a restart of a network manager.
const FLOATING_FIRST: &str = "
    routes=$(ip -4 route show dev eth0 | grep via)
    own=$(ip -4 -o addr show dev eth0 | grep -o '10[0-9./]*')
    ip addr del $own dev eth0
    ip addr add 10.6.0.213/32 dev eth0
    ip addr add $own dev eth0
    echo \"$routes\" | while read route; do ip route replace $route dev eth0; done
    [ $(ip -4 -o addr show dev eth0 | head -1 | grep -c 10.6.0.213) = 1 ]";

/// What a virtual router, a control plane's virtual address and an administrator bring, some of it
/// in the node's own networks.
const MORE_ADDRESSES: &str = "
    ip addr add 10.6.9.50/32 dev eth0
    ip addr add 10.6.9.51/16 dev eth0
    ip -6 addr add fd00:6::9:50/128 dev eth0 nodad
    ip -6 addr add fd00:6::9:51/64 dev eth0 nodad
    ip -6 addr add fd00:6::9:52/64 dev eth0 nodad preferred_lft 0";

pub(crate) fn virtual_and_floating_addresses_change_no_source(path: &DataPath) {
    let place = Place::make(lab(), Families::Dual);
    place.lab.node(GATEWAYS[0]).run(FLOATING_FIRST).unwrap();
    let world = place.with_daemons(path).with_usual_policy();
    let gateway = world.cluster.lab.node(GATEWAYS[0]);
    let capture = world.cluster.lab.capture().unwrap();
    let streams = world
        .endpoints(GOVERNED)
        .into_iter()
        .map(|to| world.shop.stream(to, STEP).fresh_ports().start().unwrap());
    let streams: Vec<_> = streams.collect();
    gateway.run(MORE_ADDRESSES).unwrap();
    world
        .cluster
        .eventually("the EgressNode tells of the new addresses", || {
            let status = world.cluster.status("EgressNode", GATEWAYS[0]);
            let named = ["physicalInterfaceIPv4", "physicalInterfaceIPv6"]
                .map(|field| status[field].as_str().map(str::to_owned));
            assert_eq!(
                named,
                [
                    Some(gateway.v4().to_string()),
                    Some(gateway.v6().to_string())
                ]
            );
            if status["interfaces"].to_string().contains("fd00:6::9:52") {
                Ok(())
            } else {
                Err(status.to_string())
            }
        });
    world.leaves_by(&world.shop, GOVERNED, GATEWAYS[0]);
    world.leaves_by(&world.local, GOVERNED, GATEWAYS[0]);
    for stream in streams {
        let report = stream.finish().unwrap();
        assert_eq!(
            report.sources.len(),
            1,
            "from the first packet on: {:?}",
            report.sources
        );
    }
    let own = gateway.addresses();
    assert_eq!(
        world.leaks_besides(&capture, &own),
        [""; 0],
        "every packet of governed pods has one of {own:?}"
    );
    gateway
        .run("ip addr del 10.6.9.50/32 dev eth0; ip -6 addr del fd00:6::9:51/64 dev eth0")
        .unwrap();
    world.leaves_by(&world.shop, GOVERNED, GATEWAYS[0]);
}

pub(crate) fn a_gateway_whose_address_changes_goes_on_and_no_connection_keeps_the_old_one(
    path: &DataPath,
) {
    let world = World::governed(path);
    let to = world.endpoints(GOVERNED)[0];
    let datagrams = RefCell::new(world.shop.open_udp(to).unwrap());
    let gateway = world.cluster.lab.node(GATEWAYS[0]);
    let old = gateway.v4();
    assert_eq!(
        datagrams.borrow_mut().echo().unwrap().ip(),
        IpAddr::from(old)
    );
    world.cluster.label_node(GATEWAYS[1], "egress", None);
    let routes = gateway.run("ip -4 route show dev eth0 | grep via").unwrap();
    gateway
        .run(&format!(
            "ip addr del {old}/16 dev eth0; ip addr add 10.6.0.113/16 dev eth0"
        ))
        .unwrap();
    for route in routes.lines() {
        gateway
            .run(&format!("ip route replace {route} dev eth0"))
            .unwrap();
    }
    for node in world
        .cluster
        .lab
        .nodes()
        .iter()
        .filter(|node| node.name() != GATEWAYS[0])
    {
        node.run("ip route replace 10.244.3.0/24 via 10.6.0.113 dev eth0")
            .unwrap();
    }
    let mut object = world.cluster.lab.node_object(GATEWAYS[0], true);
    object["status"]["addresses"][0]["address"] = json!("10.6.0.113");
    world
        .cluster
        .api
        .merge(
            "Node",
            "",
            GATEWAYS[0],
            &json!({"status": object["status"]}),
        )
        .unwrap();
    let new: IpAddr = [10, 6, 0, 113].into();
    world.seen_as(&world.shop, to, new);
    world.seen_as(&world.local, to, new);
    world.seen_as(
        &world.shop,
        world.endpoints(GOVERNED)[1],
        gateway.v6().into(),
    );
    world.cluster.eventually(
        "datagrams of a connection from before have the new address",
        || {
            let seen = datagrams
                .borrow_mut()
                .echo()
                .map_err(|error| error.to_string())?
                .ip();
            if seen == new {
                Ok(())
            } else {
                Err(format!("seen as {seen}"))
            }
        },
    );
    let later = world.cluster.lab.capture().unwrap();
    for _ in 0..20 {
        assert_eq!(datagrams.borrow_mut().echo().unwrap().ip(), new);
    }
    assert_eq!(later.count(|packet| packet.source == IpAddr::from(old)), 0);
}

/// Addresses of servers that both routers of [`SECOND_ROUTER`] lead to.
pub(crate) const BEYOND: [&str; 2] = ["198.51.100.7", "2001:db8:51::7"];

/// The lab's router is at the second switch too. It lets in only what comes by the network that its
/// source belongs to.
const SECOND_ROUTER: &str = "
    ip -n router link add eth1 type veth peer name router-eth1 netns underlay
    ip -n underlay link set router-eth1 master br1 up
    ip -n router addr add 10.7.255.254/16 dev eth1
    ip -n router -6 addr add fd00:7::fffe/64 dev eth1 nodad
    ip -n router link set eth1 up
    ip netns exec router sh -c 'echo 1 >/proc/sys/net/ipv4/conf/all/rp_filter'
    ip netns exec router nft -f - <<END
    table ip6 strict {
        chain pre {
            type filter hook prerouting priority -300
            fib saddr . iif oif missing drop
        }
    }
END";

/// Gateways with a second interface.
pub(crate) fn with_second_network() -> Builder {
    let gateway = |name: &str, last: u8| {
        let addresses = [format!("10.7.0.{last}/16"), format!("fd00:7::{last}/64")];
        NodeSpec::new(name)
            .label("egress", "true")
            .second_interface(addresses.iter().map(String::as_str))
    };
    Lab::builder()
        .nodes([CLIENT, "client-2"])
        .node(gateway(GATEWAYS[0], 13))
        .node(gateway(GATEWAYS[1], 14))
}

/// Connects the second network, and adds servers at [`BEYOND`].
pub(crate) fn connect_second_network(lab: &Lab) {
    lab.root().run(SECOND_ROUTER).unwrap();
    lab.server(BEYOND).unwrap();
}

pub(crate) fn by_another_device_the_source_is_that_devices_own(path: &DataPath) {
    let place = Place::make(with_second_network(), Families::Dual);
    connect_second_network(&place.lab);
    let gateway = place.lab.node(GATEWAYS[0]);
    // As DHCP and a network manager leave it, with addresses of others before the device's own.
    gateway
        .run(
            "ip addr del 10.7.0.13/16 dev eth1; ip addr add 10.7.9.9/32 dev eth1; ip addr add 10.7.0.13/16 dev eth1
             ip -6 addr add fd00:7::9:9/128 dev eth1 nodad; ip -6 addr add fd00:7::9:10/64 dev eth1 nodad
             ip route add default via 10.7.255.254 dev eth1 metric 500; ip -6 route add default via fd00:7::fffe dev eth1 metric 5000
             ip route add 198.51.100.0/24 via 10.7.255.254 dev eth1; ip -6 route add 2001:db8:51::/64 via fd00:7::fffe dev eth1",
        )
        .unwrap();
    let world = place.with_daemons(path).with_usual_policy();
    world.cluster.apply(&policy("  destCIDR: [\"10.6.1.0/24\", \"fd00:6:1::/64\", \"198.51.100.0/24\", \"2001:db8:51::/64\"]\n"));
    for (to, own) in world
        .endpoints(BEYOND)
        .into_iter()
        .zip(["10.7.0.13", "fd00:7::13"])
    {
        world.seen_as(&world.shop, to, own.parse().unwrap());
        world.seen_as(&world.local, to, own.parse().unwrap());
    }
    world.leaves_by(&world.shop, GOVERNED, GATEWAYS[0]);
    world.cluster.eventually("the EgressNode says so", || {
        let interfaces = world.cluster.status("EgressNode", GATEWAYS[0])["interfaces"].clone();
        let said = |field: &str| {
            interfaces
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|one| one[field].as_str())
                .collect::<Vec<_>>()
        };
        let (v4, v6) = (said("sourceIPv4"), said("sourceIPv6"));
        if v4 == ["10.6.0.13", "10.7.0.13"] && v6 == ["fd00:6::13", "fd00:7::13"] {
            Ok(())
        } else {
            Err(interfaces.to_string())
        }
    });
}
