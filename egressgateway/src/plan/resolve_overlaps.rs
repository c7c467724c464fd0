//! Who wins an address that several policies claim.

use std::{cmp::Reverse, collections::BTreeMap, collections::BTreeSet};

use crate::model::{Family, IpRange, PolicyName, range_predecessor, range_successor};

/// Who wins an address that several policies claim; the lesser rank does.
///
/// The lower priority number wins, then the longer prefix, then the older policy, then the name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    /// The policy's priority.
    pub priority: u32,
    /// Length of the prefix that claims the address.
    pub prefix: Reverse<u8>,
    /// Seconds since 1970 of the policy's creation.
    pub created: i64,
    /// The policy.
    pub policy: PolicyName,
}

/// A policy's claim on a range of destinations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeClaim {
    /// The range.
    pub range: IpRange,
    /// Against other claims.
    pub rank: Rank,
}

/// A range and the policy that won it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedRange {
    /// The range.
    pub range: IpRange,
    /// The winner.
    pub policy: PolicyName,
}

/// The winners of all claims, as ascending disjoint ranges; neighbours with the same winner are one
/// range.
#[must_use]
pub fn resolve_overlaps(claims: &[RangeClaim]) -> Vec<ResolvedRange> {
    let mut starts: BTreeMap<_, Vec<&RangeClaim>> = BTreeMap::new();
    let mut bounds = BTreeSet::new();
    for claim in claims {
        starts.entry(claim.range.first()).or_default().push(claim);
        bounds.insert(claim.range.first());
        // The address behind a claim starts a new stretch; the last address of a family has none
        // behind it.
        bounds.extend(range_successor(claim.range.last()));
    }
    let mut active: BTreeSet<(&Rank, IpRange)> = BTreeSet::new();
    let mut stretches: Vec<ResolvedRange> = Vec::new();
    let bounds: Vec<_> = bounds.into_iter().collect();
    for (index, first) in bounds.iter().enumerate() {
        active.retain(|(_, range)| range.contains(*first));
        for claim in starts.get(first).into_iter().flatten() {
            active.insert((&claim.rank, claim.range));
        }
        let Some((winner, _)) = active.first() else {
            continue;
        };
        let next = bounds
            .get(index + 1)
            .filter(|next| Family::of(**next) == Family::of(*first));
        let last = next
            .and_then(|next| range_predecessor(*next))
            .unwrap_or_else(|| IpRange::everything(Family::of(*first)).last());
        let Some(range) = IpRange::new(*first, last) else {
            continue;
        };
        match stretches.last_mut() {
            Some(previous)
                if previous.policy == winner.policy
                    && range_successor(previous.range.last()) == Some(*first) =>
            {
                if let Some(longer) = IpRange::new(previous.range.first(), last) {
                    previous.range = longer;
                }
            }
            _ => stretches.push(ResolvedRange {
                range,
                policy: winner.policy.clone(),
            }),
        }
    }
    stretches
}
