use std::collections::{BTreeMap, BTreeSet};

use crate::{
    model::PolicyName,
    spec::{Requirement, Selector},
    world::Labels,
};

/// Selectors of policies, found by a label that a pod must have: a pod meets only the few policies
/// that name one of its labels.
#[derive(Debug, Default)]
pub(super) struct Selectors {
    selectors: BTreeMap<PolicyName, (Selector, Option<Selector>)>,
    filed: BTreeMap<Place, BTreeSet<PolicyName>>,
}

/// What leads to a selector.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// A label with this value.
    Label(String, String),
    /// A label with any value.
    Key(String),
    /// No single label does.
    Anywhere,
}

/// Where a selector is filed: under each label of its first requirement that names values, else
/// under a key that must exist.
fn places(pods: &Selector) -> Vec<Place> {
    let values = pods
        .requirements()
        .iter()
        .find_map(|requirement| match requirement {
            Requirement::In { key, values } => Some(
                values
                    .iter()
                    .map(|value| Place::Label(key.clone(), value.clone()))
                    .collect(),
            ),
            _ => None,
        });
    let key = || {
        pods.requirements()
            .iter()
            .find_map(|requirement| match requirement {
                Requirement::Exists { key } => Some(Place::Key(key.clone())),
                _ => None,
            })
    };
    values.unwrap_or_else(|| vec![key().unwrap_or(Place::Anywhere)])
}

impl Selectors {
    pub(super) fn insert(
        &mut self,
        policy: &PolicyName,
        pods: &Selector,
        namespaces: Option<&Selector>,
    ) {
        self.remove(policy);
        for place in places(pods) {
            self.filed.entry(place).or_default().insert(policy.clone());
        }
        self.selectors
            .insert(policy.clone(), (pods.clone(), namespaces.cloned()));
    }

    pub(super) fn remove(&mut self, policy: &PolicyName) {
        let Some((pods, _)) = self.selectors.remove(policy) else {
            return;
        };
        for place in places(&pods) {
            if let Some(policies) = self.filed.get_mut(&place) {
                policies.remove(policy);
                if policies.is_empty() {
                    self.filed.remove(&place);
                }
            }
        }
    }

    pub(super) fn is_selected(
        &self,
        policy: &PolicyName,
        labels: &Labels,
        namespace: &Labels,
    ) -> bool {
        self.selectors
            .get(policy)
            .is_some_and(|(pods, namespaces)| {
                pods.matches(labels)
                    && namespaces
                        .as_ref()
                        .is_none_or(|selector| selector.matches(namespace))
            })
    }

    /// The policies that select a pod with these labels.
    pub(super) fn matching(&self, labels: &Labels, namespace: &Labels) -> BTreeSet<PolicyName> {
        let labelled = labels
            .iter()
            .map(|(key, value)| Place::Label(key.to_owned(), value.to_owned()));
        let places = labelled
            .chain(labels.iter().map(|(key, _)| Place::Key(key.to_owned())))
            .chain([Place::Anywhere]);
        let filed = places.filter_map(|place| self.filed.get(&place)).flatten();
        filed
            .filter(|policy| self.is_selected(policy, labels, namespace))
            .cloned()
            .collect()
    }
}
