//! Chains of ours, and the rules of others' chains that lead to them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use egressgateway::model::Family;

use crate::{names::COMMENT, ruleset::tree::Chains};

/// Our chains of each table of each family.
pub(crate) type Tables = BTreeMap<(Family, String), Arc<Table>>;

/// What is ours in one table of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) chains: Chains,
    pub(crate) jumps: BTreeSet<Jump>,
}

/// A rule in a chain of somebody else that leads to one of ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Jump {
    pub(crate) chain: String,
    /// How many rules come before it; in the filter table's `FORWARD`, how many that may drop what
    /// it lets pass.
    pub(crate) position: usize,
    pub(crate) rule: String,
}

impl Jump {
    /// The jump that we write: before all others' rules.
    pub(crate) fn first(chain: &str, own: &str) -> Self {
        Self {
            chain: chain.to_owned(),
            position: 0,
            rule: format!("-m comment --comment {COMMENT} -j {own}"),
        }
    }

    /// Whether it is the same but for its place.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        self.chain == other.chain && self.rule == other.rule
    }
}
