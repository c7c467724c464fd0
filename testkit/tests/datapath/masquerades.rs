//! Egress addresses on nodes where somebody else's rules translate too.

use egressgateway_testkit::lab::{Families, RuleTool};

use crate::{
    address_holders::{Given, STEP, gateway, seen_as_given, wait_given},
    world::{DataPath, GOVERNED, World, lab, usual_policy},
};

pub(crate) fn a_masquerade_that_comes_before_ours_gives_nothing_another_source(path: &DataPath) {
    let world = World::start_in(
        path,
        lab().rules_by(RuleTool::IptablesLegacy),
        Families::Dual,
    );
    world.cluster.apply(&gateway(7));
    world.cluster.apply(&usual_policy());
    let Given { node, addresses } = wait_given(&world, "shopping");
    seen_as_given(&world, &world.shop, addresses);
    let (owner, programs) = (
        world.cluster.lab.node(&node),
        ["iptables-legacy", "ip6tables-legacy"],
    );
    let capture = world.cluster.lab.capture().unwrap();
    let streams: Vec<_> = world
        .endpoints(GOVERNED)
        .into_iter()
        .map(|to| world.shop.stream(to, STEP).fresh_ports().start().unwrap())
        .collect();
    // For the first time, so that nobody has had a reason to expect it.
    for program in programs {
        owner
            .run(&format!(
                "{program} -w -t nat -I POSTROUTING -m comment --comment before -j MASQUERADE"
            ))
            .unwrap();
    }
    world
        .cluster
        .eventually("ours come first again, or stand elsewhere", || {
            for program in programs {
                let listed = owner
                    .run(&format!("{program} -w -t nat -S POSTROUTING"))
                    .unwrap();
                let ours = listed.lines().position(|line| line.contains("EGW-"));
                if ours.is_some_and(|ours| {
                    listed
                        .lines()
                        .take(ours)
                        .any(|line| line.contains("--comment before"))
                }) {
                    return Err(listed);
                }
            }
            Ok(())
        });
    seen_as_given(&world, &world.shop, addresses);
    if path.backend == "netfilter" {
        world
            .cluster
            .eventually("what others translated is counted", || {
                let dropped = world.counted(&node, "drop_unknown_source");
                if dropped > 0.0 {
                    Ok(())
                } else {
                    Err(format!("{dropped} dropped"))
                }
            });
    }
    for (stream, address) in streams.into_iter().zip(addresses) {
        let report = stream.finish().unwrap();
        eprintln!(
            "with {address}: {} of {} lost, longest gap {:?}",
            report.lost(),
            report.sent,
            report.longest_gap
        );
        assert_eq!(
            report.sources.keys().collect::<Vec<_>>(),
            [&address],
            "and with no other address: {:?}",
            report.sources
        );
    }
    assert_eq!(world.leaks_besides(&capture, &addresses), [""; 0]);
}

/// Connections of a table of nftables are translated in the order of the chains' priorities, of
/// which everybody may choose their own.
pub(crate) fn a_masquerade_of_any_priority_gives_nothing_another_source(path: &DataPath) {
    let world = World::start(path);
    world.cluster.apply(&gateway(7));
    world.cluster.apply(&usual_policy());
    let Given { node, addresses } = wait_given(&world, "shopping");
    seen_as_given(&world, &world.shop, addresses);
    let owner = world.cluster.lab.node(&node);
    let capture = world.cluster.lab.capture().unwrap();
    for (table, priority) in [("late", 99), ("early", 0), ("first", -198)] {
        owner
            .run(&format!(
                "nft 'add table inet {table}; add chain inet {table} out {{ type nat hook postrouting priority {priority}; }}; \
                 add rule inet {table} out oifname eth0 masquerade'"
            ))
            .unwrap();
        for (endpoint, address) in world.endpoints(GOVERNED).into_iter().zip(addresses) {
            for _ in 0..2 {
                let seen = [
                    world.shop.connect_tcp(endpoint),
                    world.shop.connect_udp(endpoint),
                ];
                for seen in seen.into_iter().flatten() {
                    assert_eq!(
                        seen.ip(),
                        address,
                        "with a masquerade of priority {priority}"
                    );
                }
            }
        }
    }
    if path.backend == "nftables" {
        seen_as_given(&world, &world.shop, addresses);
    } else {
        // iptables has one priority, so that whoever comes before it is noticed, and nothing
        // leaves.
        world.is_dropped(&world.shop, GOVERNED);
        world
            .cluster
            .eventually("what others translated is counted", || {
                let dropped = world.counted(&node, "drop_unknown_source");
                if dropped > 0.0 {
                    Ok(())
                } else {
                    Err(format!("{dropped} dropped"))
                }
            });
    }
    assert_eq!(world.leaks_besides(&capture, &addresses), [""; 0]);
}
