//! The node of an egress address loses its power: the other has the same address. Then the lost
//! node comes back with the address still set.

use std::{
    collections::BTreeSet,
    fmt, io,
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use egressgateway_testkit::{
    cluster::agent,
    lab::{Capture, Packet, Protocol, Response},
};
use nix::sys::signal::Signal;

use crate::{
    distribution::{Distribution, HEADS},
    scene::{As, BACKENDS, CLIENT, FAMILIES, GATEWAYS, PATIENCE, STEP, Scene},
};

/// How long a Lease counts as held, and as much again for everything after it.
const LEASE: Duration = Duration::from_secs(90);
/// How long the former owner is listened for when it answers no more.
const QUIET: Duration = Duration::from_secs(2);
/// ICMPv6 type of a neighbour advertisement.
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

/// Who says that the owner is lost.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Told {
    /// Its Node is NotReady in the moment when it is.
    ByNode,
    /// Nobody: its Lease is not renewed.
    ByLease,
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ByNode => "its Node, at once",
            Self::ByLease => "its Lease alone",
        })
    }
}

pub(crate) fn measure(runs: u32, leases: u32) -> io::Result<String> {
    let columns = |what: &str| {
        vec![
            format!("| backend | family | who says that the node is lost | {what} | {HEADS} |"),
            "|---|---|---|---|---|---|---|---|".to_owned(),
        ]
    };
    let (mut stops, mut both_answer) = (
        columns("traffic stops"),
        columns("back again, both nodes answer"),
    );
    for backend in BACKENDS {
        let mut scene = Scene::start(backend, As::EgressIp)?;
        for (told, runs) in [(Told::ByNode, runs), (Told::ByLease, leases)] {
            let (mut gaps, mut both) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
            for run in 0..runs {
                let measured = lose_owner(&mut scene, told)?;
                eprintln!(
                    "{backend}, {told}, run {run}: traffic stops for {:?}, both answer for {:?}",
                    measured.gaps, measured.both
                );
                gaps.iter_mut()
                    .zip(measured.gaps)
                    .for_each(|(all, gap)| all.push(gap));
                both.iter_mut()
                    .zip(measured.both)
                    .for_each(|(all, time)| all.push(time));
            }
            for (lines, times) in [(&mut stops, gaps), (&mut both_answer, both)] {
                for (family, times) in FAMILIES
                    .into_iter()
                    .zip(times)
                    .filter(|(_, times)| !times.is_empty())
                {
                    lines.push(format!(
                        "| {backend} | {family} | {told} | {} times | {} |",
                        times.len(),
                        Distribution::of(times)
                    ));
                }
            }
        }
    }
    Ok([stops, both_answer]
        .map(|lines| lines.join("\n"))
        .join("\n\n"))
}

/// Of one loss, for each family.
struct Measured {
    /// How long no datagram was answered.
    gaps: Vec<Duration>,
    /// How long both nodes answered for the address once the lost one was back.
    both: Vec<Duration>,
}

fn lose_owner(scene: &mut Scene, told: Told) -> io::Result<Measured> {
    let (owner, addresses) = given(scene)?;
    let next = GATEWAYS
        .into_iter()
        .find(|node| *node != owner)
        .ok_or_else(|| io::Error::other("no other gateway"))?;
    // Each datagram is a connection of its own: those of the lost node end.
    let start = |to| scene.pod.stream(to, STEP).fresh_ports().start();
    let streams = Scene::servers()
        .into_iter()
        .map(start)
        .collect::<io::Result<Vec<_>>>()?;
    scene.cluster.lab.node(owner).power_off()?;
    if told == Told::ByNode {
        scene.cluster.node_ready(owner, false);
    }
    wait_for_owner(
        scene,
        next,
        if told == Told::ByNode {
            PATIENCE
        } else {
            LEASE
        },
    )?;
    let moved = Instant::now();
    for stream in &streams {
        stream.wait_for(PATIENCE, |response: &Response| response.at > moved)?;
    }
    let mut gaps = Vec::new();
    for (stream, address) in streams.into_iter().zip(&addresses) {
        let report = stream.finish()?;
        if report.sources.keys().ne([address]) {
            return Err(io::Error::other(format!(
                "seen as {:?}, and must be as {address} alone",
                report.sources
            )));
        }
        gaps.push(report.longest_gap);
    }
    let capture = scene.cluster.lab.capture()?;
    scene.cluster.lab.node(owner).power_on()?;
    let both = both_answer(scene, &capture, &addresses, owner)?;
    scene.cluster.node_ready(owner, true);
    scene.all_ready();
    // A fresh agent, so that no node is held down for what happened before.
    scene.cluster.kill(&agent(CLIENT), Signal::SIGKILL);
    scene.cluster.start_agent(CLIENT);
    scene.probed();
    Ok(Measured { gaps, both })
}

/// The node and the addresses of the policy, IPv4 first.
fn given(scene: &Scene) -> io::Result<(&'static str, Vec<IpAddr>)> {
    let status = scene.cluster.status("EgressGatewayPolicy", "shopping");
    let node = GATEWAYS.into_iter().find(|node| status["node"] == *node);
    let addresses: Vec<IpAddr> = ["ipv4", "ipv6"]
        .iter()
        .filter_map(|family| status["egressIP"][family].as_str()?.parse().ok())
        .collect();
    match node {
        Some(node) if addresses.len() == FAMILIES.len() => Ok((node, addresses)),
        _ => Err(io::Error::other(format!(
            "the policy has no addresses: {status}"
        ))),
    }
}

fn wait_for_owner(scene: &Scene, node: &str, patience: Duration) -> io::Result<()> {
    let end = Instant::now() + patience;
    while given(scene)?.0 != node {
        if Instant::now() > end {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("the addresses do not come to {node}"),
            ));
        }
        thread::sleep(STEP);
    }
    Ok(())
}

/// Asks from outside, again and again, who has the addresses, until the former owner has been
/// silent for [`QUIET`]: when it last answered, from now.
fn both_answer(
    scene: &Scene,
    capture: &Capture,
    addresses: &[IpAddr],
    former: &str,
) -> io::Result<Vec<Duration>> {
    let start = Instant::now();
    let mut last = vec![Duration::ZERO; addresses.len()];
    let ask = |address| {
        format!(
            "ip neigh flush to {address} dev eth0; ping -c 1 -W 0.1 {address} >/dev/null || true\n"
        )
    };
    let ask: String = addresses.iter().map(ask).collect();
    while last.iter().any(|last| start.elapsed() < *last + QUIET) {
        if start.elapsed() > LEASE {
            return Err(io::Error::other(format!(
                "{former} does not let go of {addresses:?}"
            )));
        }
        scene.neighbour.run(&ask)?;
        let heard = capture.packets();
        capture.clear();
        for (address, last) in addresses.iter().zip(&mut last) {
            let answering: BTreeSet<&str> = heard
                .iter()
                .filter(|packet| says_it_has(packet, *address))
                .map(|packet| packet.from.as_str())
                .collect();
            if answering.contains(former) {
                *last = start.elapsed();
            }
        }
    }
    Ok(last)
}

fn says_it_has(packet: &Packet, address: IpAddr) -> bool {
    packet.source == address
        && (packet.protocol == Protocol::Arp || packet.icmp_type == Some(NEIGHBOUR_ADVERTISEMENT))
}
