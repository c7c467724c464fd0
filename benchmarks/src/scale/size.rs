//! How large the cluster is, and the names that it has whatever its size.

/// Where the chart is installed.
pub(super) const NAMESPACE: &str = "egress";
/// The gateway that most policies name: traffic leaves with the node's address.
pub(super) const PLAIN: &str = "exit";
/// The gateway that every tenth policy names: traffic leaves with an egress address of the policy's
/// own.
pub(super) const ADDRESSED: &str = "addressed";
/// The nodes whose agents are real, and the gateway that each belongs to, by the label `exit`.
pub const AGENTS: [(&str, Option<&str>); 4] = [
    ("client-1", None),
    ("client-2", None),
    ("gateway-1", Some(PLAIN)),
    ("gateway-2", Some(ADDRESSED)),
];
/// The agent that follows all pods: egress addresses live on its node, so it must know whose they
/// are.
pub const FOLLOWER: &str = "gateway-2";

/// How large the cluster is.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Nodes, those of the lab included.
    pub nodes: usize,
    /// Pods, as many on each node.
    pub pods: usize,
    /// Policies, each for the pods of one application.
    pub policies: usize,
    /// Pods that are replaced in a rollout.
    pub rollout: usize,
}

impl Size {
    /// # Errors
    /// Names the number that does not fit, and the rule.
    pub fn check(&self) -> Result<(), String> {
        let Self {
            nodes,
            pods,
            policies,
            rollout,
        } = *self;
        let rules = [
            (
                nodes > AGENTS.len() && nodes <= 10_000,
                format!(
                    "nodes: {nodes}: must be between {} and 10000",
                    AGENTS.len() + 1
                ),
            ),
            (
                policies > 0 && policies <= 10_000,
                format!("policies: {policies}: must be between 1 and 10000"),
            ),
            (
                pods >= policies && pods / nodes <= 100,
                format!(
                    "pods: {pods}: must be at least one for each policy and at most 100 for each node"
                ),
            ),
            (
                rollout > 0 && rollout <= pods,
                format!("rollout: {rollout}: must be at least 1 and no more than the pods"),
            ),
        ];
        rules
            .into_iter()
            .find(|(holds, _)| !holds)
            .map_or(Ok(()), |(_, rule)| Err(rule))
    }
}
