//! The objects that events make.

use super::event::{GATEWAY_SHAPES, POLICIES, POLICY_SHAPES};

const PODS: &str = "podSelector: {matchLabels: {app: governed}}";
const FIRST: &str = "\"10.6.1.0/24\", \"fd00:6:1::/64\"";
const SECOND: &str = "\"10.6.2.0/24\", \"fd00:6:2::/64\"";

pub(super) fn policy_name(number: usize) -> String {
    format!("policy-{}", number % POLICIES)
}

/// A policy of one of the forms that there are.
pub(super) fn policy(number: usize, shape: usize) -> String {
    let shape = match shape % POLICY_SHAPES {
        0 => format!("appliedTo: {{{PODS}}}, destCIDR: [{FIRST}]"),
        1 => format!("appliedTo: {{{PODS}}}"),
        2 => format!(
            "appliedTo: {{{PODS}}}, destCIDR: [{FIRST}, {SECOND}], exceptCIDR: [10.6.1.10/32]"
        ),
        3 => format!(
            "appliedTo: {{podSelector: {{}}, namespaceSelector: {{matchLabels: {{chosen: \"yes\"}}}}}}, destCIDR: [{FIRST}]"
        ),
        4 => format!(
            "appliedTo: {{ipv4PodSubnet: 10.244.1.0/24, ipv6PodSubnet: \"fd10:1::/64\"}}, destCIDR: [{SECOND}]"
        ),
        5 => format!(
            "appliedTo: {{{PODS}}}, destCIDR: [{FIRST}], egressIP: {{ipv4: 10.6.0.65, ipv6: \"fd00:6::65\"}}"
        ),
        6 => format!("appliedTo: {{{PODS}}}, destCIDR: [{SECOND}], priority: 10"),
        _ => format!("appliedTo: {{{PODS}}}, destCIDR: [10.6.1.0/24], priority: 5"),
    };
    object(
        "EgressGatewayPolicy",
        &policy_name(number),
        &format!("egressGatewayName: exit, {shape}"),
    )
}

/// The gateway `exit` in one of the forms that there are.
pub(super) fn gateway(shape: usize) -> String {
    let pool = "egressIPs: {ipv4: [10.6.0.60-10.6.0.65], ipv6: [\"fd00:6::60-fd00:6::65\"]}, ";
    let shape = match shape % GATEWAY_SHAPES {
        0 => String::new(),
        1 => "forwardMethod: ecmp, ".to_owned(),
        2 => format!("sourceNAT: EgressIP, {pool}"),
        3 => format!("sourceNAT: EgressIP, nat: Distributed, portsPerNode: 256, {pool}"),
        _ => pool.to_owned(),
    };
    object(
        "EgressGateway",
        "exit",
        &format!("{shape}nodeSelector: {{matchLabels: {{egress: \"true\"}}}}"),
    )
}

fn object(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "{{apiVersion: egressgateway.spidernet.io/v1, kind: {kind}, metadata: {{name: {name}}}, spec: {{{spec}}}}}\n"
    )
}
