use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

use super::pod_index::PodIndex;
use crate::{
    model::{Family, IpRange, NodeName, find_range},
    plan,
};

/// Addresses of pods outside of all networks that are known: nobody said where pods are, or what
/// was said is not true.
#[derive(Debug, Default)]
pub(super) struct Strays {
    /// The networks that are known, ascending and disjoint.
    known: Vec<IpRange>,
    /// Each address, and whether it is one of this node.
    found: BTreeMap<IpAddr, bool>,
}

impl Strays {
    /// From now on these networks are known.
    pub(super) fn settle(&mut self, networks: &[IpNet], pod_index: &PodIndex, own: &NodeName) {
        let known = plan::merge(networks.iter().copied().map(IpRange::from));
        if self.known == known {
            return;
        }
        self.known = known;
        self.found.clear();
        self.follow(pod_index.addresses().collect(), pod_index, own);
    }

    /// Pods may have come to these addresses, or left them. Says whether that changed anything.
    pub(super) fn follow(
        &mut self,
        addresses: BTreeSet<IpAddr>,
        pod_index: &PodIndex,
        own: &NodeName,
    ) -> bool {
        let mut changed = false;
        for address in addresses
            .into_iter()
            .filter(|address| find_range(&self.known, |range| range, *address).is_none())
        {
            changed |= match pod_index.is_of(address, own) {
                Some(is_own) => self.found.insert(address, is_own) != Some(is_own),
                None => self.found.remove(&address).is_some(),
            };
        }
        changed
    }

    /// All of them.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.found.keys().copied()
    }

    /// Whether pods of this node are among them.
    pub(super) fn are_here(&self) -> bool {
        self.found.values().any(|is_own| *is_own)
    }

    /// The families of those of this node.
    pub(super) fn families(&self) -> BTreeSet<Family> {
        self.found
            .iter()
            .filter(|(_, is_own)| **is_own)
            .map(|(address, _)| Family::of(*address))
            .collect()
    }
}
