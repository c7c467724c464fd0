//! Labels and names of the Leases that agents hold.

use crate::model::NodeName;

/// Label of the agents' Leases, by which the controller finds them.
pub(crate) const LABEL: &str = "app.kubernetes.io/component";
/// Its value.
pub(crate) const LABEL_VALUE: &str = "egressgateway-agent";
/// A Lease's name is this and the node's name.
const PREFIX: &str = "egressgateway-agent-";

/// The node whose agent holds a Lease of this name; none for others' Leases.
pub(crate) fn node_of(lease: &str) -> Option<NodeName> {
    lease
        .strip_prefix(PREFIX)
        .filter(|node| !node.is_empty())
        .map(NodeName::from)
}

/// Name of the Lease that a node's agent holds.
pub(crate) fn lease_of(node: &NodeName) -> String {
    format!("{PREFIX}{node}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_tells_its_node_by_name() {
        assert_eq!(
            node_of(&lease_of(&NodeName::from("node1"))),
            Some(NodeName::from("node1"))
        );
        assert_eq!(node_of("egressgateway-agent-"), None);
        assert_eq!(node_of("kube-scheduler"), None);
    }
}
