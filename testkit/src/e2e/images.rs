//! Images: the product's, as everybody would get it, and those of what the cluster and the tests
//! run.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use egressgateway_images::Image;
use serde_json::{Value, json};

use super::{
    api::eventually,
    command::{output, said, which},
    files::PAUSE,
    settings::{DNS, NODES},
    site::Site,
};

/// What pods of tests run.
pub(super) const BUSYBOX: &str = "localhost/busybox:1";
const COREDNS: &str = "localhost/coredns:1";
const LOADED: Duration = Duration::from_secs(120);

impl Site {
    /// Makes the archives of all images.
    pub(super) fn make_images(&self) -> Result<Vec<PathBuf>, String> {
        let folder = self.place.path("images");
        fs::create_dir_all(&folder).map_err(said)?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/images");
        let programs = self.program.parent().ok_or("the program is in no folder")?;
        let mut command = Command::new(script);
        output_of(
            command
                .arg("--programs")
                .arg(programs)
                .arg("--to")
                .arg(&folder)
                .arg("full"),
        )?;
        let mut archives = vec![folder.join("full.tar")];
        archives.extend(self.small_images(&folder).map_err(said)?);
        Ok(archives)
    }

    fn small_images(&self, folder: &Path) -> io::Result<Vec<PathBuf>> {
        let root = folder.join("busybox");
        for directory in ["bin", "etc", "tmp", "proc", "sys", "dev"] {
            fs::create_dir_all(root.join(directory))?;
        }
        let busybox = which("busybox").ok_or_else(|| io::Error::other("there is no busybox"))?;
        let list = Command::new(&busybox).arg("--list").output()?;
        fs::copy(&busybox, root.join("bin/busybox"))?;
        for applet in String::from_utf8_lossy(&list.stdout)
            .lines()
            .filter(|applet| *applet != "busybox")
        {
            symlink("busybox", root.join("bin").join(applet))?;
        }
        let alone = Command::new("chroot")
            .arg(&root)
            .args(["/bin/busybox", "true"])
            .output()?;
        if !alone.status.success() {
            return Err(io::Error::other(format!(
                "{} needs libraries: install busybox-static",
                busybox.display()
            )));
        }
        fs::write(
            root.join("etc/passwd"),
            "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
        )?;
        let names = folder.join("coredns");
        fs::create_dir_all(names.join("bin"))?;
        fs::copy(self.assets.join("coredns"), names.join("bin/coredns"))?;
        let image = |name: &str, entrypoint: &[&str]| Image {
            name: name.to_owned(),
            entrypoint: entrypoint.iter().map(|word| (*word).to_owned()).collect(),
            environment: vec!["PATH=/bin".to_owned()],
            ..Image::default()
        };
        // Whoever is asked to sleep without end can be everybody's pause.
        let images = [
            (image(BUSYBOX, &[]), &root, "busybox.tar"),
            (
                image(PAUSE, &["/bin/sleep", "infinity"]),
                &root,
                "pause.tar",
            ),
            (image(COREDNS, &["/bin/coredns"]), &names, "coredns.tar"),
        ];
        let write = |(image, root, file): (Image, &PathBuf, &str)| {
            image
                .write(root, &folder.join(file))
                .map(|_| folder.join(file))
        };
        images.into_iter().map(write).collect()
    }

    /// Loads archives into a node's containerd.
    pub(super) fn load_images(&self, node: &str, archives: &[PathBuf]) -> Result<(), String> {
        eventually(&format!("containerd of {node} answers"), LOADED, || {
            self.on_node(node, "ctr version").map(|_| ())
        });
        for archive in archives {
            let mut command = self.node_command(node)?;
            command.args(["ctr", "--namespace", "k8s.io", "images", "import", "-"]);
            command
                .stdin(fs::File::open(archive).map_err(said)?)
                .stdout(Stdio::null());
            let done = command.output().map_err(said)?;
            if !done.status.success() {
                return Err(format!(
                    "{node}: {}: {}",
                    archive.display(),
                    String::from_utf8_lossy(&done.stderr)
                ));
            }
        }
        Ok(())
    }
}

fn output_of(command: &mut Command) -> Result<String, String> {
    let mut owned = Command::new(command.get_program());
    owned.args(command.get_args());
    output(owned)
}

/// CoreDNS, on the node of the control plane, so that no test ends it with a node.
pub(super) fn name_server() -> Vec<Value> {
    const NAME: &str = "coredns";
    const SYSTEM: &str = "kube-system";
    let metadata = json!({"name": NAME, "namespace": SYSTEM});
    let corefile = ".:53 {\n    errors\n    health\n    ready\n    kubernetes cluster.local in-addr.arpa ip6.arpa\n    cache 30\n    loadbalance\n}\n";
    let labels = json!({"k8s-app": "kube-dns"});
    let rule = |group: &str, resources: &[&str]| json!({"apiGroups": [group], "resources": resources, "verbs": ["list", "watch"]});
    let probe = |path: &str, port: u16| json!({"httpGet": {"path": path, "port": port}, "periodSeconds": 2, "timeoutSeconds": 5, "failureThreshold": 15});
    let container = json!({
        "name": NAME, "image": COREDNS, "imagePullPolicy": "Never", "args": ["-conf", "/etc/coredns/Corefile"],
        "volumeMounts": [{"name": "config", "mountPath": "/etc/coredns", "readOnly": true}],
        "livenessProbe": probe("/health", 8080), "readinessProbe": probe("/ready", 8181),
    });
    let pod = json!({
        "priorityClassName": "system-cluster-critical", "serviceAccountName": NAME, "dnsPolicy": "Default",
        "tolerations": [{"operator": "Exists"}], "nodeSelector": {"kubernetes.io/hostname": NODES[0]},
        "containers": [container], "volumes": [{"name": "config", "configMap": {"name": NAME}}],
    });
    vec![
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "system:coredns"},
            "rules": [rule("", &["endpoints", "services", "pods", "namespaces"]), rule("discovery.k8s.io", &["endpointslices"])],
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "system:coredns"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:coredns"},
            "subjects": [{"kind": "ServiceAccount", "name": NAME, "namespace": SYSTEM}],
        }),
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"Corefile": corefile}}),
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata,
            "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}},
        }),
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "kube-dns", "namespace": SYSTEM, "labels": labels},
            "spec": {"selector": labels, "clusterIP": DNS, "ports": [
                {"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
            ]},
        }),
    ]
}
