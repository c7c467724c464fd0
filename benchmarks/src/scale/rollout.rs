//! The pods: who creates, places, starts and replaces them.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    objects::{self, LoadNode, PodId, Stage},
    server::{Server, each},
    size::{AGENTS, Size},
};
use egressgateway_testkit::lab::constants::{pod_v4, pod_v6};

/// First host number of pods on a node.
const FIRST: u8 = 10;

/// The pods that there are, and their nodes' free addresses.
pub(super) struct Pods {
    size: Size,
    placed: BTreeMap<PodId, Place>,
    next: Vec<u8>,
}

#[derive(Clone)]
struct Place {
    node: usize,
    addresses: [String; 2],
}

impl Pods {
    pub(super) const fn new(size: Size) -> Self {
        Self {
            size,
            placed: BTreeMap::new(),
            next: Vec::new(),
        }
    }

    /// Addresses of the pods that are chosen, by what names them and by the number of their node.
    pub(super) fn addresses(&self, chosen: impl Fn(PodId, usize) -> bool) -> BTreeSet<String> {
        self.placed
            .iter()
            .filter(|(id, place)| chosen(**id, place.node))
            .flat_map(|(_, place)| place.addresses.clone())
            .collect()
    }

    /// A free pair of addresses on a node; they come around again when all were used.
    fn place(&mut self, node: usize) -> Place {
        self.next.resize(self.size.nodes, FIRST);
        let host = self.next[node];
        self.next[node] = if host == u8::MAX - 1 { FIRST } else { host + 1 };
        let addresses = if let Some(number) = node.checked_sub(AGENTS.len()) {
            LoadNode(number).pod(host)
        } else {
            let number = u8::try_from(node + 1).unwrap_or(u8::MAX);
            [
                pod_v4(number, host).to_string(),
                pod_v6(number, host).to_string(),
            ]
        };
        Place { node, addresses }
    }

    /// All pods, running.
    pub(super) async fn create(&mut self, server: &Server) -> Result<(), String> {
        let Size { pods, policies, .. } = self.size;
        let new = (0..pods).map(|number| PodId {
            app: number % policies,
            replica: number / policies,
            generation: 0,
        });
        let new: Vec<_> = new
            .map(|id| (id, self.place(id.node(&self.size))))
            .collect();
        each(&new, |(id, place)| run(server, *id, place)).await?;
        self.placed.extend(new);
        Ok(())
    }

    /// Replaces pods as Deployments do: a new one runs before the old one goes. Whole applications,
    /// one after the other.
    pub(super) async fn replace(&mut self, server: &Server) -> Result<Vec<PodId>, String> {
        let old: Vec<_> = self
            .placed
            .iter()
            .take(self.size.rollout)
            .map(|(id, place)| (*id, place.clone()))
            .collect();
        let changes: Vec<_> = old
            .into_iter()
            .map(|(id, place)| {
                (
                    id,
                    place,
                    PodId {
                        generation: id.generation + 1,
                        ..id
                    },
                    self.place(id.node(&self.size)),
                )
            })
            .collect();
        each(&changes, |(old, before, new, place)| async move {
            run(server, *new, place).await?;
            end(server, *old, before).await
        })
        .await?;
        let replaced = changes.iter().map(|(old, ..)| *old).collect();
        for (old, _, new, place) in changes {
            self.placed.remove(&old);
            self.placed.insert(new, place);
        }
        Ok(replaced)
    }

    /// One more pod on each of the first nodes.
    pub(super) async fn one_more_each(
        &mut self,
        server: &Server,
        nodes: usize,
    ) -> Result<(), String> {
        let new: Vec<_> = (0..nodes)
            .map(|node| {
                (
                    PodId {
                        app: node,
                        replica: self.size.pods,
                        generation: 0,
                    },
                    self.place(node),
                )
            })
            .collect();
        each(&new, |(id, place)| run(server, *id, place)).await?;
        self.placed.extend(new);
        Ok(())
    }
}

fn node_name(number: usize) -> String {
    number.checked_sub(AGENTS.len()).map_or_else(
        || AGENTS[number].0.to_owned(),
        |number| LoadNode(number).name(),
    )
}

/// Created by a ReplicaSet, placed by the scheduler, started by a kubelet.
async fn run(server: &Server, id: PodId, place: &Place) -> Result<(), String> {
    let path = format!("{}/{}", id.path(), id.name());
    server.post(&id.path(), &objects::pod(id)).await?;
    server
        .post(
            &format!("{path}/binding"),
            &objects::binding(id, &node_name(place.node)),
        )
        .await?;
    for stage in [Stage::Creating, Stage::Ready] {
        server
            .merge(
                &format!("{path}/status"),
                &objects::pod_status(&place.addresses, stage),
            )
            .await?;
    }
    Ok(())
}

/// Deleted by a ReplicaSet, stopped and taken away by a kubelet.
async fn end(server: &Server, id: PodId, place: &Place) -> Result<(), String> {
    let path = format!("{}/{}", id.path(), id.name());
    server.delete(&path, 30).await?;
    server
        .merge(
            &format!("{path}/status"),
            &objects::pod_status(&place.addresses, Stage::Ended),
        )
        .await?;
    server.delete(&path, 0).await.map(drop)
}
