//! What stands between two sets of rules while sets change: nothing that a number of the old sets
//! means may be taken for another's.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use egressgateway::model::Family;

use crate::{
    mark_layout::MarkLayout,
    names::{
        CLASS, CLASS_PREFIX, Common, FORMER_SNAT_PREFIX, FORMER_VERDICTS_PREFIX, HELD, MANGLE, NAT,
        POSTROUTING, SNAT_NODE, SNAT_PREFIX, SOURCE, VERDICTS_PREFIX, former_subnets,
    },
    ruleset::number_trees,
    ruleset::table::{Table, Tables},
    ruleset::tree::{self, Chains},
    sets::numbers::AS_SELF,
    sets::set::{Entry, Set},
    state::NetfilterState,
};

/// The tables to have while the sets change from those of `current` to those of `after`.
///
/// A table changes at once, and two tables one after the other: what is let out by one is
/// translated by the other as long as it is let out.
///
/// Classes and egress addresses have numbers in the sets, and the rules say what a number means.
/// Both change at once only within one table. So the rules in between know the numbers of both
/// states: what goes is still known, and a number that means something else now, or may do so in
/// what an interrupted change left, is held.
///
/// A former version's sets have other names. The rules in between refer to the new sets, which are
/// full by then, and nothing refers to the former ones afterwards.
pub(crate) fn tables(
    current: &NetfilterState,
    after: &NetfilterState,
    layout: MarkLayout,
) -> Tables {
    let mut tables = after.tables.clone();
    if current.tables == after.tables {
        return tables;
    }
    for family in Family::ALL {
        let of = |name: &str| (family, name.to_owned());
        let get = |tables: &Tables, name: &str| tables.get(&of(name)).cloned();
        if let (Some(old), Some(new)) = (get(&current.tables, NAT), get(&after.tables, NAT)) {
            let old = with_present_names(&old);
            let allowed = get(&current.tables, MANGLE)
                .map(|mangle| tree::leaves(&mangle.chains, SOURCE, layout))
                .unwrap_or_default();
            let (nat, unsafe_numbers) =
                translations((&old, &new), &allowed, current, family, layout);
            if let Some(mangle) = tables
                .get_mut(&of(MANGLE))
                .filter(|_| !unsafe_numbers.is_empty() || nat.chains != new.chains)
            {
                let mut known = tree::leaves(&mangle.chains, SOURCE, layout);
                // Where others translate before we do, the addresses of before may leave as little
                // as those of now.
                if known.contains_key(&AS_SELF) {
                    known.extend(allowed);
                }
                known.retain(|number, _| !unsafe_numbers.contains(number));
                replace(
                    &mut Arc::make_mut(mangle).chains,
                    SOURCE,
                    number_trees::source_tree(layout, &known),
                );
            }
            if nat.chains != new.chains {
                tables.insert(of(NAT), Arc::new(nat));
            }
        }
        if let (Some(old), Some(new)) = (get(&current.tables, MANGLE), tables.get_mut(&of(MANGLE)))
        {
            classes(&old, new, current, family, layout);
        }
    }
    tables
}

/// A nat table whose chains have the names that they have now.
fn with_present_names(table: &Table) -> Table {
    let present = |text: &String| text.replace(FORMER_SNAT_PREFIX, SNAT_PREFIX);
    let chains = table
        .chains
        .iter()
        .map(|(name, rules)| (present(name), rules.iter().map(present).collect()));
    Table {
        chains: chains.collect(),
        jumps: table.jumps.clone(),
    }
}

/// The nat table in between, and the numbers that nothing may leave with until the sets have
/// changed.
fn translations(
    (old, new): (&Table, &Table),
    allowed: &BTreeMap<u16, String>,
    current: &NetfilterState,
    family: Family,
    layout: MarkLayout,
) -> (Table, BTreeSet<u16>) {
    let (before, wanted) = (
        tree::leaves(&old.chains, SOURCE, layout),
        tree::leaves(&new.chains, SOURCE, layout),
    );
    let in_use = OnceCell::new();
    let used = |number: u16| {
        let places = |name: &String| {
            name.starts_with(VERDICTS_PREFIX) || name.starts_with(FORMER_VERDICTS_PREFIX)
        };
        in_use
            .get_or_init(|| Used::by(current, family, layout, layout.all(), places))
            .contains(number)
    };
    let chain = |table: &Table, leaf: &String| {
        tree::goal(leaf)
            .and_then(|name| table.chains.get(name))
            .cloned()
    };
    let (mut nat, mut risky) = (new.clone(), BTreeSet::new());
    let mut all = wanted.clone();
    for (number, leaf) in &before {
        match wanted.get(number) {
            Some(other) if chain(old, leaf) == chain(new, other) => {}
            Some(_) => drop(risky.insert(*number)),
            None => drop(all.insert(*number, leaf.clone())),
        }
        if let (Some(name), Some(rules)) = (
            tree::goal(leaf).filter(|name| name.starts_with(SNAT_PREFIX)),
            chain(old, leaf),
        ) {
            nat.chains.insert(name.to_owned(), rules);
        }
    }
    // What nothing leaves with now was held by an interrupted change, and its entries may mean
    // another address.
    risky.extend(all.keys().filter(|number| {
        !(before.contains_key(number) && allowed.contains_key(number)) && used(**number)
    }));
    replace(
        &mut nat.chains,
        SOURCE,
        number_trees::translation_tree(layout, &all),
    );
    // What the mangle table of before lets out is translated until that one has changed.
    keep(&mut nat.chains, old, POSTROUTING, 0);
    keep(&mut nat.chains, old, SNAT_NODE, 1);
    (nat, risky)
}

/// Adds the rules of a chain that the old table had besides, before so many of the last ones.
fn keep(chains: &mut Chains, old: &Table, name: &str, before: usize) {
    let (Some(rules), Some(old)) = (chains.get_mut(name), old.chains.get(name)) else {
        return;
    };
    let kept: Vec<_> = old
        .iter()
        .filter(|rule| !rules.contains(rule))
        .cloned()
        .collect();
    let at = rules.len().saturating_sub(before);
    rules.splice(at..at, kept);
}

/// Makes the mangle table know the classes of both states.
fn classes(
    old: &Table,
    new: &mut Arc<Table>,
    current: &NetfilterState,
    family: Family,
    layout: MarkLayout,
) {
    let (before, wanted) = (
        tree::leaves(&old.chains, CLASS, layout),
        tree::leaves(&new.chains, CLASS, layout),
    );
    let in_use = OnceCell::new();
    let used = |number: u16| {
        let pods = [
            Common::Pods.name(family),
            Common::Subnets.name(family),
            former_subnets(family),
        ];
        in_use
            .get_or_init(|| {
                Used::by(
                    current,
                    family,
                    layout,
                    layout.scratch(),
                    |name: &String| pods.contains(name),
                )
            })
            .contains(number)
    };
    let mut all = wanted.clone();
    for (number, leaf) in &mut all {
        if before.get(number) != Some(leaf) && used(*number) {
            *leaf = format!("-g {HELD}");
        }
    }
    for (number, leaf) in before
        .iter()
        .filter(|(number, _)| !wanted.contains_key(number))
    {
        all.insert(*number, leaf.clone());
    }
    if all == wanted {
        return;
    }
    let table = Arc::make_mut(new);
    for name in before
        .values()
        .filter_map(|leaf| tree::goal(leaf))
        .filter(|name| name.starts_with(CLASS_PREFIX))
    {
        if let (false, Some(rules)) = (table.chains.contains_key(name), old.chains.get(name)) {
            table.chains.insert(name.to_owned(), rules.clone());
        }
    }
    replace(
        &mut table.chains,
        CLASS,
        number_trees::class_tree(layout, &all),
    );
}

/// Takes a tree out of a table and puts another one in.
fn replace(chains: &mut Chains, root: &str, tree: Chains) {
    chains.retain(|name, _| !tree::is_part(name, root));
    chains.extend(tree);
}

/// Numbers that entries have.
enum Used {
    These(BTreeSet<u16>),
    /// Entries of another mark mask: they may be taken for anything.
    Any,
}

impl Used {
    /// The numbers in the sets of one family that `of` chooses, whose entries set the bits of
    /// `mask`.
    fn by(
        state: &NetfilterState,
        family: Family,
        layout: MarkLayout,
        mask: u32,
        of: impl Fn(&String) -> bool,
    ) -> Self {
        let is_of = |set: &Set| set.shape.is_none_or(|shape| shape.family == family);
        let mut numbers = BTreeSet::new();
        for (_, set) in state
            .sets
            .iter()
            .filter(|(name, set)| of(name) && is_of(set))
        {
            for entry in set.entries.values() {
                match entry {
                    Entry::Mark { value, mask: own } if *own == mask => {
                        numbers.insert(layout.number_in(*value));
                    }
                    _ => return Self::Any,
                }
            }
        }
        Self::These(numbers)
    }

    fn contains(&self, number: u16) -> bool {
        match self {
            Self::These(numbers) => numbers.contains(&number),
            Self::Any => true,
        }
    }
}
