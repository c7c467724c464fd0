use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::IpRange;

use super::merge;

/// Never steered, whatever a policy says: loopback, link-local, multicast and the limited broadcast
/// of both families.
const ALWAYS: [&str; 8] = [
    "0.0.0.0/32",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/4",
    "255.255.255.255/32",
    "::1/128",
    "fe80::/10",
    "ff00::/8",
];

/// Networks that no policy steers, ascending, disjoint and as few as possible: the cluster's own
/// and those that never leave a link.
#[must_use]
pub fn exempt(
    networks: impl IntoIterator<Item = IpNet>,
    hosts: impl IntoIterator<Item = IpAddr>,
) -> Vec<IpNet> {
    let always = ALWAYS.iter().filter_map(|text| text.parse().ok());
    prefixes(
        always
            .chain(networks)
            .map(IpRange::from)
            .chain(hosts.into_iter().map(IpRange::single)),
    )
}

/// Networks inside the cluster to which a marked packet is routed as if it had no mark. Whole
/// networks only: a single host never receives a packet that was steered by mistake, and nodes come
/// and go.
#[must_use]
pub fn direct(networks: impl IntoIterator<Item = IpNet>) -> Vec<IpNet> {
    prefixes(
        networks
            .into_iter()
            .filter(|net| net.prefix_len() < net.max_prefix_len())
            .map(IpRange::from),
    )
}

fn prefixes(ranges: impl IntoIterator<Item = IpRange>) -> Vec<IpNet> {
    merge(ranges).iter().flat_map(IpRange::prefixes).collect()
}
