//! Pods where nodes tell the networks of their pods, and where they do not.

use egressgateway::{
    NodeDesired, Underlay,
    index::Index,
    model::{Family, NodeName, PodName},
    world::{Change, Node},
};

use super::*;

#[test]
fn pods_that_are_told_of_before_the_networks_that_they_are_in_are_no_strangers() {
    let mut index = Index::new(settings());
    index.apply(pod("a", "n1", "10.244.1.10", "shop"));
    index.apply(node("n1", "10.244.1.0/24", "10.6.0.1"));
    assert!(
        !index.needs_all_pods(),
        "the first lists come in any order, and nothing was settled yet"
    );
}

#[test]
fn where_nodes_do_not_tell_their_networks_pods_are_known_one_by_one_and_strangers_wait() {
    let untold = |name: &str, address: &str| {
        let node = Node {
            addresses: vec![address.parse().unwrap()],
            ready: true,
            ..Node::default()
        };
        Change::Node(NodeName::from(name), Some(node))
    };
    let all = "spec: {appliedTo: {podSelector: {matchLabels: {app: shop}}}}";
    let pods = [
        pod("a", "n1", "10.244.1.10", "shop"),
        pod("c", "n2", "10.244.2.10", "blog"),
    ];
    let nodes = [
        untold("n1", "10.6.0.1"),
        untold("n2", "10.6.0.2"),
        gateway("g", GATEWAY),
        policy("p", all),
    ];
    let mut index = Index::new(settings().with_start_gate(true));
    let underlay = Underlay {
        device: "eth0".into(),
        index: 2,
        address: "10.6.0.1".parse().unwrap(),
        mtu: 1500,
    };
    index.set_underlay(imbl::OrdMap::unit(Family::V4, underlay));
    for change in nodes.into_iter().chain(pods) {
        index.apply(change);
    }
    let is_exempt = |desired: &NodeDesired, address: &str| {
        let address: std::net::IpAddr = address.parse().unwrap();
        desired
            .policy
            .exempt
            .iter()
            .any(|network| network.contains(&address))
    };
    let gate = |desired: &NodeDesired| {
        let gate = desired.policy.start_gate.clone().unwrap();
        let texts = |networks: imbl::OrdSet<ipnet::IpNet>| {
            networks.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        (
            texts(gate.local),
            texts(gate.wide),
            gate.outside.iter().cloned().collect::<Vec<_>>(),
        )
    };
    let desired = index.desired();
    assert!(index.needs_all_pods() && index.pod_networks_are_unknown());
    assert!(
        is_exempt(&desired, "10.244.1.10")
            && is_exempt(&desired, "10.244.2.10")
            && !is_exempt(&desired, "10.244.2.11")
    );
    let (local, wide, outside) = gate(&desired);
    assert_eq!(wide, ["0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1"]);
    assert_eq!((local, outside), (Vec::new(), vec!["eth0".to_owned()]));
    // A pod that comes or goes is followed.
    index.apply(pod("d", "n2", "10.244.2.11", "blog"));
    assert!(is_exempt(&index.desired(), "10.244.2.11"));
    index.apply(Change::Pod(PodName::new("default", "d"), None));
    assert!(!is_exempt(&index.desired(), "10.244.2.11"));
    // The CNI's objects say where pods are.
    index.apply(Change::PodNetworks(vec!["10.244.0.0/16".parse().unwrap()]));
    let desired = index.desired();
    assert!(!index.needs_all_pods() && !index.pod_networks_are_unknown());
    assert!(is_exempt(&desired, "10.244.2.11"));
    assert_eq!(
        gate(&desired),
        (
            Vec::new(),
            vec!["10.244.0.0/16".to_owned()],
            vec!["eth0".to_owned()]
        )
    );
    // A pod elsewhere shows that it is not true.
    index.apply(pod("e", "n1", "10.99.0.1", "blog"));
    let desired = index.desired();
    assert!(
        index.needs_all_pods()
            && index.pod_networks_are_unknown()
            && is_exempt(&desired, "10.99.0.1")
    );
    assert!(gate(&desired).1.contains(&"0.0.0.0/1".to_owned()));
    // Where a Node says where its pods are, its sources tell alone.
    index.apply(Change::Pod(PodName::new("default", "e"), None));
    index.apply(Change::PodNetworks(Vec::new()));
    index.apply(node("n1", "10.244.1.0/24", "10.6.0.1"));
    assert_eq!(
        gate(&index.desired()),
        (vec!["10.244.1.0/24".to_owned()], Vec::new(), Vec::new())
    );
    assert!(!index.pod_networks_are_unknown());
}
