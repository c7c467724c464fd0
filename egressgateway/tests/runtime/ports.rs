//! An agent asks for ports of an egress address, the controller gives them, and the agent uses them.

use egressgateway::{
    api::{
        AddressPorts, EgressGateway, EgressGatewayPolicy, EgressNode, EgressNodePhase, PortsWanted,
    },
    model::{PortBlock, SourceNat, Verdict},
};
use egressgateway_testkit::apiserver::ApiServer;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::{Value, json};

use crate::{
    controller::{Running as Controller, addressed, agent_lease, leader, tunnel_built},
    kernel::{Held, Kernel},
    support::{NODE, Running, node, pod, policy, put, settings, until},
};

const ADDRESS: &str = "10.6.1.60";

/// Two nodes, of which the agent under test is on the first, and a gateway of the second.
async fn cluster(client: &Client) {
    node(client, NODE, 1).await;
    node(client, "node2", 2).await;
    let spec = json!({
        "nodeSelector": {"matchLabels": {"kubernetes.io/hostname": "node2"}},
        "sourceNAT": "EgressIP",
        "egressIPs": {"ipv4": [ADDRESS]},
        "nat": "Distributed",
    });
    let gateways = Api::<EgressGateway>::all(client.clone());
    put(
        &gateways,
        json!({"metadata": {"name": "exit"}, "spec": spec}),
    )
    .await;
    policy(client, "shop", "10.9.0.0/16").await;
    pod(client, "pod1", NODE, "10.0.1.1").await;
}

async fn node2_is_ready(client: &Client) {
    agent_lease(client, "node2", 3600).await;
    addressed(client, "node2").await;
    tunnel_built(client, "node2").await;
}

fn is_steered(held: &Held) -> bool {
    let source_nat = SourceNat::Ports(ADDRESS.parse().unwrap());
    let mut verdicts = held.policy.destinations.values();
    verdicts.any(
        |verdict| matches!(verdict, Verdict::Egress { source_nat: of, .. } if *of == source_nat),
    )
}

async fn blocks(client: &Client, what: &str, so: impl Fn(&[AddressPorts]) -> bool) -> EgressNode {
    let nodes = Api::<EgressNode>::all(client.clone());
    until(nodes, NODE, what, |node| {
        node.status
            .as_ref()
            .is_some_and(|status| so(&status.port_blocks))
    })
    .await
}

async fn change(client: &Client, nat: &str) {
    let patch = Patch::Merge(json!({"spec": {"nat": nat}}));
    let gateways = Api::<EgressGateway>::all(client.clone());
    gateways
        .patch("exit", &PatchParams::default(), &patch)
        .await
        .unwrap();
}

#[tokio::test]
async fn the_agent_asks_the_controller_gives_and_the_agent_translates_to_what_it_was_given() {
    let server = ApiServer::start();
    let (client, kernel) = (server.client(), Kernel::new());
    cluster(&client).await;
    let controller = Controller::start(&client, "a");
    node2_is_ready(&client).await;
    let agent = Running::start(&client, &kernel, settings());
    let held = kernel
        .until("ports of the egress address", is_steered)
        .await;
    let node = blocks(&client, "ports and a tunnel", |blocks| !blocks.is_empty()).await;
    let status = node.status.unwrap();
    let wanted = PortsWanted {
        address: ADDRESS.to_owned(),
        units: 4,
    };
    assert_eq!(status.ports_wanted, [wanted]);
    let [given] = &status.port_blocks[..] else {
        panic!("{:?}", status.port_blocks)
    };
    assert_eq!(
        (given.address.as_str(), given.last - given.first),
        (ADDRESS, 1023)
    );
    let block = PortBlock::of_ports(given.first, given.last).unwrap();
    let used: Vec<_> = held.policy.blocks.iter().collect();
    assert_eq!(
        used,
        [(&ADDRESS.parse().unwrap(), &imbl::OrdSet::unit(block))]
    );
    assert!(
        status.vxlan_ipv4_ip.is_some(),
        "what the controller says besides"
    );
    assert_eq!(
        status.phase,
        Some(EgressNodePhase::Succeeded),
        "what the agent says besides"
    );

    // Pods that come and go are no writes, and neither is a new leader or a new agent.
    let written = server.writes("egressnodes");
    pod(&client, "pod2", NODE, "10.0.1.2").await;
    let pods = Api::<Pod>::namespaced(client.clone(), "default");
    pods.delete("pod1", &DeleteParams::default()).await.unwrap();
    kernel
        .until("the other pod", |held| {
            held.policy
                .pods
                .keys()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                == ["10.0.1.2"]
        })
        .await;
    controller.stop().await;
    let controller = Controller::start(&client, "b");
    leader(&client, "b").await;
    // Nobody needs the ports while the agent starts, and the next pod finds them.
    pods.delete("pod2", &DeleteParams::default()).await.unwrap();
    kernel
        .until("no pod", |held| held.policy.pods.is_empty())
        .await;
    agent.stop().await;
    let agent = Running::start(&client, &kernel, settings());
    agent.until_ready().await;
    agent
        .until_metric("egressgateway_agent_lease_renewals_total", 1.0)
        .await;
    pod(&client, "pod3", NODE, "10.0.1.3").await;
    kernel
        .until("ports of the egress address", is_steered)
        .await;
    // The policy's status is written by the same plans.
    policy(&client, "more", "10.20.0.0/16").await;
    let policies = Api::<EgressGatewayPolicy>::all(client.clone());
    until(policies, "more", "a status", |policy| {
        policy.status.is_some()
    })
    .await;
    assert_eq!(server.writes("egressnodes"), written);
    agent.stop().await;
    controller.stop().await;
}

#[tokio::test]
async fn blocks_that_somebody_wrote_are_put_right_and_go_with_the_translation() {
    let server = ApiServer::start();
    let (client, kernel) = (server.client(), Kernel::new());
    cluster(&client).await;
    let controller = Controller::start(&client, "a");
    node2_is_ready(&client).await;
    let agent = Running::start(&client, &kernel, settings());
    kernel
        .until("ports of the egress address", is_steered)
        .await;
    let meddle = async |blocks: Value| {
        let nodes = Api::<EgressNode>::all(client.clone());
        let patch = Patch::Merge(json!({"status": {"portBlocks": blocks}}));
        nodes
            .patch_status(NODE, &PatchParams::default(), &patch)
            .await
            .unwrap();
    };
    let other = "10.6.1.99";
    meddle(json!([{"address": other, "first": 2048, "last": 3071}])).await;
    let is_right = |blocks: &[AddressPorts]| {
        blocks.len() == 1
            && blocks[0].address == ADDRESS
            && blocks[0].last - blocks[0].first == 1023
    };
    blocks(&client, "ports of the address that is in use", is_right).await;
    change(&client, "Centralized").await;
    blocks(&client, "no ports", <[_]>::is_empty).await;
    kernel
        .until("no translation of its own", |held| {
            !is_steered(held) && held.policy.blocks.is_empty()
        })
        .await;
    meddle(json!([{"address": other, "first": 2048, "last": 3071}])).await;
    blocks(&client, "no ports", <[_]>::is_empty).await;
    change(&client, "Distributed").await;
    blocks(&client, "ports again", is_right).await;
    kernel
        .until("ports of the egress address", is_steered)
        .await;
    agent.stop().await;
    controller.stop().await;
}
