//! The manifest that says the same as the values.

use std::{fmt::Write, net::IpAddr};

use super::model::*;

impl World {
    /// The same as a manifest, statuses included.
    pub(crate) fn manifest(&self) -> String {
        let mut text = String::from("apiVersion: v1\nkind: List\nitems:\n");
        for (name, team) in &self.namespaces {
            let labels = team
                .as_ref()
                .map_or(String::new(), |team| format!("team: {team}"));
            writeln!(text, "- {{apiVersion: v1, kind: Namespace, metadata: {{name: {name}, labels: {{{labels}}}}}}}").unwrap();
        }
        for item in self
            .nodes
            .iter()
            .map(Node::manifest)
            .chain(self.pods.iter().map(Pod::manifest))
        {
            text.push_str(&item);
        }
        for item in self
            .gateways
            .iter()
            .map(Gateway::manifest)
            .chain(self.policies.iter().map(Policy::manifest))
        {
            text.push_str(&item);
        }
        text
    }
}

fn list(cidrs: &[Cidr]) -> String {
    cidrs
        .iter()
        .map(|cidr| format!("\"{cidr}\""))
        .collect::<Vec<_>>()
        .join(", ")
}

fn by_family(addresses: &[IpAddr]) -> String {
    let entry = |address: &IpAddr| {
        format!(
            "{}: \"{address}\"",
            if address.is_ipv4() { "ipv4" } else { "ipv6" }
        )
    };
    addresses.iter().map(entry).collect::<Vec<_>>().join(", ")
}

fn mark(mark: Option<u8>) -> String {
    mark.map_or(String::new(), |mark| {
        format!(", mark: {}", u32::from(mark) << 24)
    })
}

impl Node {
    fn manifest(&self) -> String {
        let addresses: Vec<_> = self
            .addresses
            .iter()
            .flatten()
            .map(|a| format!("{{type: InternalIP, address: \"{a}\"}}"))
            .collect();
        let mut text = format!(
            "- {{apiVersion: v1, kind: Node, metadata: {{name: {}}}, spec: {{podCIDRs: [{}]}}, status: {{addresses: [{}]}}}}\n",
            self.name,
            list(&self.pod_networks),
            addresses.join(", ")
        );
        if self.has_tunnel {
            let number = self.number;
            let mut status = format!("tunnelMac: \"02:00:00:00:00:0{number}\"");
            if let Some(address) = self.addresses[0] {
                write!(
                    status,
                    ", vxlanIPv4IP: \"172.31.0.{number}/16\", physicalInterfaceIPv4: \"{address}\""
                )
                .unwrap();
            }
            if let Some(address) = self.addresses[1] {
                write!(
                    status,
                    ", vxlanIPv6IP: \"fd31::{number}/112\", physicalInterfaceIPv6: \"{address}\""
                )
                .unwrap();
            }
            let head = "apiVersion: egressgateway.spidernet.io/v1, kind: EgressNode";
            writeln!(
                text,
                "- {{{head}, metadata: {{name: {}}}, spec: {{}}, status: {{{status}}}}}",
                self.name
            )
            .unwrap();
        }
        text
    }
}

impl Pod {
    fn manifest(&self) -> String {
        let tier = self
            .tier
            .as_ref()
            .map_or(String::new(), |tier| format!(", tier: {tier}"));
        let ips: Vec<_> = self
            .addresses
            .iter()
            .map(|address| format!("{{ip: \"{address}\"}}"))
            .collect();
        format!(
            "- {{apiVersion: v1, kind: Pod, metadata: {{name: {}, namespace: {}, labels: {{app: {}{tier}}}}}, spec: {{nodeName: {}, containers: []}}, status: {{podIPs: [{}]}}}}\n",
            self.name,
            self.namespace,
            self.app,
            self.node,
            ips.join(", ")
        )
    }
}

impl Gateway {
    fn manifest(&self) -> String {
        let member = |member: &Member| {
            format!(
                "{{name: {}, status: {}, active: {}{}}}",
                member.node,
                member.status,
                member.active,
                mark(member.mark)
            )
        };
        let members: Vec<_> = self.members.iter().map(member).collect();
        let nodes = if self.is_valid {
            "{matchLabels: {egress: \"true\"}}"
        } else {
            "{}"
        };
        let nat = match self.nat {
            Nat::NodeAddress => "",
            Nat::EgressIp => {
                ", sourceNAT: EgressIP, egressIPs: {ipv4: [\"10.6.1.60-10.6.1.66\"], ipv6: [\"fd00:6::60\"]}"
            }
            Nat::Keep => ", sourceNAT: None",
        };
        format!(
            "- {{apiVersion: egressgateway.spidernet.io/v1, kind: EgressGateway, metadata: {{name: {}}}, spec: {{nodeSelector: {nodes}{nat}}}, status: {{forwardMethod: {}, nodeList: [{}]{}}}}}\n",
            self.name,
            if self.ecmp { "ecmp" } else { "active-passive" },
            members.join(", "),
            mark(self.mark)
        )
    }
}

impl Policy {
    fn manifest(&self) -> String {
        let subject = match &self.subject {
            Subject::Labels { app, tier, team } => {
                let expression = tier.as_ref().map_or(String::new(), |tier| {
                    let (operator, values) = match tier {
                        Tier::In(values) => ("In", values.join(", ")),
                        Tier::NotIn(values) => ("NotIn", values.join(", ")),
                        Tier::Exists => ("Exists", String::new()),
                        Tier::DoesNotExist => ("DoesNotExist", String::new()),
                    };
                    format!(", matchExpressions: [{{key: tier, operator: {operator}, values: [{values}]}}]")
                });
                let team = team.as_ref().map_or(String::new(), |team| {
                    format!(", namespaceSelector: {{matchLabels: {{team: {team}}}}}")
                });
                format!("podSelector: {{matchLabels: {{app: {app}}}{expression}}}{team}")
            }
            Subject::Subnets(subnets) => {
                let entry = |cidr: &Cidr| {
                    format!(
                        "{}: \"{cidr}\"",
                        if cidr.base.is_ipv4() {
                            "ipv4PodSubnet"
                        } else {
                            "ipv6PodSubnet"
                        }
                    )
                };
                subnets.iter().map(entry).collect::<Vec<_>>().join(", ")
            }
        };
        let mut spec = format!(
            "appliedTo: {{{subject}}}, destCIDR: [{}], exceptCIDR: [{}]",
            list(&self.destinations),
            list(&self.exceptions)
        );
        if let Some(gateway) = &self.gateway {
            write!(spec, ", egressGatewayName: {gateway}").unwrap();
        }
        if let Some(priority) = self.priority {
            write!(spec, ", priority: {priority}").unwrap();
        }
        if !self.asked.is_empty() {
            write!(spec, ", egressIP: {{{}}}", by_family(&self.asked)).unwrap();
        }
        if !self.is_valid {
            spec = spec.replacen("destCIDR: [", "destCIDR: [nonsense, ", 1);
        }
        let owner = self
            .owner
            .as_ref()
            .map_or(String::new(), |node| format!(", node: {node}"));
        let created = match self.created {
            1_600_000_000 => "2020-09-13T12:26:40Z",
            1_700_000_000 => "2023-11-14T22:13:20Z",
            _ => "2023-11-14T22:13:21Z",
        };
        format!(
            "- {{apiVersion: egressgateway.spidernet.io/v1, kind: EgressGatewayPolicy, metadata: {{name: {}, creationTimestamp: \"{created}\"}}, spec: {{{spec}}}, status: {{egressIP: {{{}}}{owner}}}}}\n",
            self.name,
            by_family(&self.given)
        )
    }
}
