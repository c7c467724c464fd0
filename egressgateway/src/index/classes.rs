use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use imbl::OrdSet;

use super::{pod_index::PodIndex, policies::Policies};
use crate::{
    PolicyDesired,
    model::{ClassId, ClassIds, ClassKey, IpRange, TargetId, Verdict},
};

/// The classes that exist in the cluster, and what is published of them in a node's
/// [`PolicyDesired`].
#[derive(Debug, Default)]
pub(super) struct Classes {
    members: BTreeMap<ClassKey, Class>,
    of_address: BTreeMap<IpAddr, (ClassKey, bool)>,
    subnets: Vec<(IpRange, ClassKey)>,
    ids: ClassIds,
    accepts: OrdSet<TargetId>,
}

#[derive(Debug, Default)]
struct Class {
    /// Addresses of pods on this node.
    local: BTreeSet<IpAddr>,
    /// Addresses of pods on other nodes.
    remote: BTreeSet<IpAddr>,
    /// How many subnets have it.
    subnets: usize,
    /// Where its traffic goes, as published; none: not published.
    destinations: Option<Vec<(IpRange, Verdict)>>,
    /// Pods of other nodes are published too: their traffic may leave here.
    with_remote: bool,
}

impl Class {
    fn addresses(&self, remote: bool) -> impl Iterator<Item = &IpAddr> {
        self.local
            .iter()
            .chain(self.remote.iter().filter(move |_| remote))
    }
}

impl Classes {
    /// The classes by labels of this node's pods, and which addresses of them have each.
    pub(super) fn local(&self) -> impl Iterator<Item = (&ClassKey, &BTreeSet<IpAddr>)> {
        let local = self.members.iter().map(|(key, class)| (key, &class.local));
        local.filter(|(_, addresses)| !addresses.is_empty())
    }

    /// Publishes what changed.
    pub(super) fn settle(
        &mut self,
        pod_index: &mut PodIndex,
        policies: &mut Policies,
        desired: &mut PolicyDesired,
    ) {
        let mut touched = self.move_addresses(pod_index, desired);
        touched.extend(self.take_subnets(policies, desired));
        let changed = std::mem::take(&mut policies.changed_rules);
        let all = self.accepts != desired.accepts;
        if all || !changed.is_empty() {
            let concerned = |class: &ClassKey| {
                all || class
                    .policies()
                    .iter()
                    .any(|policy| changed.contains(policy))
            };
            touched.extend(
                self.members
                    .keys()
                    .filter(|class| concerned(class))
                    .cloned(),
            );
            self.accepts = desired.accepts.clone();
        }
        let mut renumbered = false;
        for class in &touched {
            renumbered |= self.publish(class, policies, desired);
        }
        if renumbered {
            self.publish_all_anew(desired);
        }
    }

    /// Files every address under the class that it has now; what was published of it under the old
    /// one is withdrawn.
    fn move_addresses(
        &mut self,
        pod_index: &mut PodIndex,
        desired: &mut PolicyDesired,
    ) -> BTreeSet<ClassKey> {
        let mut touched = BTreeSet::new();
        for address in pod_index.take_dirty() {
            let now = pod_index
                .class_by_pods(address)
                .map(|class| (class, pod_index.local().contains(&address)));
            if self.of_address.get(&address) == now.as_ref() {
                continue;
            }
            if let Some((class, _)) = self.of_address.remove(&address) {
                desired.pods.remove(&address);
                if let Some(members) = self.members.get_mut(&class) {
                    members.local.remove(&address);
                    members.remote.remove(&address);
                    // Only the last address of a kind decides whether the class is still used.
                    if members.local.is_empty() || members.remote.is_empty() {
                        touched.insert(class);
                    }
                }
            }
            if let Some((class, local)) = now {
                let members = self.members.entry(class.clone()).or_default();
                if local {
                    members.local.insert(address)
                } else {
                    members.remote.insert(address)
                };
                // A class that is published already stays as it is: one more address is one more
                // entry.
                match self
                    .ids
                    .id(&class)
                    .filter(|_| members.destinations.is_some() && (local || members.with_remote))
                {
                    Some(id) => drop(desired.pods.insert(address, id)),
                    None => drop(touched.insert(class.clone())),
                }
                self.of_address.insert(address, (class, local));
            }
        }
        touched
    }

    fn take_subnets(
        &mut self,
        policies: &Policies,
        desired: &mut PolicyDesired,
    ) -> BTreeSet<ClassKey> {
        if self.subnets == policies.subnets() {
            return BTreeSet::new();
        }
        let before = std::mem::replace(&mut self.subnets, policies.subnets().to_vec());
        let mut touched = BTreeSet::new();
        for (range, class) in before {
            if let Some(members) = self.members.get_mut(&class) {
                members.subnets -= 1;
            }
            desired.subnets.remove(&range);
            touched.insert(class);
        }
        for (_, class) in &self.subnets {
            self.members.entry(class.clone()).or_default().subnets += 1;
            touched.insert(class.clone());
        }
        touched
    }

    /// Brings one class up to date; true when numbers of other classes changed with it.
    fn publish(
        &mut self,
        key: &ClassKey,
        policies: &Policies,
        desired: &mut PolicyDesired,
    ) -> bool {
        let Some(class) = self.members.get_mut(key) else {
            return false;
        };
        let destinations = policies.destinations(key);
        let leaves_here = |(_, verdict): &(IpRange, Verdict)| matches!(verdict, Verdict::Egress { target, .. } if self.accepts.contains(target));
        let with_remote = destinations.iter().any(leaves_here);
        let used = class.subnets > 0 || class.addresses(with_remote).next().is_some();
        let mut renumbered = false;
        if let Some((id, old)) = self.ids.id(key).zip(class.destinations.take()) {
            withdraw(
                id,
                old.iter().map(|(range, _)| *range),
                class.addresses(true),
                desired,
            );
        }
        class.with_remote = with_remote;
        if used {
            renumbered |= self.ids.insert(key.clone());
            if let Some(id) = self.ids.id(key) {
                publish(id, &destinations, class.addresses(with_remote), desired);
                let own = self.subnets.iter().filter(|(_, class)| class == key);
                desired.subnets.extend(
                    own.filter(|_| class.subnets > 0)
                        .map(|(range, _)| (*range, id)),
                );
            }
            class.destinations = Some(destinations);
        } else {
            renumbered |= self.ids.remove(key);
            if class.local.is_empty() && class.remote.is_empty() {
                self.members.remove(key);
            }
        }
        renumbered
    }

    /// Two classes hash alike, which almost never happens: numbers may have moved, so everything is
    /// written again.
    fn publish_all_anew(&self, desired: &mut PolicyDesired) {
        desired.pods.clear();
        desired.destinations.clear();
        desired.subnets.clear();
        for (key, class) in &self.members {
            if let Some((id, destinations)) = self.ids.id(key).zip(class.destinations.as_ref()) {
                publish(
                    id,
                    destinations,
                    class.addresses(class.with_remote),
                    desired,
                );
            }
        }
        desired.subnets.extend(
            self.subnets
                .iter()
                .filter_map(|(range, class)| Some((*range, self.ids.id(class)?))),
        );
    }
}

fn publish<'a>(
    id: ClassId,
    destinations: &[(IpRange, Verdict)],
    addresses: impl Iterator<Item = &'a IpAddr>,
    desired: &mut PolicyDesired,
) {
    for (range, verdict) in destinations {
        desired.destinations.insert((id, *range), *verdict);
    }
    for address in addresses {
        desired.pods.insert(*address, id);
    }
}

fn withdraw<'a>(
    id: ClassId,
    ranges: impl Iterator<Item = IpRange>,
    addresses: impl Iterator<Item = &'a IpAddr>,
    desired: &mut PolicyDesired,
) {
    for range in ranges {
        desired.destinations.remove(&(id, range));
    }
    for address in addresses {
        desired.pods.remove(address);
    }
}
