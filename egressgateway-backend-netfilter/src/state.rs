//! What our sets and chains hold.

use std::sync::Arc;

use egressgateway::{Error, ErrorKind, PolicyDesired, model::Family};
use imbl::OrdMap;

use crate::{
    contention::Tolerance,
    mark_layout::MarkLayout,
    names::{JUMPS, is_device},
    ruleset::chains,
    ruleset::table::{Jump, Table, Tables},
    sets::content::Content,
    sets::set::Set,
};

/// All our sets, chains and jumps on a host, or that there are none (the default).
///
/// Two states are equal when the kernel would do the same with every packet and nothing in our
/// chains and sets is somebody else's.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NetfilterState {
    pub(crate) sets: OrdMap<String, Set>,
    pub(crate) tables: Tables,
    /// What is to be borne of others who insist on the first place. Where they translate sources
    /// before our rules do, only what any masquerade gives may leave.
    pub(crate) tolerance: Tolerance,
    pub(crate) memory: Memory,
}

/// From what a state was made, so that the next one costs the difference. Says nothing about the
/// kernel: all memories are equal.
#[derive(Clone, Default)]
pub(crate) struct Memory(Option<Arc<Content>>);

impl PartialEq for Memory {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Memory")
    }
}

impl NetfilterState {
    /// What was read from a host.
    pub(crate) fn observed(sets: OrdMap<String, Set>, tables: Tables) -> Self {
        Self {
            sets,
            tables,
            ..Self::default()
        }
    }

    /// The state that `desired` asks for, from `current`.
    pub(crate) fn of(
        desired: &PolicyDesired,
        layout: MarkLayout,
        current: &Self,
    ) -> Result<Self, Error> {
        let tolerance = current.tolerance;
        if *desired == PolicyDesired::default() {
            return Ok(Self {
                tolerance,
                ..Self::default()
            });
        }
        check(desired)?;
        let previous = current.memory.0.as_deref();
        let content = Content::of(desired, layout, previous)?;
        let tables = match previous.filter(|previous| previous.has_same_rules(&content)) {
            Some(_) => current.tables.clone(),
            None => tables(desired, layout, &content, current),
        };
        Ok(Self {
            sets: content.sets.clone(),
            tables,
            tolerance,
            memory: Memory(Some(Arc::new(content))),
        })
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
        self.tables
            .values()
            .flat_map(|table| table.chains.values())
            .map(Vec::len)
            .sum()
    }
}

/// All rules; tables that stay as they are stay the same in memory too.
fn tables(
    desired: &PolicyDesired,
    layout: MarkLayout,
    content: &Content,
    current: &NetfilterState,
) -> Tables {
    let mut tables = Tables::new();
    for family in Family::ALL {
        for (name, chains) in chains::rules(
            desired,
            family,
            layout,
            &content.numbers,
            &content.sets,
            current.tolerance.sources,
        ) {
            let key = (family, name);
            let old = current.tables.get(&key);
            let own = JUMPS.into_iter().filter(|(table, ..)| *table == key.1);
            let jumps = own
                .map(|(_, chain, own)| {
                    current
                        .tolerance
                        .place(Jump::first(chain, own), old.map(Arc::as_ref))
                })
                .collect();
            let table = Table { chains, jumps };
            let same = old.filter(|old| ***old == table).cloned();
            tables.insert(key, same.unwrap_or_else(|| Arc::new(table)));
        }
    }
    tables
}

/// Refuses what the kernel would refuse or misunderstand.
pub(crate) fn check(desired: &PolicyDesired) -> Result<(), Error> {
    let invalid = |context: String| Err(Error::new(ErrorKind::Invalid, context));
    if let Some(name) = desired.overlay.devices.iter().find(|name| !is_device(name)) {
        return invalid(format!("overlay device {name:?} is no device name"));
    }
    if let Some(name) = desired.ways_out.iter().find(|name| !is_device(name)) {
        return invalid(format!(
            "{name:?}, by which this node leaves the cluster, is no device name"
        ));
    }
    if let Some(((device, _), address)) = desired
        .node_addresses
        .iter()
        .find(|((_, family), address)| Family::of(**address) != *family)
    {
        return invalid(format!(
            "node address {address} on {device} is of the other address family"
        ));
    }
    Ok(())
}
