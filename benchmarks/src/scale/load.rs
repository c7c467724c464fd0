//! The nodes that are not in the lab: their kubelets and their agents, as far as the API server
//! hears of them.

use std::time::Duration;

use futures::{StreamExt, stream};
use k8s_openapi::jiff::Timestamp;
use tokio::time::Instant;

use super::{
    objects::LoadNode,
    server::{Server, Tally, each},
    size::{AGENTS, NAMESPACE, Size},
};

/// How often a kubelet says anew how its node is, where nothing changed
/// (`nodeStatusReportFrequency`).
const HEARTBEAT: Duration = Duration::from_secs(300);
/// How often an agent renews its Lease.
const RENEWAL: Duration = Duration::from_secs(10);
/// How many requests of a kind are under way at once.
const CONCURRENCY: usize = 12;
const EGRESS_NODES: &str = "/apis/egressgateway.spidernet.io/v1/egressnodes";

/// The nodes besides those of the lab.
pub(super) fn nodes(size: Size) -> Vec<LoadNode> {
    (0..size.nodes - AGENTS.len()).map(LoadNode).collect()
}

/// Nodes as kubelets register them.
pub(super) async fn register(server: &Server, nodes: &[LoadNode]) -> Result<(), String> {
    let now = now();
    each(nodes, |node| {
        let now = &now;
        async move {
            server.post("/api/v1/nodes", &node.node()).await?;
            server.merge(&status_of(*node), &node.status(now)).await?;
            Ok(())
        }
    })
    .await
}

/// The agents' part of each EgressNode's status; the controller has given them addresses.
pub(super) async fn build_tunnels(server: &Server, nodes: &[LoadNode]) -> Result<(), String> {
    each(nodes, |node| async move {
        server
            .apply(
                &format!("{EGRESS_NODES}/{}/status", node.name()),
                &node.egress_node(),
            )
            .await
            .map(drop)
    })
    .await
}

/// Renews Leases and the nodes' statuses for as long as the runtime lives, evenly spread over time.
pub(super) fn live(server: &Server, nodes: &[LoadNode], tally: &Tally) {
    let begin = Instant::now();
    for (period, renew) in [(RENEWAL, true), (HEARTBEAT, false)] {
        let (server, nodes, tally) = (server.clone(), nodes.to_vec(), tally.clone());
        tokio::spawn(async move {
            let step = period / u32::try_from(nodes.len()).unwrap_or(u32::MAX).max(1);
            // A server that does not keep up is not flooded: it is asked less often.
            let turns = stream::iter((0_u32..).zip(nodes.into_iter().cycle()));
            let turn = |(number, node)| {
                let (server, tally) = (&server, &tally);
                async move {
                    tokio::time::sleep_until(begin + step * number).await;
                    tally.note(if renew {
                        self::renew(server, node).await
                    } else {
                        heartbeat(server, node).await
                    });
                }
            };
            turns.for_each_concurrent(CONCURRENCY, turn).await;
        });
    }
}

async fn renew(server: &Server, node: LoadNode) -> Result<(), String> {
    let lease = node.lease(&now());
    let name = lease["metadata"]["name"].as_str().unwrap_or_default();
    server
        .apply(
            &format!("/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/{name}"),
            &lease,
        )
        .await
        .map(drop)
}

async fn heartbeat(server: &Server, node: LoadNode) -> Result<(), String> {
    server
        .merge(&status_of(node), &node.status(&now()))
        .await
        .map(drop)
}

fn status_of(node: LoadNode) -> String {
    format!("/api/v1/nodes/{}/status", node.name())
}

/// In the form of a Lease's time.
fn now() -> String {
    format!("{:.6}", Timestamp::now())
}
