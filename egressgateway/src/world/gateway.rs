use std::{collections::BTreeSet, net::IpAddr};

use crate::{
    api::{self, ForwardMethod, GatewayNodeStatus},
    model::{MarkMask, NodeName, TargetId},
    spec::{GatewaySpec, Problem},
};

/// An EgressGateway.
#[derive(Clone, Debug, PartialEq)]
pub struct Gateway {
    /// What is asked, or what is wrong with it.
    pub spec: Result<GatewaySpec, Vec<Problem>>,
    /// What the controller decided.
    pub state: GatewayState,
    /// `metadata.generation`.
    pub generation: i64,
    /// Seconds since 1970 of its creation; 0 where the object has none.
    pub created: i64,
    /// Deletion was asked for.
    pub deleting: bool,
}

/// What the controller decided about a gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GatewayState {
    /// The target "this gateway"; none before it was allotted: its traffic is held.
    pub target: Option<TargetId>,
    /// The forward method in force; none before the controller saw the gateway.
    pub forward_method: Option<ForwardMethod>,
    /// The target of connections from before the last drain of an active node.
    pub former: Option<TargetId>,
    /// The drained node that those still go through.
    pub draining: Option<Draining>,
    /// Its nodes in order of preference.
    pub members: Vec<Member>,
}

/// A drained node in its grace time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draining {
    /// The node.
    pub node: NodeName,
    /// When its connections are moved, in seconds since 1970.
    pub until: i64,
}

/// One node of a gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The node.
    pub node: NodeName,
    /// Whether it can carry traffic.
    pub status: GatewayNodeStatus,
    /// Whether traffic goes to it.
    pub active: bool,
    /// Egress addresses that it answers for.
    pub egress_ips: BTreeSet<IpAddr>,
    /// The target "this node of this gateway".
    pub target: Option<TargetId>,
}

impl Gateway {
    /// From the Kubernetes object; marks are read under `mask`.
    #[must_use]
    pub fn from_api(gateway: &api::EgressGateway, mask: MarkMask) -> Self {
        let status = gateway.status.clone().unwrap_or_default();
        let target = |mark: Option<u32>| mark.and_then(|mark| mask.target(mark));
        let members = status.node_list.into_iter().map(|node| Member {
            node: NodeName::from(node.name),
            status: node.status,
            active: node.active,
            egress_ips: node
                .egress_ips
                .iter()
                .filter_map(|text| text.parse().ok())
                .collect(),
            target: target(node.mark),
        });
        Self {
            spec: GatewaySpec::parse(&gateway.spec),
            state: GatewayState {
                target: target(status.mark),
                forward_method: status.forward_method,
                former: target(status.former_mark),
                draining: status.draining.map(|draining| Draining {
                    node: NodeName::from(draining.node),
                    until: draining.until.0.as_second(),
                }),
                members: members.collect(),
            },
            generation: gateway.metadata.generation.unwrap_or_default(),
            created: super::policy::created(&gateway.metadata),
            deleting: gateway.metadata.deletion_timestamp.is_some(),
        }
    }
}
