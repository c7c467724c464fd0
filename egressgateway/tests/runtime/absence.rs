//! An API server that is away for longer than a Lease lasts: what nobody could see counts against
//! no gateway node.

use std::time::Duration;

use egressgateway::api::{EgressGateway, GatewayNodeStatus};
use egressgateway_testkit::apiserver::ApiServer;
use k8s_openapi::{
    api::coordination::v1::Lease, apimachinery::pkg::apis::meta::v1::MicroTime, jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::task::JoinHandle;

use crate::{
    controller::{Running, addressed, agent_lease, gateway, is, leader, tunnel_built},
    support::{node, until},
};

/// Longer than the Lease of an agent lasts (1 second), also where it has its time twice.
const AWAY: Duration = Duration::from_secs(3);

/// Renews an agent's Lease for as long as this lives, whatever comes of it.
struct Agent(JoinHandle<()>);

impl Agent {
    fn start(client: Client, name: &'static str) -> Self {
        let leases = Api::<Lease>::namespaced(client, "kube-system");
        Self(tokio::spawn(async move {
            loop {
                let renewed =
                    Patch::Merge(json!({"spec": {"renewTime": MicroTime(Timestamp::now())}}));
                let renewal = leases
                    .patch(
                        &format!("egressgateway-agent-{name}"),
                        &PatchParams::default(),
                        &renewed,
                    )
                    .await;
                drop(renewal);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A gateway of two nodes with living agents.
async fn cluster(client: &Client) -> Vec<Agent> {
    gateway(client).await;
    let mut agents = Vec::new();
    for (number, name) in [(1, "node1"), (2, "node2")] {
        node(client, name, number).await;
        agent_lease(client, name, 1).await;
        agents.push(Agent::start(client.clone(), name));
    }
    agents
}

async fn all_ready(client: &Client) {
    for name in ["node1", "node2"] {
        addressed(client, name).await;
        tunnel_built(client, name).await;
    }
    until(
        Api::all(client.clone()),
        "exit",
        "two ready nodes",
        |gateway: &EgressGateway| {
            let nodes = gateway.status.iter().flat_map(|status| &status.node_list);
            nodes
                .filter(|node| node.status == GatewayNodeStatus::Ready)
                .count()
                == 2
        },
    )
    .await;
}

/// Waits until the leader and the agents have renewed their Leases often enough for any of them to
/// go stale meanwhile.
async fn long_enough(server: &ApiServer) {
    server
        .requested("update", "leases", server.count("update", "leases") + 15)
        .await;
    server
        .requested("patch", "leases", server.count("patch", "leases") + 40)
        .await;
}

/// How the API server is away, and who leads when it is back.
#[derive(Clone, Copy, Debug)]
struct Absence {
    hangs: bool,
    another_leader: bool,
}

impl Absence {
    async fn changes_no_gateway(self) {
        let mut server = ApiServer::start();
        let client = server.client();
        let agents = cluster(&client).await;
        let first = Running::start(&client, "a");
        leader(&client, "a").await;
        let second = Running::start(&client, "b");
        all_ready(&client).await;
        long_enough(&server).await;
        let written = server.writes("egressgateways");

        if self.hangs {
            server.pause();
        } else {
            server.stop();
        }
        let mut running = vec![second];
        if self.another_leader {
            first.kill().await;
        } else {
            running.push(first);
        }
        tokio::time::sleep(AWAY).await;
        if self.hangs {
            server.resume();
        } else {
            server.resume_listening();
        }

        long_enough(&server).await;
        assert_eq!(
            server.writes("egressgateways"),
            written,
            "nothing was written about the gateway"
        );
        // Who really is gone is noticed as before.
        drop(agents);
        until(
            Api::all(client.clone()),
            "exit",
            "silent nodes",
            is(GatewayNodeStatus::Unknown),
        )
        .await;
        for controller in running {
            controller.stop().await;
        }
    }
}

#[tokio::test]
async fn an_api_server_that_was_gone_for_longer_than_a_lease_changes_no_gateway() {
    Absence {
        hangs: false,
        another_leader: false,
    }
    .changes_no_gateway()
    .await;
}

#[tokio::test]
async fn nor_does_one_that_was_gone_together_with_the_leader() {
    Absence {
        hangs: false,
        another_leader: true,
    }
    .changes_no_gateway()
    .await;
}

#[tokio::test]
async fn nor_does_one_that_stood_still() {
    Absence {
        hangs: true,
        another_leader: false,
    }
    .changes_no_gateway()
    .await;
}

#[tokio::test]
async fn nor_does_one_that_stood_still_while_the_leader_died() {
    Absence {
        hangs: true,
        another_leader: true,
    }
    .changes_no_gateway()
    .await;
}

#[tokio::test]
async fn a_new_controller_does_not_believe_an_agent_alive_that_was_silent_before() {
    let server = ApiServer::start();
    let client = server.client();
    let mut agents = cluster(&client).await;
    let first = Running::start(&client, "a");
    all_ready(&client).await;
    drop(agents.remove(1));
    let gateways = Api::<EgressGateway>::all(client.clone());
    let second_is_unknown = |gateway: &EgressGateway| {
        let nodes = gateway.status.iter().flat_map(|status| &status.node_list);
        nodes
            .filter(|node| node.status == GatewayNodeStatus::Unknown)
            .map(|node| node.name.as_str())
            .eq(["node2"])
    };
    until(gateways.clone(), "exit", "a silent node", second_is_unknown).await;
    first.stop().await;
    let written = server.writes("egressgateways");
    let second = Running::start(&client, "b");
    leader(&client, "b").await;
    long_enough(&server).await;
    assert_eq!(
        server.writes("egressgateways"),
        written,
        "a Lease that nobody renews proves nothing"
    );
    agents.push(Agent::start(client.clone(), "node2"));
    all_ready(&client).await;
    second.stop().await;
}
