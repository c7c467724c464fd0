use std::collections::BTreeSet;

use imbl::OrdSet;
use ipnet::IpNet;

use crate::model::Family;

/// What is known of the networks of pods.
#[derive(Clone, Copy, Debug)]
pub struct PodNetworks<'a> {
    /// `spec.podCIDRs` of this node.
    pub own: &'a BTreeSet<IpNet>,
    /// Of all nodes: from objects of the CNI, and from the configuration.
    pub cluster: &'a [IpNet],
    /// Families in which pods of this node have addresses outside of all these.
    pub strays: &'a BTreeSet<Family>,
    /// Devices by which the host is reached.
    pub uplinks: &'a OrdSet<String>,
}

/// Which packets come from pods of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnPods {
    /// Their sources, which tell by themselves.
    pub local: OrdSet<IpNet>,
    /// Sources that are theirs where they come by none of the devices of `outside`.
    pub wide: OrdSet<IpNet>,
    /// Devices that pods of this node don't come by.
    pub outside: OrdSet<String>,
}

/// Both halves of a family: not every set takes a network of no bits.
fn everything(family: Family) -> Vec<IpNet> {
    let halves = match family {
        Family::V4 => ["0.0.0.0/1", "128.0.0.0/1"],
        Family::V6 => ["::/1", "8000::/1"],
    };
    halves.iter().filter_map(|text| text.parse().ok()).collect()
}

impl PodNetworks<'_> {
    /// Whether nothing says which addresses pods have, or what is said is not true.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        (self.own.is_empty() && self.cluster.is_empty()) || !self.strays.is_empty()
    }

    /// How the node recognises packets of its own pods. The node's own networks say it by
    /// themselves, wherever packets come in. With those of all nodes the device decides as well.
    /// Where nothing is known, whatever comes by another device than an uplink is taken for a
    /// pod's.
    #[must_use]
    pub fn own_pods(&self) -> OwnPods {
        let local: OrdSet<IpNet> = self.own.iter().copied().collect();
        let mut wide: OrdSet<IpNet> = self.cluster.iter().copied().collect();
        let nothing_is_known = local.is_empty() && wide.is_empty();
        let unknown = if nothing_is_known {
            Family::ALL.into_iter().collect()
        } else {
            self.strays.clone()
        };
        wide.extend(unknown.into_iter().flat_map(everything));
        let outside = if wide.is_empty() {
            OrdSet::new()
        } else {
            self.uplinks.clone()
        };
        OwnPods {
            local,
            wide,
            outside,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn own_pods(
        own: &[&str],
        cluster: &[&str],
        strays: &[Family],
    ) -> (bool, Vec<String>, Vec<String>, usize) {
        let (own, cluster) = (nets(own).into_iter().collect(), nets(cluster));
        let uplinks = OrdSet::unit("eth0".to_owned());
        let known = PodNetworks {
            own: &own,
            cluster: &cluster,
            strays: &strays.iter().copied().collect(),
            uplinks: &uplinks,
        };
        let OwnPods {
            local,
            wide,
            outside,
        } = known.own_pods();
        let texts = |networks: OrdSet<IpNet>| networks.iter().map(ToString::to_string).collect();
        (known.is_unknown(), texts(local), texts(wide), outside.len())
    }

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn the_nodes_own_networks_say_who_its_pods_are() {
        assert_eq!(
            own_pods(&["10.244.1.0/24"], &[], &[]),
            (false, strings(&["10.244.1.0/24"]), Vec::new(), 0)
        );
    }

    #[test]
    fn with_networks_of_all_nodes_the_device_decides_as_well() {
        assert_eq!(
            own_pods(&[], &["10.244.0.0/16"], &[]),
            (false, Vec::new(), strings(&["10.244.0.0/16"]), 1)
        );
        let both = own_pods(&["10.1.0.0/24"], &["10.244.0.0/16"], &[]);
        assert_eq!(
            both,
            (
                false,
                strings(&["10.1.0.0/24"]),
                strings(&["10.244.0.0/16"]),
                1
            )
        );
    }

    #[test]
    fn where_nothing_is_known_everybody_behind_the_node_is_a_pod_until_it_is_known() {
        assert_eq!(
            own_pods(&[], &[], &[]),
            (
                true,
                Vec::new(),
                strings(&["0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1"]),
                1
            )
        );
    }

    #[test]
    fn a_pod_outside_of_what_is_known_shows_that_it_is_not_true() {
        let everything = strings(&["0.0.0.0/1", "128.0.0.0/1"]);
        assert_eq!(
            own_pods(&["10.244.1.0/24"], &[], &[Family::V4]),
            (true, strings(&["10.244.1.0/24"]), everything, 1)
        );
    }
}
