//! What `iptables-save` prints, as far as it is ours.

use std::{collections::BTreeMap, sync::Arc};

use egressgateway::{Counter, model::Family};

use crate::{
    names::{CHAIN_PREFIX, COUNTERS, FILTER, TRANSIT},
    ruleset::barriers::Barriers,
    ruleset::table::{Jump, Table, Tables},
};

/// Rules of others that are known to sit in the flavour that a cluster uses.
const CLUSTER_CHAINS: [&str; 5] = ["KUBE-", "cali-", "CNI-", "CILIUM_", "FLANNEL-"];

/// Whose chains are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// The policy backend's.
    Backend,
    /// That of [`Transit`](crate::Transit).
    Transit,
}

impl Owner {
    fn has(self, chain: &str) -> bool {
        chain.starts_with(CHAIN_PREFIX) && (chain == TRANSIT) == (self == Self::Transit)
    }
}

/// An owner's chains and the jumps into them. Of what comes before a jump in `FORWARD` of the
/// filter table counts what may drop.
pub(crate) fn parse(text: &str, family: Family, owner: Owner) -> Tables {
    let barriers = Barriers::of(table(text, FILTER), |chain| owner.has(chain));
    let mut tables: BTreeMap<(Family, String), Table> = BTreeMap::new();
    let (mut name, mut positions) = (String::new(), BTreeMap::new());
    for line in text.lines() {
        if let Some(table) = line.strip_prefix('*') {
            table.clone_into(&mut name);
            positions.clear();
        } else if let Some(chain) = line
            .strip_prefix(':')
            .and_then(|rest| rest.split(' ').next())
            .filter(|chain| owner.has(chain))
        {
            tables
                .entry((family, name.clone()))
                .or_default()
                .chains
                .insert(chain.to_owned(), Vec::new());
        } else if let Some((chain, rule)) = line
            .strip_prefix("-A ")
            .and_then(|rest| rest.split_once(' '))
        {
            let position = positions.entry(chain.to_owned()).or_insert(0_usize);
            if owner.has(chain) {
                let table = tables.entry((family, name.clone())).or_default();
                table
                    .chains
                    .entry(chain.to_owned())
                    .or_default()
                    .push(rule.to_owned());
            } else if leads_to(rule, owner) {
                let jump = Jump {
                    chain: chain.to_owned(),
                    position: *position,
                    rule: rule.to_owned(),
                };
                tables
                    .entry((family, name.clone()))
                    .or_default()
                    .jumps
                    .insert(jump);
            }
            let precedes = name != FILTER || chain != "FORWARD" || barriers.may_drop(rule);
            *position += usize::from(precedes);
        }
    }
    tables
        .into_iter()
        .map(|(key, table)| (key, Arc::new(table)))
        .collect()
}

/// The lines of one table.
fn table<'a>(text: &'a str, name: &'static str) -> impl Iterator<Item = &'a str> {
    text.lines()
        .skip_while(move |line| line.strip_prefix('*') != Some(name))
        .take_while(|line| *line != "COMMIT")
}

fn leads_to(rule: &str, owner: Owner) -> bool {
    let mut words = rule.split(' ').rev();
    let last = words.next().is_some_and(|word| owner.has(word));
    last && words
        .next()
        .is_some_and(|word| word == "-j" || word == "-g")
}

/// Whether rules of others, or the policy of the chain, may drop what this host forwards.
pub(crate) fn restricts_forwarding(text: &str) -> bool {
    let others = |rule: &str| !leads_to(rule, Owner::Backend) && !leads_to(rule, Owner::Transit);
    table(text, FILTER)
        .filter_map(|line| line.split_once("FORWARD "))
        .any(|(before, rest)| match before {
            ":" => rest.starts_with("DROP"),
            "-A " => others(rest),
            _ => false,
        })
}

/// What our counting rules counted, from `iptables-save --counters`.
pub(crate) fn counters(text: &str) -> BTreeMap<String, Counter> {
    let (mut table, mut counters) = (String::new(), BTreeMap::new());
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            name.clone_into(&mut table);
        }
        let Some((numbers, rule)) = line
            .strip_prefix('[')
            .and_then(|rest| rest.split_once("] -A "))
        else {
            continue;
        };
        let own = |(_, of, chain): &&(&str, &str, &str)| {
            *of == table && rule.split(' ').next() == Some(chain)
        };
        let number = |text: &str| text.parse::<u64>().ok();
        let both = numbers
            .split_once(':')
            .and_then(|(packets, bytes)| Some((number(packets)?, number(bytes)?)));
        if let (Some((name, ..)), Some((packets, bytes))) = (COUNTERS.iter().find(own), both) {
            let counter: &mut Counter = counters.entry((*name).to_owned()).or_default();
            *counter += Counter { packets, bytes };
        }
    }
    counters
}

/// How many rules lead to chains of cluster components: the flavour that has most of them is the
/// one that counts on a host.
pub(crate) fn cluster_rules(text: &str) -> usize {
    let of_cluster = |line: &&str| {
        let chain = line.strip_prefix("-A ").or_else(|| line.strip_prefix(':'));
        chain.is_some_and(|rest| CLUSTER_CHAINS.iter().any(|prefix| rest.starts_with(prefix)))
    };
    text.lines().filter(of_cluster).count()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const SAVED: &str = "# Generated\n*mangle\n:PREROUTING ACCEPT [5:10]\n:EGW-A - [0:0]\n:KUBE-X - [0:0]\n:EGW-B - [0:0]\n\
        -A PREROUTING -j KUBE-X\n-A PREROUTING -m comment --comment egressgateway -j EGW-A\n-A EGW-A -j DROP\n-A KUBE-X -j EGW-AB -x\n\
        -A KUBE-X -g EGW-A\nCOMMIT\n*nat\n:KUBE-Y - [0:0]\nCOMMIT\n";

    #[test]
    fn only_what_is_ours_is_read_and_jumps_with_their_place() {
        let tables = parse(SAVED, Family::V4, Owner::Backend);
        assert_eq!(
            tables
                .keys()
                .map(|(_, name)| name.as_str())
                .collect::<Vec<_>>(),
            ["mangle"]
        );
        let table = &tables[&(Family::V4, "mangle".to_owned())];
        assert_eq!(
            table.chains,
            [
                ("EGW-A".into(), vec!["-j DROP".into()]),
                ("EGW-B".into(), vec![])
            ]
            .into()
        );
        let jumps: Vec<_> = table
            .jumps
            .iter()
            .map(|jump| (jump.chain.as_str(), jump.position))
            .collect();
        assert_eq!(jumps, [("KUBE-X", 1), ("PREROUTING", 1)]);
    }

    #[test]
    fn the_chain_for_transit_is_read_by_its_owner_only() {
        let saved = "*filter\n:FORWARD ACCEPT [0:0]\n:EGW-FORWARD - [0:0]\n:EGW-TRANSIT - [0:0]\n-A FORWARD -j EGW-TRANSIT\n\
                     -A FORWARD -j EGW-FORWARD\n-A EGW-TRANSIT -j ACCEPT\nCOMMIT\n";
        for (owner, chain, position) in [
            (Owner::Backend, "EGW-FORWARD", 0),
            (Owner::Transit, "EGW-TRANSIT", 0),
        ] {
            let tables = parse(saved, Family::V6, owner);
            let table = &tables[&(Family::V6, "filter".to_owned())];
            assert_eq!(table.chains.keys().collect::<Vec<_>>(), [chain]);
            assert_eq!(
                table
                    .jumps
                    .iter()
                    .map(|jump| jump.position)
                    .collect::<Vec<_>>(),
                [position]
            );
        }
        assert!(!restricts_forwarding(saved), "only our own rules");
        assert!(restricts_forwarding(
            &saved.replace("FORWARD ACCEPT", "FORWARD DROP")
        ));
        assert!(restricts_forwarding(&saved.replace(
            "-A FORWARD -j EGW-TRANSIT",
            "-A FORWARD -j DOCKER-USER"
        )));
        assert!(
            !restricts_forwarding("*mangle\n:FORWARD DROP [0:0]\nCOMMIT\n"),
            "another table"
        );
    }

    #[test]
    fn counters_are_summed_by_name() {
        let counted = counters(
            "*mangle\n[2:80] -A EGW-HELD -j DROP\n[9:9] -A EGW-TO-11 -j DROP\n*raw\n[1:1] -A EGW-HELD -j DROP\n",
        );
        assert_eq!(
            counted,
            [(
                "drop_held".to_owned(),
                Counter {
                    packets: 2,
                    bytes: 80
                }
            )]
            .into()
        );
        let most = u64::MAX;
        let counted = counters(&format!(
            "*mangle\n[{most}:1] -A EGW-NOT-PEER -j DROP\n*raw\n[1:{most}] -A EGW-NOT-PEER -j DROP\n"
        ));
        assert_eq!(
            counted["drop_not_peer"],
            Counter {
                packets: most,
                bytes: most
            },
            "more than can be counted"
        );
    }

    #[test]
    fn whatever_is_printed_is_read_without_harm() {
        for length in 0..SAVED.len() {
            parse(&SAVED[..length], Family::V6, Owner::Backend);
            restricts_forwarding(&SAVED[..length]);
            counters(&SAVED[length..]);
        }
        assert_eq!(cluster_rules(SAVED), 4);
    }
}
