//! What was found about policies.

use std::collections::BTreeMap;

use crate::{
    model::{GatewayName, PolicyName},
    world::Policy,
};

/// What was found about each policy.
pub(super) type ResolvedPolicies = BTreeMap<PolicyName, ResolvedPolicy>;

/// What was found about a policy.
#[derive(Clone, Debug, Default)]
pub(super) struct ResolvedPolicy {
    /// Its gateway, if it has one.
    pub(super) gateway: Option<GatewayName>,
    /// Reason and message, where it can't be in force.
    pub(super) refusal: Option<(&'static str, String)>,
}

/// Policies, the oldest first; then by name.
pub(super) fn by_age(
    policies: &BTreeMap<PolicyName, Policy>,
) -> impl Iterator<Item = (&PolicyName, &Policy)> {
    let mut sorted: Vec<_> = policies.iter().collect();
    sorted.sort_by_key(|(name, policy)| (policy.created, *name));
    sorted.into_iter()
}
