//! Which mark each gateway has.

use super::gateways::*;
use crate::api::{Api, told};

#[test]
fn marks_are_the_lowest_free_without_the_exit_mark_and_stay() {
    let mut api = three();
    api.gateway("z", &format!("{{{SELECTS}}}"));
    api.gateway("a", &format!("{{{SELECTS}}}"));
    api.settle();
    let marks = |api: &Api, names: &[&str]| {
        names
            .iter()
            .map(|name| api.gateway_status(name).mark.unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        marks(&api, &["gw", "a", "z"]),
        [0x1100_0000, 0x1300_0000, 0x1400_0000]
    );
    api.gateways.remove("a");
    api.gateway("n", &format!("{{{SELECTS}}}"));
    api.settle();
    assert_eq!(
        marks(&api, &["gw", "n", "z"]),
        [0x1100_0000, 0x1300_0000, 0x1400_0000]
    );
}

#[test]
fn without_a_mark_left_a_gateway_says_so_and_the_others_keep_theirs() {
    let mut api = Api::default();
    api.node("b", EGRESS);
    for number in 0..256 {
        api.gateway(&format!("gw{number:03}"), &format!("{{{SELECTS}}}"));
    }
    api.settle();
    let marks: std::collections::BTreeSet<_> = api
        .gateways
        .values()
        .filter_map(|gateway| gateway.status.as_ref()?.mark)
        .collect();
    assert_eq!(marks.len(), 237);
    let no_targets = [0, 0x1200_0000, 0xff00_0000];
    assert!(no_targets.iter().all(|mark| !marks.contains(mark)));
    assert_eq!(
        told(&api.gateway_status("gw255").conditions, "Ready"),
        "False MarksExhausted: no mark is left: its traffic is held"
    );
    let freed = api.gateways.remove("gw000").unwrap().status.unwrap().mark;
    api.settle();
    assert_eq!(api.gateway_status("gw237").mark, freed);
}

#[test]
fn of_two_gateways_that_say_the_same_mark_the_older_keeps_it() {
    let mut api = three();
    api.gateway("a", &format!("{{{SELECTS}}}"));
    api.settle();
    let at = |second| {
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
            k8s_openapi::jiff::Timestamp::from_second(second).unwrap(),
        ))
    };
    api.gateways
        .get_mut("a")
        .unwrap()
        .metadata
        .creation_timestamp = at(9);
    api.gateways
        .get_mut("gw")
        .unwrap()
        .metadata
        .creation_timestamp = at(1);
    api.gateways
        .get_mut("a")
        .unwrap()
        .status
        .as_mut()
        .unwrap()
        .mark = Some(0x1100_0000);
    api.settle();
    assert_eq!(
        (api.gateway_status("gw").mark, api.gateway_status("a").mark),
        (Some(0x1100_0000), Some(0x1300_0000))
    );
}
