//! Sixteen-bit numbers for things that have longer ones.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    net::IpAddr,
};

use egressgateway::{
    Error, ErrorKind, PolicyDesired,
    model::{ClassId, SourceNat, Verdict},
};

use crate::bits::Bits;

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
    pub(crate) fn of(desired: &PolicyDesired) -> Result<Self, Error> {
        let who = desired.pods.values().chain(desired.subnets.values());
        let classes: BTreeSet<ClassId> = who.copied().chain(desired.destinations.keys().map(|(class, _)| *class)).collect();
        let addresses: BTreeSet<IpAddr> = desired.destinations.values().filter_map(|verdict| exit_address(desired, verdict)).collect();
        Ok(Self {
            classes: deal(classes.into_iter().map(|class| (class.get(), class)), 1, "classes")?,
            addresses: deal(addresses.into_iter().map(|address| (fold(address), address)), AS_SELF + 1, "egress addresses")?,
        })
    }

    /// The mark bits of a class.
    pub(crate) fn class(&self, class: ClassId, bits: Bits) -> u32 {
        self.classes.get(&class).map_or(0, |number| bits.number(*number))
    }

    /// The mark bits of a source.
    pub(crate) fn source(&self, source: SourceNat, bits: Bits) -> u32 {
        bits.number(match source {
            SourceNat::NodeAddress => AS_NODE,
            SourceNat::Keep => AS_SELF,
            SourceNat::Address(address) => self.addresses.get(&address).copied().unwrap_or(0),
        })
    }
}

/// The address that something leaves here with.
fn exit_address(desired: &PolicyDesired, verdict: &Verdict) -> Option<IpAddr> {
    match verdict {
        Verdict::Egress { target, source_nat: SourceNat::Address(address) } => {
            (desired.accepts.contains(target) || desired.exits.contains(target)).then_some(*address)
        }
        _ => None,
    }
}

/// Neighbouring addresses have neighbouring hashes, and do not collide.
fn fold(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(address) => address.to_bits(),
        IpAddr::V6(address) => address.segments().chunks(2).fold(0, |hash, pair| match pair {
            [high, low] => hash ^ (u32::from(*high) << 16 | u32::from(*low)),
            _ => hash,
        }),
    }
}

/// A number from `first` to 65535 for each key: a function of the set of keys alone.
///
/// Everybody takes the first free number from the own hash on, in the order of hashes: a key more or less moves only those that collide
/// with it.
///
/// # Errors
/// When there are more keys than numbers.
pub(crate) fn deal<K: Ord + Clone + Display>(
    keys: impl IntoIterator<Item = (u32, K)>,
    first: u16,
    what: &str,
) -> Result<BTreeMap<K, u16>, Error> {
    let room = u32::from(u16::MAX - first) + 1;
    let sorted: BTreeSet<(u32, K)> = keys.into_iter().map(|(hash, key)| ((hash ^ (hash >> 16)) & 0xffff, key)).collect();
    if sorted.len() > room as usize {
        return Err(Error::new(ErrorKind::Unsupported, format!("{} {what}: the netfilter backend has numbers for {room}", sorted.len())));
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
    Ok(numbers.into_iter().filter_map(|(key, number)| Some((key, first + u16::try_from(number).ok()?))).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_distinct_and_depend_on_the_keys_only() {
        let keys: Vec<u32> = (0..40_000_u32).map(|key| key.wrapping_mul(0x9e37_79b1)).chain([u32::MAX, 1, 0x1_0000]).collect();
        let there = deal(keys.iter().map(|key| (*key, *key)), 1, "keys").unwrap();
        assert_eq!(there, deal(keys.iter().rev().map(|key| (*key, *key)), 1, "keys").unwrap());
        assert_eq!(there.values().collect::<BTreeSet<_>>().len(), there.len());
        assert!(there.values().all(|number| *number >= 1));
        let full = deal((0..65_535_u32).map(|key| (u32::MAX, key)), 1, "keys").unwrap();
        assert_eq!(full.values().collect::<BTreeSet<_>>().len(), 65_535);
    }

    #[test]
    fn more_keys_than_numbers_are_refused() {
        let error = deal((0..65_536_u32).map(|key| (key, key)), 1, "classes").unwrap_err();
        assert_eq!((error.kind, error.to_string().contains("65536 classes")), (ErrorKind::Unsupported, true), "{error}");
    }
}
