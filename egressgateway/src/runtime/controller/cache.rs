use std::collections::BTreeMap;

use k8s_openapi::api::coordination::v1::LeaseSpec;
use tokio::time::Instant;

use super::{events::Regarding, lease_tracker::Freshness, shared_cluster::SharedCluster};
use crate::{
    api::{EgressGatewayPolicyStatus, EgressGatewayStatus, EgressNode, EgressNodeStatus},
    controller::{Event, events},
    model::{GatewayName, NodeName, PolicyName},
    runtime::kube::observed::Observed,
    world::Change,
};

/// What a controller's watches, and the answers to its own writes, tell.
#[derive(Debug)]
pub(crate) enum Seen {
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

impl From<Change> for Seen {
    fn from(change: Change) -> Self {
        Self::World(change)
    }
}

/// The cluster as it was last seen, and the statuses in it as they are.
#[derive(Debug, Default)]
pub(crate) struct Mirror {
    pub(crate) cluster: SharedCluster,
    pub(crate) freshness: Freshness,
    pub(crate) egress_nodes: BTreeMap<NodeName, Observed<EgressNodeStatus>>,
    pub(crate) gateways: BTreeMap<GatewayName, Observed<EgressGatewayStatus>>,
    pub(crate) policies: BTreeMap<PolicyName, Observed<EgressGatewayPolicyStatus>>,
    pub(crate) leases: BTreeMap<NodeName, Observed<LeaseSpec>>,
    /// What agents were seen to have found since the last call of [`Self::news`].
    pub(crate) news: Vec<(Regarding, Event)>,
}

impl Mirror {
    /// What agents have found since the last call.
    pub(crate) fn news(&mut self) -> Vec<(Regarding, Event)> {
        std::mem::take(&mut self.news)
    }

    /// Takes in what was seen; true where a plan may come out differently. Echoes from before the
    /// last write are ignored.
    pub(crate) fn take(&mut self, seen: Seen, now: Instant) -> bool {
        let (change, held) = match seen {
            Seen::World(change) => (change, Held::Same),
            Seen::EgressNode(name, change, observed) => {
                self.news.extend(found(
                    &name,
                    self.egress_nodes.get(&name),
                    observed.as_ref(),
                ));
                (change, hold(&mut self.egress_nodes, name, observed))
            }
            Seen::Gateway(name, change, observed) => {
                (change, hold(&mut self.gateways, name, observed))
            }
            Seen::Policy(name, change, observed) => {
                (change, hold(&mut self.policies, name, observed))
            }
            Seen::Lease(node, lease) => {
                let news =
                    self.freshness
                        .observe(&node, lease.as_ref().map(|lease| &lease.status), now);
                hold(&mut self.leases, node, lease);
                return news;
            }
        };
        held != Held::Newer && (self.cluster.write().apply(change) || held == Held::Other)
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

/// How what was held of an object compares with what was seen of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    /// It is newer: what was seen is an echo.
    Newer,
    /// The status is the same; heartbeats are so, and echoes of the last write.
    Same,
    /// The status is another one, or the object is.
    Other,
}

fn hold<N: Ord, S: PartialEq>(
    held: &mut BTreeMap<N, Observed<S>>,
    name: N,
    observed: Option<Observed<S>>,
) -> Held {
    let before = held.get(&name);
    let same = |before: &Observed<S>, observed: &Observed<S>| {
        before.uid == observed.uid && before.status == observed.status
    };
    let found = match (before, &observed) {
        (Some(before), Some(observed)) if observed.is_outdated_by(before) => return Held::Newer,
        (Some(before), Some(observed)) if same(before, observed) => Held::Same,
        (None, None) => Held::Same,
        _ => Held::Other,
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

    fn gateway(version: u64, usage: Option<IpUsage>) -> Seen {
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
        Seen::Gateway(
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
        let (mut mirror, now) = (Mirror::default(), Instant::now());
        let node = |ready| {
            Seen::World(Change::Node(
                "a".into(),
                Some(Node {
                    ready,
                    ..Node::default()
                }),
            ))
        };
        assert!(mirror.take(node(true), now));
        assert!(
            !mirror.take(node(true), now),
            "nothing that a plan depends on has changed"
        );
        assert!(mirror.take(node(false), now));
        assert!(mirror.take(gateway(5, None), now));
        assert!(!mirror.take(gateway(6, None), now));
        assert!(
            mirror.take(gateway(7, Some(IpUsage::default())), now),
            "a part of the status that only the next write corrects"
        );
        assert!(!mirror.take(gateway(6, None), now), "an echo from before");
        assert_eq!(
            mirror.gateways[&GatewayName::from("exit")].version,
            Some("7".to_owned())
        );
    }
}
