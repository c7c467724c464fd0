//! Others take pods out of connection tracking, so that their packets can be neither pinned nor translated.

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
        if counted >= 2.0 { Ok(()) } else { Err(format!("{counted}")) }
    });
}
