//! Which node has an egress address: by the objects, by the kernels, and by who answers for it.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use egressgateway_testkit::lab::{Namespace, Packet, Protocol};
use serde_json::json;

use crate::world::{GATEWAY, GOVERNED, World};

/// How often a stream sends.
pub(crate) const STEP: Duration = Duration::from_millis(2);

/// ICMPv6 type of a neighbour advertisement.
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

/// The usual gateway with a pool of so many addresses of each family.
pub(crate) fn gateway(addresses: usize) -> String {
    let (last, last_group) = (59 + addresses, 0x5f + addresses);
    let pool = format!(
        "ipv4: [\"10.6.0.60-10.6.0.{last}\"], ipv6: [\"fd00:6::60-fd00:6::{last_group:x}\"]"
    );
    GATEWAY.replace(
        "spec: {",
        &format!("spec: {{sourceNAT: EgressIP, egressIPs: {{{pool}}}, "),
    )
}

/// What a policy was given.
pub(crate) struct Given {
    pub(crate) node: String,
    /// IPv4, then IPv6.
    pub(crate) addresses: [IpAddr; 2],
}

pub(crate) fn given(world: &World, policy: &str) -> Result<Given, String> {
    let status = world.cluster.status("EgressGatewayPolicy", policy);
    let address = |family: &str| {
        status["egressIP"][family]
            .as_str()
            .and_then(|text| text.parse().ok())
    };
    let found = status["node"]
        .as_str()
        .zip(address("ipv4"))
        .zip(address("ipv6"));
    found
        .map(|((node, v4), v6)| Given {
            node: node.to_owned(),
            addresses: [v4, v6],
        })
        .ok_or_else(|| status.to_string())
}

pub(crate) fn wait_given(world: &World, policy: &str) -> Given {
    world
        .cluster
        .eventually(&format!("{policy} has addresses and a node"), || {
            given(world, policy)
        })
}

/// The nodes whose kernels hold an address.
pub(crate) fn holders(world: &World, address: IpAddr) -> BTreeSet<String> {
    let nodes = world.cluster.lab.nodes();
    let held = nodes.iter().filter(|node| {
        !node
            .run(&format!("ip -o addr show to {address}"))
            .unwrap()
            .is_empty()
    });
    held.map(|node| node.name().to_owned()).collect()
}

/// Asks from outside who has an address, by ARP or neighbour solicitation, and returns everybody
/// who says "I".
pub(crate) fn who_answers_for(world: &World, address: IpAddr) -> BTreeSet<String> {
    let neighbour = world.neighbour();
    let capture = world.cluster.lab.capture().unwrap();
    for _ in 0..2 {
        // A second question: whoever answers the first one late is heard by the end of it.
        neighbour.run(&format!("ip neigh flush to {address} dev eth0; ping -c 1 -W 0.3 {address} >/dev/null || true")).unwrap();
    }
    capture
        .packets()
        .into_iter()
        .filter(|packet| says_it_has(packet, address))
        .map(|packet| packet.from)
        .collect()
}

pub(crate) fn says_it_has(packet: &Packet, address: IpAddr) -> bool {
    packet.source == address
        && (packet.protocol == Protocol::Arp || packet.icmp_type == Some(NEIGHBOUR_ADVERTISEMENT))
}

pub(crate) fn mac(namespace: &Namespace) -> String {
    let link = namespace.run("ip -o link show dev eth0").unwrap();
    link.split("link/ether ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next())
        .unwrap()
        .to_owned()
}

/// Who sends answers to an egress address: the server itself, which is on the link with IPv4, or
/// the router before it.
pub(crate) fn outside(world: &World, address: IpAddr) -> Namespace {
    if address.is_ipv4() {
        Namespace::clone(&world.server)
    } else {
        world.cluster.lab.router()
    }
}

/// Waits until the node holds both addresses, nobody else does, and the network outside agrees.
pub(crate) fn owned_by(world: &World, addresses: [IpAddr; 2], node: &str) {
    for address in addresses {
        world
            .cluster
            .eventually(&format!("{node} alone holds {address}"), || {
                let holders = holders(world, address);
                if holders == BTreeSet::from([node.to_owned()]) {
                    Ok(())
                } else {
                    Err(format!("{holders:?}"))
                }
            });
        assert_eq!(
            who_answers_for(world, address),
            BTreeSet::from([node.to_owned()]),
            "{address}"
        );
    }
}

pub(crate) fn seen_as_given(world: &World, from: &Namespace, addresses: [IpAddr; 2]) {
    for (endpoint, expected) in world.endpoints(GOVERNED).into_iter().zip(addresses) {
        world.seen_as(from, endpoint, expected);
    }
}

/// Waits until the status says that the policy's addresses are with this node, and they are the
/// same as ever.
pub(crate) fn is_given(world: &World, node: &str, addresses: [IpAddr; 2]) {
    world
        .cluster
        .eventually(&format!("the addresses are with {node}"), || {
            let now = given(world, "shopping")?;
            if now.node == node && now.addresses == addresses {
                Ok(())
            } else {
                Err(format!("{} with {:?}", now.node, now.addresses))
            }
        });
}

/// As `egressctl move` does it, which has tests of its own.
pub(crate) fn wish(world: &World, node: Option<&str>) {
    let change = json!({"metadata": {"annotations": {"egressgateway.spidernet.io/node": node}}});
    world
        .cluster
        .api
        .merge("EgressGatewayPolicy", "", "shopping", &change)
        .unwrap();
}
