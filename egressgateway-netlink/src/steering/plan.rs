//! The steps from one state to another, in an order that never leaks.

use std::fmt;

use egressgateway::{Plan, model::Family};

use super::{flow_hash::FlowHash, settings::SteeringSettings, state::SteeringState};
use crate::{
    next_hop::NextHopObject,
    route::{RouteAction, RouteKey},
    rule::Rule,
};

/// Whether the reverse-path filter of a device looks at marks.
pub(super) const FILTER_BY_MARK: &str = "src_valid_mark";

/// One write to the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SteeringStep {
    /// Adds a next hop, or a group of next hops, under a number.
    AddNextHop(u32, NextHopObject),
    /// Puts it in the place of the one with its number, in one step.
    ReplaceNextHop(u32, NextHopObject),
    /// Deletes it; it was this.
    DeleteNextHop(u32, NextHopObject),
    /// Assigns flows of a family to next hops by addresses and ports.
    HashFlows(Family),
    /// Lets the reverse-path filter of a device look at marks (`src_valid_mark`).
    FilterByMark(String),
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
            Self::AddNextHop(..) => "add next hop",
            Self::ReplaceNextHop(..) => "replace next hop",
            Self::DeleteNextHop(..) => "delete next hop",
            Self::HashFlows(_) | Self::FilterByMark(_) => "set sysctl",
            Self::AddRoute(..) => "add route",
            Self::ReplaceRoute(..) => "replace route",
            Self::DeleteRoute(..) => "delete route",
            Self::AddRule(_) => "add rule",
            Self::DeleteRule(_) => "delete rule",
        }
    }

    /// Family of the packets that it is about; none for next hops, whose groups have no family.
    #[must_use]
    pub fn family(&self) -> Option<Family> {
        match self {
            Self::AddNextHop(..) | Self::ReplaceNextHop(..) | Self::DeleteNextHop(..) => None,
            Self::HashFlows(family) => Some(*family),
            Self::FilterByMark(_) => Some(Family::V4),
            Self::AddRoute(key, _) | Self::ReplaceRoute(key, _) | Self::DeleteRoute(key, _) => {
                Some(key.family())
            }
            Self::AddRule(rule) | Self::DeleteRule(rule) => Some(rule.family),
        }
    }
}

/// Steps in the order in which they are taken: make before break.
///
/// Its text is a shell script that does the same: the lines between `ip -4 -batch - <<END` and
/// `END`, and those of `ip -6`, are what `ip -batch` takes (which knows one family per run, and
/// next hops without any). The families do not depend on each other, so one is written after the
/// other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SteeringPlan {
    pub(super) steps: Vec<SteeringStep>,
    pub(super) protocol: u8,
    pub(super) flow_hash: FlowHash,
}

impl SteeringPlan {
    /// The steps.
    #[must_use]
    pub fn steps(&self) -> &[SteeringStep] {
        &self.steps
    }

    /// Next hops come before their groups, groups before the routes that lead to them, routes
    /// before the rules that lead to these, and within a table what catches comes before what leads
    /// away; everything goes in the opposite order, and the loop guard is the first of the rules to
    /// come and the last to go.
    pub(super) fn between(
        current: &SteeringState,
        after: &SteeringState,
        settings: &SteeringSettings,
    ) -> Self {
        let mut current = current.clone();
        let mut steps = make_room(&mut current, after);
        let next_hops = after
            .next_hops
            .iter()
            .filter_map(|(id, object)| set_next_hop(*id, object, current.next_hops.get(id)));
        let mut next_hops: Vec<_> = next_hops.collect();
        next_hops.sort_by_key(|(is_group, _)| *is_group);
        steps.extend(next_hops.into_iter().map(|(_, step)| step));
        let hash = after
            .flow_hash
            .keys()
            .filter(|family| current.flow_hash.get(*family) != Some(&true));
        steps.extend(hash.map(|family| SteeringStep::HashFlows(*family)));
        let filters = after
            .filters
            .keys()
            .filter(|device| current.filters.get(*device) != Some(&true));
        steps.extend(filters.map(|device| SteeringStep::FilterByMark(device.clone())));
        let mut routes: Vec<_> = after
            .routes
            .iter()
            .filter_map(|(key, action)| set(key, action, current.routes.get(key)))
            .collect();
        routes.sort_by_key(|(urgency, _)| *urgency);
        steps.extend(routes.into_iter().map(|(_, step)| step));
        let new = after
            .rules
            .iter()
            .filter(|rule| !current.rules.contains(*rule));
        steps.extend(by_guard_first(new).into_iter().map(SteeringStep::AddRule));
        let old = current
            .rules
            .iter()
            .filter(|rule| !after.rules.contains(*rule));
        steps.extend(
            by_guard_first(old)
                .into_iter()
                .rev()
                .map(SteeringStep::DeleteRule),
        );
        let gone = current
            .routes
            .iter()
            .filter(|(key, _)| !after.routes.contains_key(*key));
        let mut gone: Vec<_> = gone
            .map(|(key, action)| (urgency(action), key.clone(), action.clone()))
            .collect();
        gone.sort_by_key(|(urgency, _, _)| std::cmp::Reverse(*urgency));
        steps.extend(
            gone.into_iter()
                .map(|(_, key, action)| SteeringStep::DeleteRoute(key, action)),
        );
        let gone = current
            .next_hops
            .iter()
            .filter(|(id, _)| !after.next_hops.contains_key(*id));
        let mut gone: Vec<_> = gone.map(|(id, object)| (*id, object.clone())).collect();
        gone.sort_by_key(|(_, object)| !is_group(object));
        steps.extend(
            gone.into_iter()
                .map(|(id, object)| SteeringStep::DeleteNextHop(id, object)),
        );
        Self {
            steps,
            protocol: settings.protocol,
            flow_hash: settings.flow_hash(),
        }
    }
}

/// Deletes what the kernel would not let be replaced by what must have its number.
fn make_room(current: &mut SteeringState, after: &SteeringState) -> Vec<SteeringStep> {
    let in_the_way = |(id, object): (&u32, &NextHopObject)| {
        let wanted = after.next_hops.get(id)?;
        (!may_become(object, wanted)).then(|| (*id, object.clone()))
    };
    let in_the_way: Vec<_> = current.next_hops.iter().filter_map(in_the_way).collect();
    let mut steps = Vec::new();
    for (id, object) in in_the_way {
        // One may have gone with another.
        if current.next_hops.contains_key(&id) {
            current.forget(id);
            steps.push(SteeringStep::DeleteNextHop(id, object));
        }
    }
    steps
}

fn may_become(current: &NextHopObject, wanted: &NextHopObject) -> bool {
    match (current, wanted) {
        (NextHopObject::Hop(current), NextHopObject::Hop(wanted)) => {
            current.family() == wanted.family()
        }
        (NextHopObject::Group(_), NextHopObject::Group(_)) => true,
        _ => false,
    }
}

fn set_next_hop(
    id: u32,
    object: &NextHopObject,
    current: Option<&NextHopObject>,
) -> Option<(bool, SteeringStep)> {
    let step = match current {
        Some(current) if current == object => return None,
        Some(_) => SteeringStep::ReplaceNextHop(id, object.clone()),
        None => SteeringStep::AddNextHop(id, object.clone()),
    };
    Some((is_group(object), step))
}

fn is_group(object: &NextHopObject) -> bool {
    matches!(object, NextHopObject::Group(_))
}

impl Plan for SteeringPlan {
    fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }
}

fn set(
    key: &RouteKey,
    action: &RouteAction,
    current: Option<&RouteAction>,
) -> Option<(u8, SteeringStep)> {
    let step = match current {
        Some(current) if current == action => return None,
        Some(_) => SteeringStep::ReplaceRoute(key.clone(), action.clone()),
        None => SteeringStep::AddRoute(key.clone(), action.clone()),
    };
    Some((urgency(action), step))
}

/// What must be there first, and go last: what catches, then what stays in the cluster, then what
/// leads away.
fn urgency(action: &RouteAction) -> u8 {
    match action.way() {
        RouteAction::Unreachable => 0,
        RouteAction::Throw => 1,
        RouteAction::Link(_)
        | RouteAction::Via(_)
        | RouteAction::Group(_)
        | RouteAction::Limited(..)
        | RouteAction::Other(_) => 2,
    }
}

fn by_guard_first<'a>(rules: impl Iterator<Item = &'a Rule>) -> Vec<Rule> {
    let mut rules: Vec<_> = rules.cloned().collect();
    rules.sort_by_key(|rule| !(rule.local || rule.by.is_some()));
    rules
}

impl fmt::Display for SteeringPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = self
            .steps
            .iter()
            .take_while(|step| step.family().is_none())
            .count();
        let (first, rest) = self.steps.split_at(first);
        self.write_batch(f, "ip", first.iter())?;
        for family in Family::ALL {
            let steps = || {
                rest.iter()
                    .filter(move |step| step.family() == Some(family))
            };
            if steps().any(|step| matches!(step, SteeringStep::HashFlows(_))) {
                self.flow_hash.write(family, f)?;
            }
            for step in steps() {
                if let SteeringStep::FilterByMark(device) = step {
                    writeln!(f, "sysctl -qw net/ipv4/conf/{device}/{FILTER_BY_MARK}=1")?;
                }
            }
            let ip = if family == Family::V4 {
                "ip -4"
            } else {
                "ip -6"
            };
            self.write_batch(
                f,
                ip,
                steps().filter(|step| {
                    !matches!(
                        step,
                        SteeringStep::HashFlows(_) | SteeringStep::FilterByMark(_)
                    )
                }),
            )?;
        }
        self.write_batch(f, "ip", rest.iter().filter(|step| step.family().is_none()))
    }
}

impl SteeringPlan {
    fn write_batch<'a>(
        &self,
        f: &mut fmt::Formatter<'_>,
        ip: &str,
        steps: impl Iterator<Item = &'a SteeringStep>,
    ) -> fmt::Result {
        let mut steps = steps.peekable();
        if steps.peek().is_none() {
            return Ok(());
        }
        writeln!(f, "{ip} -batch - <<END")?;
        for step in steps {
            self.write_line(f, step)?;
        }
        writeln!(f, "END")
    }

    fn write_line(&self, f: &mut fmt::Formatter<'_>, step: &SteeringStep) -> fmt::Result {
        let protocol = self.protocol;
        match step {
            SteeringStep::AddNextHop(id, object) => {
                writeln!(f, "nexthop add id {id} {object} proto {protocol}")
            }
            SteeringStep::ReplaceNextHop(id, object) => {
                writeln!(f, "nexthop replace id {id} {object} proto {protocol}")
            }
            SteeringStep::DeleteNextHop(id, _) => writeln!(f, "nexthop del id {id}"),
            SteeringStep::HashFlows(_) | SteeringStep::FilterByMark(_) => Ok(()),
            SteeringStep::AddRoute(key, action) => writeln!(
                f,
                "route add {}",
                Line {
                    key,
                    action,
                    protocol
                }
            ),
            SteeringStep::ReplaceRoute(key, action) => writeln!(
                f,
                "route replace {}",
                Line {
                    key,
                    action,
                    protocol
                }
            ),
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
        let Self {
            key,
            action,
            protocol,
        } = self;
        match action.way() {
            RouteAction::Link(_) | RouteAction::Via(_) | RouteAction::Group(_) => {
                write!(f, "{key} proto {protocol} {action}")
            }
            _ => write!(f, "{action} {key} proto {protocol}"),
        }
    }
}
