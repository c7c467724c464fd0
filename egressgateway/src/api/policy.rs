use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Whose traffic leaves through a gateway, and to which destinations.
#[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "egressgateway.spidernet.io",
    version = "v1",
    kind = "EgressGatewayPolicy",
    plural = "egressgatewaypolicies",
    shortname = "egp",
    status = "EgressGatewayPolicyStatus",
    derive = "PartialEq",
    derive = "Default"
)]
#[serde(rename_all = "camelCase")]
pub struct EgressGatewayPolicySpec {
    /// The gateway. Absent: the configured default, else the only one there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress_gateway_name: Option<String>,
    /// The pods whose traffic is governed.
    pub applied_to: AppliedTo,
    /// Destinations. Absent or empty: everything outside the cluster.
    #[serde(default, rename = "destCIDR", skip_serializing_if = "Vec::is_empty")]
    pub dest_cidr: Vec<String>,
    /// Destinations that this policy leaves alone.
    #[serde(default, rename = "exceptCIDR", skip_serializing_if = "Vec::is_empty")]
    pub except_cidr: Vec<String>,
    /// The lower number wins where policies overlap. Absent: 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// Addresses that the network outside shall see, from the gateway's pool.
    #[serde(default, rename = "egressIP", skip_serializing_if = "Option::is_none")]
    pub egress_ip: Option<EgressIp>,
}

/// Pods by label, or pod addresses by subnet; not both.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AppliedTo {
    /// Pods with these labels. Empty: all pods of the namespaces that `namespaceSelector` chooses,
    /// which must be given then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<LabelSelector>,
    /// Only in namespaces with these labels. Absent or empty: in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    /// Pods with addresses in this subnet.
    #[serde(
        default,
        rename = "ipv4PodSubnet",
        skip_serializing_if = "Option::is_none"
    )]
    pub ipv4_pod_subnet: Option<String>,
    /// Pods with addresses in this subnet.
    #[serde(
        default,
        rename = "ipv6PodSubnet",
        skip_serializing_if = "Option::is_none"
    )]
    pub ipv6_pod_subnet: Option<String>,
}

/// One address of each family.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct EgressIp {
    /// IPv4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<String>,
    /// IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<String>,
}

/// What became of the policy.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct EgressGatewayPolicyStatus {
    /// The gateway in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress_gateway: Option<String>,
    /// The egress addresses in force.
    #[serde(default, rename = "egressIP", skip_serializing_if = "Option::is_none")]
    pub egress_ip: Option<EgressIp>,
    /// The node that answers for the egress addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The node that takes the egress addresses over once nobody answers for them: the agent of the
    /// one that has them is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate: Option<String>,
    /// The generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Accepted` (Invalid, GatewayNotFound, AmbiguousGateway, Conflict, …) and `Overlapping`. None
    /// says that nodes have programmed it: each node's EgressNode has that of all policies
    /// together.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}
