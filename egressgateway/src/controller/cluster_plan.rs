use std::collections::{BTreeMap, BTreeSet};

use crate::{
    api::{EgressGatewayPolicyStatus, EgressGatewayStatus, EgressNodeStatus},
    model::{GatewayName, NodeName, PolicyName},
};

/// What shall stand in the API server.
///
/// Conditions have no `lastTransitionTime` of their own (1970 stands there): it is the writer's,
/// who knows the clock.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct ClusterPlan {
    /// EgressNodes to make, with the UID of the Node that owns each.
    pub create: BTreeMap<NodeName, String>,
    /// EgressNodes without a Node.
    pub delete: BTreeSet<NodeName>,
    /// Agents' leases without a Node: nobody will renew them.
    pub forget: BTreeSet<NodeName>,
    /// Status of every EgressNode that is or will be: phase (Succeeded only where the agent said
    /// so), addresses, hardware address and port blocks. The other fields are the agent's.
    pub egress_nodes: BTreeMap<NodeName, EgressNodeStatus>,
    /// Status of every gateway.
    pub gateways: BTreeMap<GatewayName, EgressGatewayStatus>,
    /// Status of every policy.
    pub policies: BTreeMap<PolicyName, EgressGatewayPolicyStatus>,
}
