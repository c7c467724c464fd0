//! What the relay's sets and maps hold.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use egressgateway::{
    RelayDesired,
    model::{Family, MacAddress, NodeName},
};
use imbl::{OrdMap, ordmap::DiffItem};
use serde_json::Value;

use crate::{
    relay::rules::Table,
    ruleset::names::{ELEMENTS_PER_COMMAND, RELAY_SCRATCH},
};

/// A key of a set or map, by which of them it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Element {
    /// `egress4`, `egress6`: the addresses that are relayed.
    Egress(Table, IpAddr),
    /// `own4`, `own6`: this node's own ports.
    Own(Table, IpAddr, u8),
    /// `blocks4`, `blocks6`: to the neighbour whose ports they are.
    Block(IpAddr, u8),
    /// `fragment_blocks4`, `fragment_blocks6`: the same by what a first fragment noted.
    FragmentBlock(IpAddr, u8),
    /// `scratch`: what a first fragment notes.
    Scratch(u8),
    /// `owners4`, `owners6`: whose the ports are, by the hardware address in the overlay.
    Owner(IpAddr, MacAddress, u8),
    /// `quoted4`, `quoted6`: an address, and the same as raw bytes.
    Quoted(IpAddr),
    /// `known4`, `known6`: outer addresses of nodes.
    Known(IpAddr),
    /// `peers4`, `peers6`: outer addresses of nodes with their hardware address.
    Peer(IpAddr, MacAddress),
    /// `macs`: hardware addresses of nodes.
    Mac(MacAddress),
}

/// All elements; the value is the neighbour, of those that have one.
pub(crate) type Elements = OrdMap<Element, Option<IpAddr>>;

/// Everything that `desired` asks for. `before` is what `elements` were made for: where only ports
/// changed hands, the cost is theirs.
pub(crate) fn of(
    desired: &RelayDesired,
    before: Option<&RelayDesired>,
    elements: &Elements,
) -> Elements {
    if desired.addresses.is_empty() {
        return Elements::new();
    }
    let same = |before: &&RelayDesired| {
        before.addresses == desired.addresses
            && before.own == desired.own
            && before.nodes == desired.nodes
    };
    let Some(before) = before.filter(same) else {
        let mut elements = constant(desired);
        for (place, node) in &desired.bindings {
            elements.extend(binding(desired, *place, node));
        }
        return elements;
    };
    let mut elements = elements.clone();
    let diff = || before.bindings.diff(&desired.bindings);
    for change in diff() {
        let (DiffItem::Remove(place, node)
        | DiffItem::Update {
            old: (place, node), ..
        }) = change
        else {
            continue;
        };
        for (element, _) in binding(desired, *place, node) {
            elements.remove(&element);
        }
    }
    for change in diff() {
        let (DiffItem::Add(place, node)
        | DiffItem::Update {
            new: (place, node), ..
        }) = change
        else {
            continue;
        };
        elements.extend(binding(desired, *place, node));
    }
    elements
}

/// What does not depend on ports.
fn constant(desired: &RelayDesired) -> Elements {
    let mut elements: Elements = (1..=u8::MAX)
        .map(|unit| (Element::Scratch(unit), None))
        .collect();
    for address in &desired.addresses {
        elements.insert(Element::Egress(Table::Host, *address), None);
        elements.insert(Element::Egress(Table::Ingress, *address), None);
        elements.insert(Element::Quoted(*address), None);
    }
    let others = desired
        .nodes
        .iter()
        .filter(|(name, _)| Some(*name) != desired.own.as_ref());
    for (_, node) in others {
        elements.insert(Element::Mac(node.mac), None);
        for address in &node.underlay {
            elements.insert(Element::Known(*address), None);
            elements.insert(Element::Peer(*address, node.mac), None);
        }
    }
    elements
}

/// The elements of one binding: none where nobody knows its node.
fn binding(
    desired: &RelayDesired,
    (address, unit): (IpAddr, u8),
    node: &NodeName,
) -> Vec<(Element, Option<IpAddr>)> {
    if !desired.addresses.contains(&address) {
        return Vec::new();
    }
    if Some(node) == desired.own.as_ref() {
        return Table::ALL
            .map(|table| (Element::Own(table, address, unit), None))
            .into();
    }
    let Some(node) = desired.nodes.get(node) else {
        return Vec::new();
    };
    let hop = node
        .hops
        .iter()
        .find(|hop| hop.family() == Family::of(address));
    let mut elements = vec![(Element::Owner(address, node.mac, unit), None)];
    if let Some(hop) = hop {
        elements.push((Element::Block(address, unit), Some(hop.via)));
        elements.push((Element::FragmentBlock(address, unit), Some(hop.via)));
    }
    elements
}

/// Commands for nft that lead from the one to the other, each with as many elements as it can
/// bring.
pub(crate) fn commands(from: &Elements, to: &Elements) -> String {
    let mut removed = BTreeMap::<_, Vec<String>>::new();
    let mut added = removed.clone();
    for change in from.diff(to) {
        if let DiffItem::Remove(element, _)
        | DiffItem::Update {
            old: (element, _), ..
        } = change
        {
            removed
                .entry(element.set())
                .or_default()
                .push(element.to_string());
        }
        if let DiffItem::Add(element, neighbour)
        | DiffItem::Update {
            new: (element, neighbour),
            ..
        } = change
        {
            let data = element.data(*neighbour);
            added
                .entry(element.set())
                .or_default()
                .push(format!("{element}{data}"));
        }
    }
    let mut script = String::new();
    for (verb, all) in [("delete", removed), ("add", added)] {
        for ((table, set), elements) in all {
            for some in elements.chunks(ELEMENTS_PER_COMMAND) {
                let (path, some) = (table.path(), some.join(", "));
                let command = format!("{verb} element {path} {set} {{ {some} }}\n");
                script.push_str(&command);
            }
        }
    }
    script
}

impl Element {
    /// The table and set that it is in.
    fn set(self) -> (Table, &'static str) {
        let of = |address: IpAddr, v4, v6| match Family::of(address) {
            Family::V4 => v4,
            Family::V6 => v6,
        };
        match self {
            Self::Egress(table, address) => (table, of(address, "egress4", "egress6")),
            Self::Own(table, address, _) => (table, of(address, "own4", "own6")),
            Self::Block(address, _) => (Table::Ingress, of(address, "blocks4", "blocks6")),
            Self::FragmentBlock(address, _) => (
                Table::Ingress,
                of(address, "fragment_blocks4", "fragment_blocks6"),
            ),
            Self::Scratch(_) => (Table::Ingress, "scratch"),
            Self::Owner(address, ..) => (Table::Host, of(address, "owners4", "owners6")),
            Self::Quoted(address) => (Table::Host, of(address, "quoted4", "quoted6")),
            Self::Known(address) => (Table::Host, of(address, "known4", "known6")),
            Self::Peer(address, _) => (Table::Host, of(address, "peers4", "peers6")),
            Self::Mac(_) => (Table::Host, "macs"),
        }
    }

    /// What follows the key in a map.
    fn data(self, neighbour: Option<IpAddr>) -> String {
        match (self, neighbour) {
            (Self::Scratch(unit), _) => format!(" : {RELAY_SCRATCH:x}:{unit:x}"),
            (_, Some(neighbour)) => format!(" : {neighbour}"),
            (_, None) => String::new(),
        }
    }

    /// Reads one of nft's elements of this set; none for what we would not have written.
    pub(crate) fn parse(table: Table, set: &str, json: &Value) -> Option<(Self, Option<IpAddr>)> {
        let (name, family) = match set.strip_suffix('4') {
            Some(name) => (name, Some(Family::V4)),
            None => match set.strip_suffix('6') {
                Some(name) => (name, Some(Family::V6)),
                None => (set, None),
            },
        };
        let address = |value: &Value| {
            let address: IpAddr = value.as_str()?.parse().ok()?;
            (Some(Family::of(address)) == family).then_some(address)
        };
        let pair = || match json.as_array()?.as_slice() {
            [key, data] => Some((key, data)),
            _ => None,
        };
        let concat = |value: &Value| value["concat"].as_array().cloned();
        let unit = |value: &Value| u8::try_from(value.as_u64()?).ok();
        let element = match (table, name) {
            (_, "egress") => (Self::Egress(table, address(json)?), None),
            (Table::Host, "known") => (Self::Known(address(json)?), None),
            (Table::Host, "macs") => (Self::Mac(hardware(json)?), None),
            (Table::Ingress, "scratch") => {
                let (key, data) = pair()?;
                let element = Self::Scratch(unit(key)?);
                return (element.data(None) == format!(" : {}", data.as_str()?))
                    .then_some((element, None));
            }
            (_, "own") => match concat(json)?.as_slice() {
                [of, byte] => (Self::Own(table, address(of)?, unit(byte)?), None),
                _ => return None,
            },
            (Table::Ingress, "blocks") => {
                let (key, data) = pair()?;
                match concat(key)?.as_slice() {
                    [of, byte] => (Self::Block(address(of)?, unit(byte)?), Some(address(data)?)),
                    _ => return None,
                }
            }
            (Table::Ingress, "fragment_blocks") => {
                let (key, data) = pair()?;
                match concat(key)?.as_slice() {
                    [of, noted] => (
                        Self::FragmentBlock(address(of)?, scratch(noted)?),
                        Some(address(data)?),
                    ),
                    _ => return None,
                }
            }
            (Table::Host, "owners") => match concat(json)?.as_slice() {
                [mac, of, byte] => (
                    Self::Owner(address(of)?, mac.as_str()?.parse().ok()?, unit(byte)?),
                    None,
                ),
                _ => return None,
            },
            (Table::Host, "peers") => match concat(json)?.as_slice() {
                [of, mac] => (Self::Peer(address(of)?, hardware(mac)?), None),
                _ => return None,
            },
            (Table::Host, "quoted") => {
                let parts = concat(json)?;
                let (of, raw) = parts.split_first()?;
                let of = address(of)?;
                let raw: Option<Vec<u64>> = raw.iter().map(number).collect();
                return (raw? == bytes(of)).then_some((Self::Quoted(of), None));
            }
            _ => return None,
        };
        Some(element)
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Egress(_, address) | Self::Known(address) => write!(f, "{address}"),
            Self::Own(_, address, unit) | Self::Block(address, unit) => {
                write!(f, "{address} . {unit}")
            }
            Self::FragmentBlock(address, unit) => {
                write!(f, "{address} . {RELAY_SCRATCH:x}:{unit:x}")
            }
            Self::Scratch(unit) => write!(f, "{unit}"),
            Self::Owner(address, mac, unit) => write!(f, "{mac} . {address} . {unit}"),
            Self::Quoted(address) => {
                write!(f, "{address}")?;
                bytes(*address)
                    .into_iter()
                    .try_for_each(|part| write!(f, " . {part:#x}"))
            }
            Self::Peer(address, mac) => write!(f, "{address} . {:#x}", raw(*mac)),
            Self::Mac(mac) => write!(f, "{:#x}", raw(*mac)),
        }
    }
}

/// An address as the numbers that nft takes bits of a packet for, of 64 bits at most.
fn bytes(address: IpAddr) -> Vec<u64> {
    match address {
        IpAddr::V4(address) => vec![address.to_bits().into()],
        IpAddr::V6(address) => {
            let octets = address.octets();
            octets.chunks(8).map(joined).collect()
        }
    }
}

/// Up to eight bytes as they are on the wire.
fn joined(octets: &[u8]) -> u64 {
    octets
        .iter()
        .fold(0, |number, octet| number << 8 | u64::from(*octet))
}

/// A hardware address as a number.
fn raw(mac: MacAddress) -> u64 {
    joined(&mac.0)
}

fn hardware(value: &Value) -> Option<MacAddress> {
    let [0, 0, octets @ ..] = value.as_u64()?.to_be_bytes() else {
        return None;
    };
    Some(MacAddress(octets))
}

/// nft's JSON has numbers with a sign.
fn number(value: &Value) -> Option<u64> {
    value
        .as_u64()
        .or_else(|| value.as_i64().map(i64::cast_unsigned))
}

/// What a first fragment noted.
fn scratch(value: &Value) -> Option<u8> {
    let (major, minor) = value.as_str()?.split_once(':')?;
    if u16::from_str_radix(major, 16).ok()? != RELAY_SCRATCH {
        return None;
    }
    u8::from_str_radix(minor, 16).ok()
}
