//! Both daemons as the chart installs them: with its accounts, tokens that are bound to their pods,
//! and its configuration.

use std::time::Duration;

use egressgateway_testkit::{
    cluster::{CONTROLLER_PORT, binary},
    container::{Container, Surroundings},
    image::{FULL, Root},
    kube::{API_PORT, Kubernetes},
    lab::{Lab, NodeSpec, PORT, Pod, PodSpec, Process, ProcessSpec},
    pace::patient,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{assets, chart_directory};

pub(crate) const NAMESPACE: &str = "egress";
pub(crate) const NODES: [&str; 3] = ["client-1", "gateway-1", "gateway-2"];
/// How long leadership lasts here, so that a test need not wait longer.
pub(crate) const LEASE: Duration = Duration::from_secs(5);
pub(crate) const SERVER: [&str; 2] = ["10.6.1.10", "fd00:6:1::10"];

const OBJECTS: &str = "
apiVersion: egressgateway.spidernet.io/v1
kind: EgressGateway
metadata: {name: exit}
spec: {nodeSelector: {matchLabels: {egress: \"true\"}}}
---
apiVersion: egressgateway.spidernet.io/v1
kind: EgressGatewayPolicy
metadata: {name: shopping}
spec:
  egressGatewayName: exit
  appliedTo: {podSelector: {matchLabels: {app: shopping}}}
  destCIDR: [\"10.6.1.0/24\", \"fd00:6:1::/64\"]
";

/// The cluster with the chart installed and its daemons running.
pub(crate) struct Installed {
    pub(crate) daemons: Vec<(String, Process)>,
    pub(crate) kubernetes: Kubernetes,
    pub(crate) shop: Pod,
    /// Where the daemons' programs come from: an image, as the chart says, or else the folder where
    /// they were built.
    image: Option<Root>,
}

impl Installed {
    pub(crate) fn start(assets: std::path::PathBuf) -> Self {
        Self::start_from(assets, None)
    }

    pub(crate) fn start_from(assets: std::path::PathBuf, image: Option<Root>) -> Self {
        let gateways =
            ["gateway-1", "gateway-2"].map(|name| NodeSpec::new(name).label("egress", "true"));
        let lab = Lab::builder()
            .nodes(["client-1"])
            .nodes(gateways)
            .build()
            .unwrap();
        lab.server(SERVER).unwrap();
        let kubernetes = Kubernetes::start(assets, lab);
        kubernetes
            .kubectl(&format!("create namespace {NAMESPACE}"))
            .unwrap();
        let chart = chart_directory();
        kubernetes
            .helm(&format!(
                "install eg {} --namespace {NAMESPACE}",
                chart.display()
            ))
            .unwrap();
        // What the controller manager would make.
        for namespace in ["default", NAMESPACE] {
            let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": namespace}});
            kubernetes.put([account]);
        }
        kubernetes.put(kubernetes.lab.objects());
        let shop = kubernetes
            .lab
            .pod("client-1", PodSpec::new("shop").label("app", "shopping"))
            .unwrap();
        kubernetes.put([shop.object()]);
        let mut installed = Self {
            daemons: Vec::new(),
            kubernetes,
            shop,
            image,
        };
        installed.start_controller("controller-a");
        installed.webhooks_lead_to(NODES[0]);
        for node in NODES {
            installed.start_agent(&format!("agent-{node}"), node);
        }
        installed.agents_are_known();
        installed
    }

    /// Waits until the controller may choose any of the gateways: which one it chooses depends on
    /// who is ready first.
    fn agents_are_known(&self) {
        let fresh = format!("egressgateway_controller_agents_fresh {}.0", NODES.len());
        self.kubernetes.eventually(
            "every tunnel is built, and every agent has its Lease",
            || {
                let nodes = self.kubernetes.get("egressnodes");
                let phases: Vec<&str> = nodes["items"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(|node| node["status"]["phase"].as_str())
                    .collect();
                let metrics = self.metrics(NODES[0], CONTROLLER_PORT);
                let all =
                    phases.len() == NODES.len() && phases.iter().all(|phase| *phase == "Succeeded");
                if all && metrics.contains(&fresh) {
                    Ok(())
                } else {
                    Err(format!("{phases:?}\n{metrics}"))
                }
            },
        );
    }

    /// A token of one of the chart's accounts, bound to a pod on a node.
    pub(crate) fn token(&self, account: &str, pod: &str, node: &str) -> String {
        let object = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod, "namespace": NAMESPACE},
            "spec": {"serviceAccountName": account, "nodeName": node, "containers": [{"name": "main", "image": "main"}]},
        });
        self.kubernetes.put([object]);
        let bound = format!("--bound-object-kind Pod --bound-object-name {pod}");
        self.kubernetes
            .kubectl(&format!(
                "create token {account} --namespace {NAMESPACE} {bound}"
            ))
            .unwrap()
            .trim()
            .to_owned()
    }

    pub(crate) fn start_controller(&mut self, name: &str) {
        self.start_controller_by(API_PORT, name);
    }

    /// A controller that reaches the API server by another port.
    pub(crate) fn start_controller_by(&mut self, port: u16, name: &str) {
        let (probes, webhooks) = listen(name);
        let lease = format!("{}s", LEASE.as_secs());
        let arguments = [
            "--identity",
            name,
            "--listen",
            probes,
            "--webhook-listen",
            webhooks,
            "--leader-lease",
            &lease,
        ];
        self.start_daemon(port, name, "egressgateway-controller", NODES[0], &arguments);
    }

    pub(crate) fn start_agent(&mut self, name: &str, node: &str) {
        self.start_daemon(
            API_PORT,
            name,
            "egressgateway-agent",
            node,
            &["--node-name", node, "--state-file="],
        );
    }

    /// The EndpointSlice that a controller manager would make for the Service of the webhooks.
    fn webhooks_lead_to(&self, node: &str) {
        let address = self.kubernetes.lab.node(node).management();
        self.kubernetes.put([json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "webhook", "namespace": NAMESPACE, "labels": {"kubernetes.io/service-name": "egressgateway-webhook"}},
            "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
            "ports": [{"name": "webhook", "port": 9443}],
        })]);
    }

    fn start_daemon(
        &mut self,
        port: u16,
        name: &str,
        program: &str,
        node: &str,
        arguments: &[&str],
    ) {
        let token = self.token(program, name, node);
        let spec = match &self.image {
            Some(image) => self.contained(image, name, program, node, &token),
            None => self.bare(port, name, program, node, &token, arguments),
        };
        self.daemons.push((name.to_owned(), spec.start().unwrap()));
    }

    /// A daemon from its image, as a kubelet would start it from what is in the cluster, with what
    /// a pod is given.
    fn contained(
        &self,
        image: &Root,
        name: &str,
        program: &str,
        node: &str,
        token: &str,
    ) -> ProcessSpec {
        let kind = if program.ends_with("agent") {
            "daemonset"
        } else {
            "deployment"
        };
        let pod = self
            .kubernetes
            .get(&format!("{kind}/{program} --namespace {NAMESPACE}"));
        let map = self
            .kubernetes
            .get(&format!("configmap/egressgateway --namespace {NAMESPACE}"));
        let account = image.folder(&format!("{name}-account"));
        self.kubernetes.write_account(&account, token, NAMESPACE);
        let services = Kubernetes::services();
        let around = Surroundings {
            objects: &[map],
            hosts: "127.0.0.1 localhost\n",
            account: &account,
            services: &services,
        };
        let container = Container::new(&image.path(), &pod, name, &image.folder(name));
        container
            .on(&self.kubernetes.lab.node(node), &around)
            .unwrap()
    }

    /// A daemon as it was built, with as much of the chart as its arguments can say.
    fn bare(
        &self,
        port: u16,
        name: &str,
        program: &str,
        node: &str,
        token: &str,
        arguments: &[&str],
    ) -> ProcessSpec {
        let config = self.kubernetes.file(
            &format!("{name}.kubeconfig"),
            &self.kubernetes.kubeconfig_at(port, token),
        );
        // The configuration that the chart put into the cluster.
        let map = self
            .kubernetes
            .get(&format!("configmap/egressgateway --namespace {NAMESPACE}"));
        let settings = self
            .kubernetes
            .file("config.yaml", map["data"]["config.yaml"].as_str().unwrap());
        let spec = self
            .kubernetes
            .lab
            .node(node)
            .program(binary(program))
            .arg("--kubeconfig")
            .arg(config)
            .arg("--config")
            .arg(settings);
        spec.args(["--namespace", NAMESPACE])
            .args(arguments.iter().copied())
    }

    pub(crate) fn log(&self, name: &str) -> String {
        self.daemons
            .iter()
            .find(|(daemon, _)| daemon == name)
            .map(|(_, process)| process.log().unwrap())
            .unwrap_or_default()
    }

    pub(crate) fn daemon(&self, name: &str) -> &Process {
        let (_, process) = self
            .daemons
            .iter()
            .find(|(daemon, _)| daemon == name)
            .unwrap_or_else(|| panic!("no daemon {name}"));
        process
    }

    /// Ends a daemon and waits until it is gone.
    pub(crate) fn kill(&mut self, name: &str, signal: Signal) {
        let position = self
            .daemons
            .iter()
            .position(|(daemon, _)| daemon == name)
            .unwrap_or_else(|| panic!("no daemon {name}"));
        let (_, process) = self.daemons.remove(position);
        process
            .kill(signal)
            .and_then(|()| process.wait(patient(Duration::from_secs(10))))
            .unwrap();
    }

    /// What a daemon counts; its port is that of its kind, or the one given.
    pub(crate) fn metrics(&self, node: &str, port: u16) -> String {
        self.kubernetes
            .lab
            .node(node)
            .run(&format!("curl --silent http://127.0.0.1:{port}/metrics"))
            .unwrap_or_default()
    }

    /// Says that a node is ready, or not heard of, as a controller manager would.
    pub(crate) fn node_ready(&self, node: &str, ready: bool) {
        self.kubernetes
            .put([self.kubernetes.lab.node_object(node, ready)]);
    }

    /// Waits until the gateway's active node is `node`.
    pub(crate) fn active(&self, node: &str) {
        self.of_gateway_nodes(&format!("{node} is active"), |nodes| {
            let active: Vec<&Value> = nodes
                .iter()
                .filter(|node| node["active"] == true)
                .map(|node| &node["name"])
                .collect();
            active == [node]
        });
    }

    /// Waits until the gateway's status says whether `node` is ready.
    pub(crate) fn ready(&self, node: &str, ready: bool) {
        self.of_gateway_nodes(&format!("{node} is ready: {ready}"), |nodes| {
            nodes
                .iter()
                .any(|entry| entry["name"] == node && (entry["status"] == "Ready") == ready)
        });
    }

    fn of_gateway_nodes(&self, what: &str, is: impl Fn(&[Value]) -> bool) {
        self.kubernetes.eventually(what, || {
            let gateway = self.gateway();
            let nodes = gateway["status"]["nodeList"].as_array();
            if is(nodes.map_or(&[], Vec::as_slice)) {
                Ok(())
            } else {
                Err(gateway.to_string())
            }
        });
    }

    /// Waits until servers see the address of `node`.
    pub(crate) fn leaves_by(&self, node: &str) {
        let node = self.kubernetes.lab.node(node);
        for server in SERVER {
            let to = std::net::SocketAddr::new(server.parse().unwrap(), PORT);
            self.kubernetes
                .eventually(&format!("shop → {to} leaves by {node:?}"), || {
                    let seen = self
                        .shop
                        .connect_tcp(to)
                        .map_err(|error| error.to_string())?;
                    if seen.ip() == node.like(to.ip()) {
                        Ok(())
                    } else {
                        Err(format!("seen as {seen}\n{}", self.log("controller-a")))
                    }
                });
        }
    }

    pub(crate) fn govern(&self) {
        self.kubernetes.eventually("the objects are accepted", || {
            self.kubernetes.apply(OBJECTS)
        });
        self.leaves_by("gateway-1");
    }

    fn gateway(&self) -> Value {
        self.kubernetes.get("egressgateway/exit")
    }
}

/// Two controllers on a node need two ports, for probes and for webhooks.
fn listen(name: &str) -> (&'static str, &'static str) {
    if name.ends_with('a') {
        ("0.0.0.0:5820", "0.0.0.0:9443")
    } else {
        ("0.0.0.0:5821", "0.0.0.0:9444")
    }
}

#[test]
fn policies_reach_the_wire_and_go_again_and_uninstalling_leaves_nothing() {
    let Some(assets) = assets() else { return };
    let mut installed = Installed::start(assets);
    installed.leaves_by("client-1");
    installed.govern();
    let kubernetes = &installed.kubernetes;
    kubernetes.kubectl("label node gateway-1 egress-").unwrap();
    installed.leaves_by("gateway-2");
    kubernetes.eventually("an Event tells of it", || {
        let events = kubernetes.kubectl("events --namespace default --for egressgateway/exit")?;
        let told = events.contains("ActiveNodesChanged")
            && events.contains("traffic leaves by gateway-2 instead of gateway-1");
        if told { Ok(()) } else { Err(events) }
    });
    kubernetes
        .kubectl("delete egressgatewaypolicy shopping")
        .unwrap();
    installed.leaves_by("client-1");
    kubernetes.apply(OBJECTS).unwrap();
    installed.leaves_by("gateway-2");
    crate::uninstall::leaves_nothing(&mut installed);
}

#[test]
fn from_their_image_the_daemons_do_it_with_what_a_pod_is_given() {
    let Some(assets) = assets() else { return };
    let installed = Installed::start_from(assets, Some(Root::assemble(FULL)));
    installed.leaves_by("client-1");
    installed.govern();
    installed
        .kubernetes
        .kubectl("label node gateway-1 egress-")
        .unwrap();
    installed.leaves_by("gateway-2");
}

#[test]
fn another_default_gateway_in_the_configuration_counts_without_a_restart() {
    let Some(assets) = assets() else { return };
    let installed = Installed::start(assets);
    let kubernetes = &installed.kubernetes;
    let unnamed = OBJECTS.replace("  egressGatewayName: exit\n", "");
    kubernetes.eventually("the objects are accepted", || kubernetes.apply(&unnamed));
    kubernetes.eventually("the default gateway is missing", || {
        let reason =
            kubernetes.get("egressgatewaypolicy/shopping")["status"]["conditions"][0]["reason"]
                .clone();
        if reason == "GatewayNotFound" {
            Ok(())
        } else {
            Err(reason.to_string())
        }
    });
    kubernetes.file(
        "config.yaml",
        "defaultEgressGateway: exit\ntunnel: {vni: 7}\n",
    );
    installed.leaves_by("gateway-1");
    for (name, _) in &installed.daemons {
        kubernetes.eventually(&format!("{name} says what waits"), || {
            let log = installed.log(name);
            let said = |field: &str, words: &str| {
                log.lines()
                    .any(|line| line.contains(field) && line.contains(words))
            };
            let all = said("tunnel.vni", "takes effect after a restart")
                && said("defaultEgressGateway", "configuration field changed");
            if all { Ok(()) } else { Err(log.clone()) }
        });
    }
}
