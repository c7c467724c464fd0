//! Who is seen as whom.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use egressgateway_testkit::lab::{PodSpec, ServerSpec, ServiceSpec};

use crate::world::{
    CLIENT, DataPath, EXCEPTED, GATEWAY, GATEWAYS, GOVERNED, KNOWING, OTHER, World, policy,
    usual_policy,
};

pub(crate) fn governed_pods_leave_with_the_gateways_address_and_nothing_else_is_touched(
    path: &DataPath,
) {
    let world = World::governed(path);
    let far = world
        .cluster
        .pod("client-2", PodSpec::new("far").label("app", "shopping"));
    let capture = world.cluster.lab.capture().unwrap();
    for (pod, node) in [
        (&world.shop, CLIENT),
        (&far, "client-2"),
        (&world.local, GATEWAYS[0]),
    ] {
        world.leaves_by(pod, GOVERNED, GATEWAYS[0]);
        world.leaves_by(pod, EXCEPTED, node);
        world.leaves_by(pod, OTHER, node);
    }
    for destinations in [GOVERNED, EXCEPTED, OTHER] {
        world.leaves_by(&world.blog, destinations, CLIENT);
        world.leaves_by(&world.cluster.lab.node(CLIENT), destinations, CLIENT);
    }
    for (pod, server) in world.shop.addresses().iter().zip(world.endpoints(GOVERNED)) {
        assert!(
            capture.count(|packet| packet.is_tunnelled(*pod, server.ip())) > 0,
            "{pod} goes through the tunnel"
        );
        assert_eq!(
            capture.count(|packet| packet.is_bare(*pod, server.ip())),
            0,
            "{pod} is not seen outside of the tunnel"
        );
        let client = world.cluster.lab.node(CLIENT).like(*pod);
        let blog = world
            .blog
            .addresses()
            .iter()
            .find(|address| address.is_ipv4() == pod.is_ipv4())
            .copied()
            .unwrap();
        assert_eq!(
            capture.count(|packet| packet.is_tunnelled(blog, server.ip())),
            0,
            "an ungoverned pod does not go through the tunnel"
        );
        assert!(
            capture.count(|packet| packet.is_bare(client, server.ip())) > 0,
            "but leaves by its own node"
        );
    }
}

pub(crate) fn traffic_inside_the_cluster_is_untouched_even_where_everything_outside_is_governed(
    path: &DataPath,
) {
    let world = World::start(path);
    let near = world.cluster.pod(CLIENT, "near");
    let far = world.cluster.pod("client-2", "far");
    let service = world
        .cluster
        .lab
        .service(ServiceSpec::new("web", 80), &[&near, &far])
        .unwrap();
    world.cluster.publish();
    world.make_gateway();
    world.cluster.apply(&policy(""));
    world.leaves_by(&world.shop, GOVERNED, GATEWAYS[0]);
    world.leaves_by(&world.shop, OTHER, GATEWAYS[0]);
    world.leaves_by(&world.blog, OTHER, CLIENT);
    for own in world.shop.addresses() {
        let alike = |address: &IpAddr| address.is_ipv4() == own.is_ipv4();
        for other in near
            .endpoints()
            .into_iter()
            .chain(far.endpoints())
            .filter(|endpoint| alike(&endpoint.ip()))
        {
            world.seen_as(&world.shop, other, *own);
        }
        for address in service
            .addresses()
            .iter()
            .filter(|endpoint| alike(&endpoint.ip()))
        {
            world.seen_as(&world.shop, *address, *own);
        }
        // The other way round: governed pods answer as themselves.
        for endpoint in world
            .shop
            .endpoints()
            .into_iter()
            .filter(|endpoint| alike(&endpoint.ip()))
        {
            let node = world.cluster.lab.node("client-2");
            world.seen_as(&node, endpoint, node.like(endpoint.ip()));
        }
    }
    for endpoint in world.endpoints(GOVERNED) {
        let port = std::net::SocketAddr::new(
            world.cluster.lab.node(CLIENT).like(endpoint.ip()),
            service.node_port(),
        );
        world
            .server
            .connect_tcp(port)
            .unwrap_or_else(|error| panic!("node port {port}: {error}"));
    }
}

pub(crate) fn without_source_translation_the_server_sees_the_pod(path: &DataPath) {
    let world = World::start(path);
    world
        .cluster
        .lab
        .add_server(&ServerSpec::new(KNOWING).routes_to_pods())
        .unwrap();
    world
        .cluster
        .apply(&GATEWAY.replace("spec: {", "spec: {sourceNAT: None, "));
    world.cluster.apply(&policy(
        "  destCIDR: [\"10.6.3.0/24\", \"fd00:6:3::/64\"]\n",
    ));
    let capture = world.cluster.lab.capture().unwrap();
    for (own, endpoint) in world.shop.addresses().iter().zip(world.endpoints(KNOWING)) {
        world.seen_as(&world.shop, endpoint, *own);
        assert!(
            capture.count(|packet| packet.is_tunnelled(*own, endpoint.ip())) > 0,
            "{own} goes through the tunnel"
        );
        assert!(
            capture.count(|packet| packet.is_bare(*own, endpoint.ip())) > 0,
            "and leaves the gateway as itself"
        );
    }
    world.leaves_by(&world.blog, KNOWING, CLIENT);
}

pub(crate) fn ecmp_uses_every_gateway(path: &DataPath) {
    let world = World::start(path);
    world
        .cluster
        .apply(&GATEWAY.replace("spec: {", "spec: {forwardMethod: ecmp, "));
    world.cluster.apply(&usual_policy());
    for endpoint in world.endpoints(GOVERNED) {
        let gateways: BTreeSet<IpAddr> = GATEWAYS
            .iter()
            .map(|node| world.cluster.lab.node(node).like(endpoint.ip()))
            .collect();
        let spread = world.cluster.eventually("both gateways are used", || {
            let mut spread: BTreeMap<IpAddr, usize> = BTreeMap::new();
            for seen in world
                .shop
                .connect_many(endpoint, 64)
                .map_err(|error| error.to_string())?
            {
                *spread.entry(seen.ip()).or_default() += 1;
            }
            if spread.keys().copied().collect::<BTreeSet<_>>() == gateways {
                Ok(spread)
            } else {
                Err(format!("{spread:?}"))
            }
        });
        assert!(
            spread.values().all(|count| *count >= 16),
            "nearly even: {spread:?}"
        );
    }
    // A connection stays with its gateway.
    for endpoint in world.endpoints(GOVERNED) {
        let mut flow = world.shop.open_udp(endpoint).unwrap();
        let first = flow.source_seen();
        for _ in 0..10 {
            assert_eq!(flow.echo().unwrap(), first);
        }
    }
}

pub(crate) fn an_explicit_egress_address_is_what_the_server_sees(path: &DataPath) {
    let world = World::start(path);
    // An administrator has put the address on one of the nodes before, with the length of the
    // node's own network.
    let node = world.cluster.lab.node(GATEWAYS[0]);
    node.run("ip addr add 10.6.0.61/16 dev eth0; ip addr add fd00:6::61/64 dev eth0 nodad preferred_lft 0").unwrap();
    let by_hand = || {
        ["10.6.0.61", "fd00:6::61"]
            .map(|address| node.run(&format!("ip -o addr show to {address}")).unwrap())
    };
    let before = by_hand();
    world.cluster.label_node(GATEWAYS[1], "egress", None);
    world.cluster.apply(&GATEWAY.replace(
        "spec: {",
        "spec: {sourceNAT: EgressIP, egressIPs: {ipv4: [\"10.6.0.60-10.6.0.66\"], ipv6: [\"fd00:6::60-fd00:6::66\"]}, ",
    ));
    world.cluster.apply(&policy("  destCIDR: [\"10.6.1.0/24\", \"fd00:6:1::/64\"]\n  egressIP: {ipv4: 10.6.0.61, ipv6: \"fd00:6::61\"}\n"));
    let owner = world
        .cluster
        .eventually("the policy's address has an owner", || {
            let status = world.cluster.status("EgressGatewayPolicy", "shopping");
            status["node"]
                .as_str()
                .map(str::to_owned)
                .ok_or_else(|| status.to_string())
        });
    assert_eq!(owner, GATEWAYS[0], "the only one");
    for (endpoint, expected) in world
        .endpoints(GOVERNED)
        .into_iter()
        .zip(["10.6.0.61", "fd00:6::61"])
    {
        world.seen_as(&world.shop, endpoint, expected.parse().unwrap());
        world.seen_as(&world.local, endpoint, expected.parse().unwrap());
    }
    world.leaves_by(&world.blog, GOVERNED, CLIENT);
    // An agent that had not read the host's addresses again yet may have added its own for that
    // long.
    world
        .cluster
        .eventually("the node has the address once, as it was", || {
            let now = by_hand();
            if now == before {
                Ok(())
            } else {
                Err(format!("{now:?}"))
            }
        });
    world.cluster.delete("EgressGatewayPolicy", "shopping");
    world.leaves_by(&world.shop, GOVERNED, CLIENT);
    assert_eq!(by_hand(), before, "what was put there by hand stays");
}

pub(crate) fn pods_are_chosen_by_subnet_too(path: &DataPath) {
    let world = World::start(path);
    world.make_gateway();
    let (v4, v6) = (world.shop.v4(), world.shop.v6());
    let subnets = format!("appliedTo: {{ipv4PodSubnet: {v4}/32, ipv6PodSubnet: \"{v6}/128\"}}");
    world.cluster.apply(&usual_policy().replace(
        "appliedTo: {podSelector: {matchLabels: {app: shopping}}}",
        &subnets,
    ));
    world.leaves_by(&world.shop, GOVERNED, GATEWAYS[0]);
    world.leaves_by(&world.shop, EXCEPTED, CLIENT);
    world.leaves_by(&world.blog, GOVERNED, CLIENT);
}

pub(crate) fn long_streams_fit_the_tunnel(path: &DataPath) {
    let world = World::governed(path);
    for endpoint in world.endpoints(GOVERNED) {
        let mut flow = world.shop.open_tcp(endpoint).unwrap();
        flow.echo_bytes(1_000_000)
            .unwrap_or_else(|error| panic!("{endpoint}: {error}"));
    }
}

pub(crate) fn pods_are_told_of_a_gateway_whose_network_takes_smaller_packets(path: &DataPath) {
    let world = World::governed(path);
    // A network card that takes jumbo frames on a client, while those of all gateways don't.
    world
        .cluster
        .lab
        .node(CLIENT)
        .run("ip link set eth0 mtu 9000")
        .unwrap();
    let device = if path.tunnel == "vxlan" {
        "egress-vxlan-v4"
    } else {
        "egress-geneve"
    };
    world.cluster.eventually("the client's tunnel follows", || {
        let link = world
            .cluster
            .lab
            .node(CLIENT)
            .run(&format!("ip link show {device}"))
            .unwrap();
        if link.contains("mtu 89") {
            Ok(())
        } else {
            Err(link)
        }
    });
    for endpoint in world.endpoints(GOVERNED) {
        // The last ones fill the pod's own device.
        for size in if endpoint.is_ipv4() {
            [1000, 1440, 1472]
        } else {
            [1000, 1420, 1452]
        } {
            // The first one may be what tells the pod.
            world
                .cluster
                .eventually(&format!("{size} bytes arrive at {endpoint}"), || {
                    let mut flow = world
                        .shop
                        .open_udp(endpoint)
                        .map_err(|error| error.to_string())?;
                    flow.echo_bytes(size).map_err(|error| error.to_string())
                });
        }
    }
    world.leaves_by(&world.shop, GOVERNED, GATEWAYS[0]);
}
