//! What the relay's tables hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use egressgateway::{Error, ErrorKind, RelayDesired, model::Family, model::MarkMask};
use serde_json::Value;

use crate::{
    relay::{
        elements::{self, Element, Elements},
        rules::{Facts, Layout, Set, Table, layouts},
    },
    ruleset::names::RELAY_FRAGMENTS_SECONDS,
    sets::elements::fits,
};

/// Everything in the relay's tables, or that there are none (the default); and which devices the
/// host has, because rules hold a device by an index that its name does not keep for ever.
///
/// Two states are equal when the tables are. The devices are only looked at by the next plan.
#[derive(Clone, Debug, Default)]
pub struct RelayState {
    pub(crate) tables: Arc<BTreeMap<Table, Held>>,
    pub(crate) elements: Elements,
    /// Index by name.
    devices: Arc<BTreeMap<String, u32>>,
    /// What the elements were made for, where it is known.
    origin: Option<Box<RelayDesired>>,
}

impl PartialEq for RelayState {
    fn eq(&self, other: &Self) -> bool {
        self.tables == other.tables && self.elements == other.elements
    }
}

/// One table without its elements.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    counters: BTreeSet<String>,
    /// How each set is declared.
    sets: BTreeMap<String, String>,
    /// Where the kernel enters each chain, and the comments of its rules.
    chains: BTreeMap<String, (Option<String>, Vec<String>)>,
    /// What we would never have written.
    foreign: BTreeSet<String>,
}

impl RelayState {
    /// A host with these devices, by name and index, and nothing of ours.
    #[must_use]
    pub fn on(devices: impl IntoIterator<Item = (String, u32)>) -> Self {
        Self {
            devices: Arc::new(devices.into_iter().collect()),
            ..Self::default()
        }
    }

    /// Whether the host has one of our tables.
    #[must_use]
    pub fn exists(&self) -> bool {
        !self.tables.is_empty()
    }

    /// Number of elements in all sets and maps.
    #[must_use]
    pub fn len(&self) -> usize {
        self.elements.len()
    }

    /// Whether no set and no map has an element.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.elements.is_empty()
    }

    /// The state that `desired` asks for where this one is, and the tables to be written where they
    /// are not as they should be.
    pub(crate) fn next(
        &self,
        desired: &RelayDesired,
        mask: MarkMask,
    ) -> Result<(Self, Vec<Layout>), Error> {
        if desired.addresses.is_empty() {
            let after = Self {
                devices: self.devices.clone(),
                ..Self::default()
            };
            return Ok((after, Vec::new()));
        }
        let layouts = layouts(&self.facts(desired, mask)?);
        let tables: BTreeMap<Table, Held> = layouts
            .iter()
            .map(|layout| (layout.table, Held::of(layout)))
            .collect();
        let same = tables == *self.tables;
        let after = Self {
            tables: if same {
                self.tables.clone()
            } else {
                Arc::new(tables)
            },
            elements: elements::of(desired, self.origin.as_deref(), &self.elements),
            devices: self.devices.clone(),
            origin: Some(Box::new(desired.clone())),
        };
        Ok((after, if same { Vec::new() } else { layouts.into() }))
    }

    fn facts<'a>(&self, desired: &'a RelayDesired, mask: MarkMask) -> Result<Facts<'a>, Error> {
        let devices = |names: &'a imbl::OrdSet<String>| -> Result<Vec<&'a str>, Error> {
            names.iter().map(|name| checked(name)).collect()
        };
        let (overlay, outside) = (devices(&desired.overlay)?, devices(&desired.outside)?);
        let present = |name: &'a str| Some((name, *self.devices.get(name)?));
        // What this host itself says to an egress address, such as that a packet is too large for
        // the tunnel, goes by the loopback device while the address is its own.
        let ingress = outside
            .iter()
            .copied()
            .filter(|name| *name != "lo")
            .chain(["lo"])
            .filter_map(present)
            .collect();
        let mut forward = [None; 2];
        for (slot, family) in forward.iter_mut().zip([Family::V4, Family::V6]) {
            *slot = common_device(desired, family)?.and_then(present);
        }
        Ok(Facts {
            mask,
            port: desired.port,
            overlay,
            outside,
            ingress,
            forward,
        })
    }

    /// What nft's JSON tells of our tables.
    pub(crate) fn read(
        tables: impl IntoIterator<Item = (Table, Vec<Value>)>,
        devices: BTreeMap<String, u32>,
    ) -> Self {
        let mut state = Self::on(devices);
        let mut all = BTreeMap::new();
        for (table, objects) in tables {
            let mut held = Held::default();
            for object in &objects {
                let body = object.as_object().and_then(|object| object.iter().next());
                if let Some((kind, body)) = body {
                    held.take_in(table, kind, body, &mut state.elements);
                }
            }
            all.insert(table, held);
        }
        state.tables = Arc::new(all);
        state
    }
}

/// A name that the kernel would take, and that does not end nft's string.
fn checked(name: &str) -> Result<&str, Error> {
    if fits(name) {
        Ok(name)
    } else {
        Err(Error::new(
            ErrorKind::Invalid,
            format!("{name:?} is no device name"),
        ))
    }
}

/// The device that leads to all nodes in this family.
fn common_device(desired: &RelayDesired, family: Family) -> Result<Option<&str>, Error> {
    let hops = desired
        .nodes
        .values()
        .flat_map(|node| &node.hops)
        .filter(|hop| hop.family() == family);
    let mut device: Option<&str> = None;
    for hop in hops {
        if hop.encap.is_some() {
            let context = format!(
                "answers can't be passed on to {}: the way there has an encapsulation of its own",
                hop.via
            );
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
        if device.is_some_and(|device| device != hop.device) {
            let context = format!(
                "answers are passed on by one device of each family, and {} is reached by another one",
                hop.via
            );
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
        device = Some(checked(&hop.device)?);
    }
    Ok(device)
}

impl Held {
    fn of(layout: &Layout) -> Self {
        let chains = layout.chains.iter().map(|chain| {
            let hook = chain
                .hook
                .as_ref()
                .map(|hook| format!("filter {} {} accept", hook.point, hook.priority));
            let rules = chain.rules.iter().map(crate::relay::rules::Rule::comment);
            (chain.name.clone(), (hook, rules.collect()))
        });
        Self {
            counters: layout
                .counters
                .iter()
                .map(|name| (*name).to_owned())
                .collect(),
            sets: layout
                .sets
                .iter()
                .map(|set| (set.name.clone(), declaration(set)))
                .collect(),
            chains: chains.collect(),
            foreign: BTreeSet::new(),
        }
    }

    fn take_in(&mut self, table: Table, kind: &str, body: &Value, elements: &mut Elements) {
        let text = |key: &str| body[key].as_str().unwrap_or_default();
        let name = text("name").to_owned();
        match kind {
            "metainfo" => {}
            // A table that sleeps, or that goes with its owner, is none of ours.
            "table" if body.get("flags").is_none() => {}
            "counter" => drop(self.counters.insert(name)),
            "chain" => {
                let hook = body.get("hook").map(|_| {
                    let (kind, point, policy) = (text("type"), text("hook"), text("policy"));
                    format!("{kind} {point} {} {policy}", body["prio"])
                });
                self.chains.entry(name).or_default().0 = hook;
            }
            "rule" => {
                let comments = &mut self.chains.entry(text("chain").to_owned()).or_default().1;
                comments.push(text("comment").to_owned());
            }
            "set" | "map" => {
                // What packets put there is gone in a moment, and theirs.
                if body.get("timeout").is_none() {
                    for element in body["elem"].as_array().into_iter().flatten() {
                        match Element::parse(table, &name, element) {
                            Some((element, data)) => drop(elements.insert(element, data)),
                            None => drop(self.foreign.insert(format!("{name} {element}"))),
                        }
                    }
                }
                self.sets.insert(name, declared(kind, body));
            }
            _ => drop(self.foreign.insert(format!("{kind} {body}"))),
        }
    }
}

/// A set as nft's JSON describes it.
fn declared(kind: &str, body: &Value) -> String {
    let parts = match &body["type"] {
        Value::Array(parts) => parts.len(),
        // Newer versions of nft write the expressions.
        Value::Object(object) => object["typeof"]["concat"].as_array().map_or(1, Vec::len),
        _ => 1,
    };
    let interval = match &body["flags"] {
        Value::Array(flags) => flags
            .iter()
            .any(|flag| flag != "timeout" && flag != "dynamic"),
        Value::Null => false,
        flag => flag != "timeout" && flag != "dynamic",
    };
    let timeout = body["timeout"].as_u64().unwrap_or_default();
    format!("{kind} of {parts}, {timeout} s, {interval}")
}

/// The same of one of ours.
fn declaration(set: &Set) -> String {
    let (kind, timeout) = (
        if set.data.is_some() { "map" } else { "set" },
        if set.dynamic {
            RELAY_FRAGMENTS_SECONDS
        } else {
            0
        },
    );
    format!("{kind} of {}, {timeout} s, false", set.key.len())
}
