//! What one test has for itself: a namespace, a gateway, policies.

use std::{fmt::Write as _, fs, net::IpAddr, path::PathBuf, sync::Mutex, thread, time::Duration};

use serde_json::{Value, json};

use super::{
    api::eventually,
    chart::NAMESPACE,
    pods::{self, Pod},
    settings::NODES,
    site::Site,
};

/// Label of pods that the policy of a test governs.
const GOVERNED: &str = "egress";
const PATIENCE: Duration = Duration::from_secs(120);

/// A namespace of Kubernetes and all that is named like it. It is removed with this.
#[derive(Debug)]
pub struct Space<'a> {
    site: &'a Site,
    name: String,
    labelled: Mutex<Vec<String>>,
}

impl Site {
    /// Makes a space of this name.
    #[must_use]
    pub fn space(&self, name: &str) -> Space<'_> {
        self.api()
            .apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}));
        eventually("the namespace has its account", PATIENCE, || {
            self.api().get("ServiceAccount", name, "default")
        });
        Space {
            site: self,
            name: name.to_owned(),
            labelled: Mutex::default(),
        }
    }

    /// Writes down what the cluster looks like, for whoever asks why a test failed; where.
    ///
    /// # Panics
    /// When it can't be written.
    pub fn write_report(&self, name: &str) -> PathBuf {
        let mut text = String::new();
        let agents = format!(
            "--namespace={NAMESPACE} logs --prefix --tail=200 --selector=app.kubernetes.io/name=egressgateway"
        );
        for arguments in [
            "get nodes,pods,services --all-namespaces --output=wide",
            "get egressgateways,egressgatewaypolicies,egressnodes --output=yaml",
            "get events --all-namespaces --sort-by=.lastTimestamp",
            &agents,
        ] {
            let words: Vec<&str> = arguments.split(' ').collect();
            let said = self.tool("kubectl", &words).unwrap_or_else(|error| error);
            let _ = writeln!(text, "# kubectl {arguments}\n{said}\n");
        }
        for node in NODES {
            for lines in [
                "ip rule; ip -6 rule; ip route show table all | grep egress",
                "nft list table inet egressgateway",
                "iptables-save",
                "conntrack -L",
            ] {
                let said = self.on_node(node, lines).unwrap_or_else(|error| error);
                let _ = writeln!(text, "# {node}: {lines}\n{said}\n");
            }
        }
        self.write_log(&format!("e2e-{name}.txt"), &text)
    }

    /// Writes a file where the logs of test runs are; where.
    ///
    /// # Panics
    /// When it can't be written.
    pub fn write_log(&self, name: &str, text: &str) -> PathBuf {
        let target = self.program.parent().and_then(|folder| folder.parent());
        let folder = target.map_or_else(std::env::temp_dir, |folder| folder.join("test-logs"));
        let file = folder.join(name);
        fs::create_dir_all(&folder)
            .and_then(|()| fs::write(&file, text))
            .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        file
    }
}

impl Space<'_> {
    /// The namespace's name, and the gateway's.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Makes a gateway of these nodes, and waits until it is Ready.
    pub fn gateway(&self, nodes: &[&str]) {
        self.gateway_with(nodes, &json!({}));
    }

    /// Makes a gateway of these nodes with more in its specification, and waits until it is Ready
    /// with all of them.
    ///
    /// # Panics
    /// When it does not become so.
    pub fn gateway_with(&self, nodes: &[&str], more: &Value) {
        for node in nodes {
            self.site.api().merge(
                "Node",
                "",
                node,
                &json!({"metadata": {"labels": {&self.name: "gateway"}}}),
            );
            self.labelled
                .lock()
                .expect("no panic while it is held")
                .push((*node).to_owned());
        }
        let mut spec = json!({"nodeSelector": {"matchLabels": {&self.name: "gateway"}}});
        for (key, value) in more.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        self.site.api().apply(&json!({
            "apiVersion": "egressgateway.spidernet.io/v1", "kind": "EgressGateway", "metadata": {"name": self.name}, "spec": spec,
        }));
        eventually("the gateway's nodes are Ready", PATIENCE, || {
            let gateway = self.site.api().get("EgressGateway", "", &self.name)?;
            let list = gateway["status"]["nodeList"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            let ready = list.iter().filter(|node| node["status"] == "Ready").count();
            if ready == nodes.len() {
                Ok(())
            } else {
                Err(gateway["status"].to_string())
            }
        });
    }

    /// The node that carries the gateway's traffic.
    ///
    /// # Panics
    /// When none does.
    #[must_use]
    pub fn active(&self) -> String {
        eventually("the gateway has an active node", PATIENCE, || {
            let gateway = self.site.api().get("EgressGateway", "", &self.name)?;
            let list = gateway["status"]["nodeList"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            let active = list
                .iter()
                .find(|node| node["active"] == true)
                .and_then(|node| node["name"].as_str());
            active
                .map(str::to_owned)
                .ok_or_else(|| gateway["status"].to_string())
        })
    }

    /// Governs pods that are [governed](Space::governed) here, for these destinations; none means
    /// everything outside the cluster.
    pub fn policy(&self, destinations: &[&str]) {
        self.policy_with(&json!({"destCIDR": destinations}));
    }

    /// The same with other fields.
    pub fn policy_with(&self, more: &Value) {
        let namespace = json!({"matchLabels": {"kubernetes.io/metadata.name": self.name}});
        let applied = json!({"podSelector": {"matchLabels": {GOVERNED: self.name}}, "namespaceSelector": namespace});
        let mut spec = json!({"egressGatewayName": self.name, "appliedTo": applied});
        for (key, value) in more.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        self.site.api().apply(&json!({
            "apiVersion": "egressgateway.spidernet.io/v1", "kind": "EgressGatewayPolicy", "metadata": {"name": self.name}, "spec": spec,
        }));
        self.site
            .api()
            .wait_for_condition("EgressGatewayPolicy", "", &self.name, "Accepted");
    }

    /// Starts pods, at once, and waits for all: names, nodes, and whether they are governed.
    #[must_use]
    pub fn pods(&self, wanted: &[(&str, &str, bool)]) -> Vec<Pod> {
        for (name, node, governed) in wanted {
            let mut labels = vec![("app", *name)];
            labels.extend(governed.then_some((GOVERNED, self.name.as_str())));
            self.site
                .api()
                .apply(&pods::object(&self.name, name, node, &labels));
        }
        wanted
            .iter()
            .map(|(name, ..)| self.site.wait_for_pod(&self.name, name))
            .collect()
    }

    /// Starts a governed pod on a node.
    ///
    /// # Panics
    /// When it does not become Ready.
    #[must_use]
    pub fn governed(&self, node: &str) -> Pod {
        self.pods(&[(&format!("governed-{node}"), node, true)])
            .remove(0)
    }

    /// Starts a governed pod that ends when somebody makes the file [`END`](super::END) in it.
    #[must_use]
    pub fn pod_once(&self, name: &str, node: &str) -> Pod {
        let mut object = pods::object(
            &self.name,
            name,
            node,
            &[("app", name), (GOVERNED, &self.name)],
        );
        object["spec"]["restartPolicy"] = json!("Never");
        object["spec"]["containers"][0]["command"] = json!(["sh", "-c", pods::until_end()]);
        self.site.api().apply(&object);
        self.site.wait_for_pod(&self.name, name)
    }

    /// A pod that was started here before, as it is now.
    #[must_use]
    pub fn find(&self, name: &str) -> Pod {
        self.site.wait_for_pod(&self.name, name)
    }

    /// Applies an object of this namespace.
    pub fn apply(&self, mut object: Value) {
        object["metadata"]["namespace"] = json!(self.name);
        self.site.api().apply(&object);
    }

    /// Waits until a client's new connections to an address leave with this source, three times one
    /// after the other.
    ///
    /// # Panics
    /// When they do not.
    pub fn wait_for_source(&self, pod: &Pod, to: IpAddr, source: IpAddr) {
        let mut right = 0;
        eventually(
            &format!("{} reaches {to} as {source}", pod.name),
            PATIENCE,
            || {
                let seen = pod.client.ask(to).map_err(|error| error.to_string())?;
                right = if seen == source { right + 1 } else { 0 };
                if right >= 3 {
                    Ok(())
                } else {
                    Err(format!("the server sees {seen}"))
                }
            },
        );
    }
}

impl Drop for Space<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!(
                "e2e: what the cluster looked like: {}",
                self.site.write_report(&self.name).display()
            );
        }
        // Not waited for, but for the objects whose refusal would tell something.
        let api = self.site.api();
        let clean = std::panic::AssertUnwindSafe(|| {
            api.delete("EgressGatewayPolicy", "", &self.name);
            api.delete("EgressGateway", "", &self.name);
            for node in self
                .labelled
                .lock()
                .map(|nodes| nodes.clone())
                .unwrap_or_default()
            {
                api.merge(
                    "Node",
                    "",
                    &node,
                    &json!({"metadata": {"labels": {&self.name: null}}}),
                );
            }
            let _ = api.send(
                "DELETE",
                &format!("/api/v1/namespaces/{}", self.name),
                "application/json",
                &Value::Null,
            );
        });
        let cleaned = std::panic::catch_unwind(clean);
        assert!(
            cleaned.is_ok() || thread::panicking(),
            "{} can't be removed",
            self.name
        );
    }
}
