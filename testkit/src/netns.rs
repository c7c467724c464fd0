//! A network namespace for one test, gone with its thread.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

use crate::{shell::run, skip::skip};

/// Whether tests that need root run here; says where they do not.
///
/// # Panics
/// Without root where [`REQUIRE_ALL`](crate::skip::REQUIRE_ALL) is set.
#[must_use]
pub fn have_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        skip("it makes network namespaces and needs root");
    }
    root
}

/// Runs `test` in a network namespace of its own: a new thread with a current-thread runtime, so
/// that every socket and every child process of the test is inside. With a `/run` of its own too:
/// iptables-legacy keeps a lock there that is shared between network namespaces. Skipped without
/// root (see [`have_root`]).
///
/// # Panics
/// When the test does, or when no namespace can be made.
pub fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    if !have_root() {
        return;
    }
    let thread = std::thread::Builder::new()
        .name("netns".into())
        .spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("new namespaces");
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
                .expect("mounts of its own");
            mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none)
                .expect("a /run of its own");
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(test());
        });
    if let Err(panic) = thread.expect("a thread").join() {
        std::panic::resume_unwind(panic);
    }
}

/// Waits until the kernel has noticed that the links which are up have their carriers. It does so a
/// moment after the command that sets them up, and only then adds their routes for multicast:
/// whoever looks before and after sees a difference that nobody made.
///
/// # Panics
/// When it takes longer than half a minute.
pub fn wait_for_links() {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let links = run("ip -o link show up");
        let names = links
            .lines()
            .filter_map(|line| line.split(": ").nth(1))
            .filter_map(|name| name.split('@').next());
        let routes = run("ip -6 -o route show table all root ff00::/8");
        let ready = |name: &str| {
            name == "lo"
                || routes
                    .lines()
                    .any(|line| line.contains(&format!(" dev {name} ")))
        };
        let late: Vec<_> = names.filter(|name| !ready(name)).collect();
        if late.is_empty() {
            return;
        }
        assert!(
            Instant::now() < end,
            "still without carrier: {}",
            late.join(", ")
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}
