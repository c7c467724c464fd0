//! A random cluster, and random packets in it.

use std::net::IpAddr;

use super::{dice::Dice, model::*};

const APPS: [&str; 2] = ["a", "b"];
const TIERS: [&str; 2] = ["front", "back"];
const TEAMS: [&str; 2] = ["red", "blue"];

impl World {
    pub(crate) fn random(dice: &mut Dice) -> Self {
        let nodes: Vec<Node> = (1..=2 + dice.below(3))
            .map(|number| node(number, dice))
            .collect();
        let namespaces: Vec<_> = ["x", "y"]
            .iter()
            .map(|name| {
                (
                    (*name).to_owned(),
                    dice.chance(70).then(|| (*dice.pick(&TEAMS)).to_owned()),
                )
            })
            .collect();
        let pods = (1..=2 + dice.below(4))
            .map(|number| pod(number, &nodes, &namespaces, dice))
            .collect();
        let mut marks = (0x11..=0xff).filter(|mark| *mark != 0x12);
        let gateways: Vec<Gateway> = (1..=1 + dice.below(3))
            .map(|number| gateway(number, &nodes, &mut marks, dice))
            .collect();
        let policies = (0..=dice.below(6))
            .map(|number| policy(number, &nodes, &gateways, dice))
            .collect();
        let default = dice.chance(30).then(|| format!("gw{}", 1 + dice.below(3)));
        Self {
            nodes,
            namespaces,
            pods,
            gateways,
            policies,
            default_gateway: default,
        }
    }

    /// A pod, its address, and a destination of the same family, mostly at the edge of something.
    pub(crate) fn packet(&self, dice: &mut Dice) -> (&Pod, IpAddr, IpAddr) {
        let pod = dice.pick(&self.pods);
        let source = *dice.pick(&pod.addresses);
        let nodes = self.nodes.iter().flat_map(|node| &node.pod_networks);
        let policies: Vec<&Cidr> = self
            .policies
            .iter()
            .flat_map(|policy| policy.destinations.iter().chain(&policy.exceptions))
            .collect();
        let of_family = |cidr: &&&Cidr| cidr.base.is_ipv4() == source.is_ipv4();
        let policies: Vec<Cidr> = policies
            .iter()
            .filter(of_family)
            .map(|cidr| **cidr)
            .collect();
        let cluster: Vec<Cidr> = nodes
            .filter(|cidr| cidr.base.is_ipv4() == source.is_ipv4())
            .copied()
            .collect();
        let anything = Cidr::new(
            if source.is_ipv4() {
                v4(0, 0, 0, 0)
            } else {
                v6("::")
            },
            0,
        );
        let cidr = match dice.below(10) {
            0 => anything,
            1 if !cluster.is_empty() => *dice.pick(&cluster),
            2 => {
                let hosts: Vec<IpAddr> = self
                    .nodes
                    .iter()
                    .flat_map(|node| node.addresses)
                    .flatten()
                    .filter(|a| a.is_ipv4() == source.is_ipv4())
                    .collect();
                hosts.first().map_or(anything, |host| {
                    Cidr::new(*host, if source.is_ipv4() { 32 } else { 128 })
                })
            }
            _ if !policies.is_empty() => *dice.pick(&policies),
            _ => random_cidr(source.is_ipv4(), dice),
        };
        let edges = cidr.interesting(dice);
        let destination = *dice.pick(&edges);
        (pod, source, destination)
    }
}

fn node(number: usize, dice: &mut Dice) -> Node {
    let families = [[true, true], [true, true], [true, false], [false, true]][dice.below(4)];
    let address4 = families[0].then(|| v4(10, 6, 0, 10 + number));
    let address6 = families[1].then(|| v6(&format!("fd00:6::{number}")));
    let mut pod_networks = vec![Cidr::new(v4(10, 244, number, 0), 24)];
    if dice.chance(70) {
        pod_networks.push(Cidr::new(v6(&format!("fd10:{number}::")), 64));
    }
    Node {
        name: format!("n{number}"),
        addresses: [address4, address6],
        pod_networks,
        has_tunnel: dice.chance(95),
        number,
    }
}

fn pod(
    number: usize,
    nodes: &[Node],
    namespaces: &[(String, Option<String>)],
    dice: &mut Dice,
) -> Pod {
    let node = dice.pick(nodes);
    let address4 = v4(
        10,
        244,
        node.number,
        *dice.pick(&[0, 60, 120, 190]) + number,
    );
    let address6 = v6(&format!("fd10:{}::{}", node.number, number));
    let addresses = [
        vec![address4],
        vec![address6],
        vec![address4, address6],
        vec![address4, address6],
    ][dice.below(4)]
    .clone();
    Pod {
        namespace: dice.pick(namespaces).0.clone(),
        name: format!("p{number}"),
        app: (*dice.pick(&APPS)).to_owned(),
        tier: dice.chance(60).then(|| (*dice.pick(&TIERS)).to_owned()),
        node: node.name.clone(),
        addresses,
    }
}

fn gateway(
    number: usize,
    nodes: &[Node],
    marks: &mut impl Iterator<Item = u8>,
    dice: &mut Dice,
) -> Gateway {
    let ecmp = dice.chance(40);
    let mut members: Vec<Member> = Vec::new();
    let turn = dice.below(nodes.len());
    for index in 0..nodes.len() {
        if dice.chance(65) {
            let status = *dice.pick(&["Ready", "Ready", "Ready", "NotReady", "Unknown"]);
            let mark = if dice.chance(60) { marks.next() } else { None };
            members.push(Member {
                node: nodes[(index + turn) % nodes.len()].name.clone(),
                status,
                active: false,
                mark,
            });
        }
    }
    let ready: Vec<usize> = (0..members.len())
        .filter(|index| members[*index].status == "Ready")
        .collect();
    match dice.below(4) {
        0 => {}
        1 | 2 if ecmp => ready.iter().for_each(|index| members[*index].active = true),
        // What the controller chose may be stale.
        3 if !members.is_empty() => {
            let index = dice.below(members.len());
            members[index].active = true;
        }
        _ if !ready.is_empty() => members[*dice.pick(&ready)].active = true,
        _ => {}
    }
    Gateway {
        name: format!("gw{number}"),
        is_valid: dice.chance(95),
        mark: if dice.chance(93) { marks.next() } else { None },
        ecmp,
        nat: *dice.pick(&[Nat::NodeAddress, Nat::NodeAddress, Nat::EgressIp, Nat::Keep]),
        members,
    }
}

fn random_cidr(is_v4: bool, dice: &mut Dice) -> Cidr {
    if is_v4 {
        let length = *dice.pick(&[8, 16, 22, 23, 24, 25, 28, 30, 31, 32, 32]);
        Cidr::new(
            v4(
                10,
                *dice.pick(&[6, 6, 6, 7, 244]),
                dice.below(4),
                dice.below(256),
            ),
            length,
        )
    } else {
        let length = *dice.pick(&[16, 48, 64, 112, 120, 127, 128]);
        Cidr::new(
            v6(&format!(
                "fd00:{}::{:x}:{:x}",
                dice.pick(&[6, 6, 7]),
                dice.below(3),
                dice.below(512)
            )),
            length,
        )
    }
}

fn policy(number: usize, nodes: &[Node], gateways: &[Gateway], dice: &mut Dice) -> Policy {
    let cidrs = |most: usize, dice: &mut Dice| -> Vec<Cidr> {
        (0..dice.below(most + 1))
            .map(|_| {
                let is_v4 = dice.chance(65);
                random_cidr(is_v4, dice)
            })
            .collect()
    };
    let named = dice.chance(75).then(|| dice.pick(gateways).name.clone());
    let gateway = if dice.chance(5) {
        Some("gw9".to_owned())
    } else {
        named
    };
    let egress = |dice: &mut Dice| {
        let address4 = v4(10, 6, 1, 60 + dice.below(2));
        let address6 = v6("fd00:6::60");
        [
            vec![],
            vec![],
            vec![],
            vec![address4],
            vec![address6],
            vec![address4, address6],
        ][dice.below(6)]
        .clone()
    };
    let asked = if dice.chance(15) {
        egress(dice)
    } else {
        Vec::new()
    };
    let given = if !asked.is_empty() && dice.chance(60) {
        asked.clone()
    } else {
        egress(dice)
    };
    Policy {
        name: format!("{}{number}", dice.pick(&["p", "q"])),
        gateway,
        is_valid: dice.chance(95),
        subject: subject(nodes, dice),
        destinations: cidrs(4, dice),
        exceptions: cidrs(2, dice),
        priority: dice.chance(40).then(|| *dice.pick(&[1, 500, 1000, 2000])),
        created: *dice.pick(&[1_700_000_000, 1_700_000_000, 1_700_000_001, 1_600_000_000]),
        asked,
        given,
        owner: dice.chance(85).then(|| dice.pick(nodes).name.clone()),
    }
}

fn subject(nodes: &[Node], dice: &mut Dice) -> Subject {
    if dice.chance(35) {
        let node = dice.pick(nodes).number;
        let length = *dice.pick(&[16, 23, 24, 25, 26, 32]);
        let subnet4 = Cidr::new(v4(10, 244, node, dice.below(256)), length);
        let subnet6 = Cidr::new(
            v6(&format!("fd10:{node}::{}", dice.below(7))),
            *dice.pick(&[16, 64, 126, 128]),
        );
        return Subject::Subnets(
            [vec![subnet4], vec![subnet6], vec![subnet4, subnet6]][dice.below(3)].clone(),
        );
    }
    let tiers = |dice: &mut Dice| vec![(*dice.pick(&TIERS)).to_owned()];
    let tier = match dice.below(8) {
        0 => Some(Tier::In(tiers(dice))),
        1 => Some(Tier::NotIn(tiers(dice))),
        2 => Some(Tier::Exists),
        3 => Some(Tier::DoesNotExist),
        _ => None,
    };
    let team = dice.chance(15).then(|| (*dice.pick(&TEAMS)).to_owned());
    Subject::Labels {
        app: (*dice.pick(&APPS)).to_owned(),
        tier,
        team,
    }
}
