//! Drops what leaves untranslated, or translated by somebody else, where another backend should
//! have translated it.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use async_trait::async_trait;
use egressgateway::{
    Change, Counter, CounterSource, Driver, Error, ErrorKind, Plan, PolicyDesired, WriteHook,
    model::Family,
};
use serde_json::Value;

use crate::{
    apply::command::{self, nft, nft_json},
    observe::monitor::{NftMonitor, Writers},
    ruleset::names::{
        DROP_UNKNOWN_SOURCE, GUARD_CHAIN, GUARD_PATH, GUARD_TABLE, PRIORITY_RESTORE, TABLE_FAMILY,
    },
    sets::elements::fits,
};

/// By which marks another backend tells that the first packet of a connection waits for its
/// translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitMarks {
    /// Bits of the connection mark, and their value where the connection exits here.
    pub exit: (u32, u32),
    /// Bits of the packet mark that hold the source until it was translated, and are 0 afterwards.
    pub source: u32,
    /// Their value where the source is the node's address: anybody's masquerade does as well, if it
    /// gives that one.
    pub node: u32,
}

/// Looks, after all source translation, whether what exits here was translated by the backend that
/// should, and drops what was not.
///
/// The first rule that translates a connection's source decides. In iptables' nat table that is the
/// rule that comes first, and whoever puts a masquerade before the backend's rules gives every new
/// connection the node's address until the backend has moved its own there again. No iptables table
/// comes later and could drop it; a chain of nftables can. This driver works beside the backend,
/// has a few rules in a table of its own, and has them only on nodes where something exits.
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
#[non_exhaustive]
pub enum ExitGuardState {
    /// There is none.
    #[default]
    Absent,
    /// Our rules, as their comments say them, in a chain that the kernel enters where it should.
    Holds(String),
    /// Anything else.
    Other,
}

impl ExitGuard {
    /// A guard for these marks; `hook` is asked before each transaction.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] where this host has no nft or a kernel that can't hold the rule,
    /// [`ErrorKind::Permission`] without the capability.
    pub async fn open(marks: ExitMarks, hook: Arc<dyn WriteHook>) -> Result<Self, Error> {
        let guard = Self {
            marks,
            hook,
            writers: Writers::default(),
        };
        let address = |address: IpAddr| (("lo".to_owned(), Family::of(address)), address);
        let node_addresses = [
            address(Ipv4Addr::LOCALHOST.into()),
            address(Ipv6Addr::LOCALHOST.into()),
        ]
        .into_iter()
        .collect();
        let sample = PolicyDesired {
            node_addresses,
            ..PolicyDesired::default()
        };
        match nft(
            &["-c", "-f", "-"],
            &Self::script(&guard.rules(&sample)),
            "check a rule with nft",
        )
        .await
        {
            Ok(_) => Ok(guard),
            Err(error) if matches!(error.kind, ErrorKind::Permission | ErrorKind::Transient) => {
                Err(error)
            }
            Err(error) => Err(Error::new(
                ErrorKind::Unsupported,
                "nft with this kernel can't hold a rule",
            )
            .with_source(error.chain())),
        }
    }

    /// Notices that somebody else changes the table.
    ///
    /// # Errors
    /// When the kernel refuses the subscription, or outside of a Tokio runtime.
    pub fn monitor(&self) -> Result<NftMonitor, Error> {
        NftMonitor::open(GUARD_TABLE, self.writers.clone())
    }

    /// What is dropped. Only a connection's first packet still has the source in its mark. What
    /// others have given the node's address passes if it is the one that our rules would have
    /// given.
    fn rules(&self, desired: &PolicyDesired) -> Vec<String> {
        let ExitMarks {
            exit: (mask, exit),
            source,
            node,
        } = self.marks;
        let networks = desired.networks.keys().map(|network| {
            format!(
                ", {:#x}",
                u32::from(network.byte()) << mask.trailing_zeros()
            )
        });
        let networks: String = networks.collect();
        let exits = if networks.is_empty() {
            format!("== {exit:#x}")
        } else {
            format!("{{ {exit:#x}{networks} }}")
        };
        let first = format!(
            "ct state new ct direction original ct mark and {mask:#x} {exits} meta mark and {source:#x}"
        );
        let mut rules = vec![format!("{first} != {{ 0x0, {node:#x} }}")];
        for family in Family::ALL {
            let known = || {
                desired
                    .node_addresses
                    .iter()
                    .filter(|((device, of), _)| *of == family && fits(device))
            };
            let devices: Vec<String> = known()
                .map(|((device, _), _)| format!("\"{device}\""))
                .collect();
            let addresses: Vec<String> = known()
                .map(|((device, _), address)| format!("\"{device}\" . {address}"))
                .collect();
            if !devices.is_empty() {
                let (header, protocol) = match family {
                    Family::V4 => ("ip", "ipv4"),
                    Family::V6 => ("ip6", "ipv6"),
                };
                rules.push(format!(
                    "{first} == {node:#x} meta nfproto {protocol} oifname {{ {} }} oifname . {header} saddr != {{ {} }}",
                    devices.join(", "),
                    addresses.join(", ")
                ));
            }
        }
        rules
    }

    /// Replaces whatever is there.
    fn script(rules: &[String]) -> String {
        let begin = format!(
            "add table {GUARD_PATH}\ndelete table {GUARD_PATH}\nadd table {GUARD_PATH}\n\
             add chain {GUARD_PATH} {GUARD_CHAIN} {{ type filter hook postrouting priority {PRIORITY_RESTORE}; policy accept; }}\n"
        );
        let rule = |rule: &String| {
            format!(
                "add rule {GUARD_PATH} {GUARD_CHAIN} {rule} counter drop comment \"{}\"\n",
                comment(rule)
            )
        };
        rules
            .iter()
            .map(rule)
            .fold(begin, |script, rule| script + &rule)
    }

    async fn list(&self) -> Result<Option<Vec<Value>>, Error> {
        let tables = nft_json(&["list", "tables", TABLE_FAMILY], "list nftables tables").await?;
        if !tables
            .iter()
            .any(|object| object["table"]["name"] == GUARD_TABLE)
        {
            return Ok(None);
        }
        nft_json(
            &["list", "table", TABLE_FAMILY, GUARD_TABLE],
            &format!("list table {GUARD_PATH}"),
        )
        .await
        .map(Some)
    }
}

/// Words that change whenever a rule does: nft shows rules in other words than they were written
/// in.
pub(crate) fn comment(rule: &str) -> String {
    // FNV-1a.
    let hash = rule.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("egressgateway {hash:016x}")
}

fn held(rules: &[String]) -> ExitGuardState {
    ExitGuardState::Holds(
        rules
            .iter()
            .map(|rule| comment(rule))
            .collect::<Vec<_>>()
            .join(", "),
    )
}

/// What nft's JSON tells of the table.
pub(crate) fn state(objects: &[Value]) -> ExitGuardState {
    let of = |kind: &'static str| {
        objects
            .iter()
            .map(move |object| &object[kind])
            .filter(|object| !object.is_null())
    };
    let (chains, rules): (Vec<_>, Vec<_>) = (of("chain").collect(), of("rule").collect());
    let [chain] = &chains[..] else {
        return ExitGuardState::Other;
    };
    let enters = chain["hook"] == "postrouting"
        && chain["prio"] == PRIORITY_RESTORE
        && chain["policy"] == "accept";
    let drops = |rule: &&&Value| {
        rule["expr"]
            .as_array()
            .and_then(|all| all.last())
            .is_some_and(|last| last.get("drop").is_some())
    };
    let comments: Vec<&str> = rules
        .iter()
        .filter(drops)
        .filter_map(|rule| rule["comment"].as_str())
        .collect();
    if enters && comments.len() == rules.len() && !rules.is_empty() {
        ExitGuardState::Holds(comments.join(", "))
    } else {
        ExitGuardState::Other
    }
}

#[async_trait]
impl Driver for ExitGuard {
    type Desired = PolicyDesired;
    type State = ExitGuardState;
    type Plan = ExitGuardPlan;

    async fn observe(&self) -> Result<ExitGuardState, Error> {
        Ok(self
            .list()
            .await?
            .map_or(ExitGuardState::Absent, |objects| state(&objects)))
    }

    fn plan(
        &self,
        desired: &PolicyDesired,
        current: &ExitGuardState,
    ) -> Result<Change<ExitGuardPlan, ExitGuardState>, Error> {
        let exits = !desired.exits.is_empty() || !desired.accepts.is_empty();
        let rules = self.rules(desired);
        let after = if exits {
            held(&rules)
        } else {
            ExitGuardState::Absent
        };
        let script = match &after {
            after if after == current => String::new(),
            ExitGuardState::Absent => format!("delete table {GUARD_PATH}\n"),
            _ => Self::script(&rules),
        };
        Ok(Change {
            plan: ExitGuardPlan(script),
            after,
        })
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
        Ok(dropped(&objects)
            .into_iter()
            .map(|counter| (DROP_UNKNOWN_SOURCE.to_owned(), counter))
            .collect())
    }
}

/// What all rules in nft's JSON counted together; none where no rule counts.
pub(crate) fn dropped(objects: &[Value]) -> Option<Counter> {
    let statements = objects
        .iter()
        .filter_map(|object| object["rule"]["expr"].as_array())
        .flatten();
    let counters = statements.filter_map(|statement| {
        let counter = statement.get("counter")?;
        Some(Counter {
            packets: counter["packets"].as_u64()?,
            bytes: counter["bytes"].as_u64()?,
        })
    });
    counters.reduce(|mut sum, counter| {
        sum += counter;
        sum
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use egressgateway::model::TargetId;
    use serde_json::json;

    use super::*;

    fn guard() -> ExitGuard {
        let marks = ExitMarks {
            exit: (0xff00_0000, 0x1200_0000),
            source: 0xffff,
            node: 1,
        };
        ExitGuard {
            marks,
            hook: Arc::new(()),
            writers: Writers::default(),
        }
    }

    fn listed() -> Vec<Value> {
        let rule = json!({"comment": "ours", "expr": [{"match": {}}, {"counter": {"packets": 3, "bytes": 90}}, {"drop": null}]});
        let chain = json!({"name": GUARD_CHAIN, "type": "filter", "hook": "postrouting", "prio": PRIORITY_RESTORE, "policy": "accept"});
        vec![
            json!({"metainfo": {}}),
            json!({"table": {"name": GUARD_TABLE}}),
            json!({"chain": chain}),
            json!({"rule": rule}),
        ]
    }

    #[test]
    fn it_is_there_only_where_something_exits() {
        let (guard, nothing) = (guard(), PolicyDesired::default());
        let exits = PolicyDesired {
            exits: [TargetId::FIRST].into_iter().collect(),
            ..PolicyDesired::default()
        };
        let change = guard.plan(&exits, &ExitGuardState::Absent).unwrap();
        assert!(change.plan.to_string().contains(
            "ct mark and 0xff000000 == 0x12000000 meta mark and 0xffff != { 0x0, 0x1 } counter drop"
        ));
        assert!(guard.plan(&exits, &change.after).unwrap().plan.is_empty());
        assert_eq!(
            guard
                .plan(&nothing, &change.after)
                .unwrap()
                .plan
                .to_string(),
            "delete table inet egressgateway_exits\n"
        );
        assert!(
            guard
                .plan(&nothing, &ExitGuardState::Absent)
                .unwrap()
                .plan
                .is_empty()
        );
        assert!(
            guard
                .plan(&exits, &ExitGuardState::Other)
                .unwrap()
                .plan
                .to_string()
                .contains("delete table"),
            "it is replaced"
        );
    }

    #[test]
    fn the_nodes_address_from_others_is_let_go_if_it_is_the_one_that_was_promised() {
        let address = |device: &str, family, address: &str| {
            (
                (device.to_owned(), family),
                address.parse::<IpAddr>().unwrap(),
            )
        };
        let nothing = PolicyDesired {
            exits: [TargetId::FIRST].into_iter().collect(),
            ..PolicyDesired::default()
        };
        let own = [
            address("eth0", Family::V4, "10.6.0.13"),
            address("eth1", Family::V4, "10.7.0.13"),
            address("no name", Family::V6, "fd00::1"),
        ];
        let exits = PolicyDesired {
            node_addresses: own.into_iter().collect(),
            ..nothing.clone()
        };
        let change = guard().plan(&exits, &ExitGuardState::Absent).unwrap();
        let text = change.plan.to_string();
        let rule = "meta mark and 0xffff == 0x1 meta nfproto ipv4 oifname { \"eth0\", \"eth1\" } \
                    oifname . ip saddr != { \"eth0\" . 10.6.0.13, \"eth1\" . 10.7.0.13 } counter drop";
        assert!(text.contains(rule) && !text.contains("no name"), "{text}");
        assert!(
            !guard()
                .plan(&nothing, &change.after)
                .unwrap()
                .plan
                .is_empty(),
            "other addresses are another rule"
        );
    }

    #[test]
    fn whatever_else_the_table_holds_is_something_else() {
        assert_eq!(state(&listed()), ExitGuardState::Holds("ours".to_owned()));
        for (object, field, value) in [
            (2, "prio", json!(0)),
            (2, "hook", json!("forward")),
            (3, "comment", json!(null)),
            (3, "expr", json!([{"drop": null}, {"accept": null}])),
        ] {
            let mut objects = listed();
            objects[object]
                .as_object_mut()
                .unwrap()
                .values_mut()
                .next()
                .unwrap()[field] = value;
            assert_eq!(state(&objects), ExitGuardState::Other, "{field}");
        }
        let twice = state(&[listed(), vec![listed()[3].clone()]].concat());
        assert_eq!(
            twice,
            ExitGuardState::Holds("ours, ours".to_owned()),
            "a second rule is told from none"
        );
        assert_eq!(state(&listed()[..3]), ExitGuardState::Other, "no rule");
    }
}
