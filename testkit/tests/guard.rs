//! A cluster goes with the program that started it, in whatever way that ends.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    fs,
    io::Write as _,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use egressgateway_testkit::pace::patient;

const RUN: &str = "this-run";
const PATIENCE: Duration = Duration::from_secs(60);

/// The folder of a cluster with one process in it.
struct Cluster {
    directory: tempfile::TempDir,
    process: Child,
}

impl Cluster {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let process = Command::new("sleep").arg("600").spawn().unwrap();
        let stat = fs::read_to_string(format!("/proc/{}/stat", process.id())).unwrap();
        let began = stat
            .rsplit_once(')')
            .unwrap()
            .1
            .split_whitespace()
            .nth(19)
            .unwrap()
            .to_owned();
        let cluster = Self { directory, process };
        fs::create_dir(cluster.path()).unwrap();
        fs::write(cluster.path().join("run"), RUN).unwrap();
        fs::write(
            cluster.path().join("node.pid"),
            format!("{} {began}", cluster.process.id()),
        )
        .unwrap();
        cluster
    }

    fn path(&self) -> std::path::PathBuf {
        self.directory.path().join("cluster")
    }

    /// Lets a guard see the end of its owner, and waits for it.
    fn guarded(&self, run: &str) {
        let mut guard = guard(&self.path(), run);
        guard
            .stdin
            .take()
            .unwrap()
            .write_all(b"nobody reads this")
            .unwrap();
        assert!(guard.wait().unwrap().success());
    }

    fn lives(&mut self) -> bool {
        self.process.try_wait().unwrap().is_none()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn guard(directory: &Path, run: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_e2e"))
        .arg("guard")
        .arg(directory)
        .arg(run)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn with_the_input_of_its_guard_a_cluster_ends_and_leaves_nothing() {
    let mut cluster = Cluster::new();
    cluster.guarded(RUN);
    assert!(!cluster.lives());
    let left: Vec<_> = fs::read_dir(cluster.directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn the_guard_waits_as_long_as_its_owner_lives_even_if_that_is_killed() {
    let mut cluster = Cluster::new();
    // An owner that can do nothing any more when it ends; it has the only end of the pipe.
    let program = env!("CARGO_BIN_EXE_e2e");
    let script = format!(
        "sleep 600 | {program} guard {} {RUN} & wait",
        cluster.path().display()
    );
    let mut owner = Command::new("bash")
        .args(["-c", &script])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + patient(PATIENCE);
    let writer = loop {
        let children =
            fs::read_to_string(format!("/proc/{0}/task/{0}/children", owner.id())).unwrap();
        let sleeper = children.split_whitespace().find(|child| {
            fs::read_to_string(format!("/proc/{child}/comm"))
                .is_ok_and(|name| name.trim() == "sleep")
        });
        if let Some(sleeper) = sleeper {
            break sleeper.to_owned();
        }
        assert!(Instant::now() < deadline, "no pipe: {children}");
        thread::sleep(Duration::from_millis(20));
    };
    assert!(cluster.lives() && cluster.path().exists());
    assert!(
        Command::new("kill")
            .args(["-KILL", &writer])
            .status()
            .unwrap()
            .success()
    );
    owner.wait().unwrap();
    assert!(!cluster.lives());
    assert!(!cluster.path().exists());
}

#[test]
fn what_is_kept_or_of_another_run_is_left_alone() {
    let mut cluster = Cluster::new();
    cluster.guarded("another-run");
    assert!(cluster.lives() && cluster.path().join("run").exists());
    fs::write(cluster.path().join("kept"), "").unwrap();
    cluster.guarded(RUN);
    assert!(cluster.lives() && cluster.path().join("run").exists());
}

#[test]
fn a_process_that_only_has_the_number_is_left_alone() {
    let mut cluster = Cluster::new();
    fs::write(
        cluster.path().join("node.pid"),
        format!("{} 1", cluster.process.id()),
    )
    .unwrap();
    cluster.guarded(RUN);
    assert!(cluster.lives());
    assert!(!cluster.path().exists());
}
