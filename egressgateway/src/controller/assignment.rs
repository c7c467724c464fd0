//! Which egress addresses a policy asks for, and which it has.

use std::{collections::BTreeSet, net::IpAddr};

use crate::{
    allocator::AllocationError,
    api::SourceNatMode,
    model::{Family, GatewayName, IpRange, NodeName, PolicyName},
    plan::Holder,
    spec::{GatewaySpec, PolicySpec, Problem, Subject},
    world::Policy,
};

/// What a policy has of egress addresses.
#[derive(Clone, Debug)]
pub(super) struct EgressIpAssignment {
    pub(super) gateway: GatewayName,
    pub(super) addresses: BTreeSet<IpAddr>,
    /// Who answers for them.
    pub(super) node: Option<NodeName>,
    /// Who takes them over from there, once nobody answers for them.
    pub(super) candidate: Option<NodeName>,
    /// The agent of the node that has them is gone; what is known of it, in words.
    pub(super) gone: Option<String>,
    /// Addresses of the pool that somebody else has.
    pub(super) in_use: String,
    /// What it wanted and did not get.
    pub(super) refusals: Vec<(Family, Refusal)>,
}

/// Why a policy does not have an address.
#[derive(Clone, Debug)]
pub(super) enum Refusal {
    /// There is none, or another policy has it.
    Allocation(AllocationError),
    /// No policy may have it.
    Reserved(IpAddr, Holder),
}

impl EgressIpAssignment {
    pub(super) fn exhausted(&self) -> bool {
        self.refusals.iter().any(|(_, refusal)| {
            matches!(
                refusal,
                Refusal::Allocation(AllocationError::Exhausted { .. })
            )
        })
    }

    /// Why the addresses are not with the node that somebody asked for.
    pub(super) fn unheard(&self, policy: &Policy) -> Option<Problem> {
        let preferred = policy.preferred_node.as_ref().filter(|preferred| {
            !self.addresses.is_empty() && self.node.as_ref() != Some(preferred)
        })?;
        let rule = format!("must be a Ready node of EgressGateway {}", self.gateway);
        Some(Problem::new(
            format!("metadata.annotations[{}]", Policy::NODE_ANNOTATION),
            preferred,
            rule,
        ))
    }

    /// Reason and message of the policy's condition, if something was refused.
    pub(super) fn refusal(&self) -> Option<(&'static str, String)> {
        let (family, refusal) = self.refusals.first()?;
        let field = format!("spec.egressIP.{}", family.to_string().to_lowercase());
        let error = match refusal {
            Refusal::Allocation(error) => error,
            Refusal::Reserved(address, holder) => {
                let rule = format!("must not be in use: {holder}");
                return Some((
                    "EgressIPInUse",
                    Problem::new(field, address, rule).to_string(),
                ));
            }
        };
        Some(match error {
            AllocationError::Exhausted { .. } => (
                "EgressIPExhausted",
                format!("EgressGateway {}: {error}{}", self.gateway, self.in_use),
            ),
            AllocationError::OutsidePool { address, pool } => {
                let rule = format!(
                    "must be in the pool of EgressGateway {}: {pool}",
                    self.gateway
                );
                (
                    "EgressIPOutsidePool",
                    Problem::new(field, address, rule).to_string(),
                )
            }
            AllocationError::Taken { address, holder } => {
                let rule = format!("must not be in use: EgressGatewayPolicy {holder} has it");
                ("Conflict", Problem::new(field, address, rule).to_string())
            }
        })
    }
}

/// One policy that has a gateway, with what was decided before.
pub(super) struct EgressIpRequest<'a> {
    pub(super) name: &'a PolicyName,
    pub(super) policy: &'a Policy,
    pub(super) spec: &'a PolicySpec,
    pub(super) gateway: &'a GatewayName,
    /// None where the gateway can't be understood: what the policy has stays.
    pub(super) gateway_spec: Option<&'a GatewaySpec>,
    /// Its pool without the networks of the cluster.
    pub(super) pool: Vec<IpRange>,
}

impl EgressIpRequest<'_> {
    /// The address that the policy states, or, where addresses are given out, the one that it has.
    pub(super) fn claim(&self, family: Family) -> Option<IpAddr> {
        let of_family = |address: &&IpAddr| Family::of(**address) == family;
        let had = || self.policy.state.egress_ip.iter().find(of_family).copied();
        let asked = self.spec.egress_ip.iter().find(of_family).copied();
        match self.gateway_spec {
            None => had().filter(|had| asked.is_none_or(|asked| asked == *had)),
            Some(_) => asked.or_else(|| {
                had().filter(|had| {
                    self.allocates(family) && self.pool.iter().any(|range| range.contains(*had))
                })
            }),
        }
    }

    pub(super) fn states(&self, family: Family) -> bool {
        self.spec
            .egress_ip
            .iter()
            .any(|address| Family::of(*address) == family)
    }

    /// Whether the policy is to be given an address that it does not state.
    pub(super) fn allocates(&self, family: Family) -> bool {
        let from_pool = self
            .gateway_spec
            .is_some_and(|spec| spec.source_nat == SourceNatMode::EgressIp);
        from_pool
            && !self.states(family)
            && governs(self.spec, family)
            && self.pool.iter().any(|range| range.family() == family)
    }
}

/// Whether a policy can concern packets of this family at all.
pub(super) fn governs(spec: &PolicySpec, family: Family) -> bool {
    let any = |nets: &[ipnet::IpNet]| nets.iter().any(|net| Family::of(net.addr()) == family);
    let subject = match &spec.subject {
        Subject::Pods { .. } => true,
        Subject::Subnets(nets) => any(nets),
    };
    subject && (spec.destinations.is_empty() || any(&spec.destinations))
}
