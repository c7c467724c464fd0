//! The objects as an API server holds them: a plan is written into their statuses, and the next
//! cluster is read from there.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use egressgateway::{
    allocator::LowestFree,
    api::{
        AddressConflict, EgressGateway, EgressGatewayPolicy, EgressGatewayPolicyStatus,
        EgressGatewayStatus, EgressNode, EgressNodePhase, EgressNodeStatus, Interface,
    },
    controller::{Cluster, ClusterPlan, ControllerSettings, plan},
    model::{GatewayName, MarkMask, NodeName, PolicyName},
    world::{Change, EgressNode as WorldNode, Gateway, Node, Policy},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use serde::de::DeserializeOwned;

#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) nodes: BTreeMap<String, Node>,
    pub(crate) egress_nodes: BTreeMap<String, EgressNode>,
    pub(crate) gateways: BTreeMap<String, EgressGateway>,
    pub(crate) policies: BTreeMap<String, EgressGatewayPolicy>,
    pub(crate) fresh: BTreeSet<String>,
    pub(crate) settings: ControllerSettings,
    pub(crate) now: i64,
}

impl Default for Api {
    fn default() -> Self {
        let overlay = vec![
            "172.31.0.0/16".parse().unwrap(),
            "fd31::/112".parse().unwrap(),
        ];
        let settings = ControllerSettings {
            overlay,
            ..ControllerSettings::default()
        };
        Self {
            nodes: BTreeMap::new(),
            egress_nodes: BTreeMap::new(),
            gateways: BTreeMap::new(),
            policies: BTreeMap::new(),
            fresh: BTreeSet::new(),
            settings,
            now: 0,
        }
    }
}

impl Api {
    /// A Node that is Ready, with its agent alive and its tunnel up.
    pub(crate) fn node(&mut self, name: &str, labels: &str) {
        let labels: BTreeMap<String, String> = serde_saphyr::from_str(labels).unwrap();
        let labels = labels.into_iter().collect();
        let last = u8::try_from(self.nodes.len() + 1).unwrap();
        let addresses = vec![IpAddr::from([10, 6, 0, last])];
        let node = Node {
            uid: format!("uid-{name}"),
            labels,
            addresses,
            ready: true,
            ..Node::default()
        };
        self.nodes.insert(name.to_owned(), node);
        self.fresh.insert(name.to_owned());
        let mut egress_node: EgressNode = object("EgressNode", name, "spec: {}");
        egress_node.status = Some(EgressNodeStatus {
            conditions: vec![tunnel_ready(true)],
            ..EgressNodeStatus::default()
        });
        self.egress_nodes.insert(name.to_owned(), egress_node);
    }

    pub(crate) fn gateway(&mut self, name: &str, spec: &str) {
        let new: EgressGateway = object("EgressGateway", name, &format!("spec: {spec}"));
        let old = self.gateways.entry(name.to_owned()).or_insert(new.clone());
        old.spec = new.spec;
    }

    pub(crate) fn policy(&mut self, name: &str, created: u32, spec: &str) {
        let new: EgressGatewayPolicy =
            object("EgressGatewayPolicy", name, &format!("spec: {spec}"));
        let old = self.policies.entry(name.to_owned()).or_insert(new.clone());
        old.spec = new.spec;
        old.metadata.creation_timestamp = Some(Time(
            k8s_openapi::jiff::Timestamp::from_second(i64::from(created)).unwrap(),
        ));
    }

    pub(crate) fn tunnel(&mut self, name: &str, ready: bool) {
        let status = self
            .egress_nodes
            .get_mut(name)
            .unwrap()
            .status
            .get_or_insert_default();
        status.conditions = vec![tunnel_ready(ready)];
    }

    /// What the node's agent says of its only interface.
    pub(crate) fn interface(&mut self, name: &str, address: &str, router: &str) {
        let interface = Interface {
            name: "eth0".to_owned(),
            ipv4: vec![address.to_owned()],
            routers: vec![router.to_owned()],
            hardware_address: Some(mac_of(name)),
            ..Interface::default()
        };
        self.egress_nodes
            .get_mut(name)
            .unwrap()
            .status
            .get_or_insert_default()
            .interfaces = vec![interface];
    }

    /// The node's agent hears nobody answer for these addresses, which it is to take over.
    pub(crate) fn silent(&mut self, name: &str, addresses: &[&str]) {
        let addresses = addresses
            .iter()
            .map(|address| (*address).to_owned())
            .collect();
        self.egress_nodes
            .get_mut(name)
            .unwrap()
            .status
            .get_or_insert_default()
            .silent_addresses = addresses;
    }

    /// The node's agent hears these hardware addresses answer for these addresses.
    pub(crate) fn conflicts(&mut self, name: &str, conflicts: &[(&str, &str)]) {
        let conflict = |(address, mac): &(&str, &str)| AddressConflict {
            address: (*address).to_owned(),
            hardware_address: (*mac).to_owned(),
        };
        let status = self
            .egress_nodes
            .get_mut(name)
            .unwrap()
            .status
            .get_or_insert_default();
        status.address_conflicts = conflicts.iter().map(conflict).collect();
    }

    pub(crate) fn cluster(&self) -> Cluster {
        let fresh_leases = self
            .fresh
            .iter()
            .map(|name| NodeName::from(name.as_str()))
            .collect();
        let mut cluster = Cluster {
            fresh_leases,
            now: self.now,
            ..Cluster::default()
        };
        for (name, node) in &self.nodes {
            cluster.apply(Change::Node(
                NodeName::from(name.as_str()),
                Some(node.clone()),
            ));
        }
        for (name, node) in &self.egress_nodes {
            cluster.apply(Change::EgressNode(
                NodeName::from(name.as_str()),
                Some(WorldNode::from_api(node)),
            ));
        }
        for (name, gateway) in &self.gateways {
            cluster.apply(Change::Gateway(
                GatewayName::from(name.as_str()),
                Some(Gateway::from_api(gateway, MarkMask::default())),
            ));
        }
        for (name, policy) in &self.policies {
            cluster.apply(Change::Policy(
                PolicyName::from(name.as_str()),
                Some(Policy::from_api(policy)),
            ));
        }
        cluster
    }

    pub(crate) fn plan(&self) -> ClusterPlan {
        plan(&self.cluster(), &LowestFree, &self.settings)
    }

    /// Writes a plan as the controller does, and what it decided stands in the objects.
    pub(crate) fn write(&mut self, plan: &ClusterPlan) {
        for name in plan.create.keys() {
            self.egress_nodes.insert(
                name.to_string(),
                object("EgressNode", name.as_str(), "spec: {}"),
            );
        }
        for name in &plan.delete {
            self.egress_nodes.remove(name.as_str());
        }
        for (name, status) in &plan.egress_nodes {
            let old = self
                .egress_nodes
                .get_mut(name.as_str())
                .unwrap()
                .status
                .get_or_insert_default();
            let theirs = std::mem::take(&mut old.conditions)
                .into_iter()
                .filter(|condition| condition.type_ == "TunnelReady");
            let conditions = theirs.chain(status.conditions.iter().cloned()).collect();
            let agents = EgressNodeStatus {
                interfaces: std::mem::take(&mut old.interfaces),
                physical_interface_ipv4: old.physical_interface_ipv4.take(),
                physical_interface_ipv6: old.physical_interface_ipv6.take(),
                address_conflicts: std::mem::take(&mut old.address_conflicts),
                silent_addresses: std::mem::take(&mut old.silent_addresses),
                ports_wanted: std::mem::take(&mut old.ports_wanted),
                ..status.clone()
            };
            *old = EgressNodeStatus {
                conditions,
                ..agents
            };
        }
        for (name, status) in &plan.gateways {
            self.gateways.get_mut(name.as_str()).unwrap().status = Some(status.clone());
        }
        for (name, status) in &plan.policies {
            self.policies.get_mut(name.as_str()).unwrap().status = Some(status.clone());
        }
    }

    /// Plans and writes; planning again must change nothing.
    pub(crate) fn settle(&mut self) -> ClusterPlan {
        let plan = self.plan();
        self.write(&plan);
        let again = self.plan();
        assert!(again.create.is_empty() && again.delete.is_empty());
        assert_eq!(again.egress_nodes, plan.egress_nodes);
        assert_eq!(again.gateways, plan.gateways);
        assert_eq!(again.policies, plan.policies);
        plan
    }

    pub(crate) fn phase(&self, name: &str) -> EgressNodePhase {
        self.egress_nodes[name]
            .status
            .as_ref()
            .and_then(|status| status.phase)
            .unwrap()
    }

    pub(crate) fn gateway_status(&self, name: &str) -> &EgressGatewayStatus {
        self.gateways[name].status.as_ref().unwrap()
    }

    pub(crate) fn policy_status(&self, name: &str) -> &EgressGatewayPolicyStatus {
        self.policies[name].status.as_ref().unwrap()
    }

    /// Names of the nodes that carry a gateway's traffic.
    pub(crate) fn active(&self, name: &str) -> Vec<&str> {
        self.gateway_status(name)
            .node_list
            .iter()
            .filter(|node| node.active)
            .map(|node| node.name.as_str())
            .collect()
    }

    /// The IPv4 egress address of a policy and who answers for it.
    pub(crate) fn egress_ip(&self, name: &str) -> Option<(&str, Option<&str>)> {
        let status = self.policy_status(name);
        Some((
            status.egress_ip.as_ref()?.ipv4.as_deref()?,
            status.node.as_deref(),
        ))
    }
}

/// A condition as `status reason: message`.
pub(crate) fn told(conditions: &[Condition], kind: &str) -> String {
    let condition = conditions
        .iter()
        .find(|condition| condition.type_ == kind)
        .unwrap();
    format!(
        "{} {}: {}",
        condition.status, condition.reason, condition.message
    )
}

fn tunnel_ready(ready: bool) -> Condition {
    Condition {
        type_: "TunnelReady".to_owned(),
        status: if ready { "True" } else { "False" }.to_owned(),
        reason: "Test".to_owned(),
        message: String::new(),
        observed_generation: None,
        last_transition_time: Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH),
    }
}

pub(crate) fn object<T: DeserializeOwned>(kind: &str, name: &str, yaml: &str) -> T {
    let text = format!(
        "{{apiVersion: egressgateway.spidernet.io/v1, kind: {kind}, metadata: {{name: {name}, generation: 1}}, {yaml}}}"
    );
    serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Hardware address of a node's only interface.
pub(crate) fn mac_of(name: &str) -> String {
    format!("02:00:00:00:00:{:02x}", name.bytes().next().unwrap())
}
