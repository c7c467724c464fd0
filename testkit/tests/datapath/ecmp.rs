//! Connections spread over all gateways, each to stay with its own.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    ops::Range,
    thread,
};

use egressgateway_testkit::lab::{Families, Flow, NodeSpec, PORT};

use crate::{
    failover::{drain, probed},
    world::{
        CLIENT, DataPath, GATEWAY, GATEWAYS, GOVERNED, Place, World, lab, measured, usual_policy,
    },
};

const THIRD: &str = "gateway-3";
/// How many connections are spread.
const CONNECTIONS: u16 = 1_000;
/// How far from even a gateway's share of them may be, in percent of the even share.
const UNEVEN: usize = 15;
/// TCP connections of each family.
const STREAMS: usize = 30;

type Spread = BTreeMap<IpAddr, usize>;

/// The connections from the n-th thousand of ports.
fn ports(thousand: u16) -> Range<u16> {
    let first = 10_000 + CONNECTIONS * thousand;
    first..first + CONNECTIONS
}

fn sources(world: &World, to: SocketAddr, ports: Range<u16>) -> Vec<IpAddr> {
    world
        .shop
        .connect_from(to, ports)
        .unwrap_or_else(|error| panic!("{to}: {error}\n{}", world.cluster.logs()))
        .iter()
        .map(SocketAddr::ip)
        .collect()
}

fn spread(sources: impl IntoIterator<Item = IpAddr>) -> Spread {
    let mut spread = Spread::new();
    for source in sources {
        *spread.entry(source).or_default() += 1;
    }
    spread
}

fn is_even(spread: &Spread) -> bool {
    let even = spread.values().sum::<usize>() / 3;
    spread.len() == 3
        && spread
            .values()
            .all(|share| 100 * share.abs_diff(even) <= UNEVEN * even)
}

/// Three gateways that balance, all in use.
fn balanced(path: &DataPath) -> World {
    balanced_with(path, "")
}

fn balanced_with(path: &DataPath, configuration: &str) -> World {
    let place = Place::make(
        lab().nodes([NodeSpec::new(THIRD).label("egress", "true")]),
        Families::Dual,
    );
    let world = place.with_configured_daemons(path, configuration);
    world
        .cluster
        .apply(&GATEWAY.replace("spec: {", "spec: {forwardMethod: ecmp, "));
    world.cluster.apply(&usual_policy());
    all_are_used(&world);
    probed(world)
}

/// The sources that governed traffic may have.
fn all_addresses(world: &World) -> Vec<IpAddr> {
    [GATEWAYS[0], GATEWAYS[1], THIRD]
        .iter()
        .flat_map(|node| world.cluster.lab.node(node).addresses())
        .collect()
}

fn all_are_used(world: &World) {
    for to in world.endpoints(GOVERNED) {
        world.cluster.eventually("all three gateways are used", || {
            let seen = world
                .shop
                .connect_many(to, 64)
                .map_err(|error| error.to_string())?;
            let spread = spread(seen.iter().map(SocketAddr::ip));
            if spread.len() == 3 {
                Ok(())
            } else {
                Err(format!("{spread:?}"))
            }
        });
    }
}

/// Asks all at once; none: the connection is broken.
fn echoes(streams: &mut [Flow]) -> Vec<Option<IpAddr>> {
    thread::scope(|scope| {
        let threads: Vec<_> = streams
            .iter_mut()
            .map(|flow| scope.spawn(|| flow.echo().ok().map(|seen| seen.ip())))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    })
}

pub(crate) fn of_three_gateways_each_has_its_share_and_keeps_it_while_another_goes_and_comes(
    path: &DataPath,
) {
    let world = balanced(path);
    let nodes = all_addresses(&world);
    let capture = world.cluster.lab.capture().unwrap();
    let third = world.cluster.lab.node(THIRD);
    let endpoints = world.endpoints(GOVERNED);

    let mut before = Vec::new();
    let mut streams = Vec::new();
    for to in &endpoints {
        let draw = |thousand| {
            let sources = measured("1,000 connections", || {
                sources(&world, *to, ports(thousand))
            });
            let spread = spread(sources.iter().copied());
            eprintln!("{to}: {spread:?}");
            is_even(&spread).then_some((thousand, sources))
        };
        // One draw of some four hundred strays further by chance.
        let (thousand, sources) = draw(0).or_else(|| draw(1)).expect("within 15 % of even");
        before.push((*to, ports(thousand), sources));
        streams.extend((0..STREAMS).map(|_| world.shop.open_tcp(*to).unwrap()));
    }
    let streamed: Vec<IpAddr> = streams.iter().map(|flow| flow.source_seen().ip()).collect();

    third.power_off().unwrap();
    world.cluster.eventually("the client has left it", || {
        let down = world
            .cluster
            .metric(CLIENT, "egressgateway_agent_gateways_down");
        if down == Some(1.0) {
            Ok(())
        } else {
            Err(format!("{down:?} are down"))
        }
    });
    for (before, now) in streamed.iter().zip(echoes(&mut streams)) {
        let lost = third.addresses().contains(before);
        assert_eq!(now.is_none(), lost, "a stream through {before}: {now:?}");
    }
    let mut after = Vec::new();
    for (to, ports, before) in before {
        let lost = third.like(to.ip());
        let now = sources(&world, to, ports.clone());
        let moved = before
            .iter()
            .zip(&now)
            .filter(|(before, now)| **before != lost && before != now)
            .count();
        assert_eq!(moved, 0, "{to}: connections through the others");
        assert!(!now.contains(&lost), "{to}: the lost one's go on elsewhere");
        after.push((to, ports, now));
    }
    let (mut streams, streamed): (Vec<_>, Vec<_>) = streams
        .into_iter()
        .zip(streamed)
        .filter(|(_, source)| !third.addresses().contains(source))
        .unzip();

    third.power_on().unwrap();
    measured("the third is used again", || all_are_used(&world));
    for (to, ports, before) in after {
        assert_eq!(
            sources(&world, to, ports),
            before,
            "{to}: connections stay where they are"
        );
    }
    let answers: Vec<_> = echoes(&mut streams).into_iter().flatten().collect();
    assert_eq!(answers, streamed, "and so do streams");
    for to in endpoints {
        let fresh = spread(sources(&world, to, ports(2)));
        eprintln!("{to}: new connections after the return: {fresh:?}");
        assert!(
            fresh
                .get(&third.like(to.ip()))
                .is_some_and(|share| 100 * share >= 25 * usize::from(CONNECTIONS)),
            "{fresh:?}"
        );
    }
    assert_eq!(world.leaks_besides(&capture, &nodes), [""; 0]);
}

pub(crate) fn connections_of_all_three_stay_while_one_is_drained_and_its_own_end_with_the_grace_time(
    path: &DataPath,
) {
    let world = balanced_with(path, "failover: {drainGracePeriod: 15s}\n");
    let capture = world.cluster.lab.capture().unwrap();
    let (third, endpoints) = (world.cluster.lab.node(THIRD), world.endpoints(GOVERNED));
    let mut streams: Vec<Flow> = endpoints
        .iter()
        .flat_map(|to| (0..STREAMS).map(move |_| to))
        .map(|to| world.shop.open_tcp(*to).unwrap())
        .collect();
    let before: Vec<_> = streams
        .iter()
        .map(|flow| Some(flow.source_seen().ip()))
        .collect();
    let shares: Vec<(SocketAddr, Vec<IpAddr>)> = endpoints
        .iter()
        .map(|to| (*to, sources(&world, *to, ports(0))))
        .collect();
    let of_third = |source: &IpAddr| third.addresses().contains(source);
    assert!(
        shares
            .iter()
            .all(|(_, sources)| spread(sources.iter().copied()).len() == 3)
            && before.iter().flatten().any(of_third)
    );

    drain(&world, THIRD, Some("true"));
    for to in &endpoints {
        world
            .cluster
            .eventually("new connections avoid the drained node", || {
                let seen = world
                    .shop
                    .connect_many(*to, 64)
                    .map_err(|error| error.to_string())?;
                let spread = spread(seen.iter().map(SocketAddr::ip));
                if spread.len() == 2 && !spread.contains_key(&third.like(to.ip())) {
                    Ok(())
                } else {
                    Err(format!("{spread:?}"))
                }
            });
    }
    assert_eq!(echoes(&mut streams), before, "streams in the grace time");
    for (to, share) in &shares {
        assert_eq!(
            sources(&world, *to, ports(0)),
            *share,
            "{to}: connections in the grace time"
        );
    }
    assert!(
        !world.cluster.status("EgressGateway", "exit")["draining"].is_null(),
        "this came too late to say anything about the grace time"
    );
    world.cluster.eventually("the grace time is over", || {
        let status = world.cluster.status("EgressGateway", "exit");
        if status["draining"].is_null() {
            Ok(())
        } else {
            Err(status.to_string())
        }
    });
    for (to, share) in &shares {
        world.cluster.eventually(
            "the drained node's connections are moved, and no others",
            || {
                let now = sources(&world, *to, ports(0));
                let moved = |(before, now): &(&IpAddr, &IpAddr)| before != now;
                let wrong = share
                    .iter()
                    .zip(&now)
                    .filter(|pair| moved(pair) != of_third(pair.0))
                    .count();
                if wrong == 0 {
                    Ok(())
                } else {
                    Err(format!(
                        "{wrong} of {} are where they should not be",
                        now.len()
                    ))
                }
            },
        );
    }
    let after: Vec<_> = before
        .iter()
        .map(|source| source.filter(|source| !of_third(source)))
        .collect();
    assert_eq!(echoes(&mut streams), after, "and so do streams");
    assert_eq!(
        world.leaks_besides(&capture, &all_addresses(&world)),
        [""; 0]
    );
}

pub(crate) fn connections_stay_with_their_gateway_when_packets_are_lost(path: &DataPath) {
    let world = balanced(path);
    let mut streams: Vec<Flow> = world
        .endpoints(GOVERNED)
        .into_iter()
        .flat_map(|to| (0..STREAMS).map(move |_| to))
        .map(|to| world.shop.open_tcp(to).unwrap())
        .collect();
    let before: Vec<_> = streams
        .iter()
        .map(|flow| Some(flow.source_seen().ip()))
        .collect();
    // A sender whose data is not acknowledged in time gives its packets another hash.
    let drop = format!(
        "add table inet lossy; add chain inet lossy in {{ type filter hook input priority 0; tcp dport {PORT} counter drop; }}"
    );
    world.server.run(&format!("nft '{drop}'")).unwrap();
    let again = thread::scope(|scope| {
        let echoes = scope.spawn(|| echoes(&mut streams));
        world
            .cluster
            .eventually("everybody has sent the same three times", || {
                let rules = world.server.run("nft list table inet lossy").unwrap();
                let dropped = rules
                    .split("packets ")
                    .nth(1)
                    .and_then(|rest| rest.split(' ').next()?.parse::<usize>().ok());
                if dropped >= Some(3 * before.len()) {
                    Ok(())
                } else {
                    Err(format!("{dropped:?} of {}", before.len()))
                }
            });
        world.server.run("nft delete table inet lossy").unwrap();
        echoes.join().unwrap()
    });
    assert_eq!(again, before);
}
