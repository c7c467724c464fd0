//! A real cluster out of namespaces: kubelet, containerd, runc, kube-proxy, flannel, CoreDNS,
//! controller manager, scheduler, etcd and API server, on four nodes that are sets of namespaces,
//! beside a server outside that says which source it sees.
//!
//! Nothing of the machine is changed but a folder, control groups below that of the caller (module
//! `groups`) and processes, and all of these go with the program that started them (module
//! `place`).

mod api;
mod chart;
mod files;
mod flows;
mod groups;
mod images;
mod init;
mod keys;
mod net;
mod node;
mod place;
mod pods;
mod process;
mod serve;
mod settings;
mod space;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use nix::unistd::geteuid;
use serde_json::json;

pub use self::{
    api::{Api, eventually, has_condition},
    chart::{NAMESPACE, RELEASE},
    files::KUBE_ROUTER,
    flows::{Client, Flows, Gap, Measured},
    init::run as init,
    net::Net,
    place::{PLACE, directory, down, guard},
    pods::{END, Pod},
    serve::{HTTP, TCP, UDP, run as serve},
    settings::{DNS, NODES, OUTSIDE, OUTSIDE_NETWORKS, PODS, SERVICES, Variant, addresses},
    space::Space,
};
use self::{
    place::Place,
    settings::{ROUTER, ROUTER_OUTSIDE},
};
use crate::kube;

/// The namespace with the router between the nodes and the server, and the one with that server.
const ROUTER_NAME: &str = "router";
const OUTSIDE_NAME: &str = "outside";
/// How long the API server may take from the first start of its node.
const SERVER: Duration = Duration::from_secs(180);
/// How long a process may take until it is in a namespace of its own.
const HOLD: Duration = Duration::from_secs(20);
/// What the server outside has written down.
const OUTSIDE_LOG: &str = "outside.log";

/// A running cluster. It goes with this, unless it is [kept](Site::keep).
#[derive(Debug)]
pub struct Site {
    api: Option<Api>,
    children: Mutex<BTreeMap<String, Child>>,
    assets: PathBuf,
    /// The program that does what [`init`], [`guard`] and [`serve`] are for.
    program: PathBuf,
    variant: Variant,
    began: Instant,
    place: Place,
}

/// Where the programs are that a cluster needs; an error says why there can be none here. `more`
/// names sets of `scripts/kube-assets` that tests want besides: `policies` has [`KUBE_ROUTER`].
///
/// # Errors
/// Without root, or where programs are missing and can't be made.
pub fn assets(more: &[&str]) -> Result<PathBuf, String> {
    if !geteuid().is_root() {
        return Err("this makes namespaces, and needs root".to_owned());
    }
    for program in [
        "containerd",
        "runc",
        "conntrack",
        "busybox",
        "/usr/lib/cni/bridge",
        "nsenter",
        "unshare",
        "setsid",
    ] {
        let found = if program.starts_with('/') {
            Path::new(program).exists()
        } else {
            which(program).is_some()
        };
        if !found {
            return Err(format!("there is no {program}: scripts/setup installs it"));
        }
    }
    kube::node_assets(more)
}

/// Where a program is that is called by its name.
fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(system)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

impl Site {
    /// Starts a cluster, and waits until all nodes are Ready. `program` is the one whose commands
    /// are [`init`], [`guard`] and [`serve`]; the programs of this workspace are beside it.
    ///
    /// # Errors
    /// When another one runs here, or something does not come up.
    pub fn start(assets: PathBuf, program: PathBuf, variant: Variant) -> Result<Self, String> {
        let began = Instant::now();
        let place = Place::take(&program).map_err(said)?;
        let mut site = Self {
            api: None,
            children: Mutex::default(),
            assets,
            program,
            variant,
            began,
            place,
        };
        site.networks().map_err(said)?;
        site.describe().map_err(said)?;
        for node in NODES {
            site.boot(node)
                .map_err(|error| format!("{node}: {error}"))?;
        }
        site.say("nodes have booted");
        let kubeconfig = fs::read_to_string(site.kubeconfig()).map_err(said)?;
        let router = site.network(ROUTER_NAME).map_err(said)?;
        site.api = Some(Api::new(kubeconfig, router)?);
        site.bring_up()?;
        Ok(site)
    }

    fn bring_up(&self) -> Result<(), String> {
        let images = self.make_images()?;
        self.say("images are made");
        thread::scope(|scope| {
            let loading: Vec<_> = NODES
                .map(|node| scope.spawn(|| self.load_images(node, &images)))
                .into();
            self.wait_for_server();
            self.say("the API server is ready");
            self.basics();
            let loaded = loading.into_iter().map(|thread| {
                thread
                    .join()
                    .map_err(|_| "a thread panicked".to_owned())
                    .and_then(|loaded| loaded)
            });
            loaded.collect::<Result<(), String>>()
        })?;
        self.say("images are loaded");
        for node in NODES {
            self.wait_for_node(node);
        }
        self.say("all nodes are Ready");
        Ok(())
    }

    fn wait_for_server(&self) {
        eventually("the API server is ready", SERVER, || self.api().ready());
    }

    /// What every cluster has: the account of kube-proxy, and a name server.
    fn basics(&self) {
        self.api().apply(&json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "kube-proxy"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:node-proxier"},
            "subjects": [{"kind": "User", "name": "system:kube-proxy", "apiGroup": "rbac.authorization.k8s.io"}],
        }));
        for object in images::name_server() {
            self.api().apply(&object);
        }
    }

    /// Waits until a node is Ready.
    ///
    /// # Panics
    /// When it does not become so.
    pub fn wait_for_node(&self, node: &str) {
        self.api().wait_for_condition("Node", "", node, "Ready");
    }

    /// The router and the server outside.
    fn networks(&self) -> io::Result<()> {
        self.hold(ROUTER_NAME, &["hold"])?;
        let log = self.place.path(OUTSIDE_LOG);
        self.hold(OUTSIDE_NAME, &["serve", &log.display().to_string()])?;
        let outside = self.process(OUTSIDE_NAME)?;
        let ([node, node6], [way, way6], [server, server6]) = (ROUTER, ROUTER_OUTSIDE, OUTSIDE);
        self.shell(
            ROUTER_NAME,
            &format!(
                "ip link set lo up
            sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv6.conf.default.accept_dad=0
            ip link add br0 type bridge
            sysctl -qw net.ipv6.conf.br0.accept_dad=0
            ip link set br0 up
            ip addr add {node}/24 dev br0
            ip addr add {node6}/64 dev br0 nodad
            ip link add out0 type veth peer eth0 netns {outside}
            ip addr add {way}/24 dev out0
            ip addr add {way6}/64 dev out0 nodad
            ip link set out0 up"
            ),
        )?;
        self.shell(
            OUTSIDE_NAME,
            &format!(
                "ip link set lo up
            ip addr add {server}/24 dev eth0
            ip addr add {server6}/64 dev eth0 nodad
            ip link set eth0 up
            ip route add default via {way}
            ip -6 route add default via {way6}"
            ),
        )
        .map(|_| ())
    }

    /// Starts a process in a network namespace of its own, which it holds.
    fn hold(&self, name: &str, arguments: &[&str]) -> io::Result<()> {
        let log = fs::File::create(self.place.path(&format!("{name}.messages")))?;
        let mut command = Command::new("setsid");
        command
            .args(["unshare", "--net", "--"])
            .arg(&self.program)
            .args(arguments);
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let identity = self.place.announce(name, child.id())?;
        self.children().insert(name.to_owned(), child);
        // The namespace is another one once unshare(1) has made it.
        let own = fs::read_link("/proc/self/ns/net")?;
        let deadline = Instant::now() + HOLD;
        while fs::read_link(format!("/proc/{}/ns/net", identity.id()))? == own {
            if Instant::now() > deadline {
                return Err(io::Error::other(format!(
                    "{name} has no namespace of its own"
                )));
            }
            thread::sleep(process::GLANCE);
        }
        Ok(())
    }

    fn describe(&self) -> io::Result<()> {
        let keys = self.place.path("keys");
        keys::make(&keys)?;
        place::write_whole(&self.kubeconfig(), &keys::kubeconfig(keys::ADMIN, &keys))?;
        for node in NODES {
            files::write(&self.place.path(node), node, self.variant, &keys)?;
        }
        Ok(())
    }

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
    pub(self) fn shell(&self, name: &str, lines: &str) -> io::Result<String> {
        let mut command = net::command_in(self.process(name)?, "sh");
        command.arg("-ec").arg(lines);
        output(command).map_err(io::Error::other)
    }

    fn process(&self, name: &str) -> io::Result<u32> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, format!("{name} does not run"));
        self.place
            .process(name)
            .map(process::Identity::id)
            .ok_or_else(missing)
    }

    fn network(&self, name: &str) -> io::Result<Net> {
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

    fn children(&self) -> MutexGuard<'_, BTreeMap<String, Child>> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells how far the start is.
    pub fn say(&self, text: &str) {
        eprintln!("e2e: {:5.1} s  {text}", self.began.elapsed().as_secs_f64());
    }

    /// Lets the cluster run on when this program ends; [`down`] ends it.
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

/// What a command prints; all that it said when it fails.
fn output(mut command: Command) -> Result<String, String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{command:?}: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    Err(format!(
        "{command:?}: {}: {} {}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    ))
}

fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}
