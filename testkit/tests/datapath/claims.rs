//! Who keeps an egress address, and who lets go of it, while the API server can't be heard.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use egressgateway_testkit::{
    cluster::agent,
    lab::{Packet, Protocol, Stream},
    pace::patient,
};
use nix::sys::signal::Signal;

use crate::{
    address_holders::{
        Given, STEP, gateway, holders, is_given, mac, owned_by, seen_as_given, wait_given,
        who_answers_for, wish,
    },
    world::{DataPath, GATEWAYS, GOVERNED, World, usual_policy},
};

/// How long a Lease lasts here.
const LEASE: Duration = Duration::from_secs(3);

/// Of two nodes with one address, the one that may be wrong asks once a second, and then lets go. A
/// busy host may take longer.
const BOTH: Duration = Duration::from_secs(10);

const LET_GO: &str = "egressgateway_agent_addresses_let_go_total";
const INQUIRIES: &str = "egressgateway_agent_address_inquiries_total";

fn counted(world: &World, node: &str, metric: &str) -> Option<f64> {
    world.cluster.metric(node, metric)
}

/// A world in which the first gateway has the addresses.
fn start(path: &DataPath) -> (World, [IpAddr; 2]) {
    let world = World::start_with_leases_of(path, patient(LEASE));
    world.cluster.apply(&gateway(7));
    world.cluster.apply(&usual_policy());
    let Given { addresses, .. } = wait_given(&world, "shopping");
    wish(&world, Some(GATEWAYS[0]));
    is_given(&world, GATEWAYS[0], addresses);
    wish(&world, None);
    owned_by(&world, addresses, GATEWAYS[0]);
    seen_as_given(&world, &world.shop, addresses);
    (world, addresses)
}

/// Waits until nobody but the node holds the addresses; how long that takes from `since`.
fn only(world: &World, node: &str, addresses: [IpAddr; 2], since: Instant) -> Duration {
    world
        .cluster
        .eventually(&format!("{node} alone holds the addresses"), || {
            let holders = addresses.map(|address| holders(world, address));
            if holders
                .iter()
                .all(|holders| *holders == BTreeSet::from([node.to_owned()]))
            {
                Ok(())
            } else {
                Err(format!("{holders:?}"))
            }
        });
    since.elapsed()
}

/// Waits until the controller has noticed that the agent of the node with the addresses is gone,
/// and the other one that the node still answers.
fn agent_is_gone(world: &World, owner: &str) {
    world.cluster.eventually(
        "the policy says that the agent is gone, and who answers",
        || {
            let status = world.cluster.status("EgressGatewayPolicy", "shopping");
            let mut conditions = status["conditions"].as_array().into_iter().flatten();
            let said = conditions.any(|condition| {
                let message = condition["message"].as_str().unwrap_or_default();
                let gone = message.contains(&format!(
                    "the agent of node {owner}, which has the addresses, is gone"
                ));
                condition["reason"] == "AgentGone"
                    && gone
                    && message.ends_with("hears that it still answers for them")
            });
            if said && status["node"] == owner {
                Ok(())
            } else {
                Err(status.to_string())
            }
        },
    );
}

/// Waits for an answer that was sent from now on, with this address.
fn goes_on(streams: &[Stream]) {
    let began = Instant::now();
    for stream in streams {
        stream
            .wait_for(patient(Duration::from_secs(15)), |answer| answer.at > began)
            .unwrap();
    }
}

pub(crate) fn a_gateway_that_lost_the_api_server_keeps_what_it_answers_for_and_lets_go_of_what_another_was_given(
    path: &DataPath,
) {
    let (world, addresses) = start(path);
    let [former, next] = GATEWAYS;
    let capture = world.cluster.lab.capture().unwrap();
    let stream = |to| world.shop.stream(to, STEP).fresh_ports().start().unwrap();
    let streams: Vec<_> = world.endpoints(GOVERNED).into_iter().map(stream).collect();

    // Its network is as good as ever, and nobody has to move anything.
    world.cluster.lab.node(former).cut_management().unwrap();
    agent_is_gone(&world, former);
    owned_by(&world, addresses, former);
    goes_on(&streams);
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
            "with no other address"
        );
        assert_eq!(report.lost(), 0, "nobody else took part in it");
    }

    // Without power nobody answers, and with its power back a node is not in time.
    world.cluster.lab.node(former).power_off().unwrap();
    is_given(&world, next, addresses);
    seen_as_given(&world, &world.shop, addresses);
    world.cluster.lab.node(former).restore().unwrap();
    let both = only(&world, next, addresses, Instant::now());
    eprintln!("{former} lets go {both:?} after its network is back");
    assert!(both < patient(BOTH), "{both:?}");
    for address in addresses {
        assert_eq!(
            who_answers_for(&world, address),
            BTreeSet::from([next.to_owned()]),
            "{address}"
        );
    }
    seen_as_given(&world, &world.shop, addresses);
    // Whom its own pods could be sent to it has not heard.
    world.is_dropped(&world.local, GOVERNED);
    let log = world.cluster.log(&agent(former));
    let next_mac = mac(&world.cluster.lab.node(next));
    for address in addresses {
        let told = log
            .lines()
            .filter(|line| {
                line.contains("WARN")
                    && line.contains(&address.to_string())
                    && line.contains(&next_mac)
            })
            .count();
        assert_eq!(told, 1, "{address}, {next_mac}: {log}");
    }
    assert_eq!(
        GATEWAYS.map(|node| counted(&world, node, LET_GO)),
        [Some(2.0), Some(0.0)]
    );
    assert_eq!(
        counted(&world, next, INQUIRIES),
        Some(0.0),
        "who renews its Lease in time does not doubt"
    );

    // What the API server says is true again: that another has the addresses, and then that this
    // one has.
    world.cluster.lab.node(former).restore_management().unwrap();
    seen_as_given(&world, &world.local, addresses);
    owned_by(&world, addresses, next);
    wish(&world, Some(former));
    owned_by(&world, addresses, former);
    seen_as_given(&world, &world.shop, addresses);
    assert_eq!(
        GATEWAYS.map(|node| counted(&world, node, LET_GO)),
        [Some(2.0), Some(0.0)],
        "once, and not as its rightful owner"
    );
    assert_eq!(world.leaks_besides(&capture, &addresses), [""; 0]);
}

pub(crate) fn a_node_whose_agent_is_dead_keeps_its_addresses_until_its_kernel_is_dead_too(
    path: &DataPath,
) {
    let (mut world, addresses) = start(path);
    let [owner, next] = GATEWAYS;
    let capture = world.cluster.lab.capture().unwrap();
    let stream = |world: &World, to| world.shop.stream(to, STEP).fresh_ports().start().unwrap();
    let streams: Vec<_> = world
        .endpoints(GOVERNED)
        .into_iter()
        .map(|to| stream(&world, to))
        .collect();
    world.cluster.kill(&agent(owner), Signal::SIGKILL);
    agent_is_gone(&world, owner);
    owned_by(&world, addresses, owner);
    // The kubelet says nothing of that, and if it did, the kernel answers all the same.
    world.cluster.node_ready(owner, false);
    agent_is_gone(&world, owner);
    owned_by(&world, addresses, owner);
    world.cluster.node_ready(owner, true);
    goes_on(&streams);
    world.cluster.start_agent(owner);
    world.cluster.eventually("the agent is back", || {
        let status = world.cluster.status("EgressGatewayPolicy", "shopping");
        if status["candidate"].is_null() && status["node"] == owner {
            Ok(())
        } else {
            Err(status.to_string())
        }
    });
    owned_by(&world, addresses, owner);
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
            "with no other address"
        );
        assert_eq!(report.lost(), 0, "nobody else took part in it");
    }
    let others = |packet: &Packet| {
        packet.from == next
            && addresses.contains(&packet.source)
            && packet.protocol == Protocol::Arp
    };
    assert_eq!(capture.count(others), 0, "{next} said that it has them");

    world.cluster.kill(&agent(owner), Signal::SIGKILL);
    agent_is_gone(&world, owner);
    let began = Instant::now();
    world.cluster.lab.node(owner).power_off().unwrap();
    is_given(&world, next, addresses);
    eprintln!(
        "{next} has the addresses {:?} after the kernel of {owner} died",
        began.elapsed()
    );
    seen_as_given(&world, &world.shop, addresses);
    assert_eq!(world.leaks_besides(&capture, &addresses), [""; 0]);
}

pub(crate) fn without_an_api_server_for_anybody_nobody_lets_go(path: &DataPath) {
    let (mut world, addresses) = start(path);
    let [owner, other] = GATEWAYS;
    let capture = world.cluster.lab.capture().unwrap();
    world.cluster.api.stop();
    world
        .cluster
        .eventually("the owner has asked for each address several times", || {
            let asked = counted(&world, owner, INQUIRIES);
            if asked >= Some(4.0) {
                Ok(())
            } else {
                Err(format!("{asked:?} times"))
            }
        });
    for address in addresses {
        assert_eq!(holders(&world, address), BTreeSet::from([owner.to_owned()]));
        assert_eq!(
            who_answers_for(&world, address),
            BTreeSet::from([owner.to_owned()]),
            "{address}"
        );
    }
    seen_as_given(&world, &world.shop, addresses);
    seen_as_given(&world, &world.local, addresses);
    assert_eq!(counted(&world, owner, LET_GO), Some(0.0));
    assert_eq!(
        counted(&world, other, INQUIRIES),
        Some(0.0),
        "who has no address has nothing to ask"
    );

    // The node of which the controller hears first may have them then.
    let root = world.cluster.lab.root();
    root.enter(|| world.cluster.api.resume_listening()).unwrap();
    world.cluster.eventually("the owner is sure again", || {
        let before = counted(&world, owner, INQUIRIES);
        std::thread::sleep(Duration::from_millis(1500));
        let after = counted(&world, owner, INQUIRIES);
        if before.is_some() && before == after {
            Ok(())
        } else {
            Err(format!("asked {before:?} times, and then {after:?}"))
        }
    });
    let node = wait_given(&world, "shopping").node;
    owned_by(&world, addresses, &node);
    seen_as_given(&world, &world.shop, addresses);
    assert_eq!(world.leaks_besides(&capture, &addresses), [""; 0]);
}
