//! As whom what exits here leaves, and what this node translates wherever it exits.

use std::net::IpAddr;

use egressgateway::{
    PolicyDesired,
    model::{Family, MarkMask, PortBlock},
    trace::ConnectionState,
};
use imbl::OrdSet;

use crate::ruleset::{
    ast::{
        Jump, Rule,
        Statement::{self, Count, ForgetClass, VerdictOf},
        Way,
    },
    names::{
        DROP_HELD, DROP_NO_PORT, DROP_UNKNOWN_SOURCE, EXITED, FIND_CLASS, SNAT_NODE, SNAT_PORTS,
        SetName,
    },
    rule::{INTO_OVERLAY, drop_if, dropped, exits, go, goto, jump, pinned_to},
};

/// What enters the tunnel is translated to itself, which keeps every later masquerade away from it.
/// What exits gets its source here: the class again, because the packet that leaves may be one that
/// came through the overlay.
pub(super) fn translate(desired: &PolicyDesired, mask: MarkMask) -> Vec<Rule> {
    let mut rules: Vec<Rule> = desired
        .distributed
        .iter()
        .flat_map(|target| {
            let out = Statement::Overlay {
                way: Way::Out,
                negated: true,
            };
            let exits = desired.exits.contains(target);
            let counted = exits.then(|| vec![pinned_to(*target, mask), out, Count(EXITED)]);
            counted
                .into_iter()
                .chain([go([pinned_to(*target, mask)], goto(SNAT_PORTS))])
        })
        .collect();
    rules.extend(Family::ALL.map(|family| vec![INTO_OVERLAY, Statement::SourceItself(family)]));
    rules.push(go([exits(desired, mask, true)], Jump::Accept));
    rules.push(go([], jump(FIND_CLASS)));
    rules.extend(Family::ALL.map(|family| {
        vec![VerdictOf {
            family,
            set: SetName::SnatKind,
        }]
    }));
    rules.push(drop_if([Statement::Changing], DROP_HELD));
    rules.push(if desired.overlay.unknown_may_exit {
        go([], goto(SNAT_NODE))
    } else {
        dropped(DROP_UNKNOWN_SOURCE)
    });
    rules
}

/// What goes to such a target is translated here, by whatever device it leaves. Without ports of
/// the address, or where an entry is being changed, it waits.
pub(super) fn snat_ports() -> Vec<Rule> {
    let kinds = Family::ALL.map(|family| {
        vec![VerdictOf {
            family,
            set: SetName::SnatKind,
        }]
    });
    [go([], jump(FIND_CLASS))]
        .into_iter()
        .chain(kinds)
        .chain([dropped(DROP_HELD)])
        .collect()
}

/// One of this node's blocks by chance, each as often as any other: of what is left when the first
/// ones did not take it, the next one takes its share.
pub(super) fn ports_of(address: IpAddr, blocks: &OrdSet<PortBlock>) -> Vec<Rule> {
    let mut rules = vec![vec![ForgetClass]];
    for (block, left) in blocks.iter().zip((1..=blocks.len()).rev()) {
        let share = u8::try_from(left).ok().filter(|left| *left > 1);
        rules.push(
            [Statement::HasPorts { negated: false }]
                .into_iter()
                .chain(share.map(Statement::OneOf))
                .chain([Statement::SourcePorts(address, *block)])
                .collect(),
        );
    }
    rules.push(dropped(DROP_NO_PORT));
    rules
}

/// The map has an entry wherever `exit` leads here; were one missing, the packet must not leave as
/// it is.
pub(super) fn snat_address() -> Vec<Rule> {
    let addresses = Family::ALL.map(|family| vec![Statement::SourceOf(family)]);
    [vec![Count(EXITED)]]
        .into_iter()
        .chain(addresses)
        .chain([dropped(DROP_UNKNOWN_SOURCE)])
        .collect()
}

/// Where the kernel chooses the source, it takes whatever the device was given first or last, such
/// as somebody's virtual address. It does so only on a device that nothing is known of.
pub(super) fn snat_node() -> Vec<Rule> {
    let addresses = Family::ALL.map(|family| {
        vec![
            Statement::Protocol(family),
            Statement::SourceOfDevice(family),
        ]
    });
    [vec![Count(EXITED), ForgetClass]]
        .into_iter()
        .chain(addresses)
        .chain([vec![Statement::Masquerade]])
        .collect()
}

pub(super) fn snat_keep() -> Vec<Rule> {
    [vec![Count(EXITED), ForgetClass]]
        .into_iter()
        .chain(Family::ALL.map(|family| vec![Statement::SourceItself(family)]))
        .collect()
}

/// Traffic control on the outgoing device reads `meta priority` as one of its own classes; a
/// policy's class must not choose one. Source translation looks at new connections only, so others
/// keep their priority.
pub(super) fn restore(desired: &PolicyDesired, mask: MarkMask) -> Vec<Rule> {
    vec![vec![
        Statement::State(ConnectionState::New),
        exits(desired, mask, false),
        ForgetClass,
    ]]
}
