//! The written rules, read literally: every policy is looked at for every packet, and nothing is
//! prepared.
//!
//! It shares no code with what it checks: neither parsing nor prefixes nor ranks.

use std::{collections::BTreeSet, net::IpAddr};

use crate::{
    support::Answer,
    world::{Cidr, Gateway, Member, Nat, Node, Pod, Policy, Subject, Tier, World},
};

/// Never steered, whatever a policy says.
const NEVER: [&str; 8] = [
    "0.0.0.0/32",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/4",
    "255.255.255.255/32",
    "::1/128",
    "fe80::/10",
    "ff00::/8",
];

pub(crate) fn ask(world: &World, pod: &Pod, source: IpAddr, destination: IpAddr) -> Answer {
    if is_exempt(world, destination) {
        return Answer::Pass;
    }
    let mut best: Option<(u32, i32, i64, &str, &Policy)> = None;
    for policy in &world.policies {
        if !policy.is_valid || !selects(world, policy, pod, source) {
            continue;
        }
        let Some(length) = governs(policy, destination) else {
            continue;
        };
        let rank = (
            policy.priority.unwrap_or(1000),
            -i32::from(length),
            policy.created,
            policy.name.as_str(),
            policy,
        );
        let wins = best
            .is_none_or(|best| (rank.0, rank.1, rank.2, rank.3) < (best.0, best.1, best.2, best.3));
        if wins {
            best = Some(rank);
        }
    }
    let Some((.., policy)) = best else {
        return Answer::Pass;
    };
    // Governed, and nobody knows where it should leave: it does not.
    let Some(gateway) = gateway_of(world, policy) else {
        return Answer::Drop;
    };
    leave(world, pod, source, destination, policy, gateway)
}

fn is_exempt(world: &World, destination: IpAddr) -> bool {
    let never = NEVER.iter().any(|text| {
        let (base, length) = text.split_once('/').unwrap();
        contains(
            Cidr {
                base: base.parse().unwrap(),
                length: length.parse().unwrap(),
            },
            destination,
        )
    });
    let of_node = |node: &Node| {
        node.addresses.contains(&Some(destination))
            || node.overlay().contains(&destination)
            || node
                .pod_networks
                .iter()
                .any(|network| contains(*network, destination))
    };
    never || world.nodes.iter().any(of_node)
}

/// Bit by bit.
fn contains(cidr: Cidr, address: IpAddr) -> bool {
    let octets = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let (base, address) = (octets(cidr.base), octets(address));
    let bit = |octets: &[u8], index: usize| octets[index / 8] >> (7 - index % 8) & 1;
    base.len() == address.len()
        && (0..usize::from(cidr.length)).all(|index| bit(&base, index) == bit(&address, index))
}

fn selects(world: &World, policy: &Policy, pod: &Pod, source: IpAddr) -> bool {
    match &policy.subject {
        Subject::Subnets(subnets) => subnets.iter().any(|subnet| contains(*subnet, source)),
        Subject::Labels { app, tier, team } => {
            let tier_fits = match tier {
                None => true,
                Some(Tier::In(values)) => {
                    pod.tier.as_ref().is_some_and(|tier| values.contains(tier))
                }
                Some(Tier::NotIn(values)) => {
                    !pod.tier.as_ref().is_some_and(|tier| values.contains(tier))
                }
                Some(Tier::Exists) => pod.tier.is_some(),
                Some(Tier::DoesNotExist) => pod.tier.is_none(),
            };
            let of_namespace = world
                .namespaces
                .iter()
                .find(|(name, _)| *name == pod.namespace)
                .and_then(|(_, team)| team.as_ref());
            pod.app == *app
                && tier_fits
                && team.as_ref().is_none_or(|team| of_namespace == Some(team))
        }
    }
}

/// The one it names, else the configured default, else the only one there is.
fn gateway_of<'a>(world: &'a World, policy: &Policy) -> Option<&'a Gateway> {
    match policy.gateway.as_ref().or(world.default_gateway.as_ref()) {
        Some(name) => world.gateways.iter().find(|gateway| gateway.name == *name),
        None if world.gateways.len() == 1 => world.gateways.first(),
        None => None,
    }
}

/// The longest of the policy's prefixes that holds the destination.
fn governs(policy: &Policy, destination: IpAddr) -> Option<u8> {
    if policy
        .exceptions
        .iter()
        .any(|hole| contains(*hole, destination))
    {
        return None;
    }
    if policy.destinations.is_empty() {
        return Some(0);
    }
    policy
        .destinations
        .iter()
        .filter(|cidr| contains(**cidr, destination))
        .map(|cidr| cidr.length)
        .max()
}

fn leave(
    world: &World,
    pod: &Pod,
    source: IpAddr,
    destination: IpAddr,
    policy: &Policy,
    gateway: &Gateway,
) -> Answer {
    let of_family = |addresses: &[IpAddr]| {
        addresses
            .iter()
            .copied()
            .find(|address| address.is_ipv4() == destination.is_ipv4())
    };
    if !gateway.is_valid {
        return Answer::Drop;
    }
    let (asked, given) = (of_family(&policy.asked), of_family(&policy.given));
    let egress_ip = given.filter(|given| asked.is_none() || asked == Some(*given));
    if let Some(egress_ip) = egress_ip {
        let owner = gateway
            .members
            .iter()
            .find(|member| Some(&member.node) == policy.owner.as_ref() && member.mark.is_some());
        let Some(owner) = owner else {
            return Answer::Drop;
        };
        return through(world, pod, destination, &[owner], |_| Some(egress_ip));
    }
    if asked.is_some() || gateway.nat == Nat::EgressIp || gateway.mark.is_none() {
        return Answer::Drop;
    }
    let mut ready: Vec<&Member> = gateway
        .members
        .iter()
        .filter(|member| member.status == "Ready")
        .collect();
    if ready.is_empty() {
        // The last choice stays where there is no other.
        ready = gateway
            .members
            .iter()
            .filter(|member| member.active)
            .collect();
    }
    let mut chosen: Vec<&Member> = ready
        .iter()
        .copied()
        .filter(|member| member.active)
        .collect();
    if chosen.is_empty() {
        chosen = ready;
    }
    if !gateway.ecmp {
        chosen.truncate(1);
    }
    through(world, pod, destination, &chosen, |node| match gateway.nat {
        Nat::Keep => Some(source),
        _ => node.addresses[usize::from(!destination.is_ipv4())].filter(|_| node.has_tunnel),
    })
}

/// Out of the pod's own node if that is an exit, else through the tunnel to those that have one in
/// the family.
fn through(
    world: &World,
    pod: &Pod,
    destination: IpAddr,
    exits: &[&Member],
    translated: impl Fn(&Node) -> Option<IpAddr>,
) -> Answer {
    let node = |name: &str| world.nodes.iter().find(|node| node.name == name).unwrap();
    if exits.iter().any(|exit| exit.node == pod.node) {
        return Answer::Egress([(pod.node.clone(), translated(node(&pod.node)))].into());
    }
    let family = usize::from(!destination.is_ipv4());
    let carries = |node: &Node| node.has_tunnel && node.addresses[family].is_some();
    let reached = exits
        .iter()
        .map(|exit| node(&exit.node))
        .filter(|exit| carries(exit) && carries(node(&pod.node)));
    let leaving: BTreeSet<_> = reached
        .map(|exit| (exit.name.clone(), translated(exit)))
        .collect();
    if leaving.is_empty() {
        Answer::Drop
    } else {
        Answer::Egress(leaving)
    }
}
