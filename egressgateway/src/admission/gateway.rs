use std::net::IpAddr;

use super::request::{Asked, new_problems};
use crate::{
    api::EgressGatewaySpec,
    controller::{Cluster, ControllerSettings, list},
    model::{Family, GatewayName, IpRange, PolicyName},
    plan::{self, ClusterNetwork, resolve},
    spec::{GatewaySpec, Problem, parse_pool_entry},
    world::Policy,
};

pub(super) fn problems(
    cluster: &Cluster,
    settings: &ControllerSettings,
    asked: &Asked<EgressGatewaySpec>,
) -> Vec<Problem> {
    let name = GatewayName::from(asked.name.as_str());
    let Some(new) = &asked.new else {
        return Vec::new();
    };
    let networks = cluster.networks(settings);
    let mut problems = new_problems(asked, |spec| match GatewaySpec::parse(spec) {
        Ok(_) => entries(spec)
            .iter()
            .flat_map(|entry| entry.problems(cluster, &name, &networks))
            .collect(),
        Err(problems) => problems,
    });
    if let (Some(Ok(old)), Ok(new)) = (
        asked.old.as_ref().map(GatewaySpec::parse),
        GatewaySpec::parse(new),
    ) {
        problems.extend(removals(cluster, settings, &name, &old.pool, &new.pool));
    }
    problems
}

/// One entry of a pool, as it was written.
struct Entry<'a> {
    field: String,
    text: &'a str,
    range: IpRange,
}

fn entries(spec: &EgressGatewaySpec) -> Vec<Entry<'_>> {
    let ips = spec.egress_ips.iter();
    let lists = ips.flat_map(|ips| {
        [
            ("ipv4", Family::V4, &ips.ipv4),
            ("ipv6", Family::V6, &ips.ipv6),
        ]
    });
    let texts = lists.flat_map(|(name, family, texts)| {
        texts
            .iter()
            .enumerate()
            .map(move |(index, text)| (name, family, index, text))
    });
    let entry = |(name, family, index, text): (&str, Family, usize, &'_ String)| {
        let field = format!("spec.egressIPs.{name}[{index}]");
        let range = parse_pool_entry(&field, text, family).ok()?;
        Some((field, range))
    };
    texts
        .filter_map(|found| {
            entry(found).map(|(field, range)| Entry {
                field,
                text: found.3,
                range,
            })
        })
        .collect()
}

impl Entry<'_> {
    /// The first gateway, the first node and the first network of the cluster that have some of its
    /// addresses.
    fn problems(
        &self,
        cluster: &Cluster,
        own: &GatewayName,
        networks: &[ClusterNetwork],
    ) -> Vec<Problem> {
        let others = cluster.gateways.iter().filter(|(name, _)| *name != own);
        let mut pools =
            others.filter_map(|(name, gateway)| Some((name, &gateway.spec.as_ref().ok()?.pool)));
        let other = pools.find_map(|(name, pool)| {
            Some((name, pool.iter().find(|range| range.overlaps(&self.range))?))
        });
        let node = plan::hosts(&cluster.nodes, &cluster.egress_nodes)
            .find(|(_, address)| self.range.contains(*address));
        let other = other.map(|(name, range)| {
            format!("must not overlap the pool of EgressGateway {name}: {range}")
        });
        let node = node.map(|(name, address)| {
            format!("must not contain the address of Node {name}: {address}")
        });
        let problems = other
            .into_iter()
            .chain(node)
            .map(|rule| Problem::new(&self.field, self.text, rule));
        problems
            .chain(plan::misplaced(
                &self.field,
                self.text,
                &self.range,
                networks,
            ))
            .collect()
    }
}

/// Addresses that leave the pool while policies have or state them.
fn removals(
    cluster: &Cluster,
    settings: &ControllerSettings,
    name: &GatewayName,
    old: &[IpRange],
    new: &[IpRange],
) -> Vec<Problem> {
    let within =
        |pool: &[IpRange], address: IpAddr| pool.iter().any(|range| range.contains(address));
    let mut problems = Vec::new();
    for (policy_name, policy) in users(cluster, settings, name) {
        let stated = policy
            .spec
            .iter()
            .flat_map(|spec| spec.egress_ip.iter().copied());
        let given = policy.state.egress_ip.iter().copied();
        let addresses: std::collections::BTreeSet<IpAddr> = stated.chain(given).collect();
        for address in addresses
            .into_iter()
            .filter(|address| within(old, *address) && !within(new, *address))
        {
            let field = format!(
                "spec.egressIPs.{}",
                Family::of(address).to_string().to_lowercase()
            );
            problems.push(Problem::new(
                field,
                address,
                format!("must stay in the pool: EgressGatewayPolicy {policy_name} uses it"),
            ));
        }
    }
    problems
}

/// A gateway may go before its policies, as one file that is deleted has them in any order: what
/// they govern is held then.
pub(super) fn warning(
    cluster: &Cluster,
    settings: &ControllerSettings,
    asked: &Asked<EgressGatewaySpec>,
) -> Option<Problem> {
    let name = GatewayName::from(asked.name.as_str());
    let users: Vec<&PolicyName> = users(cluster, settings, &name)
        .map(|(policy, _)| policy)
        .collect();
    let held = || {
        format!(
            "EgressGatewayPolicies use it, and traffic that they govern is held from now on: {}",
            list(&users)
        )
    };
    (asked.new.is_none() && !users.is_empty()).then(|| Problem::new("metadata.name", &name, held()))
}

/// Policies whose gateway it is, or, where a policy can't be understood, was.
fn users<'a>(
    cluster: &'a Cluster,
    settings: &'a ControllerSettings,
    name: &'a GatewayName,
) -> impl Iterator<Item = (&'a PolicyName, &'a Policy)> {
    cluster
        .policies
        .iter()
        .filter(move |(_, policy)| match &policy.spec {
            Ok(spec) => resolve(
                spec.gateway.as_ref(),
                settings.default_gateway.as_ref(),
                &cluster.gateways,
            )
            .is_ok_and(|(found, _)| found == name),
            Err(_) => policy.state.gateway.as_ref() == Some(name),
        })
}
