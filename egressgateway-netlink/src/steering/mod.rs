//! The driver of policy routing: for each target a rule, and a table that leads to its gateways or
//! nowhere.

mod flow_hash;
mod numbers;
mod plan;
mod settings;
mod state;

use std::sync::Arc;

use async_trait::async_trait;
use egressgateway::{Change, Driver, Error, ErrorKind, SteeringDesired, WriteHook, model::Family};

pub use plan::{SteeringPlan, SteeringStep};
pub use settings::SteeringSettings;
pub use state::{Route, SteeringState};

use crate::{netlink::Netlink, route::RouteAction, sysctl};
use flow_hash::FlowHash;

/// The driver of `ip rule` and routing tables.
///
/// For each target and family:
/// - a loop guard, before the rest: what this host sends itself with the target's mark (the outer
///   packet inherits it) goes by the main table;
/// - a rule from the mark to the target's table;
/// - in the table: `throw` for networks inside the cluster, a default route over the live next
///   hops, and `unreachable` behind it, always, so that without a next hop a packet never falls
///   through to the main table.
///
/// The default route of a [balanced](SteeringDesired::balanced) target leads to a resilient group
/// of next hops, also when there is one at the moment. When one goes, the group is replaced in one
/// step, and the kernel deals out its share alone; then the next hop is deleted. A group or a next
/// hop that somebody deletes takes its routes with it, and the `unreachable` behind them stays.
///
/// For each of the node's other networks that egress addresses leave by, in the family of its
/// router:
/// - a rule before the rest: what arrives by the network's device goes by the main table, also with
///   the network's mark;
/// - a rule from the mark to the network's table;
/// - in the table: `throw` for networks inside the cluster, the networks on the device, a default
///   route by the router, and `unreachable`;
/// - `src_valid_mark=1` on the device, with IPv4: a strict reverse-path filter sends answers, which
///   have the mark, by that table too. It stays set afterwards, because others may rely on it by
///   then.
///
/// It owns the rules with its protocol number, its mask and one of its two priorities, and the
/// routes, next hops and groups with its protocol number.
///
/// With several next hops the kernel must choose by flow (`net.ipv4.fib_multipath_hash_policy=3`
/// with `fib_multipath_hash_fields=55`, or 1 where connections can't be kept; and for IPv6): the
/// driver sets that while it has such a route, and leaves it set afterwards, because others may
/// rely on it by then.
#[derive(Clone, Debug)]
pub struct Steering {
    netlink: Option<Netlink>,
    settings: SteeringSettings,
    hook: Arc<dyn WriteHook>,
}

impl Steering {
    /// A driver of the kernel behind `netlink`; `hook` is asked before every write.
    #[must_use]
    pub fn new(netlink: Netlink, settings: SteeringSettings, hook: Arc<dyn WriteHook>) -> Self {
        Self {
            netlink: Some(netlink),
            settings,
            hook,
        }
    }

    /// Whether the kernel can keep connections with their next hop while others come and go:
    /// whether it has resilient groups and hashes packets by their own fields (Linux 5.14). Of the
    /// network namespace of the calling thread, which must be that of `netlink`.
    ///
    /// # Errors
    /// When it can't be asked.
    pub async fn keeps_connections_on(netlink: &Netlink) -> Result<bool, Error> {
        Ok(FlowHash::knows_packets()? && netlink.has_resilient_groups().await?)
    }

    /// A driver that can only plan.
    #[must_use]
    pub fn offline(settings: SteeringSettings) -> Self {
        Self {
            netlink: None,
            settings,
            hook: Arc::new(()),
        }
    }

    fn netlink(&self) -> Result<&Netlink, Error> {
        self.netlink
            .as_ref()
            .ok_or_else(|| Error::new(ErrorKind::Unsupported, "this steering driver only plans"))
    }
}

#[async_trait]
impl Driver for Steering {
    type Desired = SteeringDesired;
    type State = SteeringState;
    type Plan = SteeringPlan;

    async fn observe(&self) -> Result<SteeringState, Error> {
        let netlink = self.netlink()?;
        let SteeringSettings {
            protocol,
            mask,
            rule_priority,
            ..
        } = self.settings;
        let priorities = [self.settings.guard_priority(), rule_priority];
        let mut state = SteeringState {
            without_ipv6: !sysctl::has_family(Family::V6),
            ..SteeringState::default()
        };
        let devices = netlink.devices().await?;
        state.next_hops = netlink.next_hop_objects(protocol, &devices).await?;
        for family in state.families() {
            state
                .rules
                .extend(netlink.rules(family, protocol, mask, &priorities).await?);
            state
                .routes
                .extend(netlink.routes(family, protocol, &devices).await?);
        }
        for family in state.families() {
            if state.has_several_next_hops(family) {
                state
                    .flow_hash
                    .insert(family, self.settings.flow_hash().is_set(family)?);
            }
        }
        for device in state
            .rules
            .iter()
            .filter_map(|rule| rule.by.clone().filter(|_| rule.family == Family::V4))
        {
            let value = sysctl::read(&["ipv4", "conf", &device, plan::FILTER_BY_MARK])?;
            state.filters.insert(device, value.as_deref() == Some("1"));
        }
        Ok(state)
    }

    fn plan(
        &self,
        desired: &SteeringDesired,
        current: &SteeringState,
    ) -> Result<Change<SteeringPlan, SteeringState>, Error> {
        let after = SteeringState::of(desired, &self.settings, current.without_ipv6)?;
        let plan = SteeringPlan::between(current, &after, &self.settings);
        Ok(Change { plan, after })
    }

    async fn apply(&self, plan: &SteeringPlan) -> Result<(), Error> {
        let netlink = self.netlink()?;
        let devices = netlink.devices().await?;
        for step in &plan.steps {
            self.hook.before(step.verb())?;
            match step {
                SteeringStep::AddNextHop(id, object) => {
                    netlink
                        .set_next_hop_object(*id, object, plan.protocol, &devices, false)
                        .await?;
                }
                SteeringStep::ReplaceNextHop(id, object) => {
                    netlink
                        .set_next_hop_object(*id, object, plan.protocol, &devices, true)
                        .await?;
                }
                SteeringStep::DeleteNextHop(id, _) => netlink.delete_next_hop_object(*id).await?,
                SteeringStep::HashFlows(family) => plan.flow_hash.set(*family)?,
                SteeringStep::FilterByMark(device) => {
                    sysctl::write(&["ipv4", "conf", device, plan::FILTER_BY_MARK], "1")?;
                }
                SteeringStep::AddRule(rule) => netlink.add_rule(rule, plan.protocol).await?,
                SteeringStep::DeleteRule(rule) => netlink.delete_rule(rule, plan.protocol).await?,
                SteeringStep::AddRoute(key, action) => {
                    netlink
                        .set_route(key, action, plan.protocol, &devices, false)
                        .await?;
                }
                SteeringStep::ReplaceRoute(key, action) => {
                    netlink
                        .set_route(key, action, plan.protocol, &devices, true)
                        .await?;
                }
                SteeringStep::DeleteRoute(key, old) => {
                    let copies = if let RouteAction::Other(copies) = old {
                        *copies
                    } else {
                        1
                    };
                    for _ in 0..copies {
                        netlink.delete_route(key, plan.protocol).await?;
                    }
                }
            }
        }
        Ok(())
    }
}
