//! A small cluster, and daemons in it.

use std::{fmt::Debug, time::Duration};

use egressgateway::{
    api::{EgressGateway, EgressGatewayPolicy, EgressNode},
    index::IndexSettings,
    model::NodeName,
    runtime::{Agent, AgentSettings, Backoff, Health},
};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams, PostParams},
    runtime::wait::await_condition,
};
use prometheus_client::{encoding::text::encode, registry::Registry};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::kernel::{FakeTunnel, Kernel, Seven};

/// How long a test waits for what must happen before it fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The node that the agent under test runs on.
pub(crate) const NODE: &str = "node1";

/// Creates an object, with its status.
pub(crate) async fn put<K>(api: &Api<K>, object: Value)
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + serde::Serialize,
{
    let name = object["metadata"]["name"].as_str().unwrap().to_owned();
    let status = object.get("status").cloned();
    api.create(
        &PostParams::default(),
        &serde_json::from_value(object).unwrap(),
    )
    .await
    .unwrap();
    if let Some(status) = status {
        let patch = Patch::Merge(json!({"status": status}));
        api.patch_status(&name, &PatchParams::default(), &patch)
            .await
            .unwrap();
    }
}

/// Waits until an object is so.
pub(crate) async fn until<K>(api: Api<K>, name: &str, what: &str, so: impl Fn(&K) -> bool) -> K
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let condition = await_condition(api.clone(), name, |object: Option<&K>| {
        object.is_some_and(&so)
    });
    let Ok(object) = tokio::time::timeout(PATIENCE, condition).await else {
        panic!("{name} never had {what}: {:#?}", api.get_opt(name).await)
    };
    object.unwrap().unwrap()
}

pub(crate) async fn node(client: &Client, name: &str, number: u8) {
    put(
        &Api::<Node>::all(client.clone()),
        json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "egress": "true"}},
            "spec": {"podCIDR": format!("10.0.{number}.0/24"), "podCIDRs": [format!("10.0.{number}.0/24")]},
            "status": {
                "addresses": [{"type": "InternalIP", "address": format!("10.6.0.{number}")}],
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        }),
    )
    .await;
}

pub(crate) async fn egress_node(client: &Client, name: &str, number: u8) {
    put(
        &Api::<EgressNode>::all(client.clone()),
        json!({
            "metadata": {"name": name},
            "spec": {},
            "status": {
                "phase": "Init",
                "vxlanIPv4IP": format!("172.31.0.{number}/16"),
                "tunnelMac": format!("66:00:00:00:00:{number:02x}"),
                "physicalInterfaceIPv4": format!("10.6.0.{number}"),
            },
        }),
    )
    .await;
}

/// Gateway "exit" on node2.
pub(crate) async fn gateway(client: &Client) {
    put(
        &Api::<EgressGateway>::all(client.clone()),
        json!({
            "metadata": {"name": "exit"},
            "spec": {"nodeSelector": {"matchLabels": {"egress": "true"}}},
            "status": {
                "forwardMethod": "active-passive",
                "mark": 0x1100_0000,
                "nodeList": [{"name": "node2", "status": "Ready", "active": true}],
            },
        }),
    )
    .await;
}

/// A policy that governs all pods labelled `app=shop`.
pub(crate) async fn policy(client: &Client, name: &str, destination: &str) {
    put(
        &Api::<EgressGatewayPolicy>::all(client.clone()),
        json!({
            "metadata": {"name": name},
            "spec": {
                "egressGatewayName": "exit",
                "appliedTo": {"podSelector": {"matchLabels": {"app": "shop"}}},
                "destCIDR": [destination],
            },
        }),
    )
    .await;
}

pub(crate) async fn pod(client: &Client, name: &str, node: &str, address: &str) {
    put(
        &Api::<Pod>::namespaced(client.clone(), "default"),
        json!({
            "metadata": {"name": name, "namespace": "default", "labels": {"app": "shop"}},
            "spec": {"nodeName": node, "containers": [{"name": "a", "image": "a"}]},
            "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
        }),
    )
    .await;
}

/// Two nodes, a gateway on the second, a policy, and a governed pod on the first.
pub(crate) async fn populate(client: &Client) {
    for (name, number) in [("node1", 1), ("node2", 2)] {
        node(client, name, number).await;
        egress_node(client, name, number).await;
    }
    gateway(client).await;
    policy(client, "shop", "10.9.0.0/16").await;
    pod(client, "pod1", NODE, "10.0.1.1").await;
}

/// A running agent.
pub(crate) struct Running {
    pub(crate) health: Health,
    pub(crate) registry: Registry,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), egressgateway::Error>>,
}

pub(crate) fn settings() -> AgentSettings {
    let index = IndexSettings::of_node(NodeName::from(NODE)).with_start_gate(false);
    let mut settings = AgentSettings::new(index);
    settings.api_backoff = Backoff::new(Duration::from_millis(20), Duration::from_millis(100));
    settings.kernel_backoff = Backoff::new(Duration::from_millis(5), Duration::from_millis(20));
    settings.quiet = Duration::from_millis(10);
    settings.spacing = Duration::from_millis(50);
    settings
}

impl Running {
    pub(crate) fn start(client: &Client, kernel: &Kernel, settings: AgentSettings) -> Self {
        Self::start_with(client, kernel, settings, |agent| agent)
    }

    /// The same with an agent that has something more.
    pub(crate) fn start_with(
        client: &Client,
        kernel: &Kernel,
        settings: AgentSettings,
        more: impl FnOnce(Agent) -> Agent,
    ) -> Self {
        let mut registry = Registry::default();
        let agent = Agent::new(
            client.clone(),
            settings,
            kernel.drivers(),
            std::sync::Arc::new(FakeTunnel),
            kernel.host.clone(),
        )
        .with_counters(std::sync::Arc::new(Seven))
        .with_monitor(kernel.filter.clone())
        .with_metrics(&mut registry);
        let agent = more(agent);
        let (health, shutdown) = (agent.health(), CancellationToken::new());
        let task = tokio::spawn(agent.run(shutdown.clone()));
        Self {
            health,
            registry,
            shutdown,
            task,
        }
    }

    /// Waits until everything was listed and the last converge succeeded.
    pub(crate) async fn until_ready(&self) {
        let ready = async {
            while !self.health.is_ready() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, ready)
            .await
            .expect("the agent never was ready");
    }

    /// Waits until a metric has a value.
    pub(crate) async fn until_metric(&self, name: &str, value: f64) {
        let so = async {
            while self.metric(name) != Some(value) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, so)
            .await
            .unwrap_or_else(|_| panic!("{name} is {:?}, never {value}", self.metric(name)));
    }

    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.task)
            .await
            .expect("the agent ends when asked to")
            .unwrap()
            .unwrap();
        assert!(!self.health.is_alive());
    }

    /// The value of a metric with its labels, as the text format shows it.
    pub(crate) fn metric(&self, name: &str) -> Option<f64> {
        let mut text = String::new();
        encode(&mut text, &self.registry).unwrap();
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
    }
}
