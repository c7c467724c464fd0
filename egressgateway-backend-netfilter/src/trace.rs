//! A packet's way through the rendered rules, without a kernel.

use std::{collections::BTreeMap, net::IpAddr};

use egressgateway::{
    model::Family,
    trace::{
        Beginning, ConnectionState, DestinationKind, Direction, Trace, TracePacket, TraceProtocol,
        TraceSource, TraceVerdict,
    },
};
use imbl::OrdMap;
use ipnet::IpNet;

use crate::{
    names::{COUNTERS, FILTER, MANGLE, NAT, RAW},
    sets::set::{Entry, Set},
    state::NetfilterState,
};

impl Trace for NetfilterState {
    fn trace(&self, packet: &TracePacket) -> TraceVerdict {
        self.hook(&[RAW, MANGLE], "PREROUTING", packet, None).0
    }

    fn trace_forward(&self, packet: &TracePacket, out_device: &str) -> TraceVerdict {
        self.hook(&[MANGLE, FILTER], "FORWARD", packet, Some(out_device))
            .0
    }

    fn trace_input(&self, packet: &TracePacket) -> TraceVerdict {
        self.hook(&[MANGLE, FILTER], "INPUT", packet, None).0
    }

    fn trace_source(&self, packet: &TracePacket, out_device: &str) -> TraceSource {
        match self.hook(&[MANGLE, NAT], "POSTROUTING", packet, Some(out_device)) {
            // Nobody's source translation sees what is not tracked.
            (
                TraceVerdict::Accept {
                    untracked: true, ..
                },
                _,
            ) => TraceSource::Itself,
            (TraceVerdict::Drop { counter }, _) => TraceSource::Drop { counter },
            (TraceVerdict::Accept { .. }, source) => source,
        }
    }
}

impl NetfilterState {
    /// What our chains of these tables do to a packet at one of the kernel's own.
    fn hook(
        &self,
        tables: &[&str],
        point: &str,
        packet: &TracePacket,
        out: Option<&str>,
    ) -> (TraceVerdict, TraceSource) {
        let family = Family::of(packet.source);
        let mut packet = packet.clone();
        // No table at this hook that we have chains in comes after destination translation.
        if let Some(sent_to) = packet.sent_to.filter(|_| point == "PREROUTING") {
            (packet.destination, packet.destination_kind) = (sent_to, DestinationKind::Unicast);
        }
        let (mut counted, mut source) = (Vec::new(), TraceSource::Untouched);
        for name in tables {
            let Some(table) = self.tables.get(&(family, (*name).to_owned())) else {
                continue;
            };
            // The kernel asks the nat table about a connection's first packet only.
            if *name == NAT && packet.state != ConnectionState::New {
                continue;
            }
            let mut walk = Walk {
                sets: &self.sets,
                chains: &table.chains,
                table: name,
                out,
                packet,
                counted,
                source,
            };
            let jumps = table.jumps.iter().filter(|jump| jump.chain == point);
            let dropped = jumps
                .filter_map(|jump| jump.rule.split(' ').next_back())
                .any(|chain| walk.chain(chain, 0) == Step::Drop);
            Walk {
                packet,
                counted,
                source,
                ..
            } = walk;
            if dropped {
                return (
                    TraceVerdict::Drop {
                        counter: counted.pop(),
                    },
                    source,
                );
            }
        }
        let TracePacket {
            state,
            packet_mark,
            connection_mark,
            ..
        } = packet;
        (
            TraceVerdict::Accept {
                untracked: state == ConnectionState::Untracked,
                packet_mark,
                connection_mark,
                counted,
            },
            source,
        )
    }
}

/// Deeper than any of our trees.
const JUMP_DEPTH: usize = 32;

/// What a rule or a chain says about the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The next rule.
    Next,
    /// Back to who jumped here.
    Back,
    Accept,
    Drop,
}

struct Walk<'a> {
    sets: &'a OrdMap<String, Set>,
    chains: &'a BTreeMap<String, Vec<String>>,
    table: &'a str,
    out: Option<&'a str>,
    packet: TracePacket,
    counted: Vec<&'static str>,
    source: TraceSource,
}

impl Walk<'_> {
    fn chain(&mut self, name: &str, depth: usize) -> Step {
        let chains = self.chains;
        let Some(rules) = chains.get(name).filter(|_| depth < JUMP_DEPTH) else {
            return Step::Drop;
        };
        self.counted.extend(
            COUNTERS
                .iter()
                .find(|(_, table, chain)| *table == self.table && *chain == name)
                .map(|(counter, ..)| counter),
        );
        for rule in rules {
            match self.rule(rule, depth) {
                Step::Next => {}
                Step::Back => return Step::Next,
                end => return end,
            }
        }
        Step::Next
    }

    /// Matches one after the other, then the target.
    fn rule(&mut self, rule: &str, depth: usize) -> Step {
        let mut words = rule.split(' ');
        let (mut negated, mut module) = (false, "");
        while let Some(word) = words.next() {
            let mut value = || words.next().unwrap_or_default();
            let found = match word {
                "!" => {
                    negated = true;
                    continue;
                }
                "-m" => {
                    module = value();
                    continue;
                }
                "-j" | "-g" => {
                    let target = value();
                    return self.target(word, target, &words.collect::<Vec<_>>(), depth);
                }
                // Which device a group's packet came by makes no difference to its kind.
                "--limit-iface-in" => matches!(
                    self.packet.destination_kind,
                    DestinationKind::Arrival | DestinationKind::Multicast
                ),
                "--comment" => !value().is_empty(),
                "--tcp-flags" => {
                    [value(), value()] == ["SYN,ACK", "SYN"]
                        && self.packet.beginning == Beginning::Request
                }
                "--match-set" => {
                    let set = value();
                    self.lookup(set, value()).is_some()
                }
                _ => self.matches(module, word, value()),
            };
            // Whatever asks connection tracking fails without it, negated or not.
            let asks = word == "--ctdir"
                || word == "--ctstatus"
                || (word == "--mark" && module == "connmark");
            if found == negated || (asks && !self.is_tracked()) {
                return Step::Next;
            }
            negated = false;
        }
        Step::Next
    }

    fn matches(&self, module: &str, word: &str, value: &str) -> bool {
        let packet = &self.packet;
        match word {
            "-i" => packet.in_device.as_deref() == Some(value),
            "-o" => self.out == Some(value),
            "--ctstate" if value == "SNAT" => packet.source_translated && self.is_tracked(),
            "--ctstate" if value == "DNAT" => packet.sent_to.is_some() && self.is_tracked(),
            "--ctstate" => value
                .split(',')
                .any(|word| word == state_word(packet.state)),
            "-p" => match packet.protocol {
                TraceProtocol::Icmp => value == "icmp" || value == "ipv6-icmp",
                TraceProtocol::Udp(_) => value == "udp",
                // A rule about TCP goes on with its flags.
                TraceProtocol::Other => value == "tcp",
                TraceProtocol::Portless => false,
            },
            // Either way is possible: the source is the same.
            "--mode" | "--probability" => true,
            "--dport" => packet.protocol == TraceProtocol::Udp(value.parse().unwrap_or_default()),
            "--ctstatus" => packet.state != ConnectionState::New,
            "--ctdir" => (value == "REPLY") == (packet.direction == Direction::Reply),
            "--dst-type" => {
                let is = |kind: &str| match kind {
                    "LOCAL" => packet.destination_kind.is(DestinationKind::Local),
                    "MULTICAST" => packet.destination_kind == DestinationKind::Multicast,
                    _ => false,
                };
                // The kernel wants any of these kinds for IPv4, and all of them for IPv6.
                if packet.destination.is_ipv4() {
                    value.split(',').any(is)
                } else {
                    value.split(',').all(is)
                }
            }
            "--mark" => {
                let mark = if module == "connmark" {
                    packet.connection_mark
                } else {
                    packet.packet_mark
                };
                bits(value).is_some_and(|(value, mask)| mark & mask == value)
            }
            // The tracer's packets say nothing else about TCP, and none has a source of this host.
            _ => false,
        }
    }

    fn target(&mut self, way: &str, target: &str, options: &[&str], depth: usize) -> Step {
        match target {
            "ACCEPT" => return Step::Accept,
            "DROP" => return Step::Drop,
            "RETURN" => return Step::Back,
            // To its own address: the network that it maps to is everything.
            "NETMAP" => {
                self.source = TraceSource::Itself;
                return Step::Accept;
            }
            "MASQUERADE" => {
                self.source = TraceSource::Masquerade;
                return Step::Accept;
            }
            "SNAT" => {
                self.source = options
                    .get(1)
                    .and_then(|source| translated(source))
                    .unwrap_or(TraceSource::Untouched);
                return Step::Accept;
            }
            "CT" => self.packet.state = ConnectionState::Untracked,
            "MARK" => self.set_mark(options, false),
            "CONNMARK" if self.is_tracked() => self.set_mark(options, true),
            "SET" => self.map(options),
            "CONNMARK" | "TCPMSS" => {}
            chain => {
                let step = self.chain(chain, depth + 1);
                return if way == "-g" && step == Step::Next {
                    Step::Back
                } else {
                    step
                };
            }
        }
        Step::Next
    }

    fn set_mark(&mut self, options: &[&str], connection: bool) {
        match options {
            ["--set-xmark", value] => {
                let Some((value, mask)) = bits(value) else {
                    return;
                };
                let old = if connection {
                    &mut self.packet.connection_mark
                } else {
                    &mut self.packet.packet_mark
                };
                *old = *old & !mask ^ value;
            }
            ["--save-mark", "--nfmask", mask, ..] => {
                let Some((mask, _)) = bits(mask) else { return };
                self.packet.connection_mark =
                    self.packet.connection_mark & !mask | self.packet.packet_mark & mask;
            }
            ["--restore-mark", "--nfmask", mask, ..] => {
                let Some((mask, _)) = bits(mask) else { return };
                self.packet.packet_mark =
                    self.packet.packet_mark & !mask | self.packet.connection_mark & mask;
            }
            _ => {}
        }
    }

    fn map(&mut self, options: &[&str]) {
        if let ["--map-set", set, side, "--map-mark"] = options
            && let Some(Entry::Mark { value, mask }) = self.lookup(set, side)
        {
            self.packet.packet_mark = self.packet.packet_mark & !mask ^ value;
        }
    }

    /// The entry with the longest prefix, unless it says that the address is not in.
    fn lookup(&self, set: &str, side: &str) -> Option<Entry> {
        let entries = &self.sets.get(set)?.entries;
        let address: IpAddr = if side == "src" {
            self.packet.source
        } else {
            self.packet.destination
        };
        let mut prefixes = (0..=Family::of(address).bits())
            .rev()
            .filter_map(|length| IpNet::new(address, length).ok());
        let entry = prefixes.find_map(|net| entries.get(&net.trunc()).copied())?;
        (entry != Entry::Out).then_some(entry)
    }

    fn is_tracked(&self) -> bool {
        !matches!(
            self.packet.state,
            ConnectionState::Invalid | ConnectionState::Untracked
        )
    }
}

/// An address, or an address with a range of ports.
fn translated(source: &str) -> Option<TraceSource> {
    if let Ok(address) = source.parse() {
        return Some(TraceSource::Address(address));
    }
    let (address, _) = source.rsplit_once(':')?;
    let address = address.trim_start_matches('[').trim_end_matches(']');
    address.parse().ok().map(TraceSource::Ports)
}

/// As iptables writes it.
const fn state_word(state: ConnectionState) -> &'static str {
    match state {
        ConnectionState::New => "NEW",
        ConnectionState::Established => "ESTABLISHED",
        ConnectionState::Invalid => "INVALID",
        ConnectionState::Untracked => "UNTRACKED",
    }
}

/// "VALUE/MASK" or "VALUE", hexadecimal.
fn bits(text: &str) -> Option<(u32, u32)> {
    let number = |text: &str| u32::from_str_radix(text.strip_prefix("0x")?, 16).ok();
    match text.split_once('/') {
        Some((value, mask)) => Some((number(value)?, number(mask)?)),
        None => Some((number(text)?, u32::MAX)),
    }
}
