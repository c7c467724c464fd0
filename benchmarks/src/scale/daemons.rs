//! The real daemons: as the chart installs them, each on a node of the lab of its own.

use std::{collections::BTreeMap, time::Duration};

use nix::sys::signal::Signal;
use serde_json::json;

use super::{server::said, size::NAMESPACE};
use egressgateway_testkit::{
    cluster::{AGENT_PORT, CONTROLLER_PORT, binary},
    kube::Kubernetes,
    lab::Process,
    pace::patient,
};

/// The node of the controller; no agent runs there, and the cluster does not know it.
pub(super) const CONTROL: &str = "control-1";
/// What the controller is called in tables.
pub const CONTROLLER: &str = "controller";
const WEBHOOK_PORT: u16 = 9443;
const END: Duration = Duration::from_secs(10);

/// A running daemon.
#[derive(Debug)]
pub(super) struct Daemon {
    pub(super) node: String,
    pub(super) port: u16,
    pub(super) process: Process,
}

/// All that run, by name: the controller, and agents by their nodes.
#[derive(Debug, Default)]
pub(super) struct Daemons(pub(super) BTreeMap<String, Daemon>);

impl Daemons {
    /// Starts the controller, and leads its webhooks' Service to it.
    pub(super) fn start_controller(&mut self, kubernetes: &Kubernetes) -> Result<(), String> {
        let (probes, webhooks) = (
            format!("0.0.0.0:{CONTROLLER_PORT}"),
            format!("0.0.0.0:{WEBHOOK_PORT}"),
        );
        let arguments = [
            "--identity",
            CONTROLLER,
            "--listen",
            &probes,
            "--webhook-listen",
            &webhooks,
        ];
        self.start(
            kubernetes,
            CONTROLLER,
            "egressgateway-controller",
            CONTROL,
            CONTROLLER_PORT,
            &arguments,
        )?;
        kubernetes.put([json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "webhook", "namespace": NAMESPACE, "labels": {"kubernetes.io/service-name": "egressgateway-webhook"}},
            "endpoints": [{"addresses": [kubernetes.lab.node(CONTROL).management()], "conditions": {"ready": true}}],
            "ports": [{"name": "webhook", "port": WEBHOOK_PORT}],
        })]);
        Ok(())
    }

    /// Starts the agent of a node.
    pub(super) fn start_agent(
        &mut self,
        kubernetes: &Kubernetes,
        node: &str,
    ) -> Result<(), String> {
        self.start(
            kubernetes,
            node,
            "egressgateway-agent",
            node,
            AGENT_PORT,
            &["--node-name", node],
        )
    }

    fn start(
        &mut self,
        kubernetes: &Kubernetes,
        name: &str,
        program: &str,
        node: &str,
        port: u16,
        arguments: &[&str],
    ) -> Result<(), String> {
        let token = token(kubernetes, program, &format!("{name}-pod"), node)?;
        let config = kubernetes.file(
            &format!("{name}.kubeconfig"),
            &kubernetes.kubeconfig_of(&token),
        );
        let map = kubernetes.get(&format!("configmap/egressgateway --namespace {NAMESPACE}"));
        let settings = map["data"]["config.yaml"]
            .as_str()
            .ok_or("the chart made no configuration")?;
        let settings = kubernetes.file(&format!("{name}.config"), settings);
        let spec = kubernetes
            .lab
            .node(node)
            .program(binary(program))
            .arg("--kubeconfig")
            .arg(config)
            .arg("--config")
            .arg(settings);
        let spec = spec
            .args(["--namespace", NAMESPACE])
            .args(arguments.iter().copied());
        let spec = allocator(kubernetes, program)
            .into_iter()
            .fold(spec, |spec, (name, value)| spec.env(name, value));
        let daemon = Daemon {
            node: node.to_owned(),
            port,
            process: spec.start().map_err(said)?,
        };
        self.0.insert(name.to_owned(), daemon);
        Ok(())
    }

    /// Ends with the first daemon that has ended, and says what it wrote.
    pub(super) fn check(&self) -> Result<(), String> {
        for (name, daemon) in &self.0 {
            if let Some(status) = daemon.process.status().map_err(said)? {
                return Err(format!("{name} ended, {status}: {}", self.log(name)));
            }
        }
        Ok(())
    }

    /// The last lines that a daemon wrote.
    pub(super) fn log(&self, name: &str) -> String {
        let log = self
            .0
            .get(name)
            .and_then(|daemon| daemon.process.log().ok())
            .unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    pub(super) fn end(&self) -> Result<(), String> {
        for daemon in self.0.values() {
            daemon
                .process
                .kill(Signal::SIGTERM)
                .and_then(|()| daemon.process.wait(patient(END)))
                .map_err(said)?;
        }
        Ok(())
    }
}

/// What the chart tells the C library about memory.
fn allocator(kubernetes: &Kubernetes, program: &str) -> Vec<(String, String)> {
    let kind = if program == "egressgateway-agent" {
        "daemonset"
    } else {
        "deployment"
    };
    let workload = kubernetes.get(&format!("{kind}/{program} --namespace {NAMESPACE}"));
    let variables = workload["spec"]["template"]["spec"]["containers"][0]["env"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let plain = variables
        .iter()
        .filter_map(|variable| Some((variable["name"].as_str()?, variable["value"].as_str()?)));
    plain
        .filter(|(name, _)| name.starts_with("MALLOC_"))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// A token of one of the chart's accounts, bound to a pod on a node: the server lets an agent write
/// for that node alone.
fn token(kubernetes: &Kubernetes, account: &str, pod: &str, node: &str) -> Result<String, String> {
    kubernetes.put([json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod, "namespace": NAMESPACE},
        "spec": {"serviceAccountName": account, "nodeName": node, "hostNetwork": true, "containers": [{"name": "main", "image": "main"}]},
    })]);
    let bound = format!("--bound-object-kind Pod --bound-object-name {pod}");
    Ok(kubernetes
        .kubectl(&format!(
            "create token {account} --namespace {NAMESPACE} {bound}"
        ))?
        .trim()
        .to_owned())
}
