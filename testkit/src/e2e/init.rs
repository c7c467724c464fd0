//! The first process of a node, in namespaces of its own: makes the node's root, waits for its
//! link, and keeps its services running.
//!
//! With it goes everything of the node: the kernel ends all other processes of its PID namespace,
//! and mounts, links and network namespaces of pods end with the last of these.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fs::{self, File},
    io,
    net::IpAddr,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, pivot_root},
};
use serde::{Deserialize, Serialize};

use super::{groups, process::GLANCE};

/// Where a node finds what it runs, written before its first boot.
pub(super) const SERVICES_FILE: &str = "etc/node/services.json";
/// A script that gives the node's link its addresses and routes.
pub(super) const NETWORK_FILE: &str = "etc/node/network";
/// A file in here, named as a service, holds the signal that ends it; the service rests as long as
/// the file is there.
pub(super) const STOP: &str = "run/stop";
/// A file in here, named as a service, is there while it runs.
pub(super) const RUNNING: &str = "run/running";
/// Where programs of the cluster are on a node.
const PROGRAMS: &str = "opt/kube";
/// Where flannel writes which networks the node's pods have.
pub(super) const FLANNEL_FILE: &str = "/run/flannel/subnet.env";
/// How long a service that ended rests before it is started again.
const REST: Duration = Duration::from_secs(1);
const LINK: Duration = Duration::from_secs(60);

/// What a kubelet would write for the whole machine: it finds what it wants in files that lie over
/// these, and leaves the machine alone.
const TUNABLES: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// A program that a node always runs.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Service {
    pub(super) name: String,
    pub(super) command: Vec<String>,
    /// It is started once this exists.
    #[serde(default)]
    pub(super) after: Option<PathBuf>,
    #[serde(default)]
    pub(super) environment: BTreeMap<String, String>,
    /// It rests after each boot, until somebody wants it.
    #[serde(default)]
    pub(super) rests: bool,
}

/// Becomes the first process of the node whose `var` and `etc` are in `directory`. Its number and
/// start, as the outside knows them, are written to `announcement`; `programs` are those of the
/// cluster.
///
/// # Errors
/// When its root can't be made or it has no link after a minute.
pub fn run(
    name: &str,
    directory: &Path,
    announcement: &Path,
    programs: &Path,
) -> io::Result<Infallible> {
    // /proc is still that of the outside.
    let outside = fs::read_link("/proc/self")?
        .display()
        .to_string()
        .parse()
        .map_err(io::Error::other)?;
    let identity = super::process::Identity::of(outside)
        .ok_or_else(|| io::Error::other("no process of its own in /proc"))?;
    let services: Vec<Service> = serde_json::from_slice(&fs::read(directory.join(SERVICES_FILE))?)?;
    make_root(directory, programs)?;
    super::place::write_whole(announcement, &identity.to_string())?;
    enter_root(&directory.join("root"))?;
    fs::write("/proc/sys/kernel/hostname", name)?;
    network()?;
    Supervisor::new(services)?.run()
}

fn bind(from: &Path, to: &Path, flags: MsFlags) -> io::Result<()> {
    mount_named(Some(from), to, None, MsFlags::MS_BIND | flags, None)
}

fn mount_named(
    from: Option<&Path>,
    to: &Path,
    kind: Option<&str>,
    flags: MsFlags,
    data: Option<&str>,
) -> io::Result<()> {
    mount(from, to, kind, flags, data)
        .map_err(|error| io::Error::other(format!("mount {}: {error}", to.display())))
}

fn fresh(kind: &str, to: &Path, data: Option<&str>) -> io::Result<()> {
    mount_named(
        Some(Path::new(kind)),
        to,
        Some(kind),
        MsFlags::empty(),
        data,
    )
}

fn make_root(directory: &Path, programs: &Path) -> io::Result<()> {
    let root = directory.join("root");
    mount_named(
        None,
        Path::new("/"),
        None,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        None,
    )?;
    fs::create_dir_all(&root)?;
    fresh("tmpfs", &root, Some("mode=755"))?;
    for folder in [
        "usr", "dev", "proc", "sys", "run", "tmp", "etc", "var", "root", "mnt", PROGRAMS, "old",
    ] {
        fs::create_dir_all(root.join(folder))?;
    }
    for link in ["bin", "sbin", "lib", "lib64"] {
        symlink(format!("usr/{link}"), root.join(link))?;
    }
    bind(Path::new("/usr"), &root.join("usr"), MsFlags::MS_REC)?;
    mount_named(
        None,
        &root.join("usr"),
        None,
        MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY,
        None,
    )?;
    bind(Path::new("/dev"), &root.join("dev"), MsFlags::MS_REC)?;
    fresh("tmpfs", &root.join("dev/shm"), None)?;
    fresh("proc", &root.join("proc"), None)?;
    fresh("sysfs", &root.join("sys"), None)?;
    fresh("tmpfs", &root.join("run"), Some("mode=755"))?;
    fresh("tmpfs", &root.join("tmp"), Some("mode=1777"))?;
    bind(&directory.join("var"), &root.join("var"), MsFlags::empty())?;
    bind(&directory.join("etc"), &root.join("etc"), MsFlags::empty())?;
    bind(programs, &root.join(PROGRAMS), MsFlags::empty())?;
    groups::mount_own(&root.join("sys/fs/cgroup"))?;
    fs::create_dir(root.join("run/tunables"))?;
    for (tunable, value) in TUNABLES {
        let file = root.join("run/tunables").join(tunable.replace('/', "."));
        fs::write(&file, format!("{value}\n"))?;
        bind(
            &file,
            &root.join("proc/sys").join(tunable),
            MsFlags::empty(),
        )?;
    }
    for folder in [STOP, RUNNING, "run/lock"] {
        fs::create_dir_all(root.join(folder))?;
    }
    Ok(())
}

fn enter_root(root: &Path) -> io::Result<()> {
    std::env::set_current_dir(root)?;
    pivot_root(".", "old")?;
    std::env::set_current_dir("/")?;
    umount2("/old", MntFlags::MNT_DETACH)?;
    // Pods' volumes with mount propagation need a shared root, as hosts have it.
    mount_named(
        None,
        Path::new("/"),
        None,
        MsFlags::MS_REC | MsFlags::MS_SHARED,
        None,
    )?;
    for folder in ["/var/log", "/var/tmp", "/var/lib"] {
        fs::create_dir_all(folder)?;
    }
    match symlink("/run", "/var/run") {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

fn network() -> io::Result<()> {
    let deadline = Instant::now() + LINK;
    while !Path::new("/sys/class/net/eth0").exists() {
        if Instant::now() > deadline {
            return Err(io::Error::other("no eth0 after a minute"));
        }
        thread::sleep(GLANCE);
    }
    let script = Path::new("/").join(NETWORK_FILE);
    let status = program("sh")
        .arg("-e")
        .arg(&script)
        .stdin(Stdio::null())
        .status()?;
    if status.success() {
        Ok(())
    } else {
        Err(io::Error::other(format!("{}: {status}", script.display())))
    }
}

fn program(name: &str) -> Command {
    let mut command = Command::new(name);
    command
        .env_clear()
        .env("PATH", format!("/{PROGRAMS}:/usr/sbin:/usr/bin"))
        .env("HOME", "/root")
        .current_dir("/");
    command
}

#[derive(Debug, Clone, Copy)]
enum State {
    Rests { until: Instant },
    Runs { process: Pid, told: bool },
}

struct Supervisor {
    services: Vec<(Service, State)>,
    pods: Option<String>,
}

impl Supervisor {
    fn new(services: Vec<Service>) -> io::Result<Self> {
        let now = Instant::now();
        fs::create_dir_all("/etc/cni/net.d")?;
        for service in services.iter().filter(|service| service.rests) {
            fs::write(
                Path::new("/").join(STOP).join(&service.name),
                Signal::SIGTERM.as_str(),
            )?;
        }
        Ok(Self {
            services: services
                .into_iter()
                .map(|service| (service, State::Rests { until: now }))
                .collect(),
            pods: None,
        })
    }

    fn run(mut self) -> io::Result<Infallible> {
        loop {
            self.reap();
            for (service, state) in &mut self.services {
                *state = next(service, *state)?;
            }
            self.describe_pods()?;
            thread::sleep(GLANCE);
        }
    }

    /// Learns which services have ended. Processes that lost their parent are this one's too.
    fn reap(&mut self) {
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            let (WaitStatus::Exited(ended, _) | WaitStatus::Signaled(ended, ..)) = status else {
                return;
            };
            for (service, state) in &mut self.services {
                if matches!(state, State::Runs { process, .. } if *process == ended) {
                    *state = State::Rests {
                        until: Instant::now() + REST,
                    };
                    let _ = fs::remove_file(Path::new("/").join(RUNNING).join(&service.name));
                    eprintln!("{} ended: {status:?}", service.name);
                }
            }
        }
    }

    /// Tells containerd how pods get their addresses once flannel has told it. What flannel's own
    /// plugin does, with those that everybody has.
    fn describe_pods(&mut self) -> io::Result<()> {
        let Ok(text) = fs::read_to_string(FLANNEL_FILE) else {
            return Ok(());
        };
        if self.pods.as_ref() == Some(&text) {
            return Ok(());
        }
        let Some(list) = plugins(&text) else {
            return Ok(());
        };
        super::place::write_whole(Path::new("/etc/cni/net.d/10-pods.conflist"), &list)?;
        self.pods = Some(text);
        Ok(())
    }
}

/// The list of plugins for what flannel has written; none while that is not whole.
fn plugins(text: &str) -> Option<String> {
    let value = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
    };
    let ranges = ["FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"].map(|name| {
        value(name)?
            .parse::<IpNet>()
            .ok()
            .map(|network| network.trunc())
    });
    let [Some(first), Some(second)] = ranges else {
        return None;
    };
    let mtu: u32 = value("FLANNEL_MTU")?.parse().ok()?;
    let range = |network: IpNet| serde_json::json!([{ "subnet": network }]);
    let bridge = serde_json::json!({
        "type": "bridge", "bridge": "cni0", "isGateway": true, "isDefaultGateway": true, "hairpinMode": true, "mtu": mtu,
        "ipam": {"type": "host-local", "ranges": [range(first), range(second)]},
    });
    let ports = serde_json::json!({"type": "portmap", "capabilities": {"portMappings": true}});
    Some(
        serde_json::json!({"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge, ports]})
            .to_string(),
    )
}

fn next(service: &Service, state: State) -> io::Result<State> {
    let stop = fs::read_to_string(Path::new("/").join(STOP).join(&service.name)).ok();
    Ok(match (state, stop) {
        (
            State::Runs {
                process,
                told: false,
            },
            Some(signal),
        ) => {
            let signal = signal.trim().parse().unwrap_or(Signal::SIGTERM);
            // Fails only when it has ended by itself.
            let _ = kill(process, signal);
            State::Runs {
                process,
                told: true,
            }
        }
        (State::Rests { until }, None)
            if Instant::now() >= until
                && service.after.as_ref().is_none_or(|file| file.exists()) =>
        {
            State::Runs {
                process: start(service)?,
                told: false,
            }
        }
        (state, _) => state,
    })
}

fn start(service: &Service) -> io::Result<Pid> {
    let log = File::options()
        .create(true)
        .append(true)
        .open(format!("/var/log/{}.log", service.name))?;
    let (name, arguments) = service
        .command
        .split_first()
        .ok_or_else(|| io::Error::other("a service without a command"))?;
    let mut command = program(name);
    command
        .args(arguments)
        .envs(&service.environment)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    let child = command
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("{name}: {error}")))?;
    fs::write(
        Path::new("/").join(RUNNING).join(&service.name),
        child.id().to_string(),
    )?;
    // It is waited for with all others.
    Ok(Pid::from_raw(
        i32::try_from(child.id()).map_err(io::Error::other)?,
    ))
}

/// The lines that give a node's link its addresses and its ways to others, and make the node a
/// router.
pub(super) fn network_script(addresses: [IpAddr; 2], router: [&str; 2]) -> String {
    let [first, second] = addresses;
    let [way, way6] = router;
    format!(
        "ip link set lo up
for setting in ipv4.ip_forward=1 ipv6.conf.all.forwarding=1 ipv6.conf.default.accept_dad=0 ipv6.conf.eth0.accept_dad=0 \\
    ipv4.conf.all.rp_filter=0 ipv4.conf.default.rp_filter=0; do
    sysctl -qw net.$setting
done
ip addr add {first}/24 dev eth0
ip addr add {second}/64 dev eth0 nodad
ip link set eth0 up
ip route add default via {way}
ip -6 route add default via {way6}
"
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn plugins_follow_what_flannel_wrote() {
        let text = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.3.1/24\nFLANNEL_IPV6_NETWORK=fd44::/48\nFLANNEL_IPV6_SUBNET=fd44:0:0:3::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
        let list: serde_json::Value = serde_json::from_str(&plugins(text).unwrap()).unwrap();
        assert_eq!(list["plugins"][0]["mtu"], 1450);
        assert_eq!(
            list["plugins"][0]["ipam"]["ranges"][0][0]["subnet"],
            "10.244.3.0/24"
        );
        assert_eq!(
            list["plugins"][0]["ipam"]["ranges"][1][0]["subnet"],
            "fd44:0:0:3::/64"
        );
        assert_eq!(
            plugins("FLANNEL_SUBNET=10.244.3.1/24\n"),
            None,
            "half a file"
        );
    }
}
