//! From a plan of the whole cluster to the requests that are needed. Diffs the plan against the
//! cache; unchanged objects get no request.
//!
//! Each change of an object names the version that it was planned on. So a request that reaches the
//! API server late, when another controller leads and has changed the object, is refused by it.

use k8s_openapi::jiff::Timestamp;

use super::{cache::ObjectCache, events::Regarding};
use crate::{
    api::{
        EgressGateway, EgressGatewayPolicy, EgressGatewayPolicyStatus, EgressGatewayStatus,
        EgressNode, EgressNodePhase, EgressNodeStatus,
    },
    controller::{ClusterPlan, Event, events},
    model::{GatewayName, NodeName, PolicyName},
    runtime::kube::{conditions::stamp, observed::Observed},
};

/// The `resourceVersion` that an object must still have.
pub(crate) type Version = Option<String>;

/// One request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Write {
    /// Make a node's EgressNode, owned by the Node with this UID.
    Create(NodeName, String),
    /// Delete the EgressNode with this UID.
    Delete(NodeName, String, Version),
    /// Delete the Lease with this UID, of an agent whose node is gone.
    Forget(NodeName, String, Version),
    /// The controller's part of an EgressNode's status.
    EgressNode(NodeName, EgressNodeStatus, Version),
    /// An EgressGateway's status.
    Gateway(GatewayName, EgressGatewayStatus, Version),
    /// An EgressGatewayPolicy's status.
    Policy(PolicyName, EgressGatewayPolicyStatus, Version),
}

impl Write {
    /// Kind of the object, as a metric label.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Create(..) | Self::Delete(..) | Self::EgressNode(..) => "EgressNode",
            Self::Forget(..) => "Lease",
            Self::Gateway(..) => "EgressGateway",
            Self::Policy(..) => "EgressGatewayPolicy",
        }
    }

    /// The object, as kubectl names it.
    pub(crate) fn object(&self) -> String {
        let name: &dyn std::fmt::Display = match self {
            Self::Create(name, _)
            | Self::Delete(name, ..)
            | Self::Forget(name, ..)
            | Self::EgressNode(name, ..) => name,
            Self::Gateway(name, ..) => name,
            Self::Policy(name, ..) => name,
        };
        format!("{}/{name}", self.kind())
    }

    /// What it does, in words.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Create(name, _) => format!("create EgressNode {name}"),
            Self::Delete(name, ..) => format!("delete EgressNode {name}"),
            Self::Forget(name, ..) => format!("delete the Lease of node {name}, which is gone"),
            Self::EgressNode(name, ..) => format!("write status of EgressNode {name}"),
            Self::Gateway(name, ..) => format!("write status of EgressGateway {name}"),
            Self::Policy(name, ..) => format!("write status of EgressGatewayPolicy {name}"),
        }
    }

    /// What is to be told once it is written, and about which object.
    pub(crate) fn events(&self, cache: &ObjectCache) -> Option<(Regarding, Vec<Event>)> {
        let (regarding, events) = match self {
            Self::Create(..) | Self::Delete(..) | Self::Forget(..) => return None,
            Self::EgressNode(name, next, _) => {
                let held = cache.egress_nodes.get(name)?;
                (
                    Regarding::new::<EgressNode>(name.as_str(), &held.uid),
                    events::of_node(&held.status, next),
                )
            }
            Self::Gateway(name, next, _) => {
                let held = cache.gateways.get(name)?;
                (
                    Regarding::new::<EgressGateway>(name.as_str(), &held.uid),
                    events::of_gateway(&held.status, next),
                )
            }
            Self::Policy(name, next, _) => {
                let held = cache.policies.get(name)?;
                (
                    Regarding::new::<EgressGatewayPolicy>(name.as_str(), &held.uid),
                    events::of_policy(&held.status, next),
                )
            }
        };
        (!events.is_empty()).then_some((regarding, events))
    }
}

/// The requests that lead from what is there to the plan. Addresses come first, then what depends
/// on them.
pub(crate) fn writes(plan: ClusterPlan, cache: &ObjectCache, now: Timestamp) -> Vec<Write> {
    let mut writes = Vec::new();
    let absent = |name: &NodeName| !cache.egress_nodes.contains_key(name);
    writes.extend(
        plan.create
            .into_iter()
            .filter(|(name, _)| absent(name))
            .map(|(name, uid)| Write::Create(name, uid)),
    );
    let uid = |name: NodeName| {
        cache
            .egress_nodes
            .get(&name)
            .map(|held| Write::Delete(name, held.uid.clone(), held.version.clone()))
    };
    writes.extend(plan.delete.into_iter().filter_map(uid));
    let lease = |name: NodeName| {
        cache
            .leases
            .get(&name)
            .map(|held| Write::Forget(name, held.uid.clone(), held.version.clone()))
    };
    writes.extend(plan.forget.into_iter().filter_map(lease));
    for (name, next) in plan.egress_nodes {
        if let Some(held) = cache
            .egress_nodes
            .get(&name)
            .filter(|held| !says(&held.status, &next))
        {
            writes.push(Write::EgressNode(name, next, held.version.clone()));
        }
    }
    for (name, mut next) in plan.gateways {
        let Some(held) = cache.gateways.get(&name) else {
            continue;
        };
        stamp(&mut next.conditions, &held.status.conditions, now);
        if differs(held, &next) {
            writes.push(Write::Gateway(name, next, held.version.clone()));
        }
    }
    for (name, mut next) in plan.policies {
        let Some(held) = cache.policies.get(&name) else {
            continue;
        };
        stamp(&mut next.conditions, &held.status.conditions, now);
        if differs(held, &next) {
            writes.push(Write::Policy(name, next, held.version.clone()));
        }
    }
    writes
}

fn differs<S: PartialEq>(held: &Observed<S>, next: &S) -> bool {
    held.status != *next
}

/// Whether an EgressNode's status says what the controller wants said. That the tunnel is built is
/// the agent's to say.
fn says(held: &EgressNodeStatus, next: &EgressNodeStatus) -> bool {
    let phase = held.phase == next.phase
        || (held.phase, next.phase)
            == (
                Some(EgressNodePhase::Succeeded),
                Some(EgressNodePhase::Init),
            );
    phase
        && held.vxlan_ipv4_ip == next.vxlan_ipv4_ip
        && held.vxlan_ipv6_ip == next.vxlan_ipv6_ip
        && held.tunnel_mac == next.tunnel_mac
        && held.port_blocks == next.port_blocks
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

    use super::*;

    fn ready(second: i64, status: &str) -> Vec<Condition> {
        vec![Condition {
            type_: "Ready".to_owned(),
            status: status.to_owned(),
            reason: "Because".to_owned(),
            message: String::new(),
            observed_generation: None,
            last_transition_time: Time(Timestamp::from_second(second).unwrap()),
        }]
    }

    fn gateway(second: i64, status: &str) -> EgressGatewayStatus {
        EgressGatewayStatus {
            mark: Some(0x1100_0000),
            conditions: ready(second, status),
            ..EgressGatewayStatus::default()
        }
    }

    fn planned(status: EgressGatewayStatus, held: EgressGatewayStatus) -> Vec<Write> {
        let name = GatewayName::from("a");
        let mut cache = ObjectCache::default();
        cache.gateways.insert(
            name.clone(),
            Observed {
                status: held,
                version: Some("7".to_owned()),
                ..Observed::default()
            },
        );
        let plan = ClusterPlan {
            gateways: [(name, status)].into(),
            ..ClusterPlan::default()
        };
        writes(plan, &cache, Timestamp::from_second(99).unwrap())
    }

    #[test]
    fn a_status_that_is_so_already_is_not_written() {
        assert_eq!(planned(gateway(0, "True"), gateway(7, "True")), []);
    }

    #[test]
    fn a_status_that_differs_is_written_with_the_time_of_its_transition_to_the_version_that_was_seen()
     {
        let write = Write::Gateway("a".into(), gateway(99, "False"), Some("7".to_owned()));
        assert_eq!(planned(gateway(0, "False"), gateway(7, "True")), [write]);
    }

    #[test]
    fn a_tunnel_that_the_agent_built_is_not_taken_back() {
        let address = |phase| EgressNodeStatus {
            phase: Some(phase),
            vxlan_ipv4_ip: Some("172.31.0.1/16".to_owned()),
            ..EgressNodeStatus::default()
        };
        assert!(says(
            &address(EgressNodePhase::Succeeded),
            &address(EgressNodePhase::Init)
        ));
        assert!(!says(
            &address(EgressNodePhase::Succeeded),
            &address(EgressNodePhase::Failed)
        ));
        let moved = EgressNodeStatus {
            vxlan_ipv4_ip: Some("172.31.0.2/16".to_owned()),
            ..address(EgressNodePhase::Init)
        };
        assert!(!says(&address(EgressNodePhase::Succeeded), &moved));
    }
}
