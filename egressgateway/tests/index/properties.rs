//! The index after any events is that of the final objects.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use egressgateway::{
    model::{GatewayName, NodeName, PodName, PolicyName},
    world::{Change, Namespace},
};
use proptest::prelude::*;

use super::*;

fn policies() -> impl Strategy<Value = Change> {
    let subject = prop::sample::select(vec![
        "podSelector: {matchLabels: {app: shop}}",
        "podSelector: {matchLabels: {app: blog}}",
        "podSelector: {matchExpressions: [{key: app, operator: Exists}]}, namespaceSelector: {matchLabels: {team: a}}",
        "podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [shop]}]}",
        "ipv4PodSubnet: 10.244.1.0/29",
        "ipv4PodSubnet: 10.244.1.0/30",
        "ipv4PodSubnet: 10.244.1.0/30, podSelector: {}",
    ]);
    let network = || {
        prop::sample::select(vec![
            "10.6.1.0/24",
            "10.6.1.128/25",
            "10.6.0.0/16",
            "fd00:6::/64",
        ])
    };
    let networks = move |most| prop::collection::vec(network(), 0..most);
    (
        0..5_u8,
        subject,
        networks(3),
        networks(2),
        0..3_u32,
        0..4_u8,
        0..6_u8,
    )
        .prop_map(|(name, subject, to, except, priority, gateway, owner)| {
            let named = if gateway == 3 {
                String::new()
            } else {
                format!("egressGatewayName: g{gateway}, ")
            };
            let rest = format!("destCIDR: {to:?}, exceptCIDR: {except:?}, priority: {priority}");
            let owned = format!(", status: {{egressIP: {{ipv4: 10.6.1.6{name}}}, node: n{owner}}}");
            let status = if owner > 3 { "" } else { &owned };
            policy(
                &format!("p{name}"),
                &format!("spec: {{{named}appliedTo: {{{subject}}}, {rest}}}{status}"),
            )
        })
}

fn gateways() -> impl Strategy<Value = Change> {
    let members = prop::collection::vec(
        (
            1..4_u8,
            prop::sample::select(vec!["Ready", "NotReady"]),
            any::<bool>(),
        ),
        0..3,
    );
    (
        0..3_u8,
        any::<bool>(),
        prop::sample::select(vec![
            "NodeAddress",
            "None",
            "EgressIP, nat: Distributed, egressIPs: {ipv4: [10.6.1.60-10.6.1.64]}",
        ]),
        members,
    )
        .prop_map(|(name, marked, nat, members)| {
            let mark = if marked {
                format!("mark: {}, ", u32::from(0x20 + name) << 24)
            } else {
                String::new()
            };
            let members = members.iter().map(|(node, status, active)| {
                let mark = u32::from(0x30 + node) << 24;
                format!("{{name: n{node}, status: {status}, active: {active}, mark: {mark}}}")
            });
            let members = members.collect::<Vec<_>>().join(",");
            let spec = format!(
                "spec: {{sourceNAT: {nat}, nodeSelector: {{matchLabels: {{egress: 'true'}}}}}}"
            );
            gateway(
                &format!("g{name}"),
                &format!("{spec}, status: {{{mark}nodeList: [{members}]}}"),
            )
        })
}

/// Objects from a small world, so that they meet often.
fn change() -> impl Strategy<Value = Change> {
    let app = prop::sample::select(vec!["shop", "blog", "db"]);
    let pods = (0..8_u8, 1..3_u8, 0..6_u8, app, any::<bool>()).prop_map(
        |(name, node, address, app, gone)| {
            let name = format!("pod{name}");
            if gone {
                Change::Pod(PodName::new("default", name), None)
            } else {
                pod(
                    &name,
                    &format!("n{node}"),
                    &format!("10.244.1.{address}"),
                    app,
                )
            }
        },
    );
    let namespaces = any::<bool>().prop_map(|team| {
        let labels = team
            .then(|| ("team".to_owned(), "a".to_owned()))
            .into_iter()
            .collect();
        Change::Namespace(Arc::from("default"), Some(Namespace { labels }))
    });
    let gone = (0..5_u8, 0..4_u8).prop_map(|(name, kind)| match kind {
        0 => Change::Policy(PolicyName::from(format!("p{name}")), None),
        1 => Change::Gateway(GatewayName::from(format!("g{name}")), None),
        2 => Change::Node(NodeName::from(format!("n{name}")), None),
        _ => Change::EgressNode(NodeName::from(format!("n{name}")), None),
    });
    let nodes = (1..4_u8).prop_map(|name| {
        node(
            &format!("n{name}"),
            &format!("10.24{name}.0.0/24"),
            &format!("10.6.0.{name}"),
        )
    });
    let egress_nodes = (1..4_u8).prop_map(|name| egress_node(&format!("n{name}"), name));
    prop_oneof![4 => policies(), 3 => gateways(), 6 => pods, 1 => namespaces, 3 => gone, 1 => nodes, 1 => egress_nodes]
}

/// The object that a change speaks of.
fn object_of(change: &Change) -> String {
    match change {
        Change::Pod(name, _) => format!("pod {name}"),
        Change::Namespace(name, _) => format!("namespace {name}"),
        Change::Node(name, _) => format!("node {name}"),
        Change::EgressNode(name, _) => format!("egress node {name}"),
        Change::Gateway(name, _) => format!("gateway {name}"),
        Change::Policy(name, _) => format!("policy {name}"),
        Change::ClusterNetworks(_) => "networks".to_owned(),
        Change::PodNetworks(_) => "pod networks".to_owned(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]
    #[test]
    fn whatever_the_order_of_events_the_index_is_a_rebuild_from_the_final_world(
        changes in prop::collection::vec((change(), any::<bool>(), any::<bool>()), 1..40),
        down in prop::collection::btree_set(1..4_u8, 0..2),
    ) {
        let mut stepwise = index([]);
        let mut contested = BTreeSet::new();
        for (change, look, others) in &changes {
            stepwise.apply(change.clone());
            if *look {
                stepwise.desired();
            }
            contested = others.then(|| [[10, 6, 1, 60].into(), [10, 6, 1, 62].into()].into()).unwrap_or_default();
            stepwise.set_contested(contested.clone());
        }
        let down: BTreeSet<NodeName> = down.iter().map(|name| NodeName::from(format!("n{name}"))).collect();
        stepwise.set_down(down.clone());
        let last: BTreeMap<String, Change> = changes.into_iter().map(|(change, _, _)| (object_of(&change), change)).collect();
        for order in [last.values().cloned().collect::<Vec<_>>(), last.values().rev().cloned().collect()] {
            let mut rebuilt = index(order);
            rebuilt.set_down(down.clone());
            rebuilt.set_contested(contested.clone());
            prop_assert_eq!(stepwise.desired(), rebuilt.desired());
            prop_assert_eq!(stepwise.needs_all_pods(), rebuilt.needs_all_pods());
            prop_assert_eq!(stepwise.ports_wanted(), rebuilt.ports_wanted());
        }
    }
}
