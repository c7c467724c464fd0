//! Connections that are open while their way or their source changes: they go on where they can and
//! are reset where they can't, and none hangs.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use egressgateway_testkit::{
    lab::{Capture, Flow, Packet, PodSpec, Stream},
    pace::patient,
};

use crate::{
    address_holders::{Given, gateway, is_given, seen_as_given, wait_given, wish},
    failover::{drain, probed},
    world::{CLIENT, DataPath, GATEWAY, GATEWAYS, GOVERNED, World, policy, usual_policy},
};

/// How often a stream sends, on one socket.
const STEP: Duration = Duration::from_millis(50);
/// Within this time all is well again: much less where the machine does nothing else.
const SOON: Duration = Duration::from_secs(20);

/// TCP connections and a stream of datagrams in each family.
pub(crate) struct Open {
    tcp: Vec<Flow>,
    /// Whose pod waits for data and sends nothing.
    readers: Vec<TcpStream>,
    udp: Vec<Stream>,
}

impl Open {
    pub(crate) fn from(world: &World, pod: &egressgateway_testkit::lab::Namespace) -> Self {
        let to = world.endpoints(GOVERNED);
        let tcp = to.iter().map(|to| pod.open_tcp(*to).unwrap()).collect();
        let udp = to
            .iter()
            .map(|to| pod.stream(*to, STEP).start().unwrap())
            .collect();
        let reader = |to: &SocketAddr| {
            let mut stream = pod
                .enter(|| TcpStream::connect_timeout(to, patient(SOON)))
                .unwrap()
                .unwrap();
            stream.set_read_timeout(Some(patient(SOON))).unwrap();
            // The source that the server sees.
            let mut greeting = [0; 100];
            stream.read(&mut greeting).map(|_| stream).unwrap()
        };
        Self {
            tcp,
            readers: to.iter().map(reader).collect(),
            udp,
        }
    }

    /// The datagrams are soon seen as coming from these addresses.
    pub(crate) fn datagrams_go_on_as(&self, world: &World, sources: [IpAddr; 2]) {
        for (stream, source) in self.udp.iter().zip(sources) {
            let answer = stream.wait_for(patient(SOON), |answer| answer.source.ip() == source);
            answer.unwrap_or_else(|error| panic!("as {source}: {error}\n{}", world.cluster.logs()));
        }
    }

    /// The connections of TCP are reset: the ones that only wait, and those that are used.
    pub(crate) fn sessions_are_reset(&mut self, world: &World) {
        for reader in &mut self.readers {
            let error = reader
                .read(&mut [0; 100])
                .expect_err("its source is another one now");
            assert_eq!(
                error.kind(),
                io::ErrorKind::ConnectionReset,
                "{reader:?} waits in vain\n{}",
                world.cluster.logs()
            );
        }
        for flow in &mut self.tcp {
            let error = flow.echo().expect_err("its source is another one now");
            let reset = [
                io::ErrorKind::ConnectionReset,
                io::ErrorKind::BrokenPipe,
                io::ErrorKind::ConnectionAborted,
            ];
            assert!(
                reset.contains(&error.kind()),
                "it does not wait for an answer in vain: {error}"
            );
        }
    }

    /// The connections of TCP go on as if nothing had happened.
    pub(crate) fn sessions_go_on(&mut self) {
        for reader in &mut self.readers {
            reader.write_all(b"on").unwrap();
            let mut back = [0; 2];
            reader.read_exact(&mut back).unwrap();
            assert_eq!(&back, b"on");
        }
        for flow in &mut self.tcp {
            flow.echo().unwrap();
        }
    }

    /// A node comes to know the connections of TCP that only wait: something of each has left by
    /// it.
    fn is_known_to(&self, node: &str, addresses: [IpAddr; 2], since: &Capture) {
        for (reader, address) in self.readers.iter().zip(addresses) {
            let [pod, server] = [reader.local_addr(), reader.peer_addr()].map(Result::unwrap);
            let of = |packet: &Packet| {
                packet.is_bare(address, server.ip()) && packet.source_port == pod.port()
            };
            since
                .wait_for(patient(SOON), |packet| packet.from == node && of(packet))
                .unwrap();
        }
    }

    /// How long datagrams were without an answer.
    pub(crate) fn finish(self, what: &str) {
        for stream in self.udp {
            let report = stream.finish().unwrap();
            eprintln!(
                "{what}: {} of {} lost, longest gap {:?}, {:?}",
                report.lost(),
                report.sent,
                report.longest_gap,
                report.sources
            );
        }
    }
}

fn addresses_of(world: &World, node: &str) -> [IpAddr; 2] {
    let to: Vec<SocketAddr> = world.endpoints(GOVERNED);
    [0, 1].map(|family| world.cluster.lab.node(node).like(to[family].ip()))
}

/// A world whose policy has an egress address, and who has it.
fn with_addresses(path: &DataPath) -> (World, Given) {
    let world = World::start(path);
    world.cluster.apply(&gateway(7));
    world.cluster.apply(&usual_policy());
    let given = wait_given(&world, "shopping");
    seen_as_given(&world, &world.shop, given.addresses);
    seen_as_given(&world, &world.local, given.addresses);
    (world, given)
}

pub(crate) fn connections_with_an_egress_address_go_on_when_it_moves(path: &DataPath) {
    let (world, Given { node, addresses }) = with_addresses(path);
    let pods = [&world.shop, &world.local];
    let capture = world.cluster.lab.capture().unwrap();
    let mut open = pods.map(|pod| Open::from(&world, pod));
    let there = GATEWAYS.into_iter().find(|other| *other != node).unwrap();
    // There and back, so that each pod's connections have left by both nodes.
    for next in [there, &node] {
        let since = world.cluster.lab.capture().unwrap();
        wish(&world, Some(next));
        is_given(&world, next, addresses);
        seen_as_given(&world, &world.shop, addresses);
        for open in &mut open {
            open.is_known_to(next, addresses, &since);
            open.datagrams_go_on_as(&world, addresses);
            open.sessions_go_on();
        }
    }
    for open in open {
        open.finish("moved twice");
    }
    assert_eq!(world.leaks_besides(&capture, &addresses), [""; 0]);
}

pub(crate) fn connections_with_an_egress_address_go_on_when_its_node_is_drained(path: &DataPath) {
    let (world, Given { node, addresses }) = with_addresses(path);
    let mut open = [&world.shop, &world.local].map(|pod| Open::from(&world, pod));
    let capture = world.cluster.lab.capture().unwrap();
    drain(&world, &node, Some("true"));
    is_given(
        &world,
        GATEWAYS.into_iter().find(|other| *other != node).unwrap(),
        addresses,
    );
    seen_as_given(&world, &world.shop, addresses);
    for open in &mut open {
        open.datagrams_go_on_as(&world, addresses);
        open.sessions_go_on();
    }
    for open in open {
        open.finish("drained");
    }
    assert_eq!(world.leaks_besides(&capture, &addresses), [""; 0]);
}

pub(crate) fn connections_are_reset_when_their_policy_gets_another_egress_address(path: &DataPath) {
    let (world, _) = with_addresses(path);
    let mut open = [&world.shop, &world.local].map(|pod| Open::from(&world, pod));
    let other = "  egressIP: {ipv4: 10.6.0.65, ipv6: \"fd00:6::65\"}\n";
    world.cluster.apply(&policy(&format!(
        "  destCIDR: [\"10.6.1.0/24\", \"fd00:6:1::/64\"]\n{other}"
    )));
    let addresses = ["10.6.0.65".parse().unwrap(), "fd00:6::65".parse().unwrap()];
    seen_as_given(&world, &world.shop, addresses);
    seen_as_given(&world, &world.local, addresses);
    for open in &mut open {
        open.datagrams_go_on_as(&world, addresses);
        open.sessions_are_reset(&world);
    }
}

pub(crate) fn connections_are_reset_when_the_policy_goes_that_had_the_egress_address(
    path: &DataPath,
) {
    let (world, _) = with_addresses(path);
    let mut open = [&world.shop, &world.local].map(|pod| Open::from(&world, pod));
    // As behind a firewall that says nothing to what it does not know.
    let silence = "table inet silent { chain out { type filter hook output priority 0; tcp flags rst drop; }; }";
    world.server.run(&format!("nft '{silence}'")).unwrap();
    world.cluster.delete("EgressGatewayPolicy", "shopping");
    world.leaves_by(&world.shop, GOVERNED, CLIENT);
    world.leaves_by(&world.local, GOVERNED, GATEWAYS[0]);
    for (open, node) in open.iter_mut().zip([CLIENT, GATEWAYS[0]]) {
        open.datagrams_go_on_as(&world, addresses_of(&world, node));
        open.sessions_are_reset(&world);
    }
}

pub(crate) fn connections_are_reset_when_the_gateway_leaves_egress_addresses_for_those_of_nodes(
    path: &DataPath,
) {
    let (world, _) = with_addresses(path);
    let mut open = Open::from(&world, &world.shop);
    world.cluster.apply(GATEWAY);
    world.leaves_by(&world.shop, GOVERNED, GATEWAYS[0]);
    open.datagrams_go_on_as(&world, addresses_of(&world, GATEWAYS[0]));
    open.sessions_are_reset(&world);
}

pub(crate) fn connections_with_a_nodes_address_go_on_when_their_policy_goes(path: &DataPath) {
    let world = World::governed(path);
    let mut open = Open::from(&world, &world.shop);
    world.cluster.delete("EgressGatewayPolicy", "shopping");
    world.leaves_by(&world.shop, GOVERNED, CLIENT);
    open.datagrams_go_on_as(&world, addresses_of(&world, GATEWAYS[0]));
    open.sessions_go_on();
    // The way itself goes: what has no way any more leaves as anything else of this pod does.
    world.cluster.delete("EgressGateway", "exit");
    open.datagrams_go_on_as(&world, addresses_of(&world, CLIENT));
    open.sessions_are_reset(&world);
}

/// Pods of the node that takes over, which have been sending through the other one.
fn on_the_next_gateway(world: &World) -> Open {
    let pod = world
        .cluster
        .pod(GATEWAYS[1], PodSpec::new("next").label("app", "shopping"));
    world.leaves_by(&pod, GOVERNED, GATEWAYS[0]);
    Open::from(world, &pod)
}

pub(crate) fn pods_of_the_gateway_that_takes_over_from_a_lost_one_go_on_at_once(path: &DataPath) {
    let world = probed(World::governed(path));
    let mut open = on_the_next_gateway(&world);
    let capture = world.cluster.lab.capture().unwrap();
    world.cluster.lab.node(GATEWAYS[0]).power_off().unwrap();
    open.datagrams_go_on_as(&world, addresses_of(&world, GATEWAYS[1]));
    open.sessions_are_reset(&world);
    open.finish("on the gateway that takes over");
    assert_eq!(world.leaks(&capture), [""; 0]);
}

pub(crate) fn pods_of_the_gateway_that_takes_over_from_a_drained_one_go_on_when_the_grace_time_ends(
    path: &DataPath,
) {
    let world =
        probed(World::start_with(path, "failover: {drainGracePeriod: 3s}\n").with_usual_policy());
    let mut open = on_the_next_gateway(&world);
    let capture = world.cluster.lab.capture().unwrap();
    drain(&world, GATEWAYS[0], Some("true"));
    world.leaves_by(&world.shop, GOVERNED, GATEWAYS[1]);
    open.datagrams_go_on_as(&world, addresses_of(&world, GATEWAYS[0]));
    open.sessions_go_on();
    world.cluster.eventually("the grace time is over", || {
        let status = world.cluster.status("EgressGateway", "exit");
        if status["draining"].is_null() {
            Ok(())
        } else {
            Err(status.to_string())
        }
    });
    open.datagrams_go_on_as(&world, addresses_of(&world, GATEWAYS[1]));
    open.sessions_are_reset(&world);
    open.finish("on the gateway that takes over");
    assert_eq!(world.leaks(&capture), [""; 0]);
}

pub(crate) fn connections_are_moved_with_the_label_that_makes_gateways(path: &DataPath) {
    let world = probed(World::governed(path));
    let mut open = [Open::from(&world, &world.shop), on_the_next_gateway(&world)];
    world.cluster.label_node(GATEWAYS[0], "egress", None);
    for open in &mut open {
        open.datagrams_go_on_as(&world, addresses_of(&world, GATEWAYS[1]));
        open.sessions_are_reset(&world);
    }
}
