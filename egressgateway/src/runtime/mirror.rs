use std::collections::BTreeMap;

use k8s_openapi::api::coordination::v1::LeaseSpec;
use tokio::time::Instant;

use super::{freshness::Freshness, observed::Observed, shared_cluster::SharedCluster};
use crate::{
    api::{EgressGatewayPolicyStatus, EgressGatewayStatus, EgressNodeStatus},
    model::{GatewayName, NodeName, PolicyName},
    world::Change,
};

/// What a controller's watches, and the answers to its own writes, tell.
#[derive(Debug)]
pub(super) enum Seen {
    World(Change),
    EgressNode(NodeName, Change, Option<Observed<EgressNodeStatus>>),
    Gateway(GatewayName, Change, Option<Observed<EgressGatewayStatus>>),
    Policy(PolicyName, Change, Option<Observed<EgressGatewayPolicyStatus>>),
    Lease(NodeName, Option<Observed<LeaseSpec>>),
}

/// The cluster as it was last seen, and the statuses in it as they are.
#[derive(Debug, Default)]
pub(super) struct Mirror {
    pub(super) cluster: SharedCluster,
    pub(super) freshness: Freshness,
    pub(super) egress_nodes: BTreeMap<NodeName, Observed<EgressNodeStatus>>,
    pub(super) gateways: BTreeMap<GatewayName, Observed<EgressGatewayStatus>>,
    pub(super) policies: BTreeMap<PolicyName, Observed<EgressGatewayPolicyStatus>>,
    pub(super) leases: BTreeMap<NodeName, Observed<LeaseSpec>>,
}

impl Mirror {
    /// Takes in what was seen; true where a plan may come out differently. Echoes from before the last write are ignored.
    pub(super) fn take(&mut self, seen: Seen, now: Instant) -> bool {
        let change = match seen {
            Seen::World(change) => Some(change),
            Seen::EgressNode(name, change, observed) => hold(&mut self.egress_nodes, name, observed).then_some(change),
            Seen::Gateway(name, change, observed) => hold(&mut self.gateways, name, observed).then_some(change),
            Seen::Policy(name, change, observed) => hold(&mut self.policies, name, observed).then_some(change),
            Seen::Lease(node, lease) => {
                let news = self.freshness.observe(&node, lease.as_ref().map(|lease| &lease.status), now);
                hold(&mut self.leases, node, lease);
                return news;
            }
        };
        let news = change.is_some();
        if let Some(change) = change {
            self.cluster.write().apply(change);
        }
        news
    }
}

fn hold<N: Ord, S>(held: &mut BTreeMap<N, Observed<S>>, name: N, observed: Option<Observed<S>>) -> bool {
    match observed {
        None => {
            held.remove(&name);
            true
        }
        Some(observed) if held.get(&name).is_some_and(|held| observed.is_outdated_by(held)) => false,
        Some(observed) => {
            held.insert(name, observed);
            true
        }
    }
}
