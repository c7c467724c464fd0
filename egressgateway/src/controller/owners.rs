//! Which node answers for the egress addresses of a policy.
//!
//! A node whose agent lives lets go of an address as soon as the API server says that another one
//! has it, and that one asks the network until it has. A node whose agent is gone lets go of
//! nothing as long as its kernel lives: there the addresses stay, and a **candidate** asks the
//! network. Once nobody answers, it has them.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{
    Cluster,
    assignment::{EgressIpAssignment, EgressIpRequest},
    elected::{Elected, ElectedMember},
    health::can_carry,
};
use crate::{
    model::{GatewayName, NodeName},
    plan,
};

/// Finds the node of each: the one that somebody asked for, while that is Ready; else the one that
/// it has, while no Ready node is better; else the best Ready one. Without any, it stays where it
/// was.
///
/// A node is better that has a network which holds the addresses, where neighbours ask for them; of
/// two alike, the one that new traffic may go to. Of several of the best, new addresses go to the
/// one with the fewest.
pub(super) fn place(
    cluster: &Cluster,
    asking: &[EgressIpRequest],
    given: &mut [EgressIpAssignment],
    gateways: &BTreeMap<GatewayName, Elected>,
) {
    let mut load: BTreeMap<(&GatewayName, NodeName), usize> = BTreeMap::new();
    let mut waiting = Vec::new();
    for (asking, given) in asking
        .iter()
        .zip(given)
        .filter(|(_, given)| !given.addresses.is_empty())
    {
        let Some(gateway) = gateways.get(asking.gateway) else {
            continue;
        };
        let placing = Placing::new(cluster, asking, gateway, &given.addresses);
        match placing.sticky() {
            Some(node) => {
                *load.entry((asking.gateway, node.clone())).or_default() += given.addresses.len();
                placing.place(node, given);
            }
            None => waiting.push((asking, placing, given)),
        }
    }
    for (asking, placing, given) in waiting {
        let load_of = |node: &NodeName| {
            load.get(&(asking.gateway, node.clone()))
                .copied()
                .unwrap_or_default()
        };
        match placing.best(load_of) {
            Some(node) => {
                *load.entry((asking.gateway, node.clone())).or_default() += given.addresses.len();
                placing.place(node, given);
            }
            None => placing.stay(given),
        }
    }
}

/// The addresses of one policy, and the nodes that may have them.
struct Placing<'a> {
    cluster: &'a Cluster,
    asking: &'a EgressIpRequest<'a>,
    gateway: &'a Elected,
    addresses: BTreeSet<IpAddr>,
    /// Who has them: as the status says, unless another member of the gateway is heard to answer
    /// for them.
    before: Option<&'a NodeName>,
    /// The agent of that node is gone: it lets go of nothing.
    gone: bool,
}

impl<'a> Placing<'a> {
    fn new(
        cluster: &'a Cluster,
        asking: &'a EgressIpRequest<'a>,
        gateway: &'a Elected,
        addresses: &BTreeSet<IpAddr>,
    ) -> Self {
        let state = &asking.policy.state;
        let said = state
            .node
            .as_ref()
            .filter(|_| state.gateway.as_ref() == Some(asking.gateway));
        let mut placing = Self {
            cluster,
            asking,
            gateway,
            addresses: addresses.clone(),
            before: said,
            gone: false,
        };
        let holds = said
            .and_then(|node| placing.heard_by(node))
            .filter(|other| !can_carry(cluster, other));
        placing.before = holds.or(said).filter(|node| gateway.member(node).is_some());
        // A node that is lost, and renewed its Lease a moment ago, may still hear that it has to
        // let go.
        let unheard = |node: &NodeName| {
            !cluster.fresh_leases.contains(node) || holds.is_some() || state.candidate.is_some()
        };
        placing.gone = placing
            .before
            .is_some_and(|node| !can_carry(cluster, node) && unheard(node));
        placing
    }

    /// Another member of the gateway that a node hears answering for one of the addresses.
    fn heard_by(&self, node: &NodeName) -> Option<&'a NodeName> {
        let conflicts = &self.cluster.egress_nodes.get(node)?.conflicts;
        let macs = self
            .addresses
            .iter()
            .filter_map(|address| conflicts.get(address));
        let mut others = macs.filter_map(|mac| plan::owner(&self.cluster.egress_nodes, *mac));
        others.find(|other| *other != node && self.gateway.member(other).is_some())
    }

    fn is_ready(&self, node: &NodeName) -> bool {
        self.gateway
            .member(node)
            .is_some_and(ElectedMember::is_ready)
    }

    fn ready(&self) -> impl Iterator<Item = &'a ElectedMember> + use<'a> {
        self.gateway
            .members
            .iter()
            .filter(|member| member.is_ready())
    }

    /// How many of the addresses lie in a network of the node, and whether new traffic may go
    /// there: more is better.
    fn rank(&self, node: &NodeName) -> (usize, bool) {
        let preferred = self.gateway.preferred().any(|member| member.node == *node);
        let node = self.cluster.egress_nodes.get(node);
        (
            self.addresses
                .iter()
                .filter(|address| node.is_some_and(|node| node.reaches(**address)))
                .count(),
            preferred,
        )
    }

    /// The node that they go to, or stay at, whatever others have.
    fn sticky(&self) -> Option<&'a NodeName> {
        let best = self.ready().map(|member| self.rank(&member.node)).max();
        let fits = |node: &&NodeName| self.is_ready(node) && Some(self.rank(node)) >= best;
        let wished = self
            .asking
            .policy
            .preferred_node
            .as_ref()
            .filter(|node| self.is_ready(node));
        let candidate = self.asking.policy.state.candidate.as_ref().filter(fits);
        wished
            .or(self.before.filter(fits))
            .or(self.taker().filter(fits))
            .or(candidate)
    }

    /// The node that found out that nobody answers for them: where pods' own nodes translate, it
    /// has taken them.
    fn taker(&self) -> Option<&'a NodeName> {
        let took = |member: &&ElectedMember| {
            let node = self.cluster.egress_nodes.get(&member.node);
            node.is_some_and(|node| self.addresses.is_subset(&node.silent))
        };
        self.ready().find(took).map(|member| &member.node)
    }

    /// The best Ready one.
    fn best(&self, load: impl Fn(&NodeName) -> usize) -> Option<&'a NodeName> {
        self.ready()
            .min_by_key(|member| (Reverse(self.rank(&member.node)), load(&member.node)))
            .map(|member| &member.node)
    }

    /// At this node, at once or as soon as nobody else answers for them.
    fn place(&self, node: &NodeName, given: &mut EgressIpAssignment) {
        let silent = self
            .cluster
            .egress_nodes
            .get(node)
            .is_some_and(|node| self.addresses.is_subset(&node.silent));
        match self
            .before
            .filter(|before| self.gone && *before != node && !silent)
        {
            Some(_) => {
                self.stay(given);
                given.candidate = Some(node.clone());
                let heard = self
                    .heard_by(node)
                    .is_some_and(|other| Some(other) == self.before);
                let asks = if heard {
                    "hears that it still answers for them"
                } else {
                    "asks whether it still answers for them"
                };
                given.gone = given
                    .gone
                    .take()
                    .map(|gone| format!("{gone}; {node} {asks}"));
            }
            None => given.node = Some(node.clone()),
        }
    }

    /// Where they are.
    fn stay(&self, given: &mut EgressIpAssignment) {
        given.node = self.before.cloned();
        given.gone = self
            .before
            .filter(|_| self.gone)
            .map(|node| format!("the agent of node {node}, which has the addresses, is gone"));
    }
}
