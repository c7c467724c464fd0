//! What can happen.

use serde::{Deserialize, Serialize};

/// Nodes of the stage, by number: two clients, two gateways.
pub(super) const NODES: [&str; 4] = ["client-1", "client-2", "gateway-1", "gateway-2"];
/// Pods that there may be at a time.
pub(super) const PODS: usize = 5;
/// Policies that there may be at a time.
pub(super) const POLICIES: usize = 3;
/// Forms of policies and of gateways.
pub(super) const POLICY_SHAPES: usize = 8;
pub(super) const GATEWAY_SHAPES: usize = 5;
/// Addresses of somebody that a node may have beside its own.
pub(super) const ADDRESSES: usize = 4;
/// Events between two calms.
const ROUND: usize = 12;

/// One thing that happens. Numbers stand for nodes, pods and so on; each list of events means
/// something, so that any part of one does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "event")]
#[allow(missing_docs)]
pub enum Event {
    /// Everything is healed, and judged.
    Calm,
    /// So many milliseconds pass.
    Pause { milliseconds: u64 },
    /// A policy is made or changed.
    Policy { policy: usize, shape: usize },
    /// A policy is deleted.
    NoPolicy { policy: usize },
    /// The gateway is made or changed.
    Gateway { shape: usize },
    /// The gateway is deleted.
    NoGateway,
    /// A pod is made; one of that number goes before.
    Pod {
        pod: usize,
        node: usize,
        governed: bool,
    },
    /// A pod is deleted.
    NoPod { pod: usize },
    /// A pod's label changes.
    Label { pod: usize, governed: bool },
    /// The label of the pods' namespace changes.
    Namespace { chosen: bool },
    /// A node becomes a gateway, or none.
    Member { node: usize, is: bool },
    /// A node is Ready, or is not.
    Ready { node: usize, is: bool },
    /// A node is cordoned, or is not.
    Cordon { node: usize, is: bool },
    /// A node is drained of egress, or is not.
    Drain { node: usize, is: bool },
    /// Somebody wants a policy's addresses on a node.
    Move { policy: usize, node: usize },
    /// A node's connection tracking forgets everything.
    Forget { node: usize },
    /// Somebody takes pods out of connection tracking.
    Untrack { node: usize },
    /// Somebody's masquerade comes before all others.
    Masquerade { node: usize },
    /// Somebody's address comes to a node's device, or goes: such as a control plane's virtual one.
    Address {
        node: usize,
        address: usize,
        is: bool,
    },
    /// Somebody forwards nothing.
    Firewall { node: usize },
    /// Our rules are deleted.
    NoRules { node: usize },
    /// The tunnel's device is deleted.
    NoTunnel { node: usize },
    /// Our routes are flushed.
    NoRoutes { node: usize },
    /// A node loses its cable to the underlay.
    Cut { node: usize },
    /// A node loses every cable.
    PowerOff { node: usize },
    /// A node loses the API server.
    Unmanaged { node: usize },
    /// All cables are put back.
    Restore,
    /// The next requests meet a fault: 409, 410, a hang or a reset.
    Fault { fault: usize },
    /// An agent, or with number 4 the controller, is killed.
    Kill { daemon: usize },
    /// The same, asked to end.
    Stop { daemon: usize },
    /// Daemons that do not run are started.
    Start,
    /// Another configuration is in the file.
    Configure { variant: usize },
}

impl Event {
    /// Its name, as in files.
    #[must_use]
    pub fn kind(&self) -> String {
        let value = serde_json::to_value(self).unwrap_or_default();
        value["event"].as_str().unwrap_or_default().to_owned()
    }
}

/// Numbers that look random and follow from a seed (SplitMix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let z = z ^ (z >> 31);
        usize::try_from(z % sides.max(1) as u64).unwrap_or_default()
    }

    fn even(&mut self) -> bool {
        self.roll(2) == 0
    }
}

/// So many events of a seed, calms not counted. They begin with a cluster in which something is
/// governed.
#[must_use]
pub fn events(seed: u64, count: usize) -> Vec<Event> {
    let mut dice = Dice(seed);
    let mut events = vec![
        Event::Gateway {
            shape: dice.roll(GATEWAY_SHAPES),
        },
        Event::Policy {
            policy: 0,
            shape: dice.roll(2),
        },
    ];
    events.extend((0..PODS - 1).map(|pod| Event::Pod {
        pod,
        node: [0, 2, 1, 0][pod % 4],
        governed: pod < 3,
    }));
    events.push(Event::Calm);
    for number in 1..=count {
        events.push(one(&mut dice));
        if number % ROUND == 0 {
            events.push(Event::Calm);
        }
    }
    events
}

fn one(dice: &mut Dice) -> Event {
    let (node, gateway) = (dice.roll(NODES.len()), 2 + dice.roll(2));
    let (pod, policy) = (dice.roll(PODS), dice.roll(POLICIES));
    match dice.roll(40) {
        0..=3 => Event::Policy {
            policy,
            shape: dice.roll(POLICY_SHAPES),
        },
        4 => Event::NoPolicy { policy },
        5 | 6 => Event::Gateway {
            shape: dice.roll(GATEWAY_SHAPES),
        },
        7 => Event::NoGateway,
        8 | 9 => Event::Pod {
            pod,
            node,
            governed: dice.roll(3) > 0,
        },
        10 => Event::NoPod { pod },
        11 | 12 => Event::Label {
            pod,
            governed: dice.even(),
        },
        13 => Event::Namespace {
            chosen: dice.roll(3) > 0,
        },
        14 => Event::Member {
            node: gateway,
            is: dice.roll(3) > 0,
        },
        15 => Event::Ready {
            node: gateway,
            is: dice.roll(3) > 0,
        },
        16 => Event::Cordon {
            node: gateway,
            is: dice.even(),
        },
        17 => Event::Drain {
            node: gateway,
            is: dice.roll(3) == 0,
        },
        18 => Event::Move {
            policy,
            node: gateway,
        },
        19..=21 => Event::Forget { node },
        22 => Event::Untrack { node },
        23 => Event::Masquerade { node },
        24 => Event::Firewall { node },
        25 => Event::NoRules { node },
        26 => Event::NoTunnel { node },
        27 => Event::NoRoutes { node },
        28 => Event::Cut { node },
        29 => Event::PowerOff { node: gateway },
        30 => Event::Unmanaged { node },
        31 => Event::Restore,
        32 | 33 => Event::Fault {
            fault: dice.roll(5),
        },
        34 => Event::Kill {
            daemon: dice.roll(5),
        },
        35 => Event::Stop {
            daemon: dice.roll(5),
        },
        36 => Event::Start,
        37 => Event::Configure {
            variant: dice.roll(3),
        },
        38 => {
            // One number, as for a pause: what else a seed says stays.
            let number = dice.roll(400);
            Event::Address {
                node: gateway,
                address: number % ADDRESSES,
                is: !number.is_multiple_of(3),
            }
        }
        _ => Event::Pause {
            milliseconds: dice.roll(400) as u64,
        },
    }
}
