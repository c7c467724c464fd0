//! Gateways as they will be.

use std::{collections::BTreeSet, net::IpAddr};

use crate::{
    api::{ForwardMethod, GatewayNodeStatus},
    model::{NodeName, TargetId},
    world::Draining,
};

/// A gateway as it will be.
#[derive(Clone, Debug, Default)]
pub(super) struct Elected {
    pub(super) method: ForwardMethod,
    pub(super) members: Vec<ElectedMember>,
    pub(super) target: Option<TargetId>,
    /// Of connections from before the last drain.
    pub(super) former: Option<TargetId>,
    /// Where those go on.
    pub(super) draining: Option<Draining>,
    /// Its grace time begins with this plan: the two targets change places, if there is a second.
    pub(super) drained: Option<Draining>,
    /// A mark was wanted for it or a member, and none was left.
    pub(super) marks_exhausted: bool,
}

/// One node of a gateway as it will be.
#[derive(Clone, Debug)]
pub(super) struct ElectedMember {
    pub(super) node: NodeName,
    pub(super) status: GatewayNodeStatus,
    /// Others are preferred.
    pub(super) cordoned: bool,
    pub(super) active: bool,
    pub(super) egress_ips: BTreeSet<IpAddr>,
    pub(super) target: Option<TargetId>,
}

impl ElectedMember {
    pub(super) fn is_ready(&self) -> bool {
        self.status == GatewayNodeStatus::Ready
    }
}

impl Elected {
    pub(super) fn member(&self, node: &NodeName) -> Option<&ElectedMember> {
        self.members.iter().find(|member| member.node == *node)
    }

    /// The nodes that new traffic goes to: the Ready ones that are not cordoned or, without any,
    /// all Ready ones.
    pub(super) fn preferred(&self) -> impl Iterator<Item = &ElectedMember> {
        let only_cordoned = self.has_only_cordoned();
        self.members
            .iter()
            .filter(move |member| member.is_ready() && (only_cordoned || !member.cordoned))
    }

    /// Whether all nodes that can carry traffic are cordoned.
    pub(super) fn has_only_cordoned(&self) -> bool {
        let mut ready = self
            .members
            .iter()
            .filter(|member| member.is_ready())
            .peekable();
        ready.peek().is_some() && ready.all(|member| member.cordoned)
    }
}
