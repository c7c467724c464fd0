use std::net::IpAddr;

use super::request::{Asked, new_problems};
use crate::{
    api::EgressGatewayPolicySpec,
    controller::{Cluster, ControllerSettings, join},
    model::{Family, GatewayName, PolicyName},
    plan::resolve,
    spec::{PolicySpec, Problem},
    world::Policy,
};

pub(super) fn problems(
    cluster: &Cluster,
    settings: &ControllerSettings,
    asked: &Asked<EgressGatewayPolicySpec>,
) -> Vec<Problem> {
    let name = PolicyName::from(asked.name.as_str());
    new_problems(asked, |spec| match PolicySpec::parse(spec) {
        Ok(spec) => spec
            .egress_ip
            .iter()
            .filter_map(|address| of_address(cluster, settings, &name, &spec, *address))
            .collect(),
        Err(problems) => problems,
    })
}

/// What its author should know: a policy that leads to no gateway holds what it governs.
pub(super) fn warning(
    cluster: &Cluster,
    settings: &ControllerSettings,
    spec: &EgressGatewayPolicySpec,
) -> Option<Problem> {
    let parsed = PolicySpec::parse(spec).ok()?;
    let problem = resolve(
        parsed.gateway.as_ref(),
        settings.default_gateway.as_ref(),
        &cluster.gateways,
    )
    .err()?;
    let named = parsed.gateway.as_ref().map_or("", GatewayName::as_str);
    Some(Problem::new(
        "spec.egressGatewayName",
        named,
        format!("{problem}: traffic that the policy governs is held until one is found"),
    ))
}

/// What is wrong with an egress address that a policy states.
fn of_address(
    cluster: &Cluster,
    settings: &ControllerSettings,
    own: &PolicyName,
    spec: &PolicySpec,
    address: IpAddr,
) -> Option<Problem> {
    let problem = |rule: String| {
        let field = format!(
            "spec.egressIP.{}",
            Family::of(address).to_string().to_lowercase()
        );
        Some(Problem::new(field, address, rule))
    };
    let gateway = resolve(
        spec.gateway.as_ref(),
        settings.default_gateway.as_ref(),
        &cluster.gateways,
    )
    .ok();
    let pool = gateway.and_then(|(name, gateway)| Some((name, &gateway.spec.as_ref().ok()?.pool)));
    match pool {
        Some((name, pool)) if pool.is_empty() => problem(format!(
            "must be in the pool of EgressGateway {name}, which has none"
        )),
        Some((name, pool)) if !pool.iter().any(|range| range.contains(address)) => {
            problem(format!(
                "must be in the pool of EgressGateway {name}: {}",
                join(pool)
            ))
        }
        _ => {
            let has = |policy: &Policy| {
                policy.state.egress_ip.contains(&address)
                    || policy
                        .spec
                        .as_ref()
                        .is_ok_and(|spec| spec.egress_ip.contains(&address))
            };
            let (holder, _) = cluster
                .policies
                .iter()
                .find(|(name, policy)| *name != own && has(policy))?;
            problem(format!(
                "must not be in use: EgressGatewayPolicy {holder} has it"
            ))
        }
    }
}
