//! The numbers of next hops that the kernel keeps for us, derived from what they are.

use std::collections::BTreeSet;

use egressgateway::{
    NextHop,
    model::{Family, TargetId, fnv1a64},
};
use imbl::OrdMap;

use crate::constants::{GROUP_BASE, HOP_BASE, HOP_PLACES};

/// The number of a target's group in a family.
pub(super) fn group(target: TargetId, family: Family) -> u32 {
    let family = match family {
        Family::V4 => 4,
        Family::V6 => 6,
    };
    GROUP_BASE + 10 * u32::from(target.byte()) + family
}

/// The two numbers of each next hop, a function of the set alone: the hash of its device and
/// address, or the first free place after it where two hash alike.
///
/// Two, because a group must not have fewer members than that: IPv4 does not look into the buckets
/// of a group of one, so that none of them counts as used, and half of all connections would move
/// with the second next hop.
pub(super) fn hops<'a>(hops: impl IntoIterator<Item = &'a NextHop>) -> OrdMap<NextHop, [u32; 2]> {
    deal(hops.into_iter().map(|hop| (preferred(hop), hop)))
}

fn deal<'a>(hops: impl Iterator<Item = (u32, &'a NextHop)>) -> OrdMap<NextHop, [u32; 2]> {
    let hops: BTreeSet<_> = hops.collect();
    let mut taken = BTreeSet::new();
    let numbers = hops.into_iter().map(|(preferred, hop)| {
        let mut place = preferred;
        while !taken.insert(place) {
            place = (place + 1) % HOP_PLACES;
        }
        let first = HOP_BASE + 2 * place;
        (hop.clone(), [first, first + 1])
    });
    numbers.collect()
}

fn preferred(hop: &NextHop) -> u32 {
    let name = format!("{} {}", hop.device, hop.via);
    u32::try_from(fnv1a64(name.as_bytes()) % u64::from(HOP_PLACES)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hop(via: &str) -> NextHop {
        NextHop {
            device: "tun".into(),
            via: via.parse().unwrap(),
            encap: None,
        }
    }

    #[test]
    fn numbers_depend_on_what_there_is_and_stay_where_others_come_and_go() {
        let (a, b, c) = (hop("172.31.0.1"), hop("172.31.0.2"), hop("fd31::1"));
        let all = hops([&a, &b, &c]);
        assert_eq!(all, hops([&c, &b, &a]));
        assert_eq!(hops([&b])[&b], all[&b]);
        let numbers: BTreeSet<u32> = all.values().flatten().copied().collect();
        assert_eq!(numbers.len(), 6, "distinct");
        assert!(
            numbers
                .iter()
                .all(|number| (HOP_BASE..GROUP_BASE).contains(number))
        );
    }

    #[test]
    fn of_two_that_hash_alike_one_takes_the_next_place() {
        let (a, b, c) = (hop("172.31.0.1"), hop("172.31.0.2"), hop("172.31.0.3"));
        let last = HOP_PLACES - 1;
        let dealt = deal([(last, &b), (last, &a), (0, &c)].into_iter());
        assert_eq!(dealt[&a][0], HOP_BASE + 2 * last);
        let rest: BTreeSet<u32> = [dealt[&b][0], dealt[&c][0]].into();
        assert_eq!(rest, [HOP_BASE, HOP_BASE + 2].into());
    }

    #[test]
    fn groups_are_told_apart_by_target_and_family() {
        assert_eq!(group(TargetId::FIRST, Family::V4), 1_700_000_174);
        assert_eq!(group(TargetId::FIRST, Family::V6), 1_700_000_176);
        let all: BTreeSet<u32> = TargetId::all()
            .flat_map(|target| Family::ALL.map(|family| group(target, family)))
            .collect();
        assert_eq!(all.len(), 2 * TargetId::all().count());
        const {
            assert!(
                HOP_BASE + 2 * HOP_PLACES <= GROUP_BASE,
                "the ranges do not overlap"
            );
        };
    }
}
