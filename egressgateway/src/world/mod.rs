//! The cluster as the gateway sees it: Kubernetes objects trimmed to what egress needs.
//!
//! Whatever an API server can hand out is accepted here: parts that can't be parsed are left out or
//! kept as [`Problem`](crate::spec::Problem)s, never a reason to stop.

mod gateway;
mod node;
mod objects;
mod pod;
mod policy;

use std::sync::Arc;

use ipnet::IpNet;

pub use gateway::{Draining, Gateway, GatewayState, Member};
pub use node::{EgressNode, Node};
pub(crate) use objects::set_object;
pub use pod::{Namespace, Pod, PodAddresses};
pub use policy::{Policy, PolicyState};

pub use crate::model::Labels;
use crate::model::{GatewayName, NodeName, PodName, PolicyName};

/// An object was added, changed or (`None`) deleted.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A pod that can be governed; gone too when it ended or uses the host's network.
    Pod(PodName, Option<Pod>),
    /// A namespace.
    Namespace(Arc<str>, Option<Namespace>),
    /// A node.
    Node(NodeName, Option<Node>),
    /// A node's end of the tunnel.
    EgressNode(NodeName, Option<EgressNode>),
    /// A gateway.
    Gateway(GatewayName, Option<Gateway>),
    /// A policy.
    Policy(PolicyName, Option<Policy>),
    /// Networks of the cluster that nodes don't tell, such as those of services.
    ClusterNetworks(Vec<IpNet>),
    /// Networks of pods of all nodes that the CNI's objects tell.
    PodNetworks(Vec<IpNet>),
}
