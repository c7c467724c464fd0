//! Plans without a kernel.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use egressgateway::testing::worlds::{
    class, client, egress, gateway, ip, on_two_networks, range, target,
};
use egressgateway::{
    Change, Driver, ErrorKind, Plan, PolicyDesired, model::SourceNat, model::Verdict,
};
use egressgateway_backend_nftables::{NftPlan, NftState, Nftables, NftablesSettings};
use egressgateway_testkit::golden;

fn plan(desired: &PolicyDesired, current: &NftState) -> Change<NftPlan, NftState> {
    Nftables::offline(NftablesSettings::default())
        .plan(desired, current)
        .unwrap()
}

#[test]
fn the_script_of_a_whole_node_is_the_golden_one() {
    let script = plan(&client(), &NftState::default()).plan.to_string();
    golden::check(
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/world.nft"),
        &script,
    );
}

#[test]
fn one_pod_costs_its_elements_and_one_policy_its_ranges() {
    let before = plan(&client(), &NftState::default()).after;
    let mut desired = client();
    desired.pods.insert(ip("10.244.1.20"), class(2));
    desired.pods.remove(&ip("10.244.1.10"));
    desired.pods.insert(ip("10.244.1.11"), class(1));
    let Change {
        plan: script,
        after,
    } = plan(&desired, &before);
    assert_eq!(
        script.to_string(),
        "delete element inet egressgateway pods4 { 10.244.1.10, 10.244.1.11 }\n\
         add element inet egressgateway ungoverned4 { 10.244.1.10 }\n\
         add element inet egressgateway pods4 { 10.244.1.11 : 0:1, 10.244.1.20 : 0:2 }\n"
    );
    desired
        .destinations
        .insert((class(1), range("10.6.8.0-10.6.8.2")), Verdict::Hold);
    desired
        .destinations
        .remove(&(class(1), range("10.6.2.0/24")));
    assert_eq!(
        plan(&desired, &after).plan.to_string(),
        "delete element inet egressgateway verdicts4 { 0:1 . 10.6.2.0/24 }\n\
         add element inet egressgateway changing { 0:1 }\n\
         add element inet egressgateway verdicts4 { 0:1 . 10.6.8.0-10.6.8.2 : goto held }\n\
         flush set inet egressgateway changing\n"
    );
}

#[test]
fn a_node_that_becomes_exit_changes_one_chain_and_the_exits_elements() {
    let before = plan(&client(), &NftState::default()).after;
    let mut desired = client();
    desired.exits.insert(target(0x13));
    let Change {
        plan: script,
        after,
    } = plan(&desired, &before);
    let script = script.to_string();
    assert!(
        script.starts_with(
            "add chain inet egressgateway post_restore { type filter hook postrouting priority 105;"
        ),
        "{script}"
    );
    assert!(
        script.contains("flush chain inet egressgateway to_13\n"),
        "{script}"
    );
    assert!(
        script.contains(
            "add element inet egressgateway snat_address4 { 0:1 . 10.6.2.0/24 : 10.6.0.200 }\n"
        ),
        "{script}"
    );
    assert!(
        !script.contains("verdicts4")
            && !script.contains("to_11")
            && !script.contains("counter inet"),
        "{script}"
    );
    let back = plan(&client(), &after).plan.to_string();
    assert!(back.contains("flush chain inet egressgateway post_restore\ndelete chain inet egressgateway post_restore\n"), "{back}");
    assert!(!back.contains(" table "), "{back}");
}

#[test]
fn the_way_to_a_state_does_not_show_in_it() {
    let direct = plan(&gateway(), &NftState::default()).after;
    let around = plan(
        &client(),
        &plan(
            &PolicyDesired {
                start_gate: None,
                ..gateway()
            },
            &direct,
        )
        .after,
    )
    .after;
    assert_eq!(plan(&gateway(), &around).after, direct);
    assert!(plan(&gateway(), &direct).plan.is_empty());
}

#[test]
fn nothing_asked_is_no_table() {
    let before = plan(&client(), &NftState::default()).after;
    let Change {
        plan: script,
        after,
    } = plan(&PolicyDesired::default(), &before);
    assert_eq!(script.to_string(), "delete table inet egressgateway\n");
    assert_eq!(after, NftState::default());
    assert!(!after.exists() && after.is_empty());
    assert!(plan(&PolicyDesired::default(), &after).plan.is_empty());
}

#[test]
fn what_cannot_be_expressed_is_refused_as_invalid() {
    let nftables = Nftables::offline(NftablesSettings::default());
    let current = plan(&client(), &NftState::default()).after;
    let place = |id, net| (class(id), range(net));
    let mut family = client();
    family.destinations.insert(
        place(u32::MAX, "10.9.0.0/16"),
        egress(0x14, SourceNat::Address(ip("fd00::1"))),
    );
    let mut overlap = client();
    overlap
        .destinations
        .insert(place(1, "10.6.1.100"), Verdict::Hold);
    let mut subnets = client();
    subnets.subnets.insert(range("10.250.7.0/24"), class(1));
    let mut device = client();
    device.overlay.devices.insert("a\"b".into());
    for desired in [family, overlap, subnets, device] {
        for current in [&current, &NftState::default()] {
            assert_eq!(
                nftables.plan(&desired, current).unwrap_err().kind,
                ErrorKind::Invalid
            );
        }
    }
}

#[test]
fn a_later_change_keeps_what_leaves_by_another_network() {
    let first = plan(&on_two_networks(), &NftState::default()).after;
    let mut desired = on_two_networks();
    desired.destinations.insert(
        (class(7), range("10.9.0.0/16")),
        egress(0x11, SourceNat::NodeAddress),
    );
    let change = plan(&desired, &first);
    assert!(!change.plan.to_string().contains("via4"), "{}", change.plan);
    assert!(
        change.after == plan(&desired, &NftState::default()).after,
        "as from nothing"
    );
}

#[test]
fn one_of_ten_thousand_policies_costs_its_own_elements() {
    let mut desired = client();
    for policy in 0..10_000_u32 {
        let net = range(&format!(
            "10.{}.{}.0/24",
            100 + policy / 256 % 100,
            policy % 256
        ));
        desired.destinations.insert(
            (class(10 + policy), net),
            egress(0x11, SourceNat::NodeAddress),
        );
        desired.pods.insert(
            std::net::Ipv4Addr::from_bits(0x0b00_0000 + policy).into(),
            class(10 + policy),
        );
    }
    let Change { plan: all, after } = plan(&desired, &NftState::default());
    let objects = all
        .to_string()
        .lines()
        .filter(|line| !line.starts_with("add element"))
        .count();
    assert!(objects < 240, "{objects} objects are constant in number");
    desired.pods.insert(ip("10.244.1.20"), class(77));
    assert_eq!(
        plan(&desired, &after).plan.to_string(),
        "add element inet egressgateway pods4 { 10.244.1.20 : 0:4d }\n"
    );
}

#[tokio::test]
async fn an_offline_backend_only_plans() {
    let offline = Nftables::offline(NftablesSettings::default());
    assert_eq!(
        offline.observe().await.unwrap_err().kind,
        ErrorKind::Unsupported
    );
    assert_eq!(
        offline
            .apply(&plan(&client(), &NftState::default()).plan)
            .await
            .unwrap_err()
            .kind,
        ErrorKind::Unsupported
    );
    assert!(Arc::new(offline).probe().await.is_err());
}
