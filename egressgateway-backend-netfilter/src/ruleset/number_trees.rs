//! Trees of chains that lead from a number in the packet mark to what it means.

use std::collections::BTreeMap;

use crate::{
    mark_layout::MarkLayout,
    names::{CLASS, HELD, SNAT_NODE, SOURCE, UNKNOWN_SOURCE},
    ruleset::tree::{Chains, Tree},
};

/// Class to what its destination says. A class that no chain is for (yet) is held: its pods are in
/// the sets, so they are governed.
pub(crate) fn class_tree(layout: MarkLayout, leaves: &BTreeMap<u16, String>) -> Chains {
    numbers(CLASS, layout, leaves, &format!("-g {HELD}"))
}

/// Sources that the nat table knows; others do not leave.
pub(crate) fn source_tree(layout: MarkLayout, leaves: &BTreeMap<u16, String>) -> Chains {
    numbers(SOURCE, layout, leaves, &format!("-g {UNKNOWN_SOURCE}"))
}

/// Source to its translation.
pub(crate) fn translation_tree(layout: MarkLayout, leaves: &BTreeMap<u16, String>) -> Chains {
    numbers(SOURCE, layout, leaves, &format!("-g {SNAT_NODE}"))
}

fn numbers(
    root: &str,
    layout: MarkLayout,
    leaves: &BTreeMap<u16, String>,
    otherwise: &str,
) -> Chains {
    let mut tree = Chains::new();
    Tree {
        root,
        width: 16,
        place: &|number| layout.number(number),
        otherwise: Some(otherwise),
    }
    .grow(&mut tree, leaves);
    tree
}
