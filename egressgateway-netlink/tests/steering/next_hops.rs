//! Groups of next hops of balanced targets.

use std::sync::Arc;

use egressgateway::{
    Driver, ErrorKind, NextHop, SteeringDesired,
    testing::conformance::{self, Host},
};
use egressgateway_netlink::{Netlink, Route, Steering, SteeringState, SteeringStep};
use egressgateway_testkit::netns::in_namespace;

use super::*;

/// Three gateways of a balanced target, and the two that are left.
fn three_and_two() -> (SteeringDesired, SteeringDesired) {
    let hops = ["172.31.0.11", "172.31.0.12", "172.31.0.13"].map(|via| hop("tun4", via));
    let of = |hops: &[NextHop]| balanced(desired(&[(0x11, hops)], &[]), &[0x11]);
    (of(&hops), of(&hops[..2]))
}

#[test]
fn of_a_balanced_target_only_the_group_changes_when_a_next_hop_goes_or_comes() {
    in_namespace(|| async {
        world();
        let (three, two) = three_and_two();
        let driver = reach(&three).await;
        let verbs = |change: &egressgateway::Change<_, SteeringState>| {
            let plan: &egressgateway_netlink::SteeringPlan = &change.plan;
            plan.steps()
                .iter()
                .map(SteeringStep::verb)
                .collect::<Vec<_>>()
        };
        let loss = driver.plan(&two, &driver.observe().await.unwrap()).unwrap();
        assert_eq!(
            verbs(&loss),
            ["replace next hop", "delete next hop", "delete next hop"],
            "{}",
            loss.plan
        );
        driver.apply(&loss.plan).await.unwrap();
        let return_ = driver.plan(&three, &loss.after).unwrap();
        assert_eq!(
            verbs(&return_),
            ["add next hop", "add next hop", "replace next hop"],
            "{}",
            return_.plan
        );
        driver.apply(&return_.plan).await.unwrap();
        assert_eq!(driver.observe().await.unwrap(), return_.after);
    });
}

#[test]
fn next_hops_that_somebody_deletes_or_changes_leak_nothing_and_come_back() {
    in_namespace(|| async {
        world();
        let (three, _) = three_and_two();
        let driver = reach(&three).await;
        let ids = run("ip nexthop show proto 77 | cut -d ' ' -f 2");
        let (hops, group): (Vec<&str>, Vec<&str>) =
            ids.lines().partition(|id| id.starts_with("16"));
        let [group] = group[..] else {
            panic!("one group: {ids}")
        };
        assert_eq!(
            (hops.len(), group),
            (6, "1700000174"),
            "each next hop has two numbers"
        );
        let all = format!(
            "for id in {}; do ip nexthop del id $id; done",
            hops.join(" ")
        );
        let (first, second) = (hops[0], hops[1]);
        for damage in [
            format!("ip nexthop del id {first}"),
            format!("ip nexthop del id {group}"),
            all,
            format!("ip nexthop replace id {first} via 172.31.0.99 dev tun4 onlink proto 77"),
            format!("ip nexthop del id {first}; ip nexthop add id {first} blackhole proto 77"),
            format!(
                "ip nexthop replace id {group} group {first} type resilient buckets 4096 idle_timer 7 proto 77"
            ),
            format!(
                "ip nexthop del id {group}; ip nexthop add id {group} group {first}/{second} proto 77"
            ),
            format!(
                "ip nexthop add id 55 via 172.31.0.99 dev tun4 onlink proto 77; ip nexthop add id 56 group 55/{first} proto 77"
            ),
        ] {
            run(&damage);
            let hurt = driver.observe().await.unwrap();
            let there = hurt
                .routes
                .iter()
                .any(|(_, action)| matches!(action, egressgateway_netlink::RouteAction::Group(_)));
            let way = hurt.route(0x1100_0000, "1.1.1.1".parse().unwrap());
            assert!(
                there || way == Route::Unreachable,
                "{damage}: closed, not open: {way:?}"
            );
            reach(&three).await;
            assert_eq!(
                run("ip nexthop show proto 77 | wc -l").trim(),
                "7",
                "{damage}"
            );
        }
    });
}

#[test]
fn a_number_that_somebody_else_has_is_a_conflict_and_stays_theirs() {
    in_namespace(|| async {
        world();
        run("ip nexthop add id 1700000174 group 7");
        let (three, _) = three_and_two();
        let driver = NAMESPACE.driver(Arc::new(())).await;
        let change = driver
            .plan(&three, &driver.observe().await.unwrap())
            .unwrap();
        let error = driver.apply(&change.plan).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Conflict);
        assert!(error.context.contains("1700000174"), "{}", error.chain());
        assert!(run("ip nexthop show id 1700000174").contains("group 7"));
    });
}

#[test]
fn where_the_kernel_has_no_resilient_groups_the_routes_have_the_next_hops() {
    in_namespace(|| async {
        world();
        assert!(
            Steering::keeps_connections_on(&Netlink::open().unwrap())
                .await
                .unwrap(),
            "this kernel has them"
        );
        conformance::check(&OLD, &states()[1..3]).await;
        // And after an upgrade of the kernel, or of us.
        let (three, _) = three_and_two();
        for namespace in [&OLD, &NAMESPACE, &OLD] {
            reach_on(namespace, &three).await;
            assert_eq!(
                run("ip nexthop show proto 77").is_empty(),
                !namespace.keeps_connections
            );
        }
        assert_eq!(
            run("cat /proc/sys/net/ipv4/fib_multipath_hash_policy").trim(),
            "1"
        );
        reach_on(&OLD, &SteeringDesired::default()).await;
    });
}
