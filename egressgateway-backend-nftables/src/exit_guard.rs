//! Drops what leaves untranslated, or translated by somebody else, where another backend should have translated it.

use std::{collections::BTreeMap, fmt, sync::Arc};

use async_trait::async_trait;
use egressgateway::{Change, Counter, CounterSource, Driver, Error, ErrorKind, Plan, PolicyDesired, WriteHook};
use serde_json::Value;

use crate::{
    command::{self, nft, nft_json},
    monitor::{NftMonitor, Writers},
    names::{DROP_UNKNOWN_SOURCE, GUARD_CHAIN, GUARD_PATH, GUARD_TABLE, PRIORITY_RESTORE, TABLE_FAMILY},
};

/// By which marks another backend tells that the first packet of a connection waits for its translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitMarks {
    /// Bits of the connection mark, and their value where the connection exits here.
    pub exit: (u32, u32),
    /// Bits of the packet mark that hold the source until it was translated, and are 0 afterwards.
    pub source: u32,
    /// Their value where anybody's masquerade does as well: the source is the node's address.
    pub node: u32,
}

/// Looks, after all source translation, whether what exits here was translated by the backend that should, and drops what was not.
///
/// The first rule that translates a connection's source decides. In iptables' nat table that is the rule that comes first, and whoever puts a
/// masquerade before the backend's rules gives every new connection the node's address until the backend has moved its own there again. No
/// iptables table comes later and could drop it; a chain of nftables can. This driver works beside the backend, has one
/// rule in a table of its own, and has it only on nodes where something exits.
#[derive(Clone, Debug)]
pub struct ExitGuard {
    marks: ExitMarks,
    hook: Arc<dyn WriteHook>,
    writers: Writers,
}

/// What a plan does to the guard's table.
#[derive(Clone, Debug, Default)]
pub struct ExitGuardPlan(String);

impl fmt::Display for ExitGuardPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Plan for ExitGuardPlan {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What the guard's table holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ExitGuardState {
    /// There is none.
    #[default]
    Absent,
    /// Our one rule, as its comment says it, in a chain that the kernel enters where it should.
    Holds(String),
    /// Anything else.
    Other,
}

impl ExitGuard {
    /// A guard for these marks; `hook` is asked before each transaction.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] where this host has no nft or a kernel that can't hold the rule, [`ErrorKind::Permission`] without the capability.
    pub async fn open(marks: ExitMarks, hook: Arc<dyn WriteHook>) -> Result<Self, Error> {
        let guard = Self { marks, hook, writers: Writers::default() };
        match nft(&["-c", "-f", "-"], &guard.script(), "check a rule with nft").await {
            Ok(_) => Ok(guard),
            Err(error) if matches!(error.kind, ErrorKind::Permission | ErrorKind::Transient) => Err(error),
            Err(error) => Err(Error::new(ErrorKind::Unsupported, "nft with this kernel can't hold a rule").with_source(error.chain())),
        }
    }

    /// Notices that somebody else changes the table.
    ///
    /// # Errors
    /// When the kernel refuses the subscription, or outside of a Tokio runtime.
    pub fn monitor(&self) -> Result<NftMonitor, Error> {
        NftMonitor::open(GUARD_TABLE, self.writers.clone())
    }

    /// The rule in words that change whenever it does.
    fn comment(&self) -> String {
        let ExitMarks { exit: (mask, exit), source, node } = self.marks;
        format!("egressgateway 1 {mask:x} {exit:x} {source:x} {node:x}")
    }

    /// Replaces whatever is there. Only a connection's first packet still has the source in its mark.
    fn script(&self) -> String {
        let ExitMarks { exit: (mask, exit), source, node } = self.marks;
        let comment = self.comment();
        format!(
            "add table {GUARD_PATH}\ndelete table {GUARD_PATH}\nadd table {GUARD_PATH}\n\
             add chain {GUARD_PATH} {GUARD_CHAIN} {{ type filter hook postrouting priority {PRIORITY_RESTORE}; policy accept; }}\n\
             add rule {GUARD_PATH} {GUARD_CHAIN} ct state new ct direction original ct mark and {mask:#x} == {exit:#x} \
             meta mark and {source:#x} != {{ 0x0, {node:#x} }} counter drop comment \"{comment}\"\n"
        )
    }

    async fn list(&self) -> Result<Option<Vec<Value>>, Error> {
        let tables = nft_json(&["list", "tables", TABLE_FAMILY], "list nftables tables").await?;
        if !tables.iter().any(|object| object["table"]["name"] == GUARD_TABLE) {
            return Ok(None);
        }
        nft_json(&["list", "table", TABLE_FAMILY, GUARD_TABLE], &format!("list table {GUARD_PATH}")).await.map(Some)
    }
}

/// What nft's JSON tells of the table.
fn state(objects: &[Value]) -> ExitGuardState {
    let of = |kind: &'static str| objects.iter().map(move |object| &object[kind]).filter(|object| !object.is_null());
    let (chains, rules): (Vec<_>, Vec<_>) = (of("chain").collect(), of("rule").collect());
    let ([chain], [rule]) = (&chains[..], &rules[..]) else { return ExitGuardState::Other };
    let enters = chain["hook"] == "postrouting" && chain["prio"] == PRIORITY_RESTORE && chain["policy"] == "accept";
    let drops = rule["expr"].as_array().and_then(|statements| statements.last()).is_some_and(|last| last.get("drop").is_some());
    match rule["comment"].as_str() {
        Some(comment) if enters && drops => ExitGuardState::Holds(comment.to_owned()),
        _ => ExitGuardState::Other,
    }
}

#[async_trait]
impl Driver for ExitGuard {
    type Desired = PolicyDesired;
    type State = ExitGuardState;
    type Plan = ExitGuardPlan;

    async fn observe(&self) -> Result<ExitGuardState, Error> {
        Ok(self.list().await?.map_or(ExitGuardState::Absent, |objects| state(&objects)))
    }

    fn plan(&self, desired: &PolicyDesired, current: &ExitGuardState) -> Result<Change<ExitGuardPlan, ExitGuardState>, Error> {
        let exits = !desired.exits.is_empty() || !desired.accepts.is_empty();
        let after = if exits { ExitGuardState::Holds(self.comment()) } else { ExitGuardState::Absent };
        let script = match &after {
            after if after == current => String::new(),
            ExitGuardState::Absent => format!("delete table {GUARD_PATH}\n"),
            _ => self.script(),
        };
        Ok(Change { plan: ExitGuardPlan(script), after })
    }

    async fn apply(&self, plan: &ExitGuardPlan) -> Result<(), Error> {
        if plan.is_empty() {
            return Ok(());
        }
        self.hook.before("write guard")?;
        command::write(&plan.0, &format!("write {GUARD_PATH}"), &self.writers).await
    }
}

/// What the guard dropped is counted with what the backend drops for want of a source.
#[async_trait]
impl CounterSource for ExitGuard {
    async fn counters(&self) -> Result<BTreeMap<String, Counter>, Error> {
        let objects = self.list().await?.unwrap_or_default();
        let statements = objects.iter().filter_map(|object| object["rule"]["expr"].as_array()).flatten();
        let counters = statements.filter_map(|statement| {
            let counter = statement.get("counter")?;
            Some(Counter { packets: counter["packets"].as_u64()?, bytes: counter["bytes"].as_u64()? })
        });
        Ok(counters.map(|counter| (DROP_UNKNOWN_SOURCE.to_owned(), counter)).collect())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use egressgateway::model::TargetId;
    use serde_json::json;

    use super::*;

    fn guard() -> ExitGuard {
        let marks = ExitMarks { exit: (0xff00_0000, 0x1200_0000), source: 0xffff, node: 1 };
        ExitGuard { marks, hook: Arc::new(()), writers: Writers::default() }
    }

    fn listed() -> Vec<Value> {
        let rule = json!({"comment": guard().comment(), "expr": [{"match": {}}, {"counter": {"packets": 3, "bytes": 90}}, {"drop": null}]});
        let chain = json!({"name": GUARD_CHAIN, "type": "filter", "hook": "postrouting", "prio": PRIORITY_RESTORE, "policy": "accept"});
        vec![json!({"metainfo": {}}), json!({"table": {"name": GUARD_TABLE}}), json!({"chain": chain}), json!({"rule": rule})]
    }

    #[test]
    fn it_is_there_only_where_something_exits() {
        let (guard, nothing) = (guard(), PolicyDesired::default());
        let exits = PolicyDesired { exits: [TargetId::FIRST].into_iter().collect(), ..PolicyDesired::default() };
        let change = guard.plan(&exits, &ExitGuardState::Absent).unwrap();
        assert!(change.plan.to_string().contains("ct mark and 0xff000000 == 0x12000000 meta mark and 0xffff != { 0x0, 0x1 } counter drop"));
        assert!(guard.plan(&exits, &change.after).unwrap().plan.is_empty());
        assert_eq!(guard.plan(&nothing, &change.after).unwrap().plan.to_string(), "delete table inet egressgateway_exits\n");
        assert!(guard.plan(&nothing, &ExitGuardState::Absent).unwrap().plan.is_empty());
        assert!(guard.plan(&exits, &ExitGuardState::Other).unwrap().plan.to_string().contains("delete table"), "it is replaced");
    }

    #[test]
    fn whatever_else_the_table_holds_is_something_else() {
        assert_eq!(state(&listed()), ExitGuardState::Holds(guard().comment()));
        for (object, field, value) in [
            (2, "prio", json!(0)),
            (2, "hook", json!("forward")),
            (3, "comment", json!(null)),
            (3, "expr", json!([{"drop": null}, {"accept": null}])),
        ] {
            let mut objects = listed();
            objects[object].as_object_mut().unwrap().values_mut().next().unwrap()[field] = value;
            assert_eq!(state(&objects), ExitGuardState::Other, "{field}");
        }
        assert_eq!(state(&[listed(), vec![listed()[3].clone()]].concat()), ExitGuardState::Other, "a second rule");
        assert_eq!(state(&listed()[..3]), ExitGuardState::Other, "no rule");
    }
}
