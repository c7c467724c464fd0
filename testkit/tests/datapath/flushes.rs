//! What a governed packet meets while something of ours is flushed and the agent has not repaired
//! it yet.

use std::time::Duration;

use egressgateway_testkit::cluster::agent;
use nix::sys::signal::Signal;

use crate::world::{CLIENT, DataPath, EXCEPTED, GATEWAYS, GOVERNED, World, usual_policy};

/// What happens to a new connection of a governed pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meets {
    /// Dropped, and counted under this name.
    Drop(&'static str),
    /// As the policy says, but for later packets, which are dropped and counted under this name.
    DropLater(&'static str),
    /// What the policy says.
    Policy,
    /// What it would meet without any policy: only the repair helps. `docs/datapath.md` names each
    /// of these.
    Nothing,
}

/// What is flushed, on the client, for both families.
const NETFILTER: [(&str, Meets); 12] = [
    (
        "ipset flush egw-pods-vFAMILY",
        Meets::Drop("drop_start_gate"),
    ),
    (
        "for s in $(ipset list -n | grep egw-verdicts-); do ipset flush $s; done",
        Meets::Drop("drop_held"),
    ),
    ("ipset flush egw-ungoverned-vFAMILY", Meets::Policy),
    ("ipset flush egw-local-vFAMILY", Meets::Policy),
    ("ipset flush egw-governed-vFAMILY", Meets::Policy),
    ("IPTABLES -t mangle -F EGW-CLASS", Meets::Drop("drop_held")),
    (
        "for c in $(IPTABLES-save -t mangle | grep -o '^:EGW-C-[0-9a-f]*' | cut -c2-); do IPTABLES -t mangle -F $c; done",
        Meets::Drop("drop_held"),
    ),
    (
        "IPTABLES -t mangle -F EGW-STEER",
        Meets::DropLater("drop_no_gateway"),
    ),
    ("IPTABLES -t nat -F EGW-POSTROUTING", Meets::Policy),
    ("IPTABLES -t mangle -F EGW-CLASSIFY", Meets::Nothing),
    ("IPTABLES -t mangle -F EGW-PREROUTING", Meets::Nothing),
    ("IPTABLES -t mangle -F", Meets::Nothing),
];

const NFTABLES: [(&str, Meets); 6] = [
    (
        "nft flush map inet egressgateway podsFAMILY",
        Meets::Drop("drop_start_gate"),
    ),
    (
        "nft flush set inet egressgateway ungovernedFAMILY",
        Meets::Policy,
    ),
    (
        "nft flush set inet egressgateway localFAMILY",
        Meets::Policy,
    ),
    (
        "nft flush set inet egressgateway governedFAMILY",
        Meets::Policy,
    ),
    (
        "nft flush map inet egressgateway verdictsFAMILY",
        Meets::Nothing,
    ),
    ("nft flush table inet egressgateway", Meets::Nothing),
];

pub(crate) fn what_is_flushed_by_hand_holds_traffic_or_is_named_in_the_documentation(
    path: &DataPath,
) {
    let mut world = World::governed(path);
    world.cluster.kill(&agent(CLIENT), Signal::SIGKILL);
    let flushes = match path.backend {
        "nftables" => &NFTABLES[..],
        "netfilter" => &NETFILTER[..],
        other => panic!("what of {other} can be flushed?"),
    };
    let client = world.cluster.lab.node(CLIENT);
    for (flush, meets) in flushes {
        for (family, program) in [("4", "iptables-nft"), ("6", "ip6tables-nft")] {
            client
                .run(&flush.replace("FAMILY", family).replace("IPTABLES", program))
                .unwrap();
        }
        eprintln!("{flush}: {meets:?}");
        let capture = world.cluster.lab.capture().unwrap();
        match meets {
            Meets::Drop(_) => world.is_dropped(&world.shop, GOVERNED),
            Meets::DropLater(_) => {
                for endpoint in world.endpoints(GOVERNED) {
                    assert!(
                        world.shop.connect_tcp(endpoint).is_err(),
                        "{flush}: {endpoint} answers"
                    );
                }
            }
            Meets::Policy => world.leaves_by(&world.shop, GOVERNED, GATEWAYS[0]),
            Meets::Nothing => world.leaves_by(&world.shop, GOVERNED, CLIENT),
        }
        if *meets != Meets::Nothing {
            assert_eq!(world.leaks(&capture), [""; 0], "{flush}");
        }
        world.cluster.start_agent(CLIENT);
        world.leaves_by(&world.shop, GOVERNED, GATEWAYS[0]);
        world.leaves_by(&world.shop, EXCEPTED, CLIENT);
        world.leaves_by(&world.blog, GOVERNED, CLIENT);
        if let Meets::Drop(counter) | Meets::DropLater(counter) = meets {
            world
                .cluster
                .eventually(&format!("{flush}: {counter} is counted"), || {
                    let counted = world.counted(CLIENT, counter);
                    if counted >= 2.0 {
                        Ok(())
                    } else {
                        Err(format!("{counted}"))
                    }
                });
        }
        world.cluster.kill(&agent(CLIENT), Signal::SIGKILL);
    }
}

/// Longer than it takes the agent to look at what can't tell it of changes, twice.
const LOOKED: Duration = Duration::from_secs(12);

/// How often an agent said that somebody else changed the packet filter.
fn warnings(world: &World, node: &str) -> usize {
    world
        .cluster
        .log(&agent(node))
        .matches("restored the packet filter after a foreign change")
        .count()
}

pub(crate) fn what_somebody_else_changes_is_warned_of_once_and_the_agents_own_changes_are_not(
    path: &DataPath,
) {
    let world = World::governed(path);
    std::thread::sleep(LOOKED);
    world
        .cluster
        .apply(&usual_policy().replace("10.6.1.77/32", "10.6.1.78/32"));
    world.cluster.apply(&usual_policy());
    world.leaves_by(&world.shop, GOVERNED, GATEWAYS[0]);
    std::thread::sleep(LOOKED);
    let nodes: Vec<&str> = [CLIENT].into_iter().chain(GATEWAYS).collect();
    for node in &nodes {
        assert_eq!(
            warnings(&world, node),
            0,
            "{node}\n{}",
            world.cluster.log(&agent(node))
        );
    }
    let flush = match path.backend {
        "nftables" => "nft flush map inet egressgateway verdicts4",
        _ => "iptables-nft -t mangle -F EGW-CLASSIFY",
    };
    world.cluster.lab.node(CLIENT).run(flush).unwrap();
    world.cluster.eventually("the client's agent warns", || {
        if warnings(&world, CLIENT) > 0 {
            Ok(())
        } else {
            Err(world.cluster.log(&agent(CLIENT)))
        }
    });
    world.leaves_by(&world.shop, GOVERNED, GATEWAYS[0]);
    std::thread::sleep(LOOKED);
    let counts: Vec<usize> = nodes.iter().map(|node| warnings(&world, node)).collect();
    assert_eq!(counts, [1, 0, 0]);
}
