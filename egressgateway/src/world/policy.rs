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
}

impl Policy {
    /// From the Kubernetes object.
    #[must_use]
    pub fn from_api(policy: &api::EgressGatewayPolicy) -> Self {
        let status = policy.status.clone().unwrap_or_default();
        let ips = status.egress_ip.unwrap_or_default();
        Self {
            spec: PolicySpec::parse(&policy.spec),
            state: PolicyState {
                gateway: status.egress_gateway.map(GatewayName::from),
                egress_ip: [ips.ipv4, ips.ipv6].into_iter().flatten().filter_map(|text| text.parse().ok()).collect(),
                node: status.node.map(NodeName::from),
            },
            generation: policy.metadata.generation.unwrap_or_default(),
            created: created(&policy.metadata),
        }
    }
}

/// Seconds since 1970 of an object's creation; 0 where it has none.
pub(super) fn created(metadata: &ObjectMeta) -> i64 {
    metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second())
}
