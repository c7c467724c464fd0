//! What the controller decides, and that it decides the same again.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};

use egressgateway::{
    allocator::LowestFree,
    api::{EgressGateway, EgressGatewayPolicy, EgressNodePhase, EgressNodeStatus, GatewayNodeStatus},
    controller::{Cluster, ClusterPlan, ControllerSettings, plan},
    model::{GatewayName, MarkMask, NodeName, PolicyName},
    world::{EgressNode, Gateway, Node, Policy},
};
use proptest::prelude::*;

fn object<T: serde::de::DeserializeOwned>(kind: &str, name: &str, yaml: &str) -> T {
    let text = format!("{{apiVersion: egressgateway.spidernet.io/v1, kind: {kind}, metadata: {{name: {name}}}, {yaml}}}");
    serde_yaml::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// A cluster whose agents do what they are told: whoever has an address builds the tunnel.
#[derive(Clone, Default)]
struct World {
    cluster: Cluster,
    gateways: BTreeMap<String, EgressGateway>,
    policies: BTreeMap<String, EgressGatewayPolicy>,
    nodes: BTreeMap<String, EgressNodeStatus>,
}

impl World {
    fn node(&mut self, name: &str, egress: bool) -> &mut Node {
        let node = Node {
            uid: format!("uid-{name}"),
            addresses: vec!["10.6.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            ready: true,
            ..Node::default()
        };
        let name = NodeName::from(name);
        self.cluster.fresh_leases.insert(name.clone());
        self.cluster.nodes.insert(name.clone(), node);
        let node = self.cluster.nodes.get_mut(&name).unwrap();
        if egress {
            node.labels.insert("egress".into(), "true".into());
        }
        node
    }

    fn gateway(&mut self, name: &str, spec: &str) {
        let spec = format!("spec: {{nodeSelector: {{matchLabels: {{egress: 'true'}}}}{spec}}}");
        let object: EgressGateway = object("EgressGateway", name, &spec);
        self.cluster.gateways.insert(GatewayName::from(name), Gateway::from_api(&object, MarkMask::default()));
        self.gateways.insert(name.to_owned(), object);
    }

    fn policy(&mut self, name: &str, spec: &str) {
        let spec = format!("spec: {{appliedTo: {{podSelector: {{matchLabels: {{app: shop}}}}}}{spec}}}");
        let object: EgressGatewayPolicy = object("EgressGatewayPolicy", name, &spec);
        self.cluster.policies.insert(PolicyName::from(name), Policy::from_api(&object));
        self.policies.insert(name.to_owned(), object);
    }

    fn forget_node(&mut self, name: &str) {
        self.cluster.nodes.remove(&NodeName::from(name));
    }

    fn plan(&self) -> ClusterPlan {
        let overlay = ["172.31.0.0/28", "fd31::/124"].map(|net| net.parse().unwrap()).to_vec();
        plan(&self.cluster, &LowestFree, &ControllerSettings { overlay, ..ControllerSettings::default() })
    }

    /// Writes a plan into the objects, as the daemons do.
    fn write(&mut self, plan: &ClusterPlan) {
        for name in plan.create.keys() {
            self.cluster.egress_nodes.insert(name.clone(), EgressNode::default());
        }
        for name in &plan.delete {
            self.cluster.egress_nodes.remove(name);
        }
        for (name, status) in &plan.egress_nodes {
            let mut status = status.clone();
            let assigned = status.phase.is_none_or(|phase| phase == EgressNodePhase::Init);
            status.phase = if assigned { Some(EgressNodePhase::Succeeded) } else { status.phase };
            let mut object: egressgateway::api::EgressNode = object("EgressNode", name.as_str(), "spec: {}");
            object.status = Some(status.clone());
            let mut node = EgressNode::from_api(&object);
            node.tunnel_ready = assigned.then_some(true);
            self.cluster.egress_nodes.insert(name.clone(), node);
            self.nodes.insert(name.to_string(), status);
        }
        for (name, status) in &plan.gateways {
            let object = self.gateways.get_mut(name.as_str()).unwrap();
            object.status = Some(status.clone());
            self.cluster.gateways.insert(name.clone(), Gateway::from_api(object, MarkMask::default()));
        }
        for (name, status) in &plan.policies {
            let object = self.policies.get_mut(name.as_str()).unwrap();
            object.status = Some(status.clone());
            self.cluster.policies.insert(name.clone(), Policy::from_api(object));
        }
    }

    fn settle(&mut self) -> ClusterPlan {
        for _ in 0..8 {
            let next = self.plan();
            self.write(&next);
            if next == self.plan() {
                return next;
            }
        }
        panic!("the plan does not come to rest");
    }
}

fn two_gateways() -> World {
    let mut world = World::default();
    for (name, egress) in [("a", false), ("b", true), ("c", true)] {
        world.node(name, egress);
    }
    world.gateway("g", "");
    world.settle();
    world
}

fn active(plan: &ClusterPlan, gateway: &str) -> Vec<String> {
    let nodes = &plan.gateways[&GatewayName::from(gateway)].node_list;
    nodes.iter().filter(|node| node.active).map(|node| node.name.clone()).collect()
}

fn reason(conditions: &[k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition], kind: &str) -> String {
    conditions.iter().find(|condition| condition.type_ == kind).map(|condition| condition.reason.clone()).unwrap_or_default()
}

#[test]
fn every_node_gets_addresses_of_the_families_that_it_has() {
    let mut world = World::default();
    world.node("dual", false);
    world.node("single", false).addresses = vec!["10.6.0.2".parse().unwrap()];
    let plan = world.settle();
    let dual = &plan.egress_nodes[&NodeName::from("dual")];
    assert_eq!((dual.vxlan_ipv4_ip.as_deref(), dual.vxlan_ipv6_ip.as_deref()), (Some("172.31.0.1/28"), Some("fd31::1/124")));
    let single = &plan.egress_nodes[&NodeName::from("single")];
    assert_eq!((single.vxlan_ipv4_ip.as_deref(), single.vxlan_ipv6_ip.as_deref()), (Some("172.31.0.2/28"), None));
    assert_eq!(dual.phase, None, "that the tunnel is built is the agent's word");
}

#[test]
fn an_exhausted_overlay_says_so_and_recovers() {
    let mut world = World::default();
    for number in 0..15 {
        world.node(&format!("n{number:02}"), false).addresses = vec!["10.6.0.1".parse().unwrap()];
    }
    let plan = world.settle();
    let last = &plan.egress_nodes[&NodeName::from("n14")];
    assert_eq!(last.phase, Some(EgressNodePhase::Failed));
    assert_eq!(reason(&last.conditions, "AddressAssigned"), "PoolExhausted");
    world.forget_node("n03");
    let plan = world.settle();
    assert_eq!(plan.egress_nodes[&NodeName::from("n14")].vxlan_ipv4_ip.as_deref(), Some("172.31.0.4/28"), "the freed one");
    assert_eq!(plan.egress_nodes[&NodeName::from("n04")].vxlan_ipv4_ip.as_deref(), Some("172.31.0.5/28"), "others keep theirs");
}

#[test]
fn the_active_node_stays_while_it_is_ready_and_a_returning_one_does_not_take_over() {
    let mut world = two_gateways();
    assert_eq!(active(&world.settle(), "g"), ["b"]);
    world.cluster.nodes.get_mut(&NodeName::from("b")).unwrap().ready = false;
    assert_eq!(active(&world.settle(), "g"), ["c"]);
    world.cluster.nodes.get_mut(&NodeName::from("b")).unwrap().ready = true;
    assert_eq!(active(&world.settle(), "g"), ["c"]);
}

#[test]
fn a_stale_lease_is_unknown_and_not_elected() {
    let mut world = two_gateways();
    world.cluster.fresh_leases.remove(&NodeName::from("b"));
    let plan = world.settle();
    assert_eq!(plan.gateways[&GatewayName::from("g")].node_list[0].status, GatewayNodeStatus::Unknown);
    assert_eq!(active(&plan, "g"), ["c"]);
}

#[test]
fn a_cordoned_node_with_the_drain_annotation_is_not_ready() {
    let mut world = two_gateways();
    let node = world.cluster.nodes.get_mut(&NodeName::from("b")).unwrap();
    node.cordoned = true;
    assert_eq!(active(&world.settle(), "g"), ["b"], "cordon alone is about new pods");
    world.cluster.nodes.get_mut(&NodeName::from("b")).unwrap().annotations.insert("drain".into(), String::new());
    assert_eq!(active(&world.settle(), "g"), ["c"]);
}

#[test]
fn gateways_without_nodes_or_without_ready_nodes_say_so() {
    let mut world = two_gateways();
    world.cluster.fresh_leases.clear();
    assert_eq!(reason(&world.settle().gateways[&GatewayName::from("g")].conditions, "Ready"), "NoReadyNode");
    for node in world.cluster.nodes.values_mut() {
        node.labels.clear();
    }
    assert_eq!(reason(&world.settle().gateways[&GatewayName::from("g")].conditions, "Ready"), "NoNodes");
}

#[test]
fn marks_stay_with_their_gateway_and_never_say_exit() {
    let mut world = two_gateways();
    for name in ["a", "h"] {
        world.gateway(name, "");
    }
    let plan = world.settle();
    let marks: BTreeMap<&str, u32> = plan.gateways.iter().map(|(name, status)| (name.as_str(), status.mark.unwrap())).collect();
    assert_eq!(marks, BTreeMap::from([("g", 0x1100_0000), ("a", 0x1300_0000), ("h", 0x1400_0000)]));
}

#[test]
fn marks_run_out_with_a_condition() {
    let mut world = two_gateways();
    for number in 0..254 {
        world.gateway(&format!("x{number:03}"), "");
    }
    let plan = world.settle();
    let without: Vec<_> = plan.gateways.values().filter(|status| status.mark.is_none()).collect();
    assert_eq!(without.len(), 1);
    assert_eq!(reason(&without[0].conditions, "Ready"), "NoMarkLeft");
}

#[test]
fn egress_addresses_are_spread_kept_and_exhausted_with_a_condition() {
    let mut world = two_gateways();
    world.gateway("pool", ", sourceNAT: EgressIP, egressIPs: {ipv4: ['10.6.1.60-10.6.1.62']}");
    for name in ["p1", "p2", "p3", "p4"] {
        world.policy(name, ", egressGatewayName: pool");
    }
    let plan = world.settle();
    let owner = |plan: &ClusterPlan, name: &str| plan.policies[&PolicyName::from(name)].node.clone();
    assert_eq!([owner(&plan, "p1"), owner(&plan, "p2"), owner(&plan, "p3")].map(Option::unwrap), ["b", "c", "b"]);
    assert_eq!(reason(&plan.policies[&PolicyName::from("p4")].conditions, "Accepted"), "EgressIPExhausted");
    assert_eq!(reason(&plan.gateways[&GatewayName::from("pool")].conditions, "Ready"), "PoolExhausted");
    let marks: BTreeSet<Option<u32>> = plan.gateways[&GatewayName::from("pool")].node_list.iter().map(|node| node.mark).collect();
    assert_eq!(marks.len(), 2, "each owner is a target of its own");
    world.cluster.nodes.get_mut(&NodeName::from("c")).unwrap().ready = false;
    let plan = world.settle();
    assert_eq!(owner(&plan, "p2").as_deref(), Some("b"), "what lived on the lost node moves");
    world.cluster.nodes.get_mut(&NodeName::from("c")).unwrap().ready = true;
    assert_eq!(owner(&world.settle(), "p2").as_deref(), Some("b"), "and does not move back");
}

#[test]
fn an_explicit_address_must_be_free_and_in_the_pool() {
    let mut world = two_gateways();
    world.gateway("pool", ", egressIPs: {ipv4: ['10.6.1.60']}");
    world.policy("first", ", egressGatewayName: pool, egressIP: {ipv4: 10.6.1.60}");
    world.settle();
    world.policy("another", ", egressGatewayName: pool, egressIP: {ipv4: 10.6.1.60}");
    world.policy("outside", ", egressGatewayName: pool, egressIP: {ipv4: 10.6.9.9}");
    let plan = world.settle();
    let accepted = |name: &str| reason(&plan.policies[&PolicyName::from(name)].conditions, "Accepted");
    assert_eq!([accepted("first"), accepted("another"), accepted("outside")], ["Accepted", "EgressIPTaken", "EgressIPOutsidePool"]);
}

#[test]
fn policies_that_contradict_each_other_both_say_who_wins() {
    let mut world = two_gateways();
    world.gateway("h", "");
    world.policy("x", ", egressGatewayName: g, destCIDR: [10.6.1.0/24]");
    world.policy("y", ", egressGatewayName: h, destCIDR: [10.6.1.0/24]");
    world.policy("z", ", egressGatewayName: h, destCIDR: [10.6.2.0/24]");
    let plan = world.settle();
    let message = |name: &str| {
        let conditions = &plan.policies[&PolicyName::from(name)].conditions;
        conditions.iter().find(|condition| condition.type_ == "Conflict").map(|condition| condition.message.clone())
    };
    for name in ["x", "y"] {
        assert!(message(name).unwrap().contains("x wins because its name comes first"), "{:?}", message(name));
    }
    assert_eq!(message("z"), None);
}

#[test]
fn a_policy_says_why_it_steers_nothing() {
    let mut world = two_gateways();
    world.gateway("h", "");
    world.policy("lost", ", egressGatewayName: nowhere");
    world.policy("open", "");
    world.policy("bad", ", destCIDR: [10.6.1.1/24]");
    let plan = world.settle();
    let accepted = |name: &str| reason(&plan.policies[&PolicyName::from(name)].conditions, "Accepted");
    assert_eq!([accepted("lost"), accepted("open"), accepted("bad")], ["GatewayNotFound", "AmbiguousGateway", "Invalid"]);
}

/// What may happen to a cluster.
#[derive(Clone, Debug)]
enum Event {
    Node(u8, bool, bool),
    Lost(u8),
    Gateway(u8, u8),
    Policy(u8, u8, u8),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (0..6_u8, any::<bool>(), any::<bool>()).prop_map(|(name, egress, ready)| Event::Node(name, egress, ready)),
        1 => (0..6_u8).prop_map(Event::Lost),
        2 => (0..3_u8, 0..4_u8).prop_map(|(name, kind)| Event::Gateway(name, kind)),
        4 => (0..8_u8, 0..4_u8, 0..4_u8).prop_map(|(name, gateway, ask)| Event::Policy(name, gateway, ask)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]
    #[test]
    fn the_plan_comes_to_rest_and_gives_nothing_twice(events in prop::collection::vec(event(), 1..25)) {
        let mut world = World::default();
        for event in events {
            match event {
                Event::Node(name, egress, ready) => world.node(&format!("n{name}"), egress).ready = ready,
                Event::Lost(name) => world.forget_node(&format!("n{name}")),
                Event::Gateway(name, kind) => world.gateway(&format!("g{name}"), [
                    "",
                    ", sourceNAT: EgressIP, egressIPs: {ipv4: ['10.6.1.60-10.6.1.63']}",
                    ", forwardMethod: ecmp, egressIPs: {ipv4: ['10.6.1.60/31'], ipv6: ['fd00:6::60']}",
                    ", sourceNAT: None",
                ][usize::from(kind)]),
                Event::Policy(name, gateway, ask) => world.policy(&format!("p{name}"), &format!(", egressGatewayName: g{gateway}{}", [
                    "",
                    ", egressIP: {ipv4: 10.6.1.60}",
                    ", egressIP: {ipv4: 10.6.1.61, ipv6: 'fd00:6::60'}",
                    ", destCIDR: [10.6.1.0/24]",
                ][usize::from(ask)])),
            }
            let plan = world.settle();
            let mut marks = BTreeSet::new();
            for status in plan.gateways.values() {
                for mark in status.node_list.iter().filter_map(|node| node.mark).chain(status.mark) {
                    prop_assert!(marks.insert(mark), "mark {mark:#x} twice");
                    prop_assert!(mark != 0x1200_0000 && mark.trailing_zeros() >= 24);
                }
                for node in status.node_list.iter().filter(|node| node.active) {
                    prop_assert_eq!(node.status, GatewayNodeStatus::Ready);
                }
            }
            let mut addresses = BTreeSet::new();
            for status in plan.egress_nodes.values() {
                for address in [&status.vxlan_ipv4_ip, &status.vxlan_ipv6_ip].into_iter().flatten() {
                    prop_assert!(addresses.insert(address.clone()), "{address} twice");
                }
            }
            for gateway in plan.gateways.keys() {
                let mut leased = BTreeSet::new();
                let of_gateway = plan.policies.values().filter(|status| status.egress_gateway.as_deref() == Some(gateway.as_str()));
                for ip in of_gateway.filter_map(|status| status.egress_ip.clone()).flat_map(|ip| [ip.ipv4, ip.ipv6]).flatten() {
                    prop_assert!(leased.insert(ip.clone()), "{ip} twice");
                }
            }
        }
    }
}
