//! Many policies: each has a pod and a class of its own and one or two destinations.

use std::net::{IpAddr, Ipv4Addr};

use egressgateway::{
    Overlay, PolicyDesired, StartGate,
    model::{ClassId, Family, IpRange, SourceNat, TargetId, Verdict},
};
use ipnet::{IpNet, Ipv4Net};

/// The pod of the last policy, the one that talks.
pub const POD: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 10);
/// The last policy's destination.
pub const DESTINATION: &str = "10.6.1.0/24";
/// Device of the tunnel.
pub const TUNNEL: &str = "egress-vxlan-v4";
/// Outer port of the tunnel.
pub const TUNNEL_PORT: u16 = 7789;
/// Outer address of the client node.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 6, 0, 11);
/// Outer address of the gateway node.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 6, 0, 12);

/// First address of the pods that are never heard of.
const PODS: u32 = 0x0a80_0000;
/// First address of the destinations of policies but the last.
const DESTINATIONS: u32 = 0xac10_0000;

/// What one policy says.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Its class's number, from 1.
    pub number: u32,
    /// Its pod.
    pub pod: Ipv4Addr,
    /// Where the pod leaves for.
    pub destinations: Vec<Ipv4Net>,
}

/// `count` policies. [`POD`] and [`DESTINATION`] are in the last one and in no other.
pub fn policies(count: u32) -> impl Iterator<Item = Policy> {
    (0..count).map(move |index| {
        let net =
            |index: u32| Ipv4Net::new_assert(Ipv4Addr::from_bits(DESTINATIONS + index * 32), 28);
        let last = index + 1 == count;
        let first = if last {
            DESTINATION.parse().expect("a network")
        } else {
            net(2 * index)
        };
        let second = (index % 2 == 1).then(|| net(2 * index + 1));
        Policy {
            number: index + 1,
            pod: if last { POD } else { pod(index) },
            destinations: [first].into_iter().chain(second).collect(),
        }
    })
}

/// A pod that is in no policy yet when `index` is no policy's.
#[must_use]
pub fn pod(index: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(PODS + index)
}

/// A policy's class.
#[must_use]
pub fn class(number: u32) -> ClassId {
    ClassId::new(number).expect("numbers begin at 1")
}

/// Which part a node plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It has the pods.
    Client,
    /// It lets them out.
    Gateway,
    /// It has some of the pods and lets the others out: more to know than for any of the two.
    Both,
}

/// What a node is to do for `count` policies.
#[must_use]
pub fn desired(count: u32, role: Role) -> PolicyDesired {
    let target = TargetId::FIRST;
    let egress = Verdict::Egress {
        target,
        source_nat: SourceNat::NodeAddress,
    };
    let exits = if role == Role::Client {
        Vec::new()
    } else {
        vec![target]
    };
    let (own, peer) = if role == Role::Client {
        (CLIENT, GATEWAY)
    } else {
        (GATEWAY, CLIENT)
    };
    let mut desired = PolicyDesired {
        exempt: ["10.244.0.0/16", "10.96.0.0/16", "10.6.0.0/24"]
            .map(net)
            .into_iter()
            .collect(),
        targets: [target].into_iter().collect(),
        exits: exits.iter().copied().collect(),
        accepts: exits.into_iter().collect(),
        overlay: Overlay {
            devices: [TUNNEL.to_owned()].into_iter().collect(),
            port: TUNNEL_PORT,
            peers: [IpAddr::from(peer)].into_iter().collect(),
            own: [IpAddr::from(own)].into_iter().collect(),
            hosts: [IpAddr::from(peer)].into_iter().collect(),
            mss: [(Family::V4, 1410_u16)].into_iter().collect(),
            unknown_may_exit: false,
        },
        ..PolicyDesired::default()
    };
    let mut gate = StartGate {
        local: ["10.244.1.0/24", "10.128.0.0/9"]
            .map(net)
            .into_iter()
            .collect(),
        ..StartGate::default()
    };
    for policy in policies(count) {
        desired.pods.insert(policy.pod.into(), class(policy.number));
        gate.known.insert(policy.pod.into());
        for destination in policy.destinations {
            let range = IpRange::from(IpNet::from(destination));
            desired
                .destinations
                .insert((class(policy.number), range), egress);
            gate.governed.insert(range);
        }
    }
    desired.start_gate = (role != Role::Gateway).then_some(gate);
    desired
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a network")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_policy_has_the_pod_that_talks_and_where_it_goes() {
        for count in [1, 1_000, 10_000] {
            let destination: Ipv4Net = DESTINATION.parse().unwrap();
            let all: Vec<Policy> = policies(count).collect();
            let (last, others) = all.split_last().unwrap();
            assert_eq!((last.pod, last.destinations[0]), (POD, destination));
            assert!(
                others
                    .iter()
                    .all(|policy| policy.pod != POD && !policy.destinations.contains(&destination))
            );
            let desired = desired(count, Role::Both);
            let ranges = all.iter().map(|policy| policy.destinations.len()).sum();
            assert_eq!(
                (desired.pods.len(), desired.destinations.len()),
                (all.len(), ranges)
            );
        }
    }
}
