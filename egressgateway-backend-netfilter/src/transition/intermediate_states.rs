//! Between any two writes of a plan, a packet meets what the old or the new state says of its
//! class, or is dropped.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeSet, iter, net::IpAddr, sync::Arc};

use egressgateway::{
    ExitNetwork, PolicyDesired,
    model::{ClassId, Family, IpRange, MarkMask, NetworkId, SourceNat, TargetId, Verdict},
    trace::{Trace, TracePacket, TraceSource, TraceVerdict},
};

use crate::{
    contention::Tolerance,
    mark_layout::MarkLayout,
    ruleset::table::{Jump, Table},
    sets::set::Set,
    state::NetfilterState,
    transition::plan::{SetChange, Step, plan},
};

const EXIT: u32 = 0x1200_0000;
/// What leaves by another network of the node.
const NETWORK: u32 = 0x0500_0000;
/// What leads outside.
const DEVICE: &str = "eth0";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn class(id: u32) -> ClassId {
    ClassId::new(id).unwrap()
}

fn target(byte: u8) -> TargetId {
    TargetId::new(byte).unwrap()
}

/// Pods, and what their classes say: class, destination, target and source.
fn world(
    pods: &[(&str, u32)],
    places: &[(u32, &str, u8, SourceNat)],
    exits: bool,
) -> PolicyDesired {
    let mut desired = PolicyDesired::default();
    desired.overlay.devices.insert("egress-vxlan-v4".into());
    desired.targets = [0x11, 0x13].map(target).into_iter().collect();
    if exits {
        desired.exits = desired.targets.clone();
        desired.accepts = desired.targets.clone();
        desired.overlay.unknown_may_exit = true;
        desired
            .node_addresses
            .insert((DEVICE.into(), Family::V4), ip("10.6.0.14"));
    }
    desired.pods = pods.iter().map(|(pod, id)| (ip(pod), class(*id))).collect();
    for (id, net, byte, source_nat) in places {
        let range = IpRange::from(net.parse::<ipnet::IpNet>().unwrap());
        desired.destinations.insert(
            (class(*id), range),
            Verdict::Egress {
                target: target(*byte),
                source_nat: *source_nat,
            },
        );
    }
    desired
}

/// Classes 1 and 0x10000 want the same number, so that one makes the other move; so do the
/// addresses.
fn worlds(exits: bool) -> Vec<PolicyDesired> {
    let as_ = |text: &str| SourceNat::Address(ip(text));
    let (node, first, second) = (SourceNat::NodeAddress, as_("10.6.0.200"), as_("10.6.0.201"));
    // 10.6.0.200 is 0x0a0600c8, which folds to 0x0ace; 10.7.0.201 to 0x0ace too.
    let same = as_("10.7.0.201");
    let (one, two) = (("10.244.0.1", 1), ("10.244.0.2", 0x1_0000));
    let mut worlds = vec![
        world(&[two], &[(0x1_0000, "10.6.1.0/24", 0x11, first)], exits),
        world(
            &[one, two],
            &[
                (0x1_0000, "10.6.1.0/24", 0x11, first),
                (1, "10.6.1.0/24", 0x13, second),
            ],
            exits,
        ),
        world(
            &[one, two],
            &[
                (0x1_0000, "10.6.1.0/24", 0x11, same),
                (1, "10.6.1.0/24", 0x13, first),
            ],
            exits,
        ),
        world(&[one], &[(1, "10.6.1.0/24", 0x13, same)], exits),
        world(
            &[one, ("10.244.0.2", 1)],
            &[
                (1, "10.6.1.0/24", 0x13, node),
                (1, "10.6.2.0/24", 0x11, first),
            ],
            exits,
        ),
        world(
            &[("10.244.0.1", 0x1_0000)],
            &[(0x1_0000, "10.6.0.0/16", 0x11, node)],
            exits,
        ),
    ];
    let mut many = world(&[one, two], &[(1, "10.6.1.0/24", 0x13, second)], exits);
    let more = (0..600_u32).map(|index| {
        (
            IpAddr::from(std::net::Ipv4Addr::from_bits(0x0b00_0000 + index)),
            class(1 + index % 2 * 0xffff),
        )
    });
    many.pods.extend(more);
    worlds.push(many);
    if exits {
        // The first address is one of another network of this node.
        let mut network = world(
            &[one, two],
            &[
                (0x1_0000, "10.6.1.0/24", 0x11, first),
                (1, "10.6.1.0/24", 0x13, node),
            ],
            exits,
        );
        let link = ["10.6.0.0/16".parse::<ipnet::IpNet>().unwrap()]
            .into_iter()
            .collect();
        let addresses = [ip("10.6.0.200")].into_iter().collect();
        let other = ExitNetwork {
            device: "eth1".into(),
            router: ip("10.6.255.254"),
            link,
            addresses,
        };
        network.networks.insert(NetworkId::new(5).unwrap(), other);
        network
            .node_addresses
            .insert(("eth1".into(), Family::V4), ip("10.6.0.15"));
        worlds.push(network);
    }
    worlds
}

/// What a kernel does with one part of a plan, write by write.
fn intermediate_states(state: &NetfilterState, step: &Step) -> Vec<NetfilterState> {
    let mut now = state.clone();
    match step {
        Step::Sets(changes) => changes
            .iter()
            .flat_map(|change| change_set(&mut now, change))
            .collect(),
        Step::Restore { family, script } => script
            .split_inclusive("COMMIT\n")
            .map(|table| restore(&mut now, *family, table))
            .collect(),
    }
}

fn change_set(now: &mut NetfilterState, change: &SetChange) -> Vec<NetfilterState> {
    let mut seen = Vec::new();
    match change {
        SetChange::Create(name, shape) => assert!(
            now.sets.insert(name.clone(), Set::new(*shape)).is_none(),
            "{name} is there"
        ),
        SetChange::Destroy(name) => {
            let refers = |rule: &String| rule.split(' ').any(|word| word == name);
            assert!(
                !now.tables
                    .values()
                    .any(|table| table.chains.values().flatten().any(refers)),
                "{name} is in use"
            );
            assert!(now.sets.remove(name).is_some(), "{name} is not there");
        }
        SetChange::Swap { set, with } => {
            let (one, other) = (now.sets[set].clone(), now.sets[with].clone());
            now.sets.insert(set.clone(), other);
            now.sets.insert(with.clone(), one);
        }
        SetChange::Add {
            set, entries, new, ..
        } => {
            for (net, entry) in entries {
                assert_eq!(now.sets[set].entries.contains_key(net), !new, "{set} {net}");
                now.sets.get_mut(set).unwrap().entries.insert(*net, *entry);
                seen.push(now.clone());
            }
        }
        SetChange::Delete { set, entries, .. } => {
            for (net, _) in entries {
                assert!(
                    now.sets.get_mut(set).unwrap().entries.remove(net).is_some(),
                    "{set} {net}"
                );
                seen.push(now.clone());
            }
        }
    }
    seen.push(now.clone());
    seen
}

fn restore(now: &mut NetfilterState, family: Family, script: &str) -> NetfilterState {
    let mut lines = script.lines();
    let name = lines.next().unwrap().strip_prefix('*').unwrap().to_owned();
    let table = now.tables.entry((family, name)).or_default();
    let Table { chains, jumps } = Arc::make_mut(table);
    for line in lines {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        match verb {
            "-A" => {
                let (chain, rule) = rest.split_once(' ').unwrap();
                for set in rule
                    .split(' ')
                    .skip_while(|word| !word.ends_with("-set"))
                    .skip(1)
                    .take(1)
                {
                    assert!(now.sets.contains_key(set), "{set} is not there for {line}");
                }
                chains.get_mut(chain).unwrap().push(rule.to_owned());
            }
            "-I" => {
                let (chain, rule) = rest.split_once(" 1 ").unwrap();
                jumps.insert(Jump {
                    chain: chain.to_owned(),
                    position: 0,
                    rule: rule.to_owned(),
                });
            }
            "-D" => {
                let (chain, rule) = rest.split_once(' ').unwrap();
                jumps.retain(|jump| jump.chain != chain || jump.rule != rule);
            }
            "-X" => drop(chains.remove(rest).unwrap()),
            "COMMIT" => {}
            chain => drop(chains.insert(chain.strip_prefix(':').unwrap().to_owned(), Vec::new())),
        }
    }
    if chains.is_empty() && jumps.is_empty() {
        now.tables
            .retain(|_, table| !table.chains.is_empty() || !table.jumps.is_empty());
    }
    now.clone()
}

/// What a packet meets: its way, as whom it leaves by each device that leads outside, and as whom
/// if it is pinned to exit here.
#[derive(Debug, PartialEq)]
struct Met {
    way: TraceVerdict,
    leaves: [TraceSource; 2],
    pinned: TraceSource,
}

fn met(state: &NetfilterState, source: &str, destination: &str) -> Met {
    let packet = TracePacket::new(ip(source), ip(destination));
    let way = state.trace(&packet);
    let leaves = [DEVICE, "eth1"].map(|device| leaves(state, &packet, &way, device));
    let pinned = state.trace_source(
        &TracePacket {
            connection_mark: EXIT,
            ..packet
        },
        DEVICE,
    );
    Met {
        way,
        leaves,
        pinned,
    }
}

/// As whom a packet leaves that went this way.
fn leaves(
    state: &NetfilterState,
    packet: &TracePacket,
    way: &TraceVerdict,
    device: &str,
) -> TraceSource {
    let marked = |verdict: &TraceVerdict| match verdict {
        TraceVerdict::Accept {
            packet_mark,
            connection_mark,
            ..
        } => Some(TracePacket {
            packet_mark: *packet_mark,
            connection_mark: *connection_mark,
            ..packet.clone()
        }),
        TraceVerdict::Drop { .. } => None,
    };
    let forwarded = marked(way).and_then(|packet| marked(&state.trace_forward(&packet, device)));
    forwarded.map_or(TraceSource::Drop { counter: None }, |packet| {
        state.trace_source(&packet, device)
    })
}

/// Whether it is dropped, or leaves as one of these say.
fn is_known(source: TraceSource, mut answers: impl Iterator<Item = TraceSource>) -> bool {
    matches!(source, TraceSource::Drop { .. }) || answers.any(|answer| answer == source)
}

/// Every class that a pod has in one of these worlds, with what any of them says of that class, and
/// what the node is in any of them: a plan changes classes, destinations and the node's part one
/// after the other, as an administrator might.
fn possible(worlds: &[&PolicyDesired]) -> Vec<NetfilterState> {
    let mixed = worlds.iter().flat_map(|who| {
        worlds.iter().flat_map(|place| {
            let (pods, destinations) = (&who.pods, &place.destinations);
            worlds.iter().map(|part| PolicyDesired {
                pods: pods.clone(),
                destinations: destinations.clone(),
                ..(*part).clone()
            })
        })
    });
    mixed
        .map(|desired| {
            NetfilterState::of(
                &desired,
                MarkLayout::new(MarkMask::default()),
                &NetfilterState::default(),
            )
            .unwrap()
        })
        .collect()
}

fn check_all(
    current: &NetfilterState,
    before: &[&PolicyDesired],
    desired: &PolicyDesired,
    what: &str,
) -> Vec<NetfilterState> {
    let layout = MarkLayout::new(MarkMask::default());
    let after = NetfilterState::of(desired, layout, current).unwrap();
    let allowed = possible(&[before, &[desired]].concat());
    let packets: Vec<_> = ["10.244.0.1", "10.244.0.2"]
        .iter()
        .flat_map(|pod| ["10.6.1.5", "10.6.2.5", "10.9.9.9"].map(|to| (*pod, to)))
        .collect();
    let answers: Vec<Vec<_>> = packets
        .iter()
        .map(|(source, destination)| {
            allowed
                .iter()
                .map(|state| met(state, source, destination))
                .collect()
        })
        .collect();
    let mut now = current.clone();
    let mut all = Vec::new();
    for step in plan(current, &after, layout).steps {
        for between in intermediate_states(&now, &step) {
            for ((source, destination), answers) in packets.iter().zip(&answers) {
                let Met {
                    way,
                    leaves,
                    pinned,
                } = met(&between, source, destination);
                // What is let out here may be dropped at the last moment.
                let dropped = match way {
                    TraceVerdict::Drop { .. } => true,
                    TraceVerdict::Accept {
                        connection_mark: EXIT | NETWORK,
                        ..
                    } => leaves.iter().all(|source| is_known(*source, iter::empty())),
                    TraceVerdict::Accept { .. } => false,
                };
                let known = dropped || answers.iter().any(|answer| answer.way == way);
                assert!(
                    known,
                    "{what}: {source} to {destination} is {way:?} at\n{step:?}"
                );
                for (index, leaves) in leaves.into_iter().enumerate() {
                    let known = is_known(leaves, answers.iter().map(|answer| answer.leaves[index]));
                    assert!(
                        known,
                        "{what}: {source} to {destination} leaves by device {index} as {leaves:?} at\n{step:?}"
                    );
                }
                let known = is_known(pinned, answers.iter().map(|answer| answer.pinned));
                assert!(
                    known,
                    "{what}: {source} to {destination}, pinned, leaves as {pinned:?} at\n{step:?}"
                );
            }
            now = between.clone();
            all.push(between);
        }
    }
    assert!(now == after, "{what}: the plan leads elsewhere");
    all
}

#[test]
fn between_any_two_writes_no_number_is_taken_for_anothers() {
    let mut seen = BTreeSet::new();
    // A node that is an exit, or becomes one, or is one no more.
    let mut others = worlds(false);
    let no_exit = [others.swap_remove(1), others.swap_remove(3)];
    let worlds = [&no_exit[..], &worlds(true)[..]].concat();
    for (from, before) in worlds.iter().enumerate() {
        let current = NetfilterState::of(
            before,
            MarkLayout::new(MarkMask::default()),
            &NetfilterState::default(),
        )
        .unwrap();
        for (to, desired) in worlds.iter().enumerate() {
            let all = check_all(&current, &[before], desired, &format!("{from} → {to}"));
            seen.insert(all.len());
            // Interrupted at any moment, and read again: on to a third state.
            let third = &worlds[(from + to + 1) % worlds.len()];
            for (index, between) in all.iter().enumerate().step_by(all.len() / 3 + 1) {
                let read = NetfilterState::observed(between.sets.clone(), between.tables.clone());
                check_all(
                    &read,
                    &[before, desired],
                    third,
                    &format!("{from} → {to} interrupted at {index} → third"),
                );
            }
        }
    }
    assert!(seen.len() > 5, "plans of many lengths: {seen:?}");
}

/// A masquerade of others that comes first would give the address of an egress policy to nobody:
/// only the node's own may leave, from the first write that knows of the dispute.
#[test]
fn between_any_two_writes_nothing_leaves_with_an_address_that_others_dispute() {
    let layout = MarkLayout::new(MarkMask::default());
    let own = [ip("10.6.0.14"), ip("10.6.0.15")];
    let worlds = worlds(true);
    for (from, before) in worlds.iter().enumerate() {
        let disputed = NetfilterState {
            tolerance: Tolerance {
                sources: true,
                ..Tolerance::default()
            },
            ..NetfilterState::default()
        };
        let current = NetfilterState::of(before, layout, &disputed).unwrap();
        for (to, desired) in worlds.iter().enumerate() {
            let after = NetfilterState::of(desired, layout, &current).unwrap();
            let mut now = current.clone();
            for step in plan(&current, &after, layout).steps {
                for between in intermediate_states(&now, &step) {
                    for pod in ["10.244.0.1", "10.244.0.2"] {
                        let Met { leaves, pinned, .. } = met(&between, pod, "10.6.1.5");
                        for source in leaves.into_iter().chain([pinned]) {
                            let foreign = matches!(source, TraceSource::Address(address) if !own.contains(&address));
                            assert!(
                                !foreign,
                                "{from} → {to}: {pod} leaves as {source:?} at\n{step:?}"
                            );
                        }
                    }
                    now = between;
                }
            }
        }
    }
}

/// The state as a former version left it: the same, with the names of then.
fn former(state: &NetfilterState) -> NetfilterState {
    let name = |text: &String| {
        [
            ("egw-subnets-", "egw-nets-"),
            ("egw-verdicts-", "egw-where-"),
            ("egw-keep-pods-", "egw-keeper-"),
            ("egw-keep-source-", "egw-kept-"),
            ("EGW-SNAT-KEEP", "EGW-AS-SELF"),
            ("EGW-SNAT-", "EGW-AS-"),
            ("EGW-INVALID-UNTRACKED", "EGW-STRAY"),
            ("EGW-ARRIVE-UNPINNED", "EGW-MISSED"),
        ]
        .iter()
        .fold(text.clone(), |text, (now, then)| text.replace(now, then))
    };
    let sets = state
        .sets
        .iter()
        .map(|(set, body)| (name(set), body.clone()));
    let tables = state.tables.iter().map(|(key, table)| {
        let chains = table
            .chains
            .iter()
            .map(|(chain, rules)| (name(chain), rules.iter().map(name).collect()));
        let table = Table {
            chains: chains.collect(),
            jumps: table.jumps.clone(),
        };
        (key.clone(), Arc::new(table))
    });
    NetfilterState::observed(sets.collect(), tables.collect())
}

/// An upgrade alone changes nothing: at each moment a packet meets what it met before. With another
/// change in the same plan it meets the old or the new, or is dropped.
#[test]
fn between_any_two_writes_of_an_upgrade_a_packet_meets_what_it_met_before() {
    let layout = MarkLayout::new(MarkMask::default());
    let mut others = worlds(false);
    let no_exit = [others.swap_remove(1), others.swap_remove(3)];
    let worlds = [&no_exit[..], &worlds(true)[..]].concat();
    for (from, before) in worlds.iter().enumerate() {
        let present = NetfilterState::of(before, layout, &NetfilterState::default()).unwrap();
        let current = former(&present);
        let mut now = current.clone();
        for step in plan(&current, &present, layout).steps {
            for between in intermediate_states(&now, &step) {
                for pod in ["10.244.0.1", "10.244.0.2", "10.244.0.3"] {
                    for to in ["10.6.1.5", "10.6.2.5", "10.9.9.9"] {
                        assert_eq!(
                            met(&between, pod, to),
                            met(&present, pod, to),
                            "{from}: {pod} to {to} at\n{step:?}"
                        );
                    }
                }
                now = between;
            }
        }
        assert!(now == present, "{from}: the plan leads elsewhere");
        for (to, desired) in worlds.iter().enumerate() {
            check_all(
                &current,
                &[before],
                desired,
                &format!("former {from} → {to}"),
            );
        }
    }
}
