use std::{collections::BTreeSet, net::IpAddr};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::{
    api,
    model::{GatewayName, NodeName},
    spec::{PolicySpec, Problem},
};

/// An EgressGatewayPolicy.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// What is asked, or what is wrong with it.
    pub spec: Result<PolicySpec, Vec<Problem>>,
    /// The node that its egress addresses shall be with whenever that one is Ready
    /// ([`Policy::NODE_ANNOTATION`]).
    pub preferred_node: Option<NodeName>,
    /// What the controller decided.
    pub state: PolicyState,
    /// `metadata.generation`.
    pub generation: i64,
    /// Seconds since 1970 of its creation: the older policy wins. 0 where the object has none.
    pub created: i64,
}

/// What the controller decided about a policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyState {
    /// The gateway in force.
    pub gateway: Option<GatewayName>,
    /// Egress addresses in force, at most one of each family.
    pub egress_ip: BTreeSet<IpAddr>,
    /// The node that answers for them.
    pub node: Option<NodeName>,
    /// The node that takes them over once nobody answers for them.
    pub candidate: Option<NodeName>,
}

impl Policy {
    /// The annotation that names the node which a policy's egress addresses shall be with.
    pub const NODE_ANNOTATION: &str = "egressgateway.spidernet.io/node";

    /// From the Kubernetes object.
    #[must_use]
    pub fn from_api(policy: &api::EgressGatewayPolicy) -> Self {
        let status = policy.status.clone().unwrap_or_default();
        let ips = status.egress_ip.unwrap_or_default();
        let annotations = policy.metadata.annotations.as_ref();
        let preferred = annotations
            .and_then(|annotations| annotations.get(Self::NODE_ANNOTATION))
            .filter(|node| !node.is_empty());
        Self {
            spec: PolicySpec::parse(&policy.spec),
            preferred_node: preferred.map(|node| NodeName::from(node.as_str())),
            state: PolicyState {
                gateway: status.egress_gateway.map(GatewayName::from),
                egress_ip: [ips.ipv4, ips.ipv6]
                    .into_iter()
                    .flatten()
                    .filter_map(|text| text.parse().ok())
                    .collect(),
                node: status.node.map(NodeName::from),
                candidate: status.candidate.map(NodeName::from),
            },
            generation: policy.metadata.generation.unwrap_or_default(),
            created: created(&policy.metadata),
        }
    }
}

/// Seconds since 1970 of an object's creation; 0 where it has none.
pub(super) fn created(metadata: &ObjectMeta) -> i64 {
    metadata
        .creation_timestamp
        .as_ref()
        .map_or(0, |time| time.0.as_second())
}
