//! Others take pods out of connection tracking, so that their packets can be neither pinned nor
//! translated.

use egressgateway_testkit::cluster::agent;
use nix::sys::signal::Signal;

use crate::world::{CLIENT, DataPath, GATEWAYS, GOVERNED, World};

/// Rules of somebody else, in a table of their own: nothing of the lab's pods is tracked.
const NOTRACK: &str = "nft -f - <<END
add table inet hardening
add chain inet hardening pre { type filter hook prerouting priority raw; }
add rule inet hardening pre ip saddr 10.244.0.0/16 notrack
add rule inet hardening pre ip daddr 10.244.0.0/16 notrack
add rule inet hardening pre ip6 saddr fd10::/16 notrack
add rule inet hardening pre ip6 daddr fd10::/16 notrack
END";
/// The same with iptables, and only what pods send.
const CT: &str = "iptables-nft -t raw -I PREROUTING -s 10.244.0.0/16 -j CT --notrack
ip6tables-nft -t raw -I PREROUTING -s fd10::/16 -j CT --notrack";

/// The same with the kernel's own tables, of which it tells no changes.
const LEGACY: &str = "iptables-legacy -w 60 -t raw -I PREROUTING -s 10.244.0.0/16 -j CT --notrack
ip6tables-legacy -w 60 -t raw -I PREROUTING -s fd10::/16 -j CT --notrack";
/// What takes only the host's own traffic out, and that to a resolver on the node.
const HARMLESS: &str = "iptables-nft -t raw -I PREROUTING -i lo -j CT --notrack
iptables-nft -t raw -I PREROUTING -d 169.254.20.10/32 -p udp -m udp --dport 53 -j CT --notrack
nft 'add table inet own; add chain inet own pre { type filter hook prerouting priority raw; }; add rule inet own pre iifname lo notrack'";

/// Waits until the EgressNode says whether pods are tracked, and why not.
fn says(world: &World, node: &str, status: &str, words: &str) {
    world
        .cluster
        .eventually(&format!("{node} says {status}: {words}"), || {
            let conditions = world.cluster.status("EgressNode", node)["conditions"].clone();
            let condition = conditions
                .as_array()
                .and_then(|all| {
                    all.iter()
                        .find(|condition| condition["type"] == "PodsTracked")
                })
                .cloned();
            let condition = condition.ok_or_else(|| conditions.to_string())?;
            let reason = if status == "True" {
                "Tracked"
            } else {
                "UntrackedByOthers"
            };
            let message = condition["message"].as_str().unwrap_or_default();
            if condition["status"] == status
                && condition["reason"] == reason
                && message.contains(words)
            {
                Ok(())
            } else {
                Err(condition.to_string())
            }
        });
}

pub(crate) fn rules_of_others_that_take_pods_out_are_named_while_they_are_there(path: &DataPath) {
    let mut world = World::start(path);
    let node = world.cluster.lab.node(CLIENT);
    says(&world, CLIENT, "True", "");
    node.run(HARMLESS).unwrap();
    for (script, undo, place) in [
        (
            NOTRACK,
            "nft delete table inet hardening",
            "nftables table inet hardening, chain pre, handle ",
        ),
        (
            CT,
            "iptables-nft -t raw -D PREROUTING 1; ip6tables-nft -t raw -D PREROUTING 1",
            "iptables-nft table raw, chain PREROUTING, rule -s 10.244.0.0/16 ",
        ),
    ] {
        node.run(script).unwrap();
        says(&world, CLIENT, "False", place);
        assert!(
            world.cluster.log(&agent(CLIENT)).contains(place),
            "{place} is not in the log"
        );
        node.run(undo).unwrap();
        says(&world, CLIENT, "True", "");
    }
    // Of the kernel's own tables the agent learns at its start, and now and then.
    for (script, status, words) in [
        (
            LEGACY.to_owned(),
            "False",
            "iptables-legacy table raw, chain PREROUTING, rule -s 10.244.0.0/16 ",
        ),
        (LEGACY.replace("-I PREROUTING", "-D PREROUTING"), "True", ""),
    ] {
        node.run(&script).unwrap();
        world.cluster.kill(&agent(CLIENT), Signal::SIGKILL);
        world.cluster.start_agent(CLIENT);
        says(&world, CLIENT, status, words);
    }
}

pub(crate) fn what_others_do_not_track_is_dropped_and_counted_at_the_pods_node(path: &DataPath) {
    for script in [NOTRACK, CT] {
        let world = World::governed(path);
        is_dropped_and_counted(&world, CLIENT, script);
    }
}

pub(crate) fn what_others_do_not_track_is_dropped_and_counted_at_the_gateway(path: &DataPath) {
    let world = World::governed(path);
    is_dropped_and_counted(&world, GATEWAYS[0], NOTRACK);
}

fn is_dropped_and_counted(world: &World, node: &str, script: &str) {
    let capture = world.cluster.lab.capture().unwrap();
    world.cluster.lab.node(node).run(script).unwrap();
    world.is_dropped(&world.shop, GOVERNED);
    assert_eq!(world.leaks(&capture), [""; 0], "{node}: {script}");
    world.cluster.eventually("drop_untracked grows", || {
        let counted = world.counted(node, "drop_untracked");
        if counted >= 2.0 {
            Ok(())
        } else {
            Err(format!("{counted}"))
        }
    });
}
