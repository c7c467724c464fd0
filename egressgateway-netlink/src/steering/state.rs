//! Rules and routes, as they are or as they must be, and a packet's way through them.

use std::net::IpAddr;

use egressgateway::{
    Error, ErrorKind, ExitNetwork, NextHop, SteeringDesired,
    model::{Family, NetworkId, TargetId},
};
use imbl::{OrdMap, OrdSet};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{numbers, settings::SteeringSettings};
use crate::{
    constants::{METRIC, RULE_PRIORITY_MAX, RULE_PRIORITY_MIN, TABLE_MAIN, UNREACHABLE_METRIC},
    next_hop::NextHopObject,
    route::{RouteAction, RouteKey},
    rule::Rule,
};

/// What the driver owns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SteeringState {
    /// Rules.
    pub rules: OrdSet<Rule>,
    /// Routes.
    pub routes: OrdMap<RouteKey, RouteAction>,
    /// What the kernel keeps under numbers: next hops and their groups.
    pub next_hops: OrdMap<u32, NextHopObject>,
    /// For each family with a route over several next hops, or over a group: whether flows are
    /// assigned to them by addresses and ports.
    pub flow_hash: OrdMap<Family, bool>,
    /// For each device by which a network of egress addresses is reached with IPv4: whether its
    /// reverse-path filter looks at marks.
    pub filters: OrdMap<String, bool>,
    /// Whether the kernel has no IPv6 at all, so that there is nothing to steer.
    pub without_ipv6: bool,
}

/// Where policy routing sends a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// As if there were no steering: no rule matches, or its table has nothing to say.
    Unmarked,
    /// As if there were no steering, because the destination is inside the cluster.
    Direct,
    /// Over one of these.
    Via(Vec<NextHop>),
    /// Nowhere.
    Unreachable,
}

impl SteeringState {
    /// Where a forwarded packet with this mark goes. Pure: what a kernel in this state would do.
    #[must_use]
    pub fn route(&self, mark: u32, destination: IpAddr) -> Route {
        let family = Family::of(destination);
        let matching = self.rules.iter().filter(|rule| {
            rule.family == family
                && !rule.local
                && rule.by.is_none()
                && mark & rule.mask == rule.mark
        });
        let Some(rule) = matching.min_by_key(|rule| rule.priority) else {
            return Route::Unmarked;
        };
        let routes = self
            .routes
            .iter()
            .filter(|(key, _)| key.table == rule.table && key.destination.contains(&destination));
        let best = routes
            .min_by_key(|(key, _)| (std::cmp::Reverse(key.destination.prefix_len()), key.metric));
        match best.map(|(key, action)| (key, action.way())) {
            None => Route::Unmarked,
            Some((_, RouteAction::Throw)) => Route::Direct,
            Some((_, RouteAction::Link(device))) => Route::Via(vec![NextHop {
                device: device.clone(),
                via: destination,
                encap: None,
            }]),
            Some((_, RouteAction::Via(hops))) => Route::Via(hops.iter().cloned().collect()),
            Some((_, RouteAction::Group(id))) => {
                Route::Via(self.members(*id).into_iter().collect())
            }
            Some((
                _,
                RouteAction::Unreachable | RouteAction::Limited(..) | RouteAction::Other(_),
            )) => Route::Unreachable,
        }
    }

    /// The next hops of a group.
    fn members(&self, id: u32) -> OrdSet<NextHop> {
        let Some(NextHopObject::Group(members)) = self.next_hops.get(&id) else {
            return OrdSet::new();
        };
        let hops = members
            .iter()
            .filter_map(|member| match self.next_hops.get(member) {
                Some(NextHopObject::Hop(hop)) => Some(hop.clone()),
                _ => None,
            });
        hops.collect()
    }

    /// What else the kernel forgets when it is told to delete an object: its place in groups, the
    /// groups that it was the last of, and their routes.
    pub(super) fn forget(&mut self, id: u32) {
        self.next_hops.remove(&id);
        self.routes = std::mem::take(&mut self.routes)
            .into_iter()
            .filter(|(_, action)| *action.way() != RouteAction::Group(id))
            .collect();
        let groups: Vec<_> = self
            .next_hops
            .iter()
            .filter_map(|(group, object)| Some((*group, without(object, id)?)))
            .collect();
        for (group, members) in groups {
            if members.is_empty() {
                self.forget(group);
            } else {
                self.next_hops.insert(group, NextHopObject::Group(members));
            }
        }
    }

    /// What a kernel must hold.
    pub(super) fn of(
        desired: &SteeringDesired,
        settings: &SteeringSettings,
        without_ipv6: bool,
    ) -> Result<Self, Error> {
        if !(RULE_PRIORITY_MIN..=RULE_PRIORITY_MAX).contains(&settings.rule_priority) {
            let range = format!("{RULE_PRIORITY_MIN} to {RULE_PRIORITY_MAX}");
            return Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "rule priority {} is not one of {range}",
                    settings.rule_priority
                ),
            ));
        }
        if let Some(all) = desired
            .direct
            .iter()
            .find(|network| network.prefix_len() == 0)
        {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("{all} is no network inside the cluster: nothing would be steered"),
            ));
        }
        let mut state = Self {
            without_ipv6,
            ..Self::default()
        };
        for (target, hops) in &desired.targets {
            state.add_target(*target, hops, desired, settings)?;
        }
        for (id, network) in &desired.networks {
            state.add_network(*id, network, &desired.direct, settings)?;
        }
        if settings.keeps_connections {
            state.group(desired, settings);
        }
        state.flow_hash = state
            .families()
            .into_iter()
            .filter(|family| state.has_several_next_hops(*family))
            .map(|family| (family, true))
            .collect();
        Ok(state)
    }

    fn add_target(
        &mut self,
        target: TargetId,
        hops: &OrdSet<NextHop>,
        desired: &SteeringDesired,
        settings: &SteeringSettings,
    ) -> Result<(), Error> {
        let none_left = || {
            Error::new(
                ErrorKind::Invalid,
                format!(
                    "no routing table for target {target} from {}",
                    settings.table_base
                ),
            )
        };
        let table = settings.table(target).ok_or_else(none_left)?;
        for family in self.families() {
            let SteeringSettings {
                rule_priority: priority,
                mask,
                ..
            } = *settings;
            let steer = Rule {
                family,
                priority,
                mark: mask.mark(target),
                mask: mask.bits(),
                local: false,
                by: None,
                table,
            };
            self.rules.insert(Rule {
                priority: settings.guard_priority(),
                local: true,
                table: TABLE_MAIN,
                ..steer.clone()
            });
            self.rules.insert(steer);
            let default = |metric| RouteKey {
                table,
                destination: everything(family),
                metric,
            };
            self.routes
                .insert(default(UNREACHABLE_METRIC), RouteAction::Unreachable);
            for network in desired
                .direct
                .iter()
                .filter(|network| Family::of(network.addr()) == family)
            {
                self.routes.insert(
                    RouteKey {
                        table,
                        destination: network.trunc(),
                        metric: METRIC,
                    },
                    RouteAction::Throw,
                );
            }
            let hops: OrdSet<_> = hops
                .iter()
                .filter(|hop| hop.family() == family)
                .cloned()
                .collect();
            if !hops.is_empty() {
                self.routes.insert(
                    default(METRIC),
                    RouteAction::Via(hops).limited(desired.mtu.get(&(target, family)).copied()),
                );
            }
        }
        Ok(())
    }

    /// What has the network's mark leaves by it. An answer has the mark too, for the reverse-path
    /// filter of the device that it arrives by: it is routed as if it had none.
    fn add_network(
        &mut self,
        id: NetworkId,
        network: &ExitNetwork,
        direct: &OrdSet<IpNet>,
        settings: &SteeringSettings,
    ) -> Result<(), Error> {
        let none_left = || {
            Error::new(
                ErrorKind::Invalid,
                format!(
                    "no routing table for network {id} from {}",
                    settings.table_base
                ),
            )
        };
        let table = settings.network_table(id).ok_or_else(none_left)?;
        let family = Family::of(network.router);
        if !self.families().contains(&family) {
            return Ok(());
        }
        let SteeringSettings {
            rule_priority: priority,
            mask,
            ..
        } = *settings;
        let leave = Rule {
            family,
            priority,
            mark: mask.network_mark(id),
            mask: mask.bits(),
            local: false,
            by: None,
            table,
        };
        let back = Rule {
            priority: settings.guard_priority(),
            by: Some(network.device.clone()),
            table: TABLE_MAIN,
            ..leave.clone()
        };
        self.rules.extend([leave, back]);
        let to = |destination: IpNet, metric| RouteKey {
            table,
            destination,
            metric,
        };
        self.routes.insert(
            to(everything(family), UNREACHABLE_METRIC),
            RouteAction::Unreachable,
        );
        for net in network
            .link
            .iter()
            .filter(|net| Family::of(net.addr()) == family)
        {
            self.routes.insert(
                to(net.trunc(), METRIC),
                RouteAction::Link(network.device.clone()),
            );
        }
        for net in direct.iter().filter(|net| Family::of(net.addr()) == family) {
            self.routes
                .insert(to(net.trunc(), METRIC), RouteAction::Throw);
        }
        let router = NextHop {
            device: network.device.clone(),
            via: network.router,
            encap: None,
        };
        self.routes.insert(
            to(everything(family), METRIC),
            RouteAction::Via([router].into_iter().collect()),
        );
        if family == Family::V4 {
            self.filters.insert(network.device.clone(), true);
        }
        Ok(())
    }

    /// Puts groups in the place of the balanced targets' next hops.
    fn group(&mut self, desired: &SteeringDesired, settings: &SteeringSettings) {
        let balanced: Vec<_> = desired
            .balanced
            .iter()
            .filter_map(|target| Some((*target, settings.table(*target)?)))
            .collect();
        let ways = balanced.into_iter().flat_map(|(target, table)| {
            Family::ALL.map(|family| {
                (
                    numbers::group(target, family),
                    RouteKey {
                        table,
                        destination: everything(family),
                        metric: METRIC,
                    },
                )
            })
        });
        let groups: Vec<(u32, OrdSet<NextHop>)> = ways
            .filter_map(|(id, key)| {
                match self
                    .routes
                    .get_mut(&key)
                    .map(|action| std::mem::replace(action.way_mut(), RouteAction::Group(id)))
                {
                    Some(RouteAction::Via(hops)) => Some((id, hops)),
                    _ => None,
                }
            })
            .collect();
        let numbers = numbers::hops(groups.iter().flat_map(|(_, hops)| hops));
        for (id, hops) in &groups {
            self.next_hops.insert(
                *id,
                NextHopObject::Group(hops.iter().flat_map(|hop| numbers[hop]).collect()),
            );
        }
        for (hop, pair) in &numbers {
            self.next_hops
                .extend(pair.map(|id| (id, NextHopObject::Hop(hop.clone()))));
        }
    }

    pub(super) fn families(&self) -> Vec<Family> {
        Family::ALL
            .into_iter()
            .filter(|family| !(self.without_ipv6 && *family == Family::V6))
            .collect()
    }

    pub(super) fn has_several_next_hops(&self, family: Family) -> bool {
        let several = |action: &RouteAction| match action.way() {
            RouteAction::Via(hops) => hops.len() > 1,
            RouteAction::Group(_) => true,
            _ => false,
        };
        self.routes
            .iter()
            .any(|(key, action)| key.family() == family && several(action))
    }
}

/// The members of a group that this was one of, without it.
fn without(object: &NextHopObject, id: u32) -> Option<OrdSet<u32>> {
    match object {
        NextHopObject::Group(members) if members.contains(&id) => Some(members.without(&id)),
        _ => None,
    }
}

fn everything(family: Family) -> IpNet {
    match family {
        Family::V4 => IpNet::V4(Ipv4Net::default()),
        Family::V6 => IpNet::V6(Ipv6Net::default()),
    }
}
