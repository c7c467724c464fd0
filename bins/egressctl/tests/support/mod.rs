//! A packet's way through the plans of all nodes, one driver after the other.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use egressgateway::{
    Driver, DriversDesired, Encapsulation, NextHop, PolicyDesired,
    explain::{Explanation, Offline, UNDERLAY_DEVICE, Verdict},
    model::{Family, MarkMask, NodeName},
    trace::{ConnectionState, Trace, TracePacket, TraceSource, TraceVerdict},
};
use egressgateway_backend_netfilter::{Netfilter, NetfilterSettings};
use egressgateway_backend_nftables::{Nftables, NftablesSettings};
use egressgateway_netlink::{Route, Steering, SteeringSettings, SteeringState};
use egressgateway_tunnel_vxlan::VxlanShape;

pub(crate) fn tunnel() -> Arc<dyn Encapsulation> {
    Arc::new(VxlanShape::default())
}

/// What becomes of a new connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Pass,
    Drop,
    /// The nodes that it may leave through, and the address that the network outside sees.
    Egress(BTreeSet<(String, Option<IpAddr>)>),
}

impl Answer {
    /// What an explanation says, without its reasons.
    pub(crate) fn of(explanation: &Explanation) -> Self {
        match explanation.verdict {
            Verdict::Pass => Self::Pass,
            Verdict::Drop => Self::Drop,
            Verdict::Egress => Self::Egress(
                explanation
                    .exits
                    .iter()
                    .map(|exit| (exit.node.clone(), exit.source))
                    .collect(),
            ),
        }
    }
}

/// A policy backend's rules for a node, made from nothing.
pub(crate) type Rules = fn(&PolicyDesired) -> Box<dyn Trace>;

/// Every policy backend there is.
pub(crate) const BACKENDS: [(&str, Rules); 2] = [("nftables", nftables), ("netfilter", netfilter)];

fn nftables(desired: &PolicyDesired) -> Box<dyn Trace> {
    Box::new(after(
        &Nftables::offline(NftablesSettings::default()),
        desired,
    ))
}

fn netfilter(desired: &PolicyDesired) -> Box<dyn Trace> {
    Box::new(after(
        &Netfilter::offline(NetfilterSettings::default()),
        desired,
    ))
}

fn after<D: Driver>(driver: &D, desired: &D::Desired) -> D::State {
    driver.plan(desired, &D::State::default()).unwrap().after
}

/// What every node would hold, planned from nothing.
pub(crate) struct Plans {
    nodes: BTreeMap<NodeName, (SteeringState, Box<dyn Trace>)>,
    desired: BTreeMap<NodeName, DriversDesired>,
}

impl Plans {
    pub(crate) fn of(offline: &Offline, rules: Rules) -> Self {
        let steering = Steering::offline(SteeringSettings::default());
        let desired: BTreeMap<NodeName, DriversDesired> = offline
            .nodes()
            .map(|node| (node.clone(), offline.for_drivers(node).unwrap()))
            .collect();
        let states = |desired: &DriversDesired| {
            (after(&steering, &desired.steering), rules(&desired.policy))
        };
        Self {
            nodes: desired
                .iter()
                .map(|(node, desired)| (node.clone(), states(desired)))
                .collect(),
            desired,
        }
    }

    /// Sends the first packet of a connection from a pod of `node`.
    pub(crate) fn trace(&self, node: &NodeName, source: IpAddr, destination: IpAddr) -> Answer {
        let (routes, rules) = &self.nodes[node];
        let mut packet = TracePacket::new(source, destination);
        let TraceVerdict::Accept {
            packet_mark,
            connection_mark,
            ..
        } = rules.trace(&packet)
        else {
            return Answer::Drop;
        };
        (packet.packet_mark, packet.connection_mark) = (packet_mark, connection_mark);
        if MarkMask::default().is_exit(connection_mark) {
            return self.exits([(node.clone(), packet)]);
        }
        let hops = match routes.route(packet_mark, destination) {
            Route::Unreachable => return Answer::Drop,
            Route::Unmarked | Route::Direct if connection_mark == 0 => {
                assert_eq!(
                    rules.trace_source(&packet, UNDERLAY_DEVICE),
                    TraceSource::Untouched
                );
                return Answer::Pass;
            }
            Route::Unmarked | Route::Direct => return self.exits([(node.clone(), packet)]),
            Route::Via(hops) => hops,
        };
        let mut arriving = Vec::new();
        for hop in hops {
            assert!(
                matches!(
                    rules.trace_forward(&packet, &hop.device),
                    TraceVerdict::Accept { .. }
                ),
                "may enter the tunnel"
            );
            assert_eq!(
                rules.trace_source(&packet, &hop.device),
                TraceSource::Itself,
                "enters the tunnel as itself"
            );
            arriving.extend(self.cross(node, &hop, source, destination));
        }
        self.exits(arriving)
    }

    /// What leaves the nodes that the packets arrive at.
    fn exits(&self, arriving: impl IntoIterator<Item = (NodeName, TracePacket)>) -> Answer {
        let mut leaving = BTreeSet::new();
        for (node, mut packet) in arriving {
            let (routes, rules) = &self.nodes[&node];
            if packet.in_device.is_some() {
                let TraceVerdict::Accept {
                    untracked,
                    packet_mark,
                    connection_mark,
                    ..
                } = rules.trace(&packet)
                else {
                    continue;
                };
                (packet.packet_mark, packet.connection_mark) = (packet_mark, connection_mark);
                if untracked {
                    packet.state = ConnectionState::Untracked;
                }
            }
            if packet.state != ConnectionState::Untracked {
                assert!(
                    MarkMask::default().is_exit(packet.connection_mark),
                    "pinned as leaving here"
                );
            }
            let device = match routes.route(packet.packet_mark, packet.destination) {
                Route::Unmarked => UNDERLAY_DEVICE.to_owned(),
                Route::Via(hops)
                    if hops.len() == 1 && packet.packet_mark == packet.connection_mark =>
                {
                    hops[0].device.clone()
                }
                other => panic!("leaves by the main table, or by another network: {other:?}"),
            };
            if matches!(
                rules.trace_forward(&packet, &device),
                TraceVerdict::Drop { .. }
            ) {
                continue;
            }
            let own = || {
                let desired = &self.desired[&node];
                let underlay = desired
                    .tunnel
                    .local
                    .as_ref()?
                    .underlay
                    .get(&Family::of(packet.destination))?;
                Some(underlay.address)
            };
            let source = match rules.trace_source(&packet, &device) {
                TraceSource::Masquerade => own(),
                TraceSource::Address(address) | TraceSource::Ports(address) => Some(address),
                TraceSource::Itself => Some(packet.source),
                TraceSource::Untouched => panic!("whatever leaves is translated, or kept from it"),
                TraceSource::Drop { .. } => continue,
            };
            let by_network = self.desired[&node]
                .policy
                .networks
                .values()
                .find(|network| source.is_some_and(|source| network.addresses.contains(&source)));
            assert_eq!(
                by_network.map_or(UNDERLAY_DEVICE, |network| &network.device),
                device,
                "{source:?} leaves by its network"
            );
            leaving.insert((node.to_string(), source));
        }
        if leaving.is_empty() {
            Answer::Drop
        } else {
            Answer::Egress(leaving)
        }
    }

    /// Through the tunnel to the node that has the next hop's address.
    fn cross(
        &self,
        from: &NodeName,
        hop: &NextHop,
        source: IpAddr,
        destination: IpAddr,
    ) -> Option<(NodeName, TracePacket)> {
        let desired = &self.desired[from];
        assert!(
            desired.policy.overlay.devices.contains(&hop.device),
            "{from} has no device {}",
            hop.device
        );
        let (to, peer) = desired
            .tunnel
            .peers
            .iter()
            .find(|(_, peer)| peer.overlay.contains(&hop.via))
            .unwrap();
        let there = &self.desired[to];
        let local = there.tunnel.local.as_ref()?;
        assert!(
            local.overlay.iter().any(|net| net.addr() == hop.via),
            "{to} is where {from} thinks it is"
        );
        assert_eq!(local.mac, peer.mac);
        let family = Family::of(hop.via);
        assert_eq!(
            peer.underlay(family),
            local.underlay.get(&family).map(|underlay| underlay.address)
        );
        let outer = desired
            .tunnel
            .local
            .as_ref()?
            .underlay
            .get(&family)?
            .address;
        let is_let_in = there.policy.overlay.peers.contains(&outer);
        is_let_in.then(|| {
            (
                to.clone(),
                TracePacket::new(source, destination).from_device(hop.device.clone()),
            )
        })
    }
}
