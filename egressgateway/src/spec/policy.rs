use std::net::IpAddr;

use ipnet::IpNet;

use super::{Problem, Selector, parse_address, parse_network};
use crate::{
    api::{AppliedTo, EgressGatewayPolicySpec},
    model::{Family, GatewayName},
};

/// The priority of a policy that states none.
pub const DEFAULT_PRIORITY: u32 = 1000;

/// The highest number that a priority may have.
pub const MAX_PRIORITY: u32 = i32::MAX.cast_unsigned();

/// Why an empty `podSelector` is refused: nobody shall govern a whole cluster by leaving something
/// out.
pub(crate) const ALL_PODS: &str = "must not be empty without namespaceSelector: name the pods by their labels, or their namespaces; namespaceSelector: {} means all of them";

/// Why a `namespaceSelector` alone is refused.
pub(crate) const PODS_OF_NAMESPACES: &str =
    "must be given with namespaceSelector: podSelector: {} means all pods of these namespaces";

/// An EgressGatewayPolicy's spec in the words of the model.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PolicySpec {
    /// The gateway; none: the configured default, else the only one there is.
    pub gateway: Option<GatewayName>,
    /// Whose traffic.
    pub subject: Subject,
    /// Where to; empty: everything outside the cluster.
    pub destinations: Vec<IpNet>,
    /// Holes in `destinations`.
    pub exceptions: Vec<IpNet>,
    /// The lower number wins.
    pub priority: u32,
    /// The egress addresses asked for, at most one of each family.
    pub egress_ip: Vec<IpAddr>,
}

/// Whose traffic a policy governs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Pods by their labels and their namespaces' labels.
    Pods {
        /// Labels of the pod; empty, which is all pods, only where namespaces are given.
        pods: Selector,
        /// Labels of the namespace; none: all namespaces.
        namespaces: Option<Selector>,
    },
    /// Pod addresses, at most one subnet of each family.
    Subnets(Vec<IpNet>),
}

impl PolicySpec {
    /// Parses the Kubernetes form.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(spec: &EgressGatewayPolicySpec) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let subject = parse_subject(&spec.applied_to, &mut problems);
        let mut networks = |field: &str, list: &[String]| {
            let parsed = list
                .iter()
                .enumerate()
                .map(|(index, text)| parse_network(&format!("{field}[{index}]"), text, None));
            parsed
                .filter_map(|result| result.map_err(|problem| problems.push(problem)).ok())
                .collect()
        };
        let destinations = networks("spec.destCIDR", &spec.dest_cidr);
        let exceptions = networks("spec.exceptCIDR", &spec.except_cidr);
        let asked = spec.egress_ip.clone().unwrap_or_default();
        let mut egress_ip = Vec::new();
        for (name, text, family) in [
            ("ipv4", asked.ipv4, Family::V4),
            ("ipv6", asked.ipv6, Family::V6),
        ] {
            match text
                .map(|text| parse_address(&format!("spec.egressIP.{name}"), &text, Some(family)))
            {
                Some(Ok(address)) => egress_ip.push(address),
                Some(Err(problem)) => problems.push(problem),
                None => {}
            }
        }
        if spec.egress_gateway_name.as_deref() == Some("") {
            problems.push(Problem::new(
                "spec.egressGatewayName",
                "",
                "must be the name of an EgressGateway, or absent",
            ));
        }
        if let Some(priority) = spec.priority.filter(|priority| *priority > MAX_PRIORITY) {
            problems.push(Problem::new(
                "spec.priority",
                priority,
                format!("must be at most {MAX_PRIORITY}"),
            ));
        }
        match subject {
            Some(subject) if problems.is_empty() => Ok(Self {
                gateway: spec.egress_gateway_name.as_deref().map(GatewayName::from),
                subject,
                destinations,
                exceptions,
                priority: spec.priority.unwrap_or(DEFAULT_PRIORITY),
                egress_ip,
            }),
            _ => Err(problems),
        }
    }
}

fn parse_subject(applied_to: &AppliedTo, problems: &mut Vec<Problem>) -> Option<Subject> {
    let mut subnets = Vec::new();
    for (name, text, family) in [
        ("ipv4PodSubnet", &applied_to.ipv4_pod_subnet, Family::V4),
        ("ipv6PodSubnet", &applied_to.ipv6_pod_subnet, Family::V6),
    ] {
        match text
            .as_ref()
            .map(|text| parse_network(&format!("spec.appliedTo.{name}"), text, Some(family)))
        {
            Some(Ok(net)) => subnets.push(net),
            Some(Err(problem)) => problems.push(problem),
            None => {}
        }
    }
    let has_subnets = applied_to.ipv4_pod_subnet.is_some() || applied_to.ipv6_pod_subnet.is_some();
    let mut selector = |name: &str, selector: &Option<_>| {
        let parsed = selector
            .as_ref()
            .map(|selector| Selector::parse(&format!("spec.appliedTo.{name}"), selector));
        parsed.transpose().unwrap_or_else(|found| {
            problems.extend(found);
            None
        })
    };
    let pods = selector("podSelector", &applied_to.pod_selector);
    let namespaces = selector("namespaceSelector", &applied_to.namespace_selector);
    match (&applied_to.pod_selector, has_subnets) {
        (Some(_), true) => problems.push(Problem::new(
            "spec.appliedTo",
            "podSelector and a pod subnet",
            "must have either podSelector or pod subnets, not both",
        )),
        (None, false) if applied_to.namespace_selector.is_some() => {
            problems.push(Problem::new(
                "spec.appliedTo.podSelector",
                "",
                PODS_OF_NAMESPACES,
            ));
        }
        (None, false) => problems.push(Problem::new(
            "spec.appliedTo",
            "",
            "must have podSelector, ipv4PodSubnet or ipv6PodSubnet",
        )),
        (None, true) if applied_to.namespace_selector.is_some() => {
            problems.push(Problem::new(
                "spec.appliedTo.namespaceSelector",
                "",
                "must be absent where pods are chosen by subnet",
            ));
        }
        (Some(_), false)
            if applied_to.namespace_selector.is_none()
                && pods.as_ref().is_some_and(Selector::is_empty) =>
        {
            problems.push(Problem::new("spec.appliedTo.podSelector", "{}", ALL_PODS));
        }
        _ => {}
    }
    if has_subnets {
        Some(Subject::Subnets(subnets))
    } else {
        pods.map(|pods| Subject::Pods { pods, namespaces })
    }
}
