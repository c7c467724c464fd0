//! What others take out of connection tracking with nftables.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
};

use async_trait::async_trait;
use egressgateway::{
    Error, ErrorKind, ForeignChains, ForeignRule, PacketMatch, UntrackingRule, UntrackingRules,
    model::IpRange,
};
use ipnet::IpNet;
use serde_json::Value;

use crate::{
    apply::command::nft_json,
    observe::monitor::{Notifications, messages, table},
    ruleset::names::{GUARD_TABLE, PRIORITY_CONNTRACK, RELAY_TABLE, SERVICES_TABLE, TABLE},
};

/// Parts of a rule in a notification: nftables' own statement, and the targets that iptables-nft
/// has for it.
const STATEMENTS: [&[u8]; 3] = [b"notrack\0", b"NOTRACK\0", b"CT\0"];
/// The table where iptables-nft keeps such rules.
const IPTABLES_TABLE: &str = "raw";

/// Reads the tables that see packets before connection tracking does. Rules of iptables-nft are
/// told by [`IptablesUntracking`](https://docs.rs/egressgateway-backend-netfilter), because nft
/// does not say what the targets of iptables do.
#[derive(Debug)]
pub struct NftUntracking {
    notifications: Notifications,
    /// The tables that had such rules.
    tables: Mutex<BTreeSet<String>>,
}

impl NftUntracking {
    /// Listens from now on.
    ///
    /// # Errors
    /// When the kernel can't be listened to.
    pub fn open() -> Result<Self, Error> {
        Ok(Self {
            notifications: Notifications::open()?,
            tables: Mutex::default(),
        })
    }
}

#[async_trait]
impl UntrackingRules for NftUntracking {
    async fn untracking(&self) -> Result<BTreeSet<UntrackingRule>, Error> {
        let context = "read what others take out of connection tracking";
        let listed = match nft_json(&["list", "chains"], context).await {
            Err(error) if error.kind == ErrorKind::Unsupported => return Ok(BTreeSet::new()),
            listed => listed?,
        };
        let (mut rules, mut tables) = (BTreeSet::new(), BTreeSet::new());
        for ((family, table), entries) in early(&listed) {
            // One that somebody has deleted meanwhile has no rules any more.
            let listed = match nft_json(&["-a", "list", "table", family, table], context).await {
                Err(error) if error.kind == ErrorKind::Conflict => continue,
                listed => listed?,
            };
            let chains = chains(&listed, family, table);
            let found: BTreeSet<_> = entries
                .iter()
                .flat_map(|entry| chains.untracking(entry))
                .collect();
            if !found.is_empty() {
                tables.insert(table.to_owned());
            }
            rules.extend(found);
        }
        *self.tables.lock().unwrap_or_else(PoisonError::into_inner) = tables;
        Ok(rules)
    }

    async fn changed(&self) -> Result<(), Error> {
        let tables = || {
            self.tables
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone()
        };
        self.notifications
            .until(|datagram| messages(datagram).any(|(_, body)| concerns(body, &tables())))
            .await
    }
}

/// Whether a notification may be about such a rule: by what is in it, or by the table that had one.
pub(crate) fn concerns(body: &[u8], tables: &BTreeSet<String>) -> bool {
    let table = table(body)
        .and_then(|table| std::str::from_utf8(table).ok())
        .unwrap_or_default();
    let says = || {
        STATEMENTS
            .iter()
            .any(|statement| body.windows(statement.len()).any(|part| part == *statement))
    };
    !is_ours(table) && (table == IPTABLES_TABLE || tables.contains(table) || says())
}

fn is_ours(table: &str) -> bool {
    [TABLE, SERVICES_TABLE, GUARD_TABLE, RELAY_TABLE].contains(&table)
}

/// The chains of others that the kernel enters before connection tracking with what comes in, by
/// family and table.
pub(crate) fn early(listed: &[Value]) -> BTreeMap<(&str, &str), Vec<&str>> {
    let mut tables: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for chain in listed.iter().filter_map(|object| object.get("chain")) {
        let text = |key: &str| chain[key].as_str().unwrap_or_default();
        let first = text("hook") == "prerouting"
            && chain["prio"]
                .as_i64()
                .is_some_and(|priority| priority < PRIORITY_CONNTRACK);
        if first && ["ip", "ip6", "inet"].contains(&text("family")) && !is_ours(text("table")) {
            tables
                .entry((text("family"), text("table")))
                .or_default()
                .push(text("name"));
        }
    }
    tables
}

pub(crate) fn chains(listed: &[Value], family: &str, table: &str) -> ForeignChains {
    let mut chains = ForeignChains::default();
    for rule in listed.iter().filter_map(|object| object.get("rule")) {
        let (chain, handle) = (
            rule["chain"].as_str().unwrap_or_default(),
            rule["handle"].as_u64().unwrap_or_default(),
        );
        let mut found = ForeignRule::default();
        for statement in rule["expr"].as_array().into_iter().flatten() {
            if let Some(matching) = statement.get("match") {
                restrict(&mut found.packets, matching);
            } else if statement.get("notrack").is_some() {
                found.untracks = Some(format!(
                    "nftables table {family} {table}, chain {chain}, handle {handle}"
                ));
            } else {
                targets(statement, &mut found.jumps);
            }
        }
        chains.push(chain, found);
    }
    chains
}

/// Wherever a statement leads to, be it by a map.
fn targets(statement: &Value, found: &mut Vec<String>) {
    match statement {
        Value::Object(object) => {
            let chains = object
                .iter()
                .filter(|(verb, _)| *verb == "jump" || *verb == "goto");
            found.extend(chains.filter_map(|(_, to)| to["target"].as_str().map(str::to_owned)));
            object.values().for_each(|value| targets(value, found));
        }
        Value::Array(values) => values.iter().for_each(|value| targets(value, found)),
        _ => {}
    }
}

/// What one match adds. What is negated, or in a set with a name, restricts nothing that counts
/// here.
fn restrict(packets: &mut PacketMatch, matching: &Value) {
    let (left, right) = (&matching["left"], &matching["right"]);
    if matching["op"] != "==" && matching["op"] != "in" {
        return;
    }
    let key = left
        .pointer("/meta/key")
        .or_else(|| left.pointer("/&/0/meta/key"))
        .and_then(Value::as_str);
    match key {
        Some("iif" | "iifname") => packets.device = right.as_str().map(str::to_owned),
        Some("mark") => packets.marked = true,
        _ => {}
    }
    let field = left.pointer("/payload/field").and_then(Value::as_str);
    match field {
        Some("saddr") => packets.source = networks(right),
        Some("daddr") => packets.destination = networks(right),
        Some("dport") => {
            packets.ports = values(right)
                .into_iter()
                .map(|port| u16::try_from(port.as_u64()?).ok())
                .collect();
        }
        _ => {}
    }
    if left
        .pointer("/fib/result")
        .is_some_and(|result| result == "type")
        && right == "local"
    {
        let flags = &left["fib"]["flags"];
        packets.to_host |= flags == "daddr"
            || flags
                .as_array()
                .is_some_and(|flags| flags.iter().any(|flag| flag == "daddr"));
    }
}

/// One value, or those of a set without a name.
fn values(right: &Value) -> Vec<&Value> {
    right
        .get("set")
        .and_then(Value::as_array)
        .map_or_else(|| vec![right], |values| values.iter().collect())
}

fn networks(right: &Value) -> Option<BTreeSet<IpNet>> {
    let network = |value: &Value| -> Option<Vec<IpNet>> {
        if let Some(prefix) = value.get("prefix") {
            let length = u8::try_from(prefix["len"].as_u64()?).ok()?;
            return Some(vec![
                IpNet::new(prefix["addr"].as_str()?.parse().ok()?, length).ok()?,
            ]);
        }
        if let Some([first, last]) = value
            .get("range")
            .and_then(Value::as_array)
            .map(Vec::as_slice)
        {
            return Some(
                IpRange::new(first.as_str()?.parse().ok()?, last.as_str()?.parse().ok()?)?
                    .prefixes(),
            );
        }
        Some(vec![IpNet::from(
            value.as_str()?.parse::<std::net::IpAddr>().ok()?,
        )])
    };
    let all: Option<Vec<_>> = values(right).into_iter().map(network).collect();
    all.map(|all| all.into_iter().flatten().collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use egressgateway::Surroundings;
    use serde_json::json;

    use super::*;

    fn payload(protocol: &str, field: &str, right: &Value) -> Value {
        json!({"match": {"op": "==", "left": {"payload": {"protocol": protocol, "field": field}}, "right": right}})
    }

    /// Whether a rule with these matches is an alarm.
    fn is_alarm(matches: &[Value]) -> bool {
        let expr: Vec<Value> = matches
            .iter()
            .cloned()
            .chain([
                json!({"counter": {"packets": 0, "bytes": 0}}),
                json!({"notrack": null}),
            ])
            .collect();
        let rules = [json!({"rule": {"chain": "pre", "handle": 4, "expr": expr}})];
        let known = Surroundings {
            services: vec!["10.96.0.0/12".parse().unwrap()],
            hosts: ["10.6.0.11".parse().unwrap()].into(),
        };
        let found = chains(&rules, "inet", "hardening").untracking("pre");
        let rule = found.first().unwrap();
        assert_eq!(
            rule.place,
            "nftables table inet hardening, chain pre, handle 4"
        );
        rule.packets.may_be_governed(&known)
    }

    #[test]
    fn what_a_rule_matches_decides() {
        let pods = json!({"prefix": {"addr": "10.244.0.0", "len": 16}});
        let meta = |key: &str, right: Value| json!({"match": {"op": "==", "left": {"meta": {"key": key}}, "right": right}});
        let local = json!({"match": {"op": "==", "left": {"fib": {"result": "type", "flags": ["daddr"]}}, "right": "local"}});
        let not =
            json!({"match": {"op": "!=", "left": {"meta": {"key": "iifname"}}, "right": "lo"}});
        for (matches, alarm) in [
            (vec![], true),
            (vec![payload("ip", "saddr", &pods)], true),
            (vec![payload("ip", "saddr", &json!("@pods"))], true),
            (
                vec![payload(
                    "ip6",
                    "daddr",
                    &json!({"prefix": {"addr": "fd10::", "len": 16}}),
                )],
                true,
            ),
            (
                vec![payload(
                    "ip",
                    "daddr",
                    &json!({"range": ["10.96.0.1", "10.244.0.9"]}),
                )],
                true,
            ),
            (
                vec![payload(
                    "ip",
                    "daddr",
                    &json!({"range": ["10.96.0.1", "10.96.0.9"]}),
                )],
                false,
            ),
            (
                vec![
                    payload(
                        "ip",
                        "daddr",
                        &json!({"set": ["10.96.0.10", "169.254.20.10"]}),
                    ),
                    payload("udp", "dport", &json!(53)),
                ],
                false,
            ),
            (vec![payload("udp", "dport", &json!(53))], true),
            (
                vec![payload("udp", "dport", &json!({"set": [4789, 6081]}))],
                false,
            ),
            (vec![local.clone()], true),
            (
                vec![local, payload("tcp", "dport", &json!({"set": [22, 443]}))],
                false,
            ),
            (vec![meta("iif", json!("lo"))], false),
            (vec![meta("iifname", json!("lo"))], false),
            (vec![not], true),
            (
                vec![
                    json!({"match": {"op": "==", "left": {"&": [{"meta": {"key": "mark"}}, 3840]}, "right": 512}}),
                ],
                false,
            ),
        ] {
            assert_eq!(is_alarm(&matches), alarm, "{matches:?}");
        }
    }

    #[test]
    fn only_what_comes_before_connection_tracking_counts() {
        let chain = |table: &str, hook: &str, prio: i32| json!({"chain": {"family": "inet", "table": table, "name": "c", "hook": hook, "prio": prio}});
        let listed = [
            chain("before", "prerouting", -300),
            chain("after", "prerouting", -200),
            chain("out", "output", -300),
            chain(TABLE, "prerouting", -300),
            json!({"chain": {"family": "inet", "table": "plain", "name": "c"}}),
        ];
        assert_eq!(
            early(&listed).into_keys().collect::<Vec<_>>(),
            [("inet", "before")]
        );
    }

    #[test]
    fn chains_are_reached_by_jumps_and_by_maps() {
        let by_map = json!({"vmap": {"key": {"meta": {"key": "iifname"}}, "data": {"set": [["eth0", {"jump": {"target": "x"}}]]}}});
        for statement in [
            json!({"jump": {"target": "x"}}),
            json!({"goto": {"target": "x"}}),
            by_map,
        ] {
            let rules = [
                json!({"rule": {"chain": "pre", "handle": 1, "expr": [statement]}}),
                json!({"rule": {"chain": "x", "handle": 2, "expr": [{"notrack": null}]}}),
            ];
            assert_eq!(
                chains(&rules, "ip", "t").untracking("pre").len(),
                1,
                "{rules:?}"
            );
        }
    }
}
