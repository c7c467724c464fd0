//! A node to run examples on: a network namespace with an underlay, an API server, and the
//! example's process.

use std::{
    fs,
    io::{BufRead, BufReader, Lines, Read},
    process::{Child, ChildStdout, Command, Stdio},
};

use egressgateway_testkit::apiserver::ApiServer;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

/// What a program printed.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Makes this namespace a node with one address on its underlay.
pub(crate) fn underlay(address: &str) {
    run("ip", &["link", "set", "lo", "up"]);
    run(
        "ip",
        &[
            "link", "add", "eth0", "type", "veth", "peer", "name", "cable",
        ],
    );
    run("ip", &["address", "add", address, "dev", "eth0"]);
    for device in ["cable", "eth0"] {
        run("ip", &["link", "set", device, "up"]);
    }
    run("ip", &["route", "add", "default", "via", "10.6.0.1"]);
}

/// An example at work.
pub(crate) struct Running {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    _kubeconfig: TempDir,
}

impl Running {
    pub(crate) fn start(mut example: Command, server: &ApiServer) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kubeconfig");
        fs::write(&path, server.kubeconfig()).unwrap();
        let mut child = example
            .env("KUBECONFIG", path)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self {
            child,
            lines,
            _kubeconfig: folder,
        }
    }

    /// Waits until it prints this line.
    pub(crate) fn says(&mut self, expected: &str) {
        let mut before = Vec::new();
        for line in self.lines.by_ref().map_while(Result::ok) {
            if line == expected {
                return;
            }
            before.push(line);
        }
        let mut errors = String::new();
        self.child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut errors)
            .unwrap();
        panic!("it ended without {expected:?}, after {before:#?}: {errors}");
    }

    /// Ctrl-C. Returns what it printed until its good end.
    pub(crate) fn stop(mut self) -> String {
        kill(
            Pid::from_raw(i32::try_from(self.child.id()).unwrap()),
            Signal::SIGINT,
        )
        .unwrap();
        let rest: Vec<String> = self.lines.by_ref().map_while(Result::ok).collect();
        assert!(self.child.wait().unwrap().success(), "{rest:#?}");
        rest.join("\n")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Only a test that failed leaves it running.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
