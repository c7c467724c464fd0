//! Plans that need no kernel.

use std::net::IpAddr;

use egressgateway::{Driver, ErrorKind, NextHop, SteeringDesired, model::TargetId};
use egressgateway_netlink::{Route, Steering, SteeringSettings, SteeringState};

use super::*;

#[test]
fn plans_are_made_without_a_kernel() {
    let driver = Steering::offline(SteeringSettings::default());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    assert_eq!(
        runtime.block_on(driver.observe()).unwrap_err().kind,
        ErrorKind::Unsupported
    );
    let change = driver
        .plan(&states()[0], &SteeringState::default())
        .unwrap();
    let text = change.plan.to_string();
    let place = |line: &str| {
        text.lines()
            .position(|other| other == line)
            .unwrap_or_else(|| panic!("no {line} in {text}"))
    };
    let unreachable = place("route add unreachable 0.0.0.0/0 table 100 metric 4278198272 proto 77");
    let ways = place(
        "route add 0.0.0.0/0 table 100 metric 1024 proto 77 nexthop via 172.31.0.11 dev tun4 onlink nexthop via 172.31.0.12 dev tun4 onlink",
    );
    let guard =
        place("rule add fwmark 0x11000000/0xff000000 iif lo lookup 254 pref 98 protocol 77");
    let steer = place("rule add fwmark 0x11000000/0xff000000 lookup 100 pref 99 protocol 77");
    assert!(
        unreachable < ways && ways < guard && guard < steer,
        "{text}"
    );
    let hop: IpAddr = "172.31.0.13".parse().unwrap();
    assert_eq!(
        change.after.route(0x1300_0001, "8.8.8.8".parse().unwrap()),
        Route::Via(vec![NextHop {
            device: "tun4".into(),
            via: hop,
            encap: None
        }])
    );
}

#[test]
fn impossible_numbers_are_refused() {
    let plan = |settings, desired: &SteeringDesired| {
        Steering::offline(settings)
            .plan(desired, &SteeringState::default())
            .map(|_| ())
    };
    for rule_priority in [0, 1, 32_766] {
        let settings = SteeringSettings::default().with_rule_priority(rule_priority);
        assert_eq!(
            plan(settings, &states()[0]).unwrap_err().kind,
            ErrorKind::Invalid
        );
    }
    let last = SteeringSettings::default().with_table_base(u32::MAX);
    assert_eq!(
        plan(last, &states()[0]).unwrap_err().kind,
        ErrorKind::Invalid
    );
    let all = desired(&[(0x11, &[])], &["0.0.0.0/0"]);
    assert_eq!(
        plan(SteeringSettings::default(), &all).unwrap_err().kind,
        ErrorKind::Invalid
    );
}

#[test]
fn tables_follow_the_order_of_allotment_and_skip_the_kernels_own() {
    let settings = SteeringSettings::default().with_table_base(250);
    let tables: Vec<_> = TargetId::all()
        .take(6)
        .map(|target| settings.table(target).unwrap())
        .collect();
    assert_eq!(tables, [250, 251, 252, 256, 257, 258]);
    assert_eq!(settings.table(target(0x13)), Some(251), "0x12 is no target");
}
