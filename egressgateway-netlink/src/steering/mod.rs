//! The driver of policy routing: for each target a rule, and a table that leads to its gateways or nowhere.

mod plan;
mod state;

use std::sync::Arc;

use async_trait::async_trait;
use egressgateway::{
    Change, Driver, Error, ErrorKind, SteeringDesired, WriteHook,
    model::{Family, MarkMask, TargetId},
};

pub use plan::{SteeringPlan, SteeringStep};
pub use state::{Route, SteeringState};

use crate::{
    constants::{PROTOCOL, RESERVED_TABLES, RULE_PRIORITY, TABLE_BASE},
    netlink::Netlink,
    route::RouteAction,
    sysctl,
};

/// Kernel parameter: how a flow is assigned to one of several next hops.
const FLOW_HASH: &str = "fib_multipath_hash_policy";
/// Its value for "by addresses, protocol and ports".
const FLOW_HASH_L4: &str = "1";

/// Numbers that the driver uses, and knows its own objects by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SteeringSettings {
    /// Table of the first target.
    pub table_base: u32,
    /// Priority of the steering rules; the loop guard has the number before it.
    pub rule_priority: u32,
    /// Route protocol number of rules and routes. Every route with it, in any table, is taken for ours.
    pub protocol: u8,
    /// The bits of the packet mark that are ours.
    pub mask: MarkMask,
}

impl Default for SteeringSettings {
    fn default() -> Self {
        Self { table_base: TABLE_BASE, rule_priority: RULE_PRIORITY, protocol: PROTOCOL, mask: MarkMask::default() }
    }
}

impl SteeringSettings {
    /// The table of a target: depends on nothing else, so that it never changes during a gateway's life. The first target has
    /// [`Self::table_base`], the others follow in the order of [`TargetId::all`]; tables that the kernel names itself are left out.
    /// None when the numbers end.
    #[must_use]
    pub fn table(&self, target: TargetId) -> Option<u32> {
        let place = TargetId::all().position(|other| other == target)?;
        (self.table_base.max(1)..=u32::MAX).filter(|table| !RESERVED_TABLES.contains(table)).nth(place)
    }

    /// Priority of the loop guard.
    #[must_use]
    pub fn guard_priority(&self) -> u32 {
        self.rule_priority.saturating_sub(1)
    }
}

/// The driver of `ip rule` and routing tables.
///
/// For each target and family:
/// - a loop guard, before the rest: what this host sends itself with the target's mark (the outer packet inherits it) goes by the main table;
/// - a rule from the mark to the target's table;
/// - in the table: `throw` for networks inside the cluster, a default route over the live next hops, and `unreachable` behind it, always, so
///   that without a next hop a packet never falls through to the main table.
///
/// It owns the rules with its protocol number, its mask and one of its two priorities, and the routes with its protocol number.
///
/// With several next hops the kernel must choose by flow (`net.ipv4.fib_multipath_hash_policy=1`, and for IPv6): the driver sets that
/// while it has such a route, and leaves it set afterwards, because others may rely on it by then.
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
        Self { netlink: Some(netlink), settings, hook }
    }

    /// A driver that can only plan.
    #[must_use]
    pub fn offline(settings: SteeringSettings) -> Self {
        Self { netlink: None, settings, hook: Arc::new(()) }
    }

    fn netlink(&self) -> Result<&Netlink, Error> {
        self.netlink.as_ref().ok_or_else(|| Error::new(ErrorKind::Unsupported, "this steering driver only plans"))
    }
}

#[async_trait]
impl Driver for Steering {
    type Desired = SteeringDesired;
    type State = SteeringState;
    type Plan = SteeringPlan;

    async fn observe(&self) -> Result<SteeringState, Error> {
        let netlink = self.netlink()?;
        let SteeringSettings { protocol, mask, rule_priority, .. } = self.settings;
        let priorities = [self.settings.guard_priority(), rule_priority];
        let mut state = SteeringState { without_ipv6: !sysctl::has_family(Family::V6), ..SteeringState::default() };
        let devices = netlink.devices().await?;
        for family in state.families() {
            state.rules.extend(netlink.rules(family, protocol, mask, &priorities).await?);
            state.routes.extend(netlink.routes(family, protocol, &devices).await?);
        }
        for family in state.families() {
            if state.has_several_next_hops(family) {
                let policy = sysctl::read(&[sysctl::directory(family), FLOW_HASH])?;
                state.flow_hash.insert(family, policy.as_deref() == Some(FLOW_HASH_L4));
            }
        }
        Ok(state)
    }

    fn plan(&self, desired: &SteeringDesired, current: &SteeringState) -> Result<Change<SteeringPlan, SteeringState>, Error> {
        let after = SteeringState::of(desired, &self.settings, current.without_ipv6)?;
        let plan = SteeringPlan::between(current, &after, self.settings.protocol);
        Ok(Change { plan, after })
    }

    async fn apply(&self, plan: &SteeringPlan) -> Result<(), Error> {
        let netlink = self.netlink()?;
        let devices = netlink.devices().await?;
        for step in &plan.steps {
            self.hook.before(step.verb())?;
            match step {
                SteeringStep::HashFlows(family) => sysctl::write(&[sysctl::directory(*family), FLOW_HASH], FLOW_HASH_L4)?,
                SteeringStep::AddRule(rule) => netlink.add_rule(rule, plan.protocol).await?,
                SteeringStep::DeleteRule(rule) => netlink.delete_rule(rule, plan.protocol).await?,
                SteeringStep::AddRoute(key, action) => netlink.set_route(key, action, plan.protocol, &devices, false).await?,
                SteeringStep::ReplaceRoute(key, action) => netlink.set_route(key, action, plan.protocol, &devices, true).await?,
                SteeringStep::DeleteRoute(key, old) => {
                    let copies = if let RouteAction::Other(copies) = old { *copies } else { 1 };
                    for _ in 0..copies {
                        netlink.delete_route(key, plan.protocol).await?;
                    }
                }
            }
        }
        Ok(())
    }
}
