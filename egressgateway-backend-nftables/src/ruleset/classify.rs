//! The first packet of a connection: who, and where to.

use egressgateway::{
    PolicyDesired, StartGate,
    model::{Family, MarkMask, TargetId},
    trace::{ConnectionState, DestinationKind},
};

use crate::ruleset::{
    ast::{
        Jump, Rule, Side,
        Statement::{
            self, Address, ClassOf, Count, Destination, ForgetClass, Go, Pin, Pinned, VerdictOf,
        },
    },
    names::{
        ARRIVE, ARRIVE_INWARD, DECIDE, DROP_HELD, DROP_NO_GATEWAY, DROP_NO_PORT, DROP_START_GATE,
        DROP_UNKNOWN_SOURCE, DROP_UNTRACKED, FIND_CLASS, LEAVE, LOST, NO_CLASS, NOT_TUNNEL,
        PIN_ANSWER, STEERED, SetName, TOWARDS_POD, UNCLASSIFIED, steer_chain,
    },
    rule::{FROM_OVERLAY, address, drop_if, dropped, go, goto, jump, led_inside},
};

/// The exempt come first. What is for this host or for a group does not leave the cluster.
///
/// `meta priority` is only borrowed for the class and ends as 0: so it is where a packet enters the
/// host, unless a VLAN device maps priorities, and IPv4 forwarding derives it from the packet
/// again. Only first packets of connections come here.
pub(super) fn classify(port: u16) -> Vec<Rule> {
    let mut rules = Vec::new();
    if port > 0 {
        rules.push(go([Statement::UdpPort(port)], jump(NOT_TUNNEL)));
    }
    rules.push(go([FROM_OVERLAY], goto(ARRIVE)));
    rules.extend(leaving());
    rules
}

/// What a host sends that did not come by the overlay.
pub(super) fn leaving() -> Vec<Rule> {
    let mut rules = Vec::new();
    rules.extend(Family::ALL.map(|family| {
        go(
            [address(Side::Destination, family, SetName::Exempt)],
            goto(TOWARDS_POD),
        )
    }));
    rules.push(go([Statement::Inward], Jump::Return));
    rules.extend(judge());
    rules
}

/// Who, and where to.
pub(super) fn judge() -> [Rule; 4] {
    [
        go([], jump(FIND_CLASS)),
        go([Statement::NoClass], goto(NO_CLASS)),
        go([], jump(DECIDE)),
        vec![ForgetClass],
    ]
}

/// Through the overlay comes what leaves the cluster here, and what nodes ask each other: whether
/// they are there. Others' rules would deliver anything else wherever it says, with the source that
/// it says.
///
/// What pods' own nodes translate is not tracked where it exits, and belongs to a connection where
/// its answers arrive: here it is neither.
pub(super) fn arrive(desired: &PolicyDesired) -> Vec<Rule> {
    let mut rules = vec![go([Statement::Inward], jump(ARRIVE_INWARD))];
    if !desired.relayed.is_empty() {
        for side in [Side::Source, Side::Destination] {
            rules.extend(Family::ALL.map(|family| {
                drop_if(
                    [address(side, family, SetName::Relayed)],
                    DROP_UNKNOWN_SOURCE,
                )
            }));
        }
    }
    rules.extend(Family::ALL.map(led_inside));
    rules.extend(Family::ALL.map(|family| {
        drop_if(
            [address(Side::Destination, family, SetName::Exempt)],
            DROP_UNKNOWN_SOURCE,
        )
    }));
    // This host's own addresses, and its own pods as far as they are known to be in no policy, are
    // nowhere else.
    rules.push(drop_if([Statement::SourceLocal], DROP_UNKNOWN_SOURCE));
    rules.extend(Family::ALL.map(|family| {
        drop_if(
            [address(Side::Source, family, SetName::Ungoverned)],
            DROP_UNKNOWN_SOURCE,
        )
    }));
    rules.extend(judge());
    rules
}

/// What is for this host or a group. The address of another of this host's devices is neither of
/// these: it goes on.
pub(super) fn arrive_inward() -> Vec<Rule> {
    let own = Destination(DestinationKind::Arrival);
    let group = Destination(DestinationKind::Multicast);
    // How neighbours find each other; the kernel itself does not track it.
    let neighbours = [
        Statement::Icmp(Family::V6),
        Statement::State(ConnectionState::Untracked),
    ];
    let mut rules: Vec<Rule> = Family::ALL
        .map(|family| go([Statement::Icmp(family), own.clone()], Jump::Accept))
        .into();
    rules.extend([
        drop_if([own], DROP_UNKNOWN_SOURCE),
        go(neighbours.into_iter().chain([group.clone()]), Jump::Accept),
        drop_if([group], DROP_UNKNOWN_SOURCE),
    ]);
    rules
}

/// A pod of this node that neither has a class nor is known to have none waits: it is new, or
/// somebody flushed what says so. Where sources alone don't tell the node's pods, what did not come
/// from a pod's device goes on before more is asked.
pub(super) fn no_class(desired: &PolicyDesired) -> Vec<Rule> {
    let gate = |set| {
        Family::ALL.map(|family| {
            let [local, unknown] = unknown_or_governed(Side::Source, family, set);
            drop_if(
                [
                    local,
                    unknown,
                    address(Side::Destination, family, SetName::Governed),
                ],
                DROP_START_GATE,
            )
        })
    };
    let mut rules: Vec<Rule> = gate(SetName::Local).into();
    rules.push(go([FROM_OVERLAY], goto(UNCLASSIFIED)));
    if let Some(StartGate { outside, .. }) = desired
        .start_gate
        .as_ref()
        .filter(|gate| !gate.wide.is_empty())
    {
        rules.extend(
            outside
                .iter()
                .map(|device| go([Statement::From(device.clone())], goto(TOWARDS_POD))),
        );
        rules.extend(gate(SetName::Wide));
    }
    rules.push(go([], goto(TOWARDS_POD)));
    rules
}

/// A pod of this node that is not known to have no class.
pub(super) fn unknown_or_governed(side: Side, family: Family, pods: SetName) -> [Statement; 2] {
    [
        address(side, family, pods),
        Address {
            side,
            family,
            negated: true,
            set: SetName::Ungoverned,
        },
    ]
}

/// Connection tracking forgets: an entry expires or is deleted here, and the gateway still has its
/// own. What the server sends next comes to the pod as a new connection from outside, whose replies
/// nobody would classify. Whoever sends a request begins a connection, and so does who comes by a
/// service's address; anything else may be such a connection, and is pinned as one.
pub(super) fn towards_pod() -> Vec<Rule> {
    let mut rules = vec![go([Statement::Opens], Jump::Return)];
    rules.extend(Family::ALL.map(|family| go([Statement::Icmp(family)], Jump::Return)));
    rules.push(go([Statement::Translated], Jump::Return));
    rules.extend(Family::ALL.map(|family| {
        go(
            [address(Side::Source, family, SetName::Exempt)],
            Jump::Return,
        )
    }));
    rules.extend(Family::ALL.map(|family| {
        go(
            unknown_or_governed(Side::Destination, family, SetName::Local),
            goto(PIN_ANSWER),
        )
    }));
    rules.extend(class_of(Side::Destination));
    rules.extend([
        go([Statement::NoClass], Jump::Return),
        go([], goto(PIN_ANSWER)),
    ]);
    rules
}

pub(super) fn find_class() -> Vec<Rule> {
    class_of(Side::Source).collect()
}

/// An exact address overwrites what its subnet said. Sets and maps stay apart: Linux 5.10 refuses a
/// map where a set is looked up.
pub(super) fn class_of(side: Side) -> impl Iterator<Item = Rule> {
    let lookup = move |set| Family::ALL.map(|family| vec![ClassOf { side, family, set }]);
    [vec![ForgetClass]].into_iter().chain(
        [SetName::Subnets, SetName::Pods]
            .into_iter()
            .flat_map(lookup),
    )
}

/// What finds no verdict passes, unless entries of its class may be missing just now.
pub(super) fn decide() -> Vec<Rule> {
    let mut rules: Vec<Rule> = Family::ALL
        .map(|family| {
            vec![VerdictOf {
                family,
                set: SetName::Verdicts,
            }]
        })
        .into();
    rules.push(drop_if([Statement::Changing], DROP_HELD));
    rules.push(go([FROM_OVERLAY], goto(UNCLASSIFIED)));
    rules
}

/// What comes through the overlay was governed for the node that sent it; here nothing says as whom
/// it leaves.
pub(super) fn unclassified(may_exit: bool, mask: MarkMask) -> Vec<Rule> {
    if !may_exit {
        return vec![dropped(DROP_UNKNOWN_SOURCE)];
    }
    vec![
        drop_if(
            [Statement::State(ConnectionState::Invalid)],
            DROP_UNKNOWN_SOURCE,
        ),
        drop_if(
            [Statement::State(ConnectionState::Untracked)],
            DROP_UNTRACKED,
        ),
        vec![Pin {
            keep: mask.keep(),
            value: mask.exit_mark(),
        }],
    ]
}

/// Pins a new connection to `target`, which this node translates itself, whether or not it exits
/// here: where it exits may change while it lasts. An answer to somebody outside can't be
/// translated any more, and nobody sends here what is translated before it is sent.
fn to_distributed(target: TargetId, desired: &PolicyDesired, mask: MarkMask) -> Vec<Rule> {
    let (keep, value) = (mask.keep(), mask.mark(target));
    let answer = Pinned {
        mask: mask.bits(),
        negated: false,
        value: mask.answer_mark(),
    };
    let own = if desired.exits.contains(&target) {
        vec![Pin { keep, value }]
    } else if desired.targets.contains(&target) {
        vec![
            Count(STEERED),
            Pin { keep, value },
            Statement::Mark { keep, value },
        ]
    } else {
        dropped(DROP_NO_GATEWAY)
    };
    vec![
        go([Statement::InvalidOrUntracked], goto(LOST)),
        drop_if([answer], DROP_NO_GATEWAY),
        drop_if([FROM_OVERLAY], DROP_UNKNOWN_SOURCE),
        drop_if([Statement::HasPorts { negated: true }], DROP_NO_PORT),
        own,
    ]
}

/// Pins a new connection to `target`, or to this node where it exits here. The mark of this first
/// packet is given here; later ones get it by the pin. Of what somebody outside began, the answers
/// are marked and nothing is pinned: another of them may be on its way. They can't leave from here,
/// where nothing would translate them.
pub(super) fn to(target: TargetId, desired: &PolicyDesired, mask: MarkMask) -> Vec<Rule> {
    if desired.distributed.contains(&target) {
        return to_distributed(target, desired, mask);
    }
    let by_network = !desired.networks.is_empty();
    let exit = if by_network {
        Go(goto(LEAVE))
    } else {
        Pin {
            keep: mask.keep(),
            value: mask.exit_mark(),
        }
    };
    let others = if desired.accepts.contains(&target) && by_network {
        vec![FROM_OVERLAY, exit.clone()]
    } else if desired.accepts.contains(&target) {
        vec![FROM_OVERLAY, exit.clone(), Go(Jump::Return)]
    } else {
        drop_if([FROM_OVERLAY], DROP_NO_GATEWAY)
    };
    let own = if desired.exits.contains(&target) {
        vec![exit]
    } else if !desired.targets.contains(&target) {
        dropped(DROP_NO_GATEWAY)
    } else {
        let (keep, value) = (mask.keep(), mask.mark(target));
        vec![
            Count(STEERED),
            Pin { keep, value },
            Statement::Mark { keep, value },
        ]
    };
    let answers = [Pinned {
        mask: mask.bits(),
        negated: false,
        value: mask.answer_mark(),
    }];
    let answers = if desired.targets.contains(&target) && !desired.exits.contains(&target) {
        go(answers, goto(&steer_chain(target)))
    } else {
        drop_if(answers, DROP_NO_GATEWAY)
    };
    vec![
        go([Statement::InvalidOrUntracked], goto(LOST)),
        answers,
        others,
        own,
    ]
}
