//! What targets need besides what they read.

use std::net::IpAddr;

use egressgateway::{
    PolicyDesired, Surroundings,
    model::{ClassId, IpRange, SourceNat, TargetId, Verdict},
};
use ipnet::IpNet;

/// A pod that leaves through another node for one network, and here for two.
pub(crate) fn desired() -> PolicyDesired {
    let (there, here) = (TargetId::FIRST, TargetId::new(0x13));
    let range = |text: &str| text.parse::<IpNet>().ok().map(IpRange::from);
    let places = [
        ("10.6.1.0/24", Some(there), SourceNat::NodeAddress),
        ("10.6.2.0/24", here, SourceNat::Keep),
        ("fd00:6::/64", here, SourceNat::NodeAddress),
    ];
    let class = ClassId::new(1);
    let verdict = |(to, target, source_nat): (&str, Option<TargetId>, SourceNat)| {
        let target = target?;
        Some(((class?, range(to)?), Verdict::Egress { target, source_nat }))
    };
    PolicyDesired {
        pods: "10.244.1.10"
            .parse::<IpAddr>()
            .ok()
            .zip(class)
            .into_iter()
            .collect(),
        destinations: places.into_iter().filter_map(verdict).collect(),
        exempt: "10.96.0.0/12".parse::<IpNet>().into_iter().collect(),
        targets: [there].into_iter().collect(),
        exits: here.into_iter().collect(),
        ..PolicyDesired::default()
    }
}

/// A cluster of one node.
pub(crate) fn surroundings() -> Surroundings {
    Surroundings {
        services: "10.96.0.0/12".parse::<IpNet>().into_iter().collect(),
        hosts: "10.6.0.11".parse::<IpAddr>().into_iter().collect(),
    }
}
