//! What lives in a lab, and that nothing of it outlives the process that made it.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use egressgateway_testkit::{
    lab::{Lab, MANAGEMENT, RuleTool},
    netns::have_root,
};
use nix::sys::signal::Signal;

use super::{LONG, SHORT, lab, traffic::everything_works};

/// Set for the copy of this test program that makes a lab and waits to be killed.
const VICTIM: &str = "EGRESSGATEWAY_LAB_VICTIM";

#[test]
fn a_program_runs_in_its_node_and_takes_signals() {
    if !have_root() {
        return;
    }
    let lab = lab();
    let node1 = lab.node("node1");
    let script = "trap 'echo term; exit 7' TERM; echo $GREETING; ip -o -4 addr show dev eth0; ls /sys/class/net; while :; do sleep 0.01; done";
    let process = node1
        .program("sh")
        .args(["-c", script])
        .env("GREETING", "hello")
        .start()
        .unwrap();
    process.wait_for_log("mgmt0", LONG).unwrap();
    let log = process.log().unwrap();
    assert!(
        log.contains("hello") && log.contains("10.6.0.11/16"),
        "{log}"
    );
    assert_eq!(process.status().unwrap(), None);
    assert_eq!(process.terminate(LONG).unwrap().code(), Some(7));
    process.wait_for_log("term", LONG).unwrap();

    let file = tempfile::NamedTempFile::new().unwrap();
    let process = node1
        .program("/bin/sleep")
        .arg("1000")
        .log_to(file.path())
        .start()
        .unwrap();
    process.kill(Signal::SIGKILL).unwrap();
    assert!(!process.wait(LONG).unwrap().success());
    assert!(
        node1
            .program("/no/such/program")
            .start()
            .and_then(|process| process.wait(LONG))
            .map_or(true, |status| !status.success())
    );

    let process = node1.program("sleep").arg("1000").start().unwrap();
    drop(lab);
    assert!(
        !process.wait(LONG).unwrap().success(),
        "a program ends with the lab"
    );
    assert!(
        node1.run("true").is_err(),
        "and a handle that is left says so"
    );
}

#[test]
fn a_deleted_pod_leaves_its_address_to_the_next() {
    if !have_root() {
        return;
    }
    let lab = lab();
    let (a, b) = (
        lab.pod("node1", "a").unwrap(),
        lab.pod("node1", "b").unwrap(),
    );
    assert!(lab.pod("node2", "a").is_err(), "names are unique");
    let address = a.v4();
    let at = a.endpoints()[0];
    a.delete().unwrap();
    b.cannot_reach(at, SHORT).unwrap();
    let c = lab.pod("node1", "c").unwrap();
    assert_eq!(c.v4(), address);
    assert_eq!(b.connect_tcp(at).unwrap().ip(), b.v4());
}

#[test]
fn two_labs_at_once_do_not_see_each_other() {
    if !have_root() {
        return;
    }
    let world = || {
        let lab = Lab::builder()
            .nodes(["node1", "node2"])
            .rules_by(RuleTool::IptablesLegacy)
            .build()
            .unwrap();
        everything_works(&lab);
        lab
    };
    let [first, second] = std::thread::scope(|scope| {
        [scope.spawn(world), scope.spawn(world)].map(|thread| thread.join().unwrap())
    });
    let server = first.server(["10.6.1.99"]).unwrap();
    let pod = |lab: &Lab| lab.pod("node1", "asks").unwrap();
    assert!(pod(&first).connect_tcp(server.v4()).is_ok());
    pod(&second).cannot_reach(server.v4(), SHORT).unwrap();
    drop(first);
    second.node("node1").run("ip link show eth0").unwrap();
}

#[test]
fn the_hosts_own_network_is_left_alone() {
    if !have_root() {
        return;
    }
    let host = || {
        [
            "ip -o link | wc -l",
            "ip netns list",
            "ip route",
            "grep -c netns /proc/mounts",
        ]
        .map(output)
    };
    let inside = |lab: &Lab| lab.root().run("readlink /proc/self/ns/net").unwrap();
    let before = host();
    let lab = lab();
    lab.pod("node1", "pod-a").unwrap();
    assert_ne!(
        inside(&lab).trim(),
        output("readlink /proc/self/ns/net").trim()
    );
    assert_eq!(host(), before);
}

fn output(command: &str) -> String {
    String::from_utf8(
        Command::new("sh")
            .args(["-c", command])
            .output()
            .unwrap()
            .stdout,
    )
    .unwrap()
}

/// Not a test of its own: the victim of the next one.
#[test]
fn victim() {
    if std::env::var_os(VICTIM).is_none() {
        return;
    }
    let lab = lab();
    lab.pod("node1", "pod-a").unwrap();
    let _stream = lab
        .node("node1")
        .stream("10.6.0.12:9".parse().unwrap(), SHORT);
    let process = lab
        .node("node1")
        .program("sleep")
        .arg("1000")
        .start()
        .unwrap();
    println!("\nholder {}", lab.holder());
    std::io::stdout().flush().unwrap();
    process.wait(Duration::from_secs(1000)).unwrap();
}

#[test]
fn everything_dies_with_the_process_even_by_sigkill() {
    if !have_root() {
        return;
    }
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "life::victim", "--nocapture"])
        .env(VICTIM, "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(victim.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    let holder: u32 = lines
        .find_map(|line| line.strip_prefix("holder ").map(|id| id.parse().unwrap()))
        .unwrap();
    let namespace = std::fs::read_link(format!("/proc/{holder}/ns/pid_for_children")).unwrap();
    assert!(
        processes_in(&namespace) >= 2,
        "the lab's first process and the sleeping one"
    );

    victim.kill().unwrap();
    victim.wait().unwrap();
    let deadline = Instant::now() + LONG;
    while processes_in(&namespace) > 0 || Path::new(&format!("/proc/{holder}")).exists() {
        assert!(
            Instant::now() < deadline,
            "{} processes are left",
            processes_in(&namespace)
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// How many processes live in a PID namespace; none where its last has ended.
fn processes_in(namespace: &Path) -> usize {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter(|process| {
            std::fs::read_link(process.path().join("ns/pid")).is_ok_and(|link| link == namespace)
        })
        .count()
}

#[test]
fn an_asynchronous_server_listens_in_the_labs_root() {
    if !have_root() {
        return;
    }
    let lab = lab();
    let listener = lab
        .root()
        .listen_tcp(SocketAddr::new(MANAGEMENT.into(), 0))
        .unwrap();
    let at = listener.local_addr().unwrap();
    let thread =
        std::thread::spawn(move || listener.accept().unwrap().0.write_all(b"hello").unwrap());
    let mut stream = lab
        .node("node2")
        .enter(|| std::net::TcpStream::connect(at))
        .unwrap()
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello");
    thread.join().unwrap();
}
