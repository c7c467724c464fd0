//! What breaks: nothing of it may show a wrong source outside.

use std::time::{Duration, Instant};

use egressgateway_testkit::{
    lab::{Packet, Protocol},
    pace::patient,
};

use crate::world::{CLIENT, DataPath, GATEWAY, GATEWAYS, GOVERNED, OTHER, World, measured, policy};

/// How often a governed connection is tried while something breaks.
const STEP: Duration = Duration::from_millis(5);

pub(crate) fn a_deleted_gateway_object_lets_nothing_out(path: &DataPath) {
    let world = World::governed(path);
    let capture = world.cluster.lab.capture().unwrap();
    world.cluster.delete("EgressGateway", "exit");
    world.is_dropped(&world.shop, GOVERNED);
    world.is_dropped(&world.local, GOVERNED);
    world.leaves_by(&world.shop, OTHER, CLIENT);
    assert_eq!(world.leaks(&capture), [""; 0]);
    world.cluster.apply(GATEWAY);
    world.leaves_by(&world.shop, GOVERNED, GATEWAYS[0]);
}

pub(crate) fn without_a_gateway_governed_traffic_is_dropped_and_counted(path: &DataPath) {
    let world = World::governed(path);
    for node in GATEWAYS {
        world.cluster.label_node(node, "egress", None);
    }
    world.is_dropped(&world.shop, GOVERNED);
    let capture = world.cluster.lab.capture().unwrap();
    world.is_dropped(&world.shop, GOVERNED);
    world.is_dropped(&world.local, GOVERNED);
    assert_eq!(world.leaks(&capture), [""; 0], "nothing at all leaves");
    let about_it = |packet: &Packet| {
        world
            .endpoints(GOVERNED)
            .iter()
            .any(|server| packet.innermost().touches(server.ip()))
    };
    assert_eq!(
        capture.count(|packet| packet.protocol != Protocol::Arp && about_it(packet)),
        0,
        "not even in a tunnel"
    );
    world.leaves_by(&world.shop, OTHER, CLIENT);
    world.leaves_by(&world.blog, GOVERNED, CLIENT);
    world.cluster.eventually("the drops are counted", || {
        let counted = world.counted(CLIENT, "drop_no_gateway") + world.counted(CLIENT, "drop_held");
        if counted >= 2.0 {
            Ok(())
        } else {
            Err(world.cluster.metrics(CLIENT, 5810).unwrap_or_default())
        }
    });
    world
        .cluster
        .label_node(GATEWAYS[1], "egress", Some("true"));
    world.leaves_by(&world.shop, GOVERNED, GATEWAYS[1]);
}

pub(crate) fn a_tunnel_device_deleted_by_hand_leaks_nothing_and_comes_back(path: &DataPath) {
    let world = World::governed(path);
    let capture = world.cluster.lab.capture().unwrap();
    for node in [CLIENT, GATEWAYS[0]] {
        for endpoint in world.endpoints(GOVERNED) {
            // In an emulator, so many new connections alone would keep it busy.
            let stream = world
                .shop
                .stream(endpoint, patient(STEP))
                .fresh_ports()
                .start()
                .unwrap();
            world
                .cluster
                .lab
                .node(node)
                .run("for device in $(ip -o link show | grep -o 'egress-[a-z0-9-]*' | sort -u); do ip link del $device; done")
                .unwrap();
            let deleted = Instant::now();
            let answer = stream.wait_for(patient(Duration::from_secs(20)), |answer| {
                answer.at > deleted
            });
            answer.unwrap_or_else(|error| {
                panic!(
                    "the device on {node} never came back: {error}\n{}",
                    world.cluster.logs()
                )
            });
            eprintln!(
                "{node}: traffic to {endpoint} goes on after {:?}",
                deleted.elapsed()
            );
            stream.finish().unwrap();
        }
    }
    world.leaves_by(&world.shop, GOVERNED, GATEWAYS[0]);
    assert_eq!(world.leaks(&capture), [""; 0]);
    world.cluster.eventually(
        "what found no way into the tunnel shows in the counters",
        || {
            let (steered, tunnelled) = (
                world.counted(CLIENT, "steered"),
                world.counted(CLIENT, "tunnelled"),
            );
            if steered > tunnelled && tunnelled > 0.0 {
                Ok(())
            } else {
                Err(format!("{steered} steered, {tunnelled} tunnelled"))
            }
        },
    );
}

pub(crate) fn rules_deleted_by_hand_come_back_at_once(path: &DataPath) {
    let world = World::governed(path);
    for node in [CLIENT, GATEWAYS[0]] {
        world
            .cluster
            .lab
            .node(node)
            .run(match path.backend {
                "nftables" => "nft delete table inet egressgateway",
                "netfilter" => "for t in mangle nat; do iptables-nft -t $t -F; ip6tables-nft -t $t -F; done; ipset flush egw-pods-v4",
                other => panic!("how are the rules of {other} deleted?"),
            })
            .unwrap();
        measured(&format!("{node}: rules are there again"), || {
            world.leaves_by(&world.shop, GOVERNED, GATEWAYS[0]);
        });
    }
}

pub(crate) fn routes_deleted_by_hand_leak_nothing_and_come_back(path: &DataPath) {
    let world = World::governed(path);
    let capture = world.cluster.lab.capture().unwrap();
    let client = world.cluster.lab.node(CLIENT);
    for what in ["route flush table all proto 77", "rule flush"] {
        for family in ["-4", "-6"] {
            let script = match what {
                "rule flush" => format!(
                    "ip {family} rule show | grep -o '^[0-9]*:.*fwmark' | cut -d: -f1 | while read n; do ip {family} rule del pref $n; done"
                ),
                other => format!("ip {family} {other}"),
            };
            client.run(&script).unwrap();
            world.leaves_by(&world.shop, GOVERNED, GATEWAYS[0]);
        }
    }
    assert_eq!(world.leaks(&capture), [""; 0]);
}

pub(crate) fn the_data_path_stands_while_the_api_server_is_away(path: &DataPath) {
    let mut world = World::governed(path);
    let capture = world.cluster.lab.capture().unwrap();
    world.cluster.api.stop();
    world.leaves_by(&world.shop, GOVERNED, GATEWAYS[0]);
    let client = world.cluster.lab.node(CLIENT);
    client.run("for device in $(ip -o link show | grep -o 'egress-[a-z0-9-]*' | sort -u); do ip link del $device; done").unwrap();
    world.leaves_by(&world.shop, GOVERNED, GATEWAYS[0]);
    assert_eq!(world.leaks(&capture), [""; 0]);
    let root = world.cluster.lab.root();
    root.enter(|| world.cluster.api.resume_listening()).unwrap();
    world.cluster.apply(&policy(
        "  destCIDR: [\"10.6.2.0/24\", \"fd00:6:2::/64\"]\n",
    ));
    world.leaves_by(&world.shop, OTHER, GATEWAYS[0]);
    world.leaves_by(&world.shop, GOVERNED, CLIENT);
}
