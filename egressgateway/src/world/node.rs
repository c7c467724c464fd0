use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use k8s_openapi::{api::core::v1 as core, apimachinery::pkg::apis::meta::v1::Condition};

use super::Labels;
use crate::{
    api,
    contracts::Peer,
    model::{Family, MacAddress, PortBlock},
};

/// A Kubernetes node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Its UID; empty where the object has none.
    pub uid: String,
    /// Its labels.
    pub labels: Labels,
    /// Its InternalIP and ExternalIP addresses, in the node's order.
    pub addresses: Vec<IpAddr>,
    /// Networks of its pods.
    pub pod_networks: BTreeSet<IpNet>,
    /// What its kubelet said last of the condition Ready, or nothing any more (Unknown): whether
    /// the node lives then, its agent's Lease tells.
    pub ready: bool,
    /// Cordoned: no new pods (`spec.unschedulable`).
    pub cordoned: bool,
    /// Annotations under `egressgateway.spidernet.io/`, without the prefix.
    pub annotations: Labels,
}

impl Node {
    /// Prefix of the annotations that speak to the egress gateway.
    pub const ANNOTATION_PREFIX: &str = "egressgateway.spidernet.io/";
    /// The annotation, without its prefix, that takes a node out of all gateways when it says
    /// "true".
    pub const DRAIN: &str = "drain";

    /// From the Kubernetes object.
    #[must_use]
    pub fn from_api(node: &core::Node) -> Self {
        let spec = node.spec.as_ref();
        let status = node.status.as_ref();
        let addresses = status
            .iter()
            .flat_map(|status| status.addresses.iter().flatten());
        let conditions = status
            .iter()
            .flat_map(|status| status.conditions.iter().flatten());
        let cidrs = spec
            .iter()
            .flat_map(|spec| spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr));
        let annotations = node.metadata.annotations.iter().flatten();
        Self {
            uid: node.metadata.uid.clone().unwrap_or_default(),
            labels: node
                .metadata
                .labels
                .as_ref()
                .map(Labels::from)
                .unwrap_or_default(),
            addresses: addresses
                .filter(|address| matches!(address.type_.as_str(), "InternalIP" | "ExternalIP"))
                .filter_map(|address| address.address.parse().ok())
                .collect(),
            pod_networks: cidrs
                .filter_map(|cidr| cidr.parse::<IpNet>().ok())
                .map(|net| net.trunc())
                .collect(),
            ready: conditions.clone().any(|condition| {
                condition.type_ == "Ready" && matches!(&*condition.status, "True" | "Unknown")
            }),
            cordoned: spec.and_then(|spec| spec.unschedulable) == Some(true),
            annotations: annotations
                .filter_map(|(key, value)| {
                    Some((key.strip_prefix(Self::ANNOTATION_PREFIX)?, value.as_str()))
                })
                .collect(),
        }
    }

    /// Somebody took it out of all gateways, by the annotation. A cordon alone does not: gateways
    /// then prefer other nodes.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.annotations.get(Self::DRAIN) == Some("true")
    }
}

/// A node's end of the tunnel, as the EgressNode's status tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EgressNode {
    /// How far it has come.
    pub phase: api::EgressNodePhase,
    /// Overlay addresses with the overlay's prefix length, at most one of each family.
    pub overlay: BTreeSet<IpNet>,
    /// Overlay hardware address.
    pub mac: Option<MacAddress>,
    /// Outer addresses, at most one of each family.
    pub underlay: BTreeSet<IpAddr>,
    /// Largest packets that its tunnel takes in, in bytes, as far as it says so.
    pub mtu: imbl::OrdMap<Family, u32>,
    /// The device of the outer addresses.
    pub device: Option<String>,
    /// What the agent said of the tunnel last; none before it said anything.
    pub tunnel_ready: Option<bool>,
    /// What the agent said of its relay last; none where it is asked for none, or said nothing yet.
    pub relay_ready: Option<bool>,
    /// The node's physical interfaces.
    pub interfaces: Vec<api::Interface>,
    /// The addresses that it does not take because somebody else answers for them, and who does.
    pub conflicts: BTreeMap<IpAddr, MacAddress>,
    /// The addresses that it shall take over and that nobody answers for.
    pub silent: BTreeSet<IpAddr>,
    /// The egress addresses that it translates to itself, and how many units of 256 ports it asks
    /// for of each.
    pub wanted: BTreeMap<IpAddr, u16>,
    /// The ports that it has of them.
    pub blocks: BTreeMap<IpAddr, BTreeSet<PortBlock>>,
}

impl EgressNode {
    /// From the Kubernetes object; fields that can't be parsed are left out.
    #[must_use]
    pub fn from_api(node: &api::EgressNode) -> Self {
        let status = node.status.clone().unwrap_or_default();
        let of = |family: Family| move |address: &IpAddr| Family::of(*address) == family;
        let overlay = [
            (&status.vxlan_ipv4_ip, Family::V4),
            (&status.vxlan_ipv6_ip, Family::V6),
        ];
        let underlay = [
            (&status.physical_interface_ipv4, Family::V4),
            (&status.physical_interface_ipv6, Family::V6),
        ];
        let mtu = status.tunnel_mtu;
        let condition = |name: &str| {
            let of_name = |condition: &&Condition| condition.type_ == name;
            let found = status.conditions.iter().find(of_name);
            found.map(|condition| condition.status == "True")
        };
        Self {
            phase: status.phase.unwrap_or_default(),
            overlay: overlay
                .iter()
                .filter_map(|(text, family)| {
                    text.as_ref()?
                        .parse::<IpNet>()
                        .ok()
                        .filter(|net| of(*family)(&net.addr()))
                })
                .collect(),
            mac: status
                .tunnel_mac
                .as_ref()
                .and_then(|text| text.parse().ok()),
            underlay: underlay
                .iter()
                .filter_map(|(text, family)| text.as_ref()?.parse().ok().filter(of(*family)))
                .collect(),
            mtu: mtu
                .into_iter()
                .flat_map(|mtu| [(Family::V4, mtu.ipv4), (Family::V6, mtu.ipv6)])
                .filter_map(|(family, mtu)| Some((family, mtu?)))
                .collect(),
            device: status.physical_interface,
            tunnel_ready: condition(api::EgressNodeStatus::TUNNEL_READY),
            relay_ready: condition(api::EgressNodeStatus::RELAY_READY),
            interfaces: status.interfaces,
            conflicts: status
                .address_conflicts
                .iter()
                .filter_map(|conflict| {
                    Some((
                        conflict.address.parse().ok()?,
                        conflict.hardware_address.parse().ok()?,
                    ))
                })
                .collect(),
            silent: status
                .silent_addresses
                .iter()
                .filter_map(|text| text.parse().ok())
                .collect(),
            wanted: status
                .ports_wanted
                .iter()
                .filter_map(|wanted| Some((wanted.address.parse().ok()?, wanted.units)))
                .collect(),
            blocks: port_blocks(&status.port_blocks),
        }
    }

    /// Addresses of its interfaces, each with its prefix length.
    pub fn attached(&self) -> impl Iterator<Item = IpNet> {
        let texts = self
            .interfaces
            .iter()
            .flat_map(|interface| interface.ipv4.iter().chain(&interface.ipv6));
        texts.filter_map(|text| text.parse::<IpNet>().ok())
    }

    /// Whether it is connected to a network that holds the address.
    #[must_use]
    pub fn reaches(&self, address: IpAddr) -> bool {
        self.attached().any(|network| {
            network.prefix_len() < network.max_prefix_len() && network.contains(&address)
        })
    }

    /// The next routers of its default routes.
    pub fn routers(&self) -> impl Iterator<Item = IpAddr> {
        self.interfaces
            .iter()
            .flat_map(|interface| &interface.routers)
            .filter_map(|text| text.parse().ok())
    }

    /// Hardware addresses of its interfaces.
    pub fn hardware_addresses(&self) -> impl Iterator<Item = MacAddress> {
        self.interfaces
            .iter()
            .filter_map(|interface| interface.hardware_address.as_ref()?.parse().ok())
    }

    /// The remote end that it is for others; none as long as addresses are missing.
    #[must_use]
    pub fn peer(&self) -> Option<Peer> {
        let mac = self.mac?;
        let peer = Peer {
            overlay: self.overlay.iter().map(IpNet::addr).collect(),
            underlay: self.underlay.iter().copied().collect(),
            mac,
            mtu: self.mtu.clone(),
        };
        (!peer.overlay.is_empty() && !peer.underlay.is_empty()).then_some(peer)
    }
}

fn port_blocks(said: &[api::AddressPorts]) -> BTreeMap<IpAddr, BTreeSet<PortBlock>> {
    let mut blocks: BTreeMap<IpAddr, BTreeSet<PortBlock>> = BTreeMap::new();
    for ports in said {
        let block = PortBlock::of_ports(ports.first, ports.last).ok();
        if let Some((address, block)) = ports.address.parse().ok().zip(block) {
            blocks.entry(address).or_default().insert(block);
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_is_not_ready_when_its_kubelet_says_so_and_not_when_nobody_hears_of_it() {
        let ready = |status: &str| {
            let node = json!({"status": {"conditions": [{"type": "Ready", "status": status}]}});
            Node::from_api(&serde_json::from_value(node).unwrap()).ready
        };
        assert_eq!(
            [ready("True"), ready("Unknown"), ready("False")],
            [true, true, false]
        );
        assert!(
            !Node::from_api(&core::Node::default()).ready,
            "its kubelet never said so"
        );
    }
}
