//! What an operator must be told of a status that is about to change: transitions only, so that a
//! state is told once.

use std::{borrow::Cow, collections::BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::gateways::{ADDRESSES_FREE, ADDRESSES_IN_USE, DELETING};
use crate::api::{
    EgressGatewayPolicyStatus, EgressGatewayStatus, EgressNodePhase, EgressNodeStatus,
};

/// One event about an object.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Event {
    /// Somebody should look.
    pub warning: bool,
    /// In one word, such as `NoReadyNode`.
    pub reason: Cow<'static, str>,
    /// In words.
    pub note: String,
}

/// The reason when other nodes became a gateway's active ones.
pub const ACTIVE_NODES_CHANGED: &str = "ActiveNodesChanged";

/// What is to be told when a gateway's status becomes `new`.
#[must_use]
pub fn of_gateway(old: &EgressGatewayStatus, new: &EgressGatewayStatus) -> Vec<Event> {
    let mut events: Vec<Event> = of_condition("Ready", "Ready", &old.conditions, &new.conditions)
        .into_iter()
        .collect();
    let in_use = |status: &EgressGatewayStatus| {
        let mut found = status
            .conditions
            .iter()
            .filter(|condition| condition.type_ == ADDRESSES_FREE && condition.status == "False");
        found.next().map(|condition| condition.message.clone())
    };
    if let Some(note) = in_use(new).filter(|note| in_use(old).as_ref() != Some(note)) {
        events.push(Event {
            warning: true,
            reason: ADDRESSES_IN_USE.into(),
            note,
        });
    }
    let active = |status: &EgressGatewayStatus| {
        status
            .node_list
            .iter()
            .filter(|node| node.active)
            .map(|node| node.name.clone())
            .collect::<BTreeSet<_>>()
    };
    let (before, after) = (active(old), active(new));
    // A gateway's first election is no change, and that there is no node left is told by the
    // condition.
    if before != after && !old.conditions.is_empty() && !after.is_empty() {
        let names = |set: &BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>().join(", ");
        let before = if before.is_empty() {
            "no node".to_owned()
        } else {
            names(&before)
        };
        events.push(Event {
            warning: false,
            reason: ACTIVE_NODES_CHANGED.into(),
            note: format!("traffic leaves by {} instead of {before}", names(&after)),
        });
    }
    events
}

/// What is to be told when a policy's status becomes `new`.
#[must_use]
pub fn of_policy(old: &EgressGatewayPolicyStatus, new: &EgressGatewayPolicyStatus) -> Vec<Event> {
    let mut events: Vec<Event> =
        of_condition("Accepted", "Accepted", &old.conditions, &new.conditions)
            .into_iter()
            .collect();
    if let (Some(before), Some(after)) = (&old.node, &new.node)
        && before != after
    {
        let note = format!("its egress addresses move from node {before} to {after}");
        events.push(Event {
            warning: false,
            reason: "EgressNodeChanged".into(),
            note,
        });
    }
    if let (Some(before), Some(after)) = (&old.egress_ip, &new.egress_ip) {
        let families = [(&before.ipv4, &after.ipv4), (&before.ipv6, &after.ipv6)].into_iter();
        let changed = families
            .filter_map(|(before, after)| before.as_ref().zip(after.as_ref()))
            .filter(|(before, after)| before != after);
        let notes =
            changed.map(|(before, after)| format!("its egress address {before} becomes {after}"));
        events.extend(notes.map(|note| Event {
            warning: true,
            reason: "EgressIPChanged".into(),
            note,
        }));
    }
    events
}

/// What is to be told when an EgressNode's status becomes `new`.
#[must_use]
pub fn of_node(old: &EgressNodeStatus, new: &EgressNodeStatus) -> Vec<Event> {
    let failed = |status: &EgressNodeStatus| status.phase == Some(EgressNodePhase::Failed);
    let message = || {
        new.conditions
            .first()
            .map(|condition| condition.message.clone())
            .unwrap_or_default()
    };
    match (failed(old), failed(new)) {
        (false, true) => vec![Event {
            warning: true,
            reason: "TunnelPoolExhausted".into(),
            note: message(),
        }],
        (true, false) => {
            vec![Event {
                warning: false,
                reason: "AddressAssigned".into(),
                note: "it has its addresses in the tunnel".to_owned(),
            }]
        }
        _ => Vec::new(),
    }
}

/// Conditions of EgressNodes that agents set: the status that is bad, and the reasons of the events
/// when it begins and when it ends.
const AGENTS: [(&str, &str, &str, &str); 4] = [
    (
        "NetworkOverlap",
        "True",
        "NetworkOverlap",
        "NoNetworkOverlap",
    ),
    (
        "PodNetworksUnknown",
        "True",
        "PodNetworksUnknown",
        "PodNetworksKnown",
    ),
    ("PodsTracked", "False", "UntrackedByOthers", "PodsTracked"),
    ("RelayReady", "False", "RelayNotReady", "RelayReady"),
];

/// What is to be told when an agent has made its EgressNode's status `new`. An agent writes no
/// events itself.
#[must_use]
pub fn of_agent(old: &EgressNodeStatus, new: &EgressNodeStatus) -> Vec<Event> {
    let is_bad = |status: &EgressNodeStatus, name: &str, bad: &str| {
        let mut conditions = status
            .conditions
            .iter()
            .filter(|condition| condition.type_ == name && condition.status == bad);
        conditions.next().map(|condition| condition.message.clone())
    };
    let told = |(name, bad, begins, ends): (&str, &str, &'static str, &'static str)| match (
        is_bad(old, name, bad),
        is_bad(new, name, bad),
    ) {
        (None, Some(note)) => Some(Event {
            warning: true,
            reason: begins.into(),
            note,
        }),
        (Some(_), None) => Some(Event {
            warning: false,
            reason: ends.into(),
            note: format!("{begins} is over"),
        }),
        _ => None,
    };
    AGENTS.into_iter().filter_map(told).collect()
}

/// A condition that took another reason. The reason `good` is told where it follows another one;
/// any other is a warning, also where the condition is True: what works may not go on so. So no
/// reason is forgotten. What somebody asked for is no news.
fn of_condition(
    kind: &str,
    good: &'static str,
    old: &[Condition],
    new: &[Condition],
) -> Option<Event> {
    let find = |conditions: &[Condition]| {
        conditions
            .iter()
            .find(|condition| condition.type_ == kind)
            .cloned()
    };
    let (before, after) = (find(old), find(new)?);
    if before
        .as_ref()
        .is_some_and(|before| (&before.status, &before.reason) == (&after.status, &after.reason))
        || after.reason == DELETING
    {
        return None;
    }
    if after.reason == good {
        return before.map(|_| Event {
            warning: false,
            reason: good.into(),
            note: after.message,
        });
    }
    Some(Event {
        warning: true,
        reason: after.reason.into(),
        note: after.message,
    })
}

#[cfg(test)]
mod tests {
    use super::{super::conditions::condition, *};
    use crate::api::GatewayNode;

    fn gateway(ready: bool, reason: &str, active: &[&str]) -> EgressGatewayStatus {
        let node = |name: &&str| GatewayNode {
            name: (*name).to_owned(),
            active: true,
            ..GatewayNode::default()
        };
        EgressGatewayStatus {
            node_list: active.iter().map(node).collect(),
            conditions: vec![condition(
                "Ready",
                ready,
                reason,
                &format!("because {reason}"),
                Some(1),
            )],
            ..EgressGatewayStatus::default()
        }
    }

    fn policy(accepted: bool, reason: &str, node: Option<&str>) -> EgressGatewayPolicyStatus {
        EgressGatewayPolicyStatus {
            node: node.map(str::to_owned),
            conditions: vec![condition(
                "Accepted",
                accepted,
                reason,
                &format!("because {reason}"),
                Some(1),
            )],
            ..EgressGatewayPolicyStatus::default()
        }
    }

    fn said(events: &[Event]) -> Vec<String> {
        events
            .iter()
            .map(|event| {
                format!(
                    "{} {}: {}",
                    if event.warning { "!" } else { "." },
                    event.reason,
                    event.note
                )
            })
            .collect()
    }

    const NOTHING: [&str; 0] = [];

    #[test]
    fn a_gateway_that_loses_its_last_node_and_gets_one_again_is_told_both_times() {
        let (well, ill) = (
            gateway(true, "Ready", &["a"]),
            gateway(false, "NoReadyNode", &[]),
        );
        assert_eq!(
            said(&of_gateway(&well, &ill)),
            ["! NoReadyNode: because NoReadyNode"]
        );
        let recovered = gateway(true, "Ready", &["b"]);
        assert_eq!(
            said(&of_gateway(&ill, &recovered)),
            [
                ". Ready: because Ready",
                ". ActiveNodesChanged: traffic leaves by b instead of no node"
            ]
        );
    }

    #[test]
    fn another_active_node_is_told_with_the_one_before() {
        let status = |active: &[&str]| gateway(true, "Ready", active);
        assert_eq!(
            said(&of_gateway(&status(&["a"]), &status(&["b"]))),
            [". ActiveNodesChanged: traffic leaves by b instead of a"]
        );
        assert_eq!(
            said(&of_gateway(&status(&["a"]), &status(&["a", "b"]))),
            [". ActiveNodesChanged: traffic leaves by a, b instead of a"]
        );
    }

    #[test]
    fn exhausted_pools_and_marks_are_told_once() {
        for reason in ["PoolExhausted", "MarksExhausted"] {
            let (well, ill) = (
                gateway(true, "Ready", &["a"]),
                gateway(false, reason, &["a"]),
            );
            assert_eq!(
                said(&of_gateway(&well, &ill)),
                [format!("! {reason}: because {reason}")]
            );
            assert_eq!(said(&of_gateway(&ill, &ill)), NOTHING);
            assert_eq!(said(&of_gateway(&ill, &well)), [". Ready: because Ready"]);
        }
        assert_eq!(
            said(&of_gateway(
                &gateway(true, "Ready", &["a"]),
                &gateway(false, "Deleting", &["a"])
            )),
            NOTHING
        );
        let (well, cordoned) = (
            gateway(true, "Ready", &["a"]),
            gateway(true, "OnlyCordonedNodes", &["a"]),
        );
        assert_eq!(
            said(&of_gateway(&well, &cordoned)),
            ["! OnlyCordonedNodes: because OnlyCordonedNodes"],
            "it works, but for how long?"
        );
        assert_eq!(
            said(&of_gateway(&cordoned, &well)),
            [". Ready: because Ready"]
        );
    }

    #[test]
    fn what_begins_well_is_no_news_and_what_begins_badly_is() {
        assert_eq!(
            said(&of_gateway(
                &EgressGatewayStatus::default(),
                &gateway(true, "Ready", &["a"])
            )),
            NOTHING
        );
        assert_eq!(
            said(&of_gateway(
                &EgressGatewayStatus::default(),
                &gateway(false, "NoNodes", &[])
            )),
            ["! NoNodes: because NoNodes"]
        );
        let new = EgressGatewayPolicyStatus::default();
        assert_eq!(
            said(&of_policy(&new, &policy(true, "Accepted", Some("a")))),
            NOTHING
        );
        assert_eq!(
            said(&of_policy(&new, &policy(false, "GatewayNotFound", None))),
            ["! GatewayNotFound: because GatewayNotFound"]
        );
    }

    #[test]
    fn a_policy_is_told_of_its_refusal_its_acceptance_and_the_move_of_its_addresses() {
        let (well, ill) = (
            policy(true, "Accepted", Some("a")),
            policy(false, "Invalid", Some("a")),
        );
        assert_eq!(
            said(&of_policy(&well, &ill)),
            ["! Invalid: because Invalid"]
        );
        assert_eq!(
            said(&of_policy(&ill, &policy(false, "Conflict", Some("a")))),
            ["! Conflict: because Conflict"]
        );
        assert_eq!(
            said(&of_policy(&ill, &well)),
            [". Accepted: because Accepted"]
        );
        let unheard_of = policy(false, "NoRouter", Some("a"));
        assert_eq!(
            said(&of_policy(&well, &unheard_of)),
            ["! NoRouter: because NoRouter"],
            "whatever the reason is"
        );
        let moved = policy(true, "Accepted", Some("b"));
        assert_eq!(
            said(&of_policy(&well, &moved)),
            [". EgressNodeChanged: its egress addresses move from node a to b"]
        );
    }

    #[test]
    fn what_an_agent_finds_is_told_when_it_begins_and_when_it_ends() {
        let status = |conditions: &[(&str, bool)]| EgressNodeStatus {
            conditions: conditions
                .iter()
                .map(|(name, status)| {
                    condition(name, *status, "Reason", &format!("about {name}"), None)
                })
                .collect(),
            ..EgressNodeStatus::default()
        };
        let well = status(&[("TunnelReady", true), ("PodsTracked", true)]);
        let ill = status(&[
            ("TunnelReady", true),
            ("PodsTracked", false),
            ("PodNetworksUnknown", true),
        ]);
        assert_eq!(
            said(&of_agent(&well, &ill)),
            [
                "! PodNetworksUnknown: about PodNetworksUnknown",
                "! UntrackedByOthers: about PodsTracked"
            ]
        );
        assert_eq!(said(&of_agent(&ill, &ill)), NOTHING);
        assert_eq!(
            said(&of_agent(&ill, &well)),
            [
                ". PodNetworksKnown: PodNetworksUnknown is over",
                ". PodsTracked: UntrackedByOthers is over"
            ]
        );
        assert_eq!(
            said(&of_agent(&EgressNodeStatus::default(), &well)),
            NOTHING
        );
    }

    #[test]
    fn a_node_without_an_address_in_the_tunnel_is_told_until_it_has_one() {
        let exhausted = EgressNodeStatus {
            phase: Some(EgressNodePhase::Failed),
            conditions: vec![condition(
                "AddressAssigned",
                false,
                "PoolExhausted",
                &"172.31.0.0/30 is full",
                None,
            )],
            ..EgressNodeStatus::default()
        };
        let assigned = EgressNodeStatus {
            phase: Some(EgressNodePhase::Init),
            ..EgressNodeStatus::default()
        };
        assert_eq!(
            said(&of_node(&EgressNodeStatus::default(), &exhausted)),
            ["! TunnelPoolExhausted: 172.31.0.0/30 is full"]
        );
        assert_eq!(said(&of_node(&exhausted, &exhausted)), NOTHING);
        assert_eq!(
            said(&of_node(&exhausted, &assigned)),
            [". AddressAssigned: it has its addresses in the tunnel"]
        );
        assert_eq!(
            said(&of_node(&EgressNodeStatus::default(), &assigned)),
            NOTHING
        );
    }
}
