//! Pods start, and speak to a governed destination before anybody knows them.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use egressgateway_testkit::lab::{Capture, Pod, PodSpec, Protocol};

use crate::scene::{As, BACKENDS, CLIENT, GATEWAYS, PATIENCE, Scene};

/// How many pods start at the same time.
const WAVE: u32 = 20;
/// How often each speaks, from a fresh port each time.
const STEP: Duration = Duration::from_millis(5);

pub(crate) fn measure(pods: u32) -> io::Result<String> {
    let mut lines = vec![
        "| backend | pod starts | datagrams and connections | held | answered, with the gateway's address | packets with another source on the underlay |"
            .to_owned(),
        "|---|---|---|---|---|---|".to_owned(),
    ];
    for backend in BACKENDS {
        let scene = Scene::start(backend, As::Node)?;
        let mut sum = Sum::default();
        for first in (0..pods).step_by(WAVE as usize) {
            wave(&scene, first..pods.min(first + WAVE), &mut sum)?;
            eprintln!(
                "{backend}, race, {} of {pods} pods: {sum:?}",
                pods.min(first + WAVE)
            );
        }
        if sum.held == 0 {
            return Err(io::Error::other(
                "no pod spoke before it was known: nothing was measured",
            ));
        }
        let Sum {
            sent,
            held,
            answered,
            wrong,
        } = sum;
        lines.push(format!(
            "| {backend} | {pods} | {sent} | {held} | {answered} | {wrong} |"
        ));
    }
    Ok(lines.join("\n"))
}

#[derive(Debug, Default)]
struct Sum {
    sent: u64,
    held: u64,
    answered: u64,
    wrong: usize,
}

/// All of these start together; the API server hears of each between no time and 45 ms after its
/// first datagram.
fn wave(scene: &Scene, numbers: std::ops::Range<u32>, sum: &mut Sum) -> io::Result<()> {
    let spec = |number: u32| PodSpec::new(format!("racer-{number}")).label("app", "shopping");
    let pods = numbers
        .map(|number| scene.cluster.lab.pod(CLIENT, spec(number)))
        .collect::<io::Result<Vec<_>>>()?;
    let capture = scene.cluster.lab.capture()?;
    let gateways: Vec<IpAddr> = GATEWAYS
        .iter()
        .flat_map(|node| scene.cluster.lab.node(node).addresses())
        .collect();
    let outcomes = thread::scope(|scope| {
        let racing: Vec<_> = (0u64..)
            .zip(&pods)
            .map(|(number, pod)| scope.spawn(move || race(scene, pod, number % 10 * 5)))
            .collect();
        let joined = racing.into_iter().map(|thread| {
            thread
                .join()
                .map_err(|_| io::Error::other("a racer panicked"))?
        });
        joined.collect::<io::Result<Vec<_>>>()
    })?;
    for Outcome { sent, answers } in outcomes {
        sum.sent += sent;
        sum.answered += answers.len() as u64;
        sum.held += sent - answers.len() as u64;
        // What servers saw and what went over the wire are looked at each for itself.
        if let Some(source) = answers.iter().find(|source| !gateways.contains(source)) {
            return Err(io::Error::other(format!("a server saw {source}")));
        }
    }
    sum.wrong += wrong_sources(&capture, &gateways);
    for pod in pods {
        let name = pod.name().to_owned();
        pod.delete()?;
        scene
            .cluster
            .api
            .delete("Pod", "default", &name)
            .map_err(io::Error::other)?;
    }
    Ok(())
}

/// Of one pod: how much it sent, and as whom servers saw it.
struct Outcome {
    sent: u64,
    answers: Vec<IpAddr>,
}

fn race(scene: &Scene, pod: &Pod, known_after: u64) -> io::Result<Outcome> {
    let mut outcome = Outcome {
        sent: 0,
        answers: Vec::new(),
    };
    thread::scope(|scope| {
        let datagrams = |to: SocketAddr| {
            pod.stream(to, STEP)
                .fresh_ports()
                .patience(PATIENCE)
                .start()
                .and_then(egressgateway_testkit::lab::Stream::finish)
        };
        let speaking: Vec<_> = Scene::servers()
            .into_iter()
            .map(|to| scope.spawn(move || datagrams(to)))
            .collect();
        let connecting = scope.spawn(|| connect(pod));
        thread::sleep(Duration::from_millis(known_after));
        scene
            .cluster
            .api
            .put(pod.object())
            .map_err(io::Error::other)?;
        for thread in speaking {
            let report = thread
                .join()
                .map_err(|_| io::Error::other("a sender panicked"))??;
            outcome.sent += report.sent;
            outcome
                .answers
                .extend(report.responses.iter().map(|answer| answer.source.ip()));
        }
        let source = connecting
            .join()
            .map_err(|_| io::Error::other("a connection panicked"))??;
        outcome.sent += 1;
        outcome.answers.push(source);
        Ok(outcome)
    })
}

/// Opens TCP connections until the server has one; TCP itself tries only after a second again, and
/// then after two.
fn connect(pod: &Pod) -> io::Result<IpAddr> {
    let end = Instant::now() + PATIENCE;
    loop {
        match pod.connect_tcp(Scene::servers()[0]) {
            Ok(source) => return Ok(source.ip()),
            Err(error) if Instant::now() > end => return Err(error),
            Err(_) => {}
        }
    }
}

/// Packets to the servers in no tunnel that no gateway sent with its own address.
fn wrong_sources(capture: &Capture, gateways: &[IpAddr]) -> usize {
    let servers = Scene::servers().map(|to| to.ip());
    capture.count(|packet| {
        let bare = packet.inner.is_none() && packet.protocol != Protocol::Arp;
        bare && servers.contains(&packet.destination) && !gateways.contains(&packet.source)
    })
}
