use std::collections::{BTreeMap, BTreeSet};

use super::{Cluster, egress_ips::Leases, gateways::Elected};
use crate::model::{GatewayName, NodeName, TargetId};

/// A target: a gateway, or one of its nodes.
type Owner = (GatewayName, Option<NodeName>);

/// Which target has which byte. What was allotted stays as long as its owner does, so that pinned connections keep their meaning.
#[derive(Debug, Default)]
pub(super) struct Marks {
    allotted: BTreeMap<Owner, TargetId>,
    short: BTreeSet<GatewayName>,
}

impl Marks {
    /// The target "this gateway".
    pub(super) fn gateway(&self, gateway: &GatewayName) -> Option<TargetId> {
        self.allotted.get(&(gateway.clone(), None)).copied()
    }

    /// The target "this node of this gateway".
    pub(super) fn member(&self, gateway: &GatewayName, node: &NodeName) -> Option<TargetId> {
        self.allotted.get(&(gateway.clone(), Some(node.clone()))).copied()
    }

    /// No byte was left for one of the gateway's targets.
    pub(super) fn is_short(&self, gateway: &GatewayName) -> bool {
        self.short.contains(gateway)
    }
}

/// Allots bytes: kept ones first (the older gateway's, where two claim one), then the lowest free one to each gateway, then to each node
/// that answers for an egress address.
pub(super) fn allot(cluster: &Cluster, members: &BTreeMap<GatewayName, Vec<Elected>>, leases: &Leases) -> Marks {
    let mut order: Vec<&GatewayName> = cluster.gateways.keys().collect();
    order.sort_by_key(|name| (cluster.gateways.get(*name).map(|gateway| gateway.created), *name));
    let mut marks = Marks::default();
    let mut used = BTreeSet::new();
    let mut keep = |owner: Owner, target: Option<TargetId>| {
        if let Some(target) = target.filter(|target| used.insert(*target)) {
            marks.allotted.insert(owner, target);
        }
    };
    for name in &order {
        let Some(gateway) = cluster.gateways.get(*name) else { continue };
        keep(((*name).clone(), None), gateway.state.target);
        let present = |node: &NodeName| members.get(*name).is_some_and(|members| members.iter().any(|member| member.node == *node));
        for member in gateway.state.members.iter().filter(|member| present(&member.node)) {
            keep(((*name).clone(), Some(member.node.clone())), member.target);
        }
    }
    let gateways = order.iter().map(|name| ((*name).clone(), None));
    let nodes = order.iter().flat_map(|name| {
        let members = members.get(*name).into_iter().flatten();
        let owners = members.filter(|member| !leases.of_node(name, &member.node).is_empty());
        owners.map(|member| ((*name).clone(), Some(member.node.clone()))).collect::<Vec<_>>()
    });
    for owner in gateways.chain(nodes).collect::<Vec<_>>() {
        if marks.allotted.contains_key(&owner) {
            continue;
        }
        match TargetId::all().find(|target| !used.contains(target)) {
            Some(target) => {
                used.insert(target);
                marks.allotted.insert(owner, target);
            }
            None => drop(marks.short.insert(owner.0)),
        }
    }
    marks
}
