//! A connection that goes on after its pod's node has forgotten it, and the server speaks first.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use egressgateway_testkit::{
    cluster::agent,
    lab::{Capture, Namespace, Pod, ServerSpec, ServiceSpec},
    pace::patient,
};
use nix::sys::signal::Signal;

use crate::world::{CLIENT, DataPath, GATEWAYS, GOVERNED, KNOWING, World, policy};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// A port that the lab's servers do not use.
const PUSH: u16 = 9001;

/// A datagram socket at this address, which the other end's may be connected to later.
fn datagrams(at: &Namespace, address: SocketAddr) -> UdpSocket {
    let socket = at.enter(|| UdpSocket::bind(address)).unwrap().unwrap();
    socket.set_read_timeout(Some(patient(PATIENCE))).unwrap();
    socket
}

fn any(like: IpAddr) -> SocketAddr {
    let text = if like.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    text.parse().unwrap()
}

/// A pod's datagrams to the governed server, where they have come from the gateway once.
fn registered(world: &World, pod: &Pod, server: IpAddr) -> (UdpSocket, UdpSocket) {
    let far = datagrams(&world.server, SocketAddr::new(server, PUSH));
    let near = datagrams(pod, any(server));
    near.connect((server, PUSH)).unwrap();
    near.send(b"register").unwrap();
    let mut buffer = [0; 16];
    let (_, seen) = far.recv_from(&mut buffer).unwrap();
    assert_eq!(seen.ip(), world.cluster.lab.node(GATEWAYS[0]).like(server));
    far.connect(seen).unwrap();
    (near, far)
}

fn exchange(from: &UdpSocket, to: &UdpSocket, what: &[u8]) {
    let mut buffer = [0; 16];
    from.send(what).unwrap();
    let length = to
        .recv(&mut buffer)
        .unwrap_or_else(|error| panic!("{}: {error}", String::from_utf8_lossy(what)));
    assert_eq!(&buffer[..length], what);
}

/// What went over the underlay with a governed pod's own address and in no tunnel.
fn bare(world: &World, capture: &Capture) -> Vec<String> {
    let pods: Vec<IpAddr> = [&world.shop, &world.local]
        .into_iter()
        .flat_map(|pod| pod.addresses().to_vec())
        .collect();
    let servers: Vec<IpAddr> = world
        .endpoints(GOVERNED)
        .iter()
        .map(SocketAddr::ip)
        .collect();
    let packets = capture
        .packets()
        .into_iter()
        .filter(|packet| packet.inner.is_none());
    packets
        .filter(|packet| pods.contains(&packet.source) && servers.contains(&packet.destination))
        .map(|packet| format!("{packet:?}"))
        .collect()
}

/// The server only knows the gateway's address: it sees no other one, and it sees that one.
pub(crate) fn what_a_server_sends_after_the_pods_node_has_forgotten_is_answered_through_the_gateway(
    path: &DataPath,
) {
    let world = World::governed(path);
    let capture = world.cluster.lab.capture().unwrap();
    for server in world.endpoints(GOVERNED).iter().map(SocketAddr::ip) {
        let (near, far) = registered(&world, &world.shop, server);
        for round in 0..2 {
            world.cluster.lab.node(CLIENT).forget_connections().unwrap();
            exchange(&far, &near, b"push");
            exchange(&near, &far, b"pong");
            exchange(&near, &far, b"more");
            eprintln!("{server}: answered after loss {round}");
        }
        assert_eq!(bare(&world, &capture), [""; 0]);
    }
}

/// The pod's kernel answers for it, with an error of ICMP.
pub(crate) fn a_port_that_is_closed_meanwhile_is_reported_through_the_gateway(path: &DataPath) {
    let world = World::governed(path);
    let capture = world.cluster.lab.capture().unwrap();
    for server in world.endpoints(GOVERNED).iter().map(SocketAddr::ip) {
        let (near, far) = registered(&world, &world.shop, server);
        drop(near);
        world.cluster.lab.node(CLIENT).forget_connections().unwrap();
        far.send(b"push").unwrap();
        let refused = far.recv(&mut [0; 16]).unwrap_err();
        assert_eq!(
            refused.kind(),
            ErrorKind::ConnectionRefused,
            "{server}: {refused}"
        );
        assert_eq!(bare(&world, &capture), [""; 0]);
    }
}

/// What a server sends while the pod's node has no rules of ours begins a connection to the pod, of
/// which nothing says that it is the answer to another one. With the rules back, nothing that the
/// pod sends passes as an answer in it.
pub(crate) fn what_came_while_nothing_classified_it_is_answered_through_the_gateway_once_something_does(
    path: &DataPath,
) {
    let mut world = World::governed(path);
    for server in world.endpoints(GOVERNED).iter().map(SocketAddr::ip) {
        let (near, far) = registered(&world, &world.shop, server);
        let listener: TcpListener = world
            .server
            .listen_tcp(SocketAddr::new(server, PUSH))
            .unwrap();
        let mut reader = world
            .shop
            .enter(|| TcpStream::connect((server, PUSH)))
            .unwrap()
            .unwrap();
        let (mut writer, seen) = listener.accept().unwrap();
        assert_eq!(seen.ip(), world.cluster.lab.node(GATEWAYS[0]).like(server));
        for stream in [&reader, &writer] {
            stream.set_read_timeout(Some(patient(PATIENCE))).unwrap();
        }
        world.cluster.kill(&agent(CLIENT), Signal::SIGKILL);
        world.cluster.cleanup(CLIENT);
        world.cluster.lab.node(CLIENT).forget_connections().unwrap();
        let mut buffer = [0; 4];
        exchange(&far, &near, b"push");
        writer.write_all(b"push").unwrap();
        reader.read_exact(&mut buffer).unwrap();
        near.send(b"lost").unwrap();
        world.cluster.start_agent(CLIENT);
        world.leaves_by(&world.shop, GOVERNED, GATEWAYS[0]);
        // The agent looks for such connections once its rules are there.
        world
            .cluster
            .eventually("datagrams leave by the gateway", || {
                near.send(b"pong").map_err(|error| error.to_string())?;
                far.recv(&mut [0; 16])
                    .map(drop)
                    .map_err(|error| error.to_string())
            });
        reader.write_all(b"pong").unwrap();
        writer
            .read_exact(&mut buffer)
            .unwrap_or_else(|error| panic!("{server}: {error}"));
        assert_eq!(&buffer, b"pong");
        let capture = world.cluster.lab.capture().unwrap();
        exchange(&far, &near, b"more");
        exchange(&near, &far, b"more");
        writer.write_all(b"more").unwrap();
        reader.read_exact(&mut buffer).unwrap();
        assert_eq!(bare(&world, &capture), [""; 0]);
    }
}

/// A download, in whose middle the pod's node forgets it again and again.
pub(crate) fn a_download_goes_on_after_the_pods_node_has_forgotten_it(path: &DataPath) {
    const PIECE: usize = 100_000;
    let world = World::governed(path);
    let capture = world.cluster.lab.capture().unwrap();
    for server in world.endpoints(GOVERNED).iter().map(SocketAddr::ip) {
        let listener: TcpListener = world
            .server
            .listen_tcp(SocketAddr::new(server, PUSH))
            .unwrap();
        let ended = AtomicBool::new(false);
        thread::scope(|scope| {
            let sender = scope.spawn(|| {
                let (mut to, seen) = listener.accept().unwrap();
                to.set_write_timeout(Some(patient(PATIENCE))).unwrap();
                while !ended.load(Ordering::Relaxed) {
                    if let Err(error) = to.write_all(&[b'x'; 1000]) {
                        return (seen, Some(error));
                    }
                    thread::sleep(Duration::from_micros(200));
                }
                (seen, None)
            });
            let mut from = world
                .shop
                .enter(|| TcpStream::connect((server, PUSH)))
                .unwrap()
                .unwrap();
            from.set_read_timeout(Some(patient(PATIENCE))).unwrap();
            let mut piece = vec![0; PIECE];
            for _ in 0..4 {
                from.read_exact(&mut piece)
                    .unwrap_or_else(|error| panic!("{server}: {error}"));
                world.cluster.lab.node(CLIENT).forget_connections().unwrap();
            }
            from.read_exact(&mut piece)
                .unwrap_or_else(|error| panic!("{server}: {error}"));
            ended.store(true, Ordering::Relaxed);
            let (seen, error) = sender.join().unwrap();
            assert!(error.is_none(), "{server}: {error:?}");
            assert_eq!(seen.ip(), world.cluster.lab.node(GATEWAYS[0]).like(server));
        });
        assert_eq!(bare(&world, &capture), [""; 0]);
    }
}

/// The gateway can't be reached: nothing that the pod answers leaves by another way.
pub(crate) fn what_the_pods_node_has_forgotten_is_not_answered_while_the_tunnel_has_no_way(
    path: &DataPath,
) {
    let world = World::governed(path);
    for server in world.endpoints(GOVERNED).iter().map(SocketAddr::ip) {
        let (near, far) = registered(&world, &world.shop, server);
        let client = world.cluster.lab.node(CLIENT);
        client.forget_connections().unwrap();
        exchange(&far, &near, b"push");
        let capture = world.cluster.lab.capture().unwrap();
        let family = if server.is_ipv4() { "-4" } else { "-6" };
        // The agent puts the rule back at once; until then the answer is routed like anybody's.
        for _ in 0..20 {
            client
                .run(&format!("ip {family} rule del pref 99 || true"))
                .unwrap();
            near.send(b"pong").unwrap();
        }
        world.cluster.eventually("the rules are back", || {
            near.send(b"pong").map_err(|error| error.to_string())?;
            let mut buffer = [0; 16];
            far.recv(&mut buffer)
                .map(drop)
                .map_err(|error| error.to_string())
        });
        assert_eq!(bare(&world, &capture), [""; 0]);
    }
}

/// Whoever knows the way to pods begins, and a pod answers by the way it came; so it does where it
/// is reached by a service's address.
pub(crate) fn whoever_begins_from_outside_gets_a_governed_pods_answers(path: &DataPath) {
    let world = World::start(path);
    let knowing = world
        .cluster
        .lab
        .add_server(&ServerSpec::new(KNOWING).routes_to_pods())
        .unwrap();
    let service = world
        .cluster
        .lab
        .service(ServiceSpec::new("web", 80), &[&world.shop])
        .unwrap();
    world.cluster.publish();
    world.make_gateway();
    world.cluster.apply(&policy(""));
    world.leaves_by(&world.shop, KNOWING, GATEWAYS[0]);
    for pod in world.shop.endpoints() {
        knowing
            .connect_tcp(pod)
            .unwrap_or_else(|error| panic!("{pod}: {error}"));
        let echo = knowing
            .run(&format!("ping -c 2 -i 0.2 -W 2 {}", pod.ip()))
            .unwrap();
        assert!(echo.contains(" 0% packet loss"), "{echo}");
        let node_port = SocketAddr::new(
            world.cluster.lab.node(CLIENT).like(pod.ip()),
            service.node_port(),
        );
        knowing
            .connect_tcp(node_port)
            .unwrap_or_else(|error| panic!("{node_port}: {error}"));
        knowing
            .connect_udp(node_port)
            .unwrap_or_else(|error| panic!("{node_port}: {error}"));
    }
}

/// A load balancer whose address the pod's own node holds, and that keeps the client's address.
pub(crate) fn datagrams_through_a_load_balancer_are_answered_by_it(path: &DataPath) {
    let world = World::start(path);
    world.make_gateway();
    world.cluster.apply(&policy(""));
    world.leaves_by(&world.shop, GOVERNED, GATEWAYS[0]);
    let client = world.cluster.lab.node(CLIENT);
    for (pod, balancer) in world
        .shop
        .endpoints()
        .into_iter()
        .zip(["10.6.9.100", "fd00:6::9:100"])
    {
        let (family, length) = if pod.is_ipv4() {
            ("ip", 32)
        } else {
            ("ip6", 128)
        };
        client
            .run(&format!(
                "nft add table {family} balancer
                 nft 'add chain {family} balancer pre {{ type nat hook prerouting priority -100; }}'
                 nft add rule {family} balancer pre {family} daddr {balancer} udp dport 80 dnat to {pod}"
            ))
            .unwrap();
        // The server's IPv6 address is behind the router.
        let (flag, next) = if pod.is_ipv4() {
            ("-4", (*world.server).clone())
        } else {
            ("-6", world.cluster.lab.router())
        };
        next.run(&format!(
            "ip {flag} route add {balancer}/{length} via {}",
            client.like(pod.ip())
        ))
        .unwrap();
        let balancer = SocketAddr::new(balancer.parse().unwrap(), 80);
        let seen = world
            .server
            .connect_udp(balancer)
            .unwrap_or_else(|error| panic!("{balancer}: {error}"));
        assert!(
            !client.addresses().contains(&seen.ip()),
            "the pod sees the client, not {seen}"
        );
    }
}
