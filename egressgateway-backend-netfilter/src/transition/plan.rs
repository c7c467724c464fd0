//! From one state to another.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write as _},
    sync::Arc,
};

use egressgateway::{Plan, model::Family};
use imbl::ordmap::DiffItem;
use ipnet::IpNet;

use crate::{
    mark_layout::MarkLayout,
    names::{Common, NOT_PEER, START_GATE, TABLES, UNKNOWN_SOURCE, VERDICTS_PREFIX, temporary},
    ruleset::table::{Jump, Table, Tables},
    sets::set::{Entry, Kind, Set, Shape, family},
    state::NetfilterState,
    transition::between,
};

/// What to do with sets, and what to give to `iptables-restore --noflush`, step by step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetfilterPlan {
    pub(crate) steps: Vec<Step>,
}

/// One step. At any time between two of them, and between two writes of one, a new connection
/// meets what the state before or the one after says of its pod's class, before or after, or is
/// dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Over netlink, one after the other.
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
    /// One set takes the place of the other, in all rules at once.
    Swap {
        set: String,
        with: String,
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
                    changes
                        .iter()
                        .try_for_each(|change| write!(f, "{change}"))?;
                }
                Step::Restore {
                    family: Family::V4,
                    script,
                } => write!(f, "# iptables-restore --noflush\n{script}")?,
                Step::Restore {
                    family: Family::V6,
                    script,
                } => write!(f, "# ip6tables-restore --noflush\n{script}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for SetChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create(set, shape) => writeln!(f, "create {set} {shape}"),
            Self::Swap { set, with } => writeln!(f, "swap {set} {with}"),
            Self::Destroy(set) => writeln!(f, "destroy {set}"),
            Self::Add {
                set, entries, new, ..
            } => entries.iter().try_for_each(|(net, entry)| {
                let exist = if *new { "" } else { " -exist" };
                match entry {
                    Entry::In => writeln!(f, "add {set} {}{exist}", short(*net)),
                    Entry::Out => writeln!(f, "add {set} {} nomatch{exist}", short(*net)),
                    Entry::Mark { value, mask } => writeln!(
                        f,
                        "add {set} {} skbmark {value:#x}/{mask:#x}{exist}",
                        short(*net)
                    ),
                }
            }),
            Self::Delete { set, entries, .. } => entries
                .iter()
                .try_for_each(|(net, _)| writeln!(f, "del {set} {}", short(*net))),
        }
    }
}

/// As ipset prints it: a whole address without a prefix length.
fn short(net: IpNet) -> String {
    if net.prefix_len() == family(net).bits() {
        net.addr().to_string()
    } else {
        net.to_string()
    }
}

/// What leads from `current` to `after`.
pub(crate) fn plan(
    current: &NetfilterState,
    after: &NetfilterState,
    layout: MarkLayout,
) -> NetfilterPlan {
    let mut plan = NetfilterPlan::default();
    let held = plan.hold_wrong_sets(current, after);
    let current = held.as_ref().unwrap_or(current);
    let without = plan.drop_left_over(current, after);
    let current = without.as_ref().unwrap_or(current);
    let sets = SetChanges::between(current, after);
    let between = between::tables(current, after, layout);
    plan.sets(sets.before);
    plan.tables(&current.tables, &between);
    plan.sets(sets.later);
    plan.tables(&between, &after.tables);
    plan.sets(sets.last);
    plan
}

impl NetfilterPlan {
    /// Adds to the step before, if that is about sets too.
    fn sets(&mut self, changes: Vec<SetChange>) {
        match self.steps.last_mut() {
            _ if changes.is_empty() => {}
            Some(Step::Sets(before)) => before.extend(changes),
            _ => self.steps.push(Step::Sets(changes)),
        }
    }

    /// Tables in which it puts jumps of ours before all rules of others.
    pub(crate) fn puts_jumps_first(&self) -> BTreeSet<&str> {
        let scripts = self.steps.iter().filter_map(|step| {
            if let Step::Restore { script, .. } = step {
                Some(script)
            } else {
                None
            }
        });
        let tables = scripts
            .flat_map(|script| script.split("COMMIT\n"))
            .filter(|table| table.contains("\n-I "));
        tables
            .filter_map(|table| table.lines().next()?.strip_prefix('*'))
            .collect()
    }

    pub(crate) fn tables(&mut self, current: &Tables, after: &Tables) {
        for family in Family::ALL {
            let script = restore(current, after, family);
            if !script.is_empty() {
                self.steps.push(Step::Restore { family, script });
            }
        }
    }

    /// A set of the wrong shape can't be replaced while rules refer to it. Until they are written
    /// anew, rules that do are gone or drop what they can't tell apart; returns the state in which
    /// the wrong sets are gone.
    fn hold_wrong_sets(
        &mut self,
        current: &NetfilterState,
        after: &NetfilterState,
    ) -> Option<NetfilterState> {
        let wrong: BTreeSet<&str> = changed_sets(current, after)
            .filter(|(_, old, new)| old.shape != new.shape)
            .map(|(name, ..)| name)
            .collect();
        if wrong.is_empty() {
            return None;
        }
        let mut held = current.clone();
        for table in held.tables.values_mut() {
            for rules in Arc::make_mut(table).chains.values_mut() {
                *rules = rules
                    .iter()
                    .filter_map(|rule| without(rule, &wrong))
                    .collect();
            }
        }
        self.tables(&current.tables, &held.tables);
        self.sets(
            wrong
                .iter()
                .map(|name| SetChange::Destroy((*name).to_owned()))
                .collect(),
        );
        for name in wrong {
            held.sets.remove(name);
        }
        Some(held)
    }

    /// A class's set that no rule refers to is what an interrupted change left. Its entries may
    /// have numbers that the rules take for other sources, and a rule would refer to it before they
    /// are mended: it is made anew. Returns the state in which it is gone.
    fn drop_left_over(
        &mut self,
        current: &NetfilterState,
        after: &NetfilterState,
    ) -> Option<NetfilterState> {
        let mut left_over: BTreeSet<&str> = changed_sets(current, after)
            .map(|(name, ..)| name)
            .filter(|name| name.starts_with(VERDICTS_PREFIX))
            .collect();
        if left_over.is_empty() {
            return None;
        }
        for rule in current
            .tables
            .values()
            .flat_map(|table| table.chains.values())
            .flatten()
        {
            for word in rule
                .split(' ')
                .filter(|word| word.starts_with(VERDICTS_PREFIX))
            {
                left_over.remove(word);
            }
        }
        if left_over.is_empty() {
            return None;
        }
        let mut rest = current.clone();
        for name in &left_over {
            rest.sets.remove(*name);
        }
        self.sets(
            left_over
                .iter()
                .map(|name| SetChange::Destroy((*name).to_owned()))
                .collect(),
        );
        Some(rest)
    }
}

/// The sets that both states have, and that are not the same.
fn changed_sets<'a>(
    current: &'a NetfilterState,
    after: &'a NetfilterState,
) -> impl Iterator<Item = (&'a str, &'a Set, &'a Set)> {
    let changes = current.sets.diff(&after.sets);
    changes.filter_map(|change| match change {
        DiffItem::Update {
            old: (name, old),
            new: (_, new),
        } => Some((name.as_str(), old, new)),
        _ => None,
    })
}

/// A rule that refers to none of `sets`; none where there is no such rule that lets less pass.
///
/// What would be classified by them is dropped, and what they keep from being dropped is dropped
/// too. Nothing else is: other packets of the host pass these chains as well.
fn without(rule: &str, sets: &BTreeSet<&str>) -> Option<String> {
    let words: Vec<&str> = rule.split(' ').collect();
    if !words.iter().any(|word| sets.contains(word)) {
        return Some(rule.to_owned());
    }
    if words.contains(&"--map-set") {
        return Some("-j DROP".to_owned());
    }
    let (matches, goal) = rule
        .rsplit_once(" -g ")
        .filter(|(_, goal)| [NOT_PEER, START_GATE, UNKNOWN_SOURCE].contains(goal))?;
    let others = matches
        .split("-m ")
        .filter(|part| !part.split(' ').any(|word| sets.contains(word)));
    Some(format!(
        "{}-g {goal}",
        others
            .map(|part| format!("{} ", part.trim_end()))
            .collect::<Vec<_>>()
            .join("-m ")
            .trim_start()
    ))
}

/// What changes in sets before the rules do, after that, and when nothing refers to what is left
/// over.
///
/// Where a class goes is known before a pod has it. A pod that gets one is no longer known to have
/// none before that, and a pod that loses its class is known to have none before that; in between,
/// the start gate holds it. So no packet meets less than its policy, whenever it comes.
struct SetChanges {
    before: Vec<SetChange>,
    later: Vec<SetChange>,
    last: Vec<SetChange>,
}

/// From so many changes on, and at least half of what a set has, it is replaced as a whole.
const REPLACED_FROM: usize = 256;

impl SetChanges {
    fn between(current: &NetfilterState, after: &NetfilterState) -> Self {
        let (mut before, mut places, mut later, mut ungoverned) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut gone, mut last, mut replacements) = (Vec::new(), Vec::new(), BTreeSet::new());
        let is = |name: &str, common: Common| {
            Family::ALL
                .iter()
                .any(|family| common.name(*family) == name)
        };
        for change in current.sets.diff(&after.sets) {
            match change {
                DiffItem::Remove(name, _) => last.push(SetChange::Destroy(name.clone())),
                DiffItem::Add(name, set) => made(&mut before, name, set),
                DiffItem::Update {
                    old: (_, old),
                    new: (name, set),
                } => {
                    // A place names a target and a source that the rules must know first.
                    let stage: &mut Vec<SetChange> =
                        if !Common::ALL.into_iter().any(|common| is(name, common)) {
                            &mut places
                        } else if is(name, Common::Pods) || is(name, Common::Subnets) {
                            &mut later
                        } else if is(name, Common::Ungoverned) {
                            &mut ungoverned
                        } else {
                            &mut before
                        };
                    let difference = Difference::of(old, set);
                    if difference.len() >= REPLACED_FROM.max(set.entries.len() / 2) {
                        replaced(
                            stage,
                            name,
                            set,
                            current.sets.contains_key(&temporary(name)),
                        );
                        replacements.insert(temporary(name));
                        continue;
                    }
                    let Some(Shape { kind, .. }) = set.shape else {
                        continue;
                    };
                    stage.extend(added(name, kind, difference.new, true));
                    stage.extend(added(name, kind, difference.changed, false));
                    if !difference.gone.is_empty() {
                        let delete = SetChange::Delete {
                            set: name.clone(),
                            kind,
                            entries: difference.gone,
                        };
                        if is(name, Common::Ungoverned) {
                            before.push(delete);
                        } else {
                            gone.push(delete);
                        }
                    }
                }
            }
        }
        // What an interrupted replacement left over went before the new one was filled.
        let left_over = |change: &SetChange| matches!(change, SetChange::Destroy(name) if replacements.contains(name));
        last.retain(|change| !left_over(change));
        Self {
            before,
            later: [places, later, ungoverned, gone].concat(),
            last,
        }
    }
}

fn made(list: &mut Vec<SetChange>, name: &str, set: &Set) {
    let Some(shape) = set.shape else { return };
    list.push(SetChange::Create(name.to_owned(), shape));
    list.extend(added(
        name,
        shape.kind,
        set.entries
            .iter()
            .map(|(net, entry)| (*net, *entry))
            .collect(),
        true,
    ));
}

/// Filled under another name, then swapped: a packet meets all of the old entries or all of the new
/// ones.
fn replaced(list: &mut Vec<SetChange>, name: &str, set: &Set, left_over: bool) {
    let with = temporary(name);
    list.extend(left_over.then(|| SetChange::Destroy(with.clone())));
    made(list, &with, set);
    list.push(SetChange::Swap {
        set: name.to_owned(),
        with: with.clone(),
    });
    list.push(SetChange::Destroy(with));
}

fn added(set: &str, kind: Kind, entries: Vec<(IpNet, Entry)>, new: bool) -> Option<SetChange> {
    (!entries.is_empty()).then(|| SetChange::Add {
        set: set.to_owned(),
        kind,
        entries,
        new,
    })
}

#[derive(Default)]
struct Difference {
    new: Vec<(IpNet, Entry)>,
    changed: Vec<(IpNet, Entry)>,
    gone: Vec<(IpNet, Entry)>,
}

impl Difference {
    fn of(old: &Set, wanted: &Set) -> Self {
        let mut difference = Self::default();
        for change in old.entries.diff(&wanted.entries) {
            match change {
                DiffItem::Add(net, entry) => difference.new.push((*net, *entry)),
                DiffItem::Update {
                    new: (net, entry), ..
                } => difference.changed.push((*net, *entry)),
                DiffItem::Remove(net, entry) => difference.gone.push((*net, *entry)),
            }
        }
        difference
    }

    fn len(&self) -> usize {
        self.new.len() + self.changed.len() + self.gone.len()
    }
}

/// The script for one family; empty when nothing changes.
fn restore(current: &Tables, after: &Tables, family: Family) -> String {
    let none = Arc::default();
    // What pins connections comes last, and goes first.
    let order: Vec<&str> = if after.is_empty() {
        TABLES.into_iter().rev().collect()
    } else {
        TABLES.to_vec()
    };
    let script = order.into_iter().map(|name| {
        let key = (family, name.to_owned());
        transaction(
            name,
            current.get(&key).unwrap_or(&none),
            after.get(&key).unwrap_or(&none),
        )
    });
    script.collect()
}

/// What changes one table. Chains are replaced as a whole; one that stays as it is keeps its
/// counters.
fn transaction(name: &str, current: &Arc<Table>, after: &Arc<Table>) -> String {
    if Arc::ptr_eq(current, after) {
        return String::new();
    }
    let written: BTreeMap<_, _> = after
        .chains
        .iter()
        .filter(|(chain, rules)| current.chains.get(*chain) != Some(rules))
        .collect();
    let gone: BTreeSet<_> = current
        .chains
        .keys()
        .filter(|chain| !after.chains.contains_key(*chain))
        .collect();
    // All jumps of a chain in which one is not as it should be: `-D` takes the first of two alike.
    let wrong: BTreeSet<_> = current
        .jumps
        .symmetric_difference(&after.jumps)
        .map(|jump| &jump.chain)
        .collect();
    if written.is_empty() && gone.is_empty() && wrong.is_empty() {
        return String::new();
    }
    let mut script = format!("*{name}\n");
    for chain in written.keys().chain(&gone) {
        let _ = writeln!(script, ":{chain} - [0:0]");
    }
    for (chain, rules) in &written {
        for rule in *rules {
            let _ = writeln!(script, "-A {chain} {rule}");
        }
    }
    for Jump { chain, rule, .. } in current
        .jumps
        .iter()
        .filter(|jump| wrong.contains(&jump.chain))
    {
        let _ = writeln!(script, "-D {chain} {rule}");
    }
    for Jump { chain, rule, .. } in after
        .jumps
        .iter()
        .filter(|jump| wrong.contains(&jump.chain))
    {
        let _ = writeln!(script, "-I {chain} 1 {rule}");
    }
    for chain in gone {
        let _ = writeln!(script, "-X {chain}");
    }
    script + "COMMIT\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_without_its_set_lets_less_pass_and_drops_nothing_of_others() {
        let sets = [
            "egw-peers-v4",
            "egw-pods-v4",
            "egw-ungoverned-v4",
            "egw-exempt-v4",
        ]
        .into();
        for (rule, wanted) in [
            (
                "-m conntrack --ctdir REPLY -j RETURN",
                Some("-m conntrack --ctdir REPLY -j RETURN"),
            ),
            ("-m set --match-set egw-exempt-v4 dst -j RETURN", None),
            (
                "-j SET --map-set egw-pods-v4 src --map-mark",
                Some("-j DROP"),
            ),
            (
                "-p udp -m udp --dport 7789 -m addrtype --dst-type LOCAL -m set ! --match-set egw-peers-v4 src -g EGW-NOT-PEER",
                Some("-p udp -m udp --dport 7789 -m addrtype --dst-type LOCAL -g EGW-NOT-PEER"),
            ),
            (
                "-m set --match-set egw-local-v4 src -m set ! --match-set egw-ungoverned-v4 src -m set --match-set egw-governed-v4 dst -g EGW-START-GATE",
                Some(
                    "-m set --match-set egw-local-v4 src -m set --match-set egw-governed-v4 dst -g EGW-START-GATE",
                ),
            ),
        ] {
            assert_eq!(without(rule, &sets).as_deref(), wanted, "{rule}");
        }
    }
}
