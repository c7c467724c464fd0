use std::{collections::BTreeSet, sync::Arc, time::Duration};

use egressgateway::{
    allocator::LowestFree,
    api::{
        EgressGateway, EgressGatewayPolicy, EgressGatewayStatus, EgressNode, EgressNodePhase,
        ForwardMethod, GatewayNodeStatus,
    },
    controller,
    model::MarkMask,
    runtime::{Backoff, Controller, ControllerSettings, ElectionSettings, Health},
};
use egressgateway_testkit::apiserver::{ApiServer, Effect, Fault};
use k8s_openapi::{
    api::{
        coordination::v1::{Lease, LeaseSpec},
        core::v1::Node,
        events::v1::Event,
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
    runtime::wait::{await_condition, conditions},
};
use serde_json::json;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::{PATIENCE, node, policy, put, until};

pub(crate) struct Running {
    health: Health,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), egressgateway::Error>>,
}

fn settings(identity: &str) -> ControllerSettings {
    let plan = controller::ControllerSettings {
        forward_method: ForwardMethod::ActivePassive,
        default_gateway: None,
        overlay: vec!["172.31.0.0/16".parse().unwrap()],
        mask: MarkMask::default(),
        drain_grace: Duration::from_secs(1),
        ..controller::ControllerSettings::default()
    };
    let mut election = ElectionSettings::new("kube-system", identity);
    election.duration = Duration::from_secs(1);
    election.retry = Duration::from_millis(100);
    let mut settings = ControllerSettings::new(plan, election);
    settings.settle = Duration::from_millis(10);
    settings.backoff = Backoff::new(Duration::from_millis(20), Duration::from_millis(100));
    settings
}

impl Running {
    pub(crate) fn start(client: &Client, identity: &str) -> Self {
        let controller = Controller::new(client.clone(), settings(identity), Arc::new(LowestFree));
        let (health, shutdown) = (controller.health(), CancellationToken::new());
        Self {
            health,
            task: tokio::spawn(controller.run(shutdown.clone())),
            shutdown,
        }
    }

    /// As SIGTERM does it.
    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.task)
            .await
            .expect("the controller ends when asked to")
            .unwrap()
            .unwrap();
    }

    /// As SIGKILL does it.
    pub(crate) async fn kill(self) {
        self.task.abort();
        self.task.await.unwrap_err();
    }
}

pub(crate) async fn agent_lease(client: &Client, name: &str, seconds: i32) {
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(format!("egressgateway-agent-{name}")),
            labels: Some(
                [(
                    "app.kubernetes.io/component".to_owned(),
                    "egressgateway-agent".to_owned(),
                )]
                .into(),
            ),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(name.to_owned()),
            lease_duration_seconds: Some(seconds),
            renew_time: Some(MicroTime(Timestamp::now())),
            ..LeaseSpec::default()
        }),
    };
    let leases = Api::<Lease>::namespaced(client.clone(), "kube-system");
    leases
        .create(&kube::api::PostParams::default(), &lease)
        .await
        .unwrap();
}

pub(crate) async fn tunnel_built(client: &Client, name: &str) {
    let status = json!({"status": {"phase": "Succeeded", "physicalInterfaceIPv4": "10.6.0.1", "conditions": [{
        "type": "TunnelReady", "status": "True", "reason": "Built", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z",
    }]}});
    let nodes = Api::<EgressNode>::all(client.clone());
    nodes
        .patch_status(name, &PatchParams::default(), &Patch::Merge(&status))
        .await
        .unwrap();
}

pub(crate) async fn gateway(client: &Client) {
    let object = json!({"metadata": {"name": "exit"}, "spec": {"nodeSelector": {"matchLabels": {"egress": "true"}}}});
    put(&Api::<EgressGateway>::all(client.clone()), object).await;
}

pub(crate) async fn addressed(client: &Client, name: &str) -> EgressNode {
    until(
        Api::<EgressNode>::all(client.clone()),
        name,
        "an address",
        |node| {
            node.status
                .as_ref()
                .is_some_and(|status| status.vxlan_ipv4_ip.is_some())
        },
    )
    .await
}

pub(crate) fn is(status: GatewayNodeStatus) -> impl Fn(&EgressGateway) -> bool {
    move |gateway| {
        gateway
            .status
            .iter()
            .flat_map(|status| &status.node_list)
            .any(|node| node.status == status)
    }
}

pub(crate) async fn leader(client: &Client, identity: &str) {
    let leases = Api::<Lease>::namespaced(client.clone(), "kube-system");
    until(leases, "egressgateway-controller", identity, |lease| {
        lease
            .spec
            .as_ref()
            .and_then(|spec| spec.holder_identity.as_deref())
            == Some(identity)
    })
    .await;
}

#[tokio::test]
async fn makes_an_egress_node_for_each_node_and_elects_gateways() {
    let server = ApiServer::start();
    let client = server.client();
    node(&client, "node1", 1).await;
    node(&client, "node2", 2).await;
    agent_lease(&client, "node1", 3600).await;
    gateway(&client).await;
    policy(&client, "shop", "10.9.0.0/16").await;
    let controller = Running::start(&client, "a");
    let mut addresses = BTreeSet::new();
    for name in ["node1", "node2"] {
        let egress_node = addressed(&client, name).await;
        let owner = &egress_node.owner_references()[0];
        let uid = Api::<Node>::all(client.clone())
            .get(name)
            .await
            .unwrap()
            .uid();
        assert_eq!(
            (owner.kind.as_str(), Some(&owner.uid)),
            ("Node", uid.as_ref())
        );
        addresses.insert(egress_node.status.unwrap().vxlan_ipv4_ip);
    }
    assert_eq!(addresses.len(), 2);
    tunnel_built(&client, "node1").await;
    let gateway = until(
        Api::<EgressGateway>::all(client.clone()),
        "exit",
        "an active node",
        |gateway| {
            gateway
                .status
                .iter()
                .flat_map(|status| &status.node_list)
                .any(|node| node.active)
        },
    )
    .await;
    assert!(gateway.status.as_ref().unwrap().mark.is_some());
    let built = Api::<EgressNode>::all(client.clone())
        .get("node1")
        .await
        .unwrap();
    assert_eq!(
        built.status.unwrap().phase,
        Some(EgressNodePhase::Succeeded),
        "what the agent said stays"
    );
    until(
        Api::<EgressGatewayPolicy>::all(client.clone()),
        "shop",
        "its gateway",
        |policy| {
            policy
                .status
                .as_ref()
                .is_some_and(|status| status.egress_gateway.as_deref() == Some("exit"))
        },
    )
    .await;
    let egress_nodes = Api::<EgressNode>::all(client.clone());
    let uid = egress_nodes.get("node2").await.unwrap().uid().unwrap();
    Api::<Node>::all(client.clone())
        .delete("node2", &DeleteParams::default())
        .await
        .unwrap();
    let gone = await_condition(egress_nodes, "node2", conditions::is_deleted(&uid));
    tokio::time::timeout(PATIENCE, gone)
        .await
        .expect("it goes with its node")
        .unwrap();
    controller.stop().await;
}

#[tokio::test]
async fn a_new_leader_finds_everything_as_planned_and_writes_nothing() {
    let server = ApiServer::start();
    let client = server.client();
    node(&client, "node1", 1).await;
    gateway(&client).await;
    policy(&client, "shop", "10.9.0.0/16").await;
    let first = Running::start(&client, "a");
    addressed(&client, "node1").await;
    until(
        Api::<EgressGatewayPolicy>::all(client.clone()),
        "shop",
        "a status",
        |policy| policy.status.is_some(),
    )
    .await;
    until(
        Api::<EgressGateway>::all(client.clone()),
        "exit",
        "a mark",
        |gateway| {
            gateway
                .status
                .as_ref()
                .is_some_and(|status| status.mark.is_some())
        },
    )
    .await;
    first.stop().await;
    let kinds = ["egressnodes", "egressgateways", "egressgatewaypolicies"];
    let written: Vec<usize> = kinds.iter().map(|kind| server.writes(kind)).collect();
    let second = Running::start(&client, "b");
    leader(&client, "b").await;
    node(&client, "node2", 2).await;
    addressed(&client, "node2").await;
    assert_eq!(
        server.writes("egressgatewaypolicies"),
        written[2],
        "the policy's status is as it was"
    );
    let nodes = Api::<EgressNode>::all(client.clone())
        .list(&ListParams::default())
        .await
        .unwrap();
    assert_eq!(nodes.items.len(), 2);
    second.stop().await;
}

#[tokio::test]
async fn only_the_leader_writes_and_the_next_takes_over_at_once_when_it_hands_over() {
    let server = ApiServer::start();
    let client = server.client();
    let first = Running::start(&client, "a");
    leader(&client, "a").await;
    let second = Running::start(&client, "b");
    while !second.health.is_ready() {
        tokio::task::yield_now().await;
    }
    node(&client, "node1", 1).await;
    addressed(&client, "node1").await;
    let before = tokio::time::Instant::now();
    first.stop().await;
    leader(&client, "b").await;
    assert!(
        before.elapsed() < Duration::from_millis(900),
        "no expiry was waited for"
    );
    node(&client, "node2", 2).await;
    addressed(&client, "node2").await;
    second.stop().await;
}

#[tokio::test]
async fn a_leader_that_died_is_followed_after_its_lease_expired() {
    let server = ApiServer::start();
    let client = server.client();
    let first = Running::start(&client, "a");
    leader(&client, "a").await;
    let second = Running::start(&client, "b");
    first.kill().await;
    let died = tokio::time::Instant::now();
    leader(&client, "b").await;
    assert!(
        died.elapsed() >= Duration::from_millis(500),
        "a lease that may still be held is not taken"
    );
    node(&client, "node1", 1).await;
    addressed(&client, "node1").await;
    second.stop().await;
}

#[tokio::test]
async fn who_does_not_lead_is_told_of_renewals_and_does_not_ask() {
    let server = ApiServer::start();
    let client = server.client();
    let first = Running::start(&client, "a");
    leader(&client, "a").await;
    let watches = server.count("watch", "leases");
    let second = Running::start(&client, "b");
    // The agents' Leases, and the leader's.
    server.requested("watch", "leases", watches + 2).await;
    // The leader asks once before each renewal.
    let (asked, renewed) = (
        server.count("get", "leases"),
        server.count("update", "leases"),
    );
    // Twice as long as a Lease lasts.
    server.requested("update", "leases", renewed + 20).await;
    let (asked, renewed) = (
        server.count("get", "leases") - asked,
        server.count("update", "leases") - renewed,
    );
    assert!(asked.abs_diff(renewed) <= 1, "{asked} {renewed}");
    first.stop().await;
    leader(&client, "b").await;
    second.stop().await;
}

#[tokio::test]
async fn an_agent_whose_lease_is_not_renewed_is_unknown() {
    let server = ApiServer::start();
    let client = server.client();
    node(&client, "node1", 1).await;
    agent_lease(&client, "node1", 1).await;
    gateway(&client).await;
    let controller = Running::start(&client, "a");
    addressed(&client, "node1").await;
    tunnel_built(&client, "node1").await;
    let gateways = Api::<EgressGateway>::all(client.clone());
    until(
        gateways.clone(),
        "exit",
        "an unknown node",
        is(GatewayNodeStatus::Unknown),
    )
    .await;
    let renewed =
        json!({"spec": {"renewTime": MicroTime(Timestamp::now()), "leaseDurationSeconds": 3600}});
    let leases = Api::<Lease>::namespaced(client.clone(), "kube-system");
    leases
        .patch(
            "egressgateway-agent-node1",
            &PatchParams::default(),
            &Patch::Merge(&renewed),
        )
        .await
        .unwrap();
    until(
        gateways,
        "exit",
        "a ready node",
        is(GatewayNodeStatus::Ready),
    )
    .await;
    controller.stop().await;
}

#[tokio::test]
async fn the_lease_of_a_node_that_is_gone_is_deleted_once_nobody_renews_it() {
    let server = ApiServer::start();
    let client = server.client();
    let leases = Api::<Lease>::namespaced(client.clone(), "kube-system");
    node(&client, "node1", 1).await;
    for (name, seconds) in [("node1", 1), ("gone", 1), ("unregistered", 3600)] {
        agent_lease(&client, name, seconds).await;
    }
    let uid = leases
        .get("egressgateway-agent-gone")
        .await
        .unwrap()
        .uid()
        .unwrap();
    let controller = Running::start(&client, "a");
    let deleted = await_condition(
        leases.clone(),
        "egressgateway-agent-gone",
        conditions::is_deleted(&uid),
    );
    tokio::time::timeout(PATIENCE, deleted)
        .await
        .expect("nobody renews it")
        .unwrap();
    for name in ["node1", "unregistered"] {
        assert!(
            leases
                .get(&format!("egressgateway-agent-{name}"))
                .await
                .is_ok(),
            "{name}"
        );
    }
    controller.stop().await;
}

#[tokio::test]
async fn writes_that_fail_are_tried_again() {
    let server = ApiServer::start();
    let client = server.client();
    let controller = Running::start(&client, "a");
    leader(&client, "a").await;
    server.fault(Fault::new("create", "egressnodes", 2, Effect::Status(500)));
    server.fault(Fault::new(
        "patch",
        "egressnodes/status",
        2,
        Effect::Status(409),
    ));
    server.fault(Fault::new(
        "patch",
        "egressnodes/status",
        1,
        Effect::Status(500),
    ));
    node(&client, "node1", 1).await;
    addressed(&client, "node1").await;
    controller.stop().await;
}

/// Waits until an event with this reason was written.
async fn told(client: &Client, reason: &str) {
    let events = Api::<Event>::namespaced(client.clone(), "default");
    let so = async {
        while !events
            .list(&ListParams::default())
            .await
            .unwrap()
            .items
            .iter()
            .any(|event| event.reason.as_deref() == Some(reason))
        {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, so)
        .await
        .unwrap_or_else(|_| panic!("{reason} was never told"));
}

#[tokio::test]
async fn what_somebody_should_know_is_told_once_and_only_by_the_leader() {
    let server = ApiServer::start();
    let client = server.client();
    node(&client, "node1", 1).await;
    agent_lease(&client, "node1", 3600).await;
    let first = Running::start(&client, "a");
    leader(&client, "a").await;
    let second = Running::start(&client, "b");
    addressed(&client, "node1").await;
    gateway(&client).await;
    let gateways = Api::<EgressGateway>::all(client.clone());
    until(
        gateways.clone(),
        "exit",
        "a node that is not ready",
        is(GatewayNodeStatus::NotReady),
    )
    .await;
    tunnel_built(&client, "node1").await;
    until(
        gateways.clone(),
        "exit",
        "a ready node",
        is(GatewayNodeStatus::Ready),
    )
    .await;
    policy(&client, "shop", "10.9.0.0/16").await;
    let policies = Api::<EgressGatewayPolicy>::all(client.clone());
    until(policies, "shop", "its gateway", |policy| {
        policy
            .status
            .as_ref()
            .is_some_and(|status| status.egress_gateway.as_deref() == Some("exit"))
    })
    .await;
    // What an agent finds, and has no right to tell itself.
    let finds = async |status: &str, reason: &str| {
        let condition = json!({"type": "PodsTracked", "status": status, "reason": reason, "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let nodes = Api::<EgressNode>::all(client.clone());
        let mut conditions =
            serde_json::to_value(nodes.get("node1").await.unwrap().status.unwrap().conditions)
                .unwrap();
        conditions
            .as_array_mut()
            .unwrap()
            .retain(|condition| condition["type"] != "PodsTracked");
        conditions.as_array_mut().unwrap().push(condition);
        nodes
            .patch_status(
                "node1",
                &PatchParams::default(),
                &Patch::Merge(&json!({"status": {"conditions": conditions}})),
            )
            .await
            .unwrap();
    };
    finds("False", "UntrackedByOthers").await;
    told(&client, "UntrackedByOthers").await;
    first.stop().await;
    leader(&client, "b").await;
    // The new leader finds everything as it is; what it writes next has no news in it.
    node(&client, "node2", 2).await;
    addressed(&client, "node2").await;
    second.stop().await;
    let events = Api::<Event>::namespaced(client, "default")
        .list(&ListParams::default())
        .await
        .unwrap();
    let told = |event: &Event| {
        let regarding = event.regarding.clone().unwrap_or_default();
        let (kind, name, uid) = (
            regarding.kind.unwrap_or_default(),
            regarding.name.unwrap_or_default(),
            regarding.uid.unwrap_or_default(),
        );
        assert!(!uid.is_empty());
        assert_eq!(event.reporting_instance.as_deref(), Some("a"));
        format!(
            "{} {kind} {name} {}",
            event.type_.clone().unwrap_or_default(),
            event.reason.clone().unwrap_or_default()
        )
    };
    let told: BTreeSet<String> = events.items.iter().map(told).collect();
    assert_eq!(events.items.len(), told.len(), "{told:?}");
    let news = [
        "Normal EgressGateway exit ActiveNodesChanged",
        "Normal EgressGateway exit Ready",
        "Warning EgressGateway exit NoReadyNode",
        "Warning EgressNode node1 UntrackedByOthers",
    ];
    assert_eq!(told, news.map(str::to_owned).into());
}

#[tokio::test]
async fn the_grace_time_of_a_drained_node_ends_by_itself() {
    let server = ApiServer::start();
    let client = server.client();
    gateway(&client).await;
    let controller = Running::start(&client, "a");
    for (name, number) in [("node1", 1), ("node2", 2)] {
        node(&client, name, number).await;
        agent_lease(&client, name, 3600).await;
        addressed(&client, name).await;
        tunnel_built(&client, name).await;
    }
    let status_is = async |what: &str, so: fn(&EgressGatewayStatus) -> bool| {
        let gateways = Api::<EgressGateway>::all(client.clone());
        until(gateways, "exit", what, move |gateway| {
            gateway.status.as_ref().is_some_and(so)
        })
        .await
        .status
        .unwrap()
    };
    let before = status_is("two nodes", |status| {
        status
            .node_list
            .iter()
            .filter(|node| node.status == GatewayNodeStatus::Ready)
            .count()
            == 2
    })
    .await;
    let active = before
        .node_list
        .iter()
        .find(|node| node.active)
        .unwrap()
        .name
        .clone();
    let drain = Patch::Merge(
        json!({"metadata": {"annotations": {"egressgateway.spidernet.io/drain": "true"}}}),
    );
    Api::<Node>::all(client.clone())
        .patch(&active, &PatchParams::default(), &drain)
        .await
        .unwrap();
    let draining = status_is("a drained node in its grace time", |status| {
        status.draining.is_some()
    })
    .await;
    assert_eq!(
        (draining.draining.unwrap().node, draining.former_mark),
        (active, before.mark)
    );
    let after = status_is("no grace time", |status| {
        status.former_mark.is_some() && status.draining.is_none()
    })
    .await;
    assert_eq!(
        (after.mark, after.former_mark),
        (draining.mark, draining.former_mark)
    );
    controller.stop().await;
}

/// A controller that leads for ten minutes without a renewal: what waits for the end of its
/// leadership waits longer than any test.
fn patient_leader(client: &Client) -> Running {
    let mut settings = settings("a");
    settings.election.duration = Duration::from_secs(600);
    let controller = Controller::new(client.clone(), settings, Arc::new(LowestFree));
    let (health, shutdown) = (controller.health(), CancellationToken::new());
    Running {
        health,
        task: tokio::spawn(controller.run(shutdown.clone())),
        shutdown,
    }
}

#[tokio::test]
async fn a_controller_ends_when_asked_to_while_the_api_server_owes_it_an_answer() {
    let server = ApiServer::start();
    let client = server.client();
    server.fault(Fault::new(
        "create",
        "egressnodes",
        usize::MAX,
        Effect::Hang,
    ));
    let controller = patient_leader(&client);
    leader(&client, "a").await;
    node(&client, "node1", 1).await;
    tokio::time::timeout(PATIENCE, server.requested("create", "egressnodes", 1))
        .await
        .expect("it asks for an EgressNode");
    controller.stop().await;
}

#[tokio::test]
async fn events_that_nobody_answers_stop_no_plan() {
    let server = ApiServer::start();
    let client = server.client();
    server.fault(Fault::new("create", "events", usize::MAX, Effect::Hang));
    node(&client, "node1", 1).await;
    agent_lease(&client, "node1", 3600).await;
    gateway(&client).await;
    // Leads for a second at a time, and renews that.
    let controller = Running::start(&client, "a");
    addressed(&client, "node1").await;
    tunnel_built(&client, "node1").await;
    tokio::time::timeout(PATIENCE, server.requested("create", "events", 1))
        .await
        .expect("it tells of the active node");
    node(&client, "node2", 2).await;
    addressed(&client, "node2").await;
    controller.stop().await;
}
