//! The process tree that holds a lab's namespaces, and that nothing survives.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Write},
    path::PathBuf,
    process::{Child, ChildStdin, Command, Stdio},
    sync::Mutex,
    thread,
};

use nix::sched::{CloneFlags, setns};

use super::lock::locked;

/// What the first process of the lab does: it makes a `/run` of its own (named namespaces, the
/// xtables lock), says so, and lives until its input ends, which it does when the lab's process
/// ends, in whatever way. The kernel then kills all others of its PID namespace.
const INIT: &str = "mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/netns /run/lab
ip link set lo up
echo ready
exec cat";

/// Where programs are looked up: services' and users' shells may lack the system directories.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Mount, network and PID namespaces of one lab, held by one process outside that knows them all.
#[derive(Debug)]
pub(super) struct Sandbox {
    holder: u32,
    life: Mutex<Option<(Child, ChildStdin)>>,
}

impl Sandbox {
    pub(super) fn new() -> io::Result<Self> {
        let mut child = Command::new("unshare")
            .args([
                "--mount",
                "--net",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "--",
                "sh",
                "-ec",
                INIT,
            ])
            .env("PATH", PATH)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::other("unshare without pipes"));
        };
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        if line.trim() != "ready" {
            drop(stdin);
            let output = child.wait_with_output()?;
            return Err(io::Error::other(format!(
                "no namespaces: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            )));
        }
        Ok(Self {
            holder: child.id(),
            life: Mutex::new(Some((child, stdin))),
        })
    }

    /// A command inside the lab's namespaces, in its root network namespace.
    pub(super) fn command(&self) -> Command {
        let namespace =
            |kind: &str, file: &str| format!("--{kind}=/proc/{}/ns/{file}", self.holder);
        let mut command = Command::new("nsenter");
        command
            .arg(namespace("mount", "mnt"))
            .arg(namespace("net", "net"))
            .arg(namespace("pid", "pid_for_children"))
            .arg("--");
        command
            .env("PATH", PATH)
            .current_dir("/")
            .stdin(Stdio::null());
        command
    }

    /// A command in one of the lab's named network namespaces, or in the root one.
    pub(super) fn command_in(&self, namespace: Option<&str>) -> Command {
        let mut command = self.command();
        if let Some(name) = namespace {
            command.args(["ip", "netns", "exec", name]);
        }
        command
    }

    /// Runs a shell script that stops at the first failure; returns what it printed.
    pub(super) fn script(&self, namespace: Option<&str>, script: &str) -> io::Result<String> {
        let mut command = self.command_in(namespace);
        command
            .args(["sh", "-eu"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let mut stdin = child
            .stdin
            .take()
            .ok_or_else(|| io::Error::other("no pipe"))?;
        let text = script.to_owned();
        // Written aside, so that neither side waits for the other; a script that ended early shows
        // in its status.
        let writer = thread::spawn(move || stdin.write_all(text.as_bytes()));
        let output = child.wait_with_output()?;
        let written = writer
            .join()
            .map_err(|_| io::Error::other("the script's writer panicked"))?;
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return written.map(|()| stdout);
        }
        let stderr = String::from_utf8_lossy(&output.stderr);
        let place = namespace.unwrap_or("the lab's root");
        Err(io::Error::other(format!(
            "in {place}: {}: {}{}",
            output.status,
            stdout,
            stderr.trim()
        )))
    }

    /// A path inside the lab, seen from outside.
    pub(super) fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.holder))
    }

    /// Runs `work` on a thread of its own inside the network namespace: sockets made there stay
    /// there.
    pub(super) fn enter<T: Send>(
        &self,
        namespace: Option<&str>,
        work: impl FnOnce() -> T + Send,
    ) -> io::Result<T> {
        let file = self.namespace_file(namespace)?;
        thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(file, CloneFlags::CLONE_NEWNET)?;
                Ok(work())
            });
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Moves the calling thread into the network namespace.
    pub(super) fn move_in(&self, namespace: Option<&str>) -> io::Result<()> {
        Ok(setns(
            self.namespace_file(namespace)?,
            CloneFlags::CLONE_NEWNET,
        )?)
    }

    fn namespace_file(&self, namespace: Option<&str>) -> io::Result<File> {
        if locked(&self.life).is_none() {
            return Err(io::Error::new(
                io::ErrorKind::NotConnected,
                "the lab has ended",
            ));
        }
        File::open(match namespace {
            Some(name) => self.path(&format!("/run/netns/{name}")),
            None => PathBuf::from(format!("/proc/{}/ns/net", self.holder)),
        })
    }

    /// Ends every process of the lab, and waits until they are gone.
    pub(super) fn end(&self) {
        if let Some((mut child, stdin)) = locked(&self.life).take() {
            drop(stdin);
            // Fails only when somebody else has waited for it: then it is gone too.
            let _ = child.wait();
        }
    }

    /// Id of the process outside that holds the namespaces.
    pub(super) const fn holder(&self) -> u32 {
        self.holder
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.end();
    }
}
