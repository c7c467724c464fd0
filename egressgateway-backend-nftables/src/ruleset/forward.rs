//! What is forwarded leaves by the way that its pin says, or not at all.

use egressgateway::{
    PolicyDesired,
    model::{Family, MarkMask},
    trace::{ConnectionState, Direction},
};

use crate::ruleset::{
    ast::{
        Jump, Rule, Side,
        Statement::{self, Address, Count, Marked, Pinned},
    },
    names::{
        CLAMP, CLASSIFY, DROP_NO_GATEWAY, ENTER, GUARD, GUARD_ANSWERS, OPENING, SetName, TUNNELLED,
    },
    rule::{FROM_OVERLAY, INTO_OVERLAY, drop_if, exits, go, goto, jump, pinned_to},
};

/// What is ours leaves through the overlay or, with the exit's byte, from here; lost rules, routes
/// and devices change nothing about that.
pub(super) fn forward(desired: &PolicyDesired, mask: MarkMask) -> Vec<Rule> {
    let pinned = |negated, value| Pinned {
        mask: mask.bits(),
        negated,
        value,
    };
    vec![
        go([pinned(false, 0)], Jump::Accept),
        go([INTO_OVERLAY], goto(ENTER)),
        go([exits(desired, mask, true)], goto(GUARD)),
        go([Statement::Syn], goto(OPENING)),
    ]
}

/// A helper of connection tracking lets a server open a connection to a pod, such as for data of
/// FTP. The pod's node knows nothing of the translation that the helper agreed here, so the pod's
/// answers would leave there with the pod's own address. Such a connection ends here, but for a pod
/// of this node.
pub(super) fn opening() -> Vec<Rule> {
    let by_server = |family| {
        let expected = [
            Statement::Expected,
            Statement::Direction(Direction::Original),
        ];
        let outside = Address {
            side: Side::Source,
            family,
            negated: true,
            set: SetName::Exempt,
        };
        let elsewhere = Address {
            side: Side::Destination,
            family,
            negated: true,
            set: SetName::Local,
        };
        drop_if(
            expected.into_iter().chain([outside, elsewhere]),
            DROP_NO_GATEWAY,
        )
    };
    let own = go([FROM_OVERLAY], goto(CLAMP));
    [own]
        .into_iter()
        .chain(Family::ALL.map(by_server))
        .chain([go([], goto(CLAMP))])
        .collect()
}

/// What is pinned to a target, and neither exits here nor enters the overlay: only its replies may
/// pass.
///
/// What this node translated itself for a target that exits here leaves by any device. Its source
/// is the egress address: a connection that began before that is not let out.
pub(super) fn guard(desired: &PolicyDesired, mask: MarkMask) -> Vec<Rule> {
    let here = desired
        .distributed
        .iter()
        .filter(|target| desired.exits.contains(*target))
        .flat_map(|target| {
            let pinned = || pinned_to(*target, mask);
            [
                go([pinned(), Statement::SourceTranslated], Jump::Accept),
                drop_if([pinned(), Statement::Confirmed], DROP_NO_GATEWAY),
                go([pinned()], Jump::Accept),
            ]
        });
    let rest = vec![
        go(
            [Pinned {
                mask: mask.bits(),
                negated: false,
                value: mask.answer_mark(),
            }],
            goto(GUARD_ANSWERS),
        ),
        drop_if([Statement::Direction(Direction::Original)], DROP_NO_GATEWAY),
        go([Statement::Syn], jump(CLAMP)),
    ];
    here.chain(rest).collect()
}

/// An answer that a target is meant for does not leave by another device, even where somebody took
/// its mark away. Such answers are rare, so they are classified once more.
pub(super) fn guard_answers(mask: MarkMask) -> Vec<Rule> {
    vec![
        go([Statement::Direction(Direction::Original)], Jump::Return),
        go([], jump(CLASSIFY)),
        drop_if(
            [Marked {
                mask: mask.bits(),
                negated: true,
                value: 0,
            }],
            DROP_NO_GATEWAY,
        ),
    ]
}

/// What came through the overlay does not enter it again. The way is chosen, so the mark has done
/// its work: the underlay's rules must not meet it on the outer packet. Of a connection the first
/// packet is counted.
pub(super) fn enter(mask: MarkMask) -> Vec<Rule> {
    vec![
        drop_if([FROM_OVERLAY], DROP_NO_GATEWAY),
        vec![Statement::Mark {
            keep: mask.keep(),
            value: 0,
        }],
        go([Statement::Syn], jump(CLAMP)),
        go([Statement::Confirmed], Jump::Return),
        vec![Statement::State(ConnectionState::New), Count(TUNNELLED)],
    ]
}

/// Both directions: the answer's size limits what the pod sends. The kernel only ever lowers the
/// value.
pub(super) fn clamp(desired: &PolicyDesired) -> Vec<Rule> {
    desired
        .overlay
        .mss
        .iter()
        .map(|(family, bytes)| {
            vec![
                Statement::Protocol(*family),
                Statement::Syn,
                Statement::Segment(*bytes),
            ]
        })
        .collect()
}
