//! Marks: one byte for each gateway, and for each of its nodes that answers for egress addresses.

use std::collections::{BTreeMap, BTreeSet};

use super::{Cluster, elected::Elected};
use crate::{
    model::{GatewayName, TargetId},
    plan,
};

/// Gives every target its byte: the one that its status says as long as nobody else has it, else
/// the lowest that is free.
///
/// A second byte of a gateway, which it has from its first drain on, stays with it: the connections
/// that are pinned to it keep their meaning.
///
/// Where two say the same, a gateway comes before a node and the older gateway before the younger
/// one. A node's byte stays while its gateway uses egress addresses at all, so that connections
/// pinned to it keep their meaning when the last address moves away.
///
/// Where pods' own nodes translate, any node of a gateway carries any connection: it needs no byte
/// but its first one.
pub(super) fn allot(cluster: &Cluster, gateways: &mut BTreeMap<GatewayName, Elected>) {
    let mut order: Vec<(i64, GatewayName)> = cluster
        .gateways
        .iter()
        .map(|(name, gateway)| (gateway.created, name.clone()))
        .collect();
    order.sort();
    let mut marks = Marks::default();
    let mut wanted = Vec::new();
    for (_, name) in &order {
        let (Some(gateway), Some(elected)) = (cluster.gateways.get(name), gateways.get_mut(name))
        else {
            continue;
        };
        elected.target = marks.keep(gateway.state.target);
        if elected.target.is_none() && gateway.spec.is_ok() {
            wanted.push((name, None));
        }
    }
    let centralized = |name: &GatewayName| {
        cluster
            .gateways
            .get(name)
            .filter(|gateway| !plan::is_distributed(gateway))
    };
    for (_, name) in &order {
        if let (Some(gateway), Some(elected)) = (centralized(name), gateways.get_mut(name)) {
            elected.former = marks.keep(gateway.state.former);
        }
    }
    for (_, name) in &order {
        let (Some(gateway), Some(elected)) = (centralized(name), gateways.get_mut(name)) else {
            continue;
        };
        let uses_addresses = elected
            .members
            .iter()
            .any(|member| !member.egress_ips.is_empty());
        for (index, member) in elected
            .members
            .iter_mut()
            .enumerate()
            .filter(|_| uses_addresses)
        {
            let before = gateway
                .state
                .members
                .iter()
                .find(|before| before.node == member.node);
            member.target = marks.keep(before.and_then(|before| before.target));
            if member.target.is_none() && !member.egress_ips.is_empty() {
                wanted.push((name, Some(index)));
            }
        }
    }
    // Gateways come first here: a node's mark helps some policies, a gateway's all of them.
    for (name, member) in wanted {
        let Some(elected) = gateways.get_mut(name) else {
            continue;
        };
        let target = marks.take();
        elected.marks_exhausted |= target.is_none();
        match member {
            None => elected.target = target,
            Some(index) => elected.members[index].target = target,
        }
    }
    for (_, name) in &order {
        gateways
            .get_mut(name)
            .into_iter()
            .for_each(|elected| swap_marks(elected, &mut marks));
    }
}

/// New connections of a gateway whose active node was drained get its other byte, so that old ones
/// keep theirs and their way. Where none is left, they are all moved.
fn swap_marks(elected: &mut Elected, marks: &mut Marks) {
    let Some(drained) = elected.drained.take().filter(|_| elected.target.is_some()) else {
        return;
    };
    let Some(other) = elected.former.or_else(|| marks.take()) else {
        return;
    };
    elected.former = elected.target.replace(other);
    elected.draining = Some(drained);
}

#[derive(Default)]
struct Marks {
    taken: BTreeSet<TargetId>,
}

impl Marks {
    fn keep(&mut self, target: Option<TargetId>) -> Option<TargetId> {
        target.filter(|target| self.taken.insert(*target))
    }

    fn take(&mut self) -> Option<TargetId> {
        let free = TargetId::all().find(|target| !self.taken.contains(target));
        self.keep(free)
    }
}
