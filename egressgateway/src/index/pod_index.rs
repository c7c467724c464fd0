use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use imbl::OrdSet;

use super::{
    objects::{NamespaceName, Namespaces},
    policies::Policies,
};
use crate::{
    model::{ClassKey, IpRange, NodeName, PodName, PolicyName, find_range},
    world::{Labels, Namespace, Pod, set_object},
};

/// Up to this many changed policies are tried on every pod one by one; beyond, every pod is matched
/// anew through the inverted index.
const FEW: usize = 16;

/// Which policies each pod address belongs to.
///
/// Where several pods claim one address, as may happen while it passes from one to the next, the
/// address belongs to the policies of all of them: the stricter reading.
#[derive(Debug, Default)]
pub(super) struct PodIndex {
    namespaces: Namespaces,
    pods: BTreeMap<PodName, Entry>,
    by_address: BTreeMap<IpAddr, Claimants>,
    subnets: Vec<(IpRange, ClassKey)>,
    local: OrdSet<IpAddr>,
    /// Pods that may belong to other policies now. A list, and so is the next: a first list brings
    /// a hundred thousand, and what is one piece of memory is given back when it is done.
    unmatched: Vec<PodName>,
    /// Addresses whose class or place may have changed.
    dirty: Vec<IpAddr>,
}

/// The pods that claim an address: nearly always a single one, and there may be two addresses for
/// each of a hundred thousand pods.
#[derive(Debug)]
enum Claimants {
    One(PodName),
    Several(BTreeSet<PodName>),
}

impl Claimants {
    fn iter(&self) -> impl Iterator<Item = &PodName> {
        let (one, several) = match self {
            Self::One(pod) => (Some(pod), None),
            Self::Several(pods) => (None, Some(pods.iter())),
        };
        one.into_iter().chain(several.into_iter().flatten())
    }

    fn insert(&mut self, pod: &PodName) {
        match self {
            Self::One(only) if only == pod => {}
            Self::One(only) => *self = Self::Several(BTreeSet::from([only.clone(), pod.clone()])),
            Self::Several(pods) => _ = pods.insert(pod.clone()),
        }
    }

    /// Without a pod; none: nobody is left.
    fn without(self, pod: &PodName) -> Option<Self> {
        match self {
            Self::One(only) => (only != *pod).then_some(Self::One(only)),
            Self::Several(mut pods) => {
                pods.remove(pod);
                match pods.len() {
                    0 => None,
                    1 => pods.pop_first().map(Self::One),
                    _ => Some(Self::Several(pods)),
                }
            }
        }
    }
}

#[derive(Debug)]
struct Entry {
    pod: Pod,
    policies: Option<ClassKey>,
}

impl PodIndex {
    pub(super) fn set_pod(&mut self, name: PodName, pod: Option<Pod>) -> bool {
        if self.pods.get(&name).map(|entry| &entry.pod) == pod.as_ref() {
            return false;
        }
        if let Some(old) = self.pods.remove(&name) {
            for address in old.pod.addresses.iter().copied() {
                self.dirty.push(address);
                if let Some(left) = self
                    .by_address
                    .remove(&address)
                    .and_then(|pods| pods.without(&name))
                {
                    self.by_address.insert(address, left);
                }
            }
        }
        let Some(pod) = pod else { return true };
        for address in pod.addresses.iter().copied() {
            self.dirty.push(address);
            self.by_address
                .entry(address)
                .and_modify(|pods| pods.insert(&name))
                .or_insert_with(|| Claimants::One(name.clone()));
        }
        self.unmatched.push(name.clone());
        self.pods.insert(
            name,
            Entry {
                pod,
                policies: None,
            },
        );
        true
    }

    pub(super) fn set_namespace(
        &mut self,
        name: NamespaceName,
        namespace: Option<Namespace>,
    ) -> bool {
        let labels = |namespace: Option<&Namespace>| {
            namespace
                .map(|namespace| namespace.labels.clone())
                .unwrap_or_default()
        };
        if labels(self.namespaces.get(&name)) != labels(namespace.as_ref()) {
            let first = PodName::new(name.clone(), "");
            let pods = self
                .pods
                .range(first..)
                .take_while(|(pod, _)| pod.namespace == name);
            self.unmatched.extend(pods.map(|(pod, _)| pod.clone()));
        }
        set_object(&mut self.namespaces, name, namespace)
    }

    pub(super) fn pod(&self, name: &PodName) -> Option<&Pod> {
        self.pods.get(name).map(|entry| &entry.pod)
    }

    /// Addresses of all pods that are seen.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.by_address.keys().copied()
    }

    /// Whether a pod of this node has an address; none where no pod has it.
    pub(super) fn is_of(&self, address: IpAddr, node: &NodeName) -> Option<bool> {
        let pods = self.by_address.get(&address)?;
        Some(
            pods.iter().any(|pod| {
                self.pods.get(pod).and_then(|entry| entry.pod.node.as_ref()) == Some(node)
            }),
        )
    }

    /// Addresses of this node's pods.
    pub(super) fn local(&self) -> &OrdSet<IpAddr> {
        &self.local
    }

    /// Matches what changed, and finds the addresses that this concerns.
    pub(super) fn settle(&mut self, policies: &mut Policies, node: &NodeName) {
        self.settle_matches(policies);
        if std::mem::take(&mut policies.changed_subnets) {
            self.subnets = policies.subnets().to_vec();
            self.dirty.extend(self.by_address.keys());
        }
        self.dirty.sort_unstable();
        self.dirty.dedup();
        for address in &self.dirty {
            let is_local = |pod: &PodName| {
                self.pods.get(pod).and_then(|entry| entry.pod.node.as_ref()) == Some(node)
            };
            if self
                .by_address
                .get(address)
                .is_some_and(|pods| pods.iter().any(is_local))
            {
                self.local.insert(*address);
            } else {
                self.local.remove(address);
            }
        }
    }

    fn settle_matches(&mut self, policies: &mut Policies) {
        let changed = std::mem::take(&mut policies.changed_subjects);
        let no_labels = Labels::default();
        let namespaces = &self.namespaces;
        let labels_of = |name: &PodName| {
            namespaces
                .get(&name.namespace)
                .map_or(&no_labels, |namespace| &namespace.labels)
        };
        if changed.len() > FEW {
            self.unmatched.extend(self.pods.keys().cloned());
        } else if !changed.is_empty() {
            let differs = |name: &PodName, entry: &Entry, policy: &PolicyName| {
                let was = entry
                    .policies
                    .as_ref()
                    .is_some_and(|class| class.policies().contains(policy));
                was != policies
                    .selectors
                    .is_selected(policy, &entry.pod.labels, labels_of(name))
            };
            let moved = self
                .pods
                .iter()
                .filter(|(name, entry)| changed.iter().any(|policy| differs(name, entry, policy)));
            self.unmatched.extend(moved.map(|(name, _)| name.clone()));
        }
        // Thousands of pods may have become known together, and most have the class of others.
        let mut classes: BTreeSet<ClassKey> = BTreeSet::new();
        let mut unmatched = std::mem::take(&mut self.unmatched);
        unmatched.sort_unstable();
        unmatched.dedup();
        for name in unmatched {
            let Some(entry) = self.pods.get_mut(&name) else {
                continue;
            };
            let matched = ClassKey::new(
                policies
                    .selectors
                    .matching(&entry.pod.labels, labels_of(&name)),
            );
            if matched != entry.policies {
                if let Some(class) = &matched {
                    classes.insert(class.clone());
                }
                entry.policies = matched.and_then(|class| classes.get(&class).cloned());
                self.dirty.extend(entry.pod.addresses.iter());
            }
        }
    }

    /// Addresses whose class or place may have changed since this was asked last, as the last
    /// settling found them.
    pub(super) fn take_dirty(&mut self) -> Vec<IpAddr> {
        std::mem::take(&mut self.dirty)
    }

    /// The class of an address by the labels of its pods, together with the subnets that cover it;
    /// none where no label decides.
    pub(super) fn class_by_pods(&self, address: IpAddr) -> Option<ClassKey> {
        let mut by_label = self
            .by_address
            .get(&address)
            .into_iter()
            .flat_map(Claimants::iter)
            .filter_map(|pod| self.pods.get(pod)?.policies.as_ref());
        let first = by_label.next()?;
        let mut others = by_label.chain(self.class_by_subnet(address)).peekable();
        if others.peek().is_none() {
            return Some(first.clone());
        }
        ClassKey::new(
            [first]
                .into_iter()
                .chain(others)
                .flat_map(|class| class.policies().iter().cloned()),
        )
    }

    fn class_by_subnet(&self, address: IpAddr) -> Option<&ClassKey> {
        find_range(&self.subnets, |(range, _)| range, address).map(|(_, class)| class)
    }

    pub(super) fn class_of(&self, address: IpAddr) -> Option<ClassKey> {
        self.class_by_pods(address)
            .or_else(|| self.class_by_subnet(address).cloned())
    }
}
