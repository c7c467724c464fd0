use std::{net::IpAddr, ops::RangeInclusive};

use super::{Problem, Selector, parse_pool_entry};
use crate::{
    api::{EgressGatewaySpec, ForwardMethod, NatMode, SourceNatMode},
    model::{Family, IpRange, PortBlock},
};

/// How many ports a node may get of an address.
const PORTS_PER_NODE: RangeInclusive<u16> = 256..=16384;
/// How many it gets where nothing is said.
const DEFAULT_PORTS: u16 = 1024;

/// An EgressGateway's spec in the words of the model.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GatewaySpec {
    /// The nodes that may be gateways; never empty.
    pub nodes: Selector,
    /// How traffic is spread; none: as configured.
    pub forward_method: Option<ForwardMethod>,
    /// What the network outside sees.
    pub source_nat: SourceNatMode,
    /// Egress addresses, ascending and disjoint, both families.
    pub pool: Vec<IpRange>,
    /// Who leads out of the pool's networks, at most one of each family.
    pub routers: Vec<IpAddr>,
    /// Where sources are translated.
    pub nat: NatMode,
    /// How many units of 256 ports of an address a node gets for a start, where that is on its
    /// pods' own node.
    pub units_per_node: u16,
}

impl GatewaySpec {
    /// Parses the Kubernetes form.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(spec: &EgressGatewaySpec) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let nodes =
            Selector::parse("spec.nodeSelector", &spec.node_selector).unwrap_or_else(|found| {
                problems.extend(found);
                Selector::default()
            });
        if nodes.is_empty() && problems.is_empty() {
            problems.push(Problem::new(
                "spec.nodeSelector",
                "{}",
                "must not be empty: name the nodes that may be gateways",
            ));
        }
        let mut pool = Vec::new();
        let ips = spec.egress_ips.clone().unwrap_or_default();
        for (name, entries, family) in [
            ("ipv4", &ips.ipv4, Family::V4),
            ("ipv6", &ips.ipv6, Family::V6),
        ] {
            for (index, entry) in entries.iter().enumerate() {
                match parse_pool_entry(&format!("spec.egressIPs.{name}[{index}]"), entry, family) {
                    Ok(range) => pool.push((range, index, name, entry)),
                    Err(problem) => problems.push(problem),
                }
            }
        }
        pool.sort();
        for pair in pool.windows(2) {
            if pair[0].0.overlaps(&pair[1].0) {
                let (_, index, name, entry) = pair[1];
                problems.push(Problem::new(
                    format!("spec.egressIPs.{name}[{index}]"),
                    entry,
                    format!("must not overlap {}", pair[0].3),
                ));
            }
        }
        let mut routers = Vec::new();
        let named = ips.router.clone().unwrap_or_default();
        for (name, text, family) in [
            ("ipv4", &named.ipv4, Family::V4),
            ("ipv6", &named.ipv6, Family::V6),
        ] {
            let Some(text) = text else { continue };
            match text
                .parse::<IpAddr>()
                .ok()
                .filter(|address| Family::of(*address) == family)
            {
                Some(router) if !pool.iter().any(|(range, ..)| range.contains(router)) => {
                    routers.push(router);
                }
                Some(_) => problems.push(Problem::new(
                    format!("spec.egressIPs.router.{name}"),
                    text,
                    "must not be an address of the pool",
                )),
                None => problems.push(Problem::new(
                    format!("spec.egressIPs.router.{name}"),
                    text,
                    format!("must be an {family} address"),
                )),
            }
        }
        let source_nat = spec.source_nat.unwrap_or_default();
        if source_nat == SourceNatMode::EgressIp && spec.egress_ips.is_none() {
            problems.push(Problem::new(
                "spec.egressIPs",
                "",
                "must give a pool where sourceNAT is EgressIP",
            ));
        }
        let nat = spec.nat.unwrap_or_default();
        if nat == NatMode::Distributed && source_nat != SourceNatMode::EgressIp {
            problems.push(Problem::new(
                "spec.nat",
                "Distributed",
                "needs egress addresses: sourceNAT must be EgressIP",
            ));
        }
        let ports = spec.ports_per_node.unwrap_or(DEFAULT_PORTS);
        if !(PORTS_PER_NODE.contains(&ports) && ports.is_power_of_two()) {
            problems.push(Problem::new(
                "spec.portsPerNode",
                ports,
                "must be a power of two from 256 to 16384",
            ));
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        Ok(Self {
            nodes,
            forward_method: spec.forward_method,
            source_nat,
            pool: pool.into_iter().map(|(range, ..)| range).collect(),
            routers,
            nat,
            units_per_node: ports / PortBlock::UNIT,
        })
    }
}
