use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use crate::{
    api::{ForwardMethod, GatewayNodeStatus, NatMode, SourceNatMode},
    model::{Family, GatewayName, NodeName, SourceNat, Verdict},
    spec::PolicySpec,
    world::{Gateway, Member, PolicyState},
};

/// Why a policy has no gateway.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GatewayProblem {
    /// The gateway that is named, or the configured default, does not exist; none: there is no
    /// gateway at all.
    #[error("{}", match .0 { Some(name) => format!("EgressGateway {name} does not exist"), None => "there is no EgressGateway".to_owned() })]
    NotFound(Option<GatewayName>),
    /// No gateway is named, none is configured as default, and there are several.
    #[error(
        "egressGatewayName is absent, no default is configured, and there are {0} EgressGateways"
    )]
    Ambiguous(usize),
}

/// The gateway of a policy: the one it names, else the configured default, else the only one there
/// is.
///
/// A name that leads nowhere is never replaced by another gateway: that one has other addresses.
/// What the policy governs is held then: the deletion of a gateway must not let its traffic out
/// with other addresses.
///
/// # Errors
/// When there is none, or more than one to choose from.
pub fn resolve<'a>(
    named: Option<&GatewayName>,
    default: Option<&GatewayName>,
    gateways: &'a BTreeMap<GatewayName, Gateway>,
) -> Result<(&'a GatewayName, &'a Gateway), GatewayProblem> {
    if let Some(name) = named.or(default) {
        return gateways
            .get_key_value(name)
            .ok_or_else(|| GatewayProblem::NotFound(Some(name.clone())));
    }
    let mut all = gateways.iter();
    match (all.next(), gateways.len()) {
        (Some(only), 1) => Ok(only),
        (None, _) => Err(GatewayProblem::NotFound(None)),
        (Some(_), several) => Err(GatewayProblem::Ambiguous(several)),
    }
}

/// Why a verdict is what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// The gateway carries it.
    Steered,
    /// The policy leads to no gateway, or it is not clear to which.
    NoGateway,
    /// The gateway's own specification is invalid.
    InvalidGateway,
    /// The controller has not allotted a mark (yet).
    NoMark,
    /// The policy wants an egress address that the controller has not given (yet).
    NoEgressIp,
    /// The policy wants an egress address of a family that the gateway's pool has none of.
    NoPoolOfFamily,
    /// Nobody answers for the egress address.
    NoOwner,
    /// This node was to answer for the egress address, and heard another one do so.
    Contested,
    /// This node is to answer for the egress address, and does not know yet whether somebody else
    /// does.
    NotTaken,
    /// This node has no ports of the egress address (yet).
    NoPorts,
    /// The egress address belongs to another network of its node than that of the default route,
    /// and no router is known there.
    NoRouter,
    /// The node has no byte left for the network of the egress address.
    TooManyNetworks,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Steered => "the gateway carries it",
            Self::NoGateway => "the policy leads to no gateway",
            Self::InvalidGateway => "the gateway's specification is invalid",
            Self::NoMark => "the gateway has no mark yet",
            Self::NoEgressIp => "the policy has no egress address of this family yet",
            Self::NoPoolOfFamily => "the gateway's pool has no address of this family, so it is held for good",
            Self::NoOwner => "no node answers for the egress address",
            Self::Contested => "another node answers for the egress address",
            Self::NotTaken => "the node has not taken the egress address yet",
            Self::NoPorts => "the pod's node has no ports of the egress address yet",
            Self::NoRouter => "no router is known in the network of the egress address: its device has no default route, and spec.egressIPs.router names none",
            Self::TooManyNetworks => "the egress addresses of its node belong to more than 15 networks",
        })
    }
}

/// What happens to connections of a policy whose gateway is `gateway`.
#[must_use]
pub fn verdict(
    spec: &PolicySpec,
    state: &PolicyState,
    gateway: &Gateway,
    family: Family,
) -> (Verdict, Reason) {
    let Ok(gateway_spec) = &gateway.spec else {
        return (Verdict::Hold, Reason::InvalidGateway);
    };
    let of_family = |address: &IpAddr| Family::of(*address) == family;
    let given = state.egress_ip.iter().copied().find(of_family);
    let asked = spec.egress_ip.iter().copied().find(of_family);
    if let Some(address) = given.filter(|given| asked.is_none_or(|asked| asked == *given)) {
        if gateway_spec.nat == NatMode::Distributed {
            return match gateway.state.target {
                Some(target) => (
                    Verdict::Egress {
                        target,
                        source_nat: SourceNat::Ports(address),
                    },
                    Reason::Steered,
                ),
                None => (Verdict::Hold, Reason::NoMark),
            };
        }
        let owner = state.node.as_ref().and_then(|node| {
            gateway
                .state
                .members
                .iter()
                .find(|member| member.node == *node)
        });
        return match owner.and_then(|member| member.target) {
            Some(target) => (
                Verdict::Egress {
                    target,
                    source_nat: SourceNat::Address(address),
                },
                Reason::Steered,
            ),
            None => (Verdict::Hold, Reason::NoOwner),
        };
    }
    let source_nat = match gateway_spec.source_nat {
        SourceNatMode::EgressIp
            if asked.is_none()
                && !gateway_spec
                    .pool
                    .iter()
                    .any(|range| range.family() == family) =>
        {
            return (Verdict::Hold, Reason::NoPoolOfFamily);
        }
        SourceNatMode::EgressIp => return (Verdict::Hold, Reason::NoEgressIp),
        _ if asked.is_some() => return (Verdict::Hold, Reason::NoEgressIp),
        SourceNatMode::NodeAddress => SourceNat::NodeAddress,
        SourceNatMode::None => SourceNat::Keep,
    };
    match gateway.state.target {
        Some(target) => (Verdict::Egress { target, source_nat }, Reason::Steered),
        None => (Verdict::Hold, Reason::NoMark),
    }
}

/// The same on the node `own`: what it would translate itself to an address that it may not have is
/// held, for the reason that `withheld` gives, and so is what it would translate to an address that
/// it has no ports of.
#[must_use]
pub fn unless_withheld(
    decided: (Verdict, Reason),
    state: &PolicyState,
    own: &NodeName,
    withheld: impl FnOnce(IpAddr) -> Option<Reason>,
    has_ports: impl FnOnce(IpAddr) -> bool,
) -> (Verdict, Reason) {
    match decided.0 {
        Verdict::Egress {
            source_nat: SourceNat::Ports(address),
            ..
        } if !has_ports(address) => (Verdict::Hold, Reason::NoPorts),
        Verdict::Egress {
            source_nat: SourceNat::Address(address),
            ..
        } if state.node.as_ref() == Some(own) => {
            withheld(address).map_or(decided, |reason| (Verdict::Hold, reason))
        }
        _ => decided,
    }
}

/// Whether pods' own nodes translate what goes through a gateway.
#[must_use]
pub fn is_distributed(gateway: &Gateway) -> bool {
    gateway
        .spec
        .as_ref()
        .is_ok_and(|spec| spec.nat == NatMode::Distributed)
}

/// How a gateway forwards: as its status says, or else its specification, or else the
/// configuration.
#[must_use]
pub fn forward_method(gateway: &Gateway, default_method: ForwardMethod) -> ForwardMethod {
    let configured = gateway
        .spec
        .as_ref()
        .ok()
        .and_then(|spec| spec.forward_method);
    gateway
        .state
        .forward_method
        .or(configured)
        .unwrap_or(default_method)
}

/// The nodes that a gateway's traffic goes to: the first usable one in order of preference (the
/// active one before the others), or all of them. Where none is Ready, those that the controller
/// left active are usable: it chose them while they were, and nobody could take their place.
#[must_use]
pub fn candidates(
    gateway: &Gateway,
    default_method: ForwardMethod,
    down: &BTreeSet<NodeName>,
) -> Vec<NodeName> {
    let method = forward_method(gateway, default_method);
    let any_ready = gateway
        .state
        .members
        .iter()
        .any(|member| member.status == GatewayNodeStatus::Ready);
    let may_carry = move |member: &Member| {
        if any_ready {
            member.status == GatewayNodeStatus::Ready
        } else {
            member.active
        }
    };
    let usable = || {
        gateway
            .state
            .members
            .iter()
            .filter(|member| may_carry(member) && !down.contains(&member.node))
    };
    let active = || usable().filter(|member| member.active);
    match method {
        ForwardMethod::ActivePassive => active()
            .chain(usable())
            .take(1)
            .map(|member| member.node.clone())
            .collect(),
        ForwardMethod::Ecmp if active().next().is_some() => {
            active().map(|member| member.node.clone()).collect()
        }
        ForwardMethod::Ecmp => usable().map(|member| member.node.clone()).collect(),
    }
}
