//! What fuzz targets call: readers of what nft and the kernel say. This is no API and changes without
//! notice.
//!
//! Each function reads anything, and panics where what it says of itself does not hold.
#![allow(clippy::missing_panics_doc)]

use std::collections::BTreeSet;

use egressgateway::{Change, Driver as _, PolicyDesired, Surroundings};
use serde_json::Value;

use crate::{
    NftState, Nftables, NftablesSettings,
    apply::command,
    apply::element_batch,
    backend, exit_guard,
    observe::monitor::{self, Writers},
    observe::table,
    relay,
    ruleset::names::TABLE,
    untracking,
};

/// What nft prints of a table is read. Whatever was in the table, the plan from there ends in the
/// state that the plan from nothing ends in, and after it there is nothing left to plan.
pub fn table(bytes: &[u8], desired: &PolicyDesired) {
    let Some(objects) = objects(bytes) else {
        return;
    };
    let _ = (exit_guard::state(&objects), exit_guard::dropped(&objects));
    let _ = backend::counters(&objects);
    relay::read(&objects);
    let observed = table::state(&objects);
    let _ = (observed.len(), observed.foreign().count());
    // Nothing but the fact that there is a table, as most texts say: one plan for all of them.
    if observed.is_empty() && observed.chains.is_empty() && observed.foreign.is_empty() {
        return;
    }
    let nothing = NftState::default();
    let nftables = Nftables::offline(NftablesSettings::default());
    for desired in [&PolicyDesired::default(), desired] {
        let plan = |current| nftables.plan(desired, current);
        let (Ok(Change { plan: text, after }), Ok(anew)) = (plan(&observed), plan(&nothing)) else {
            panic!("no plan for a state that can be had");
        };
        let _ = text.to_string();
        assert_eq!(after, anew.after, "another end than from nothing");
        let again = plan(&after).map(|change| change.plan.to_string());
        assert_eq!(again.ok().as_deref(), Some(""), "there is more to plan");
    }
}

/// What nft prints of others' tables is read, and what takes packets out of connection tracking is
/// found.
pub fn others(bytes: &[u8], known: &Surroundings) {
    let Some(objects) = objects(bytes) else {
        return;
    };
    for ((family, table), entries) in untracking::early(&objects) {
        let chains = untracking::chains(&objects, family, table);
        for rule in entries.iter().flat_map(|entry| chains.untracking(entry)) {
            let _ = (rule.packets.may_be_governed(known), rule.to_string());
        }
    }
}

/// Why nft refused something is told in a sentence that begins with what was done.
pub fn refusal(bytes: &[u8]) {
    let error = command::refused(&String::from_utf8_lossy(bytes), "update the table");
    assert!(error.chain().starts_with("update the table: "));
}

/// Notifications and answers of the kernel are read to their end.
pub fn notification(bytes: &[u8]) {
    let tables = BTreeSet::from(["hardening".to_owned()]);
    let _ = monitor::is_foreign(bytes, TABLE, &Writers::default());
    for (_, body) in monitor::messages(bytes) {
        let _ = untracking::concerns(body, &tables);
    }
    assert!(monitor::messages(bytes).count() <= bytes.len());
    assert!(element_batch::answers(bytes).count() <= bytes.len());
}

fn objects(bytes: &[u8]) -> Option<Vec<Value>> {
    let text = std::str::from_utf8(bytes).ok()?;
    command::objects(text, "list a table").ok()
}
