//! Bringing one node from what it holds to what it must hold, in an order that never leaks.

use std::net::IpAddr;

use imbl::{OrdMap, OrdSet};
use ipnet::IpNet;

use crate::{
    AddressesDesired, Error,
    contracts::{
        Encapsulation, PolicyDesired, RelayDesired, RelayNode, SteeringDesired, TunnelDesired,
    },
    driver::{Outcome, Reconcile},
    model::{Family, NodeName, TargetId},
};

/// Everything that one node must hold, before a kind of tunnel gives it its shape.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeDesired {
    /// Local and remote ends of the overlay.
    pub tunnel: TunnelDesired,
    /// The nodes that each target's traffic goes to from here: live ones only, this node excluded.
    pub paths: OrdMap<TargetId, OrdSet<NodeName>>,
    /// The targets whose connections are spread over all their nodes (`forwardMethod: ecmp`), be it
    /// one at the moment.
    pub balanced: OrdSet<TargetId>,
    /// The targets that stand for one node and the egress addresses that it answers for. Nothing
    /// leaves through them with another source.
    pub addressed: OrdSet<TargetId>,
    /// Networks inside the cluster that no mark leads away from.
    pub direct: OrdSet<IpNet>,
    /// The egress addresses that it answers for.
    pub addresses: AddressesDesired,
    /// What it passes on for gateways whose sources are translated on the pods' own nodes; its nodes
    /// and its overlay come from the tunnel.
    pub relay: RelayDesired,
    /// Classification and translation; its `overlay` knows peers, hosts and `unknown_may_exit`, the
    /// rest comes from the tunnel.
    pub policy: PolicyDesired,
}

/// Everything that one node must hold, in the words of its drivers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DriversDesired {
    /// For the tunnel.
    pub tunnel: TunnelDesired,
    /// For policy routing.
    pub steering: SteeringDesired,
    /// For the egress addresses.
    pub addresses: AddressesDesired,
    /// For the relay.
    pub relay: RelayDesired,
    /// For the policy backend.
    pub policy: PolicyDesired,
}

/// Bytes of the IPv4 and TCP headers without options.
const HEADERS_V4: u32 = 40;
/// Bytes of the IPv6 and TCP headers without options.
const HEADERS_V6: u32 = 60;

impl NodeDesired {
    /// The same in the words of the drivers, given the kind of tunnel.
    #[must_use]
    pub fn for_drivers(&self, encapsulation: &dyn Encapsulation) -> DriversDesired {
        let mut policy = self.policy.clone();
        if let Some(local) = &self.tunnel.local {
            let links = encapsulation.links(local);
            policy.overlay.devices = links.devices;
            policy.overlay.port = links.port;
            policy
                .overlay
                .own
                .extend(local.underlay.values().map(|underlay| underlay.address));
            let least = |family: &Family, mtu: &u32| {
                self.paths
                    .values()
                    .filter_map(|nodes| self.least_mtu(nodes, *family))
                    .fold(*mtu, u32::min)
            };
            policy.overlay.mss = links
                .mtu
                .iter()
                .map(|(family, mtu)| (*family, mss(*family, least(family, mtu))))
                .collect();
        }
        let addresses = self.addresses.clone();
        DriversDesired {
            tunnel: self.tunnel.clone(),
            steering: self.steering(encapsulation),
            addresses,
            relay: self.relay(encapsulation),
            policy,
        }
    }

    fn relay(&self, encapsulation: &dyn Encapsulation) -> RelayDesired {
        let mut relay = self.relay.clone();
        let Some(local) = self
            .tunnel
            .local
            .as_ref()
            .filter(|_| !relay.addresses.is_empty())
        else {
            return relay;
        };
        let links = encapsulation.links(local);
        let names: OrdSet<NodeName> = relay
            .bindings
            .values()
            .filter(|node| Some(*node) != relay.own.as_ref())
            .cloned()
            .collect();
        let node = |name: &NodeName| {
            let peer = self.tunnel.peers.get(name)?;
            let hops = Family::ALL
                .into_iter()
                .filter_map(|family| encapsulation.next_hop(local, peer, family))
                .filter(|hop| hop.encap.is_none());
            Some((
                name.clone(),
                RelayNode {
                    hops: hops.collect(),
                    underlay: peer.underlay.clone(),
                    mac: peer.mac,
                },
            ))
        };
        relay.nodes = names.iter().filter_map(node).collect();
        relay.overlay = links.devices;
        relay.port = links.port;
        relay
    }

    /// The largest packet that all of these nodes take in, as far as they say so. What fits the
    /// device here may still be too large for the receiver's network, where nobody would say so to
    /// its sender.
    fn least_mtu(&self, nodes: &OrdSet<NodeName>, family: Family) -> Option<u32> {
        nodes
            .iter()
            .filter_map(|node| self.tunnel.peers.get(node)?.mtu.get(&family).copied())
            .min()
    }

    fn steering(&self, encapsulation: &dyn Encapsulation) -> SteeringDesired {
        let next_hops = |nodes: &OrdSet<NodeName>| {
            let ends = self.tunnel.local.iter().flat_map(|local| {
                nodes
                    .iter()
                    .filter_map(move |node| Some((local, self.tunnel.peers.get(node)?)))
            });
            ends.flat_map(|(local, peer)| {
                Family::ALL
                    .into_iter()
                    .filter_map(|family| encapsulation.next_hop(local, peer, family))
            })
            .collect::<OrdSet<_>>()
        };
        let targets = self
            .paths
            .iter()
            .map(|(target, nodes)| (*target, next_hops(nodes)))
            .collect();
        let own = self
            .tunnel
            .local
            .as_ref()
            .map(|local| encapsulation.links(local).mtu)
            .unwrap_or_default();
        let mut mtu = OrdMap::new();
        for (target, nodes) in &self.paths {
            for (family, own) in &own {
                mtu.extend(
                    self.least_mtu(nodes, *family)
                        .filter(|least| least < own)
                        .map(|least| ((*target, *family), least)),
                );
            }
        }
        let networks = self.policy.networks.clone();
        SteeringDesired {
            targets,
            mtu,
            balanced: self.balanced.clone(),
            networks,
            direct: self.direct.clone(),
        }
    }
}

fn mss(family: Family, mtu: u32) -> u16 {
    let headers = match family {
        Family::V4 => HEADERS_V4,
        Family::V6 => HEADERS_V6,
    };
    u16::try_from(mtu.saturating_sub(headers)).unwrap_or(u16::MAX)
}

/// The drivers of a node.
pub struct Drivers {
    /// The overlay.
    pub tunnel: Box<dyn Reconcile<TunnelDesired>>,
    /// Policy routing.
    pub steering: Box<dyn Reconcile<SteeringDesired>>,
    /// Egress addresses; [`Unmanaged`](crate::Unmanaged) where somebody else sees to it that they
    /// are there.
    pub addresses: Box<dyn Reconcile<AddressesDesired>>,
    /// What is passed on for others; [`Unmanaged`](crate::Unmanaged) where no driver of the host
    /// can.
    pub relay: Box<dyn Reconcile<RelayDesired>>,
    /// Classification and translation.
    pub policy: Box<dyn Reconcile<PolicyDesired>>,
}

impl std::fmt::Debug for Drivers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Drivers").finish_non_exhaustive()
    }
}

impl Drivers {
    /// Brings the node from `before` to `next`: make before break.
    ///
    /// Where nothing is known of what came before, the policy comes first: it drops what would be
    /// steered and has no way yet, so nothing leaves uncontrolled while the tunnel is built. Later,
    /// new ways exist before the policy uses them, and old ways go after it no longer does.
    ///
    /// Egress addresses come before a policy that exits with them. One that another node answers
    /// for by now goes at the same moment, before the policy has moved on: until then packets leave
    /// from here with the right source still, and of two nodes that answer for it one is too many.
    /// Whether the addresses succeed and whether the rest does is independent: an address that
    /// can't be had keeps no policy out of force, and a packet filter that fails keeps no address
    /// here. But for the addresses whose answers a relay passes on: without it this host would
    /// answer itself, and reset others' connections. So they come after the relay, and go before
    /// it.
    ///
    /// # Errors
    /// The first failing step; earlier steps stay, later ones are not tried. A failure of the
    /// addresses comes last.
    pub async fn converge(
        &mut self,
        before: Option<&DriversDesired>,
        next: &DriversDesired,
    ) -> Result<Outcome, Error> {
        let guard = match before {
            Some(_) => Ok(Outcome::Unchanged),
            None => self.policy.reconcile(&next.policy).await,
        };
        let early = before_relay(before, next);
        let mut addresses = self.addresses.reconcile(&early).await;
        let guard = guard?;
        let tunnel = before.map_or_else(
            || next.tunnel.clone(),
            |before| before.tunnel.union(&next.tunnel),
        );
        let tunnel = self.tunnel.reconcile(&tunnel).await?;
        let both = before.map_or_else(
            || next.relay.clone(),
            |before| before.relay.union(&next.relay),
        );
        let relay = self.relay.reconcile(&both).await;
        if relay.is_ok() && addresses.is_ok() && early != next.addresses {
            addresses = self.addresses.reconcile(&next.addresses).await;
        }
        let mut steps = vec![tunnel];
        match before {
            Some(before) => {
                steps.push(
                    self.steering
                        .reconcile(&before.steering.union(&next.steering))
                        .await?,
                );
                steps.push(self.policy.reconcile(&next.policy).await?);
                steps.push(self.steering.reconcile(&next.steering).await?);
                if relay.is_ok() && both != next.relay {
                    steps.push(self.relay.reconcile(&next.relay).await?);
                }
                steps.push(self.tunnel.reconcile(&next.tunnel).await?);
            }
            None => steps.push(self.steering.reconcile(&next.steering).await?),
        }
        Ok(together(
            steps.into_iter().chain([guard, relay?, addresses?]),
        ))
    }

    /// Removes everything that is ours from the node: first what leads traffic away, then what
    /// would carry it.
    ///
    /// # Errors
    /// The first failing step.
    pub async fn remove_all(&mut self) -> Result<Outcome, Error> {
        self.invalidate();
        let steps = [
            self.policy.reconcile(&PolicyDesired::default()).await?,
            self.addresses
                .reconcile(&AddressesDesired::default())
                .await?,
            self.relay.reconcile(&RelayDesired::default()).await?,
            self.steering.reconcile(&SteeringDesired::default()).await?,
            self.tunnel.reconcile(&TunnelDesired::default()).await?,
        ];
        Ok(together(steps))
    }

    /// What [`Self::converge`] would do from what the kernel holds now, as text.
    ///
    /// # Errors
    /// What reading or planning meets.
    pub async fn dry_run(&mut self, next: &DriversDesired) -> Result<String, Error> {
        Ok([
            self.tunnel.dry_run(&next.tunnel).await?,
            self.steering.dry_run(&next.steering).await?,
            self.relay.dry_run(&next.relay).await?,
            self.addresses.dry_run(&next.addresses).await?,
            self.policy.dry_run(&next.policy).await?,
        ]
        .concat())
    }

    /// Forgets what is believed of the kernel; the next call reads it.
    pub fn invalidate(&mut self) {
        self.tunnel.invalidate();
        self.steering.invalidate();
        self.addresses.invalidate();
        self.relay.invalidate();
        self.policy.invalidate();
    }
}

/// The addresses that can be had before the relay has changed: none whose answers it is to pass on
/// and did not before.
fn before_relay(before: Option<&DriversDesired>, next: &DriversDesired) -> AddressesDesired {
    let is_new = |address: &IpAddr| {
        next.relay.addresses.contains(address)
            && before.is_none_or(|before| !before.relay.addresses.contains(address))
    };
    let held = next.addresses.held.iter();
    AddressesDesired {
        held: held
            .filter(|(address, _)| !is_new(address))
            .map(|(address, device)| (*address, device.clone()))
            .collect(),
    }
}

/// What several steps came to.
fn together(steps: impl IntoIterator<Item = Outcome>) -> Outcome {
    if steps.into_iter().any(|step| step == Outcome::Applied) {
        Outcome::Applied
    } else {
        Outcome::Unchanged
    }
}
