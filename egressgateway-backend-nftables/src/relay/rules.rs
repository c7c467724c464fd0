//! The relay's tables without the elements that change with ports and nodes.
//!
//! A port's first byte, an identifier's first byte, and those inside an ICMP error are all "8 bits
//! at some offset", so one kind of key serves them all: the egress address and that byte. The
//! offsets count from the transport header (`@th`), in bits.

use egressgateway::model::{Family, MarkMask};

use crate::{
    exit_guard::comment,
    ruleset::{
        ast::header,
        names::{
            DROP_FRAGMENT, DROP_NO_BLOCK, DROP_NOT_OWNER, DROP_NOT_PEER, DROP_OTHER,
            DROP_UNFORWARDED, PRIORITY_RELAY, PRIORITY_RELAY_INGRESS, PRIORITY_RELAY_OUTPUT,
            RELAY_FRAGMENTS, RELAY_FRAGMENTS_SECONDS, RELAY_INGRESS_FAMILY, RELAY_SCRATCH,
            RELAY_TABLE, TABLE_FAMILY,
        },
    },
};

/// Protocols whose header begins with the ports: TCP, UDP, SCTP, UDP-Lite. By number: names take a
/// file of the host (/etc/protocols), which an image may lack.
const PORTED: &str = "{ 6, 17, 132, 136 }";

/// Which of the relay's two tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Table {
    /// What comes from the overlay, and what the other table let through.
    Host,
    /// What comes in by devices of the outside.
    Ingress,
}

impl Table {
    pub(crate) const ALL: [Self; 2] = [Self::Host, Self::Ingress];

    /// Its family.
    pub(crate) const fn family(self) -> &'static str {
        match self {
            Self::Host => TABLE_FAMILY,
            Self::Ingress => RELAY_INGRESS_FAMILY,
        }
    }

    /// How nft's commands write it.
    pub(crate) fn path(self) -> String {
        format!("{} {RELAY_TABLE}", self.family())
    }
}

/// What the rules depend on.
#[derive(Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) mask: MarkMask,
    pub(crate) port: u16,
    pub(crate) overlay: Vec<&'a str>,
    /// Devices of the outside, and for the ingress chain those that exist, with their indexes.
    pub(crate) outside: Vec<&'a str>,
    pub(crate) ingress: Vec<(&'a str, u32)>,
    /// The device that leads to the other nodes, where it exists, with its index.
    pub(crate) forward: [Option<(&'a str, u32)>; 2],
}

/// One of our rules, or chain headers with what they depend on but do not say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    text: String,
    /// nft turns names of devices into indexes when it loads a rule, and a device that is made anew
    /// under its old name has another one. So the comment tells them.
    indexes: Vec<u32>,
}

impl Rule {
    /// By what the rule is recognised: nft shows rules in other words than they were written in.
    pub(crate) fn comment(&self) -> String {
        comment(&format!("{} {:?}", self.text, self.indexes))
    }
}

/// A chain, with its header where it is one that the kernel enters.
#[derive(Clone, Debug)]
pub(crate) struct Chain {
    pub(crate) name: String,
    pub(crate) hook: Option<Hook>,
    pub(crate) rules: Vec<Rule>,
}

/// Where the kernel enters a chain.
#[derive(Clone, Debug)]
pub(crate) struct Hook {
    pub(crate) point: &'static str,
    pub(crate) priority: i32,
    devices: Vec<String>,
}

/// A set or map; `data` makes it a map.
#[derive(Clone, Debug)]
pub(crate) struct Set {
    pub(crate) name: String,
    pub(crate) key: Vec<&'static str>,
    pub(crate) data: Option<&'static str>,
    /// Filled by packets, and forgets them.
    pub(crate) dynamic: bool,
}

/// Everything in one of our tables but elements.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) table: Table,
    pub(crate) counters: Vec<&'static str>,
    pub(crate) sets: Vec<Set>,
    pub(crate) chains: Vec<Chain>,
}

impl Layout {
    /// Commands for nft that replace whatever the table is.
    pub(crate) fn script(&self) -> String {
        let path = self.table.path();
        let mut script = format!("add table {path}\ndelete table {path}\nadd table {path}\n");
        let mut say = |line: String| {
            script.push_str(&line);
            script.push('\n');
        };
        for counter in &self.counters {
            say(format!("add counter {path} {counter}"));
        }
        for set in &self.sets {
            say(set.command(&path));
        }
        for chain in &self.chains {
            say(chain.command(&path));
        }
        for chain in &self.chains {
            for rule in &chain.rules {
                let (name, text, comment) = (&chain.name, &rule.text, rule.comment());
                say(format!(
                    "add rule {path} {name} {text} comment \"{comment}\""
                ));
            }
        }
        script
    }
}

impl Set {
    fn command(&self, path: &str) -> String {
        let noun = if self.data.is_some() { "map" } else { "set" };
        let data = self
            .data
            .map_or_else(String::new, |data| format!(" : {data}"));
        let dynamic = if self.dynamic {
            format!(
                " size {RELAY_FRAGMENTS}; flags dynamic, timeout; timeout {RELAY_FRAGMENTS_SECONDS}s;"
            )
        } else {
            String::new()
        };
        format!(
            "add {noun} {path} {} {{ typeof {}{data};{dynamic} }}",
            self.name,
            self.key.join(" . ")
        )
    }
}

impl Chain {
    fn command(&self, path: &str) -> String {
        let name = &self.name;
        let Some(Hook {
            point,
            priority,
            devices,
        }) = &self.hook
        else {
            return format!("add chain {path} {name}");
        };
        let devices = if devices.is_empty() {
            String::new()
        } else {
            let quoted: Vec<String> = devices.iter().map(|name| format!("\"{name}\"")).collect();
            format!(" devices = {{ {} }}", quoted.join(", "))
        };
        format!(
            "add chain {path} {name} {{ type filter hook {point}{devices} priority {priority}; policy accept; }}"
        )
    }
}

/// Both tables.
pub(crate) fn layouts(facts: &Facts<'_>) -> [Layout; 2] {
    [host(facts), ingress(facts)]
}

fn digit(family: Family) -> u8 {
    match family {
        Family::V4 => 4,
        Family::V6 => 6,
    }
}

/// Where an ICMP error quotes the packet that it is about. The first packet's own header has no
/// options in IPv4 (the errors' rules ask) and no extensions in IPv6 (its protocol tells).
struct Quoted {
    protocol: u16,
    destination: &'static [&'static str],
    source_port: u16,
    destination_port: u16,
    identifier: u16,
}

const fn quoted(family: Family) -> Quoted {
    match family {
        Family::V4 => Quoted {
            protocol: 136,
            destination: &["@th,192,32"],
            source_port: 224,
            destination_port: 240,
            identifier: 256,
        },
        Family::V6 => Quoted {
            protocol: 112,
            destination: &["@th,256,64", "@th,320,64"],
            source_port: 384,
            destination_port: 400,
            identifier: 416,
        },
    }
}

/// The words in which nft asks for ICMP messages.
struct Icmp {
    number: u8,
    asks: &'static str,
    answers: &'static str,
    errors: &'static str,
    /// What is for this host itself while the address is: pings, and in IPv6 its neighbours.
    local: &'static str,
}

const fn icmp(family: Family) -> Icmp {
    match family {
        Family::V4 => Icmp {
            number: 1,
            asks: "icmp type { echo-request, timestamp-request }",
            answers: "icmp type { echo-reply, timestamp-reply }",
            errors: "icmp type { destination-unreachable, time-exceeded, parameter-problem } @th,64,8 0x45",
            local: "icmp type echo-request",
        },
        Family::V6 => Icmp {
            number: 58,
            asks: "icmpv6 type echo-request",
            answers: "icmpv6 type echo-reply",
            errors: "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem }",
            local: "icmpv6 type { echo-request, nd-neighbor-solicit, nd-neighbor-advert }",
        },
    }
}

fn rule(text: impl Into<String>) -> Rule {
    Rule {
        text: text.into(),
        indexes: Vec::new(),
    }
}

fn drop_counted(counter: &str) -> Rule {
    rule(format!("counter name {counter} drop"))
}

fn chain(name: String, rules: Vec<Rule>) -> Chain {
    Chain {
        name,
        hook: None,
        rules,
    }
}

fn set(name: String, key: Vec<&'static str>) -> Set {
    Set {
        name,
        key,
        data: None,
        dynamic: false,
    }
}

fn names(devices: &[&str]) -> String {
    let quoted: Vec<String> = devices.iter().map(|name| format!("\"{name}\"")).collect();
    format!("{{ {} }}", quoted.join(", "))
}

/// What the other nodes send out, and the answers that the ingress chain did not take.
fn host(facts: &Facts<'_>) -> Layout {
    let mut begin = Vec::new();
    if !facts.overlay.is_empty() {
        for family in Family::ALL {
            let (ip, n) = (header(family), digit(family));
            begin.push(rule(format!(
                "iifname {} {ip} saddr @egress{n} goto owner{n}",
                names(&facts.overlay)
            )));
        }
    }
    let mut output = Vec::new();
    if facts.port != 0 {
        begin.push(rule(format!("udp dport {} jump outer", facts.port)));
        // A fragment's scratch value is no priority for whatever sends the outer packet.
        output.push(rule(format!(
            "udp dport {} meta priority & ffff:0 == {RELAY_SCRATCH:x}:0 meta priority set 0:0",
            facts.port
        )));
    }
    if !facts.outside.is_empty() {
        for family in Family::ALL {
            let (ip, n) = (header(family), digit(family));
            begin.push(rule(format!(
                "iifname {} {ip} daddr @egress{n} jump guard{n}",
                names(&facts.outside)
            )));
        }
    }
    let base = |name: &str, point, priority, rules| Chain {
        name: name.to_owned(),
        hook: Some(Hook {
            point,
            priority,
            devices: Vec::new(),
        }),
        rules,
    };
    let mut chains = vec![
        base("prerouting_relay", "prerouting", PRIORITY_RELAY, begin),
        base("output_relay", "output", PRIORITY_RELAY_OUTPUT, output),
        chain("outer".into(), outer()),
        chain("passes".into(), passes(facts.mask)),
    ];
    let mut sets = vec![set("macs".into(), vec!["@th,176,48"])];
    for family in Family::ALL {
        let n = digit(family);
        chains.extend([
            chain(format!("owner{n}"), owner(family)),
            chain(format!("error_owner{n}"), error_owner(family)),
            chain(format!("guard{n}"), guard(family)),
        ]);
        sets.extend(host_sets(family));
    }
    Layout {
        table: Table::Host,
        counters: vec![DROP_NOT_PEER, DROP_NOT_OWNER, DROP_UNFORWARDED],
        sets,
        chains,
    }
}

fn host_sets(family: Family) -> [Set; 6] {
    let n = digit(family);
    let (source, destination) = match family {
        Family::V4 => ("ip saddr", "ip daddr"),
        Family::V6 => ("ip6 saddr", "ip6 daddr"),
    };
    [
        set(format!("egress{n}"), vec![source]),
        set(format!("known{n}"), vec![source]),
        set(format!("peers{n}"), vec![source, "@th,176,48"]),
        set(format!("own{n}"), vec![destination, "@th,16,8"]),
        set(format!("owners{n}"), vec!["ether saddr", source, "@th,0,8"]),
        set(
            format!("quoted{n}"),
            [&[source], quoted(family).destination].concat(),
        ),
    ]
}

/// The hardware address inside says whose ports a packet may have, so it must be the sender's own:
/// neither may a known node use another address there, nor anybody a known node's. Nodes without
/// ports are not known, and their packets go on. VXLAN's header, and that of Geneve without
/// options, puts the inner source hardware address at 176 bits.
fn outer() -> Vec<Rule> {
    let mut rules = Vec::new();
    for family in Family::ALL {
        let (ip, n) = (header(family), digit(family));
        rules.push(rule(format!("{ip} saddr . @th,176,48 @peers{n} return")));
    }
    // What another host is to have is no tunnel's packet of ours.
    let refused = format!("fib daddr type != unicast counter name {DROP_NOT_PEER} drop");
    for family in Family::ALL {
        let (ip, n) = (header(family), digit(family));
        rules.push(rule(format!("{ip} saddr @known{n} {refused}")));
    }
    rules.push(rule(format!("@th,176,48 @macs {refused}")));
    rules
}

/// Whether the sender has this port of this address. An error is about a packet that was sent to
/// the sender: its destination is what counts.
fn owner(family: Family) -> Vec<Rule> {
    let (ip, n, icmp) = (header(family), digit(family), icmp(family));
    let destination = quoted(family).destination.join(" . ");
    vec![
        rule(format!(
            "meta l4proto {PORTED} ether saddr . {ip} saddr . @th,0,8 @owners{n} goto passes"
        )),
        rule(format!(
            "{} ether saddr . {ip} saddr . @th,32,8 @owners{n} goto passes",
            icmp.asks
        )),
        rule(format!(
            "{} {ip} saddr . {destination} @quoted{n} goto error_owner{n}",
            icmp.errors
        )),
        drop_counted(DROP_NOT_OWNER),
    ]
}

fn error_owner(family: Family) -> Vec<Rule> {
    let (ip, n, number) = (header(family), digit(family), icmp(family).number);
    let Quoted {
        protocol,
        destination_port,
        identifier,
        ..
    } = quoted(family);
    vec![
        rule(format!(
            "@th,{protocol},8 {PORTED} ether saddr . {ip} saddr . @th,{destination_port},8 @owners{n} goto passes"
        )),
        rule(format!(
            "@th,{protocol},8 {number} ether saddr . {ip} saddr . @th,{identifier},8 @owners{n} goto passes"
        )),
        drop_counted(DROP_NOT_OWNER),
    ]
}

/// Connection tracking sees one half of these connections at most: the answers are gone before it
/// is asked. The mark says, until the policy table has seen it, that it was us who said so.
fn passes(mask: MarkMask) -> Vec<Rule> {
    vec![rule(format!(
        "notrack meta mark set meta mark & {:#010x} | {:#010x} accept",
        mask.keep(),
        mask.answer_mark()
    ))]
}

/// What the ingress chain passes on never comes here. Where it is missing, this host would answer
/// for the other nodes, TCP with a reset.
fn guard(family: Family) -> Vec<Rule> {
    let (ip, n, number) = (header(family), digit(family), icmp(family).number);
    vec![
        rule(format!("meta l4proto {number} return")),
        rule(format!(
            "meta l4proto {PORTED} {ip} daddr . @th,16,8 @own{n} return"
        )),
        drop_counted(DROP_UNFORWARDED),
    ]
}

/// What comes in from outside.
fn ingress(facts: &Facts<'_>) -> Layout {
    // Chains hold their devices by index too.
    let indexes: Vec<u32> = facts.ingress.iter().map(|(_, index)| *index).collect();
    let devices: Vec<String> = facts
        .ingress
        .iter()
        .map(|(name, _)| (*name).to_owned())
        .collect();
    // A switch may flood what is for another host. That one passes it on.
    let begin = Family::ALL.map(|family| {
        let (ip, n) = (header(family), digit(family));
        Rule {
            text: format!("meta pkttype host {ip} daddr @egress{n} goto answer{n}"),
            indexes: indexes.clone(),
        }
    });
    let mut chains = vec![Chain {
        name: "ingress".into(),
        hook: Some(Hook {
            point: "ingress",
            priority: PRIORITY_RELAY_INGRESS,
            devices,
        }),
        rules: begin.into(),
    }];
    let mut sets = vec![Set {
        data: Some("meta priority"),
        ..set("scratch".into(), vec!["@th,16,8"])
    }];
    for family in Family::ALL {
        let n = digit(family);
        let device = facts.forward[usize::from(family == Family::V6)];
        chains.extend([
            chain(format!("answer{n}"), answer(family)),
            chain(format!("port{n}"), port(family, device)),
            chain(format!("icmp{n}"), icmp_answer(family, device)),
            chain(format!("error{n}"), error(family, device)),
            chain(format!("fragment{n}"), fragment(family, device)),
            chain(format!("first_fragment{n}"), first_fragment(family)),
        ]);
        sets.extend(ingress_sets(family));
    }
    Layout {
        table: Table::Ingress,
        counters: vec![DROP_NO_BLOCK, DROP_OTHER, DROP_FRAGMENT],
        sets,
        chains,
    }
}

fn ingress_sets(family: Family) -> [Set; 5] {
    let n = digit(family);
    let destination = match family {
        Family::V4 => "ip daddr",
        Family::V6 => "ip6 daddr",
    };
    [
        set(format!("egress{n}"), vec![destination]),
        set(format!("own{n}"), vec![destination, "@th,16,8"]),
        Set {
            data: Some(destination),
            ..set(format!("blocks{n}"), vec![destination, "@th,16,8"])
        },
        Set {
            data: Some(destination),
            ..set(
                format!("fragment_blocks{n}"),
                vec![destination, "meta priority"],
            )
        },
        Set {
            data: Some("meta priority"),
            dynamic: true,
            ..set(format!("fragments{n}"), datagram(family).to_vec())
        },
    ]
}

/// What all fragments of a datagram have in common. In IPv6 these are the lower parts of source and
/// destination, and the identification of a fragment header that comes first: nft 1.0.6 aborts
/// where the key of an `update` has an IPv6 address or more than 16 bytes. The way of a fragment is
/// looked up by the whole destination.
fn datagram(family: Family) -> &'static [&'static str] {
    match family {
        Family::V4 => &["ip saddr", "ip daddr", "ip protocol", "ip id"],
        Family::V6 => &["@nh,128,64", "@nh,288,32", "@nh,352,32"],
    }
}

fn answer(family: Family) -> Vec<Rule> {
    let (n, number) = (digit(family), icmp(family).number);
    let fragmented = match family {
        Family::V4 => "ip frag-off & 0x3fff != 0",
        Family::V6 => "ip6 nexthdr 44",
    };
    vec![
        rule(format!("{fragmented} jump fragment{n}")),
        rule(format!("meta l4proto {PORTED} goto port{n}")),
        rule(format!("meta l4proto {number} goto icmp{n}")),
        drop_counted(DROP_OTHER),
    ]
}

/// Passes on, where there is a device to do so by, or up the stack, what has its byte at `offset`.
fn lead(
    family: Family,
    matches: &str,
    offset: u16,
    device: Option<(&str, u32)>,
) -> impl Iterator<Item = Rule> + use<> {
    let (ip, n) = (header(family), digit(family));
    let forward = device.map(|(device, index)| Rule {
        text: format!(
            "{matches}fwd {ip} to {ip} daddr . @th,{offset},8 map @blocks{n} device \"{device}\""
        ),
        indexes: vec![index],
    });
    let own = rule(format!(
        "{matches}{ip} daddr . @th,{offset},8 @own{n} accept"
    ));
    forward.into_iter().chain([own])
}

fn port(family: Family, device: Option<(&str, u32)>) -> Vec<Rule> {
    lead(family, "", 16, device)
        .chain([drop_counted(DROP_NO_BLOCK)])
        .collect()
}

/// A routed address may be on no device of this host. Then a ping has nobody to answer it, and
/// would go around between this host and its router.
fn icmp_answer(family: Family, device: Option<(&str, u32)>) -> Vec<Rule> {
    let (n, icmp) = (digit(family), icmp(family));
    let mut rules: Vec<Rule> = lead(family, &format!("{} ", icmp.answers), 32, device).collect();
    rules.extend([
        rule(format!("{} goto error{n}", icmp.errors)),
        rule(format!("{} fib daddr type local accept", icmp.local)),
        rule(format!(
            "{} counter name {DROP_NO_BLOCK} drop",
            icmp.answers
        )),
        drop_counted(DROP_OTHER),
    ]);
    rules
}

/// An error is about a packet that a pod sent: its source is what counts.
fn error(family: Family, device: Option<(&str, u32)>) -> Vec<Rule> {
    let number = icmp(family).number;
    let Quoted {
        protocol,
        source_port,
        identifier,
        ..
    } = quoted(family);
    lead(
        family,
        &format!("@th,{protocol},8 {PORTED} "),
        source_port,
        device,
    )
    .chain(lead(
        family,
        &format!("@th,{protocol},8 {number} "),
        identifier,
        device,
    ))
    .chain([drop_counted(DROP_NO_BLOCK)])
    .collect()
}

/// Only the first fragment has the ports. It is led like any other packet and leaves a note for the
/// others.
fn fragment(family: Family, device: Option<(&str, u32)>) -> Vec<Rule> {
    let (ip, n) = (header(family), digit(family));
    let is_first = match family {
        Family::V4 => "ip frag-off & 0x1fff == 0",
        Family::V6 => "frag frag-off 0",
    };
    let forward = device.map(|(device, index)| Rule {
        text: format!(
            "fwd {ip} to {ip} daddr . meta priority map @fragment_blocks{n} device \"{device}\""
        ),
        indexes: vec![index],
    });
    let mut rules = vec![
        rule(format!("{is_first} goto first_fragment{n}")),
        rule("meta priority set 0:0"),
        rule(format!(
            "meta priority set {} map @fragments{n}",
            datagram(family).join(" . ")
        )),
    ];
    rules.extend(forward);
    rules.extend([
        rule(format!(
            "meta priority {RELAY_SCRATCH:x}:0 meta priority set 0:0 accept"
        )),
        drop_counted(DROP_FRAGMENT),
    ]);
    rules
}

/// `meta priority` holds what the note is to say: the byte of the port or identifier, and 0 where
/// it is this node's own. No port that anybody has begins with a byte of 0.
fn first_fragment(family: Family) -> Vec<Rule> {
    let (ip, n, answers) = (header(family), digit(family), icmp(family).answers);
    let ported = format!("meta l4proto {PORTED}");
    let mut rules = vec![rule("meta priority set 0:0")];
    for (matches, offset) in [(ported.as_str(), 16), (answers, 32)] {
        rules.push(rule(format!(
            "{matches} meta priority set @th,{offset},8 map @scratch"
        )));
        rules.push(rule(format!(
            "{matches} {ip} daddr . @th,{offset},8 @own{n} meta priority set {RELAY_SCRATCH:x}:0"
        )));
    }
    rules.push(rule(format!(
        "meta priority != 0:0 update @fragments{n} {{ {} : meta priority }}",
        datagram(family).join(" . ")
    )));
    rules.push(rule("meta priority set 0:0"));
    rules
}
