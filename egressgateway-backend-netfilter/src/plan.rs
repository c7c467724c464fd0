//! From one state to another.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write as _},
};

use egressgateway::{Plan, model::Family};
use ipnet::IpNet;

use crate::{
    names::{Common, TABLES},
    set::{Entry, Kind, Set, Shape, family},
    state::{Jump, NetfilterState, Table},
};

/// What to do with sets, and what to give to `iptables-restore --noflush`, step by step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetfilterPlan {
    pub(crate) steps: Vec<Step>,
}

/// One step: its parts reach the kernel together or one after the other, but nothing else comes between.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Over netlink.
    Sets(Vec<SetChange>),
    /// One transaction per table.
    Restore { family: Family, script: String },
}

/// One change of a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SetChange {
    Create(String, Shape),
    /// Entries that are not there, or are there and change what they say.
    Add {
        set: String,
        kind: Kind,
        entries: Vec<(IpNet, Entry)>,
        new: bool,
    },
    Delete {
        set: String,
        kind: Kind,
        entries: Vec<(IpNet, Entry)>,
    },
    Destroy(String),
}

impl Plan for NetfilterPlan {
    fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }
}

impl fmt::Display for NetfilterPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            match step {
                Step::Sets(changes) => {
                    writeln!(f, "# ipset restore")?;
                    changes.iter().try_for_each(|change| write!(f, "{change}"))?;
                }
                Step::Restore { family: Family::V4, script } => write!(f, "# iptables-restore --noflush\n{script}")?,
                Step::Restore { family: Family::V6, script } => write!(f, "# ip6tables-restore --noflush\n{script}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for SetChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create(set, shape) => writeln!(f, "create {set} {shape}"),
            Self::Destroy(set) => writeln!(f, "destroy {set}"),
            Self::Add { set, entries, new, .. } => entries.iter().try_for_each(|(net, entry)| {
                let exist = if *new { "" } else { " -exist" };
                match entry {
                    Entry::In => writeln!(f, "add {set} {}{exist}", short(*net)),
                    Entry::Out => writeln!(f, "add {set} {} nomatch{exist}", short(*net)),
                    Entry::Mark { value, mask } => writeln!(f, "add {set} {} skbmark {value:#x}/{mask:#x}{exist}", short(*net)),
                }
            }),
            Self::Delete { set, entries, .. } => entries.iter().try_for_each(|(net, _)| writeln!(f, "del {set} {}", short(*net))),
        }
    }
}

/// As ipset prints it: a whole address without a prefix length.
fn short(net: IpNet) -> String {
    if net.prefix_len() == family(net).bits() { net.addr().to_string() } else { net.to_string() }
}

/// What leads from `current` to `after`.
pub(crate) fn plan(current: &NetfilterState, after: &NetfilterState) -> NetfilterPlan {
    // A set of the wrong type can't be replaced while rules refer to it.
    let wrong = |(name, set): (&String, &Set)| after.sets.get(name).is_some_and(|wanted| wanted.shape != set.shape);
    if current.sets.iter().any(wrong) {
        let empty = NetfilterState::default();
        let mut steps = plan(current, &empty).steps;
        steps.extend(plan(&empty, after).steps);
        return NetfilterPlan { steps };
    }
    let (before, later) = sets(current, after);
    let mut steps = Vec::new();
    steps.extend(Some(before).filter(|changes| !changes.is_empty()).map(Step::Sets));
    for family in Family::ALL {
        steps.extend(
            Some(restore(current, after, family)).filter(|script| !script.is_empty()).map(|script| Step::Restore { family, script }),
        );
    }
    steps.extend(Some(later).filter(|changes| !changes.is_empty()).map(Step::Sets));
    NetfilterPlan { steps }
}

/// What changes in sets before the rules do, and after.
///
/// Where a class goes is known before a pod has it, and a pod is known to be classified after it is. So no packet meets less than its
/// policy, in whatever moment it comes.
fn sets(current: &NetfilterState, after: &NetfilterState) -> (Vec<SetChange>, Vec<SetChange>) {
    let (mut before, mut places, mut later, mut known, mut last) = (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (name, set) in &after.sets {
        let Some(old) = current.sets.get(name) else {
            before.push(SetChange::Create(name.clone(), set.shape));
            before.extend(added(name, set.shape.kind, set.entries.clone(), true));
            continue;
        };
        let Difference { new, changed, gone } = Difference::of(&old.entries, &set.entries);
        let is = |common: Common| Family::ALL.iter().any(|family| common.name(*family) == *name);
        // A place names a target and a source that the rules must know first.
        let add = if !Common::ALL.into_iter().any(is) {
            &mut places
        } else if is(Common::Pods) || is(Common::Nets) {
            &mut later
        } else if is(Common::Known) {
            &mut known
        } else {
            &mut before
        };
        add.extend(added(name, set.shape.kind, new, true));
        add.extend(added(name, set.shape.kind, changed, false));
        if !gone.is_empty() {
            let delete = SetChange::Delete { set: name.clone(), kind: set.shape.kind, entries: gone.into_iter().collect() };
            if is(Common::Known) { before.push(delete) } else { last.push(delete) }
        }
    }
    last.extend(current.sets.keys().filter(|name| !after.sets.contains_key(*name)).cloned().map(SetChange::Destroy));
    (before, [places, later, known, last].concat())
}

fn added(set: &str, kind: Kind, entries: BTreeMap<IpNet, Entry>, new: bool) -> Option<SetChange> {
    let entries: Vec<_> = entries.into_iter().collect();
    (!entries.is_empty()).then(|| SetChange::Add { set: set.to_owned(), kind, entries, new })
}

struct Difference {
    new: BTreeMap<IpNet, Entry>,
    changed: BTreeMap<IpNet, Entry>,
    gone: BTreeMap<IpNet, Entry>,
}

impl Difference {
    fn of(old: &BTreeMap<IpNet, Entry>, wanted: &BTreeMap<IpNet, Entry>) -> Self {
        let mut difference = Self { new: BTreeMap::new(), changed: BTreeMap::new(), gone: BTreeMap::new() };
        for (net, entry) in wanted {
            match old.get(net) {
                None => drop(difference.new.insert(*net, *entry)),
                Some(other) if other != entry => drop(difference.changed.insert(*net, *entry)),
                Some(_) => {}
            }
        }
        difference.gone = old.iter().filter(|(net, _)| !wanted.contains_key(*net)).map(|(net, entry)| (*net, *entry)).collect();
        difference
    }
}

/// The script for one family; empty when nothing changes.
fn restore(current: &NetfilterState, after: &NetfilterState, family: Family) -> String {
    let none = Table::default();
    // What pins connections comes last, and goes first.
    let order: Vec<&str> = if after.exists() { TABLES.to_vec() } else { TABLES.into_iter().rev().collect() };
    let script = order.into_iter().map(|name| {
        let key = (family, name.to_owned());
        transaction(name, current.tables.get(&key).unwrap_or(&none), after.tables.get(&key).unwrap_or(&none))
    });
    script.collect()
}

/// What changes one table. Chains are replaced as a whole; one that stays as it is keeps its counters.
fn transaction(name: &str, current: &Table, after: &Table) -> String {
    let written: Vec<_> = after.chains.iter().filter(|(chain, rules)| current.chains.get(*chain) != Some(rules)).collect();
    let gone: BTreeSet<_> = current.chains.keys().filter(|chain| !after.chains.contains_key(*chain)).collect();
    let jumps = if current.jumps == after.jumps { None } else { Some((&current.jumps, &after.jumps)) };
    if written.is_empty() && gone.is_empty() && jumps.is_none() {
        return String::new();
    }
    let mut script = format!("*{name}\n");
    for chain in written.iter().map(|(chain, _)| *chain).chain(gone.iter().copied()) {
        let _ = writeln!(script, ":{chain} - [0:0]");
    }
    for (chain, rules) in &written {
        for rule in *rules {
            let _ = writeln!(script, "-A {chain} {rule}");
        }
    }
    if let Some((old, new)) = jumps {
        for Jump { chain, rule, .. } in old {
            let _ = writeln!(script, "-D {chain} {rule}");
        }
        for Jump { chain, rule, .. } in new {
            let _ = writeln!(script, "-I {chain} 1 {rule}");
        }
    }
    for chain in gone {
        let _ = writeln!(script, "-X {chain}");
    }
    script + "COMMIT\n"
}
