//! Policies that contradict each other.
//!
//! Found are policies with an identical subject (same selectors, or same subnets), the same
//! priority and a destination in common that both state with the same prefix: nothing that their
//! authors wrote says which one wins, but their age and names. Overlaps of different selectors
//! depend on pods, and different priorities or prefixes are an order that somebody chose; neither
//! is reported. The cost grows with the number of destinations, not with the number of pairs.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::{
    Cluster,
    resolution::{ResolvedPolicies, by_age},
};
use crate::{
    model::PolicyName,
    spec::{PolicySpec, Selector, Subject},
};

/// How many policies or destinations a message lists.
const LISTED: usize = 5;

type Key<'a> = (
    Option<(&'a Selector, Option<&'a Selector>)>,
    &'a [IpNet],
    u32,
);

/// Reason and message of every policy that contradicts another one.
pub(super) fn find(
    cluster: &Cluster,
    resolved: &ResolvedPolicies,
) -> BTreeMap<PolicyName, (&'static str, String)> {
    let mut claims: BTreeMap<(Key, Option<IpNet>), Vec<&PolicyName>> = BTreeMap::new();
    for (name, policy) in by_age(&cluster.policies) {
        let in_force = resolved
            .get(name)
            .is_some_and(|resolution| resolution.refusal.is_none());
        let Some(spec) = policy.spec.as_ref().ok().filter(|_| in_force) else {
            continue;
        };
        for destination in destinations(spec) {
            let claim = claims.entry((key(spec), destination)).or_default();
            if claim.last() != Some(&name) {
                claim.push(name);
            }
        }
    }
    let mut wins: BTreeMap<&PolicyName, Vec<String>> = BTreeMap::new();
    let mut yields: BTreeMap<&PolicyName, Vec<String>> = BTreeMap::new();
    for ((_, destination), names) in claims.iter().filter(|(_, names)| names.len() > 1) {
        let destination =
            destination.map_or_else(|| "everything".to_owned(), |net| net.to_string());
        let (winner, losers) = (names[0], &names[1..]);
        wins.entry(winner)
            .or_default()
            .push(format!("{destination} before {}", list(losers)));
        for loser in losers {
            yields
                .entry(loser)
                .or_default()
                .push(format!("{destination} to {winner}"));
        }
    }
    let rule = "same subject, destination and priority: the older policy wins, then the name";
    let mut found = BTreeMap::new();
    for (name, texts) in wins {
        found.insert(
            name.clone(),
            ("Wins", format!("wins {}; {rule}", list(&texts))),
        );
    }
    for (name, texts) in yields {
        found.insert(
            name.clone(),
            ("Conflict", format!("yields {}; {rule}", list(&texts))),
        );
    }
    found
}

fn key(spec: &PolicySpec) -> Key<'_> {
    match &spec.subject {
        Subject::Pods { pods, namespaces } => {
            (Some((pods, namespaces.as_ref())), &[], spec.priority)
        }
        Subject::Subnets(nets) => (None, nets, spec.priority),
    }
}

/// Destinations that the policy does not except again; none stands for everything.
fn destinations(spec: &PolicySpec) -> impl Iterator<Item = Option<IpNet>> {
    let everything = spec.destinations.is_empty().then_some(None);
    let stated = spec
        .destinations
        .iter()
        .filter(|net| !spec.exceptions.iter().any(|hole| hole.contains(*net)));
    everything.into_iter().chain(stated.copied().map(Some))
}

/// The first few in one line.
pub(crate) fn list<T: ToString>(items: &[T]) -> String {
    let text = items
        .iter()
        .take(LISTED)
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ");
    if items.len() > LISTED {
        format!("{text} and {} more", items.len() - LISTED)
    } else {
        text
    }
}
