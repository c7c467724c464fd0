//! The start of a cluster: what it needs, its networks and nodes, and what it waits for.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use nix::unistd::geteuid;
use serde_json::json;

use super::{
    api::{Api, eventually},
    command::{said, which},
    files, images, keys,
    place::{self, Place},
    process,
    settings::{NODES, OUTSIDE, ROUTER, ROUTER_OUTSIDE, Variant},
    site::{OUTSIDE_LOG, OUTSIDE_NAME, ROUTER_NAME, Site},
};
use crate::kube;

/// Hardware address of the router towards the nodes. A bridge without one of its own takes the
/// lowest of its ports', and so another one when a node comes or goes: the other nodes would send
/// to the old one until they ask again, up to a minute.
const ROUTER_MAC: &str = "02:00:00:00:00:fe";
/// How long the API server may take from the first start of its node.
const SERVER: Duration = Duration::from_secs(180);
/// How long a process may take until it is in a namespace of its own.
const HOLD: Duration = Duration::from_secs(20);
/// Where the programs are that a cluster needs; an error says why there can be none here. `more`
/// names sets of `scripts/kube-assets` that tests want besides: `policies` has [`KUBE_ROUTER`](super::KUBE_ROUTER).
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

impl Site {
    /// Starts a cluster, and waits until all nodes are Ready. `program` is the one whose commands
    /// are [`init`](super::init), [`guard`](super::guard) and [`serve`](super::serve); the programs of this workspace are beside it.
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
            ip link add br0 address {ROUTER_MAC} type bridge
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
}
