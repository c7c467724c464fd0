//! What breaks: nothing of it may show a wrong source outside.

use std::{
    cell::RefCell,
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use egressgateway_testkit::{
    cluster::agent,
    lab::{PODS_V4, PODS_V6, Packet, Protocol},
    pace::patient,
};
use nix::sys::signal::Signal;

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
        }
    }
    world.leaves_by(&world.shop, GOVERNED, GATEWAYS[0]);
    assert_eq!(world.leaks(&capture), [""; 0], "{}", world.cluster.logs());
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

/// Somebody's masquerade has its turn while our rules are missing. The kernel never translates a
/// connection again, so what began meanwhile has to end, long before anybody looks without a reason.
/// At a gateway nothing of it leaves from the moment when the rules are back.
pub(crate) fn what_began_without_rules_does_not_keep_its_source(path: &DataPath) {
    const OTHERS: [&str; 2] = ["10.6.0.222", "fd00:6::222"];
    const ENDED: [ErrorKind; 3] = [
        ErrorKind::ConnectionReset,
        ErrorKind::ConnectionAborted,
        ErrorKind::BrokenPipe,
    ];
    let world = World::governed(path);
    let [v4, v6] = OTHERS;
    let others: Vec<IpAddr> = OTHERS.iter().map(|text| text.parse().unwrap()).collect();
    let governed = world.endpoints(GOVERNED);
    let servers: Vec<IpAddr> = governed.iter().map(SocketAddr::ip).collect();
    for name in [GATEWAYS[0], CLIENT] {
        let node = world.cluster.lab.node(name);
        // Between our translation and that of the network plugin.
        let place = if path.backend == "netfilter" { 2 } else { 1 };
        let others_translate = |way: &str| {
            format!(
                "iptables-nft -t nat {way} -o eth0 -s {PODS_V4} ! -d {PODS_V4} -j SNAT --to-source {v4}
                 ip6tables-nft -t nat {way} -o eth0 -s {PODS_V6} ! -d {PODS_V6} -j SNAT --to-source {v6}"
            )
        };
        node.run(&format!(
            "ip address add {v4}/32 dev eth0
             ip address add {v6}/128 dev eth0 nodad
             {}",
            others_translate(&format!("-I POSTROUTING {place}"))
        ))
        .unwrap();
        world.leaves_by(&world.shop, GOVERNED, GATEWAYS[0]);
        let agent = agent(name);
        world.cluster.daemon(&agent).kill(Signal::SIGSTOP).unwrap();
        node.run(match path.backend {
            "nftables" => "nft delete table inet egressgateway",
            "netfilter" => {
                "for i in iptables-nft ip6tables-nft; do $i -t mangle -F; $i -t nat -F EGW-POSTROUTING; done"
            }
            other => panic!("how are the rules of {other} deleted?"),
        })
        .unwrap();
        let mut flows = Vec::new();
        for endpoint in world.endpoints(GOVERNED) {
            for flow in [
                world.shop.open_tcp(endpoint).unwrap(),
                world.shop.open_udp(endpoint).unwrap(),
            ] {
                assert!(
                    others.contains(&flow.source_seen().ip()),
                    "{name}: {flow:?} meets rules that are deleted"
                );
                flows.push((endpoint, flow));
            }
        }
        world.cluster.daemon(&agent).kill(Signal::SIGCONT).unwrap();
        world.leaves_by(&world.shop, GOVERNED, GATEWAYS[0]);
        let capture = world.cluster.lab.capture().unwrap();
        for (endpoint, flow) in flows {
            let own = world.cluster.lab.node(GATEWAYS[0]).like(endpoint.ip());
            let what = format!("{name}: {flow:?} leaves as {own}, or is reset");
            let flow = RefCell::new(flow);
            world
                .cluster
                .eventually(&what, || match flow.borrow_mut().echo() {
                    Ok(seen) if seen.ip() == own => Ok(()),
                    Err(error) if ENDED.contains(&error.kind()) => Ok(()),
                    other => Err(format!("{other:?}")),
                });
        }
        if name == GATEWAYS[0] {
            let wrong: Vec<_> = capture
                .packets()
                .into_iter()
                // The host itself resets what comes to an address of its own and belongs to nothing.
                .filter(|packet| {
                    let data = if packet.source.is_ipv4() { 66 } else { 86 };
                    let is_pods = match packet.protocol {
                        Protocol::Tcp => packet.length > data,
                        protocol => protocol == Protocol::Udp,
                    };
                    is_pods
                        && others.contains(&packet.source)
                        && servers.contains(&packet.destination)
                })
                .collect();
            assert_eq!(wrong, [], "with somebody else's source");
        }
        node.run(&format!(
            "ip address del {v4}/32 dev eth0
             ip address del {v6}/128 dev eth0
             {}",
            others_translate("-D POSTROUTING")
        ))
        .unwrap();
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
