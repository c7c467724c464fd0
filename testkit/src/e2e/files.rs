//! What a node finds in `/etc` and on its disk before its first boot.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::{
    init::{FLANNEL_FILE, NETWORK_FILE, SERVICES_FILE, Service, network_script},
    keys::kubeconfig,
    settings::{API_PORT, DNS, NODES, PODS, ROUTER, SERVICES, Variant, addresses},
};

/// Where the node's programs look for keys.
const KEYS: &str = "/etc/kubernetes";
/// What programs want to know of the machine.
const OF_THE_MACHINE: [&str; 9] = [
    "ld.so.cache",
    "nsswitch.conf",
    "passwd",
    "group",
    "protocols",
    "services",
    "ssl",
    "iproute2",
    "localtime",
];
/// The service that enforces NetworkPolicies.
pub const KUBE_ROUTER: &str = "kube-router";
const CONTAINERD: &str = "/run/containerd/containerd.sock";
pub(super) const PAUSE: &str = "localhost/pause:1";

/// containerd 1.6 and 2 understand version 2 of this file. Where a machine's root may not lower the
/// score by which the kernel chooses whom to kill (`CAP_SYS_RESOURCE`), no container would start
/// without the second setting.
fn containerd() -> String {
    format!(
        r#"version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/etc/cni/net.d"
"#
    )
}

/// Writes the files of a node below `directory`, with keys out of `keys`.
pub(super) fn write(directory: &Path, node: &str, variant: Variant, keys: &Path) -> io::Result<()> {
    let etc = directory.join("etc");
    for folder in [
        "var",
        "etc/node",
        "etc/alternatives",
        "etc/kubernetes",
        "etc/cni/net.d",
        "etc/containerd",
    ] {
        fs::create_dir_all(directory.join(folder))?;
    }
    of_the_machine(&etc, variant)?;
    for (file, content) in [
        ("hosts", "127.0.0.1 localhost\n::1 localhost\n".to_owned()),
        ("hostname", format!("{node}\n")),
        ("machine-id", machine_id(node)),
        ("resolv.conf", "nameserver 127.0.0.1\n".to_owned()),
        ("containerd/config.toml", containerd()),
        ("kubernetes/kubelet.json", kubelet(node).to_string()),
        ("kubernetes/proxy.json", proxy(node, variant).to_string()),
        ("kubernetes/flannel.json", flannel(variant).to_string()),
    ] {
        fs::write(etc.join(file), content)?;
    }
    let own = format!("kubelet-{node}");
    let mut certificates = vec![own.as_str(), "proxy", "admin"];
    if node == NODES[0] {
        certificates.extend(["controllers", "scheduler", "apiserver", "ca"]);
        for file in ["accounts.key", "accounts.pub"] {
            fs::copy(keys.join(file), etc.join("kubernetes").join(file))?;
        }
    } else {
        fs::copy(keys.join("ca.crt"), etc.join("kubernetes/ca.crt"))?;
    }
    for name in certificates {
        for kind in ["crt", "key"] {
            fs::copy(
                keys.join(format!("{name}.{kind}")),
                etc.join(format!("kubernetes/{name}.{kind}")),
            )?;
        }
        fs::write(
            etc.join(format!("kubernetes/{name}.conf")),
            kubeconfig(name, Path::new(KEYS)),
        )?;
    }
    fs::write(
        directory.join(NETWORK_FILE),
        network_script(addresses(node), ROUTER),
    )?;
    fs::write(
        directory.join(SERVICES_FILE),
        serde_json::to_vec_pretty(&services(node))?,
    )
}

fn of_the_machine(etc: &Path, variant: Variant) -> io::Result<()> {
    for name in OF_THE_MACHINE {
        copy(&Path::new("/etc").join(name), &etc.join(name))?;
    }
    let alternatives = etc.join("alternatives");
    for entry in fs::read_dir("/etc/alternatives")? {
        let entry = entry?;
        if entry.file_type()?.is_symlink()
            && !entry.file_name().to_string_lossy().contains("tables")
        {
            symlink(
                fs::read_link(entry.path())?,
                alternatives.join(entry.file_name()),
            )?;
        }
    }
    for program in ["iptables", "ip6tables"] {
        for part in ["", "-restore", "-save"] {
            symlink(
                format!("/usr/sbin/{program}-{}{part}", variant.iptables()),
                alternatives.join(format!("{program}{part}")),
            )?;
        }
    }
    Ok(())
}

/// Copies a file or a folder, and what links point to. What the machine lacks is no loss.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let metadata = match fs::metadata(from) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        metadata => metadata?,
    };
    if !metadata.is_dir() {
        return fs::copy(from, to).map(|_| ());
    }
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let name = entry?.file_name();
        copy(&from.join(&name), &to.join(&name))?;
    }
    Ok(())
}

/// 32 digits that differ between nodes, and are the same after a reboot.
fn machine_id(node: &str) -> String {
    let number = node.bytes().fold(0_u64, |number, byte| {
        number.wrapping_mul(257).wrapping_add(u64::from(byte))
    });
    format!("{:032x}\n", u128::from(number) | 1 << 100)
}

fn kubelet(node: &str) -> Value {
    let taints = json!([{"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}]);
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "failCgroupV1": false, "cgroupDriver": "cgroupfs",
        "containerRuntimeEndpoint": format!("unix://{CONTAINERD}"),
        "authentication": {"anonymous": {"enabled": false}, "webhook": {"enabled": true}, "x509": {"clientCAFile": format!("{KEYS}/ca.crt")}},
        "authorization": {"mode": "Webhook"},
        "clusterDNS": [DNS], "clusterDomain": "cluster.local", "resolvConf": "/etc/resolv.conf",
        "failSwapOn": false,
        // Images come from archives, and nobody could pull them again; and the disk is the
        // machine's.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "1Mi", "nodefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.available": "0%"},
        "registerWithTaints": if node == NODES[0] { taints } else { json!([]) },
    })
}

fn proxy(node: &str, variant: Variant) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
        "mode": variant.proxy(), "hostnameOverride": node, "clusterCIDR": PODS.join(","),
        "clientConnection": {"kubeconfig": format!("{KEYS}/proxy.conf")},
        // Zero leaves the kernel's settings of connection tracking alone: some of them are the
        // whole machine's.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    })
}

fn flannel(variant: Variant) -> Value {
    json!({"Network": PODS[0], "IPv6Network": PODS[1], "EnableIPv4": true, "EnableIPv6": true, "Backend": {"Type": variant.flannel()}})
}

fn service(name: &str, command: &[&str]) -> Service {
    Service {
        name: name.to_owned(),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        ..Service::default()
    }
}

fn services(node: &str) -> Vec<Service> {
    let [first, second] = addresses(node).map(|address| address.to_string());
    let mut services = if node == NODES[0] {
        control_plane(&first)
    } else {
        Vec::new()
    };
    services.push(service(
        "containerd",
        &["containerd", "--config", "/etc/containerd/config.toml"],
    ));
    let mut kubelet = service(
        "kubelet",
        &[
            "kubelet",
            "--config=/etc/kubernetes/kubelet.json",
            &format!("--kubeconfig={KEYS}/kubelet-{node}.conf"),
            &format!("--hostname-override={node}"),
            &format!("--node-ip={first},{second}"),
            "--v=2",
        ],
    );
    kubelet.after = Some(PathBuf::from(CONTAINERD));
    services.push(kubelet);
    services.push(service(
        "kube-proxy",
        &["kube-proxy", "--config=/etc/kubernetes/proxy.json", "--v=2"],
    ));
    let mut flannel = service(
        "flanneld",
        &[
            "flanneld",
            "--kube-subnet-mgr",
            &format!("--kubeconfig-file={KEYS}/admin.conf"),
            &format!("--net-config-path={KEYS}/flannel.json"),
            "--iface=eth0",
            "--ip-masq",
            &format!("--subnet-file={FLANNEL_FILE}"),
            "--healthz-port=0",
        ],
    );
    flannel
        .environment
        .insert("NODE_NAME".to_owned(), node.to_owned());
    services.push(flannel);
    services.push(policies(node));
    services
}

/// What enforces NetworkPolicies, for tests that start it.
fn policies(node: &str) -> Service {
    let mut service = service(
        KUBE_ROUTER,
        &[
            KUBE_ROUTER,
            "--run-firewall",
            "--run-router=false",
            "--run-service-proxy=false",
            "--enable-cni=false",
            "--enable-ipv6",
            &format!("--service-cluster-ip-range={}", SERVICES.join(",")),
            &format!("--kubeconfig={KEYS}/admin.conf"),
            &format!("--hostname-override={node}"),
            "--health-port=0",
            "--v=1",
        ],
    );
    service.rests = true;
    service
}

fn control_plane(address: &str) -> Vec<Service> {
    let file = |option: &str, name: &str| format!("--{option}={KEYS}/{name}");
    let etcd = service(
        "etcd",
        &[
            "etcd",
            "--data-dir=/var/lib/etcd",
            "--unsafe-no-fsync",
            "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380",
        ],
    );
    let mut server = service(
        "kube-apiserver",
        &[
            "kube-apiserver",
            "--etcd-servers=http://127.0.0.1:2379",
            &format!("--secure-port={API_PORT}"),
            &format!("--advertise-address={address}"),
            "--allow-privileged",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--kubelet-preferred-address-types=InternalIP",
            &format!("--service-cluster-ip-range={}", SERVICES.join(",")),
        ],
    );
    server.command.extend([
        file("client-ca-file", "ca.crt"),
        file("tls-cert-file", "apiserver.crt"),
        file("tls-private-key-file", "apiserver.key"),
        file("service-account-key-file", "accounts.pub"),
        file("service-account-signing-key-file", "accounts.key"),
        file("kubelet-client-certificate", "admin.crt"),
        file("kubelet-client-key", "admin.key"),
    ]);
    let mut controllers = service(
        "kube-controller-manager",
        &[
            "kube-controller-manager",
            "--leader-elect=false",
            "--allocate-node-cidrs",
            "--use-service-account-credentials",
            &format!("--cluster-cidr={}", PODS.join(",")),
            &format!("--service-cluster-ip-range={}", SERVICES.join(",")),
        ],
    );
    controllers.command.extend([
        file("kubeconfig", "controllers.conf"),
        file("root-ca-file", "ca.crt"),
        file("service-account-private-key-file", "accounts.key"),
        file("cluster-signing-cert-file", "ca.crt"),
        file("cluster-signing-key-file", "ca.key"),
    ]);
    let mut scheduler = service(
        "kube-scheduler",
        &["kube-scheduler", "--leader-elect=false"],
    );
    scheduler.command.push(file("kubeconfig", "scheduler.conf"));
    vec![etcd, server, controllers, scheduler]
}
