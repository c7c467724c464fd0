//! The commands that speak to a cluster, against an API server in this process and the controller.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{sync::Arc, time::Duration};

use egressgateway::{
    allocator::LowestFree,
    api::{EgressGateway, EgressGatewayPolicy, GatewayNodeStatus},
    controller,
    runtime::{Backoff, Controller, ControllerSettings, ElectionSettings},
};
use egressgateway_testkit::apiserver::{ApiServer, Effect, Fault};
use kube::{Api, runtime::wait::await_condition};
use serde_json::{Value, json};
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

/// How long a test waits for what must happen before it fails.
const PATIENCE: Duration = Duration::from_secs(20);
const DRAIN: &str = "egressgateway.spidernet.io/drain";
const WISH: &str = "egressgateway.spidernet.io/node";

/// Three nodes whose agents are alive, the first two of them in gateway `exit`, and a policy with
/// addresses.
struct Cluster {
    api: ApiServer,
    folder: tempfile::TempDir,
    shutdown: CancellationToken,
}

impl Cluster {
    /// With a controller that has decided about everything.
    async fn start() -> Self {
        let cluster = Self::without_controller();
        let plan = controller::ControllerSettings {
            overlay: vec!["172.31.0.0/16".parse().unwrap()],
            drain_grace: Duration::from_secs(2),
            ..controller::ControllerSettings::default()
        };
        let mut election = ElectionSettings::new("kube-system", "a");
        election.retry = Duration::from_millis(100);
        let mut settings = ControllerSettings::new(plan, election);
        settings.settle = Duration::from_millis(10);
        settings.backoff = Backoff::new(Duration::from_millis(20), Duration::from_millis(100));
        tokio::spawn(
            Controller::new(cluster.api.client(), settings, Arc::new(LowestFree))
                .run(cluster.shutdown.clone()),
        );
        cluster.until_moved("node1").await;
        cluster.until_ready(2).await;
        cluster
    }

    /// Whose controller has gone after it gave the policy's address to the first node.
    fn with_last_words() -> Self {
        let cluster = Self::without_controller();
        let nodes = json!({"status": {"nodeList": [{"name": "node1", "status": "Ready"}, {"name": "node2", "status": "Ready"}]}});
        cluster
            .api
            .merge("EgressGateway", "", "exit", &nodes)
            .unwrap();
        let status = json!({"status": {"egressGateway": "exit", "node": "node1", "egressIP": {"ipv4": "10.6.1.60"}}});
        cluster
            .api
            .merge("EgressGatewayPolicy", "", "shop", &status)
            .unwrap();
        cluster
    }

    fn without_controller() -> Self {
        let api = ApiServer::start();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("kubeconfig"), api.kubeconfig()).unwrap();
        for (name, egress) in [("node1", "true"), ("node2", "true"), ("node3", "false")] {
            node(&api, name, egress);
        }
        api.put(json!({
            "apiVersion": "egressgateway.spidernet.io/v1", "kind": "EgressGateway", "metadata": {"name": "exit"},
            "spec": {
                "nodeSelector": {"matchLabels": {"egress": "true"}}, "sourceNAT": "EgressIP",
                "egressIPs": {"ipv4": ["10.6.1.60"], "ipv6": ["fd00:6::60"]},
            },
        }))
        .unwrap();
        api.put(json!({
            "apiVersion": "egressgateway.spidernet.io/v1", "kind": "EgressGatewayPolicy", "metadata": {"name": "shop"},
            "spec": {"egressGatewayName": "exit", "appliedTo": {"podSelector": {"matchLabels": {"app": "shop"}}}},
        }))
        .unwrap();
        Self {
            api,
            folder,
            shutdown: CancellationToken::new(),
        }
    }

    /// Exit code, standard output and standard error.
    async fn egressctl(&self, arguments: &[&str]) -> (i32, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_egressctl"));
        let command = command
            .args(arguments)
            .arg("--kubeconfig")
            .arg(self.folder.path().join("kubeconfig"));
        let output = tokio::time::timeout(2 * PATIENCE, command.output())
            .await
            .expect("egressctl ends")
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (
            output.status.code().unwrap(),
            text(output.stdout),
            text(output.stderr),
        )
    }

    async fn until_moved(&self, node: &str) {
        let policies = Api::<EgressGatewayPolicy>::all(self.api.client());
        let with = |policy: Option<&EgressGatewayPolicy>| {
            policy.and_then(|policy| policy.status.as_ref()?.node.as_deref()) == Some(node)
        };
        let moved = tokio::time::timeout(PATIENCE, await_condition(policies, "shop", with)).await;
        assert!(
            moved.is_ok(),
            "not with {node}: {:#?}",
            self.api.get("EgressGatewayPolicy", "", "shop")
        );
    }

    /// Waits until so many nodes of the gateway are Ready, one of them active.
    async fn until_ready(&self, count: usize) {
        let gateways = Api::<EgressGateway>::all(self.api.client());
        let so = |gateway: Option<&EgressGateway>| {
            let nodes = gateway
                .and_then(|gateway| gateway.status.as_ref())
                .map_or(&[][..], |status| &status.node_list);
            nodes
                .iter()
                .filter(|node| node.status == GatewayNodeStatus::Ready)
                .count()
                == count
                && nodes.iter().any(|node| node.active)
        };
        let ready = tokio::time::timeout(PATIENCE, await_condition(gateways, "exit", so)).await;
        assert!(
            ready.is_ok(),
            "{count} are not Ready: {:#?}",
            self.api.get("EgressGateway", "", "exit")
        );
    }

    fn annotation(&self, kind: &str, name: &str, annotation: &str) -> Value {
        self.api.get(kind, "", name).unwrap()["metadata"]["annotations"][annotation].clone()
    }

    /// Status, whether it is active, and the egress addresses of a node of the gateway.
    fn member(&self, node: &str) -> (Value, Value, Value) {
        let gateway = self.api.get("EgressGateway", "", "exit").unwrap();
        let member = gateway["status"]["nodeList"]
            .as_array()
            .unwrap()
            .iter()
            .find(|member| member["name"] == node)
            .unwrap()
            .clone();
        (
            member["status"].clone(),
            member["active"].clone(),
            member["egressIPs"].clone(),
        )
    }

    fn owner(&self) -> Value {
        self.api.get("EgressGatewayPolicy", "", "shop").unwrap()["status"]["node"].clone()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// A Ready node, whose agent lives for an hour and has a tunnel.
fn node(api: &ApiServer, name: &str, egress: &str) {
    api.put(json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"egress": egress}},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    }))
    .unwrap();
    api.put(json!({
        "apiVersion": "egressgateway.spidernet.io/v1", "kind": "EgressNode", "metadata": {"name": name}, "spec": {},
        "status": {"conditions": [
            {"type": "TunnelReady", "status": "True", "reason": "Built", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"},
        ]},
    }))
    .unwrap();
    api.put(json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {
            "name": format!("egressgateway-agent-{name}"), "namespace": "kube-system",
            "labels": {"app.kubernetes.io/component": "egressgateway-agent"},
        },
        "spec": {"holderIdentity": name, "leaseDurationSeconds": 3600, "renewTime": "2026-01-01T00:00:00.000000Z"},
    }))
    .unwrap();
}

#[tokio::test]
async fn a_drained_node_is_left_before_the_command_ends_and_an_undrained_one_stands_by() {
    let cluster = Cluster::start().await;
    let (code, text, errors) = cluster.egressctl(&["drain", "node1"]).await;
    assert_eq!(
        (code, text.as_str()),
        (0, "Node node1 is drained: EgressGateway exit\n"),
        "{errors}"
    );
    assert!(
        errors.starts_with(
            "waiting: EgressGateway exit: node1 is Ready, is active, has 10.6.1.60, fd00:6::60\n"
        ),
        "{errors}"
    );
    assert_eq!(
        cluster.member("node1"),
        (json!("NotReady"), json!(false), Value::Null)
    );
    assert_eq!(
        cluster.member("node2"),
        (
            json!("Ready"),
            json!(true),
            json!(["10.6.1.60", "fd00:6::60"])
        )
    );
    assert_eq!(cluster.annotation("Node", "node1", DRAIN), "true");

    let patches = cluster.api.count("patch", "nodes");
    let (code, _, errors) = cluster.egressctl(&["drain", "node1"]).await;
    assert_eq!(
        (code, errors.as_str()),
        (
            0,
            "note: Node node1 has the annotation egressgateway.spidernet.io/drain already\n"
        )
    );
    assert_eq!(cluster.api.count("patch", "nodes"), patches);

    let (code, text, errors) = cluster.egressctl(&["undrain", "node1"]).await;
    assert_eq!(
        (code, text.as_str(), errors.as_str()),
        (0, "Node node1 may be used by gateways again\n", "")
    );
    assert_eq!(cluster.annotation("Node", "node1", DRAIN), Value::Null);
    cluster.until_ready(2).await;
    assert_eq!(
        cluster.member("node1"),
        (json!("Ready"), json!(false), Value::Null),
        "it stands by"
    );
    let (code, text, _) = cluster.egressctl(&["undrain", "node1"]).await;
    assert_eq!(
        (code, text.as_str()),
        (
            0,
            "Node node1 has no annotation egressgateway.spidernet.io/drain: nothing to do\n"
        )
    );
}

#[tokio::test]
async fn a_drain_ends_when_connections_from_before_are_over_or_does_not_wait_for_them() {
    let cluster = Cluster::start().await;
    let draining = |cluster: &Cluster| {
        cluster.api.get("EgressGateway", "", "exit").unwrap()["status"]["draining"].clone()
    };
    let (code, _, errors) = cluster
        .egressctl(&["drain", "node1", "--without-grace"])
        .await;
    assert_eq!(
        (code, draining(&cluster)["node"].clone()),
        (0, json!("node1")),
        "{errors}"
    );
    assert!(!errors.contains("connections from before"), "{errors}");
    let (code, text, errors) = cluster
        .egressctl(&["drain", "node1", "--timeout", "1s"])
        .await;
    assert_eq!(
        (code, text.as_str(), draining(&cluster)),
        (
            0,
            "Node node1 is drained: EgressGateway exit\n",
            Value::Null
        ),
        "{errors}"
    );
    assert!(
        errors.contains(
            "waiting: EgressGateway exit: connections from before may go through node1 until 20"
        ),
        "{errors}"
    );
}

#[tokio::test]
async fn the_last_ready_node_is_drained_only_by_force() {
    let cluster = Cluster::start().await;
    assert_eq!(cluster.egressctl(&["drain", "node2"]).await.0, 0);
    let (code, _, errors) = cluster.egressctl(&["drain", "node1"]).await;
    let refusal = "error: NODE: \"node1\": must not be the last Ready node of EgressGateway exit, whose traffic nobody else could take; --force does it\n";
    assert_eq!((code, errors.as_str()), (1, refusal));
    assert_eq!(
        (
            cluster.annotation("Node", "node1", DRAIN),
            cluster.member("node1").1
        ),
        (Value::Null, json!(true)),
        "nothing was touched"
    );
    let (code, _, errors) = cluster.egressctl(&["drain", "node1", "--force"]).await;
    assert_eq!(code, 0, "{errors}");
    let warning = "warning: EgressGateway exit has no Ready node: its traffic is dropped, but for that of 10.6.1.60, fd00:6::60, which goes on through node1\n";
    assert!(errors.ends_with(warning), "{errors}");
    assert_eq!(cluster.member("node1").1, json!(false));
}

#[tokio::test]
async fn nodes_that_are_not_there_or_in_no_gateway_are_refused() {
    let cluster = Cluster::start().await;
    for (arguments, refusal) in [
        (
            ["drain", "node9"],
            "error: NODE: \"node9\": must be a Node of the cluster: there is none of this name\n",
        ),
        (
            ["undrain", "node9"],
            "error: NODE: \"node9\": must be a Node of the cluster: there is none of this name\n",
        ),
        (
            ["drain", "node3"],
            "error: NODE: \"node3\": must belong to an EgressGateway: status.nodeList of none names it\n",
        ),
    ] {
        let (code, _, errors) = cluster.egressctl(&arguments).await;
        assert_eq!((code, errors.as_str()), (1, refusal), "{arguments:?}");
    }
    assert_eq!(cluster.api.count("patch", "nodes"), 0);
}

#[tokio::test]
async fn a_drain_that_nobody_carries_out_says_what_is_still_there() {
    let cluster = Cluster::without_controller();
    let member = |name, active, ips: Value| json!({"name": name, "status": "Ready", "active": active, "egressIPs": ips});
    let status = json!({"status": {"nodeList": [member("node1", true, json!(["10.6.1.60"])), member("node2", false, json!([]))]}});
    cluster
        .api
        .merge("EgressGateway", "", "exit", &status)
        .unwrap();
    let (code, text, errors) = cluster
        .egressctl(&["drain", "node2", "--timeout", "500ms"])
        .await;
    assert_eq!((code, text.as_str()), (1, ""));
    let left = "error: Node node2 is annotated, but not drained within 500ms:\nerror: EgressGateway exit: node2 is Ready\n";
    assert!(
        errors.ends_with(left),
        "a node that stands by can be elected until the controller has seen the annotation: {errors}"
    );
    let (code, _, errors) = cluster
        .egressctl(&["drain", "node1", "--timeout", "500ms"])
        .await;
    assert_eq!(code, 1);
    assert!(
        errors.ends_with("error: EgressGateway exit: node1 is Ready, is active, has 10.6.1.60\n"),
        "{errors}"
    );
}

#[tokio::test]
async fn a_cordon_is_told_because_undraining_does_not_end_it() {
    let cluster = Cluster::start().await;
    cluster
        .api
        .merge(
            "Node",
            "",
            "node1",
            &json!({"spec": {"unschedulable": true}}),
        )
        .unwrap();
    cluster.until_moved("node2").await;
    let (code, _, errors) = cluster.egressctl(&["undrain", "node1"]).await;
    assert_eq!(code, 0);
    assert_eq!(
        errors,
        "warning: Node node1 is cordoned (spec.unschedulable): gateways prefer other nodes until that ends as well\n"
    );
}

#[tokio::test]
async fn an_api_server_that_refuses_or_is_silent_is_an_error() {
    let cluster = Cluster::start().await;
    cluster
        .api
        .fault(Fault::new("patch", "nodes", 1, Effect::Status(403)));
    let (code, _, errors) = cluster.egressctl(&["drain", "node1"]).await;
    assert_eq!(code, 1);
    assert!(
        errors.starts_with("error: annotate Node node1: ") && errors.contains("403"),
        "{errors}"
    );
    cluster.api.pause();
    let (code, _, errors) = cluster
        .egressctl(&["drain", "node1", "--timeout", "300ms"])
        .await;
    assert_eq!(
        (code, errors.as_str()),
        (1, "error: get Node node1: no answer within 300ms\n")
    );
    cluster.api.resume();
}

#[tokio::test]
async fn a_moved_address_is_there_before_the_command_ends_and_stays_without_a_wish() {
    let cluster = Cluster::start().await;
    let (code, text, errors) = cluster.egressctl(&["move", "fd00:6::60", "node2"]).await;
    assert_eq!(
        (code, text.as_str()),
        (
            0,
            "EgressGatewayPolicy shop has 10.6.1.60, fd00:6::60 at node2\n"
        ),
        "{errors}"
    );
    assert_eq!(
        errors,
        "waiting: EgressGatewayPolicy shop has 10.6.1.60, fd00:6::60 at node1\n"
    );
    assert_eq!(
        (
            cluster.owner(),
            cluster.annotation("EgressGatewayPolicy", "shop", WISH)
        ),
        (json!("node2"), Value::Null)
    );
    let (code, text, _) = cluster.egressctl(&["move", "10.6.1.60", "node2"]).await;
    assert_eq!(
        (code, text.as_str()),
        (
            0,
            "EgressGatewayPolicy shop has 10.6.1.60, fd00:6::60 at node2 already: nothing to do\n"
        )
    );
    assert_eq!(cluster.egressctl(&["drain", "node2"]).await.0, 0);
    assert_eq!(
        (
            cluster.egressctl(&["undrain", "node2"]).await.0,
            cluster.owner()
        ),
        (0, json!("node1"))
    );
    cluster.until_ready(2).await;
    assert_eq!(
        cluster.owner(),
        "node1",
        "a move is done once: it calls nothing back"
    );
}

#[tokio::test]
async fn moves_that_cannot_be_are_refused() {
    let cluster = Cluster::start().await;
    assert_eq!(cluster.egressctl(&["drain", "node2"]).await.0, 0);
    for (arguments, refusal) in [
        (
            ["move", "10.6.1.61", "node1"],
            "EGRESS-IP: \"10.6.1.61\": must be in use: status.egressIP of no EgressGatewayPolicy has it",
        ),
        (
            ["move", "10.6.1.60", "node2"],
            "NODE: \"node2\": must be a Ready node of EgressGateway exit: node1",
        ),
        (
            ["move", "10.6.1.60", "node3"],
            "NODE: \"node3\": must be a Ready node of EgressGateway exit: node1",
        ),
    ] {
        let (code, _, errors) = cluster.egressctl(&arguments).await;
        assert_eq!(
            (code, errors),
            (1, format!("error: {refusal}\n")),
            "{arguments:?}"
        );
    }
    assert_eq!(cluster.egressctl(&["move", "10.6.1", "node1"]).await.0, 2);
    assert_eq!(
        (
            cluster.owner(),
            cluster.annotation("EgressGatewayPolicy", "shop", WISH)
        ),
        (json!("node1"), Value::Null)
    );
}

#[tokio::test]
async fn a_move_that_nobody_carries_out_takes_the_wish_back() {
    let cluster = Cluster::with_last_words();
    let (code, _, errors) = cluster
        .egressctl(&["move", "10.6.1.60", "node2", "--timeout", "500ms"])
        .await;
    assert_eq!(code, 1);
    assert!(
        errors.ends_with(
            "error: EgressGatewayPolicy shop did not have 10.6.1.60 at node2 within 500ms\n"
        ),
        "{errors}"
    );
    assert_eq!(
        cluster.annotation("EgressGatewayPolicy", "shop", WISH),
        Value::Null
    );
    assert_eq!(
        cluster.api.count("patch", "egressgatewaypolicies"),
        2,
        "there it stood meanwhile"
    );
    cluster
        .api
        .merge(
            "EgressGatewayPolicy",
            "",
            "shop",
            &json!({"metadata": {"annotations": {WISH: "node1"}}}),
        )
        .unwrap();
    assert_eq!(
        cluster
            .egressctl(&["move", "10.6.1.60", "node2", "--timeout", "500ms"])
            .await
            .0,
        1
    );
    assert_eq!(
        cluster.annotation("EgressGatewayPolicy", "shop", WISH),
        "node1",
        "what was pinned before is pinned again"
    );
}

#[tokio::test]
async fn a_wish_that_somebody_else_has_changed_meanwhile_is_theirs() {
    let cluster = Cluster::with_last_words();
    let others = async {
        cluster
            .api
            .requested("watch", "egressgatewaypolicies", 1)
            .await;
        let change =
            json!({"metadata": {"annotations": {WISH: "node3"}}, "status": {"node": "node2"}});
        cluster
            .api
            .merge("EgressGatewayPolicy", "", "shop", &change)
            .unwrap();
    };
    let ((code, _, errors), ()) =
        tokio::join!(cluster.egressctl(&["move", "10.6.1.60", "node2"]), others);
    assert_eq!(code, 0, "{errors}");
    assert_eq!(
        cluster.annotation("EgressGatewayPolicy", "shop", WISH),
        "node3"
    );
}

#[tokio::test]
async fn a_wish_that_stands_already_is_waited_for_and_left_alone() {
    let cluster = Cluster::with_last_words();
    cluster
        .api
        .merge(
            "EgressGatewayPolicy",
            "",
            "shop",
            &json!({"metadata": {"annotations": {WISH: "node2"}}}),
        )
        .unwrap();
    let controller = async {
        cluster
            .api
            .requested("watch", "egressgatewaypolicies", 1)
            .await;
        cluster
            .api
            .merge(
                "EgressGatewayPolicy",
                "",
                "shop",
                &json!({"status": {"node": "node2"}}),
            )
            .unwrap();
    };
    let ((code, _, errors), ()) = tokio::join!(
        cluster.egressctl(&["move", "10.6.1.60", "node2"]),
        controller
    );
    assert_eq!(code, 0, "{errors}");
    assert!(
        errors.contains("the annotation egressgateway.spidernet.io/node=node2 stands: "),
        "{errors}"
    );
    assert_eq!(
        (
            cluster.annotation("EgressGatewayPolicy", "shop", WISH),
            cluster.api.count("patch", "egressgatewaypolicies")
        ),
        (json!("node2"), 0)
    );
}

#[tokio::test]
async fn a_pin_to_the_same_node_stays_and_one_to_another_node_ends() {
    let cluster = Cluster::start().await;
    cluster
        .api
        .merge(
            "EgressGatewayPolicy",
            "",
            "shop",
            &json!({"metadata": {"annotations": {WISH: "node2"}}}),
        )
        .unwrap();
    cluster.until_moved("node2").await;
    let (code, text, _) = cluster.egressctl(&["move", "10.6.1.60", "node2"]).await;
    assert_eq!(
        (code, text.ends_with("nothing to do\n")),
        (0, true),
        "{text}"
    );
    assert_eq!(
        cluster.annotation("EgressGatewayPolicy", "shop", WISH),
        "node2"
    );
    let (code, _, errors) = cluster.egressctl(&["move", "10.6.1.60", "node1"]).await;
    assert_eq!(code, 0, "{errors}");
    assert!(
        errors.contains("had the annotation egressgateway.spidernet.io/node=node2, which is gone"),
        "{errors}"
    );
    assert_eq!(
        (
            cluster.owner(),
            cluster.annotation("EgressGatewayPolicy", "shop", WISH)
        ),
        (json!("node1"), Value::Null)
    );
}
