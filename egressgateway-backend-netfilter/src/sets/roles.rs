//! What a node is to a target.

use egressgateway::{
    PolicyDesired,
    model::{SourceNat, TargetId, Verdict},
};

/// What the contents of sets need to know of a desired state.
pub(crate) trait Roles {
    /// Whether connections of a target leave from this node.
    fn exits_here(&self, target: TargetId) -> bool;
    /// Whether this node gives connections with this verdict their source.
    fn translates(&self, target: TargetId, source: SourceNat) -> bool;
    /// Whether others may send here what leaves as itself.
    fn keeps(&self, verdict: &Verdict) -> bool;
}

impl Roles for PolicyDesired {
    fn exits_here(&self, target: TargetId) -> bool {
        self.accepts.contains(&target) || self.exits.contains(&target)
    }

    fn translates(&self, target: TargetId, source: SourceNat) -> bool {
        match source {
            SourceNat::Ports(address) => self.blocks.contains_key(&address),
            _ => self.exits_here(target),
        }
    }

    fn keeps(&self, verdict: &Verdict) -> bool {
        matches!(verdict, Verdict::Egress { target, source_nat: SourceNat::Keep } if self.accepts.contains(target))
    }
}
