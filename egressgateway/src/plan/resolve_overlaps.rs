//! Who wins an address that several policies claim.

use std::{cmp::Reverse, collections::BTreeMap, collections::BTreeSet};

use super::ranges::cut;
use crate::model::{IpRange, PolicyName};

/// Who wins an address that several policies claim; the lesser rank does.
///
/// The lower priority number wins, then the longer prefix, then the older policy, then the name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
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
#[non_exhaustive]
pub struct RangeClaim {
    /// The range.
    pub range: IpRange,
    /// Against other claims.
    pub rank: Rank,
}

/// A range and the policy that won it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
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
    for claim in claims {
        starts.entry(claim.range.first()).or_default().push(claim);
    }
    let mut active: BTreeSet<(&Rank, IpRange)> = BTreeSet::new();
    let mut stretches: Vec<ResolvedRange> = Vec::new();
    for range in cut(claims.iter().map(|claim| claim.range)) {
        active.retain(|(_, claimed)| claimed.contains(range.first()));
        for claim in starts.get(&range.first()).into_iter().flatten() {
            active.insert((&claim.rank, claim.range));
        }
        let Some((winner, _)) = active.first() else {
            continue;
        };
        let previous = stretches
            .last_mut()
            .filter(|previous| previous.policy == winner.policy);
        let longer = previous.and_then(|previous| {
            previous.range = previous.range.joined(&range)?;
            Some(())
        });
        if longer.is_none() {
            stretches.push(ResolvedRange {
                range,
                policy: winner.policy.clone(),
            });
        }
    }
    stretches
}
