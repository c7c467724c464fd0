//! The time of grace that connections have when their node is drained or cordoned.

use std::time::Duration;

use egressgateway::world::Labels;

use super::gateways::*;
use crate::api::Api;

/// Three nodes, of which b is active, and a grace time of a minute.
fn graceful() -> Api {
    let mut api = three();
    api.settings.drain_grace = Duration::from_secs(60);
    api.now = 1000;
    api.settle();
    api
}

/// The active node, the marks of new and old connections, and the node of the latter with the end
/// of its time.
type Ways = (Vec<String>, Option<u32>, Option<u32>, Option<(String, i64)>);

fn ways(api: &mut Api) -> Ways {
    api.settle();
    let status = api.gateway_status("gw");
    let draining = status
        .draining
        .as_ref()
        .map(|draining| (draining.node.clone(), draining.until.0.as_second()));
    let active = status
        .node_list
        .iter()
        .filter(|node| node.active)
        .map(|node| node.name.clone())
        .collect();
    (active, status.mark, status.former_mark, draining)
}

#[test]
fn connections_through_a_drained_node_keep_their_mark_and_their_way_for_the_grace_time() {
    let mut api = graceful();
    let (first, second) = (Some(0x1100_0000), Some(0x1300_0000));
    let (before, mark, former, draining) = ways(&mut api);
    assert_eq!((mark, former, draining), (first, None, None));
    drain(&mut api, &before[0]);
    let (active, mark, former, draining) = ways(&mut api);
    assert_ne!(active, before);
    assert_eq!(
        (mark, former),
        (second, first),
        "new connections get the other mark"
    );
    assert_eq!(draining, Some((before[0].clone(), 1060)));
    api.now = 1059;
    api.nodes.get_mut(&before[0]).unwrap().annotations = Labels::default();
    assert_eq!(
        ways(&mut api),
        (active.clone(), second, first, draining),
        "it stands by, and its connections go on"
    );
    api.now = 1060;
    assert_eq!(
        ways(&mut api),
        (active.clone(), second, first, None),
        "they go where all others go, with their mark"
    );
    drain(&mut api, &active[0]);
    let (last, mark, former, draining) = ways(&mut api);
    assert_ne!(last, active);
    assert_eq!(
        (mark, former, draining),
        (first, second, Some((active[0].clone(), 1120))),
        "the marks change places again"
    );
}

#[test]
fn connections_through_a_cordoned_node_have_the_grace_time_too_unless_it_stays_the_active_one() {
    let mut api = graceful();
    let (first, second) = (Some(0x1100_0000), Some(0x1300_0000));
    let before = ways(&mut api).0.remove(0);
    cordon(&mut api, &before, true);
    let (active, mark, former, draining) = ways(&mut api);
    assert_eq!(
        (mark, former, draining),
        (second, first, Some((before, 1060)))
    );
    api.now = 1060;
    for node in ["b", "c", "d"] {
        cordon(&mut api, node, true);
    }
    assert_eq!(ways(&mut api).0.len(), 1);
    api.now = 1120;
    let settled = ways(&mut api);
    cordon(&mut api, &active[0], true);
    assert_eq!(
        ways(&mut api),
        settled,
        "nothing moves while all are cordoned"
    );
}

#[test]
fn of_nodes_that_share_connections_the_drained_one_keeps_its_own_for_the_grace_time() {
    let mut api = graceful();
    api.gateway("gw", &format!("{{{SELECTS}, forwardMethod: ecmp}}"));
    assert_eq!(ways(&mut api).0, ["b", "c", "d"]);
    drain(&mut api, "c");
    let (first, second) = (Some(0x1100_0000), Some(0x1300_0000));
    let of_two = vec!["b".to_owned(), "d".to_owned()];
    assert_eq!(
        ways(&mut api),
        (of_two.clone(), second, first, Some(("c".to_owned(), 1060)))
    );
    api.now = 1060;
    assert_eq!(ways(&mut api), (of_two, second, first, None));
}

#[test]
fn there_is_no_grace_for_who_can_not_carry_or_has_no_successor_or_where_it_is_zero_or_another_has_it()
 {
    let nothing = |api: &mut Api, why: &str| {
        let (_, mark, former, draining) = ways(api);
        assert_eq!(
            (mark, former, draining),
            (Some(0x1100_0000), None, None),
            "{why}"
        );
    };
    let active = ways(&mut graceful()).0.remove(0);
    let mut api = graceful();
    api.settings.drain_grace = Duration::ZERO;
    drain(&mut api, &active);
    nothing(&mut api, "zero");
    let mut api = graceful();
    api.fresh.remove(&active);
    drain(&mut api, &active);
    nothing(&mut api, "its agent is silent");
    let mut api = graceful();
    for node in ["b", "c", "d"] {
        drain(&mut api, node);
    }
    nothing(&mut api, "nobody is left");

    let mut api = graceful();
    drain(&mut api, &active);
    let (next, mark, former, draining) = ways(&mut api);
    drain(&mut api, &next[0]);
    let after = ways(&mut api);
    assert_ne!(after.0, next);
    assert_eq!(
        (after.1, after.2, after.3.clone()),
        (mark, former, draining),
        "one at a time"
    );
    api.nodes.get_mut(&active).unwrap().ready = false;
    assert_eq!(
        ways(&mut api),
        (after.0, mark, former, None),
        "a drained node that dies has no connections any more"
    );
}
