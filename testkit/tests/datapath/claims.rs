//! Who keeps an egress address, and who lets go of it, while the API server can't be heard.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use egressgateway_testkit::{cluster::agent, pace::patient};

use crate::{
    egress_addresses::{Given, STEP, gateway, holders, is_given, mac, owned_by, seen_as_given, wait_given, who_answers_for, wish},
    world::{DataPath, GATEWAYS, GOVERNED, World, usual_policy},
};

/// How long a Lease lasts here.
const LEASE: Duration = Duration::from_secs(3);

/// Of two nodes with one address, the one that may be wrong asks once a second, and then lets go.
const BOTH: Duration = Duration::from_secs(2);

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
    world.cluster.eventually(&format!("{node} alone holds the addresses"), || {
        let holders = addresses.map(|address| holders(world, address));
        if holders.iter().all(|holders| *holders == BTreeSet::from([node.to_owned()])) { Ok(()) } else { Err(format!("{holders:?}")) }
    });
    since.elapsed()
}

pub(crate) fn a_gateway_that_lost_the_api_server_lets_go_of_addresses_that_another_was_given(path: &DataPath) {
    let (world, addresses) = start(path);
    let [former, next] = GATEWAYS;
    let capture = world.cluster.lab.capture().unwrap();
    let streams: Vec<_> =
        world.endpoints(GOVERNED).into_iter().map(|to| world.shop.stream(to, STEP).fresh_ports().start().unwrap()).collect();

    // Its network is as good as ever.
    world.cluster.lab.node(former).cut_management().unwrap();
    is_given(&world, next, addresses);
    let both = only(&world, next, addresses, Instant::now());
    eprintln!("{former} lets go {both:?} after {next} was given the addresses");
    assert!(both < patient(BOTH), "{both:?}");
    for address in addresses {
        assert_eq!(who_answers_for(&world, address), BTreeSet::from([next.to_owned()]), "{address}");
    }
    seen_as_given(&world, &world.shop, addresses);
    // Whom its own pods could be sent to it has not heard.
    world.is_dropped(&world.local, GOVERNED);
    let log = world.cluster.log(&agent(former));
    let next_mac = mac(&world.cluster.lab.node(next));
    for address in addresses {
        let told =
            log.lines().filter(|line| line.contains("WARN") && line.contains(&address.to_string()) && line.contains(&next_mac)).count();
        assert_eq!(told, 1, "{address}, {next_mac}: {log}");
    }
    assert_eq!(GATEWAYS.map(|node| counted(&world, node, LET_GO)), [Some(2.0), Some(0.0)]);
    assert_eq!(counted(&world, next, INQUIRIES), Some(0.0), "who renews its Lease in time does not ask");

    // What the API server says is true again: that another has the addresses, and then that this one has.
    world.cluster.lab.node(former).restore_management().unwrap();
    seen_as_given(&world, &world.local, addresses);
    owned_by(&world, addresses, next);

    // Without power nobody asks, and with its power back a node is not in time.
    world.cluster.lab.node(next).power_off().unwrap();
    is_given(&world, former, addresses);
    seen_as_given(&world, &world.shop, addresses);
    world.cluster.lab.node(next).restore().unwrap();
    let both = only(&world, former, addresses, Instant::now());
    eprintln!("{next} lets go {both:?} after its network is back");
    assert!(both < patient(BOTH), "{both:?}");
    for address in addresses {
        assert_eq!(who_answers_for(&world, address), BTreeSet::from([former.to_owned()]), "{address}");
    }
    world.cluster.lab.node(next).restore_management().unwrap();
    wish(&world, Some(next));
    owned_by(&world, addresses, next);
    seen_as_given(&world, &world.shop, addresses);
    assert_eq!(GATEWAYS.map(|node| counted(&world, node, LET_GO)), [Some(2.0); 2], "each once, and none as its rightful owner");
    for (stream, address) in streams.into_iter().zip(addresses) {
        let report = stream.finish().unwrap();
        assert_eq!(report.sources.keys().collect::<Vec<_>>(), [&address], "with no other address");
    }
    assert_eq!(world.leaks_besides(&capture, &addresses), [""; 0]);
}

pub(crate) fn without_an_api_server_for_anybody_nobody_lets_go(path: &DataPath) {
    let (mut world, addresses) = start(path);
    let [owner, other] = GATEWAYS;
    let capture = world.cluster.lab.capture().unwrap();
    world.cluster.api.stop();
    world.cluster.eventually("the owner has asked for each address several times", || {
        let asked = counted(&world, owner, INQUIRIES);
        if asked >= Some(4.0) { Ok(()) } else { Err(format!("{asked:?} times")) }
    });
    for address in addresses {
        assert_eq!(holders(&world, address), BTreeSet::from([owner.to_owned()]));
        assert_eq!(who_answers_for(&world, address), BTreeSet::from([owner.to_owned()]), "{address}");
    }
    seen_as_given(&world, &world.shop, addresses);
    seen_as_given(&world, &world.local, addresses);
    assert_eq!(counted(&world, owner, LET_GO), Some(0.0));
    assert_eq!(counted(&world, other, INQUIRIES), Some(0.0), "who has no address has nothing to ask");

    // The node of which the controller hears first may have them then.
    let root = world.cluster.lab.root();
    root.enter(|| world.cluster.api.resume_listening()).unwrap();
    world.cluster.eventually("the owner is sure again", || {
        let before = counted(&world, owner, INQUIRIES);
        std::thread::sleep(Duration::from_millis(1500));
        let after = counted(&world, owner, INQUIRIES);
        if before.is_some() && before == after { Ok(()) } else { Err(format!("asked {before:?} times, and then {after:?}")) }
    });
    let node = wait_given(&world, "shopping").node;
    owned_by(&world, addresses, &node);
    seen_as_given(&world, &world.shop, addresses);
    assert_eq!(world.leaks_besides(&capture, &addresses), [""; 0]);
}
