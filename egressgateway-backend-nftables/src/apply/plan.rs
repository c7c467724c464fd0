//! The difference of two states as one transaction of nft.

use std::{
    fmt::{self, Write as _},
    net::IpAddr,
    sync::Arc,
};

use egressgateway::{
    Plan,
    model::{ClassId, Family, IpRange},
};
use imbl::{OrdMap, OrdSet, ordmap, ordset};

use crate::{
    apply::element_batch::{self, ExactChange},
    ruleset::ast::{Chain, Jump, Statement},
    ruleset::names::{
        CHANGING, DEVICES, ELEMENTS_PER_COMMAND, EXITS, Scope, SetName, TARGETS, leave_chain,
    },
    sets::elements::{self, ExitAs, Leave, Steer},
    sets::ranges::ElementKey,
    state::NftState,
};

/// One transaction, or two where the second one ends what the first one holds meanwhile, or some
/// more where a former version's sets have other names; its `Display` is a script that `nft -c -f`
/// accepts on the host that it was made for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NftPlan {
    verb: &'static str,
    /// A transaction before `script`: fills sets that no rule refers to yet.
    preparation: String,
    script: String,
    /// Transactions after `script`: remove what nothing refers to any more.
    removals: Vec<String>,
    /// The same, where it is about few single addresses only.
    exact: Option<Vec<ExactChange>>,
    /// Classes wait from the first transaction, or from an earlier one that was interrupted, until
    /// a second one.
    ends_change: bool,
    scope: Scope,
}

impl NftPlan {
    /// What it does, for the write hook and for errors.
    #[must_use]
    pub fn verb(&self) -> &'static str {
        self.verb
    }

    /// The same as messages to the kernel, where nft is not needed.
    pub(crate) fn exact(&self) -> Option<&[ExactChange]> {
        self.exact.as_deref()
    }

    /// What nft reads; nothing where no more is left to do than [`Self::ends_change`].
    #[must_use]
    pub fn script(&self) -> &str {
        &self.script
    }

    /// What nft reads before [`Self::script`], in a transaction of its own.
    pub(crate) fn preparation(&self) -> &str {
        &self.preparation
    }

    /// What nft reads after [`Self::script`], each in a transaction of its own.
    pub(crate) fn removals(&self) -> &[String] {
        &self.removals
    }

    /// Whether classes that wait are to be let go afterwards, in a transaction of its own.
    #[must_use]
    pub fn ends_change(&self) -> bool {
        self.ends_change
    }
}

impl fmt::Display for NftPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.preparation)?;
        f.write_str(&self.script)?;
        self.removals
            .iter()
            .try_for_each(|script| f.write_str(script))?;
        if self.ends_change {
            writeln!(f, "flush set {} {CHANGING}", self.scope.path())
        } else {
            Ok(())
        }
    }
}

impl Plan for NftPlan {
    fn is_empty(&self) -> bool {
        self.preparation.is_empty()
            && self.script.is_empty()
            && self.removals.is_empty()
            && !self.ends_change
    }
}

/// What leads from `current` to `after`.
pub(crate) fn plan(scope: Scope, current: &NftState, after: &NftState) -> NftPlan {
    let path = scope.path();
    match (current.exists, after.exists) {
        (false, false) => NftPlan {
            scope,
            ..NftPlan::default()
        },
        (true, false) => NftPlan {
            verb: "delete table",
            script: format!("delete table {path}\n"),
            scope,
            ..NftPlan::default()
        },
        (false, true) => from_nothing(scope, "create table", format!("add table {path}\n"), after),
        (true, true) if must_replace(current, after) => {
            let begin = format!("add table {path}\ndelete table {path}\nadd table {path}\n");
            from_nothing(scope, "replace table", begin, after)
        }
        (true, true) => {
            let prepared = beside_former(current, after);
            let preparation = prepared.as_ref().map_or_else(String::new, |prepared| {
                changes(scope, current, prepared, &OrdSet::new())
            });
            let current = prepared.as_ref().unwrap_or(current);
            let changing = current.elements.changing_to(&after.elements);
            let ends_change = !changing.is_empty() || !current.elements.changing.is_empty();
            NftPlan {
                verb: "update table",
                preparation,
                script: changes(scope, current, after, &changing),
                removals: removals(scope, current, after),
                exact: element_batch::between(current, after),
                ends_change,
                scope,
            }
        }
    }
}

fn from_nothing(scope: Scope, verb: &'static str, begin: String, after: &NftState) -> NftPlan {
    let nothing = NftState::default();
    let changing = nothing.elements.changing_to(&after.elements);
    let ends_change = !changing.is_empty();
    NftPlan {
        verb,
        script: begin + &changes(scope, &nothing, after, &changing),
        ends_change,
        scope,
        ..NftPlan::default()
    }
}

/// The state in which the sets that a former version named otherwise are there under their present
/// names and as `after` has them, and no rule refers to them yet; none where rules do.
///
/// Ranges of concatenations show a moment later than the rest of their transaction. With the sets
/// full before the rules change, a new connection finds its verdict at every moment.
fn beside_former(current: &NftState, after: &NftState) -> Option<NftState> {
    let in_use = || {
        let mut statements = current
            .chains
            .values()
            .flat_map(|chain| chain.rules.iter().flatten());
        statements.any(|statement| matches!(statement, Statement::VerdictOf { .. }))
    };
    if current.former.is_empty() || in_use() {
        return None;
    }
    let mut chains = (*current.chains).clone();
    // Maps name the chains that their verdicts lead to. The kernel would enter a base chain.
    let missing = after
        .chains
        .iter()
        .filter(|(name, chain)| chain.hook.is_none() && !current.chains.contains_key(*name));
    chains.extend(missing.map(|(name, chain)| (name.clone(), chain.clone())));
    let wanted = after.elements.clone();
    Some(NftState {
        counters: after.counters.clone(),
        declarations: after.declarations.clone(),
        chains: Arc::new(chains),
        elements: elements::Elements {
            subnets: wanted.subnets,
            steer: wanted.steer,
            exit: wanted.exit,
            addresses: wanted.addresses,
            keep_source: wanted.keep_source,
            ..current.elements.clone()
        },
        ..current.clone()
    })
}

/// Removes sets with former names once no rule refers to them, and then chains that their verdicts
/// led to: an older kernel lets go of these chains only when the transaction is over.
fn removals(scope: Scope, current: &NftState, after: &NftState) -> Vec<String> {
    if current.former.is_empty() {
        return Vec::new();
    }
    let mut sets = Script::new(scope);
    for (set, family) in &current.former {
        if let Some(name) = set.former_name(*family) {
            let noun = set.declaration(*family).noun();
            sets.line(format_args!("delete {noun} {} {name}", scope.path()));
        }
    }
    let mut chains = Script::new(scope);
    chains.delete_gone_chains(current, after);
    [sets, chains]
        .map(|script| script.text)
        .into_iter()
        .filter(|text| !text.is_empty())
        .collect()
}

/// Declarations and hooks can't be changed in place, and somebody else's objects may refer to ours:
/// then the table is made anew, in the same transaction. Its counters begin at zero.
fn must_replace(current: &NftState, after: &NftState) -> bool {
    let declared_otherwise = current
        .declarations
        .iter()
        .any(|(name, declaration)| after.declarations.get(name) != Some(declaration));
    let hooked_otherwise = current.chains.iter().any(|(name, chain)| {
        after
            .chains
            .get(name)
            .is_some_and(|other| other.hook != chain.hook)
    });
    declared_otherwise
        || hooked_otherwise
        || !current.foreign.is_empty()
        || !current.counters.is_subset(&after.counters)
}

/// Objects are made before what refers to them, and go after it; within a set old elements go
/// before new ones come, because ranges may overlap. Classes that are `changing` wait from the same
/// moment on.
fn changes(
    scope: Scope,
    current: &NftState,
    after: &NftState,
    changing: &OrdSet<ClassId>,
) -> String {
    let path = scope.path();
    let mut script = Script::new(scope);
    for counter in after.counters.difference(&current.counters) {
        script.line(format_args!("add counter {path} {counter}"));
    }
    for (name, declaration) in after
        .declarations
        .iter()
        .filter(|(name, _)| !current.declarations.contains_key(*name))
    {
        script.line(format_args!(
            "add {} {path} {name} {declaration}",
            declaration.noun()
        ));
    }
    for (name, chain) in after
        .chains
        .iter()
        .filter(|(name, _)| !current.chains.contains_key(*name))
    {
        match &chain.hook {
            Some(hook) => script.line(format_args!("add chain {path} {name} {hook}")),
            None => script.line(format_args!("add chain {path} {name}")),
        }
    }
    script.rules(current, after);
    let elements = Elements::between(current, after, changing);
    for (set, elements) in &elements.0 {
        script.elements("delete", set, &elements.gone);
    }
    for (set, elements) in &elements.0 {
        script.elements("add", set, &elements.come);
    }
    script.flush_gone_chains(current, after);
    // Maps with former names may still lead to these chains.
    if current.former.is_empty() {
        script.delete_gone_chains(current, after);
    }
    script.text
}

fn gone_chains<'a>(current: &'a NftState, after: &'a NftState) -> impl Iterator<Item = &'a String> {
    current
        .chains
        .keys()
        .filter(|name| !after.chains.contains_key(*name))
}

struct Script {
    text: String,
    path: &'static str,
}

impl Script {
    fn new(scope: Scope) -> Self {
        Self {
            text: String::new(),
            path: scope.path(),
        }
    }

    fn line(&mut self, line: fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = self.text.write_fmt(line);
        self.text.push('\n');
    }

    /// Chains whose rules differ get all of them anew.
    fn rules(&mut self, current: &NftState, after: &NftState) {
        if Arc::ptr_eq(&current.chains, &after.chains) {
            return;
        }
        let (none, path) = (Chain::default(), self.path);
        for (name, chain) in after.chains.iter() {
            let before = current.chains.get(name).unwrap_or(&none);
            if before.rules == chain.rules {
                continue;
            }
            if !before.rules.is_empty() {
                self.line(format_args!("flush chain {path} {name}"));
            }
            for rule in &chain.rules {
                let _ = write!(self.text, "add rule {path} {name}");
                for statement in rule {
                    let _ = write!(self.text, " {statement}");
                }
                self.text.push('\n');
            }
        }
    }

    fn flush_gone_chains(&mut self, current: &NftState, after: &NftState) {
        let path = self.path;
        for name in gone_chains(current, after) {
            self.line(format_args!("flush chain {path} {name}"));
        }
    }

    fn delete_gone_chains(&mut self, current: &NftState, after: &NftState) {
        let path = self.path;
        for name in gone_chains(current, after) {
            self.line(format_args!("delete chain {path} {name}"));
        }
    }

    fn elements(&mut self, verb: &str, set: &str, elements: &[String]) {
        let path = self.path;
        for chunk in elements.chunks(ELEMENTS_PER_COMMAND) {
            self.line(format_args!(
                "{verb} element {path} {set} {{ {} }}",
                chunk.join(", ")
            ));
        }
    }
}

/// What goes from and comes to one set.
#[derive(Default)]
struct Difference {
    gone: Vec<String>,
    come: Vec<String>,
}

/// What goes and comes, by set.
struct Elements(Vec<(&'static str, Difference)>);

impl Elements {
    fn between(current: &NftState, after: &NftState, changing: &OrdSet<ClassId>) -> Self {
        let (old, new) = (&current.elements, &after.elements);
        let mut all = Self(Vec::new());
        all.set_named(
            &old.changing,
            &old.changing.clone().union(changing.clone()),
            |_| CHANGING,
        );
        all.set(SetName::Exempt, &old.exempt, &new.exempt);
        all.set(SetName::Local, &old.local, &new.local);
        all.set(SetName::Wide, &old.wide, &new.wide);
        all.set(SetName::Ungoverned, &old.ungoverned, &new.ungoverned);
        all.set(SetName::Governed, &old.governed, &new.governed);
        all.set(SetName::Peers, &old.peers, &new.peers);
        all.set(SetName::Own, &old.own, &new.own);
        all.set(SetName::Hosts, &old.hosts, &new.hosts);
        all.set(SetName::Relayed, &old.relayed, &new.relayed);
        all.map(SetName::Pods, &old.pods, &new.pods);
        all.map(SetName::Subnets, &old.subnets, &new.subnets);
        all.map(SetName::Verdicts, &old.steer, &new.steer);
        all.map(SetName::SnatKind, &old.exit, &new.exit);
        all.map(SetName::SnatAddress, &old.addresses, &new.addresses);
        all.set(SetName::KeepSource, &old.keep_source, &new.keep_source);
        all.map(SetName::Node, &old.node, &new.node);
        all.map(SetName::Via, &old.via, &new.via);
        all.set_named(&old.exits, &new.exits, |_| EXITS);
        all.map_named(&old.targets, &new.targets, |_| TARGETS);
        all.set_named(&old.devices, &new.devices, |_| DEVICES);
        all
    }

    fn set<K: Key + Ord + Clone>(&mut self, set: SetName, old: &OrdSet<K>, new: &OrdSet<K>) {
        self.set_named(old, new, |key| set.name(key.family()));
    }

    fn map<K: Key + Ord + Clone, V: Datum + PartialEq + Clone>(
        &mut self,
        set: SetName,
        old: &OrdMap<K, V>,
        new: &OrdMap<K, V>,
    ) {
        self.map_named(old, new, |key| set.name(key.family()));
    }

    fn set_named<K: Text + Ord + Clone>(
        &mut self,
        old: &OrdSet<K>,
        new: &OrdSet<K>,
        name: impl Fn(&K) -> &'static str,
    ) {
        for change in old.diff(new) {
            match change {
                ordset::DiffItem::Remove(key) => self.of(name(key)).gone.push(key.text()),
                ordset::DiffItem::Add(key) => self.of(name(key)).come.push(key.text()),
            }
        }
    }

    fn map_named<K: Text + Ord + Clone, V: Datum + PartialEq + Clone>(
        &mut self,
        old: &OrdMap<K, V>,
        new: &OrdMap<K, V>,
        name: impl Fn(&K) -> &'static str,
    ) {
        let entry = |key: &K, value: &V| format!("{} : {}", key.text(), value.datum());
        for change in old.diff(new) {
            match change {
                ordmap::DiffItem::Remove(key, _) => self.of(name(key)).gone.push(key.text()),
                ordmap::DiffItem::Add(key, value) => {
                    self.of(name(key)).come.push(entry(key, value));
                }
                ordmap::DiffItem::Update {
                    new: (key, value), ..
                } => {
                    let set = self.of(name(key));
                    set.gone.push(key.text());
                    set.come.push(entry(key, value));
                }
            }
        }
    }

    /// The difference of the set with this name; they are few.
    fn of(&mut self, set: &'static str) -> &mut Difference {
        let at = self
            .0
            .iter()
            .position(|(name, _)| *name == set)
            .unwrap_or_else(|| {
                self.0.push((set, Difference::default()));
                self.0.len() - 1
            });
        &mut self.0[at].1
    }
}

/// A key of a set, as nft writes it.
trait Text {
    fn text(&self) -> String;
}

/// A key whose set there is once per family.
trait Key: Text {
    fn family(&self) -> Family;
}

/// A value of a map, as nft writes it.
trait Datum {
    fn datum(&self) -> String;
}

impl Text for IpAddr {
    fn text(&self) -> String {
        self.to_string()
    }
}

impl Key for IpAddr {
    fn family(&self) -> Family {
        Family::of(*self)
    }
}

impl Text for IpRange {
    fn text(&self) -> String {
        self.to_string()
    }
}

impl Key for IpRange {
    fn family(&self) -> Family {
        IpRange::family(self)
    }
}

impl Text for ElementKey {
    /// A single address as a prefix: where a key of several parts has none, nft 1.0.6 names its end
    /// when it adds the element and not when it deletes it, and the kernel finds no such element.
    fn text(&self) -> String {
        let (class, range) = self;
        match range.as_prefix() {
            Some(prefix) => format!("{class} . {prefix}"),
            None => format!("{class} . {range}"),
        }
    }
}

impl Key for ElementKey {
    fn family(&self) -> Family {
        self.1.family()
    }
}

impl Text for (String, Family) {
    fn text(&self) -> String {
        self.0.text()
    }
}

impl Key for (String, Family) {
    fn family(&self) -> Family {
        self.1
    }
}

impl Text for u32 {
    fn text(&self) -> String {
        format!("{self:#010x}")
    }
}

impl Text for String {
    fn text(&self) -> String {
        format!("\"{self}\"")
    }
}

impl Text for ClassId {
    fn text(&self) -> String {
        self.to_string()
    }
}

impl Datum for ClassId {
    fn datum(&self) -> String {
        self.to_string()
    }
}

impl Datum for IpAddr {
    fn datum(&self) -> String {
        self.to_string()
    }
}

impl Datum for Jump {
    fn datum(&self) -> String {
        self.to_string()
    }
}

impl Datum for Steer {
    fn datum(&self) -> String {
        format!("goto {}", self.chain())
    }
}

impl Datum for Leave {
    fn datum(&self) -> String {
        format!("goto {}", leave_chain(self.0))
    }
}

impl Datum for ExitAs {
    fn datum(&self) -> String {
        format!("goto {}", self.chain())
    }
}
