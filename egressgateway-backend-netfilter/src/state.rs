//! What our sets and chains hold.

use std::collections::{BTreeMap, BTreeSet};

use egressgateway::{
    Error, ErrorKind, PolicyDesired,
    model::{Family, MarkMask},
};

use crate::{
    bits::Bits,
    names::{COMMENT, JUMPS},
    numbers::Numbers,
    rules,
    set::{self, Set},
    tree::Chains,
};

/// All our sets, chains and jumps on a host, or that there are none (the default).
///
/// Two states are equal when the kernel would do the same with every packet and nothing in our chains and sets is somebody else's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetfilterState {
    pub(crate) sets: BTreeMap<String, Set>,
    pub(crate) tables: BTreeMap<(Family, String), Table>,
}

/// What is ours in one table of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) chains: Chains,
    pub(crate) jumps: BTreeSet<Jump>,
}

/// A rule in a chain of somebody else that leads to one of ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Jump {
    pub(crate) chain: String,
    /// How many rules come before it.
    pub(crate) position: usize,
    pub(crate) rule: String,
}

impl NetfilterState {
    /// The state that `desired` asks for.
    pub(crate) fn of(desired: &PolicyDesired, mask: MarkMask) -> Result<Self, Error> {
        if *desired == PolicyDesired::default() {
            return Ok(Self::default());
        }
        check(desired)?;
        let (bits, numbers) = (Bits::new(mask), Numbers::of(desired)?);
        let sets = set::sets(desired, bits, &numbers)?;
        let mut tables = BTreeMap::new();
        for family in Family::ALL {
            for (name, chains) in rules::rules(desired, family, bits, &numbers, &sets) {
                let jumps = JUMPS.into_iter().filter(|(table, ..)| *table == name).map(|(_, chain, own)| Jump::first(chain, own)).collect();
                tables.insert((family, name), Table { chains, jumps });
            }
        }
        Ok(Self { sets, tables })
    }

    /// Whether the host has anything of ours.
    #[must_use]
    pub fn exists(&self) -> bool {
        !self.sets.is_empty() || !self.tables.is_empty()
    }

    /// Number of entries in all sets: how much the kernel was told.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sets.values().map(|set| set.entries.len()).sum()
    }

    /// Whether no set has an entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of rules in all our chains of both families.
    #[must_use]
    pub fn rules(&self) -> usize {
        self.tables.values().flat_map(|table| table.chains.values()).map(Vec::len).sum()
    }
}

impl Jump {
    /// The jump that we write: before all others' rules.
    fn first(chain: &str, own: &str) -> Self {
        Self { chain: chain.to_owned(), position: 0, rule: format!("-m comment --comment {COMMENT} -j {own}") }
    }
}

/// Refuses what the kernel would refuse or misunderstand.
fn check(desired: &PolicyDesired) -> Result<(), Error> {
    let invalid = |context: String| Err(Error::new(ErrorKind::Invalid, context));
    // A plus at the end is iptables' wildcard.
    let fits = |name: &&String| (1..16).contains(&name.len()) && name.chars().all(|c| c.is_ascii_graphic() && !"\"\\'/!+*".contains(c));
    if let Some(name) = desired.overlay.devices.iter().find(|name| !fits(name)) {
        return invalid(format!("overlay device {name:?} is no device name"));
    }
    let subnets = desired.subnets.keys().zip(desired.subnets.keys().skip(1));
    if let Some((one, next)) = subnets.into_iter().find(|(one, next)| one.overlaps(next)) {
        return invalid(format!("pod subnets overlap: {one} and {next}"));
    }
    let mut places = desired.destinations.keys().zip(desired.destinations.keys().skip(1));
    match places.find(|((class, one), (other, next))| class == other && one.overlaps(next)) {
        Some(((class, one), (_, next))) => invalid(format!("destinations of class {class} overlap: {one} and {next}")),
        None => Ok(()),
    }
}
