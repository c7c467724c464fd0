//! Ranges as the kernel wants them: disjoint.

use std::{collections::BTreeSet, fmt, net::IpAddr};

use egressgateway::{
    Error, ErrorKind,
    model::{ClassId, IpRange},
};
use imbl::{OrdMap, OrdSet};

/// Class and destination.
pub(crate) type ElementKey = (ClassId, IpRange);

/// The fewest ranges that cover the same addresses.
pub(crate) fn union(ranges: impl IntoIterator<Item = IpRange>) -> OrdSet<IpRange> {
    let sorted: BTreeSet<IpRange> = ranges.into_iter().collect();
    let mut merged: Vec<IpRange> = Vec::new();
    for range in sorted {
        match merged.last().and_then(|last| joined(last, &range)) {
            Some(both) => {
                merged.pop();
                merged.push(both);
            }
            None => merged.push(range),
        }
    }
    merged.into_iter().collect()
}

/// The two as one range, if they overlap or touch; `a` does not begin after `b`.
fn joined(a: &IpRange, b: &IpRange) -> Option<IpRange> {
    if a.family() != b.family() || (!a.overlaps(b) && successor(a.last()) != Some(b.first())) {
        return None;
    }
    IpRange::new(a.first(), a.last().max(b.last()))
}

fn successor(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => address
            .to_bits()
            .checked_add(1)
            .map(|bits| IpAddr::V4(bits.into())),
        IpAddr::V6(address) => address
            .to_bits()
            .checked_add(1)
            .map(|bits| IpAddr::V6(bits.into())),
    }
}

/// Refuses ranges of one owner that overlap: the kernel would refuse them one by one, long after it
/// was asked. They come sorted.
pub(crate) fn check_disjoint<O: PartialEq + fmt::Debug>(
    sorted: impl IntoIterator<Item = (O, IpRange)>,
    what: &str,
) -> Result<(), Error> {
    let mut last: Option<(O, IpRange)> = None;
    for (owner, range) in sorted {
        if let Some((_, other)) = last
            .as_ref()
            .filter(|(other, before)| *other == owner && before.overlaps(&range))
        {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("{what} overlap: {other} and {range} ({owner:?})"),
            ));
        }
        last = Some((owner, range));
    }
    Ok(())
}

/// The same for one place among others that were checked before.
pub(crate) fn check_neighbours<V: Clone>(
    places: &OrdMap<ElementKey, V>,
    (class, range): ElementKey,
) -> Result<(), Error> {
    if !places.contains_key(&(class, range)) {
        return Ok(());
    }
    let lowest = (
        ClassId::new(1).unwrap_or(class),
        IpRange::single(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED)),
    );
    let before = places
        .range(lowest..(class, range))
        .next_back()
        .map(|(place, _)| *place);
    let after = places
        .range((class, range)..)
        .nth(1)
        .map(|(place, _)| *place);
    check_disjoint(
        before.into_iter().chain([(class, range)]).chain(after),
        "destinations of a class",
    )
}
