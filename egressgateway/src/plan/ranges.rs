//! Ranges of addresses as sets.

use crate::model::{IpRange, range_successor};

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
