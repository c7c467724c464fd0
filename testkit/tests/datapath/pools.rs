//! Addresses of a pool that somebody else has: no gateway takes them.

use std::{collections::BTreeSet, net::IpAddr};

use egressgateway_testkit::lab::{Families, NodeSpec, Packet};

use crate::{
    address_holders::{holders, mac, says_it_has, seen_as_given, who_answers_for},
    world::{DataPath, GATEWAY, GATEWAYS, GOVERNED, Place, World, lab, policy, usual_policy},
};

/// The usual gateway with a pool of IPv4 addresses.
fn gateway(pool: &str) -> String {
    GATEWAY.replace(
        "spec: {",
        &format!("spec: {{sourceNAT: EgressIP, egressIPs: {{ipv4: [{pool}]}}, "),
    )
}

fn given(world: &World, name: &str) -> Result<IpAddr, String> {
    let status = world.cluster.status("EgressGatewayPolicy", name);
    status["egressIP"]["ipv4"]
        .as_str()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| status.to_string())
}

fn accepted(world: &World, name: &str) -> String {
    let status = world.cluster.status("EgressGatewayPolicy", name);
    let condition = status["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|condition| condition["type"] == "Accepted");
    condition
        .map(|condition| format!("{} {}", condition["reason"], condition["message"]))
        .unwrap_or_default()
}

/// Waits until the policy has this address.
fn is_given(world: &World, name: &str, address: &str) {
    world
        .cluster
        .eventually(&format!("{name} has {address}"), || {
            match given(world, name) {
                Ok(given) if given.to_string() == address => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
}

fn is_refused(world: &World, name: &str, reason: &str, rule: &str) {
    world.cluster.eventually(
        &format!("{name} says that it gets no address, and why"),
        || {
            let accepted = accepted(world, name);
            if accepted.contains(reason) && accepted.contains(rule) && given(world, name).is_err() {
                Ok(())
            } else {
                Err(accepted)
            }
        },
    );
}

fn destinations(rest: &str) -> String {
    policy(&format!("  destCIDR: [\"10.6.1.0/24\"]\n{rest}"))
}

fn named(name: &str) -> String {
    destinations("")
        .replace("name: shopping", &format!("name: {name}"))
        .replace("app: shopping", &format!("app: {name}"))
}

pub(crate) fn the_address_of_a_node_that_joins_later_is_taken_back_and_only_the_node_answers_for_it(
    path: &DataPath,
) {
    let lab = lab().node(NodeSpec::new("late").address("10.6.0.60"));
    let world = Place::make(lab, Families::Dual).with_daemons(path);
    let object = world.cluster.api.get("Node", "", "late").unwrap();
    world.cluster.delete("Node", "late");
    // Whatever it is that the node joins with is none of the cluster's before that.
    world
        .cluster
        .lab
        .node("late")
        .run("ip link set eth0 down")
        .unwrap();
    world.cluster.apply(&gateway("\"10.6.0.60-10.6.0.61\""));
    world.cluster.apply(&destinations(""));
    is_given(&world, "shopping", "10.6.0.60");
    world
        .cluster
        .lab
        .node("late")
        .run("ip link set eth0 up")
        .unwrap();
    world.cluster.api.put(object).unwrap();
    is_given(&world, "shopping", "10.6.0.61");
    let address = "10.6.0.60".parse().unwrap();
    world
        .cluster
        .eventually("no gateway holds the address of the node", || {
            let holders = holders(&world, address);
            if holders == BTreeSet::from(["late".to_owned()]) {
                Ok(())
            } else {
                Err(format!("{holders:?}"))
            }
        });
    assert_eq!(
        who_answers_for(&world, address),
        BTreeSet::from(["late".to_owned()])
    );
    world.seen_as(
        &world.shop,
        world.endpoints(GOVERNED)[0],
        "10.6.0.61".parse().unwrap(),
    );
    world
        .cluster
        .apply(&destinations("  egressIP: {ipv4: 10.6.0.60}\n"));
    is_refused(&world, "shopping", "EgressIPInUse", "Node late has it");
}

pub(crate) fn the_first_and_the_last_address_of_a_network_and_its_router_are_given_to_nobody(
    path: &DataPath,
) {
    let world = World::start(path);
    let router = world
        .cluster
        .lab
        .node(GATEWAYS[0])
        .run("ip -4 route show default")
        .unwrap();
    let router = router.split_whitespace().nth(2).unwrap().to_owned();
    world.cluster.apply(&gateway(&format!(
        "\"10.6.0.0\", \"{router}\", \"10.6.0.70\", \"10.6.255.255\""
    )));
    let status = || world.cluster.status("EgressNode", GATEWAYS[1]).to_string();
    world
        .cluster
        .eventually("the agents say who is their router", || {
            if status().contains(&router) {
                Ok(())
            } else {
                Err(status())
            }
        });
    world.cluster.apply(&named("one"));
    is_given(&world, "one", "10.6.0.70");
    world.cluster.apply(&named("two"));
    is_refused(&world, "two", "EgressIPExhausted", "is exhausted");
    for (address, rule) in [
        ("10.6.255.255", "the last address of network 10.6.0.0/16"),
        (&router, "it is the router of Node"),
    ] {
        world
            .cluster
            .apply(&destinations(&format!("  egressIP: {{ipv4: {address}}}\n")));
        is_refused(&world, "shopping", "EgressIPInUse", rule);
    }
}

pub(crate) fn an_address_that_a_stranger_has_is_not_taken_and_the_next_one_is(path: &DataPath) {
    let world = World::start(path);
    let strangers = [
        "10.6.0.60".parse::<IpAddr>().unwrap(),
        "fd00:6::60".parse().unwrap(),
    ];
    let stranger = world
        .cluster
        .lab
        .server(["10.6.0.60", "fd00:6::60"])
        .unwrap();
    let whose = mac(&stranger);
    let capture = world.cluster.lab.capture().unwrap();
    let pool = "ipv4: [\"10.6.0.60-10.6.0.61\"], ipv6: [\"fd00:6::60-fd00:6::61\"]";
    world.cluster.apply(&GATEWAY.replace(
        "spec: {",
        &format!("spec: {{sourceNAT: EgressIP, egressIPs: {{{pool}}}, "),
    ));
    world.cluster.apply(&usual_policy());
    is_given(&world, "shopping", "10.6.0.61");
    let next = ["10.6.0.61".parse().unwrap(), "fd00:6::61".parse().unwrap()];
    seen_as_given(&world, &world.shop, next);
    for address in strangers {
        let said = world.cluster.status("EgressGateway", "exit")["conditions"].to_string();
        assert!(
            said.contains(&format!("{address}: {whose} answers for it")),
            "{said}"
        );
        assert_eq!(
            holders(&world, address),
            BTreeSet::new(),
            "no node holds it"
        );
        let claimed =
            |packet: &Packet| says_it_has(packet, address) && packet.from.starts_with("gateway");
        assert_eq!(capture.count(claimed), 0, "no node says that it has it");
    }
    assert_eq!(
        who_answers_for(&world, strangers[0]).len(),
        1,
        "the stranger, as before"
    );
    // One that is stated is refused, and had as soon as the stranger has gone.
    let stated = usual_policy().trim_end().to_owned()
        + "\n  egressIP: {ipv4: 10.6.0.60, ipv6: \"fd00:6::60\"}\n";
    world.cluster.apply(&stated);
    is_refused(
        &world,
        "shopping",
        "EgressIPInUse",
        &format!("{whose} answers for it"),
    );
    world.is_dropped(&world.shop, GOVERNED);
    stranger.run("ip link set eth0 down").unwrap();
    seen_as_given(&world, &world.shop, strangers);
    assert_eq!(
        world.leaks_besides(&capture, &[next, strangers].concat()),
        [""; 0]
    );
}
