//! One statement of nft's JSON, as our own statement or as a foreign one.
//!
//! The kernel keeps rules as byte code, and nft puts them into words again: some come back in other
//! words than they were written in.

use std::net::IpAddr;

use egressgateway::{
    model::{Family, PortBlock},
    trace::{ConnectionState, DestinationKind, Direction},
};
use serde_json::Value;

use crate::{
    ruleset::ast::{Jump, PROTOCOLS_WITH_PORTS, Side, Statement, Way},
    ruleset::names::{CHANGING, COUNTERS, DEVICES, EXITS, SetName, TARGETS},
};

/// The statement; foreign when it is none that we write.
pub(crate) fn statement(json: &Value) -> Statement {
    known(json).unwrap_or_else(|| Statement::Foreign(json.to_string()))
}

/// Where a verdict leads.
pub(crate) fn jump(json: &Value) -> Option<Jump> {
    let object = json.as_object().filter(|object| object.len() == 1)?;
    let (verb, body) = object.iter().next()?;
    let chain = || body["target"].as_str().map(str::to_owned);
    match verb.as_str() {
        "accept" => Some(Jump::Accept),
        "drop" => Some(Jump::Drop),
        "return" => Some(Jump::Return),
        "jump" => chain().map(Jump::Call),
        "goto" => chain().map(Jump::Goto),
        _ => None,
    }
}

/// A number of 32 bits.
pub(crate) fn number(json: &Value) -> Option<u32> {
    json.as_u64().and_then(|number| u32::try_from(number).ok())
}

fn known(json: &Value) -> Option<Statement> {
    if let Some(jump) = jump(json) {
        return Some(Statement::Go(jump));
    }
    let object = json.as_object().filter(|object| object.len() == 1)?;
    let (kind, body) = object.iter().next()?;
    match kind.as_str() {
        "match" => matching(body),
        "mangle" => mangle(&body["key"], &body["value"]),
        "vmap" => vmap(&body["key"], body["data"].as_str()?),
        "counter" => COUNTERS
            .into_iter()
            .find(|counter| body.as_str() == Some(counter))
            .map(Statement::Count),
        "snat" => snat(body),
        "masquerade" => fully_random(&body["flags"]).then_some(Statement::Masquerade),
        "notrack" => Some(Statement::Untrack),
        _ => None,
    }
}

fn fully_random(flags: &Value) -> bool {
    flags == "fully-random"
        || flags
            .as_array()
            .is_some_and(|flags| flags.len() == 1 && flags[0] == "fully-random")
}

fn matching(body: &Value) -> Option<Statement> {
    let (left, right) = (&body["left"], &body["right"]);
    let negated = match body["op"].as_str()? {
        "==" | "in" => false,
        "!=" => true,
        _ => return None,
    };
    if let Some(key) = mark_key(left.get("&").map_or(left, |and| &and[0])) {
        if set_name(right) == Some(EXITS) && matches!(key, MarkKey::Connection) {
            return Some(Statement::Exits {
                mask: number(&left["&"][1])?,
                negated,
            });
        }
        let (mask, value) = masked_value(left, right)?;
        return match key {
            MarkKey::Connection => Some(Statement::Pinned {
                mask,
                negated,
                value,
            }),
            MarkKey::Packet => Some(Statement::Marked {
                mask,
                negated,
                value,
            }),
        };
    }
    if let Some((key, "original")) = left
        .pointer("/ct/key")
        .and_then(Value::as_str)
        .zip(left.pointer("/ct/dir").and_then(Value::as_str))
    {
        let family = header_family(key.strip_suffix(" daddr")?)?;
        let (set, of) = SetName::parse(set_name(right)?)?;
        return (negated && of == family).then_some(Statement::SentOutside { family, set });
    }
    if let Some(family) = class_and_destination(left) {
        return (!negated && set_name(right)? == SetName::KeepSource.name(family))
            .then_some(Statement::Keeps(family));
    }
    if let Some((side, family)) = address_field(left) {
        let (set, of) = SetName::parse(set_name(right)?)?;
        return (of == family).then_some(Statement::Address {
            side,
            family,
            negated,
            set,
        });
    }
    if left
        .pointer("/meta/key")
        .is_some_and(|key| key == "l4proto")
        && let Some(protocols) = right.get("set").and_then(Value::as_array)
    {
        return have_ports(protocols).then_some(Statement::HasPorts { negated });
    }
    if let Some(numgen) = left.get("numgen") {
        let by_chance = numgen["mode"] == "random" && numgen["offset"] == 0 && *right == 0;
        let several = numgen["mod"]
            .as_u64()
            .and_then(|several| u8::try_from(several).ok());
        return several
            .filter(|_| by_chance && !negated)
            .map(Statement::OneOf);
    }
    if left
        .pointer("/meta/key")
        .is_some_and(|key| key == "priority")
    {
        return match right.as_str()? {
            _ if negated => None,
            "none" | "0:0" | ":0" => Some(Statement::NoClass),
            set => (set.strip_prefix('@')? == CHANGING).then_some(Statement::Changing),
        };
    }
    if let Some(way) = left
        .pointer("/meta/key")
        .and_then(Value::as_str)
        .and_then(|key| match key {
            "iifname" => Some(Way::In),
            "oifname" => Some(Way::Out),
            _ => None,
        })
    {
        return match set_name(right) {
            Some(set) => (set == DEVICES).then_some(Statement::Overlay { way, negated }),
            None => (way == Way::In && !negated)
                .then(|| {
                    right
                        .as_str()
                        .map(|device| Statement::From(device.to_owned()))
                })
                .flatten(),
        };
    }
    if negated {
        differs(left, right)
    } else {
        equal(left, right)
    }
}

/// Whether these are the protocols that have ports. A host that has no names for protocols says
/// numbers.
fn have_ports(protocols: &[Value]) -> bool {
    let named = |(number, name): (u8, &str)| {
        protocols
            .iter()
            .any(|protocol| *protocol == number || protocol == name)
    };
    protocols.len() == PROTOCOLS_WITH_PORTS.len() && PROTOCOLS_WITH_PORTS.into_iter().all(named)
}

/// The match that we only write with "differs".
fn differs(left: &Value, right: &Value) -> Option<Statement> {
    let fib = left.get("fib")?;
    let kind = fib["result"] == "type" && flags(fib)? == ["daddr"] && right == "unicast";
    kind.then_some(Statement::Delivered)
}

/// What a lookup of the routing tables asks for. Newer versions of nft write a single flag without
/// a list.
fn flags(fib: &Value) -> Option<Vec<&str>> {
    match &fib["flags"] {
        Value::String(one) => Some(vec![one]),
        several => Some(
            several
                .as_array()?
                .iter()
                .filter_map(Value::as_str)
                .collect(),
        ),
    }
}

/// Matches that we only write with "equal".
fn equal(left: &Value, right: &Value) -> Option<Statement> {
    if left.get("&").is_some() {
        let syn = left["&"][0].pointer("/payload/field")? == "flags"
            && left["&"][0].pointer("/payload/protocol")? == "tcp";
        return match other_flag(&left["&"][1]).filter(|_| syn && right == "syn")? {
            "rst" => Some(Statement::Syn),
            "ack" => Some(Statement::Opens),
            _ => None,
        };
    }
    if left
        .pointer("/payload/protocol")
        .is_some_and(|protocol| protocol == "udp")
    {
        let port = right.as_u64().and_then(|port| u16::try_from(port).ok());
        return port
            .filter(|_| left["payload"]["field"] == "dport")
            .map(Statement::UdpPort);
    }
    if let Some(fib) = left.get("fib") {
        if let Some(kinds) = right.get("set").and_then(Value::as_array) {
            let inward = fib["result"] == "type"
                && flags(fib)? == ["daddr"]
                && kinds.len() == 2
                && ["local", "multicast"]
                    .iter()
                    .all(|kind| kinds.iter().any(|other| other == kind));
            return inward.then_some(Statement::Inward);
        }
        return match (flags(fib)?.as_slice(), right.as_str()?) {
            _ if fib["result"] != "type" => None,
            (["daddr"], "local") => Some(Statement::Destination(DestinationKind::Local)),
            (["daddr"], "multicast") => Some(Statement::Destination(DestinationKind::Multicast)),
            (["daddr", "iif"], "local") => Some(Statement::Destination(DestinationKind::Arrival)),
            (["saddr"], "local") => Some(Statement::SourceLocal),
            _ => None,
        };
    }
    if left
        .pointer("/meta/key")
        .is_some_and(|key| key == "nfproto")
    {
        return protocol(right).map(Statement::Protocol);
    }
    if left
        .pointer("/meta/key")
        .is_some_and(|key| key == "l4proto")
    {
        // A host that has no names for protocols says numbers.
        return match (right.as_str(), right.as_u64()) {
            (Some("icmp"), _) | (_, Some(1)) => Some(Statement::Icmp(Family::V4)),
            (Some("ipv6-icmp" | "icmpv6"), _) | (_, Some(58)) => Some(Statement::Icmp(Family::V6)),
            _ => None,
        };
    }
    let key = left.pointer("/ct/key")?.as_str()?;
    if let Some(several) = several(right) {
        let either = key == "state"
            && several.len() == 2
            && ["invalid", "untracked"]
                .iter()
                .all(|state| several.iter().any(|s| s == state));
        return either.then_some(Statement::InvalidOrUntracked);
    }
    match (key, right.as_str()?) {
        ("state", "untracked") => Some(Statement::State(ConnectionState::Untracked)),
        ("status", "dnat") => Some(Statement::Translated),
        ("status", "snat") => Some(Statement::SourceTranslated),
        ("status", "expected") => Some(Statement::Expected),
        ("state", "new") => Some(Statement::State(ConnectionState::New)),
        ("state", "invalid") => Some(Statement::State(ConnectionState::Invalid)),
        ("status", "confirmed") => Some(Statement::Confirmed),
        ("direction", "original") => Some(Statement::Direction(Direction::Original)),
        ("direction", "reply") => Some(Statement::Direction(Direction::Reply)),
        _ => None,
    }
}

fn protocol(value: &Value) -> Option<Family> {
    match value.as_str()? {
        "ipv4" => Some(Family::V4),
        "ipv6" => Some(Family::V6),
        _ => None,
    }
}

/// Flags of a bit field, which come as a list or as an expression.
fn several(flags: &Value) -> Option<&Vec<Value>> {
    flags
        .as_array()
        .or_else(|| flags.get("|").and_then(Value::as_array))
}

/// The one of two flags that is not "syn".
fn other_flag(flags: &Value) -> Option<&str> {
    match several(flags)?.as_slice() {
        [one, other] if one == "syn" => other.as_str(),
        [one, other] if other == "syn" => one.as_str(),
        _ => None,
    }
}

fn is_ct_mark(value: &Value) -> bool {
    matches!(mark_key(value), Some(MarkKey::Connection))
}

/// Whose mark it is.
enum MarkKey {
    Connection,
    Packet,
}

fn mark_key(value: &Value) -> Option<MarkKey> {
    let is_mark = |place| value.pointer(place).is_some_and(|key| key == "mark");
    if is_mark("/ct/key") {
        return Some(MarkKey::Connection);
    }
    is_mark("/meta/key").then_some(MarkKey::Packet)
}

fn set_name(value: &Value) -> Option<&str> {
    value.as_str()?.strip_prefix('@')
}

fn address_field(value: &Value) -> Option<(Side, Family)> {
    let payload = value.get("payload")?;
    let side = match payload["field"].as_str()? {
        "saddr" => Side::Source,
        "daddr" => Side::Destination,
        _ => return None,
    };
    header_family(payload["protocol"].as_str()?).map(|family| (side, family))
}

fn header_family(header: &str) -> Option<Family> {
    match header {
        "ip" => Some(Family::V4),
        "ip6" => Some(Family::V6),
        _ => None,
    }
}

/// Mask and value. A mask of leading bits comes back as a prefix, any other as a mask.
fn masked_value(left: &Value, right: &Value) -> Option<(u32, u32)> {
    if let Some(and) = left.get("&") {
        return Some((number(&and[1])?, number(right)?));
    }
    let prefix = right.get("prefix")?;
    let length = u32::try_from(prefix["len"].as_u64()?)
        .ok()
        .filter(|length| (1..=32).contains(length))?;
    Some((u32::MAX << (32 - length), number(&prefix["addr"])?))
}

fn mangle(key: &Value, value: &Value) -> Option<Statement> {
    if key
        .pointer("/tcp option/name")
        .is_some_and(|name| name == "maxseg")
    {
        let bytes = value.as_u64().and_then(|bytes| u16::try_from(bytes).ok());
        return bytes
            .filter(|_| key["tcp option"]["field"] == "size")
            .map(Statement::Segment);
    }
    if key
        .pointer("/meta/key")
        .is_some_and(|key| key == "priority")
    {
        return priority(value);
    }
    let (keep, bits) = masked(key, value)?;
    if is_ct_mark(key) {
        return Some(Statement::Pin { keep, value: bits });
    }
    mark_key(key).map(|_| Statement::Mark { keep, value: bits })
}

fn priority(value: &Value) -> Option<Statement> {
    if value == "none" || value == "0:0" || value == ":0" {
        return Some(Statement::ForgetClass);
    }
    let (side, family) = address_field(value.pointer("/map/key")?)?;
    let (set, of) = SetName::parse(set_name(value.pointer("/map/data")?)?)?;
    (of == family).then_some(Statement::ClassOf { side, family, set })
}

/// `key & keep | bits`. The kernel computes `(key & (keep | bits)) ^ bits'`, which comes back with
/// a wider mask than was written.
fn masked(key: &Value, value: &Value) -> Option<(u32, u32)> {
    let (and, bits) = match value.get("|") {
        // Byte 0xff: nothing is left to mask.
        Some(or) if or[0] == *key => return number(&or[1]).map(|bits| (!bits, bits)),
        Some(or) => (or[0].get("&")?, number(&or[1])?),
        None => (value.get("&")?, 0),
    };
    (and[0] == *key).then_some(())?;
    Some((number(&and[1])? & !bits, bits))
}

fn vmap(key: &Value, data: &str) -> Option<Statement> {
    let name = data.strip_prefix('@')?;
    if let Some(and) = key.get("&") {
        return (is_ct_mark(&and[0]) && name == TARGETS).then_some(Statement::VerdictOfPin {
            mask: number(&and[1])?,
        });
    }
    let family = class_and_destination(key)?;
    let (set, of) = SetName::parse(name)?;
    (of == family).then_some(Statement::VerdictOf { family, set })
}

/// `meta priority . ip daddr`.
fn class_and_destination(key: &Value) -> Option<Family> {
    let [class, destination] = key["concat"].as_array()?.as_slice() else {
        return None;
    };
    let (side, family) = address_field(destination)?;
    (class.pointer("/meta/key")? == "priority" && side == Side::Destination).then_some(family)
}

/// `snat ip to oifname map @node4 fully-random`.
fn source_of_device(body: &Value) -> Option<Statement> {
    let only = body
        .as_object()?
        .keys()
        .all(|key| ["family", "addr", "flags"].contains(&key.as_str()));
    let family =
        header_family(body["family"].as_str()?).filter(|_| only && fully_random(&body["flags"]))?;
    let map = body["addr"].get("map")?;
    let by_device = map
        .pointer("/key/meta/key")
        .is_some_and(|key| key == "oifname");
    (by_device && map["data"].as_str()? == format!("@{}", SetName::Node.name(family)))
        .then_some(Statement::SourceOfDevice(family))
}

/// `snat ip to 10.6.0.100:2048-3071`.
fn source_ports(body: &Value) -> Option<Statement> {
    let only = body
        .as_object()?
        .keys()
        .all(|key| ["family", "addr", "port"].contains(&key.as_str()));
    let family = header_family(body["family"].as_str()?).filter(|_| only)?;
    let address: IpAddr = body["addr"].as_str()?.parse().ok()?;
    let [first, last] = body.pointer("/port/range")?.as_array()?.as_slice() else {
        return None;
    };
    let port = |value: &Value| value.as_u64().and_then(|port| u16::try_from(port).ok());
    let block = PortBlock::of_ports(port(first)?, port(last)?).ok()?;
    (Family::of(address) == family).then_some(Statement::SourcePorts(address, block))
}

fn snat(body: &Value) -> Option<Statement> {
    if body.get("flags").is_some() {
        return source_of_device(body);
    }
    if body.get("port").is_some() {
        return source_ports(body);
    }
    let only = body
        .as_object()?
        .keys()
        .all(|key| ["family", "addr"].contains(&key.as_str()));
    let family = header_family(body["family"].as_str()?).filter(|_| only)?;
    if let Some((side, of)) = address_field(&body["addr"]) {
        return (side == Side::Source && of == family).then_some(Statement::SourceItself(family));
    }
    let map = body["addr"].get("map")?;
    let of = class_and_destination(&map["key"])?;
    (of == family && map["data"].as_str()? == format!("@{}", SetName::SnatAddress.name(family)))
        .then_some(Statement::SourceOf(family))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn other_words_of_other_versions_mean_the_same() {
        let mark = json!({"ct": {"key": "mark"}});
        let pinned = Statement::Pinned {
            mask: 0xff00_0000,
            negated: true,
            value: 0x1200_0000,
        };
        let and = json!({"&": [mark, 0xff00_0000_u32]});
        assert_eq!(
            statement(&json!({"match": {"op": "!=", "left": and, "right": 0x1200_0000}})),
            pinned
        );
        assert_eq!(
            statement(
                &json!({"match": {"op": "!=", "left": mark, "right": {"prefix": {"addr": 0x1200_0000, "len": 8}}}})
            ),
            pinned
        );
        let pin = Statement::Pin {
            keep: 0x00ff_ffff,
            value: 0x1100_0000,
        };
        for keep in [0x00ff_ffff_u32, 0x11ff_ffff] {
            assert_eq!(
                statement(
                    &json!({"mangle": {"key": mark, "value": {"|": [{"&": [mark, keep]}, 0x1100_0000]}}})
                ),
                pin
            );
        }
        for op in ["in", "=="] {
            let new =
                json!({"match": {"op": op, "left": {"ct": {"key": "state"}}, "right": "new"}});
            assert_eq!(statement(&new), Statement::State(ConnectionState::New));
        }
        for (protocol, family) in [
            (json!("icmp"), Family::V4),
            (json!(1), Family::V4),
            (json!("ipv6-icmp"), Family::V6),
            (json!(58), Family::V6),
        ] {
            let icmp = json!({"match": {"op": "==", "left": {"meta": {"key": "l4proto"}}, "right": protocol}});
            assert_eq!(statement(&icmp), Statement::Icmp(family));
        }
        for flags in [json!("fully-random"), json!(["fully-random"])] {
            assert_eq!(
                statement(&json!({"masquerade": {"flags": flags}})),
                Statement::Masquerade
            );
        }
    }

    #[test]
    fn what_means_something_else_is_foreign() {
        let saddr = json!({"payload": {"protocol": "ip", "field": "saddr"}});
        for json in [
            json!({"accept": null, "drop": null}),
            json!({"counter": {"packets": 0, "bytes": 0}}),
            json!({"counter": "mine"}),
            json!({"match": {"op": "==", "left": saddr, "right": "10.0.0.1"}}),
            json!({"match": {"op": "==", "left": saddr, "right": "@ungoverned6"}}),
            json!({"match": {"op": "<", "left": {"ct": {"key": "mark"}}, "right": {"prefix": {"addr": 0, "len": 8}}}}),
            json!({"match": {"op": "!=", "left": {"ct": {"key": "state"}}, "right": "new"}}),
            json!({"match": {"op": "!=", "left": {"meta": {"key": "priority"}}, "right": "@changing"}}),
            json!({"match": {"op": "==", "left": {"meta": {"key": "priority"}}, "right": "1:1"}}),
            json!({"match": {"op": "!=", "left": {"fib": {"result": "type", "flags": "daddr"}}, "right": "local"}}),
            json!({"mangle": {"key": {"meta": {"key": "mark"}}, "value": 7}}),
            json!({"mangle": {"key": {"ct": {"key": "mark"}}, "value": {"&": [{"meta": {"key": "mark"}}, 7]}}}),
            json!({"vmap": {"key": saddr, "data": "@verdicts4"}}),
            json!({"snat": {"family": "ip", "addr": saddr, "port": 7}}),
            json!({"masquerade": null}),
            json!("accept"),
        ] {
            assert_eq!(statement(&json), Statement::Foreign(json.to_string()));
        }
    }
}
