//! Port blocks: which ports of an egress address each node alone translates to, where gateways
//! leave that to the pods' own nodes.
//!
//! What a node has and still wants, it keeps: its connections depend on it. So blocks are not moved
//! together to make room, and what is free may be in pieces.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{Cluster, assignment::EgressIpAssignment, list};
use crate::{
    PolicyDesired,
    api::{AddressPorts, NatMode},
    model::{NodeName, PolicyName, PortBlock, fnv1a64},
};

/// How many times the ports of a start a node may have of an address in the end.
const GROWTH: u16 = 4;

/// Who has which ports of the addresses that are in use.
#[derive(Debug, Default)]
pub(super) struct PortBlocks {
    given: BTreeMap<NodeName, BTreeMap<IpAddr, BTreeSet<PortBlock>>>,
    /// Nodes that have none at all.
    waiting: BTreeMap<IpAddr, Vec<NodeName>>,
}

impl PortBlocks {
    /// As a node's status says it.
    pub(super) fn of(&self, node: &NodeName) -> Vec<AddressPorts> {
        let ports = |(address, blocks): (&IpAddr, &BTreeSet<PortBlock>)| {
            let address = address.to_string();
            blocks
                .iter()
                .map(|block| AddressPorts {
                    address: address.clone(),
                    first: block.first(),
                    last: block.last(),
                })
                .collect::<Vec<_>>()
        };
        self.given
            .get(node)
            .into_iter()
            .flatten()
            .flat_map(ports)
            .collect()
    }

    /// Why pods of some nodes can't leave with one of these addresses.
    pub(super) fn refusal(&self, addresses: &BTreeSet<IpAddr>) -> Option<(&'static str, String)> {
        let exhausted = |address: &IpAddr| Some((*address, self.waiting.get(address)?));
        let (address, nodes) = addresses.iter().find_map(exhausted)?;
        Some((
            "PortsExhausted",
            format!(
                "no ports of {address} are left for {}: what pods there send is held; divide the pods among more policies, or set a smaller \
                 spec.portsPerNode, which counts for blocks that are given from then on",
                list(nodes)
            ),
        ))
    }
}

/// Gives the ports of all addresses that pods' own nodes translate to.
pub(super) fn give(
    cluster: &Cluster,
    assignments: &BTreeMap<PolicyName, EgressIpAssignment>,
) -> PortBlocks {
    let mut blocks = PortBlocks::default();
    for (address, limit) in limits(cluster, assignments) {
        let asking = cluster.egress_nodes.iter().filter_map(|(name, node)| {
            let uid = &cluster.nodes.get(name)?.uid;
            let units = *node.wanted.get(&address).filter(|units| **units > 0)?;
            Some(Asking {
                name,
                seed: if uid.is_empty() { name.as_str() } else { uid },
                units: match units.min(limit) {
                    0 => 0,
                    units => units.next_power_of_two(),
                },
                before: node.blocks.get(&address),
                held: BTreeSet::new(),
            })
        });
        let mut asking: Vec<Asking> = asking.collect();
        share_out(address, &mut asking);
        for node in asking {
            if !node.held.is_empty() {
                let given = blocks.given.entry(node.name.clone()).or_default();
                given.insert(address, node.held);
            } else if node.units > 0 {
                blocks
                    .waiting
                    .entry(address)
                    .or_default()
                    .push(node.name.clone());
            }
        }
    }
    blocks
}

/// The addresses that are in use, and how many units of each a node may have. Nobody gets more of
/// those whose gateway can't be understood: whoever has some keeps them, because connections that
/// exist go on.
fn limits(
    cluster: &Cluster,
    assignments: &BTreeMap<PolicyName, EgressIpAssignment>,
) -> BTreeMap<IpAddr, u16> {
    let mut limits = BTreeMap::new();
    for assignment in assignments.values() {
        let limit = match cluster
            .gateways
            .get(&assignment.gateway)
            .map(|gateway| &gateway.spec)
        {
            Some(Ok(spec)) if spec.nat == NatMode::Distributed => {
                spec.units_per_node.saturating_mul(GROWTH)
            }
            Some(Ok(_)) | None => continue,
            Some(Err(_)) => 0,
        };
        limits.extend(assignment.addresses.iter().map(|address| (*address, limit)));
    }
    limits
}

/// A node that wants ports of an address.
struct Asking<'a> {
    name: &'a NodeName,
    /// What is its own for good.
    seed: &'a str,
    /// How many units it may have in all.
    units: u16,
    /// What it had.
    before: Option<&'a BTreeSet<PortBlock>>,
    /// What it has.
    held: BTreeSet<PortBlock>,
}

impl Asking<'_> {
    fn missing(&self) -> u16 {
        let held: u16 = self.held.iter().map(|block| block.len()).sum();
        self.units.saturating_sub(held)
    }

    /// The smallest block that is worth having. One node has few blocks, so a further one is as
    /// large as all that it has, or as all that is missing.
    fn least(&self) -> u16 {
        let held: u16 = self.held.iter().map(|block| block.len()).sum();
        held.min(self.missing()).max(1)
    }
}

/// Shares out one address among the nodes that ask, which come in order of their names.
fn share_out(address: IpAddr, asking: &mut [Asking]) {
    let mut free = Free::default();
    for node in &mut *asking {
        let before = node.before.into_iter().flatten().copied();
        // Where two say the same, because somebody meddled, the first by name keeps it.
        let kept = before.filter(|block| free.take(*block));
        node.held = kept.take(PolicyDesired::MAX_BLOCKS).collect();
    }
    // What pods of a node with none send is held, so these nodes come first.
    for node in asking.iter_mut().filter(|node| node.held.is_empty()) {
        serve(address, node, &mut free);
    }
    for node in asking {
        while node.held.len() < PolicyDesired::MAX_BLOCKS && serve(address, node, &mut free) {}
    }
}

/// Gives a node the largest block that it can use; false: there is none.
fn serve(address: IpAddr, node: &mut Asking, free: &mut Free) -> bool {
    let Some(exponent) = node.missing().checked_ilog2() else {
        return false;
    };
    let sizes = (0..=exponent).rev().map(|exponent| 1 << exponent);
    let least = node.least();
    let mut found = sizes
        .take_while(|size| *size >= least)
        .filter_map(|size| free.best(size, address, node.seed));
    let Some(block) = found.next() else {
        return false;
    };
    free.take(block) && node.held.insert(block)
}

/// The units of an address that nobody has.
struct Free {
    units: [bool; 1 << u8::BITS],
    left: u16,
}

impl Default for Free {
    fn default() -> Self {
        Self {
            units: [true; 1 << u8::BITS],
            left: PortBlock::UNITS,
        }
    }
}

impl Free {
    fn has(&self, block: PortBlock) -> bool {
        block.units().all(|unit| self.units[usize::from(unit)])
    }

    /// False: it is not free.
    fn take(&mut self, block: PortBlock) -> bool {
        let has = self.has(block);
        if has {
            block
                .units()
                .for_each(|unit| self.units[usize::from(unit)] = false);
            self.left -= block.len();
        }
        has
    }

    /// The free block of so many units, a power of two, that begins at a multiple of them, and has
    /// the smallest hash: what was given back a moment ago is rarely the next to be given.
    fn best(&self, size: u16, address: IpAddr, seed: &str) -> Option<PortBlock> {
        if self.left < size {
            return None;
        }
        let block = |first: u8| {
            let last = first.checked_add(u8::try_from(size - 1).ok()?)?;
            PortBlock::of_units(first, last)
        };
        // What differs comes first: the last bytes hardly touch the upper bits of this hash.
        let rank = |block: &PortBlock| {
            let text = format!("{} {address} {seed}", block.first());
            (fnv1a64(text.as_bytes()), *block)
        };
        (0..=u8::MAX)
            .step_by(usize::from(size))
            .filter_map(block)
            .filter(|block| self.has(*block))
            .min_by_key(rank)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        api::{EgressGateway, EgressGatewaySpec, EgressIps, SourceNatMode},
        model::{GatewayName, MarkMask},
        world::{EgressNode, Gateway, Node},
    };

    const GATEWAY: &str = "gw";

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 6, 1, last])
    }

    fn block(first: u8, last: u8) -> PortBlock {
        PortBlock::of_units(first, last).unwrap()
    }

    /// A cluster, and what was decided about it up to now.
    #[derive(Clone)]
    struct World {
        cluster: Cluster,
        assignments: BTreeMap<PolicyName, EgressIpAssignment>,
    }

    impl World {
        /// One gateway, and a policy for each of these addresses.
        fn new<const N: usize>(ports_per_node: u16, addresses: [u8; N]) -> Self {
            let mut world = Self {
                cluster: Cluster::default(),
                assignments: BTreeMap::new(),
            };
            world.gateway(Some(ports_per_node));
            for last in addresses {
                let assignment = EgressIpAssignment {
                    gateway: GATEWAY.into(),
                    addresses: [address(last)].into(),
                    node: None,
                    candidate: None,
                    gone: None,
                    in_use: String::new(),
                    refusals: Vec::new(),
                };
                let policy = PolicyName::from(format!("p{last}"));
                world.assignments.insert(policy, assignment);
            }
            world
        }

        /// None: the gateway translates itself.
        fn gateway(&mut self, ports_per_node: Option<u16>) {
            let spec = EgressGatewaySpec {
                source_nat: Some(SourceNatMode::EgressIp),
                egress_ips: Some(EgressIps {
                    ipv4: vec!["10.6.1.0-10.6.1.255".to_owned()],
                    ..EgressIps::default()
                }),
                nat: ports_per_node.map(|_| NatMode::Distributed),
                ports_per_node,
                ..EgressGatewaySpec::default()
            };
            let mut gateway = EgressGateway::new(GATEWAY, spec);
            gateway.spec.node_selector.match_labels =
                Some([("a".to_owned(), "b".to_owned())].into());
            let gateway = Gateway::from_api(&gateway, MarkMask::default());
            assert_eq!(gateway.spec.as_ref().err(), None);
            let name = GatewayName::from(GATEWAY);
            self.cluster.gateways.insert(name, gateway);
        }

        fn node(&mut self, name: &str) -> &mut EgressNode {
            let name = NodeName::from(name);
            let node = Node {
                uid: format!("uid of {name}"),
                ..Node::default()
            };
            self.cluster.nodes.entry(name.clone()).or_insert(node);
            self.cluster.egress_nodes.entry(name).or_default()
        }

        fn gone(&mut self, name: &str) {
            self.cluster.nodes.remove(&NodeName::from(name));
            self.cluster.egress_nodes.remove(&NodeName::from(name));
        }

        /// Plans and writes; planning again changes nothing.
        fn settle(&mut self) -> PortBlocks {
            let blocks = self.give();
            for (name, node) in &mut self.cluster.egress_nodes {
                node.blocks = blocks.given.get(name).cloned().unwrap_or_default();
            }
            let again = self.give();
            assert_eq!(again.given, blocks.given);
            assert_eq!(again.waiting, blocks.waiting);
            blocks
        }

        fn give(&self) -> PortBlocks {
            let blocks = give(&self.cluster, &self.assignments);
            let again = give(&self.clone().cluster, &self.assignments);
            assert_eq!(
                (&again.given, &again.waiting),
                (&blocks.given, &blocks.waiting)
            );
            for last in 0..=u8::MAX {
                let held = blocks
                    .given
                    .values()
                    .filter_map(|of| of.get(&address(last)));
                let units: Vec<u8> = held.flatten().flat_map(|block| block.units()).collect();
                let distinct: BTreeSet<&u8> = units.iter().collect();
                assert_eq!(distinct.len(), units.len(), "a port with two nodes");
            }
            blocks
        }

        /// What a node has of an address.
        fn of(&self, name: &str, last: u8) -> Vec<PortBlock> {
            let node = &self.cluster.egress_nodes[&NodeName::from(name)];
            node.blocks
                .get(&address(last))
                .into_iter()
                .flatten()
                .copied()
                .collect()
        }
    }

    fn units(blocks: &[PortBlock]) -> u16 {
        blocks.iter().map(|block| block.len()).sum()
    }

    #[test]
    fn of_300_nodes_252_have_a_unit_of_an_address_and_the_first_that_waits_has_the_next_one() {
        let mut world = World::new(256, [1]);
        let names: Vec<String> = (0..300).map(|number| format!("n{number:03}")).collect();
        for name in &names {
            world.node(name).wanted = [(address(1), 1)].into();
        }
        let blocks = world.settle();
        assert_eq!(blocks.given.len(), 252);
        let waiting: Vec<NodeName> = names[252..]
            .iter()
            .map(|name| name.as_str().into())
            .collect();
        assert_eq!(blocks.waiting, [(address(1), waiting)].into());
        let (reason, message) = blocks.refusal(&[address(1)].into()).unwrap();
        assert_eq!(reason, "PortsExhausted");
        assert!(
            message.starts_with(
                "no ports of 10.6.1.1 are left for n252, n253, n254, n255, n256 and 43 more: "
            ),
            "{message}"
        );
        assert_eq!(blocks.refusal(&[address(2)].into()), None);
        let before = world.clone();
        world.gone("n100");
        world.settle();
        for name in names
            .iter()
            .filter(|name| !["n100", "n252"].contains(&name.as_str()))
        {
            assert_eq!(world.of(name, 1), before.of(name, 1), "{name}");
        }
        assert_eq!(world.of("n252", 1), before.of("n100", 1));
    }

    #[test]
    fn a_block_begins_at_a_multiple_of_its_length_and_whoever_comes_last_gets_what_is_left() {
        for (ports, nodes, left) in [(1024, 63_u16, 0), (4096, 15, 8), (16384, 3, 32)] {
            let mut world = World::new(ports, [1]);
            for number in 0..=nodes {
                let wanted = [(address(1), ports / 256)];
                world.node(&format!("n{number:03}")).wanted = wanted.into();
            }
            let blocks = world.settle();
            let full = (0..nodes).filter(|number| {
                let held = world.of(&format!("n{number:03}"), 1);
                held.len() == 1
                    && held[0].len() == ports / 256
                    && held[0].first().is_multiple_of(ports)
            });
            assert_eq!(full.count(), usize::from(nodes), "{ports}");
            let rest = world.of(&format!("n{nodes:03}"), 1);
            assert_eq!(units(&rest), left, "{ports}");
            assert_eq!(blocks.waiting.len(), usize::from(left == 0));
        }
    }

    #[test]
    fn a_node_that_wants_more_keeps_what_it_has_and_gets_up_to_four_blocks() {
        let mut world = World::new(1024, [1]);
        let mut before = Vec::new();
        for (wanted, has, count) in [(4, 4, 1), (8, 8, 2), (16, 16, 3), (100, 16, 3), (2, 16, 3)] {
            world.node("a").wanted = [(address(1), wanted)].into();
            world.settle();
            let held = world.of("a", 1);
            assert_eq!((units(&held), held.len()), (has, count), "{wanted}");
            assert!(before.iter().all(|block| held.contains(block)));
            before = held;
        }
        world.node("a").wanted = BTreeMap::new();
        world.settle();
        assert_eq!(world.of("a", 1), []);
    }

    #[test]
    fn a_node_with_none_comes_before_one_that_wants_more() {
        let mut world = World::new(256, [1]);
        for name in ["a", "b"] {
            world.node(name).wanted = [(address(1), 4)].into();
        }
        // Four units are free.
        world.node("c").wanted = [(address(1), 4)].into();
        world.node("c").blocks = [(address(1), [block(8, 255)].into())].into();
        world.node("a").blocks = [(address(1), [block(4, 4)].into())].into();
        world.settle();
        assert_eq!(units(&world.of("b", 1)), 2, "the largest that is free");
        assert_eq!(units(&world.of("a", 1)), 2);
        assert_eq!(world.of("c", 1), [block(8, 255)]);
    }

    #[test]
    fn of_blocks_that_overlap_the_first_node_by_name_keeps_its_own() {
        let mut world = World::new(1024, [1]);
        for name in ["a", "b"] {
            world.node(name).wanted = [(address(1), 4)].into();
            let held = [block(8, 11), block(if name == "a" { 16 } else { 20 }, 23)];
            world.node(name).blocks = [(address(1), held.into())].into();
        }
        world.settle();
        assert_eq!(world.of("a", 1), [block(8, 11), block(16, 23)]);
        let of_b = world.of("b", 1);
        assert_eq!(units(&of_b), 4);
        assert!(
            of_b.iter().all(|block| !block.overlaps(self::block(8, 23))),
            "{of_b:?}"
        );
    }

    #[test]
    fn what_is_wanted_of_an_address_that_is_not_translated_to_elsewhere_is_not_given() {
        let mut world = World::new(1024, [1]);
        world.node("a").wanted = [(address(1), 4), (address(2), 4)].into();
        world.settle();
        assert_eq!((world.of("a", 1).len(), world.of("a", 2).len()), (1, 0));
        world.gateway(None);
        world.settle();
        assert_eq!(world.of("a", 1), []);
        world.gateway(Some(1024));
        world.settle();
        let held = world.of("a", 1);
        assert_eq!(held.len(), 1);
        // As long as nobody knows what the gateway is to do, everything stays.
        let name = GatewayName::from(GATEWAY);
        world.cluster.gateways.get_mut(&name).unwrap().spec = Err(Vec::new());
        world.node("b").wanted = [(address(1), 4)].into();
        let blocks = world.settle();
        assert_eq!((world.of("a", 1), world.of("b", 1)), (held, Vec::new()));
        assert!(blocks.waiting.is_empty());
    }

    /// What may happen to a cluster.
    #[derive(Clone, Debug)]
    enum Happening {
        Wants(u8, u8, u16),
        Gone(u8),
        /// The EgressNode alone.
        Forgotten(u8),
        Ports(u8),
        /// Somebody else wrote a block into a status.
        Meddled(u8, u8, u8, u8),
    }

    fn happening() -> impl Strategy<Value = Happening> {
        let node = 0..6_u8;
        prop_oneof![
            8 => (node.clone(), 1..3_u8, 0..80_u16).prop_map(|(node, of, units)| Happening::Wants(node, of, units)),
            2 => node.clone().prop_map(Happening::Gone),
            1 => node.clone().prop_map(Happening::Forgotten),
            1 => (0..7_u8).prop_map(Happening::Ports),
            2 => (node, 1..3_u8, 4..=255_u8, 0..60_u8).prop_map(|(node, of, first, more)| Happening::Meddled(node, of, first, more)),
        ]
    }

    proptest! {
        #[test]
        fn whatever_happens_nobody_loses_what_it_wants_and_no_port_has_two_nodes(
            happenings in prop::collection::vec(happening(), 1..40)
        ) {
            let mut world = World::new(4096, [1, 2]);
            for happening in happenings {
                let before = world.clone();
                let mut touched = None;
                let name = |number: u8| format!("n{number}");
                match happening {
                    Happening::Wants(node, of, units) => {
                        world.node(&name(node)).wanted.insert(address(of), units);
                        touched = (units == 0).then(|| name(node));
                    }
                    Happening::Gone(node) => {
                        world.gone(&name(node));
                        touched = Some(name(node));
                    }
                    Happening::Forgotten(node) => {
                        world.cluster.egress_nodes.remove(&NodeName::from(name(node)));
                        touched = Some(name(node));
                    }
                    Happening::Ports(exponent) => world.gateway(Some(256 << exponent)),
                    Happening::Meddled(node, of, first, more) => {
                        let block = block(first, first.saturating_add(more));
                        world.node(&name(node)).blocks.entry(address(of)).or_default().insert(block);
                        world.settle();
                        continue;
                    }
                }
                world.settle();
                for (node, was) in &before.cluster.egress_nodes {
                    if touched.as_deref() == Some(node.as_str()) {
                        continue;
                    }
                    let blocks = &world.cluster.egress_nodes[node].blocks;
                    for (address, was) in &was.blocks {
                        prop_assert!(blocks[address].is_superset(was), "{node} lost some of {address}");
                    }
                }
                for node in world.cluster.egress_nodes.values() {
                    for (address, blocks) in &node.blocks {
                        prop_assert!(node.wanted[address] > 0);
                        prop_assert!(blocks.len() <= PolicyDesired::MAX_BLOCKS);
                    }
                }
            }
        }
    }
}
