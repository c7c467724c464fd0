//! The chains: who, where, how and as whom, for any number of policies and pods.

use std::collections::{BTreeMap, BTreeSet};

use egressgateway::{
    PolicyDesired,
    model::MarkMask,
    trace::{ConnectionState, Direction},
};

use crate::ruleset::{
    ast::{
        Chain, Jump, Rule,
        Statement::{self, ForgetClass, Overlay, Pin, Pinned},
        Way,
    },
    classify::{
        arrive, arrive_inward, classify, decide, find_class, leaving, no_class, to, towards_pod,
        unclassified,
    },
    exit::{ports_of, restore, snat_address, snat_keep, snat_node, snat_ports, translate},
    forward::{clamp, enter, forward, guard, guard_answers, opening},
    names::{
        ANSWERS, ARRIVE, ARRIVE_INWARD, ARRIVE_UNPINNED, CLAMP, CLASSIFY, DECIDE, DROP_HELD,
        DROP_NO_GATEWAY, DROP_UNTRACKED, ENTER, FIND_CLASS, FORWARD, GUARD, GUARD_ANSWERS, HELD,
        INVALID_UNTRACKED, LEAVE, LOST, NO_CLASS, NO_GATEWAY, NOT_TUNNEL, OPENING, OUTER, OUTER_IN,
        OUTER_OUT, PIN_ANSWER, POST_RESTORE, POST_TRANSLATE, PREROUTING, PRIORITY_CLASSIFY,
        PRIORITY_MANGLE, PRIORITY_RAW, PRIORITY_RESTORE, PRIORITY_TRANSLATE, REVERSE, SERVICE,
        SNAT_ADDRESS, SNAT_KEEP, SNAT_NODE, SNAT_PORTS, TOWARDS_POD, TRANSLATED, UNCLASSIFIED,
        UNTRACK, by_chain, leave_chain, ports_chain, steer_chain, to_chain,
    },
    outer::{not_tunnel, outer, outer_in, outer_out, untrack},
    prerouting::{answers, arrive_unpinned, invalid_untracked, leave, prerouting, reverse},
    rule::{base, drop_if, dropped, go, goto, jump, plain},
};

/// As whom packets leave here, where that takes a chain at a hook that every packet of the host
/// passes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Exits {
    /// As they are, so that they are not tracked.
    pub(crate) kept: bool,
    /// With egress addresses, which are looked up with the class when nothing of ours comes after
    /// that.
    pub(crate) addressed: bool,
}

/// All chains of the table. They depend on the mask, the overlay's numbers, the targets and on
/// `exits`, never on policies or pods.
pub(crate) fn chains(
    desired: &PolicyDesired,
    mask: MarkMask,
    exits: Exits,
) -> BTreeMap<String, Chain> {
    let mut chains: BTreeMap<String, Chain> = [
        (
            OUTER_IN,
            base(
                "filter",
                "prerouting",
                PRIORITY_RAW,
                outer_in(desired.overlay.port, exits.kept),
            ),
        ),
        (
            OUTER_OUT,
            base(
                "filter",
                "output",
                PRIORITY_RAW,
                outer_out(desired.overlay.port),
            ),
        ),
        (
            PREROUTING,
            base(
                "filter",
                "prerouting",
                PRIORITY_CLASSIFY,
                prerouting(desired, mask),
            ),
        ),
        (
            FORWARD,
            base("filter", "forward", PRIORITY_MANGLE, forward(desired, mask)),
        ),
        (
            POST_TRANSLATE,
            base(
                "nat",
                "postrouting",
                PRIORITY_TRANSLATE,
                translate(desired, mask),
            ),
        ),
        (OUTER, plain(outer())),
        (CLAMP, plain(clamp(desired))),
        (OPENING, plain(opening())),
        (CLASSIFY, plain(classify(desired.overlay.port))),
        (ARRIVE, plain(arrive(desired))),
        (ARRIVE_INWARD, plain(arrive_inward())),
        (
            INVALID_UNTRACKED,
            plain(invalid_untracked(
                exits.kept || !desired.relayed.is_empty(),
                mask,
            )),
        ),
        (ARRIVE_UNPINNED, plain(arrive_unpinned(mask))),
        (ANSWERS, plain(answers())),
        (NO_CLASS, plain(no_class(desired))),
        (TOWARDS_POD, plain(towards_pod())),
        (
            PIN_ANSWER,
            plain(vec![vec![
                Pin {
                    keep: mask.keep(),
                    value: mask.answer_mark(),
                },
                ForgetClass,
            ]]),
        ),
        (GUARD, plain(guard(desired, mask))),
        (GUARD_ANSWERS, plain(guard_answers(mask))),
        (
            LOST,
            plain(vec![
                drop_if(
                    [Statement::State(ConnectionState::Untracked)],
                    DROP_UNTRACKED,
                ),
                dropped(DROP_NO_GATEWAY),
            ]),
        ),
        (FIND_CLASS, plain(find_class())),
        (DECIDE, plain(decide())),
        (
            UNCLASSIFIED,
            plain(unclassified(desired.overlay.unknown_may_exit, mask)),
        ),
        (ENTER, plain(enter(mask))),
        (HELD, plain(vec![dropped(DROP_HELD)])),
        (NO_GATEWAY, plain(vec![dropped(DROP_NO_GATEWAY)])),
        (SNAT_NODE, plain(snat_node())),
        (SNAT_KEEP, plain(snat_keep())),
        (SNAT_ADDRESS, plain(snat_address())),
    ]
    .map(|(name, chain)| (name.to_owned(), chain))
    .into();
    chains.extend(translating(desired));
    if desired.overlay.port > 0 {
        chains.insert(NOT_TUNNEL.into(), plain(not_tunnel()));
    }
    if exits.kept {
        chains.insert(UNTRACK.into(), plain(untrack(mask)));
    }
    if exits.addressed {
        chains.insert(
            POST_RESTORE.into(),
            base(
                "filter",
                "postrouting",
                PRIORITY_RESTORE,
                restore(desired, mask),
            ),
        );
    }
    if !desired.networks.is_empty() {
        chains.insert(LEAVE.into(), plain(leave(mask)));
        chains.insert(REVERSE.into(), plain(reverse(desired, mask)));
    }
    for network in desired.networks.keys() {
        let (keep, value) = (mask.keep(), mask.network_mark(*network));
        chains.insert(
            by_chain(*network),
            plain(vec![vec![Statement::Mark { keep, value }]]),
        );
        chains.insert(
            leave_chain(*network),
            plain(vec![vec![
                Pin { keep, value },
                Statement::Mark { keep, value },
            ]]),
        );
    }
    for target in desired
        .targets
        .iter()
        .chain(&desired.exits)
        .chain(&desired.accepts)
    {
        chains.insert(to_chain(*target), plain(to(*target, desired, mask)));
    }
    for target in &desired.targets {
        chains.insert(
            steer_chain(*target),
            plain(vec![vec![Statement::Mark {
                keep: mask.keep(),
                value: mask.mark(*target),
            }]]),
        );
    }
    chains
}

/// The chains that translate what this node sends, whatever gateway carries it.
fn translating(desired: &PolicyDesired) -> impl Iterator<Item = (String, Chain)> {
    let finds = (!desired.distributed.is_empty()).then(|| (SNAT_PORTS.into(), plain(snat_ports())));
    let ports = desired
        .blocks
        .iter()
        .map(|(address, blocks)| (ports_chain(*address), plain(ports_of(*address, blocks))));
    finds.into_iter().chain(ports)
}

/// The chains beside another backend, which has looked at the address that a connection was sent
/// to, and pinned it where that is governed.
pub(crate) fn services(desired: &PolicyDesired, mask: MarkMask) -> BTreeMap<String, Chain> {
    let whole = chains(desired, mask, Exits::default());
    let same = [
        NO_CLASS,
        TOWARDS_POD,
        PIN_ANSWER,
        FIND_CLASS,
        DECIDE,
        UNCLASSIFIED,
        HELD,
        LOST,
        NO_GATEWAY,
        LEAVE,
    ]
    .map(str::to_owned);
    let own = desired
        .targets
        .iter()
        .chain(&desired.exits)
        .chain(&desired.accepts)
        .map(|target| to_chain(*target));
    let own = own.chain(desired.targets.iter().map(|target| steer_chain(*target)));
    let own = own.chain(desired.networks.keys().map(|network| leave_chain(*network)));
    let own: BTreeSet<String> = same.into_iter().chain(own).collect();
    let mut chains: BTreeMap<_, _> = whole
        .into_iter()
        .filter(|(name, _)| own.contains(name))
        .collect();
    chains.insert(
        TRANSLATED.into(),
        base("filter", "prerouting", PRIORITY_CLASSIFY, translated()),
    );
    chains.insert(SERVICE.into(), plain(service(mask)));
    chains.insert(CLASSIFY.into(), plain(leaving()));
    chains
}

/// What most packets meet comes first: they are not the first ones of their connection. What came
/// by the overlay leaves here, and the other backend has seen to that.
fn translated() -> Vec<Rule> {
    let first = [
        Statement::State(ConnectionState::New),
        Statement::Translated,
        Statement::Direction(Direction::Original),
    ];
    vec![go(
        first.into_iter().chain([Overlay {
            way: Way::In,
            negated: true,
        }]),
        jump(SERVICE),
    )]
}

/// A connection that has begun keeps its pin.
fn service(mask: MarkMask) -> Vec<Rule> {
    let keep = mask.keep();
    vec![
        go(
            [
                Statement::Confirmed,
                Pinned {
                    mask: mask.bits(),
                    negated: true,
                    value: 0,
                },
            ],
            Jump::Return,
        ),
        vec![Pin { keep, value: 0 }, Statement::Mark { keep, value: 0 }],
        go([], goto(CLASSIFY)),
    ]
}
