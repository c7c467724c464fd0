//! What is asked about, and the answer.

use crate::{
    api::{EgressGatewayPolicySpec, EgressGatewaySpec},
    spec::Problem,
};

/// What somebody wants done to one object.
#[derive(Clone, Debug, PartialEq)]
// One lives at a time, for as long as its answer takes.
#[allow(clippy::large_enum_variant)]
pub enum Request {
    /// To an EgressGateway.
    Gateway(Asked<EgressGatewaySpec>),
    /// To an EgressGatewayPolicy.
    Policy(Asked<EgressGatewayPolicySpec>),
}

/// An object's spec before and after.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked<S> {
    /// The object's name; empty where the API server is still to make one.
    pub name: String,
    /// The spec as it is; none: the object is to be made.
    pub old: Option<S>,
    /// The spec as it shall be; none: the object is to be deleted.
    pub new: Option<S>,
}

/// The answer to a [`Request`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Decision {
    /// What is wrong; nothing: the request is admitted.
    pub problems: Vec<Problem>,
    /// What its author should know though it is admitted.
    pub warnings: Vec<Problem>,
}

/// Problems of the new spec that the old one does not have. Where in a list an entry stands makes
/// no difference.
pub(super) fn new_problems<S>(
    asked: &Asked<S>,
    problems: impl Fn(&S) -> Vec<Problem>,
) -> Vec<Problem> {
    let before = asked.old.as_ref().map(&problems).unwrap_or_default();
    let list = |problem: &Problem| {
        problem
            .field
            .split('[')
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    let known = |problem: &Problem| {
        before.iter().any(|old| {
            (list(old), &old.value, &old.rule) == (list(problem), &problem.value, &problem.rule)
        })
    };
    asked
        .new
        .iter()
        .flat_map(problems)
        .filter(|problem| !known(problem))
        .collect()
}
