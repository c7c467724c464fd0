//! A packet's way through the rendered rules, without a kernel.

use std::net::IpAddr;

use egressgateway::{
    model::{ClassId, Family, IpRange},
    trace::{
        Beginning, ConnectionState, DestinationKind, Trace, TracePacket, TraceProtocol,
        TraceSource, TraceVerdict,
    },
};
use imbl::OrdMap;

use crate::{
    ruleset::ast::{Hook, Jump, Rule, Side, Statement, Way},
    ruleset::names::{PRIORITY_CLASSIFY, SetName, leave_chain},
    sets::elements::{Elements, ExitAs, Steer},
    sets::ranges::ElementKey,
    state::NftState,
};

const PREROUTING_HOOK: &str = "prerouting";

impl Trace for NftState {
    fn trace(&self, packet: &TracePacket) -> TraceVerdict {
        self.hook(PREROUTING_HOOK, packet, None).0
    }

    fn trace_forward(&self, packet: &TracePacket, out_device: &str) -> TraceVerdict {
        self.hook("forward", packet, Some(out_device)).0
    }

    fn trace_input(&self, packet: &TracePacket) -> TraceVerdict {
        self.hook("input", packet, None).0
    }

    fn trace_source(&self, packet: &TracePacket, out_device: &str) -> TraceSource {
        match self.hook("postrouting", packet, Some(out_device)) {
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

impl NftState {
    /// All our chains of one hook, by priority.
    fn hook(
        &self,
        hook: &str,
        packet: &TracePacket,
        out_device: Option<&str>,
    ) -> (TraceVerdict, TraceSource) {
        // The kernel asks nat chains about a connection's first packet only.
        let asked = |own: &&Hook| {
            own.point == hook && (own.kind != "nat" || packet.state == ConnectionState::New)
        };
        let hooked = self
            .chains
            .iter()
            .filter_map(|(name, chain)| Some((chain.hook.as_ref().filter(asked)?.priority, name)));
        let mut base: Vec<_> = hooked.collect();
        base.sort_unstable();
        let mut walk = Walk {
            state: self,
            packet: packet.clone(),
            out_device,
            class: 0,
            counted: Vec::new(),
            source: TraceSource::Untouched,
        };
        for (priority, chain) in base {
            if hook == PREROUTING_HOOK {
                walk.sees(priority, packet);
            }
            if walk.chain(chain, 0) == Step::Drop {
                return (
                    TraceVerdict::Drop {
                        counter: walk.counted.pop(),
                    },
                    walk.source,
                );
            }
        }
        let Walk {
            packet:
                TracePacket {
                    state,
                    packet_mark,
                    connection_mark,
                    ..
                },
            counted,
            source,
            ..
        } = walk;
        let untracked = state == ConnectionState::Untracked;
        (
            TraceVerdict::Accept {
                untracked,
                packet_mark,
                connection_mark,
                counted,
            },
            source,
        )
    }
}

/// The kernel's own limit of nested jumps.
const JUMP_DEPTH: usize = 16;

/// What a rule or a chain says about the next one.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// The next rule.
    Next,
    /// Back to who jumped here.
    Back,
    Accept,
    Drop,
}

struct Walk<'a> {
    state: &'a NftState,
    packet: TracePacket,
    out_device: Option<&'a str>,
    /// `meta priority`.
    class: u32,
    counted: Vec<&'static str>,
    source: TraceSource,
}

impl Walk<'_> {
    /// Destination translation is in the past only for chains that come after it.
    fn sees(&mut self, priority: i32, packet: &TracePacket) {
        (self.packet.destination, self.packet.destination_kind) = match packet.sent_to {
            Some(sent_to) if priority < PRIORITY_CLASSIFY => (sent_to, DestinationKind::Unicast),
            _ => (packet.destination, packet.destination_kind),
        };
    }

    fn chain(&mut self, name: &str, depth: usize) -> Step {
        let state = self.state;
        let Some(chain) = state.chains.get(name).filter(|_| depth < JUMP_DEPTH) else {
            return Step::Drop;
        };
        for rule in &chain.rules {
            match self.rule(rule, depth) {
                Step::Next => {}
                Step::Back => return Step::Next,
                end => return end,
            }
        }
        Step::Next
    }

    fn rule(&mut self, rule: &Rule, depth: usize) -> Step {
        for statement in rule {
            match self.statement(statement) {
                Some(Jump::Accept) => return Step::Accept,
                Some(Jump::Drop) => return Step::Drop,
                Some(Jump::Return) => return Step::Back,
                Some(Jump::Call(chain)) => return self.chain(&chain, depth + 1),
                Some(Jump::Goto(chain)) => {
                    return match self.chain(&chain, depth + 1) {
                        Step::Next => Step::Back,
                        end => end,
                    };
                }
                None if self.stops(statement) => return Step::Next,
                None => {}
            }
        }
        Step::Next
    }

    /// Whether a match fails, or a lookup finds nothing, which ends the rule.
    fn stops(&self, statement: &Statement) -> bool {
        let tracked = self.is_tracked();
        match statement {
            // The tracer's packets say nothing about TCP, and none has a source of this host.
            Statement::Syn
            | Statement::Expected
            | Statement::SourceLocal
            | Statement::Foreign(_) => true,
            Statement::HasPorts { negated } => {
                (self.packet.protocol != TraceProtocol::Portless) == *negated
            }
            Statement::SourceTranslated => !tracked || !self.packet.source_translated,
            Statement::UdpPort(port) => self.packet.protocol != TraceProtocol::Udp(*port),
            Statement::Icmp(family) => {
                self.packet.protocol != TraceProtocol::Icmp || !self.is(*family)
            }
            Statement::Destination(kind) => !self.packet.destination_kind.is(*kind),
            Statement::Inward => ![DestinationKind::Local, DestinationKind::Multicast]
                .into_iter()
                .any(|kind| self.packet.destination_kind.is(kind)),
            Statement::Delivered => self.packet.destination_kind == DestinationKind::Unicast,
            Statement::Translated => !tracked || self.packet.sent_to.is_none(),
            Statement::SentOutside { family, set } => {
                let sent_to = self.packet.sent_to.unwrap_or(self.packet.destination);
                !tracked || Family::of(sent_to) != *family || self.contains(*set, sent_to)
            }
            Statement::Address {
                side,
                family,
                negated,
                set,
            } => {
                let address = self.address(*side);
                Family::of(address) != *family || self.contains(*set, address) == *negated
            }
            Statement::Overlay { way, negated } => {
                let device = if *way == Way::In {
                    self.packet.in_device.as_deref()
                } else {
                    self.out_device
                };
                device.is_some_and(|device| self.state.elements.devices.contains(device))
                    == *negated
            }
            Statement::From(device) => self.packet.in_device.as_ref() != Some(device),
            Statement::State(state) => self.packet.state != *state,
            Statement::InvalidOrUntracked => tracked,
            Statement::Opens => {
                self.packet.protocol != TraceProtocol::Other
                    || self.packet.beginning != Beginning::Request
            }
            Statement::Marked {
                mask,
                negated,
                value,
            } => (self.packet.packet_mark & mask == *value) == *negated,
            Statement::Direction(direction) => !tracked || self.packet.direction != *direction,
            Statement::Pinned {
                mask,
                negated,
                value,
            } => !tracked || (self.packet.connection_mark & mask == *value) == *negated,
            Statement::Exits { mask, negated } => {
                !tracked
                    || self
                        .state
                        .elements
                        .exits
                        .contains(&(self.packet.connection_mark & mask))
                        == *negated
            }
            Statement::VerdictOfPin { .. } => !tracked,
            Statement::Confirmed => self.packet.state != ConnectionState::Established,
            Statement::Protocol(family) => !self.is(*family),
            Statement::Keeps(family) => !self.keeps(*family),
            Statement::NoClass => self.class != 0,
            Statement::Changing => !ClassId::new(self.class)
                .is_some_and(|class| self.state.elements.changing.contains(&class)),
            _ => false,
        }
    }

    /// Does what a statement does; where it leads to, if it leads away.
    fn statement(&mut self, statement: &Statement) -> Option<Jump> {
        let tracked = self.is_tracked();
        match statement {
            Statement::ForgetClass => self.class = 0,
            Statement::ClassOf { side, family, set } => {
                self.class = self
                    .class_of(self.address(*side), *family, *set)
                    .unwrap_or(self.class);
            }
            Statement::VerdictOf { family, set } => return self.verdict_of(*family, *set),
            Statement::VerdictOfPin { mask } if tracked => {
                return self
                    .state
                    .elements
                    .targets
                    .get(&(self.packet.connection_mark & mask))
                    .cloned();
            }
            Statement::Pin { keep, value } if tracked => {
                self.packet.connection_mark = self.packet.connection_mark & keep | value;
            }
            Statement::Mark { keep, value } => {
                self.packet.packet_mark = self.packet.packet_mark & keep | value;
            }
            Statement::Count(counter) => self.counted.push(counter),
            Statement::SourceItself(family) if self.is(*family) => {
                return Some(self.translated(TraceSource::Itself));
            }
            Statement::Untrack => self.packet.state = ConnectionState::Untracked,
            Statement::SourceOfDevice(family) if self.is(*family) => {
                let device = self.out_device.map(|device| (device.to_owned(), *family));
                let address =
                    device.and_then(|device| self.state.elements.node.get(&device).copied());
                return address.map(|address| self.translated(TraceSource::Address(address)));
            }
            Statement::Masquerade => return Some(self.translated(TraceSource::Masquerade)),
            Statement::SourceOf(family) => {
                let place = self.find(*family, |elements| &elements.addresses);
                return place.map(|address| self.translated(TraceSource::Address(address)));
            }
            Statement::SourcePorts(address, _) if self.is(Family::of(*address)) => {
                return Some(self.translated(TraceSource::Ports(*address)));
            }
            Statement::Go(jump) => return Some(jump.clone()),
            _ => {}
        }
        None
    }

    fn is_tracked(&self) -> bool {
        !matches!(
            self.packet.state,
            ConnectionState::Invalid | ConnectionState::Untracked
        )
    }

    fn is(&self, family: Family) -> bool {
        Family::of(self.packet.source) == family
    }

    fn address(&self, side: Side) -> IpAddr {
        if side == Side::Source {
            self.packet.source
        } else {
            self.packet.destination
        }
    }

    fn contains(&self, set: SetName, address: IpAddr) -> bool {
        let elements = &self.state.elements;
        match set {
            SetName::Exempt => elements.exempt.iter().any(|range| range.contains(address)),
            SetName::Local => elements.local.iter().any(|range| range.contains(address)),
            SetName::Wide => elements.wide.iter().any(|range| range.contains(address)),
            SetName::Governed => elements
                .governed
                .iter()
                .any(|range| range.contains(address)),
            SetName::Ungoverned => elements.ungoverned.contains(&address),
            SetName::Peers => elements.peers.contains(&address),
            SetName::Own => elements.own.contains(&address),
            SetName::Hosts => elements.hosts.contains(&address),
            SetName::Relayed => elements.relayed.contains(&address),
            _ => false,
        }
    }

    fn class_of(&self, address: IpAddr, family: Family, set: SetName) -> Option<u32> {
        let elements = &self.state.elements;
        if Family::of(address) != family {
            return None;
        }
        let class = match set {
            SetName::Pods => elements.pods.get(&address),
            SetName::Subnets => elements
                .subnets
                .iter()
                .find(|(range, _)| range.contains(address))
                .map(|(_, class)| class),
            _ => None,
        };
        class.map(|class| class.get())
    }

    fn verdict_of(&self, family: Family, set: SetName) -> Option<Jump> {
        let chain = match set {
            SetName::Verdicts => self
                .find(family, |elements| &elements.steer)
                .map(Steer::chain),
            SetName::Via => self
                .find(family, |elements| &elements.via)
                .map(|leave| leave_chain(leave.0)),
            SetName::SnatKind => self
                .find(family, |elements| &elements.exit)
                .map(ExitAs::chain),
            _ => None,
        };
        chain.map(Jump::Goto)
    }

    fn keeps(&self, family: Family) -> bool {
        let places = &self.state.elements.keep_source;
        self.place(family, |place| places.get_prev(place).copied())
            .is_some()
    }

    /// The entry of class and destination.
    fn find<V: Copy>(
        &self,
        family: Family,
        of: impl Fn(&Elements) -> &OrdMap<ElementKey, V>,
    ) -> Option<V> {
        let entries = of(&self.state.elements);
        let place = self.place(family, |place| {
            entries.get_prev(place).map(|(place, _)| *place)
        })?;
        entries.get(&place).copied()
    }

    /// The place of this packet, among those of which `last` gives the last one up to a bound.
    fn place(
        &self,
        family: Family,
        last: impl Fn(&ElementKey) -> Option<ElementKey>,
    ) -> Option<ElementKey> {
        let destination = self.packet.destination;
        let class = ClassId::new(self.class).filter(|_| Family::of(destination) == family)?;
        // Ranges are disjoint within a class: the last one that begins at the destination or before
        // is the only candidate.
        let bound = IpRange::new(destination, IpRange::everything(family).last())?;
        let (other, range) = last(&(class, bound))?;
        (other == class && range.contains(destination)).then_some((other, range))
    }

    /// The first translation of a connection counts, and ends our chain.
    fn translated(&mut self, source: TraceSource) -> Jump {
        self.source = source;
        Jump::Accept
    }
}
