use std::collections::{BTreeMap, BTreeSet};

use egressgateway::api::{EgressIp, GatewayNodeStatus, NatMode, PortsWanted};
use proptest::prelude::*;

use crate::api::Api;

/// What may happen to a cluster.
#[derive(Clone, Debug)]
enum Event {
    Node(u8, bool),
    Gone(u8),
    Ready(u8, bool),
    Lease(u8, bool),
    Tunnel(u8, bool),
    Gateway(u8, u8, bool),
    NoGateway(u8),
    Policy(u8, u8, Option<u8>, u8),
    NoPolicy(u8),
    /// Somebody asks for a node for a policy's addresses, or takes the wish back.
    Wish(u8, Option<u8>),
    /// A node's agent asks for ports of an address.
    Ports(u8, u8, u16),
    Drain(u8, bool),
    Cordon(u8, bool),
    /// Somebody else wrote into the statuses.
    Meddled(u8, u8, u8),
}

fn event() -> impl Strategy<Value = Event> {
    let (node, gateway, policy) = (0..5_u8, 0..3_u8, 0..8_u8);
    prop_oneof![
        3 => (node.clone(), any::<bool>()).prop_map(|(node, egress)| Event::Node(node, egress)),
        1 => node.clone().prop_map(Event::Gone),
        1 => (node.clone(), any::<bool>()).prop_map(|(node, ready)| Event::Ready(node, ready)),
        1 => (node.clone(), any::<bool>()).prop_map(|(node, fresh)| Event::Lease(node, fresh)),
        1 => (node.clone(), any::<bool>()).prop_map(|(node, drained)| Event::Drain(node, drained)),
        1 => (node.clone(), any::<bool>()).prop_map(|(node, cordoned)| Event::Cordon(node, cordoned)),
        4 => (policy.clone(), proptest::option::of(node.clone())).prop_map(|(policy, node)| Event::Wish(policy, node)),
        2 => (node.clone(), 0..6_u8, 0..80_u16).prop_map(|(node, last, units)| Event::Ports(node, last, units)),
        1 => (node, any::<bool>()).prop_map(|(node, up)| Event::Tunnel(node, up)),
        2 => (gateway.clone(), 0..4_u8, any::<bool>()).prop_map(|(gateway, mode, ecmp)| Event::Gateway(gateway, mode, ecmp)),
        1 => gateway.clone().prop_map(Event::NoGateway),
        4 => (policy.clone(), gateway, proptest::option::of(0..6_u8), 0..4_u8)
            .prop_map(|(policy, gateway, asked, created)| Event::Policy(policy, gateway, asked, created)),
        1 => policy.clone().prop_map(Event::NoPolicy),
        1 => (0..5_u8, policy, 0x10..0x16_u8).prop_map(|(node, policy, byte)| Event::Meddled(node, policy, byte)),
    ]
}

fn happen(api: &mut Api, event: &Event) {
    let node = |number: &u8| format!("node{number}");
    match event {
        Event::Node(number, egress) => {
            if !api.nodes.contains_key(&node(number)) {
                api.node(&node(number), "{}");
            }
            let labels = egress.then(|| ("egress", "true")).into_iter().collect();
            api.nodes.get_mut(&node(number)).unwrap().labels = labels;
        }
        Event::Gone(number) => _ = api.nodes.remove(&node(number)),
        Event::Ready(number, ready) => {
            api.nodes
                .entry(node(number))
                .and_modify(|node| node.ready = *ready);
        }
        Event::Lease(number, true) => _ = api.fresh.insert(node(number)),
        Event::Lease(number, false) => _ = api.fresh.remove(&node(number)),
        Event::Tunnel(number, up) => {
            if api.egress_nodes.contains_key(&node(number)) {
                api.tunnel(&node(number), *up);
            }
        }
        Event::Gateway(number, mode, ecmp) => {
            let selector = if *mode == 3 {
                "{}"
            } else {
                "{matchLabels: {egress: 'true'}}"
            };
            let source_nat =
                ["NodeAddress", "EgressIP", "EgressIP", "EgressIP"][usize::from(*mode)];
            let method = if *ecmp { "ecmp" } else { "active-passive" };
            let nat = if *mode == 2 {
                ", nat: Distributed, portsPerNode: 16384"
            } else {
                ""
            };
            // Pools of neighbours overlap.
            let pool = format!(
                "{{ipv4: ['10.6.1.{number}-10.6.1.{}'], ipv6: ['fd00:6::{number}-fd00:6::{}']}}",
                number + 2,
                number + 1
            );
            let spec = format!(
                "{{nodeSelector: {selector}, sourceNAT: {source_nat}, forwardMethod: {method}, egressIPs: {pool}{nat}}}"
            );
            api.gateway(&format!("gw{number}"), &spec);
        }
        Event::NoGateway(number) => _ = api.gateways.remove(&format!("gw{number}")),
        Event::Policy(number, gateway, asked, created) => {
            let asked = asked
                .map(|last| format!(", egressIP: {{ipv4: 10.6.1.{last}}}"))
                .unwrap_or_default();
            let spec = format!(
                "{{appliedTo: {{podSelector: {{matchLabels: {{app: a}}}}}}, egressGatewayName: gw{gateway}{asked}}}"
            );
            api.policy(&format!("p{number}"), u32::from(*created), &spec);
        }
        Event::NoPolicy(number) => _ = api.policies.remove(&format!("p{number}")),
        Event::Wish(number, wanted) => {
            if let Some(policy) = api.policies.get_mut(&format!("p{number}")) {
                let wish = wanted
                    .as_ref()
                    .map(|wanted| ("egressgateway.spidernet.io/node".to_owned(), node(wanted)));
                policy.metadata.annotations = wish.map(|wish| BTreeMap::from([wish]));
            }
        }
        Event::Ports(number, last, units) => {
            if let Some(node) = api.egress_nodes.get_mut(&node(number)) {
                node.status.get_or_insert_default().ports_wanted = vec![PortsWanted {
                    address: format!("10.6.1.{last}"),
                    units: *units,
                }];
            }
        }
        Event::Drain(number, drained) => {
            let annotation = drained.then(|| ("drain".to_owned(), "true".to_owned()));
            api.nodes
                .entry(node(number))
                .and_modify(|node| node.annotations = annotation.into_iter().collect());
        }
        Event::Cordon(number, cordoned) => {
            api.nodes
                .entry(node(number))
                .and_modify(|node| node.cordoned = *cordoned);
        }
        Event::Meddled(number, policy, byte) => {
            meddle(api, &node(number), &format!("p{policy}"), *byte);
        }
    }
}

fn meddle(api: &mut Api, node: &str, policy: &str, byte: u8) {
    let mark = Some(u32::from(byte) << 24);
    if let Some(status) = api
        .egress_nodes
        .get_mut(node)
        .and_then(|node| node.status.as_mut())
    {
        status.vxlan_ipv4_ip = Some("172.31.0.2/16".to_owned());
    }
    for gateway in api.gateways.values_mut() {
        let status = gateway.status.get_or_insert_default();
        status.mark = mark;
        status
            .node_list
            .iter_mut()
            .for_each(|member| member.mark = mark);
        status.node_list.extend(status.node_list.clone());
    }
    if let Some(policy) = api.policies.get_mut(policy) {
        let status = policy.status.get_or_insert_default();
        status.egress_ip = Some(EgressIp {
            ipv4: Some("10.6.1.2".to_owned()),
            ipv6: Some("fd00:6::9".to_owned()),
        });
        status.node = Some(node.to_owned());
    }
}

fn unique<T: Ord + std::fmt::Debug>(values: impl IntoIterator<Item = T>) {
    let mut seen = BTreeSet::new();
    for value in values {
        assert!(!seen.contains(&value), "{value:?} twice");
        seen.insert(value);
    }
}

/// Nothing that must be one's own is given to two.
fn no_duplicates(api: &Api) {
    let statuses = || {
        api.egress_nodes
            .values()
            .filter_map(|node| node.status.as_ref())
    };
    unique(statuses().filter_map(|status| status.vxlan_ipv4_ip.as_ref()));
    unique(statuses().filter_map(|status| status.tunnel_mac.as_ref()));
    let gateways = || {
        api.gateways
            .values()
            .filter_map(|gateway| gateway.status.as_ref())
    };
    unique(gateways().flat_map(|status| {
        status
            .mark
            .into_iter()
            .chain(status.node_list.iter().filter_map(|node| node.mark))
    }));
    unique(gateways().flat_map(|status| {
        status
            .node_list
            .iter()
            .flat_map(|node| node.egress_ips.iter())
    }));
    let ips = api
        .policies
        .values()
        .filter_map(|policy| policy.status.as_ref()?.egress_ip.clone());
    unique(ips.flat_map(|ips| [ips.ipv4, ips.ipv6]).flatten());
}

/// A wish that can be fulfilled is, or is about to be: while the agent of the node that has the
/// addresses is gone, the wanted node asks for them.
fn wishes_are_heard(api: &Api) {
    for policy in api.policies.values() {
        let Some(status) = policy
            .status
            .as_ref()
            .filter(|status| status.egress_ip.is_some())
        else {
            continue;
        };
        let Some(wanted) = policy
            .metadata
            .annotations
            .as_ref()
            .and_then(|all| all.get("egressgateway.spidernet.io/node"))
        else {
            continue;
        };
        let gateway = api.gateway_status(status.egress_gateway.as_ref().unwrap());
        let can = gateway
            .node_list
            .iter()
            .any(|member| member.name == *wanted && member.status == GatewayNodeStatus::Ready);
        let heard = [&status.node, &status.candidate]
            .into_iter()
            .flatten()
            .any(|node| node == wanted);
        assert!(
            !can || heard,
            "{wanted} is Ready, and the addresses are with {:?}",
            status.node
        );
    }
}

/// Whoever can carry traffic does, cordoned or not.
fn healthy_nodes_are_used(api: &Api) {
    for status in api
        .gateways
        .values()
        .filter_map(|gateway| gateway.status.as_ref())
    {
        let is_ready = |status| status == GatewayNodeStatus::Ready;
        if status
            .node_list
            .iter()
            .any(|member| is_ready(member.status))
        {
            assert!(
                status.node_list.iter().any(|member| member.active),
                "{status:?}"
            );
            assert!(
                status
                    .node_list
                    .iter()
                    .all(|member| is_ready(member.status) || !member.active),
                "{status:?}"
            );
        }
    }
}

/// Every address of a policy is with the node that its status names, and that node has a mark where
/// it translates.
fn policies_and_gateways_agree(api: &Api) {
    for policy in api.policies.values() {
        let Some((status, ips)) = policy
            .status
            .as_ref()
            .and_then(|status| Some((status, status.egress_ip.as_ref()?)))
        else {
            continue;
        };
        let Some(node) = &status.node else { continue };
        let name = status.egress_gateway.as_ref().unwrap();
        let is_distributed = api.gateways[name].spec.nat == Some(NatMode::Distributed);
        let gateway = api.gateway_status(name);
        let member = gateway
            .node_list
            .iter()
            .find(|member| member.name == *node)
            .unwrap();
        assert_eq!(member.mark.is_none(), is_distributed);
        assert!(
            [&ips.ipv4, &ips.ipv6]
                .into_iter()
                .flatten()
                .all(|ip| member.egress_ips.contains(ip))
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_plan_is_a_fixed_point_without_duplicates(events in proptest::collection::vec(event(), 1..40)) {
        let mut api = Api::default();
        for event in &events {
            happen(&mut api, event);
            // Panics unless planning again changes nothing.
            api.settle();
            no_duplicates(&api);
            policies_and_gateways_agree(&api);
            wishes_are_heard(&api);
            healthy_nodes_are_used(&api);
        }
    }

    #[test]
    fn a_node_that_comes_or_goes_moves_nothing_but_its_own(events in proptest::collection::vec(event(), 1..30), number in 0..5_u8) {
        let mut api = Api::default();
        for event in &events {
            happen(&mut api, event);
        }
        api.settle();
        let before = api.clone();
        happen(&mut api, &Event::Gone(number));
        api.settle();
        let gone = format!("node{number}");
        for (name, node) in before.egress_nodes.iter().filter(|(name, _)| **name != gone) {
            let (had, has) = (node.status.as_ref().unwrap(), api.egress_nodes[name].status.as_ref().unwrap());
            prop_assert_eq!(&had.vxlan_ipv4_ip, &has.vxlan_ipv4_ip);
            prop_assert!(had.port_blocks.iter().all(|block| has.port_blocks.contains(block)));
        }
        for (name, gateway) in &before.gateways {
            let (had, has) = (gateway.status.as_ref().unwrap(), api.gateway_status(name));
            prop_assert_eq!(had.mark, has.mark);
            let active = |status: &egressgateway::api::EgressGatewayStatus| {
                status.node_list.iter().filter(|node| node.active).map(|node| node.name.clone()).collect::<Vec<_>>()
            };
            if !active(had).contains(&gone) {
                prop_assert_eq!(active(had), active(has));
            }
        }
        for (name, policy) in &before.policies {
            let (had, has) = (policy.status.as_ref().unwrap(), api.policy_status(name));
            prop_assert_eq!(&had.egress_ip, &has.egress_ip);
            if had.node.as_ref() != Some(&gone) {
                prop_assert_eq!(&had.node, &has.node);
            }
        }
    }
}
