//! What fuzz targets call: readers of what the iptables programs and the kernel say. This is no API
//! and changes without notice.
//!
//! Each function reads anything, and panics where what it says of itself does not hold.
#![allow(clippy::missing_panics_doc)]

use egressgateway::{Change, Driver as _, Plan as _, PolicyDesired, Surroundings, model::Family};
use imbl::OrdMap;

use crate::{
    Netfilter, NetfilterSettings, NetfilterState,
    exec::ipset,
    exec::iptables,
    exec::writes::Writes,
    monitor,
    names::TABLES,
    ruleset::save::{self, Owner},
    ruleset::table::Tables,
    transition::plan::{NetfilterPlan, Step},
    untracking,
};

/// What `iptables-save` prints is read. Our chains, written and read again, are the same. From
/// whatever was there, a plan leads to what is desired, and after it there is nothing left to plan.
pub fn rules(bytes: &[u8], desired: &PolicyDesired, known: &Surroundings) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let _ = (save::counters(text), save::cluster_rules(text));
    let _ = save::restricts_forwarding(text);
    for rule in untracking::parse(text, "iptables-nft") {
        let _ = (rule.packets.may_be_governed(known), rule.to_string());
    }
    for family in Family::ALL {
        let _ = save::parse(text, family, Owner::Transit);
        let tables = save::parse(text, family, Owner::Backend);
        same_again(&tables, family);
        plans(desired, &NetfilterState::observed(OrdMap::new(), tables));
    }
}

/// The kernel's answers about sets are read. What an answer says, written and read again, is the
/// same. From whatever sets were there, a plan leads to what is desired.
pub fn sets(bytes: &[u8], desired: &PolicyDesired) {
    let sets = ipset::fuzz(bytes);
    plans(desired, &NetfilterState::observed(sets, Tables::new()));
}

/// Why a program refused something is told in a sentence that begins with what was done.
pub fn refusal(bytes: &[u8]) {
    let stderr = String::from_utf8_lossy(bytes);
    let error = iptables::refused(&stderr, "*mangle\nCOMMIT\n", "write rules");
    assert!(error.chain().starts_with("write rules: "));
}

/// Notifications of the kernel are read to their end.
pub fn notification(bytes: &[u8]) {
    let _ = monitor::is_foreign(bytes, &Writes::default());
}

/// As the plan writes them, which is as `iptables-save` prints them.
fn same_again(tables: &Tables, family: Family) {
    let ours = |tables: &Tables| {
        let known = tables
            .iter()
            .filter(|((_, name), _)| TABLES.contains(&name.as_str()));
        known
            .filter(|(_, table)| !table.chains.is_empty())
            .map(|(key, table)| (key.clone(), table.chains.clone()))
            .collect::<Vec<_>>()
    };
    let mut plan = NetfilterPlan::default();
    plan.tables(&Tables::new(), tables);
    let script: String = plan
        .steps
        .iter()
        .map(|step| match step {
            Step::Restore { script, .. } => script.as_str(),
            Step::Sets(_) => "",
        })
        .collect();
    let again = save::parse(&script, family, Owner::Backend);
    assert_eq!(ours(&again), ours(tables), "read, written and read again");
}

fn plans(desired: &PolicyDesired, observed: &NetfilterState) {
    if !observed.exists() {
        return;
    }
    let netfilter = Netfilter::offline(NetfilterSettings::default());
    for desired in [&PolicyDesired::default(), desired] {
        let Ok(Change { plan, after }) = netfilter.plan(desired, observed) else {
            panic!("no plan for a state that can be had");
        };
        let _ = plan.to_string();
        let again = netfilter.plan(desired, &after);
        assert!(
            again.is_ok_and(|change| change.plan.is_empty()),
            "there is more to plan"
        );
    }
}
