//! Our table as `nft -j` lists it, read back into our words.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use egressgateway::model::{ClassId, Family, IpRange};
use ipnet::IpNet;
use serde_json::{Map, Value};

use crate::{
    observe::statement,
    ruleset::ast::{Chain, Declaration, Hook, Jump},
    ruleset::names::{
        CHANGING, DEVICES, EXITS, HELD, NO_GATEWAY, SetName, TARGETS, TO, network_of_chain,
        target_of_chain,
    },
    sets::elements::{Elements, ExitAs, Leave, Steer},
    state::{NftState, declarations},
};

/// The state that these objects of nft's JSON make up. Whatever we would not have written is noted
/// as foreign.
pub(crate) fn state(objects: &[Value]) -> NftState {
    let mut reader = Reader::default();
    for object in objects.iter().filter_map(Value::as_object) {
        for (kind, body) in object {
            reader.object(kind, body);
        }
    }
    let Reader {
        counters,
        declarations,
        chains,
        elements,
        foreign,
        former,
        ..
    } = reader;
    NftState {
        exists: true,
        counters,
        declarations: Arc::new(declarations),
        chains: Arc::new(chains),
        elements,
        foreign,
        former,
        ..NftState::default()
    }
}

/// Fields of a set's JSON that say nothing else than our declaration.
const SET_FIELDS: [&str; 8] = [
    "family", "name", "table", "type", "handle", "map", "flags", "elem",
];

#[derive(Default)]
struct Reader {
    counters: BTreeSet<String>,
    declarations: BTreeMap<String, Declaration>,
    chains: BTreeMap<String, Chain>,
    elements: Elements,
    foreign: BTreeSet<String>,
    former: BTreeSet<(SetName, Family)>,
    ours: BTreeMap<String, Declaration>,
}

impl Reader {
    fn object(&mut self, kind: &str, body: &Value) {
        let name = body["name"].as_str().unwrap_or_default();
        match kind {
            "metainfo" => {}
            "table" if body.get("flags").is_none() => {}
            "counter" => {
                self.counters.insert(name.to_owned());
            }
            "chain" => self.chain(name, body),
            "rule" => self.rule(body),
            "set" | "map" => self.set(kind, name, body),
            _ => self.foreign(kind, body),
        }
    }

    fn foreign(&mut self, what: &str, body: &Value) {
        self.foreign.insert(format!("{what} {body}"));
    }

    fn chain(&mut self, name: &str, body: &Value) {
        let text = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
        let hook = body.get("hook").map(|_| Hook {
            kind: text("type"),
            point: text("hook"),
            priority: body["prio"]
                .as_i64()
                .and_then(|priority| i32::try_from(priority).ok())
                .unwrap_or_default(),
            policy: text("policy"),
        });
        if body.get("dev").is_some() {
            self.foreign("chain", body);
        }
        self.chains.entry(name.to_owned()).or_default().hook = hook;
    }

    fn rule(&mut self, body: &Value) {
        let statements = body["expr"]
            .as_array()
            .into_iter()
            .flatten()
            .map(statement::statement)
            .collect();
        self.chains
            .entry(body["chain"].as_str().unwrap_or_default().to_owned())
            .or_default()
            .rules
            .push(statements);
    }

    /// A set of ours, or one that is not. Options that we never give, such as a timeout, change
    /// what the kernel does: they count as foreign. The elements of a set with a former name don't
    /// matter: its successor gets those that are wanted now.
    fn set(&mut self, kind: &str, name: &str, body: &Value) {
        if self.ours.is_empty() {
            self.ours = declarations();
        }
        let fields = body
            .as_object()
            .is_some_and(|body| body.keys().all(|key| SET_FIELDS.contains(&key.as_str())));
        let former = SetName::parse_former(name);
        let present = former.map_or(name, |(set, family)| set.name(family));
        let Some(declared) = self
            .ours
            .get(present)
            .filter(|declared| fields && matches(declared, kind, body))
            .cloned()
        else {
            let mut header = body.as_object().cloned().unwrap_or_else(Map::new);
            header.remove("elem");
            return self.foreign(kind, &Value::Object(header));
        };
        if let Some(former) = former {
            self.former.insert(former);
            return;
        }
        self.declarations.insert(name.to_owned(), declared);
        for element in body["elem"].as_array().into_iter().flatten() {
            if self.element(name, element).is_none() {
                self.foreign(name, element);
            }
        }
    }

    /// Takes an element in; none when we would not have written it.
    fn element(&mut self, name: &str, element: &Value) -> Option<()> {
        let elements = &mut self.elements;
        match name {
            DEVICES => {
                elements.devices.insert(element.as_str()?.to_owned());
            }
            CHANGING => {
                elements.changing.insert(class(element)?);
            }
            EXITS => {
                elements.exits.insert(statement::number(element)?);
            }
            TARGETS => {
                let (key, value) = pair(element)?;
                elements
                    .targets
                    .insert(statement::number(key)?, statement::jump(value)?);
            }
            _ => {
                let (set, family) = SetName::parse(name)?;
                self.of_family(set, family, element)?;
            }
        }
        Some(())
    }

    fn of_family(&mut self, set: SetName, family: Family, element: &Value) -> Option<()> {
        let elements = &mut self.elements;
        match set {
            SetName::Exempt => drop(elements.exempt.insert(range(element, family)?)),
            SetName::Local => drop(elements.local.insert(range(element, family)?)),
            SetName::Wide => drop(elements.wide.insert(range(element, family)?)),
            SetName::Governed => drop(elements.governed.insert(range(element, family)?)),
            SetName::Ungoverned => drop(elements.ungoverned.insert(address(element, family)?)),
            SetName::Peers => drop(elements.peers.insert(address(element, family)?)),
            SetName::Own => drop(elements.own.insert(address(element, family)?)),
            SetName::Relayed => drop(elements.relayed.insert(address(element, family)?)),
            SetName::Hosts => drop(elements.hosts.insert(address(element, family)?)),
            SetName::Pods => {
                let (key, value) = pair(element)?;
                elements.pods.insert(address(key, family)?, class(value)?);
            }
            SetName::Subnets => {
                let (key, value) = pair(element)?;
                elements.subnets.insert(range(key, family)?, class(value)?);
            }
            SetName::Node => {
                let (device, value) = pair(element)?;
                elements.node.insert(
                    (device.as_str()?.to_owned(), family),
                    address(value, family)?,
                );
            }
            SetName::KeepSource => {
                let [of, to] = element["concat"].as_array()?.as_slice() else {
                    return None;
                };
                elements
                    .keep_source
                    .insert((class(of)?, range(to, family)?));
            }
            SetName::Verdicts | SetName::SnatKind | SetName::SnatAddress | SetName::Via => {
                let (key, value) = pair(element)?;
                let [of, to] = key["concat"].as_array()?.as_slice() else {
                    return None;
                };
                let place = (class(of)?, range(to, family)?);
                match set {
                    SetName::Verdicts => drop(elements.steer.insert(place, steer(value)?)),
                    SetName::SnatKind => drop(elements.exit.insert(place, exit(value)?)),
                    SetName::Via => drop(elements.via.insert(place, leave(value)?)),
                    _ => drop(elements.addresses.insert(place, address(value, family)?)),
                }
            }
        }
        Some(())
    }
}

/// Whether a set is declared as we would.
fn matches(declared: &Declaration, kind: &str, body: &Value) -> bool {
    let key: Option<Vec<&str>> = match &body["type"] {
        Value::String(one) => Some(vec![one]),
        Value::Array(several) => several.iter().map(Value::as_str).collect(),
        _ => None,
    };
    // Newer versions of nft write a single flag without a list.
    let flags: Option<Vec<&str>> = match &body["flags"] {
        Value::Null => Some(Vec::new()),
        Value::String(one) => Some(vec![one]),
        several => several
            .as_array()
            .and_then(|flags| flags.iter().map(Value::as_str).collect()),
    };
    let interval: &[&str] = if declared.interval {
        &["interval"]
    } else {
        &[]
    };
    kind == declared.noun()
        && key.as_ref() == Some(&declared.key)
        && body["map"].as_str() == declared.data
        && flags.as_deref() == Some(interval)
}

fn pair(element: &Value) -> Option<(&Value, &Value)> {
    match element.as_array()?.as_slice() {
        [key, value] => Some((key, value)),
        _ => None,
    }
}

fn address(value: &Value, family: Family) -> Option<IpAddr> {
    value
        .as_str()?
        .parse()
        .ok()
        .filter(|address| Family::of(*address) == family)
}

fn range(value: &Value, family: Family) -> Option<IpRange> {
    if let Some(prefix) = value.get("prefix") {
        let length = u8::try_from(prefix["len"].as_u64()?).ok()?;
        return Some(
            IpNet::new(address(&prefix["addr"], family)?, length)
                .ok()?
                .into(),
        );
    }
    if let Some(ends) = value.get("range") {
        return IpRange::new(address(&ends[0], family)?, address(&ends[1], family)?);
    }
    address(value, family).map(IpRange::single)
}

/// nft has names for two numbers: see tc(8).
fn class(value: &Value) -> Option<ClassId> {
    let number = match value.as_str()? {
        "root" => u32::MAX,
        "none" => return None,
        text => {
            let (major, minor) = text.split_once(':')?;
            let half = |digits: &str| {
                if digits.is_empty() {
                    Some(0)
                } else {
                    u16::from_str_radix(digits, 16).ok()
                }
            };
            u32::from(half(major)?) << 16 | u32::from(half(minor)?)
        }
    };
    ClassId::new(number)
}

fn steer(value: &Value) -> Option<Steer> {
    match statement::jump(value)? {
        Jump::Goto(chain) if chain == HELD => Some(Steer::Held),
        Jump::Goto(chain) if chain == NO_GATEWAY => Some(Steer::NoGateway),
        Jump::Goto(chain) => target_of_chain(TO, &chain).map(Steer::To),
        _ => None,
    }
}

fn leave(value: &Value) -> Option<Leave> {
    match statement::jump(value)? {
        Jump::Goto(chain) => network_of_chain(&chain).map(Leave),
        _ => None,
    }
}

fn exit(value: &Value) -> Option<ExitAs> {
    match statement::jump(value)? {
        Jump::Goto(chain) => ExitAs::of_chain(&chain),
        _ => None,
    }
}
