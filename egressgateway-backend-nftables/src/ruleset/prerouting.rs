//! What each packet that arrives is asked, and what becomes of later ones of a connection.

use egressgateway::{
    ExitNetwork, PolicyDesired,
    model::{Family, MarkMask, NetworkId},
    trace::{ConnectionState, DestinationKind, Direction},
};

use crate::ruleset::{
    ast::{
        Jump, Rule, Side,
        Statement::{self, Destination, Go, Marked, Overlay, Pin, Pinned, VerdictOf, VerdictOfPin},
        Way,
    },
    names::{
        ARRIVE_UNPINNED, CLASSIFY, DROP_HELD, DROP_NO_GATEWAY, DROP_UNKNOWN_SOURCE,
        INVALID_UNTRACKED, REVERSE, SetName,
    },
    rule::{FROM_OVERLAY, address, drop_if, dropped, go, goto, led_inside},
};

/// Replies go back as they came, and most other packets follow their connection's pin: what each
/// packet is asked comes first. A packet that belongs to no connection can be neither pinned nor
/// translated, so it is classified to be dropped if it is governed.
pub(super) fn prerouting(desired: &PolicyDesired, mask: MarkMask) -> Vec<Rule> {
    let answers = Pinned {
        mask: mask.bits(),
        negated: true,
        value: mask.answer_mark(),
    };
    let pass = if desired.networks.is_empty() {
        Jump::Accept
    } else {
        goto(REVERSE)
    };
    vec![
        go([Statement::Direction(Direction::Reply), answers], pass),
        vec![VerdictOfPin { mask: mask.bits() }],
        drop_if(
            [Pinned {
                mask: mask.bits(),
                negated: true,
                value: 0,
            }],
            DROP_NO_GATEWAY,
        ),
        go([Statement::State(ConnectionState::New)], goto(CLASSIFY)),
        go([Statement::InvalidOrUntracked], goto(INVALID_UNTRACKED)),
        go([FROM_OVERLAY], goto(ARRIVE_UNPINNED)),
    ]
}

/// A connection through the overlay that nothing has pinned began while these rules were missing.
/// What it leaves as was somebody else's choice, and source translation is never asked again. So
/// nothing of it leaves any more, and the pin tells the agent to end it.
pub(super) fn arrive_unpinned(mask: MarkMask) -> Vec<Rule> {
    let pin = Pin {
        keep: mask.keep(),
        value: mask.unknown_mark(),
    };
    Family::ALL
        .map(led_inside)
        .into_iter()
        .chain([
            go([Destination(DestinationKind::Arrival)], Jump::Return),
            vec![pin],
            dropped(DROP_UNKNOWN_SOURCE),
        ])
        .collect()
}

/// What we do not track ourselves goes on: the tunnel's own packets, which are many, and with a
/// mark that has done its work what keeps its source. The rest is classified.
pub(super) fn invalid_untracked(keeps: bool, mask: MarkMask) -> Vec<Rule> {
    let kept = Marked {
        mask: mask.bits(),
        negated: false,
        value: mask.answer_mark(),
    };
    let kept = vec![
        kept,
        Statement::Mark {
            keep: mask.keep(),
            value: 0,
        },
        Go(Jump::Accept),
    ];
    let to_this_node = Family::ALL.map(|family| {
        let not_inner = Overlay {
            way: Way::In,
            negated: true,
        };
        go(
            [address(Side::Destination, family, SetName::Own), not_inner],
            Jump::Return,
        )
    });
    let kept = keeps.then_some(kept).into_iter();
    kept.chain(to_this_node)
        .chain([go([], goto(CLASSIFY))])
        .collect()
}

/// Where somebody outside began, towards a pod, each answer is classified like a first packet: the
/// pod may have begun it before that, and only a gateway still knows.
pub(super) fn answers() -> Vec<Rule> {
    vec![
        go([Statement::Direction(Direction::Original)], Jump::Accept),
        go([], goto(CLASSIFY)),
    ]
}

/// A strict reverse-path filter looks for the way back to the sender by the mark.
pub(super) fn reverse(desired: &PolicyDesired, mask: MarkMask) -> Vec<Rule> {
    let rule = |(id, network): (&NetworkId, &ExitNetwork)| {
        let value = mask.network_mark(*id);
        let from = Pinned {
            mask: mask.bits(),
            negated: false,
            value,
        };
        vec![
            Statement::From(network.device.clone()),
            from,
            Statement::Mark {
                keep: mask.keep(),
                value,
            },
        ]
    };
    desired.networks.iter().map(rule).collect()
}

/// What has an egress address of another network leaves by that one. Nothing found may mean that
/// the entry is being changed.
pub(super) fn leave(mask: MarkMask) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Family::ALL
        .map(|family| {
            vec![VerdictOf {
                family,
                set: SetName::Via,
            }]
        })
        .into();
    rules.push(drop_if([Statement::Changing], DROP_HELD));
    rules.push(vec![Pin {
        keep: mask.keep(),
        value: mask.exit_mark(),
    }]);
    rules
}
