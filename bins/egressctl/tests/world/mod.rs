//! A small random cluster: plain values, and the manifest that says the same.

use std::{
    fmt::Write,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// SplitMix64: the same seed gives the same world for ever.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def0)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }

    pub(crate) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) name: String,
    /// IPv4 and IPv6 address; at least one.
    pub(crate) addresses: [Option<IpAddr>; 2],
    pub(crate) pod_networks: Vec<Cidr>,
    /// Whether it has an EgressNode with everything.
    pub(crate) has_tunnel: bool,
    number: usize,
}

/// A prefix, as text and as what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cidr {
    pub(crate) base: IpAddr,
    pub(crate) length: u8,
}

#[derive(Clone, Debug)]
pub(crate) struct Pod {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) app: String,
    pub(crate) tier: Option<String>,
    pub(crate) node: String,
    pub(crate) addresses: Vec<IpAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nat {
    NodeAddress,
    EgressIp,
    Keep,
}

#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) node: String,
    pub(crate) status: &'static str,
    pub(crate) active: bool,
    pub(crate) mark: Option<u8>,
}

#[derive(Clone, Debug)]
pub(crate) struct Gateway {
    pub(crate) name: String,
    pub(crate) is_valid: bool,
    pub(crate) mark: Option<u8>,
    pub(crate) ecmp: bool,
    pub(crate) nat: Nat,
    pub(crate) members: Vec<Member>,
}

#[derive(Clone, Debug)]
pub(crate) enum Subject {
    /// Label `app`, a demand on `tier`, and label `team` of the namespace.
    Labels {
        app: String,
        tier: Option<Tier>,
        team: Option<String>,
    },
    Subnets(Vec<Cidr>),
}

#[derive(Clone, Debug)]
pub(crate) enum Tier {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
}

#[derive(Clone, Debug)]
pub(crate) struct Policy {
    pub(crate) name: String,
    pub(crate) gateway: Option<String>,
    pub(crate) is_valid: bool,
    pub(crate) subject: Subject,
    pub(crate) destinations: Vec<Cidr>,
    pub(crate) exceptions: Vec<Cidr>,
    pub(crate) priority: Option<u32>,
    /// Seconds since 1970.
    pub(crate) created: i64,
    pub(crate) asked: Vec<IpAddr>,
    pub(crate) given: Vec<IpAddr>,
    pub(crate) owner: Option<String>,
}

#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) nodes: Vec<Node>,
    /// Name and label `team`.
    pub(crate) namespaces: Vec<(String, Option<String>)>,
    pub(crate) pods: Vec<Pod>,
    pub(crate) gateways: Vec<Gateway>,
    pub(crate) policies: Vec<Policy>,
    pub(crate) default_gateway: Option<String>,
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.base, self.length)
    }
}

impl Cidr {
    fn new(address: IpAddr, length: u8) -> Self {
        let base = match address {
            IpAddr::V4(a) => Ipv4Addr::from(
                u32::from(a) & u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0),
            )
            .into(),
            IpAddr::V6(a) => Ipv6Addr::from(
                u128::from(a) & u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0),
            )
            .into(),
        };
        Self { base, length }
    }

    /// First and last address, those just outside, and one inside.
    fn interesting(self, dice: &mut Dice) -> [IpAddr; 5] {
        let inside = u128::from(dice.next());
        match self.base {
            IpAddr::V4(base) => {
                let (base, host) = (
                    u32::from(base),
                    u32::MAX.checked_shr(self.length.into()).unwrap_or(0),
                );
                let inside = u32::try_from(inside & u128::from(host)).unwrap();
                [
                    base,
                    base | host,
                    base.wrapping_sub(1),
                    (base | host).wrapping_add(1),
                    base | inside,
                ]
                .map(|a| Ipv4Addr::from(a).into())
            }
            IpAddr::V6(base) => {
                let (base, host) = (
                    u128::from(base),
                    u128::MAX.checked_shr(self.length.into()).unwrap_or(0),
                );
                [
                    base,
                    base | host,
                    base.wrapping_sub(1),
                    (base | host).wrapping_add(1),
                    base | (inside & host),
                ]
                .map(|a| Ipv6Addr::from(a).into())
            }
        }
    }
}

fn v4(a: usize, b: usize, c: usize, d: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(
        [a, b, c, d].map(|octet| u8::try_from(octet).unwrap()),
    ))
}

fn v6(text: &str) -> IpAddr {
    IpAddr::V6(text.parse().unwrap())
}

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

    /// The same as a manifest, statuses included.
    pub(crate) fn manifest(&self) -> String {
        let mut text = String::from("apiVersion: v1\nkind: List\nitems:\n");
        for (name, team) in &self.namespaces {
            let labels = team
                .as_ref()
                .map_or(String::new(), |team| format!("team: {team}"));
            writeln!(text, "- {{apiVersion: v1, kind: Namespace, metadata: {{name: {name}, labels: {{{labels}}}}}}}").unwrap();
        }
        for item in self
            .nodes
            .iter()
            .map(Node::manifest)
            .chain(self.pods.iter().map(Pod::manifest))
        {
            text.push_str(&item);
        }
        for item in self
            .gateways
            .iter()
            .map(Gateway::manifest)
            .chain(self.policies.iter().map(Policy::manifest))
        {
            text.push_str(&item);
        }
        text
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

fn list(cidrs: &[Cidr]) -> String {
    cidrs
        .iter()
        .map(|cidr| format!("\"{cidr}\""))
        .collect::<Vec<_>>()
        .join(", ")
}

fn by_family(addresses: &[IpAddr]) -> String {
    let entry = |address: &IpAddr| {
        format!(
            "{}: \"{address}\"",
            if address.is_ipv4() { "ipv4" } else { "ipv6" }
        )
    };
    addresses.iter().map(entry).collect::<Vec<_>>().join(", ")
}

fn mark(mark: Option<u8>) -> String {
    mark.map_or(String::new(), |mark| {
        format!(", mark: {}", u32::from(mark) << 24)
    })
}

impl Node {
    /// Its addresses in the overlay.
    pub(crate) fn overlay(&self) -> Vec<IpAddr> {
        let (number, has) = (self.number, |family: usize| {
            self.has_tunnel && self.addresses[family].is_some()
        });
        let v4 = has(0).then(|| v4(172, 31, 0, number));
        v4.into_iter()
            .chain(has(1).then(|| v6(&format!("fd31::{number}"))))
            .collect()
    }

    fn manifest(&self) -> String {
        let addresses: Vec<_> = self
            .addresses
            .iter()
            .flatten()
            .map(|a| format!("{{type: InternalIP, address: \"{a}\"}}"))
            .collect();
        let mut text = format!(
            "- {{apiVersion: v1, kind: Node, metadata: {{name: {}}}, spec: {{podCIDRs: [{}]}}, status: {{addresses: [{}]}}}}\n",
            self.name,
            list(&self.pod_networks),
            addresses.join(", ")
        );
        if self.has_tunnel {
            let number = self.number;
            let mut status = format!("tunnelMac: \"02:00:00:00:00:0{number}\"");
            if let Some(address) = self.addresses[0] {
                write!(
                    status,
                    ", vxlanIPv4IP: \"172.31.0.{number}/16\", physicalInterfaceIPv4: \"{address}\""
                )
                .unwrap();
            }
            if let Some(address) = self.addresses[1] {
                write!(
                    status,
                    ", vxlanIPv6IP: \"fd31::{number}/112\", physicalInterfaceIPv6: \"{address}\""
                )
                .unwrap();
            }
            let head = "apiVersion: egressgateway.spidernet.io/v1, kind: EgressNode";
            writeln!(
                text,
                "- {{{head}, metadata: {{name: {}}}, spec: {{}}, status: {{{status}}}}}",
                self.name
            )
            .unwrap();
        }
        text
    }
}

impl Pod {
    fn manifest(&self) -> String {
        let tier = self
            .tier
            .as_ref()
            .map_or(String::new(), |tier| format!(", tier: {tier}"));
        let ips: Vec<_> = self
            .addresses
            .iter()
            .map(|address| format!("{{ip: \"{address}\"}}"))
            .collect();
        format!(
            "- {{apiVersion: v1, kind: Pod, metadata: {{name: {}, namespace: {}, labels: {{app: {}{tier}}}}}, spec: {{nodeName: {}, containers: []}}, status: {{podIPs: [{}]}}}}\n",
            self.name,
            self.namespace,
            self.app,
            self.node,
            ips.join(", ")
        )
    }
}

impl Gateway {
    fn manifest(&self) -> String {
        let member = |member: &Member| {
            format!(
                "{{name: {}, status: {}, active: {}{}}}",
                member.node,
                member.status,
                member.active,
                mark(member.mark)
            )
        };
        let members: Vec<_> = self.members.iter().map(member).collect();
        let nodes = if self.is_valid {
            "{matchLabels: {egress: \"true\"}}"
        } else {
            "{}"
        };
        let nat = match self.nat {
            Nat::NodeAddress => "",
            Nat::EgressIp => {
                ", sourceNAT: EgressIP, egressIPs: {ipv4: [\"10.6.1.60-10.6.1.66\"], ipv6: [\"fd00:6::60\"]}"
            }
            Nat::Keep => ", sourceNAT: None",
        };
        format!(
            "- {{apiVersion: egressgateway.spidernet.io/v1, kind: EgressGateway, metadata: {{name: {}}}, spec: {{nodeSelector: {nodes}{nat}}}, status: {{forwardMethod: {}, nodeList: [{}]{}}}}}\n",
            self.name,
            if self.ecmp { "ecmp" } else { "active-passive" },
            members.join(", "),
            mark(self.mark)
        )
    }
}

impl Policy {
    fn manifest(&self) -> String {
        let subject = match &self.subject {
            Subject::Labels { app, tier, team } => {
                let expression = tier.as_ref().map_or(String::new(), |tier| {
                    let (operator, values) = match tier {
                        Tier::In(values) => ("In", values.join(", ")),
                        Tier::NotIn(values) => ("NotIn", values.join(", ")),
                        Tier::Exists => ("Exists", String::new()),
                        Tier::DoesNotExist => ("DoesNotExist", String::new()),
                    };
                    format!(", matchExpressions: [{{key: tier, operator: {operator}, values: [{values}]}}]")
                });
                let team = team.as_ref().map_or(String::new(), |team| {
                    format!(", namespaceSelector: {{matchLabels: {{team: {team}}}}}")
                });
                format!("podSelector: {{matchLabels: {{app: {app}}}{expression}}}{team}")
            }
            Subject::Subnets(subnets) => {
                let entry = |cidr: &Cidr| {
                    format!(
                        "{}: \"{cidr}\"",
                        if cidr.base.is_ipv4() {
                            "ipv4PodSubnet"
                        } else {
                            "ipv6PodSubnet"
                        }
                    )
                };
                subnets.iter().map(entry).collect::<Vec<_>>().join(", ")
            }
        };
        let mut spec = format!(
            "appliedTo: {{{subject}}}, destCIDR: [{}], exceptCIDR: [{}]",
            list(&self.destinations),
            list(&self.exceptions)
        );
        if let Some(gateway) = &self.gateway {
            write!(spec, ", egressGatewayName: {gateway}").unwrap();
        }
        if let Some(priority) = self.priority {
            write!(spec, ", priority: {priority}").unwrap();
        }
        if !self.asked.is_empty() {
            write!(spec, ", egressIP: {{{}}}", by_family(&self.asked)).unwrap();
        }
        if !self.is_valid {
            spec = spec.replacen("destCIDR: [", "destCIDR: [nonsense, ", 1);
        }
        let owner = self
            .owner
            .as_ref()
            .map_or(String::new(), |node| format!(", node: {node}"));
        let created = match self.created {
            1_600_000_000 => "2020-09-13T12:26:40Z",
            1_700_000_000 => "2023-11-14T22:13:20Z",
            _ => "2023-11-14T22:13:21Z",
        };
        format!(
            "- {{apiVersion: egressgateway.spidernet.io/v1, kind: EgressGatewayPolicy, metadata: {{name: {}, creationTimestamp: \"{created}\"}}, spec: {{{spec}}}, status: {{egressIP: {{{}}}{owner}}}}}\n",
            self.name,
            by_family(&self.given)
        )
    }
}
