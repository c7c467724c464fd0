//! What our table holds.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use egressgateway::{
    Error, PolicyDesired,
    model::{Family, MarkMask},
};

use crate::{
    ruleset::ast::{Chain, Declaration},
    ruleset::chains::{self, Exits},
    ruleset::names::{CHANGING, COUNTERS, DEVICES, EXITS, Scope, SetName, TARGETS},
    sets::elements::{Elements, Memory},
};

/// Everything in our table, or that there is none (the default).
///
/// Two states are equal when the kernel would do the same with every packet and there is nothing in
/// the table that is not ours.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NftState {
    /// There is a table.
    pub(crate) exists: bool,
    pub(crate) counters: BTreeSet<String>,
    pub(crate) declarations: Arc<BTreeMap<String, Declaration>>,
    pub(crate) chains: Arc<BTreeMap<String, Chain>>,
    pub(crate) elements: Elements,
    /// What we would never have written, for the log.
    pub(crate) foreign: BTreeSet<String>,
    /// Sets and maps that a former version declared under other names. No rule of this version
    /// refers to them.
    pub(crate) former: BTreeSet<(SetName, Family)>,
    pub(crate) memory: Memory,
}

impl NftState {
    /// The state that `desired` asks for.
    pub(crate) fn of(
        scope: Scope,
        desired: &PolicyDesired,
        mask: MarkMask,
        current: &Self,
    ) -> Result<Self, Error> {
        let governs = || {
            !desired.destinations.is_empty()
                || desired
                    .start_gate
                    .as_ref()
                    .is_some_and(|gate| !gate.governed.is_empty())
        };
        if *desired == PolicyDesired::default() || (scope == Scope::Services && !governs()) {
            return Ok(Self::default());
        }
        let (mut elements, memory) =
            Elements::of(desired, mask, &current.elements, &current.memory)?;
        let declarations = declarations();
        let exits = Exits {
            kept: !elements.keep_source.is_empty(),
            addressed: !elements.addresses.is_empty(),
        };
        let chains = match scope {
            Scope::Whole => chains::chains(desired, mask, exits),
            Scope::Services => {
                elements.keep_classification();
                chains::services(desired, mask)
            }
        };
        Ok(Self {
            exists: true,
            counters: COUNTERS.map(str::to_owned).into(),
            declarations: if *current.declarations == declarations {
                current.declarations.clone()
            } else {
                Arc::new(declarations)
            },
            chains: if *current.chains == chains {
                current.chains.clone()
            } else {
                Arc::new(chains)
            },
            elements,
            foreign: BTreeSet::new(),
            former: BTreeSet::new(),
            memory,
        })
    }

    /// Whether the host has our table.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.exists
    }

    /// Number of elements in all sets and maps: how much the kernel was told.
    #[must_use]
    pub fn len(&self) -> usize {
        let Elements {
            pods,
            subnets,
            steer,
            exit,
            addresses,
            keep_source,
            node,
            exempt,
            local,
            wide,
            governed,
            ungoverned,
            peers,
            own,
            hosts,
            relayed,
            devices,
            targets,
            via,
            exits,
            changing,
        } = &self.elements;
        let maps = pods.len()
            + subnets.len()
            + steer.len()
            + exit.len()
            + addresses.len()
            + node.len()
            + targets.len()
            + via.len()
            + exits.len();
        maps + keep_source.len()
            + exempt.len()
            + local.len()
            + wide.len()
            + governed.len()
            + ungoverned.len()
            + peers.len()
            + own.len()
            + hosts.len()
            + relayed.len()
            + devices.len()
            + changing.len()
    }

    /// Whether no set and no map has an element.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What was found in the table that this backend does not write, such as rules that somebody
    /// added by hand. The next plan replaces the table.
    pub fn foreign(&self) -> impl Iterator<Item = &str> {
        self.foreign.iter().map(String::as_str)
    }
}

/// All sets and maps; the same for every desired state.
pub(crate) fn declarations() -> BTreeMap<String, Declaration> {
    let mut all: BTreeMap<String, Declaration> = SetName::ALL
        .into_iter()
        .flat_map(|set| {
            Family::ALL.map(|family| (set.name(family).to_owned(), set.declaration(family)))
        })
        .collect();
    all.insert(
        DEVICES.into(),
        Declaration {
            key: vec!["ifname"],
            data: None,
            interval: false,
        },
    );
    all.insert(
        CHANGING.into(),
        Declaration {
            key: vec!["classid"],
            data: None,
            interval: false,
        },
    );
    all.insert(
        EXITS.into(),
        Declaration {
            key: vec!["mark"],
            data: None,
            interval: false,
        },
    );
    all.insert(
        TARGETS.into(),
        Declaration {
            key: vec!["mark"],
            data: Some("verdict"),
            interval: false,
        },
    );
    all
}
