//! What the controller knows of the cluster.

use std::collections::BTreeMap;

use k8s_openapi::api::coordination::v1::LeaseSpec;
use tokio::time::Instant;

use super::{events::Regarding, lease_tracker::LeaseTracker, shared_cluster::SharedCluster};
use crate::{
    api::{EgressGatewayPolicyStatus, EgressGatewayStatus, EgressNode, EgressNodeStatus},
    controller::{Event, events},
    model::{GatewayName, NodeName, PolicyName},
    runtime::kube::observed::Observed,
    world::Change,
};

/// An update from the controller's watches, or from the answer to one of its own writes.
#[derive(Debug)]
pub(crate) enum ControllerUpdate {
    World(Change),
    EgressNode(NodeName, Change, Option<Observed<EgressNodeStatus>>),
    Gateway(GatewayName, Change, Option<Observed<EgressGatewayStatus>>),
    Policy(
        PolicyName,
        Change,
        Option<Observed<EgressGatewayPolicyStatus>>,
    ),
    Lease(NodeName, Option<Observed<LeaseSpec>>),
}

impl From<Change> for ControllerUpdate {
    fn from(change: Change) -> Self {
        Self::World(change)
    }
}

/// The cluster as it was last seen, and the statuses in it as they are.
#[derive(Debug, Default)]
pub(crate) struct ObjectCache {
    pub(crate) cluster: SharedCluster,
    pub(crate) lease_tracker: LeaseTracker,
    pub(crate) egress_nodes: BTreeMap<NodeName, Observed<EgressNodeStatus>>,
    pub(crate) gateways: BTreeMap<GatewayName, Observed<EgressGatewayStatus>>,
    pub(crate) policies: BTreeMap<PolicyName, Observed<EgressGatewayPolicyStatus>>,
    pub(crate) leases: BTreeMap<NodeName, Observed<LeaseSpec>>,
    /// What agents were seen to have found since the last call of [`Self::news`].
    pub(crate) news: Vec<(Regarding, Event)>,
}

impl ObjectCache {
    /// What agents have found since the last call.
    pub(crate) fn news(&mut self) -> Vec<(Regarding, Event)> {
        std::mem::take(&mut self.news)
    }

    /// Applies an update; true where a plan may come out differently. Echoes from before the last
    /// write are ignored.
    pub(crate) fn apply(&mut self, update: ControllerUpdate, now: Instant) -> bool {
        let (change, comparison) = match update {
            ControllerUpdate::World(change) => (change, Comparison::Unchanged),
            ControllerUpdate::EgressNode(name, change, observed) => {
                self.news.extend(found(
                    &name,
                    self.egress_nodes.get(&name),
                    observed.as_ref(),
                ));
                (change, put(&mut self.egress_nodes, name, observed))
            }
            ControllerUpdate::Gateway(name, change, observed) => {
                (change, put(&mut self.gateways, name, observed))
            }
            ControllerUpdate::Policy(name, change, observed) => {
                (change, put(&mut self.policies, name, observed))
            }
            ControllerUpdate::Lease(node, lease) => {
                let news = self.lease_tracker.observe(
                    &node,
                    lease.as_ref().map(|lease| &lease.status),
                    now,
                );
                put(&mut self.leases, node, lease);
                return news;
            }
        };
        comparison != Comparison::Outdated
            && (self.cluster.write().apply(change) || comparison == Comparison::Changed)
    }
}

/// What an agent says of its node, compared with what it said before. Of a node that is seen for
/// the first time the former leader has told, unless it is new: then it begins with a status that
/// says nothing.
fn found(
    name: &NodeName,
    held: Option<&Observed<EgressNodeStatus>>,
    seen: Option<&Observed<EgressNodeStatus>>,
) -> Vec<(Regarding, Event)> {
    let (Some(held), Some(seen)) = (held, seen) else {
        return Vec::new();
    };
    if seen.is_outdated_by(held) || seen.uid != held.uid {
        return Vec::new();
    }
    let events = events::of_agent(&held.status, &seen.status);
    events
        .into_iter()
        .map(|event| {
            (
                Regarding::new::<EgressNode>(name.as_str(), &seen.uid),
                event,
            )
        })
        .collect()
}

/// How an update of an object compares with what the cache has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    /// What was seen is older: an echo.
    Outdated,
    /// Status unchanged (heartbeats, and our own write coming back).
    Unchanged,
    /// The status changed, or it is another object.
    Changed,
}

fn put<N: Ord, S: PartialEq>(
    held: &mut BTreeMap<N, Observed<S>>,
    name: N,
    observed: Option<Observed<S>>,
) -> Comparison {
    let before = held.get(&name);
    let same = |before: &Observed<S>, observed: &Observed<S>| {
        before.uid == observed.uid && before.status == observed.status
    };
    let found = match (before, &observed) {
        (Some(before), Some(observed)) if observed.is_outdated_by(before) => {
            return Comparison::Outdated;
        }
        (Some(before), Some(observed)) if same(before, observed) => Comparison::Unchanged,
        (None, None) => Comparison::Unchanged,
        _ => Comparison::Changed,
    };
    match observed {
        Some(observed) => drop(held.insert(name, observed)),
        None => drop(held.remove(&name)),
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::{EgressGateway, IpUsage},
        model::MarkMask,
        world::{Gateway, Node},
    };

    fn gateway(version: u64, usage: Option<IpUsage>) -> ControllerUpdate {
        let status = EgressGatewayStatus {
            ip_usage: usage,
            ..EgressGatewayStatus::default()
        };
        let gateway = EgressGateway {
            status: Some(status.clone()),
            ..EgressGateway::default()
        };
        let change = Change::Gateway(
            "exit".into(),
            Some(Gateway::from_api(&gateway, MarkMask::default())),
        );
        ControllerUpdate::Gateway(
            "exit".into(),
            change,
            Some(Observed {
                status,
                uid: "u".to_owned(),
                version: Some(version.to_string()),
            }),
        )
    }

    #[test]
    fn a_heartbeat_is_no_reason_to_plan_and_whatever_somebody_else_wrote_into_a_status_is() {
        let (mut cache, now) = (ObjectCache::default(), Instant::now());
        let node = |ready| {
            ControllerUpdate::World(Change::Node(
                "a".into(),
                Some(Node {
                    ready,
                    ..Node::default()
                }),
            ))
        };
        assert!(cache.apply(node(true), now));
        assert!(
            !cache.apply(node(true), now),
            "nothing that a plan depends on has changed"
        );
        assert!(cache.apply(node(false), now));
        assert!(cache.apply(gateway(5, None), now));
        assert!(!cache.apply(gateway(6, None), now));
        assert!(
            cache.apply(gateway(7, Some(IpUsage::default())), now),
            "a part of the status that only the next write corrects"
        );
        assert!(!cache.apply(gateway(6, None), now), "an echo from before");
        assert_eq!(
            cache.gateways[&GatewayName::from("exit")].version,
            Some("7".to_owned())
        );
    }
}
