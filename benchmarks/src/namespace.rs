//! Network namespaces that nobody else sees, gone with the process.

use std::fs::{self, File};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    unistd::geteuid,
};

use crate::command::run;

/// Whether namespaces can be made here; says so if not.
#[must_use]
pub fn have_root() -> bool {
    let root = geteuid().is_root();
    if !root {
        eprintln!("skipped: this measurement makes network namespaces and needs root");
    }
    root
}

/// Runs `work` on a thread with a network namespace and a /run of its own, where the names of
/// namespaces and the lock of iptables-legacy are.
pub fn alone<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    on_a_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
            .expect("a network and a mount namespace");
        mount(
            None::<&str>,
            "/",
            None::<&str>,
            MsFlags::MS_REC | MsFlags::MS_PRIVATE,
            None::<&str>,
        )
        .expect("private mounts");
        mount(
            Some("tmpfs"),
            "/run",
            Some("tmpfs"),
            MsFlags::empty(),
            None::<&str>,
        )
        .expect("a /run of our own");
        work()
    })
}

fn on_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let joined = std::thread::scope(|scope| scope.spawn(work).join());
    joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// A named network namespace below the one of [`alone`].
#[derive(Clone, Debug)]
pub struct Namespace(String);

impl Namespace {
    /// Makes one, with its loopback device up.
    #[must_use]
    pub fn new(name: String) -> Self {
        run(&["ip", "netns", "add", &name], "");
        run(&["ip", "-n", &name, "link", "set", "lo", "up"], "");
        Self(name)
    }

    /// Its name, for `ip`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0
    }

    /// Runs `work` on a thread inside. Sockets that it opens stay inside, whoever uses them.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        on_a_thread(|| {
            let file = File::open(format!("/run/netns/{}", self.0)).expect("the namespace");
            setns(file, CloneFlags::CLONE_NEWNET).expect("to enter the namespace");
            work()
        })
    }

    /// Packets that a device received and sent.
    #[must_use]
    pub fn packets(&self, device: &str) -> (u64, u64) {
        let text = self.enter(|| {
            fs::read_to_string("/proc/thread-self/net/dev").expect("interface statistics")
        });
        let line = text
            .lines()
            .find_map(|line| line.trim().strip_prefix(device)?.strip_prefix(':'))
            .expect("the device");
        let numbers: Vec<u64> = line
            .split_whitespace()
            .map(|number| number.parse().expect("a number"))
            .collect();
        (numbers[1], numbers[9])
    }
}
