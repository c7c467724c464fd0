//! Sixteen-bit numbers for things that have longer ones.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    net::IpAddr,
};

use egressgateway::{
    Error, ErrorKind, PolicyDesired,
    model::{ClassId, Family, SourceNat, Verdict},
};
use imbl::{OrdMap, ordmap::DiffItem};

use crate::{mark_layout::MarkLayout, sets::roles::Roles as _};

/// Source number of the node's own address.
pub(crate) const AS_NODE: u16 = 1;
/// Source number of the pod's own address.
pub(crate) const AS_SELF: u16 = 2;

/// The numbers that classes and source addresses have in packet marks. None is 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Numbers {
    pub(crate) classes: BTreeMap<ClassId, u16>,
    pub(crate) addresses: BTreeMap<IpAddr, u16>,
}

impl Numbers {
    pub(crate) fn of(uses: &Uses) -> Result<Self, Error> {
        Ok(Self {
            classes: assign_numbers(
                uses.classes.keys().map(|class| (class.get(), *class)),
                1,
                "classes",
            )?,
            addresses: assign_numbers(
                uses.addresses
                    .keys()
                    .map(|address| (fold(*address), *address)),
                AS_SELF + 1,
                "egress addresses",
            )?,
        })
    }

    /// Whether everything that has a number in both has the same one in both.
    pub(crate) fn keep(&self, old: &Self) -> bool {
        let classes = self
            .classes
            .iter()
            .all(|(class, number)| old.classes.get(class).is_none_or(|before| before == number));
        classes
            && self.addresses.iter().all(|(address, number)| {
                old.addresses
                    .get(address)
                    .is_none_or(|before| before == number)
            })
    }

    /// The mark bits of a class.
    pub(crate) fn class(&self, class: ClassId, layout: MarkLayout) -> u32 {
        self.classes
            .get(&class)
            .map_or(0, |number| layout.number(*number))
    }

    /// The mark bits of a source.
    pub(crate) fn source(&self, source: SourceNat, layout: MarkLayout) -> u32 {
        layout.number(match source {
            SourceNat::NodeAddress => AS_NODE,
            SourceNat::Keep => AS_SELF,
            SourceNat::Address(address) | SourceNat::Ports(address) => {
                self.addresses.get(&address).copied().unwrap_or(0)
            }
        })
    }
}

/// How often a desired state names what needs a number, or a set of its own.
#[derive(Clone, Debug, Default)]
pub(crate) struct Uses {
    classes: OrdMap<ClassId, usize>,
    addresses: OrdMap<IpAddr, usize>,
    /// Classes that leave here as themselves for some destination.
    pub(crate) keeping: OrdMap<(ClassId, Family), usize>,
}

impl Uses {
    /// Counts what changed between two states of the same roles, the first of which this counted.
    pub(crate) fn follow(&self, from: &PolicyDesired, to: &PolicyDesired) -> Self {
        let mut uses = self.clone();
        from.pods.diff(&to.pods).for_each(|change| {
            each(&change, |_, class, way| {
                count(&mut uses.classes, *class, way);
            });
        });
        from.subnets.diff(&to.subnets).for_each(|change| {
            each(&change, |_, class, way| {
                count(&mut uses.classes, *class, way);
            });
        });
        from.destinations.diff(&to.destinations).for_each(|change| {
            each(&change, |(class, range), verdict, way| {
                count(&mut uses.classes, *class, way);
                if to.keeps(verdict) {
                    count(&mut uses.keeping, (*class, range.family()), way);
                }
                if let Verdict::Egress { target, source_nat } = verdict
                    && let SourceNat::Address(address) | SourceNat::Ports(address) = source_nat
                    && to.translates(*target, *source_nat)
                {
                    count(&mut uses.addresses, *address, way);
                }
            });
        });
        uses
    }

    pub(crate) fn needs_same_numbers(&self, other: &Self) -> bool {
        fn same_keys<K: Ord + Clone>(one: &OrdMap<K, usize>, other: &OrdMap<K, usize>) -> bool {
            one.diff(other)
                .all(|change| matches!(change, DiffItem::Update { .. }))
        }
        same_keys(&self.classes, &other.classes) && same_keys(&self.addresses, &other.addresses)
    }
}

/// One use more or less.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    More,
    Less,
}

fn each<'a, K, V>(change: &DiffItem<'a, 'a, K, V>, mut tell: impl FnMut(&'a K, &'a V, Way)) {
    match *change {
        DiffItem::Add(key, value) => tell(key, value, Way::More),
        DiffItem::Update { old, new } => {
            tell(old.0, old.1, Way::Less);
            tell(new.0, new.1, Way::More);
        }
        DiffItem::Remove(key, value) => tell(key, value, Way::Less),
    }
}

fn count<K: Ord + Clone>(uses: &mut OrdMap<K, usize>, key: K, way: Way) {
    let uses_now = uses.get(&key).copied().unwrap_or(0);
    match (way, uses_now) {
        (Way::More, now) => drop(uses.insert(key, now + 1)),
        (Way::Less, 0 | 1) => drop(uses.remove(&key)),
        (Way::Less, now) => drop(uses.insert(key, now - 1)),
    }
}

/// Neighbouring addresses have neighbouring hashes, and do not collide.
fn fold(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(address) => address.to_bits(),
        IpAddr::V6(address) => address
            .segments()
            .chunks(2)
            .fold(0, |hash, pair| match pair {
                [high, low] => hash ^ (u32::from(*high) << 16 | u32::from(*low)),
                _ => hash,
            }),
    }
}

/// A number from `first` to 65535 for each key: a function of the set of keys alone.
///
/// Everybody takes the first free number from the own hash on, in the order of hashes: a key more
/// or less moves only those that collide with it.
///
/// # Errors
/// When there are more keys than numbers.
pub(crate) fn assign_numbers<K: Ord + Clone + Display>(
    keys: impl IntoIterator<Item = (u32, K)>,
    first: u16,
    what: &str,
) -> Result<BTreeMap<K, u16>, Error> {
    let room = u32::from(u16::MAX - first) + 1;
    let sorted: BTreeSet<(u32, K)> = keys
        .into_iter()
        .map(|(hash, key)| ((hash ^ (hash >> 16)) & 0xffff, key))
        .collect();
    if sorted.len() > room as usize {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "{} {what}: the netfilter backend has numbers for {room}",
                sorted.len()
            ),
        ));
    }
    let (mut free, mut numbers, mut crowded) = (0_u32, BTreeMap::new(), Vec::new());
    for (hash, key) in sorted {
        let number = (hash % room).max(free);
        if number < room {
            numbers.insert(key, number);
            free = number + 1;
        } else {
            crowded.push(key);
        }
    }
    let taken: BTreeSet<u32> = numbers.values().copied().collect();
    let gaps = (0..room).filter(|number| !taken.contains(number));
    numbers.extend(crowded.into_iter().zip(gaps));
    Ok(numbers
        .into_iter()
        .filter_map(|(key, number)| Some((key, first + u16::try_from(number).ok()?)))
        .collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_distinct_and_depend_on_the_keys_only() {
        let keys: Vec<u32> = (0..40_000_u32)
            .map(|key| key.wrapping_mul(0x9e37_79b1))
            .chain([u32::MAX, 1, 0x1_0000])
            .collect();
        let there = assign_numbers(keys.iter().map(|key| (*key, *key)), 1, "keys").unwrap();
        assert_eq!(
            there,
            assign_numbers(keys.iter().rev().map(|key| (*key, *key)), 1, "keys").unwrap()
        );
        assert_eq!(there.values().collect::<BTreeSet<_>>().len(), there.len());
        assert!(there.values().all(|number| *number >= 1));
        let full = assign_numbers((0..65_535_u32).map(|key| (u32::MAX, key)), 1, "keys").unwrap();
        assert_eq!(full.values().collect::<BTreeSet<_>>().len(), 65_535);
    }

    #[test]
    fn more_keys_than_numbers_are_refused() {
        let error =
            assign_numbers((0..65_536_u32).map(|key| (key, key)), 1, "classes").unwrap_err();
        assert_eq!(
            (error.kind, error.to_string().contains("65536 classes")),
            (ErrorKind::Unsupported, true),
            "{error}"
        );
    }
}
