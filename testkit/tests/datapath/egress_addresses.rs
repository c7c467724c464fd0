//! Addresses from a pool: each is held, and answered for, by exactly one node.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use egressgateway_testkit::{
    cluster::agent,
    lab::{Capture, PodSpec, Process, Protocol, Response},
    pace::patient,
};
use nix::sys::signal::Signal;

use crate::{
    address_holders::{
        Given, STEP, gateway, given, holders, is_given, mac, outside, owned_by, says_it_has,
        seen_as_given, wait_given, who_answers_for, wish,
    },
    failover::drain,
    restarts::first_plan_is_empty,
    world::{CLIENT, DataPath, GATEWAYS, GOVERNED, World, measured, policy, usual_policy},
};

pub(crate) fn an_address_from_the_pool_is_held_by_one_node_for_its_policy_alone(path: &DataPath) {
    let mut world = World::start(path);
    world.cluster.apply(&gateway(7));
    world.cluster.apply(&usual_policy());
    let Given { node, addresses } = wait_given(&world, "shopping");
    seen_as_given(&world, &world.shop, addresses);
    seen_as_given(&world, &world.local, addresses);
    owned_by(&world, addresses, &node);
    // A restarted agent finds it as it must be.
    let mut flows: Vec<_> = world
        .endpoints(GOVERNED)
        .into_iter()
        .map(|to| world.shop.open_tcp(to).unwrap())
        .collect();
    world.cluster.kill(&agent(&node), Signal::SIGKILL);
    world.cluster.start_agent(&node);
    first_plan_is_empty(&world, &node);
    for flow in &mut flows {
        flow.echo().unwrap();
    }
    // The node's own traffic, its status and pods without a policy do not notice.
    world.leaves_by(&world.cluster.lab.node(&node), GOVERNED, &node);
    world.leaves_by(&world.blog, GOVERNED, CLIENT);
    let status = world.cluster.status("EgressNode", &node).to_string();
    assert!(
        status.contains("eth0")
            && !addresses
                .iter()
                .any(|address| status.contains(&address.to_string())),
        "{status}"
    );
    world.cluster.delete("EgressGatewayPolicy", "shopping");
    for address in addresses {
        world
            .cluster
            .eventually(&format!("nobody holds {address} any more"), || {
                let holders = holders(&world, address);
                if holders.is_empty() {
                    Ok(())
                } else {
                    Err(format!("{holders:?}"))
                }
            });
        assert_eq!(
            who_answers_for(&world, address),
            BTreeSet::new(),
            "{address}"
        );
    }
    world.leaves_by(&world.shop, GOVERNED, CLIENT);
}

/// Whether the node told everybody, unasked.
fn announced(capture: &Capture, address: IpAddr, node: &str) -> bool {
    capture.count(|packet| {
        let unasked = packet.protocol != Protocol::Arp || packet.destination == address;
        packet.from == node && unasked && says_it_has(packet, address)
    }) >= 2
}

pub(crate) fn an_address_goes_to_the_next_node_and_a_lost_owner_that_comes_back_lets_go(
    path: &DataPath,
) {
    let mut world = World::start(path);
    world.cluster.apply(&gateway(7));
    world.cluster.apply(&usual_policy());
    let Given {
        node: lost,
        addresses,
    } = wait_given(&world, "shopping");
    seen_as_given(&world, &world.shop, addresses);
    let next = GATEWAYS.into_iter().find(|node| *node != lost).unwrap();
    let [lost_mac, next_mac] = [lost.as_str(), next].map(|node| mac(&world.cluster.lab.node(node)));
    let known = |world: &World, address| {
        outside(world, address)
            .run(&format!("ip neigh show {address} dev eth0"))
            .unwrap()
    };
    for address in addresses {
        assert!(
            known(&world, address).contains(&lost_mac),
            "{}",
            known(&world, address)
        );
    }
    let capture = world.cluster.lab.capture().unwrap();
    let streams: Vec<_> = world
        .endpoints(GOVERNED)
        .into_iter()
        .map(|to| world.shop.stream(to, STEP).fresh_ports().start().unwrap())
        .collect();

    world.cluster.lab.node(&lost).power_off().unwrap();
    world.cluster.kill(&agent(&lost), Signal::SIGKILL);
    world.cluster.node_ready(&lost, false);
    let began = Instant::now();
    measured(
        "the controller's decision after the node is not ready",
        || {
            world
                .cluster
                .eventually("the next node answers for the addresses", || {
                    let now = given(&world, "shopping")?;
                    if now.node == next && now.addresses == addresses {
                        Ok(())
                    } else {
                        Err(format!("{} with {:?}", now.node, now.addresses))
                    }
                });
        },
    );
    for stream in &streams {
        let later = |response: &Response| response.at > began;
        stream
            .wait_for(patient(Duration::from_secs(15)), later)
            .unwrap_or_else(|error| panic!("{error}\n{}", world.cluster.logs()));
    }
    for (stream, address) in streams.into_iter().zip(addresses) {
        let report = stream.finish().unwrap();
        eprintln!(
            "with {address} traffic goes on after {:?}",
            report.longest_gap
        );
        assert_eq!(
            report.sources.keys().collect::<Vec<_>>(),
            [&address],
            "and with no other address"
        );
    }
    seen_as_given(&world, &world.shop, addresses);
    for address in addresses {
        assert!(
            known(&world, address).contains(&next_mac),
            "{}",
            known(&world, address)
        );
        world.cluster.eventually(
            &format!("{next} announced {address} more than once"),
            || {
                if announced(&capture, address, next) {
                    Ok(())
                } else {
                    Err("not yet".to_owned())
                }
            },
        );
    }

    world.cluster.lab.node(&lost).power_on().unwrap();
    for address in addresses {
        assert_eq!(
            who_answers_for(&world, address),
            GATEWAYS.map(str::to_owned).into(),
            "both, as long as nobody tells the lost one"
        );
    }
    world.cluster.start_agent(&lost);
    owned_by(&world, addresses, next);
    seen_as_given(&world, &world.shop, addresses);

    // And back, from one living node to another.
    world.cluster.node_ready(&lost, true);
    world.cluster.label_node(next, "egress", None);
    owned_by(&world, addresses, &lost);
    seen_as_given(&world, &world.shop, addresses);
    assert_eq!(world.leaks_besides(&capture, &addresses), [""; 0]);
}

pub(crate) fn an_address_that_is_moved_on_purpose_is_what_servers_see_all_along(path: &DataPath) {
    let world = World::start(path);
    world.cluster.apply(&gateway(7));
    world.cluster.apply(&usual_policy());
    let Given {
        node: first,
        addresses,
    } = wait_given(&world, "shopping");
    seen_as_given(&world, &world.shop, addresses);
    let next = GATEWAYS.into_iter().find(|node| *node != first).unwrap();
    let capture = world.cluster.lab.capture().unwrap();
    let streams: Vec<_> = world
        .endpoints(GOVERNED)
        .into_iter()
        .map(|to| world.shop.stream(to, STEP).fresh_ports().start().unwrap())
        .collect();
    wish(&world, Some(next));
    owned_by(&world, addresses, next);
    seen_as_given(&world, &world.shop, addresses);
    wish(&world, None);
    owned_by(&world, addresses, next);
    // With both nodes drained by force nobody else can have it.
    for node in GATEWAYS {
        drain(&world, node, Some("true"));
    }
    world.cluster.eventually("no node is Ready", || {
        let status = world.cluster.status("EgressGateway", "exit");
        let ready = status["nodeList"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|node| node["status"] == "Ready");
        if ready {
            Err(status.to_string())
        } else {
            Ok(())
        }
    });
    owned_by(&world, addresses, next);
    seen_as_given(&world, &world.shop, addresses);
    for (stream, address) in streams.into_iter().zip(addresses) {
        let report = stream.finish().unwrap();
        eprintln!(
            "with {address} traffic goes on after {:?}",
            report.longest_gap
        );
        assert_eq!(
            report.sources.keys().collect::<Vec<_>>(),
            [&address],
            "and with no other address"
        );
    }
    assert_eq!(world.leaks_besides(&capture, &addresses), [""; 0]);
}

/// Which nodes' kernels hold which egress addresses: those of full length on the underlay's device.
fn held(world: &World) -> BTreeMap<IpAddr, BTreeSet<String>> {
    let mut held: BTreeMap<IpAddr, BTreeSet<String>> = BTreeMap::new();
    for node in world.cluster.lab.nodes() {
        let listed = node.run("ip -o addr show dev eth0").unwrap();
        let words = listed.split_whitespace().filter_map(|word| {
            word.strip_suffix("/32")
                .or_else(|| word.strip_suffix("/128"))
        });
        for address in words.filter_map(|word| word.parse().ok()) {
            held.entry(address)
                .or_default()
                .insert(node.name().to_owned());
        }
    }
    held
}

pub(crate) fn of_more_policies_than_addresses_each_has_its_own_or_nothing(path: &DataPath) {
    /// How many addresses of each family, how many policies, and of how many policies with
    /// addresses the pods go.
    const ADDRESSES: usize = 50;
    const POLICIES: usize = 70;
    const FREED: usize = 5;
    let world = World::start(path);
    let names: Vec<String> = (0..POLICIES)
        .map(|number| format!("team-{number:02}"))
        .collect();
    world.cluster.apply(&gateway(ADDRESSES));
    all_ready(&world);
    for name in &names {
        let spec = policy("  destCIDR: [\"10.6.1.0/24\", \"fd00:6:1::/64\"]\n");
        world.cluster.apply(
            &spec
                .replace("name: shopping", &format!("name: {name}"))
                .replace("app: shopping", &format!("app: {name}")),
        );
    }
    let says_exhausted = |name: &str| {
        let conditions = world.cluster.status("EgressGatewayPolicy", name)["conditions"].take();
        let mut conditions = conditions.as_array().into_iter().flatten();
        conditions.any(|condition| {
            let message = condition["message"].as_str().unwrap_or_default();
            condition["reason"] == "EgressIPExhausted"
                && message.ends_with(&format!("is exhausted: {ADDRESSES} addresses are held"))
        })
    };
    let served = || {
        names
            .iter()
            .filter_map(|name| Some((name.clone(), given(&world, name).ok()?)))
            .collect::<BTreeMap<_, _>>()
    };
    let settled = |waiting: usize| {
        world.cluster.eventually(
            "as many policies have addresses as there are, and the rest say so",
            || {
                let (served, exhausted) = (
                    served(),
                    names.iter().filter(|name| says_exhausted(name)).count(),
                );
                if (served.len(), exhausted) == (ADDRESSES, waiting) {
                    Ok(served)
                } else {
                    Err(format!(
                        "{} are served, {exhausted} say exhausted",
                        served.len()
                    ))
                }
            },
        )
    };
    let kernels_agree = |served: &BTreeMap<String, Given>| {
        let of_all = served.values().flat_map(|given| {
            given
                .addresses
                .map(|address| (address, BTreeSet::from([given.node.clone()])))
        });
        let wanted: BTreeMap<_, _> = of_all.collect();
        world
            .cluster
            .eventually("each address is on its node, and nowhere else", || {
                let held = held(&world);
                if held == wanted {
                    Ok(())
                } else {
                    Err(format!("{held:?}"))
                }
            });
    };
    let pod = |name: &str| {
        world
            .cluster
            .pod(CLIENT, PodSpec::new(name).label("app", name))
    };

    let first = settled(POLICIES - ADDRESSES);
    let pool: BTreeSet<IpAddr> = first.values().flat_map(|given| given.addresses).collect();
    assert_eq!(pool.len(), 2 * ADDRESSES, "one to one");
    let on = |node: &str| {
        first
            .iter()
            .filter(|(_, given)| given.node == node)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        GATEWAYS.map(|node| on(node).len()),
        [ADDRESSES / 2; 2],
        "spread over the gateway's nodes"
    );
    kernels_agree(&first);
    // On the wire: one of each node, and two who wait.
    for (name, Given { node, addresses }) in GATEWAYS.into_iter().filter_map(|node| on(node).pop())
    {
        seen_as_given(&world, &pod(name), *addresses);
        owned_by(&world, *addresses, node);
    }
    let capture = world.cluster.lab.capture().unwrap();
    let waiting: Vec<&String> = names
        .iter()
        .filter(|name| !first.contains_key(*name))
        .collect();
    let heir_or_not = [waiting[0], waiting[waiting.len() - 1]];
    let pods = heir_or_not.map(|name| pod(name));
    for pod in &pods {
        world.is_dropped(pod, GOVERNED);
    }

    let freed: BTreeSet<&String> = first.keys().take(FREED).collect();
    for name in &freed {
        world.cluster.delete("EgressGatewayPolicy", name);
    }
    let second = settled(POLICIES - ADDRESSES - FREED);
    kernels_agree(&second);
    let left: BTreeSet<IpAddr> = freed
        .iter()
        .flat_map(|name| first[*name].addresses)
        .collect();
    let inherited: BTreeSet<IpAddr> = waiting
        .iter()
        .filter_map(|name| second.get(*name))
        .flat_map(|given| given.addresses)
        .collect();
    assert_eq!(inherited, left, "what some have left, as many others have");
    for (name, given) in first.iter().filter(|(name, _)| !freed.contains(name)) {
        assert_eq!(
            (second[name].addresses, &second[name].node),
            (given.addresses, &given.node),
            "nobody else's address moved"
        );
    }
    assert!(
        second.contains_key(heir_or_not[0]) && !second.contains_key(heir_or_not[1]),
        "who has waited longest is next"
    );
    seen_as_given(&world, &pods[0], second[heir_or_not[0]].addresses);
    world.is_dropped(&pods[1], GOVERNED);
    let pool: Vec<IpAddr> = pool.into_iter().collect();
    assert_eq!(world.leaks_besides(&capture, &pool), [""; 0]);
}

/// Waits until every node of the gateway is Ready, so that addresses are spread.
fn all_ready(world: &World) {
    world
        .cluster
        .eventually("both nodes of the gateway are Ready", || {
            let status = world.cluster.status("EgressGateway", "exit");
            let ready = status["nodeList"]
                .as_array()
                .into_iter()
                .flatten()
                .filter(|node| node["status"] == "Ready")
                .count();
            if ready == GATEWAYS.len() {
                Ok(())
            } else {
                Err(status.to_string())
            }
        });
}

pub(crate) fn addresses_do_not_drift_while_nodes_and_the_selector_come_and_go(path: &DataPath) {
    let world = World::start(path);
    world.cluster.apply(&gateway(7));
    all_ready(&world);
    world.cluster.apply(&usual_policy());
    let Given {
        node: first,
        addresses,
    } = wait_given(&world, "shopping");
    let second = GATEWAYS.into_iter().find(|node| *node != first).unwrap();
    let first = GATEWAYS.into_iter().find(|node| *node != second).unwrap();
    seen_as_given(&world, &world.shop, addresses);
    let capture = world.cluster.lab.capture().unwrap();
    let lose = |node: &str| {
        world.cluster.lab.node(node).power_off().unwrap();
        world.cluster.node_ready(node, false);
    };
    let regain = |node: &str| {
        world.cluster.lab.node(node).power_on().unwrap();
        world.cluster.node_ready(node, true);
    };
    // One down: the other has it. All down: nobody else could have it, and nothing leaves.
    lose(first);
    is_given(&world, second, addresses);
    seen_as_given(&world, &world.shop, addresses);
    lose(second);
    world.is_dropped(&world.shop, GOVERNED);
    is_given(&world, second, addresses);
    // One up, which is not the one that had it last: it has it. The other up as well: it stays.
    regain(first);
    is_given(&world, first, addresses);
    seen_as_given(&world, &world.shop, addresses);
    regain(second);
    all_ready(&world);
    owned_by(&world, addresses, first);
    seen_as_given(&world, &world.shop, addresses);
    // The selector goes from node to node and back, and the address with it.
    for node in [second, first] {
        world.cluster.apply(&gateway(7).replace(
            "{egress: \"true\"}",
            &format!("{{\"kubernetes.io/hostname\": {node}}}"),
        ));
        is_given(&world, node, addresses);
        owned_by(&world, addresses, node);
        seen_as_given(&world, &world.shop, addresses);
        seen_as_given(&world, &world.local, addresses);
    }
    assert_eq!(world.leaks_besides(&capture, &addresses), [""; 0]);
}

pub(crate) fn with_only_the_link_between_the_gateways_cut_one_node_answers_all_along(
    path: &DataPath,
) {
    let world = World::start(path);
    let [here, owner] = GATEWAYS;
    world.cluster.apply(&gateway(7));
    world.cluster.apply(&usual_policy());
    let Given { addresses, .. } = wait_given(&world, "shopping");
    wish(&world, Some(owner));
    owned_by(&world, addresses, owner);
    seen_as_given(&world, &world.shop, addresses);
    seen_as_given(&world, &world.local, addresses);
    let capture = world.cluster.lab.capture().unwrap();
    let streams: Vec<_> = world
        .endpoints(GOVERNED)
        .into_iter()
        .map(|to| world.shop.stream(to, STEP).fresh_ports().start().unwrap())
        .collect();
    let asking = ask_all_along(&world, addresses);

    world.cluster.lab.part(GATEWAYS).unwrap();
    // The other gateway's own pods have no way to the owner, and no other way either.
    world.is_dropped(&world.local, GOVERNED);
    is_given(&world, owner, addresses);
    world.cluster.lab.join(GATEWAYS).unwrap();
    seen_as_given(&world, &world.local, addresses);

    asking.kill(Signal::SIGKILL).unwrap();
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
            "and with no other address"
        );
        assert_eq!(report.lost(), 0, "traffic of others goes on");
        let answers: Vec<_> = capture
            .packets()
            .into_iter()
            .filter(|packet| says_it_has(packet, address))
            .collect();
        assert!(
            answers.len() >= 20,
            "only {} answers for {address}",
            answers.len()
        );
        assert!(
            answers.iter().all(|response| response.from == owner),
            "{here} answered for {address}"
        );
    }
    owned_by(&world, addresses, owner);
    assert_eq!(world.leaks_besides(&capture, &addresses), [""; 0]);
}

/// Somebody outside asks who has these addresses, again and again.
fn ask_all_along(world: &World, addresses: [IpAddr; 2]) -> Process {
    let ask = addresses
        .map(|address| {
            format!("ip neigh flush to {address} dev eth0; ping -c 1 -W 0.3 {address}; ")
        })
        .concat();
    world
        .neighbour()
        .program("sh")
        .args([
            "-c",
            &format!("while :; do {ask} sleep 0.01; done >/dev/null 2>&1"),
        ])
        .start()
        .unwrap()
}
