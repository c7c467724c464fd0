//! Pods of tests, and clients in their networks.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Value, json};

use super::{
    api::{eventually, has_condition},
    flows::Client,
    images::BUSYBOX,
    net::Net,
    site::{OUTSIDE_NAME, Site},
};

/// How long a pod may take to be Ready, on a busy machine.
const READY: Duration = Duration::from_secs(180);
/// The port of a pod's own server: it says who asks, and which pod it is.
pub(super) const WEB: u16 = 8080;
/// A page of busybox' web server.
const SERVER: &str = "mkdir -p /tmp/www/cgi-bin && cd /tmp/www && printf '#!/bin/sh\\necho; echo $REMOTE_ADDR $(hostname)\\n' >cgi-bin/who && \
                      chmod +x cgi-bin/who && exec httpd -f -p 8080 -h /tmp/www";

/// A file that ends a pod which is to end.
pub const END: &str = "/tmp/end";

/// The same server until there is that file.
pub(super) fn until_end() -> String {
    format!("({SERVER}) & until [ -e {END} ]; do sleep 0.2; done")
}

/// A pod that is Ready.
#[derive(Debug, Clone)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its node.
    pub node: String,
    /// Its addresses, IPv4 first.
    pub addresses: [IpAddr; 2],
    /// A client in its network.
    pub client: Client,
}

/// A pod's object. It runs on this node whatever that is for, serves `WEB`, and ends at once when
/// it is told to.
pub(super) fn object(namespace: &str, name: &str, node: &str, labels: &[(&str, &str)]) -> Value {
    let labels: serde_json::Map<String, Value> = labels
        .iter()
        .map(|(key, value)| ((*key).to_owned(), json!(value)))
        .collect();
    let probe = json!({"httpGet": {"path": "/cgi-bin/who", "port": WEB}, "periodSeconds": 2, "timeoutSeconds": 5});
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node}, "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false,
            // Those of a node whose power is lost stay: they are looked at after its return.
            "tolerations": [{"operator": "Exists"}],
            "containers": [{
                "name": "main", "image": BUSYBOX, "imagePullPolicy": "Never", "command": ["sh", "-c", SERVER],
                "readinessProbe": probe, "ports": [{"containerPort": WEB}],
            }],
        },
    })
}

impl Site {
    /// Starts a pod, without waiting for it.
    pub fn start_pod(&self, namespace: &str, name: &str, node: &str, labels: &[(&str, &str)]) {
        self.api().apply(&object(namespace, name, node, labels));
    }

    /// Waits until a pod is Ready, and finds it.
    pub(super) fn wait_for_pod(&self, namespace: &str, name: &str) -> Pod {
        let object = eventually(&format!("pod {name} is Ready"), READY, || {
            let object = self.api().get("Pod", namespace, name)?;
            if has_condition(&object, "Ready") {
                Ok(object)
            } else {
                Err(object["status"].to_string())
            }
        });
        eventually(&format!("pod {name} is found"), READY, || {
            self.find_pod(&object)
        })
    }

    fn find_pod(&self, object: &Value) -> Result<Pod, String> {
        let text = |pointer: &str| {
            object
                .pointer(pointer)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let (name, node) = (text("/metadata/name"), text("/spec/nodeName"));
        let addresses: Vec<IpAddr> = object["status"]["podIPs"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|own| own["ip"].as_str()?.parse().ok())
            .collect();
        let addresses =
            <[IpAddr; 2]>::try_from(addresses).map_err(|own| format!("addresses {own:?}"))?;
        let group = self
            .place
            .groups(&node)
            .first()
            .and_then(|group| folder_named(group, &format!("pod{}", text("/metadata/uid"))));
        let process = group
            .and_then(|group| a_process(&group))
            .ok_or("no process in its control group")?;
        let network = Net::of(process).map_err(|error| error.to_string())?;
        Ok(Pod {
            client: Client::new(&name, network),
            name,
            node,
            addresses,
        })
    }

    /// A client on a node, in its own network.
    ///
    /// # Panics
    /// When the node does not run.
    #[must_use]
    pub fn client_on(&self, node: &str) -> Client {
        Client::new(
            node,
            self.network(node).unwrap_or_else(|error| panic!("{error}")),
        )
    }

    /// A client beside the server outside.
    ///
    /// # Panics
    /// When that does not run.
    #[must_use]
    pub fn client_outside(&self) -> Client {
        self.client_on(OUTSIDE_NAME)
    }
}

fn folders(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect()
}

fn folder_named(folder: &Path, name: &str) -> Option<PathBuf> {
    let below = folders(folder);
    let own = below
        .iter()
        .find(|path| path.file_name().is_some_and(|own| own == name))
        .cloned();
    own.or_else(|| below.iter().find_map(|path| folder_named(path, name)))
}

/// A process of a pod, as this machine numbers it.
fn a_process(pod: &Path) -> Option<u32> {
    folders(pod).iter().find_map(|container| {
        fs::read_to_string(container.join("cgroup.procs"))
            .ok()?
            .lines()
            .next()?
            .parse()
            .ok()
    })
}
