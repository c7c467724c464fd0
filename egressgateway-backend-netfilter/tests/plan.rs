//! Plans without a kernel.
#![allow(clippy::unwrap_used)]

use egressgateway::testing::worlds::{class, client, egress, gateway, ip, range, target};
use egressgateway::{
    Change, Driver, ErrorKind, Plan, PolicyDesired, model::SourceNat, model::Verdict,
};
use egressgateway_backend_netfilter::{
    Netfilter, NetfilterPlan, NetfilterSettings, NetfilterState,
};
use egressgateway_testkit::golden;

fn plan(
    desired: &PolicyDesired,
    current: &NetfilterState,
) -> Change<NetfilterPlan, NetfilterState> {
    Netfilter::offline(NetfilterSettings::default())
        .plan(desired, current)
        .unwrap()
}

#[test]
fn the_script_of_a_whole_node_is_the_golden_one() {
    let script = plan(&client(), &NetfilterState::default()).plan.to_string();
    golden::check(
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/world.netfilter"),
        &script,
    );
}

#[test]
fn one_pod_costs_one_entry_and_one_policy_its_ranges() {
    let before = plan(&client(), &NetfilterState::default()).after;
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
        "# ipset restore\nadd egw-pods-v4 10.244.1.20 skbmark 0x3/0xffff\nadd egw-pods-v4 10.244.1.11 skbmark 0x2/0xffff -exist\n\
         add egw-ungoverned-v4 10.244.1.10\ndel egw-pods-v4 10.244.1.10\n"
    );
    desired
        .destinations
        .insert((class(1), range("10.6.8.0-10.6.8.2")), Verdict::Hold);
    desired
        .destinations
        .remove(&(class(1), range("10.6.2.0/24")));
    let script = plan(&desired, &after).plan.to_string();
    let adds = "# ipset restore\nadd egw-verdicts-00000001-v4 10.6.8.0/31 skbmark 0x0/0xff00ffff\n\
         add egw-verdicts-00000001-v4 10.6.8.2 skbmark 0x0/0xff00ffff\n";
    assert_eq!(
        script,
        format!("{adds}del egw-verdicts-00000001-v4 10.6.2.0/24\n")
    );
}

#[test]
fn the_way_to_a_state_does_not_show_in_it() {
    let direct = plan(&gateway(), &NetfilterState::default()).after;
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
fn nothing_asked_is_nothing_there() {
    let before = plan(&client(), &NetfilterState::default()).after;
    assert!(before.exists() && !before.is_empty());
    let Change {
        plan: script,
        after,
    } = plan(&PolicyDesired::default(), &before);
    let text = script.to_string();
    assert!(
        text.starts_with("# iptables-restore --noflush\n*mangle\n"),
        "what pins goes first: {text}"
    );
    assert!(!text.contains("-A ") && !text.contains("add "), "{text}");
    assert_eq!(after, NetfilterState::default());
    assert!(plan(&PolicyDesired::default(), &after).plan.is_empty());
}

#[test]
fn what_cannot_be_expressed_is_refused_as_invalid() {
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
    let devices = ["a\"b", "eth+", "", "a b", "longer-than-a-name"].map(|name| {
        let mut device = client();
        device.overlay.devices.insert(name.into());
        device
    });
    for desired in [family, overlap, subnets].iter().chain(&devices) {
        let error = Netfilter::offline(NetfilterSettings::default())
            .plan(desired, &NetfilterState::default())
            .unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
    }
}

#[test]
fn ten_thousand_policies_make_no_chain_long_and_one_more_pod_is_one_entry() {
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
    let Change { plan: all, after } = plan(&desired, &NetfilterState::default());
    let text = all.to_string();
    let mut lengths = std::collections::BTreeMap::<&str, usize>::new();
    let script = text.split("# ip6tables-restore").next().unwrap();
    script
        .lines()
        .filter_map(|line| line.strip_prefix("-A ")?.split(' ').next())
        .for_each(|chain| *lengths.entry(chain).or_default() += 1);
    assert!(lengths.values().all(|rules| *rules <= 17), "{lengths:?}");
    desired.pods.insert(ip("10.244.1.20"), class(77));
    assert_eq!(
        plan(&desired, &after).plan.to_string(),
        "# ipset restore\nadd egw-pods-v4 10.244.1.20 skbmark 0x4e/0xffff\n"
    );
}

#[test]
fn a_node_that_becomes_exit_changes_one_chain_and_the_sources() {
    let before = plan(&client(), &NetfilterState::default()).after;
    let mut desired = client();
    desired.exits.insert(target(0x13));
    let script = plan(&desired, &before).plan.to_string();
    assert!(
        script.contains(":EGW-TO-13 - [0:0]\n")
            && !script.contains("EGW-TO-11")
            && !script.contains("EGW-C-"),
        "{script}"
    );
    assert!(
        script.contains("-j SNAT --to-source 10.6.0.200\n"),
        "{script}"
    );
    assert!(!script.contains("egw-pods"), "{script}");
}

#[tokio::test]
async fn an_offline_backend_only_plans() {
    let offline = Netfilter::offline(NetfilterSettings::default());
    assert_eq!(
        offline.observe().await.unwrap_err().kind,
        ErrorKind::Unsupported
    );
    assert_eq!(
        offline
            .apply(&plan(&client(), &NetfilterState::default()).plan)
            .await
            .unwrap_err()
            .kind,
        ErrorKind::Unsupported
    );
    assert!(offline.probe().await.is_err());
}
