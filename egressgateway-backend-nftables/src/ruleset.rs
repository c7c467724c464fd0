//! The chains: who, where, how and as whom, for any number of policies and pods.

use std::collections::{BTreeMap, BTreeSet};

use egressgateway::{
    ExitNetwork, PolicyDesired, StartGate,
    model::{Family, MarkMask, NetworkId, TargetId},
    trace::{ConnectionState, DestinationKind, Direction},
};

use crate::{
    ast::{
        Chain, Hook, Jump, Rule, Side,
        Statement::{
            self, Address, ClassOf, Count, Destination, ForgetClass, Go, Marked, Overlay, Pin,
            Pinned, VerdictOf, VerdictOfPin,
        },
        Way,
    },
    names::{
        ANSWERS, ARRIVE, ARRIVE_INWARD, ARRIVE_UNPINNED, CLAMP, CLASSIFY, DECIDE, DROP_HELD,
        DROP_NO_GATEWAY, DROP_NOT_PEER, DROP_START_GATE, DROP_UNKNOWN_SOURCE, DROP_UNTRACKED,
        ENTER, EXITED, FIND_CLASS, FORWARD, GUARD, GUARD_ANSWERS, HELD, INVALID_UNTRACKED, LEAVE,
        LOST, NO_CLASS, NO_GATEWAY, NOT_TUNNEL, OPENING, OUTER, OUTER_IN, OUTER_OUT, PIN_ANSWER,
        POST_RESTORE, POST_TRANSLATE, PREROUTING, PRIORITY_CLASSIFY, PRIORITY_MANGLE, PRIORITY_RAW,
        PRIORITY_RESTORE, PRIORITY_TRANSLATE, REVERSE, SERVICE, SNAT_ADDRESS, SNAT_KEEP, SNAT_NODE,
        STEERED, SetName, TOWARDS_POD, TRANSLATED, TUNNELLED, UNCLASSIFIED, UNTRACK, by_chain,
        leave_chain, steer_chain, to_chain,
    },
};

const FROM_OVERLAY: Statement = Overlay {
    way: Way::In,
    negated: false,
};
const INTO_OVERLAY: Statement = Overlay {
    way: Way::Out,
    negated: false,
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
        (ARRIVE, plain(arrive())),
        (ARRIVE_INWARD, plain(arrive_inward())),
        (
            INVALID_UNTRACKED,
            plain(invalid_untracked(exits.kept, mask)),
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
        (GUARD, plain(guard(mask))),
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

fn base(kind: &str, hook: &str, priority: i32, rules: Vec<Rule>) -> Chain {
    Chain {
        hook: Some(Hook {
            kind: kind.into(),
            point: hook.into(),
            priority,
            policy: "accept".into(),
        }),
        rules,
    }
}

fn plain(rules: Vec<Rule>) -> Chain {
    Chain { hook: None, rules }
}

fn dropped(counter: &'static str) -> Rule {
    vec![Count(counter), Go(Jump::Drop)]
}

/// A rule that drops and counts what the matches let through.
fn drop_if(matches: impl IntoIterator<Item = Statement>, counter: &'static str) -> Rule {
    matches.into_iter().chain(dropped(counter)).collect()
}

fn go(matches: impl IntoIterator<Item = Statement>, jump: Jump) -> Rule {
    matches.into_iter().chain([Go(jump)]).collect()
}

fn jump(chain: &str) -> Jump {
    Jump::Call(chain.into())
}

fn goto(chain: &str) -> Jump {
    Jump::Goto(chain.into())
}

fn address(side: Side, family: Family, table: SetName) -> Statement {
    Address {
        side,
        family,
        negated: false,
        table,
    }
}

/// Anybody on the underlay can send to the tunnel's port, and a node makes its own address the
/// source of what its pods send to other nodes. Peers send from one address to one address. What
/// else would be delivered to the tunnel, be it by another address of this host or as one of a
/// group, is dropped before anything else looks at the packet. The rest needs no connection
/// tracking; it would only fill the table.
fn outer_in(port: u16, keeps: bool) -> Vec<Rule> {
    if port == 0 {
        return Vec::new();
    }
    let mut rules = vec![go([Statement::UdpPort(port)], jump(OUTER))];
    if keeps {
        rules.push(go([FROM_OVERLAY], jump(UNTRACK)));
    }
    rules
}

fn outer() -> Vec<Rule> {
    let ends = |family| {
        [
            address(Side::Source, family, SetName::Peers),
            address(Side::Destination, family, SetName::Own),
        ]
    };
    let ours = Family::ALL.map(|family| {
        ends(family)
            .into_iter()
            .chain([Statement::Untrack, Go(Jump::Return)])
            .collect()
    });
    ours.into_iter()
        .chain([drop_if([Statement::Delivered], DROP_NOT_PEER)])
        .collect()
}

/// What leaves here as it is gets its answers past this node, at the node of its pod. Connection
/// tracking would see half of each connection and take the rest for invalid, which others drop.
/// What does not leave the cluster is tracked, so that it is looked at. A mark says, until
/// [`INVALID_UNTRACKED`] has seen it, that it was us who said so.
fn untrack(mask: MarkMask) -> Vec<Rule> {
    let leaves = |family| Address {
        side: Side::Destination,
        family,
        negated: true,
        table: SetName::Exempt,
    };
    let ours = Statement::Mark {
        keep: mask.keep(),
        value: mask.answer_mark(),
    };
    let kept = Family::ALL.map(|family| {
        vec![
            Statement::Keeps(family),
            leaves(family),
            Statement::Untrack,
            ours.clone(),
        ]
    });
    [go([], jump(FIND_CLASS))]
        .into_iter()
        .chain(kept)
        .chain([vec![ForgetClass]])
        .collect()
}

fn outer_out(port: u16) -> Vec<Rule> {
    if port == 0 {
        Vec::new()
    } else {
        vec![vec![Statement::UdpPort(port), Statement::Untrack]]
    }
}

/// Replies go back as they came, and most other packets follow their connection's pin: what each
/// packet is asked comes first. A packet that belongs to no connection can be neither pinned nor
/// translated, so it is classified to be dropped if it is governed.
fn prerouting(desired: &PolicyDesired, mask: MarkMask) -> Vec<Rule> {
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
        go([Statement::Stray], goto(INVALID_UNTRACKED)),
        go([FROM_OVERLAY], goto(ARRIVE_UNPINNED)),
    ]
}

/// A connection through the overlay that nothing has pinned began while these rules were missing.
/// What it leaves as was somebody else's choice, and source translation is never asked again. So
/// nothing of it leaves any more, and the pin tells the agent to end it.
fn arrive_unpinned(mask: MarkMask) -> Vec<Rule> {
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

/// What this host translates to an address of the cluster was sent to one that the cluster does not
/// know as its own, such as a load balancer's that this node holds.
fn led_inside(family: Family) -> Rule {
    let outside = Statement::SentOutside {
        family,
        table: SetName::Exempt,
    };
    go(
        [
            Statement::Translated,
            outside,
            address(Side::Destination, family, SetName::Exempt),
        ],
        Jump::Return,
    )
}

/// What we do not track ourselves goes on: the tunnel's own packets, which are many, and with a
/// mark that has done its work what keeps its source. The rest is classified.
fn invalid_untracked(keeps: bool, mask: MarkMask) -> Vec<Rule> {
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
fn answers() -> Vec<Rule> {
    vec![
        go([Statement::Direction(Direction::Original)], Jump::Accept),
        go([], goto(CLASSIFY)),
    ]
}

/// Whether something exits here; only the node's other networks take a lookup.
fn exits(desired: &PolicyDesired, mask: MarkMask, negated: bool) -> Statement {
    if desired.networks.is_empty() {
        Pinned {
            mask: mask.bits(),
            negated,
            value: mask.exit_mark(),
        }
    } else {
        Statement::Exits {
            mask: mask.bits(),
            negated,
        }
    }
}

/// A strict reverse-path filter looks for the way back to the sender by the mark.
fn reverse(desired: &PolicyDesired, mask: MarkMask) -> Vec<Rule> {
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
fn leave(mask: MarkMask) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Family::ALL
        .map(|family| {
            vec![VerdictOf {
                family,
                table: SetName::Via,
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

/// What is ours leaves through the overlay or, with the exit's byte, from here; lost rules, routes
/// and devices change nothing about that.
fn forward(desired: &PolicyDesired, mask: MarkMask) -> Vec<Rule> {
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
fn opening() -> Vec<Rule> {
    let by_server = |family| {
        let expected = [
            Statement::Expected,
            Statement::Direction(Direction::Original),
        ];
        let outside = Address {
            side: Side::Source,
            family,
            negated: true,
            table: SetName::Exempt,
        };
        let elsewhere = Address {
            side: Side::Destination,
            family,
            negated: true,
            table: SetName::Local,
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
fn guard(mask: MarkMask) -> Vec<Rule> {
    vec![
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
    ]
}

/// An answer that a target is meant for does not leave by another device, even where somebody took
/// its mark away. Such answers are rare, so they are classified once more.
fn guard_answers(mask: MarkMask) -> Vec<Rule> {
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
fn enter(mask: MarkMask) -> Vec<Rule> {
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
fn clamp(desired: &PolicyDesired) -> Vec<Rule> {
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

/// The exempt come first. What is for this host or for a group does not leave the cluster.
///
/// `meta priority` is only borrowed for the class and ends as 0: so it is where a packet enters the
/// host, unless a VLAN device maps priorities, and IPv4 forwarding derives it from the packet
/// again. Only first packets of connections come here.
fn classify(port: u16) -> Vec<Rule> {
    let mut rules = Vec::new();
    if port > 0 {
        rules.push(go([Statement::UdpPort(port)], jump(NOT_TUNNEL)));
    }
    rules.push(go([FROM_OVERLAY], goto(ARRIVE)));
    rules.extend(leaving());
    rules
}

/// What a host sends that did not come by the overlay.
fn leaving() -> Vec<Rule> {
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
fn judge() -> [Rule; 4] {
    [
        go([], jump(FIND_CLASS)),
        go([Statement::NoClass], goto(NO_CLASS)),
        go([], jump(DECIDE)),
        vec![ForgetClass],
    ]
}

/// The tunnel's own packets are not tracked, so what is has another sender: a pod, which this
/// node's masquerade would turn into a peer. It reaches the tunnel by no address of any node, and
/// neither does what a service leads there.
fn not_tunnel() -> Vec<Rule> {
    let stranger = |family| Address {
        side: Side::Source,
        family,
        negated: true,
        table: SetName::Peers,
    };
    let other = Family::ALL.map(|family| {
        [
            stranger(family),
            address(Side::Destination, family, SetName::Hosts),
        ]
    });
    let own = [Statement::State(ConnectionState::New), Statement::Delivered];
    other
        .into_iter()
        .chain([own])
        .map(|matches| drop_if(matches, DROP_NOT_PEER))
        .collect()
}

/// Through the overlay comes what leaves the cluster here, and what nodes ask each other: whether
/// they are there. Others' rules would deliver anything else wherever it says, with the source that
/// it says.
fn arrive() -> Vec<Rule> {
    let mut rules = vec![go([Statement::Inward], jump(ARRIVE_INWARD))];
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
fn arrive_inward() -> Vec<Rule> {
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
fn no_class(desired: &PolicyDesired) -> Vec<Rule> {
    let gate = |table| {
        Family::ALL.map(|family| {
            let [local, unknown] = unknown_or_governed(Side::Source, family, table);
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
fn unknown_or_governed(side: Side, family: Family, pods: SetName) -> [Statement; 2] {
    [
        address(side, family, pods),
        Address {
            side,
            family,
            negated: true,
            table: SetName::Ungoverned,
        },
    ]
}

/// Connection tracking forgets: an entry expires or is deleted here, and the gateway still has its
/// own. What the server sends next comes to the pod as a new connection from outside, whose replies
/// nobody would classify. Whoever sends a request begins a connection, and so does who comes by a
/// service's address; anything else may be such a connection, and is pinned as one.
fn towards_pod() -> Vec<Rule> {
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

fn find_class() -> Vec<Rule> {
    class_of(Side::Source).collect()
}

/// An exact address overwrites what its subnet said. Sets and maps stay apart: Linux 5.10 refuses a
/// map where a set is looked up.
fn class_of(side: Side) -> impl Iterator<Item = Rule> {
    let lookup = move |table| {
        Family::ALL.map(|family| {
            vec![ClassOf {
                side,
                family,
                table,
            }]
        })
    };
    [vec![ForgetClass]].into_iter().chain(
        [SetName::Subnets, SetName::Pods]
            .into_iter()
            .flat_map(lookup),
    )
}

/// What finds no verdict passes, unless entries of its class may be missing just now.
fn decide() -> Vec<Rule> {
    let mut rules: Vec<Rule> = Family::ALL
        .map(|family| {
            vec![VerdictOf {
                family,
                table: SetName::Verdicts,
            }]
        })
        .into();
    rules.push(drop_if([Statement::Changing], DROP_HELD));
    rules.push(go([FROM_OVERLAY], goto(UNCLASSIFIED)));
    rules
}

/// What comes through the overlay was governed for the node that sent it; here nothing says as whom
/// it leaves.
fn unclassified(may_exit: bool, mask: MarkMask) -> Vec<Rule> {
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

/// Pins a new connection to `target`, or to this node where it exits here. The mark of this first
/// packet is given here; later ones get it by the pin. Of what somebody outside began, the answers
/// are marked and nothing is pinned: another of them may be on its way. They can't leave from here,
/// where nothing would translate them.
fn to(target: TargetId, desired: &PolicyDesired, mask: MarkMask) -> Vec<Rule> {
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
    vec![go([Statement::Stray], goto(LOST)), answers, others, own]
}

/// What enters the tunnel is translated to itself, which keeps every later masquerade away from it.
/// What exits gets its source here: the class again, because the packet that leaves may be one that
/// came through the overlay.
fn translate(desired: &PolicyDesired, mask: MarkMask) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Family::ALL
        .map(|family| vec![INTO_OVERLAY, Statement::SourceItself(family)])
        .into();
    rules.push(go([exits(desired, mask, true)], Jump::Accept));
    rules.push(go([], jump(FIND_CLASS)));
    rules.extend(Family::ALL.map(|family| {
        vec![VerdictOf {
            family,
            table: SetName::SnatKind,
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

/// The map has an entry wherever `exit` leads here; were one missing, the packet must not leave as
/// it is.
fn snat_address() -> Vec<Rule> {
    let addresses = Family::ALL.map(|family| vec![Statement::SourceOf(family)]);
    [vec![Count(EXITED)]]
        .into_iter()
        .chain(addresses)
        .chain([dropped(DROP_UNKNOWN_SOURCE)])
        .collect()
}

/// Where the kernel chooses the source, it takes whatever the device was given first or last, such
/// as somebody's virtual address. It does so only on a device that nothing is known of.
fn snat_node() -> Vec<Rule> {
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

fn snat_keep() -> Vec<Rule> {
    [vec![Count(EXITED), ForgetClass]]
        .into_iter()
        .chain(Family::ALL.map(|family| vec![Statement::SourceItself(family)]))
        .collect()
}

/// Traffic control on the outgoing device reads `meta priority` as one of its own classes; a
/// policy's class must not choose one. Source translation looks at new connections only, so others
/// keep their priority.
fn restore(desired: &PolicyDesired, mask: MarkMask) -> Vec<Rule> {
    vec![vec![
        Statement::State(ConnectionState::New),
        exits(desired, mask, false),
        ForgetClass,
    ]]
}
