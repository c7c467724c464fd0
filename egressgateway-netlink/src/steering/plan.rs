//! The steps from one state to another, in an order that never leaks.

use std::fmt;

use egressgateway::{Plan, model::Family};

use super::{FLOW_HASH, FLOW_HASH_L4, SteeringState};
use crate::{
    route::{RouteAction, RouteKey},
    rule::Rule,
    sysctl,
};

/// One write to the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SteeringStep {
    /// Assigns flows of a family to next hops by addresses and ports.
    HashFlows(Family),
    /// Adds a route.
    AddRoute(RouteKey, RouteAction),
    /// Puts a route in the place of the one with its key, in one step.
    ReplaceRoute(RouteKey, RouteAction),
    /// Deletes a route; it did this.
    DeleteRoute(RouteKey, RouteAction),
    /// Adds a rule.
    AddRule(Rule),
    /// Deletes a rule.
    DeleteRule(Rule),
}

impl SteeringStep {
    /// What it is, for a [`WriteHook`](egressgateway::WriteHook).
    #[must_use]
    pub fn verb(&self) -> &'static str {
        match self {
            Self::HashFlows(_) => "set sysctl",
            Self::AddRoute(..) => "add route",
            Self::ReplaceRoute(..) => "replace route",
            Self::DeleteRoute(..) => "delete route",
            Self::AddRule(_) => "add rule",
            Self::DeleteRule(_) => "delete rule",
        }
    }

    /// Family of the packets that it is about.
    #[must_use]
    pub fn family(&self) -> Family {
        match self {
            Self::HashFlows(family) => *family,
            Self::AddRoute(key, _) | Self::ReplaceRoute(key, _) | Self::DeleteRoute(key, _) => key.family(),
            Self::AddRule(rule) | Self::DeleteRule(rule) => rule.family,
        }
    }
}

/// Steps in the order in which they are taken: make before break.
///
/// Its text is a shell script that does the same: the lines between `ip -4 -batch - <<END` and `END`, and those of `ip -6`, are what
/// `ip -batch` takes (which knows one family per run). The families do not depend on each other, so one is written after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SteeringPlan {
    pub(super) steps: Vec<SteeringStep>,
    pub(super) protocol: u8,
}

impl SteeringPlan {
    /// The steps.
    #[must_use]
    pub fn steps(&self) -> &[SteeringStep] {
        &self.steps
    }

    /// Routes come before the rules that lead to them, and within a table what catches comes before what leads away; rules go before
    /// their routes do, and the loop guard is the first to come and the last to go.
    pub(super) fn between(current: &SteeringState, after: &SteeringState, protocol: u8) -> Self {
        let hash = after.flow_hash.keys().filter(|family| current.flow_hash.get(*family) != Some(&true));
        let mut steps: Vec<_> = hash.map(|family| SteeringStep::HashFlows(*family)).collect();
        let mut routes: Vec<_> = after.routes.iter().filter_map(|(key, action)| set(key, action, current.routes.get(key))).collect();
        routes.sort_by_key(|(urgency, _)| *urgency);
        steps.extend(routes.into_iter().map(|(_, step)| step));
        let new = after.rules.iter().filter(|rule| !current.rules.contains(*rule));
        steps.extend(by_guard_first(new).into_iter().map(SteeringStep::AddRule));
        let old = current.rules.iter().filter(|rule| !after.rules.contains(*rule));
        steps.extend(by_guard_first(old).into_iter().rev().map(SteeringStep::DeleteRule));
        let gone = current.routes.iter().filter(|(key, _)| !after.routes.contains_key(*key));
        let mut gone: Vec<_> = gone.map(|(key, action)| (urgency(action), key.clone(), action.clone())).collect();
        gone.sort_by_key(|(urgency, _, _)| std::cmp::Reverse(*urgency));
        steps.extend(gone.into_iter().map(|(_, key, action)| SteeringStep::DeleteRoute(key, action)));
        Self { steps, protocol }
    }
}

impl Plan for SteeringPlan {
    fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }
}

fn set(key: &RouteKey, action: &RouteAction, current: Option<&RouteAction>) -> Option<(u8, SteeringStep)> {
    let step = match current {
        Some(current) if current == action => return None,
        Some(_) => SteeringStep::ReplaceRoute(key.clone(), action.clone()),
        None => SteeringStep::AddRoute(key.clone(), action.clone()),
    };
    Some((urgency(action), step))
}

/// What must be there first, and go last: what catches, then what stays in the cluster, then what leads away.
fn urgency(action: &RouteAction) -> u8 {
    match action {
        RouteAction::Unreachable => 0,
        RouteAction::Throw => 1,
        RouteAction::Via(_) | RouteAction::Other(_) => 2,
    }
}

fn by_guard_first<'a>(rules: impl Iterator<Item = &'a Rule>) -> Vec<Rule> {
    let mut rules: Vec<_> = rules.cloned().collect();
    rules.sort_by_key(|rule| !rule.local);
    rules
}

impl fmt::Display for SteeringPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for family in Family::ALL {
            let steps = || self.steps.iter().filter(move |step| step.family() == family);
            if steps().any(|step| matches!(step, SteeringStep::HashFlows(_))) {
                writeln!(f, "sysctl -qw net.{}.{FLOW_HASH}={FLOW_HASH_L4}", sysctl::directory(family))?;
            }
            let mut lines = steps().filter(|step| !matches!(step, SteeringStep::HashFlows(_))).peekable();
            if lines.peek().is_some() {
                writeln!(f, "ip {} -batch - <<END", if family == Family::V4 { "-4" } else { "-6" })?;
                for step in lines {
                    self.write_line(f, step)?;
                }
                writeln!(f, "END")?;
            }
        }
        Ok(())
    }
}

impl SteeringPlan {
    fn write_line(&self, f: &mut fmt::Formatter<'_>, step: &SteeringStep) -> fmt::Result {
        let protocol = self.protocol;
        match step {
            SteeringStep::HashFlows(_) => Ok(()),
            SteeringStep::AddRoute(key, action) => writeln!(f, "route add {}", Line { key, action, protocol }),
            SteeringStep::ReplaceRoute(key, action) => writeln!(f, "route replace {}", Line { key, action, protocol }),
            SteeringStep::DeleteRoute(key, _) => writeln!(f, "route del {key} proto {protocol}"),
            SteeringStep::AddRule(rule) => writeln!(f, "rule add {rule} protocol {protocol}"),
            SteeringStep::DeleteRule(rule) => writeln!(f, "rule del {rule} protocol {protocol}"),
        }
    }
}

/// A route with its action, where ip-route(8) wants either.
struct Line<'a> {
    key: &'a RouteKey,
    action: &'a RouteAction,
    protocol: u8,
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, action, protocol } = self;
        match action {
            RouteAction::Via(_) => write!(f, "{key} proto {protocol} {action}"),
            action => write!(f, "{action} {key} proto {protocol}"),
        }
    }
}
