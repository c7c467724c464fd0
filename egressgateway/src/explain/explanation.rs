use std::{fmt, net::IpAddr};

use serde::Serialize;

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It goes its way as if there were no egress gateway.
    Pass,
    /// It leaves the cluster through an exit.
    Egress,
    /// It is dropped and counted.
    Drop,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pass => "pass",
            Self::Egress => "egress",
            Self::Drop => "drop",
        })
    }
}

/// Why, as a word that stays the same from version to version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Cause {
    /// Pods of the host's network and pods that ended are nobody's subject.
    NotGoverned,
    /// The destination is inside the cluster, or never leaves a link.
    Exempt,
    /// No policy selects the pod.
    NotSelected,
    /// Policies select the pod; none names the destination.
    NoPolicyForDestination,
    /// The policies that would govern the destination except it.
    Exception,
    /// A policy governs the destination and leads to no gateway, or not to a single one: held.
    NoGateway,
    /// A policy governs the destination and its gateway carries it.
    Steered,
    /// A policy governs the destination, and where it leaves can't be said yet.
    Held,
    /// No node of the gateway is ready.
    NoReadyNode,
    /// The tunnel does not lead to the exit in this family.
    NoTunnel,
    /// The exit does not let it out.
    RefusedByExit,
}

/// A node that the connection may leave through.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[non_exhaustive]
pub struct Exit {
    /// The node.
    pub node: String,
    /// The address that the network outside sees; none where the exit has no address of the family.
    pub source: Option<IpAddr>,
}

/// What one object says about the connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Step {
    /// Kind and name, such as `EgressGatewayPolicy shopping`.
    pub object: String,
    /// What it says.
    pub says: String,
}

/// What a new connection meets, and which object said so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Explanation {
    /// The pod, as `namespace/name`.
    pub from: String,
    /// The pod's address of the destination's family; none where it does not matter.
    pub address: Option<IpAddr>,
    /// The node that the pod is on; none where it does not matter.
    pub on: Option<String>,
    /// The destination.
    pub to: IpAddr,
    /// What becomes of the connection.
    pub verdict: Verdict,
    /// Why, as a word.
    pub cause: Cause,
    /// The policy that decides.
    pub policy: Option<String>,
    /// Its gateway.
    pub gateway: Option<String>,
    /// The node that it leaves through; none where there are several, see `exits`.
    pub node: Option<String>,
    /// The address that the network outside sees; none where `exits` have different ones.
    pub source: Option<IpAddr>,
    /// Why, as a sentence.
    pub reason: String,
    /// Every node that it may leave through: one, or all of an ecmp gateway.
    pub exits: Vec<Exit>,
    /// What each object says, in the order in which they are asked.
    pub steps: Vec<Step>,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.from)?;
        if let Some(address) = self.address {
            write!(f, " ({address})")?;
        }
        writeln!(
            f,
            " to {}: {}, because {}",
            self.to, self.verdict, self.reason
        )?;
        for Exit { node, source } in &self.exits {
            match source {
                Some(source) => writeln!(f, "  leaves through {node} as {source}")?,
                None => writeln!(f, "  leaves through {node}")?,
            }
        }
        for Step { object, says } in &self.steps {
            writeln!(f, "  - {object}: {says}")?;
        }
        Ok(())
    }
}
