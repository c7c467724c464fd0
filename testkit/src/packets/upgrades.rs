//! The agent is upgraded to a version that has other names for sets and chains: its backend takes
//! over the rules of the former version while packets come.

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

use egressgateway::{
    PolicyDesired,
    testing::worlds::{client, gateway},
};

use super::lab::{Backend, Host, Lab, Neighbour};
use crate::{
    netns::in_namespace,
    pace::{fewer, patient},
    shell::run,
};

/// How often each of them happens.
const ROUNDS: usize = 6;
/// So many datagrams arrive before and after the change of the rules.
const SOME: u64 = 40;

/// Counts what is sent to port 9.
const SENT: &str = "nft -f - <<END
add table inet sent
add chain inet sent out { type filter hook output priority 0; }
add rule inet sent out udp dport 9 counter
END
";
/// Nobody is told that nobody listens, which would end connections.
const SILENT: &str = "nft add rule inet seen pre udp dport 9 drop";
const LIST: &str = "nft list set inet seen from4; nft list set inet seen from6";

/// The numbers of packets that all counters in a listing have.
fn counters(listed: &str) -> Vec<u64> {
    let numbers = listed.split("counter packets ").skip(1);
    numbers
        .map(|text| text.split(' ').next().unwrap().parse().unwrap())
        .collect()
}

fn arrived(at: &Neighbour) -> u64 {
    counters(&at.run(LIST)).iter().sum()
}

async fn wait_for(at: &Neighbour, expected: u64, what: &str) {
    let deadline = Instant::now() + patient(Duration::from_secs(20));
    while arrived(at) < expected {
        assert!(
            Instant::now() < deadline,
            "{what}: {} of {expected} arrived: {}",
            arrived(at),
            at.run(LIST)
        );
        tokio::task::yield_now().await;
    }
}

/// Takes the former version's rules over, again and again, while a pod sends on a connection and
/// begins others.
async fn upgrade<D: Backend>(
    lab: &Lab<D>,
    host: &Host<D>,
    (world, desired): (&str, &PolicyDesired),
    to: &[&str],
    at: &Neighbour,
) {
    lab.pod.run(SENT);
    at.run(SILENT);
    for _ in 0..fewer(ROUNDS) {
        lab.program(&PolicyDesired::default()).await;
        run(&(host.former)(world));
        // A flood would overflow the queues of packets whose neighbour is not known yet.
        let before = arrived(at) + to.len() as u64;
        for to in to {
            lab.pod.send(to);
        }
        wait_for(at, before, "of the first ones").await;
        let mut connection = lab.pod.connect(to[0]);
        let mut lines = connection.stdin.take().unwrap();
        let flood = lab.pod.flood(to);
        lines.write_all(b"1\n").unwrap();
        wait_for(at, before + SOME, "by the former rules").await;
        let writer = std::thread::spawn(move || {
            for _ in 0..50 {
                lines.write_all(b"2\n").unwrap();
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        lab.program(desired).await;
        writer.join().unwrap();
        wait_for(at, arrived(at) + SOME, "by the present rules").await;
        drop(flood);
        connection.wait().unwrap();
        let sent = counters(&lab.pod.run("nft list chain inet sent out"))[0];
        wait_for(at, sent, "of what was sent").await;
    }
}

/// What steers goes on steering.
///
/// # Panics
/// When a packet is lost or goes elsewhere.
pub fn a_client_that_is_upgraded_loses_no_packet<D: Backend>(host: Host<D>) {
    in_namespace(move || async move {
        let lab = Lab::new(&host);
        let to = ["10.6.1.92", "fd00::1:92"];
        upgrade(&lab, &host, ("client", &client()), &to, &lab.far).await;
        assert_eq!(lab.server.seen_at_all(), "", "nothing reached the server");
        let sources = ["10.244.1.10", "fd10:244:1::10"].map(|source| lab.far.seen(source));
        assert!(sources.iter().all(|seen| *seen > 0), "{sources:?}");
        assert_eq!(counters(&lab.far.run(LIST)).len(), 2, "no other source");
    });
}

/// What exits goes on with the source that it has.
///
/// # Panics
/// When a packet is lost or has another source.
pub fn a_gateway_that_is_upgraded_loses_no_packet_and_changes_no_source<D: Backend>(host: Host<D>) {
    in_namespace(move || async move {
        let lab = Lab::new(&host);
        let to = ["10.6.1.92", "10.6.2.1", "fd00::2:1"];
        upgrade(&lab, &host, ("gateway", &gateway()), &to, &lab.server).await;
        let sources = ["10.6.1.1", "10.6.0.200", "fd00::200"].map(|source| lab.server.seen(source));
        assert!(sources.iter().all(|seen| *seen > 0), "{sources:?}");
        assert_eq!(counters(&lab.server.run(LIST)).len(), 3, "no other source");
    });
}
