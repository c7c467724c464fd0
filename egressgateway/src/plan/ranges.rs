//! Ranges of addresses as sets.

use std::collections::BTreeSet;

use crate::model::{Family, IpRange, range_predecessor, range_successor};

/// The same addresses as ascending disjoint ranges, neighbours joined.
#[must_use]
pub fn merge(ranges: impl IntoIterator<Item = IpRange>) -> Vec<IpRange> {
    let mut sorted: Vec<IpRange> = ranges.into_iter().collect();
    sorted.sort();
    let mut merged: Vec<IpRange> = Vec::new();
    for range in sorted {
        match merged.last_mut() {
            Some(previous)
                if previous.overlaps(&range)
                    || range_successor(previous.last()) == Some(range.first()) =>
            {
                if let Some(longer) =
                    IpRange::new(previous.first(), previous.last().max(range.last()))
                {
                    *previous = longer;
                }
            }
            _ => merged.push(range),
        }
    }
    merged
}

/// The ranges cut at the bounds of all of them, and what lies between them: ascending and disjoint.
/// Each is in a range of the input as a whole, or not at all. Behind the last bound of a family
/// comes the rest of that family.
pub(crate) fn cut(ranges: impl IntoIterator<Item = IpRange>) -> Vec<IpRange> {
    let mut bounds = BTreeSet::new();
    for range in ranges {
        bounds.insert(range.first());
        // The last address of a family has none behind it.
        bounds.extend(range_successor(range.last()));
    }
    let bounds: Vec<_> = bounds.into_iter().collect();
    let piece = |(index, first): (usize, &std::net::IpAddr)| {
        let next = bounds
            .get(index + 1)
            .filter(|next| Family::of(**next) == Family::of(*first));
        let last = next
            .and_then(|next| range_predecessor(*next))
            .unwrap_or_else(|| IpRange::everything(Family::of(*first)).last());
        IpRange::new(*first, last)
    };
    bounds.iter().enumerate().filter_map(piece).collect()
}
