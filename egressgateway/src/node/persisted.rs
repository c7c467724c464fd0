//! What a node keeps of the cluster over a boot: enough to hold what policies governed until it
//! knows them again.

use std::net::IpAddr;

use imbl::OrdSet;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    Error, ErrorKind, PolicyDesired, StartGate,
    model::{IpRange, NodeName},
    plan,
};

/// The version that is written, and the only one that is read.
const VERSION: u32 = 1;

/// What of a policy in force outlives the kernel that it was in.
///
/// After a boot neither the pods nor their policies are known. [`Self::hold`] is the policy for
/// that time: a start gate that knows nobody yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PersistedPolicy {
    /// Address ranges of this node's pods.
    pub local: OrdSet<IpNet>,
    /// Address ranges that are theirs where packets come by no device of `outside`.
    pub wide: OrdSet<IpNet>,
    /// Devices by which others come in.
    pub outside: OrdSet<String>,
    /// Union of all destinations of all policies.
    pub governed: OrdSet<IpRange>,
    /// Never held: cluster, service and node addresses.
    pub exempt: OrdSet<IpNet>,
}

/// As it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PersistedPolicyV1 {
    version: u32,
    node: String,
    local: Vec<IpNet>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    wide: Vec<IpNet>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    outside: Vec<String>,
    governed: Vec<IpNet>,
    exempt: Vec<IpNet>,
}

/// What every version has.
#[derive(Deserialize)]
struct Header {
    version: u32,
}

impl PersistedPolicy {
    /// What is kept of a policy in force; nothing where the start gate is off, because nothing is
    /// to wait then.
    #[must_use]
    pub fn of(policy: &PolicyDesired) -> Self {
        let Some(gate) = &policy.start_gate else {
            return Self::default();
        };
        let StartGate {
            local,
            wide,
            outside,
            governed,
            ..
        } = gate.clone();
        Self {
            local,
            wide,
            outside,
            governed,
            exempt: policy.exempt.clone(),
        }
    }

    /// The policy that holds all traffic of this node's pods to the governed destinations; none
    /// where there is nothing to hold.
    #[must_use]
    pub fn hold(&self) -> Option<PolicyDesired> {
        if (self.local.is_empty() && self.wide.is_empty()) || self.governed.is_empty() {
            return None;
        }
        let Self {
            local,
            wide,
            outside,
            governed,
            exempt,
        } = self.clone();
        let gate = StartGate {
            local,
            wide,
            outside,
            known: OrdSet::new(),
            governed,
        };
        Some(PolicyDesired {
            exempt,
            start_gate: Some(gate),
            ..PolicyDesired::default()
        })
    }

    /// As the file of a node.
    #[must_use]
    pub fn to_json(&self, node: &NodeName) -> String {
        let written = PersistedPolicyV1 {
            version: VERSION,
            node: node.to_string(),
            local: self.local.iter().copied().collect(),
            wide: self.wide.iter().copied().collect(),
            outside: self.outside.iter().cloned().collect(),
            governed: self.governed.iter().flat_map(IpRange::prefixes).collect(),
            exempt: self.exempt.iter().copied().collect(),
        };
        serde_json::to_string_pretty(&written).unwrap_or_default()
    }

    /// From the file of a node.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when it is damaged, of another version, or another node's.
    pub fn parse(text: &[u8], node: &NodeName) -> Result<Self, Error> {
        let damaged = |error: serde_json::Error| {
            Error::new(ErrorKind::Invalid, "it is damaged").with_source(error)
        };
        let Header { version } = serde_json::from_slice(text).map_err(damaged)?;
        if version != VERSION {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("version is {version}, and must be {VERSION}"),
            ));
        }
        let written: PersistedPolicyV1 = serde_json::from_slice(text).map_err(damaged)?;
        if written.node != node.as_str() {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "node is {:?}, and must be {node}: it is another node's",
                    written.node
                ),
            ));
        }
        let networks = |nets: Vec<IpNet>| nets.into_iter().map(|net| net.trunc()).collect();
        Ok(Self {
            local: networks(written.local),
            wide: networks(written.wide),
            outside: written.outside.into_iter().collect(),
            governed: plan::merge(written.governed.into_iter().map(IpRange::from))
                .into_iter()
                .collect(),
            exempt: networks(written.exempt),
        })
    }
}

impl StartGate {
    /// Whether a packet of a source without a class waits here, whatever device it comes by.
    #[must_use]
    pub fn holds(&self, source: IpAddr, destination: IpAddr) -> bool {
        let bound = IpRange::new(
            destination,
            IpRange::everything(IpRange::single(destination).family()).last(),
        );
        let governed = || {
            bound
                .and_then(|bound| self.governed.get_prev(&bound))
                .is_some_and(|range| range.contains(destination))
        };
        !self.known.contains(&source)
            && self.local.iter().any(|net| net.contains(&source))
            && governed()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node() -> NodeName {
        NodeName::from("node-1")
    }

    fn persisted() -> PersistedPolicy {
        PersistedPolicy {
            wide: OrdSet::unit("10.244.0.0/16".parse().unwrap()),
            outside: ["eth0".to_owned()].into_iter().collect(),
            local: OrdSet::unit("10.244.1.0/24".parse().unwrap()),
            governed: [
                IpRange::new("10.6.1.0".parse().unwrap(), "10.6.1.6".parse().unwrap()).unwrap(),
                "fd00:6::/32".parse::<IpNet>().unwrap().into(),
            ]
            .into_iter()
            .collect(),
            exempt: OrdSet::unit("10.96.0.0/12".parse().unwrap()),
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        assert_eq!(
            PersistedPolicy::parse(persisted().to_json(&node()).as_bytes(), &node()).unwrap(),
            persisted()
        );
        let everything = PersistedPolicy {
            governed: OrdSet::unit(IpRange::everything(crate::model::Family::V4)),
            ..persisted()
        };
        assert_eq!(
            PersistedPolicy::parse(everything.to_json(&node()).as_bytes(), &node()).unwrap(),
            everything
        );
    }

    #[test]
    fn what_is_damaged_of_another_version_or_another_nodes_is_refused_with_the_reason() {
        let good = persisted().to_json(&node());
        let reason = |text: &str| {
            PersistedPolicy::parse(text.as_bytes(), &node())
                .unwrap_err()
                .chain()
        };
        assert!(reason(&good[..good.len() / 2]).contains("damaged"));
        assert!(reason("").contains("damaged"));
        assert!(reason(&good.replace("10.6.1.0/30", "10.6.1.0/33")).contains("damaged"));
        assert!(reason(&good.replace("\"exempt\"", "\"exempted\"")).contains("exempted"));
        assert!(reason("{\"version\": 2, \"more\": []}").contains("version is 2, and must be 1"));
        assert!(reason(&good.replace("node-1", "node-2")).contains("another node's"));
    }

    #[test]
    fn the_hold_waits_for_everybody_and_there_is_none_where_nothing_is_governed() {
        let hold = persisted().hold().unwrap();
        let gate = hold.start_gate.as_ref().unwrap();
        let holds = |source: &str, destination: &str| {
            gate.holds(source.parse().unwrap(), destination.parse().unwrap())
        };
        assert!(holds("10.244.1.9", "10.6.1.6") && holds("10.244.1.9", "fd00:6::1"));
        assert!(!holds("10.244.1.9", "10.6.1.7") && !holds("10.244.2.9", "10.6.1.6"));
        assert_eq!(PersistedPolicy::of(&hold), persisted());
        assert_eq!(
            PersistedPolicy {
                governed: OrdSet::new(),
                ..persisted()
            }
            .hold(),
            None
        );
        assert_eq!(
            PersistedPolicy::of(&PolicyDesired {
                start_gate: None,
                ..hold
            })
            .hold(),
            None,
            "the start gate is off"
        );
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,80}", cut in 0_usize..400) {
            let _ = PersistedPolicy::parse(text.as_bytes(), &node());
            let good = persisted().to_json(&node());
            let _ = PersistedPolicy::parse(format!("{}{text}", good.get(..cut).unwrap_or(&good)).as_bytes(), &node());
        }
    }
}
