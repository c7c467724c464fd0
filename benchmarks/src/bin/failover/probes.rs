//! What answering probes costs a gateway.
//!
//! A probe that the agent has really sent is taken from the wire and sent again and again by one
//! thread. In the lab everything that a packet causes happens in the kernel before the sender's
//! call returns, or in a `ksoftirqd`: the gateway takes it off its device, looks whether its sender
//! is a peer, unpacks it, answers, packs the answer and sends it, and the client takes the answer
//! off its device. The processor time of the sender and of all `ksoftirqd` is that of all this
//! together. The same frames with a number for their contents that nobody understands, which are
//! dropped as soon as a device has them, cost what sending and carrying costs: that is taken away.
//! So is what a client has to do with an answer, which is measured in the same way, with answers
//! from the wire that the gateway's device sends again.

use std::{
    fs, io,
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use egressgateway_testkit::{cluster::agent, lab::Node};
use nix::{
    ifaddrs::getifaddrs,
    sys::{
        signal::Signal,
        socket::{LinkAddr, MsgFlags, bind, send},
    },
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::scene::{As, BACKENDS, CLIENT, FAMILIES, GATEWAYS, PATIENCE, Scene};

/// Frames of one round, and rounds of each kind in turn.
const FRAMES: u32 = 100_000;
const ROUNDS: usize = 5;
/// Clients for which the cost is told.
const CLIENTS: f64 = 5000.0;
/// Probes per second of one client in one family, at the default interval of 150 ms.
const RATE: f64 = 1.0 / 0.15;
/// All protocols (`ETH_P_ALL`), in network byte order as the kernel wants it.
const ALL: u16 = 0x0003_u16.to_be();
/// For experiments, in each network for itself (IEEE 802): nobody in the lab understands it.
const EXPERIMENTAL: [u8; 2] = [0x88, 0xb5];
/// Where a frame says what it contains.
const ETHERTYPE: usize = 12;
/// Of each family: what it says, where the addresses begin, and where UDP does: after Ethernet and
/// IP without options.
const HEADS: [([u8; 2], usize, usize); 2] = [([0x08, 0x00], 26, 34), ([0x86, 0xdd], 22, 54)];
/// UDP's number.
const UDP: u8 = 17;
/// The product's default.
const TUNNEL_PORT: [u8; 2] = 7789_u16.to_be_bytes();

pub(crate) fn measure() -> io::Result<String> {
    let mut lines = vec![
        format!("| backend | family | one answer | of one core, with {CLIENTS} clients |"),
        "|---|---|---|---|".to_owned(),
    ];
    for backend in BACKENDS {
        let mut scene = Scene::start(backend, As::Node)?;
        let (client, gateway) = (
            scene.cluster.lab.node(CLIENT),
            scene.cluster.lab.node(GATEWAYS[0]),
        );
        let probes = frames(&client, &gateway)?
            .into_iter()
            .zip(frames(&gateway, &client)?);
        // Its data path stays, and nobody else listens for the answers.
        scene.cluster.kill(&agent(CLIENT), Signal::SIGKILL);
        for (family, (probe, answer)) in FAMILIES.into_iter().zip(probes) {
            let there = cost_of_frame(&client, &probe, Some(&gateway))?;
            let back = cost_of_frame(&gateway, &answer, None)?;
            let cost = there.saturating_sub(back);
            let share = cost.as_secs_f64() * RATE * CLIENTS * 100.0;
            eprintln!("{backend}, probes, {family}: {there:?} there and back, {back:?} of it back");
            #[expect(clippy::cast_precision_loss, reason = "thousands of nanoseconds")]
            let microseconds = cost.as_nanos() as f64 / 1000.0;
            lines.push(format!(
                "| {backend} | {family} | {microseconds:.1} µs | {share:.1} % |"
            ));
        }
    }
    lines.push(String::new());
    lines.push(format!(
        "Processor time, without that of a network card's driver; the median of {ROUNDS} times {FRAMES} echo requests. A client probes {RATE:.2} times a second in each family."
    ));
    Ok(lines.join("\n"))
}

/// One frame of each family from the one to the other through the tunnel, as the former's device
/// sends it: from a client to a gateway, a probe.
fn frames(from: &Node, to: &Node) -> io::Result<Vec<Vec<u8>>> {
    let target = device(to)?
        .addr()
        .ok_or_else(|| io::Error::other("eth0 has no address"))?;
    let (index, wire) = (
        device(from)?.ifindex(),
        raw(from, Protocol::from(i32::from(ALL)))?,
    );
    wire.set_read_timeout(Some(PATIENCE))?;
    let mut found = [None, None];
    let end = Instant::now() + PATIENCE;
    while found.iter().any(Option::is_none) {
        if Instant::now() > end {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "no probe on the wire",
            ));
        }
        let mut frame = [0; 2048];
        let (length, seen_at) =
            nix::sys::socket::recvfrom::<LinkAddr>(wire.as_raw_fd(), &mut frame)?;
        let frame = &frame[..length];
        let ours = seen_at.is_some_and(|at| at.ifindex() == index) && frame.starts_with(&target);
        for ((ethertype, addresses, udp), found) in HEADS.into_iter().zip(&mut found) {
            if ours
                && frame.get(ETHERTYPE..ETHERTYPE + 2) == Some(&ethertype)
                && frame.get(udp + 2..udp + 4) == Some(&TUNNEL_PORT)
            {
                found.get_or_insert_with(|| with_checksum(frame, addresses, udp));
            }
        }
    }
    Ok(found.into_iter().flatten().collect())
}

/// The frame with the checksum of its UDP packet, which the kernel leaves to a network card (RFC
/// 768, RFC 8200).
fn with_checksum(frame: &[u8], addresses: usize, udp: usize) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[udp + 6..udp + 8].fill(0);
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u32::from);
    let length = u32::try_from(frame.len() - udp).unwrap_or(u32::MAX);
    let sum = frame[addresses..].chunks(2).map(word).sum::<u32>() + length + u32::from(UDP);
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or(u16::MAX);
    frame[udp + 6..udp + 8].copy_from_slice(&match !folded {
        0 => [0xff, 0xff],
        sum => sum.to_be_bytes(),
    });
    frame
}

/// The median of what comes of a frame, without what it costs to send it: by all who hear of it.
/// Echo requests are `answered` by that node.
fn cost_of_frame(from: &Node, frame: &[u8], answered: Option<&Node>) -> io::Result<Duration> {
    let mut unknown = frame.to_vec();
    unknown[ETHERTYPE..ETHERTYPE + 2].copy_from_slice(&EXPERIMENTAL);
    let wire = raw(from, Protocol::from(0))?;
    bind(wire.as_raw_fd(), &device(from)?)?;
    let so_far = || answered.map_or(Ok(0), answers);
    let mut costs = Vec::new();
    // The first round of each kind fills caches, and is not counted.
    for round in 0..=ROUNDS {
        let before = so_far()?;
        let whole = flood(&wire, frame)?;
        let answers = so_far()? - before;
        if answered.is_some() && answers < u64::from(FRAMES) * 99 / 100 {
            return Err(io::Error::other(format!(
                "{answers} answers to {FRAMES} echo requests"
            )));
        }
        let sending = flood(&wire, &unknown)?;
        if round > 0 {
            costs.push(whole.saturating_sub(sending) / FRAMES);
        }
    }
    costs.sort();
    Ok(costs[ROUNDS / 2])
}

/// The processor time of sending so many frames, and of what comes of them.
fn flood(wire: &Socket, frame: &[u8]) -> io::Result<Duration> {
    let before = processor_time()?;
    for _ in 0..FRAMES {
        // No room for a moment: the frame before is still on its way.
        while let Err(error) = send(wire.as_raw_fd(), frame, MsgFlags::empty()) {
            if error != nix::errno::Errno::ENOBUFS {
                return Err(error.into());
            }
        }
    }
    Ok(processor_time()?.saturating_sub(before))
}

/// Of this thread, and of every thread that the kernel puts off its work into.
fn processor_time() -> io::Result<Duration> {
    let mut files = vec![fs::read_to_string("/proc/thread-self/schedstat")?];
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        if fs::read_to_string(path.join("comm")).is_ok_and(|name| name.starts_with("ksoftirqd/")) {
            files.push(fs::read_to_string(path.join("schedstat"))?);
        }
    }
    let nanoseconds = |text: &String| {
        text.split(' ')
            .next()
            .and_then(|first| first.parse::<u64>().ok())
    };
    let all = files.iter().map(nanoseconds).sum::<Option<u64>>();
    all.map(Duration::from_nanos)
        .ok_or_else(|| io::Error::other("/proc/*/schedstat is not what it was"))
}

/// How many echo requests the node has answered, of both families.
fn answers(node: &Node) -> io::Result<u64> {
    // Of ICMP, a line of names and one of values; of ICMPv6, a line for each.
    let script = "awk '/^Icmp:/ { if (!n) { for (i = 2; i <= NF; i++) if ($i == \"OutEchoReps\") n = i } else print $n }' /proc/net/snmp
        awk '$1 == \"Icmp6OutEchoReplies\" { print $2 }' /proc/net/snmp6";
    let text = node.run(script)?;
    text.split_whitespace()
        .map(str::parse::<u64>)
        .sum::<Result<_, _>>()
        .map_err(|error| io::Error::other(format!("{error}: {text}")))
}

fn raw(node: &Node, protocol: Protocol) -> io::Result<Socket> {
    node.enter(|| Socket::new(Domain::PACKET, Type::RAW, Some(protocol)))?
}

/// The node's device on the underlay.
fn device(node: &Node) -> io::Result<LinkAddr> {
    let find = || {
        let mut links = getifaddrs()?.filter(|link| link.interface_name == "eth0");
        Ok::<_, io::Error>(links.find_map(|link| link.address?.as_link_addr().copied()))
    };
    node.enter(find)??
        .ok_or_else(|| io::Error::other("no device eth0"))
}
