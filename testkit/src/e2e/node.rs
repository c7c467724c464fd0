//! Nodes: their boot, the loss of their power, their services.

use std::{
    fs::{self, File},
    io,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use super::{
    api::eventually,
    command::{output, said},
    groups,
    init::{RUNNING, STOP},
    process::GLANCE,
    settings::NODES,
    site::{ROUTER_NAME, Site},
};

/// How long a node may take until its first process has made its root.
const BOOT: Duration = Duration::from_secs(60);
/// How long a service may take to end, or to be there again.
const SERVICE: Duration = Duration::from_secs(120);

impl Site {
    /// Boots a node, for the first time or again: what was on its disk is still there.
    ///
    /// # Errors
    /// When it does not come up, with what its first process said.
    ///
    /// # Panics
    /// When the cluster has no such node.
    pub fn boot(&self, node: &str) -> io::Result<()> {
        assert!(NODES.contains(&node), "no node {node}");
        let groups = groups::make(node, self.place.run())?;
        self.place.note_groups(node, &groups)?;
        let announcement = self.place.announcement(node);
        let messages = self.place.path(&format!("{node}.messages"));
        let log = File::create(&messages)?;
        // It goes into its groups before it makes namespaces: these groups are then the first ones
        // that it sees.
        let enter = "for group in \"$@\"; do [ \"$group\" != -- ] || break; echo $$ >\"$group/cgroup.procs\"; shift; done; shift; exec \"$@\"";
        let mut command = Command::new("setsid");
        command
            .args(["sh", "-ec", enter, "sh"])
            .args(&groups)
            .arg("--");
        command.args([
            "unshare",
            "--net",
            "--mount",
            "--uts",
            "--ipc",
            "--pid",
            "--cgroup",
            "--fork",
            "--kill-child",
            "--",
        ]);
        command
            .arg(&self.program)
            .arg("node")
            .arg(node)
            .arg(self.place.path(node))
            .arg(&announcement)
            .arg(&self.assets);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        // With it goes its child, so that nothing is left of a node that has not announced itself
        // yet.
        self.place
            .announce(&format!("{node}.starter"), child.id())?;
        let deadline = Instant::now() + crate::pace::patient(BOOT);
        while self.place.process(node).is_none() {
            groups::release(child.id())?;
            let ended = child.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                return Err(io::Error::other(format!(
                    "it did not boot: {ended:?}: {}",
                    fs::read_to_string(messages)?
                )));
            }
            thread::sleep(GLANCE);
        }
        let process = self.process(node)?;
        self.children().insert(node.to_owned(), child);
        self.shell(ROUTER_NAME, &format!("ip link add {node} type veth peer eth0 netns {process} && ip link set {node} master br0 up"))?;
        Ok(())
    }

    /// Takes a node's power away. Its link goes first: its processes end one by one, and a node
    /// half of whose are left would still answer.
    ///
    /// # Errors
    /// When it runs not, or does not end.
    pub fn lose_power(&self, node: &str) -> io::Result<()> {
        self.shell(ROUTER_NAME, &format!("ip link delete {node}"))?;
        let ended = self.place.end(node);
        if let Some(mut child) = self.children().remove(node) {
            child.wait()?;
        }
        ended
    }

    /// Ends a service of a node, and lets it rest.
    ///
    /// # Panics
    /// When it does not end.
    pub fn stop_service(&self, node: &str, service: &str, signal: Signal) {
        let file = |folder: &str| self.inside(node, &format!("{folder}/{service}"));
        fs::write(file(STOP), signal.as_str())
            .unwrap_or_else(|error| panic!("{node}: {service}: {error}"));
        eventually(&format!("{service} of {node} ends"), SERVICE, || {
            if file(RUNNING).exists() {
                Err("it runs".to_owned())
            } else {
                Ok(())
            }
        });
    }

    /// Starts a service again that was stopped.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_service(&self, node: &str, service: &str) {
        let file = |folder: &str| self.inside(node, &format!("{folder}/{service}"));
        fs::remove_file(file(STOP)).unwrap_or_else(|error| panic!("{node}: {service}: {error}"));
        eventually(&format!("{service} of {node} starts"), SERVICE, || {
            if file(RUNNING).exists() {
                Ok(())
            } else {
                Err("it does not run".to_owned())
            }
        });
    }

    /// A path of a node as the outside sees it.
    fn inside(&self, node: &str, path: &str) -> std::path::PathBuf {
        let process = self.process(node).unwrap_or_else(|error| panic!("{error}"));
        format!("/proc/{process}/root/{path}").into()
    }

    /// Runs lines of a shell on a node, in all its namespaces; they end at the first failure.
    ///
    /// # Errors
    /// When one fails, with all that was said.
    pub fn on_node(&self, node: &str, lines: &str) -> Result<String, String> {
        let mut command = self.node_command(node)?;
        command.args(["sh", "-ec", lines]);
        output(command)
    }

    pub(super) fn node_command(&self, node: &str) -> Result<Command, String> {
        let process = self.process(node).map_err(said)?;
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &process.to_string(), "--all", "--"])
            .env_clear();
        command
            .env("PATH", "/opt/kube:/usr/sbin:/usr/bin")
            .env("HOME", "/root");
        Ok(command)
    }
}
