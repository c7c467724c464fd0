//! A running cluster, and the ways to look into it.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    process::Child,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use super::{
    api::Api,
    command::{output, said},
    flows, net,
    net::Net,
    place::Place,
    process,
    settings::Variant,
};

/// The namespace with the router between the nodes and the server, and the one with that server.
pub(super) const ROUTER_NAME: &str = "router";
pub(super) const OUTSIDE_NAME: &str = "outside";
/// What the server outside has written down.
pub(super) const OUTSIDE_LOG: &str = "outside.log";

/// A running cluster. It goes with this, unless it is [kept](Site::keep).
#[derive(Debug)]
pub struct Site {
    pub(super) api: Option<Api>,
    pub(super) children: Mutex<BTreeMap<String, Child>>,
    pub(super) assets: PathBuf,
    /// The program that does what [`init`](super::init), [`guard`](super::guard) and [`serve`](super::serve) are for.
    pub(super) program: PathBuf,
    pub(super) variant: Variant,
    pub(super) began: Instant,
    pub(super) place: Place,
}

impl Site {
    /// The administrator's kubeconfig: it works in the router's network.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.place.path("admin.conf")
    }

    /// Requests to the API server.
    ///
    /// # Panics
    /// Before there is one.
    #[must_use]
    pub fn api(&self) -> &Api {
        self.api.as_ref().expect("the client is made at the start")
    }

    /// The way that the cluster goes.
    #[must_use]
    pub const fn variant(&self) -> Variant {
        self.variant
    }

    /// The folder of the cluster, with the nodes' logs in `NODE/var/log`.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.place.directory()
    }

    /// A program of the cluster, such as kubectl or helm, as the administrator in the router's
    /// network; what it printed.
    ///
    /// # Errors
    /// When it fails, with all that it said.
    pub fn tool(&self, program: &str, arguments: &[&str]) -> Result<String, String> {
        let router = self.process(ROUTER_NAME).map_err(said)?;
        let mut command = net::command_in(router, self.assets.join(program));
        command
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .args(arguments)
            .env("HOME", self.directory());
        output(command)
    }

    /// A program of this workspace in the router's network, with the administrator's kubeconfig in
    /// the variable by which the product's programs find it; what it printed.
    ///
    /// # Errors
    /// When it fails, with all that it said.
    pub fn own_tool(&self, program: &str, arguments: &[&str]) -> Result<String, String> {
        let router = self.process(ROUTER_NAME).map_err(said)?;
        let mut command = net::command_in(router, self.program.with_file_name(program));
        command
            .args(arguments)
            .env("EGRESSGATEWAY_KUBECONFIG", self.kubeconfig());
        output(command)
    }

    /// Runs lines of a shell in the network of the router, the server or a node; they end at the
    /// first failure.
    pub(super) fn shell(&self, name: &str, lines: &str) -> io::Result<String> {
        let mut command = net::command_in(self.process(name)?, "sh");
        command.arg("-ec").arg(lines);
        output(command).map_err(io::Error::other)
    }

    pub(super) fn process(&self, name: &str) -> io::Result<u32> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, format!("{name} does not run"));
        self.place
            .process(name)
            .map(process::Identity::id)
            .ok_or_else(missing)
    }

    pub(super) fn network(&self, name: &str) -> io::Result<Net> {
        Net::of(self.process(name)?)
    }

    /// What the server outside has seen, oldest first.
    ///
    /// # Panics
    /// When its log can't be read.
    #[must_use]
    pub fn seen(&self) -> Vec<flows::Seen> {
        let log = fs::read_to_string(self.place.path(OUTSIDE_LOG))
            .expect("the log of the server outside");
        log.lines().filter_map(flows::Seen::parse).collect()
    }

    pub(super) fn children(&self) -> MutexGuard<'_, BTreeMap<String, Child>> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells how far the start is.
    pub fn say(&self, text: &str) {
        eprintln!("e2e: {:5.1} s  {text}", self.began.elapsed().as_secs_f64());
    }

    /// Lets the cluster run on when this program ends; [`down`](super::down) ends it.
    ///
    /// # Errors
    /// When that can't be noted.
    pub fn keep(self) -> io::Result<()> {
        self.write_tools()?;
        self.place.keep()
    }

    /// Small programs for whoever looks around.
    fn write_tools(&self) -> io::Result<()> {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = self.place.path("bin");
        fs::create_dir_all(&folder)?;
        let (directory, assets) = (self.directory().display(), self.assets.display());
        let router = self.process(ROUTER_NAME)?;
        let tool = |name: &str| {
            let enter = format!("exec nsenter --net=/proc/{router}/ns/net --");
            format!(
                "#!/bin/sh\n{enter} env HOME={directory} {assets}/{name} --kubeconfig {directory}/admin.conf \"$@\"\n"
            )
        };
        let node = format!(
            "#!/bin/sh\nread -r pid _ <{directory}/$1.pid\nshift\nexec nsenter --target \"$pid\" --all -- \"${{@:-bash}}\"\n"
        );
        let node = node.replace("\"${@:-bash}\"", "${@:-bash}");
        for (name, text) in [
            ("kubectl", tool("kubectl")),
            ("helm", tool("helm")),
            ("node", node),
        ] {
            let file = folder.join(name);
            fs::write(&file, text)?;
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
        }
        Ok(())
    }

    /// Ends the cluster, and removes everything of it.
    ///
    /// # Errors
    /// When something does not end.
    pub fn end(mut self) -> io::Result<()> {
        self.api = None;
        let ended = self.place.clear();
        for child in self.children().values_mut() {
            let _ = child.wait();
        }
        ended
    }
}
