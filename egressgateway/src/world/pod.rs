use std::{net::IpAddr, ops::Deref};

use k8s_openapi::api::core::v1 as core;

use super::Labels;
use crate::model::NodeName;

/// A pod whose traffic can be governed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Its labels.
    pub labels: Labels,
    /// Where it runs.
    pub node: Option<NodeName>,
    /// Its addresses, both families; empty before it has any.
    pub addresses: PodAddresses,
}

impl Pod {
    /// From the Kubernetes object; none for pods of the host's network and for those that ended
    /// (Succeeded, Failed).
    #[must_use]
    pub fn from_api(pod: &core::Pod) -> Option<Self> {
        let spec = pod.spec.as_ref();
        let phase = pod
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        if spec.and_then(|spec| spec.host_network) == Some(true)
            || matches!(phase, Some("Succeeded" | "Failed"))
        {
            return None;
        }
        let ips = pod
            .status
            .iter()
            .flat_map(|status| status.pod_ips.iter().flatten())
            .map(|ip| ip.ip.as_str());
        let ip = pod
            .status
            .iter()
            .filter_map(|status| status.pod_ip.as_deref());
        Some(Self {
            labels: pod
                .metadata
                .labels
                .as_ref()
                .map(Labels::from)
                .unwrap_or_default(),
            node: spec
                .and_then(|spec| spec.node_name.as_deref())
                .map(NodeName::from),
            addresses: ips.chain(ip).filter_map(|ip| ip.parse().ok()).collect(),
        })
    }
}

/// Addresses of a pod, ascending, each once: a slice that takes no more than they do.
///
/// ```
/// use std::net::IpAddr;
/// use egressgateway::world::PodAddresses;
///
/// let [v4, v6]: [IpAddr; 2] = ["10.0.0.1".parse()?, "fd00::1".parse()?];
/// assert_eq!(*PodAddresses::from_iter([v6, v4, v6]), [v4, v6]);
/// # Ok::<(), std::net::AddrParseError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodAddresses(Box<[IpAddr]>);

impl Deref for PodAddresses {
    type Target = [IpAddr];

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl FromIterator<IpAddr> for PodAddresses {
    fn from_iter<I: IntoIterator<Item = IpAddr>>(addresses: I) -> Self {
        let mut addresses: Vec<IpAddr> = addresses.into_iter().collect();
        addresses.sort_unstable();
        addresses.dedup();
        Self(addresses.into_boxed_slice())
    }
}

impl<const N: usize> From<[IpAddr; N]> for PodAddresses {
    fn from(addresses: [IpAddr; N]) -> Self {
        addresses.into_iter().collect()
    }
}

/// A namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    /// Its labels.
    pub labels: Labels,
}

impl Namespace {
    /// From the Kubernetes object.
    #[must_use]
    pub fn from_api(namespace: &core::Namespace) -> Self {
        Self {
            labels: namespace
                .metadata
                .labels
                .as_ref()
                .map(Labels::from)
                .unwrap_or_default(),
        }
    }
}
