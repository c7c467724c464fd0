//! What a policy claims.

use std::cmp::Reverse;

use super::{RangeClaim, Rank, merge};
use crate::{
    model::{Family, IpRange, PolicyName, range_predecessor, range_successor},
    spec::PolicySpec,
};

/// What a policy claims: its destinations (everything where it names none) without its own
/// exceptions.
#[must_use]
pub fn claims(policy: &PolicyName, spec: &PolicySpec, created: i64) -> Vec<RangeClaim> {
    let everything = || {
        Family::ALL
            .map(|family| (IpRange::everything(family), 0))
            .to_vec()
    };
    let named = || {
        spec.destinations
            .iter()
            .map(|net| (IpRange::from(*net), net.prefix_len()))
            .collect()
    };
    let destinations: Vec<(IpRange, u8)> = if spec.destinations.is_empty() {
        everything()
    } else {
        named()
    };
    let holes = merge(spec.exceptions.iter().copied().map(IpRange::from));
    let claim = |(range, prefix)| {
        let rank = Rank {
            priority: spec.priority,
            prefix: Reverse(prefix),
            created,
            policy: policy.clone(),
        };
        without(range, &holes)
            .into_iter()
            .map(move |range| RangeClaim {
                range,
                rank: rank.clone(),
            })
    };
    destinations.into_iter().flat_map(claim).collect()
}

/// `range` without `holes`, which are ascending and disjoint.
pub(crate) fn without(range: IpRange, holes: &[IpRange]) -> Vec<IpRange> {
    let mut rest = Vec::new();
    let mut first = Some(range.first());
    for hole in holes.iter().filter(|hole| hole.overlaps(&range)) {
        let Some(start) = first else { break };
        if let Some(before) = range_predecessor(hole.first()).filter(|_| hole.first() > start) {
            rest.extend(IpRange::new(start, before));
        }
        first = range_successor(hole.last());
    }
    rest.extend(first.and_then(|first| IpRange::new(first, range.last())));
    rest
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, net::IpAddr};

    use proptest::prelude::*;

    use super::*;
    use crate::plan::resolve_overlaps;

    fn spec(priority: u32, destinations: &[&str], exceptions: &[&str]) -> PolicySpec {
        let networks = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect();
        PolicySpec {
            gateway: None,
            subject: crate::spec::Subject::Subnets(Vec::new()),
            destinations: networks(destinations),
            exceptions: networks(exceptions),
            priority,
            egress_ip: Vec::new(),
        }
    }

    fn winners(policies: &[(&str, i64, PolicySpec)]) -> Vec<(String, String)> {
        let all: Vec<RangeClaim> = policies
            .iter()
            .flat_map(|(name, created, spec)| claims(&PolicyName::from(*name), spec, *created))
            .collect();
        resolve_overlaps(&all)
            .into_iter()
            .map(|stretch| (stretch.range.to_string(), stretch.policy.to_string()))
            .collect()
    }

    fn owned(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter()
            .map(|(range, policy)| ((*range).to_owned(), (*policy).to_owned()))
            .collect()
    }

    #[test]
    fn the_lower_priority_number_wins_over_the_longer_prefix() {
        let got = winners(&[
            ("a", 1, spec(10, &["10.0.0.0/8"], &[])),
            ("b", 1, spec(20, &["10.1.0.0/16"], &[])),
        ]);
        assert_eq!(got, owned(&[("10.0.0.0/8", "a")]));
    }

    #[test]
    fn the_longer_prefix_wins_then_the_older_policy_then_the_name() {
        let got = winners(&[
            ("wide", 1, spec(10, &["10.0.0.0/30"], &[])),
            ("narrow", 2, spec(10, &["10.0.0.1/32"], &[])),
            ("old", 1, spec(10, &["10.0.1.0/32"], &[])),
            ("new", 2, spec(10, &["10.0.1.0/32"], &[])),
            ("z", 1, spec(10, &["10.0.2.0/32"], &[])),
            ("y", 1, spec(10, &["10.0.2.0/32"], &[])),
        ]);
        let expected = [
            ("10.0.0.0", "wide"),
            ("10.0.0.1", "narrow"),
            ("10.0.0.2/31", "wide"),
            ("10.0.1.0", "old"),
            ("10.0.2.0", "y"),
        ];
        assert_eq!(got, owned(&expected));
    }

    #[test]
    fn exceptions_cut_holes_in_their_own_policy_only() {
        let got = winners(&[
            ("a", 1, spec(10, &["10.0.0.0/30"], &["10.0.0.1/32"])),
            ("b", 1, spec(20, &["10.0.0.0/31"], &[])),
        ]);
        assert_eq!(
            got,
            owned(&[("10.0.0.0", "a"), ("10.0.0.1", "b"), ("10.0.0.2/31", "a")])
        );
    }

    #[test]
    fn a_policy_without_destinations_claims_everything() {
        let got = winners(&[("a", 1, spec(10, &[], &["0.0.0.0/1"]))]);
        assert_eq!(got, owned(&[("128.0.0.0/1", "a"), ("::/0", "a")]));
    }

    /// Networks of a small world, so that they often touch, at both ends of the address space.
    fn network() -> impl Strategy<Value = ipnet::IpNet> {
        (any::<bool>(), any::<bool>(), 0..16_u32, 26..=32_u8).prop_map(
            |(v6, high, host, prefix)| {
                let top = if high { u32::MAX - 15 } else { 0 };
                let net = if v6 {
                    let address = u128::from(host) + if high { u128::MAX - 15 } else { 0 };
                    ipnet::IpNet::new(std::net::Ipv6Addr::from_bits(address).into(), prefix + 96)
                } else {
                    ipnet::IpNet::new(std::net::Ipv4Addr::from_bits(top + host).into(), prefix)
                };
                net.unwrap().trunc()
            },
        )
    }

    fn naive(policies: &[(PolicyName, i64, PolicySpec)], address: IpAddr) -> Option<PolicyName> {
        let mut best: Option<(u32, Reverse<u8>, i64, PolicyName)> = None;
        for (name, created, spec) in policies {
            if spec.exceptions.iter().any(|net| net.contains(&address)) {
                continue;
            }
            for net in spec
                .destinations
                .iter()
                .filter(|net| net.contains(&address))
            {
                let rank = (
                    spec.priority,
                    Reverse(net.prefix_len()),
                    *created,
                    name.clone(),
                );
                if best.as_ref().is_none_or(|best| rank < *best) {
                    best = Some(rank);
                }
            }
        }
        best.map(|(.., name)| name)
    }

    proptest! {
        #[test]
        fn ranges_are_disjoint_and_say_what_a_naive_reader_says(
            policies in prop::collection::vec((0..3_u32, 0..3_i64, prop::collection::vec(network(), 1..4), prop::collection::vec(network(), 0..3)), 1..6)
        ) {
            let policies: Vec<(PolicyName, i64, PolicySpec)> = policies
                .into_iter()
                .enumerate()
                .map(|(index, (priority, created, destinations, exceptions))| {
                    let spec = PolicySpec { destinations, exceptions, ..spec(priority, &[], &[]) };
                    (PolicyName::from(format!("p{index}")), created, spec)
                })
                .collect();
            let all: Vec<RangeClaim> = policies.iter().flat_map(|(name, created, spec)| claims(name, spec, *created)).collect();
            let stretches = resolve_overlaps(&all);
            for pair in stretches.windows(2) {
                prop_assert!(pair[0].range.last() < pair[1].range.first());
            }
            let mut asked: BTreeSet<IpAddr> = BTreeSet::new();
            for claim in &all {
                for bound in [claim.range.first(), claim.range.last()] {
                    asked.insert(bound);
                    asked.extend(range_successor(bound));
                    asked.extend(range_predecessor(bound));
                }
            }
            for address in asked {
                let got = stretches.iter().find(|stretch| stretch.range.contains(address)).map(|stretch| stretch.policy.clone());
                prop_assert_eq!(got, naive(&policies, address), "{}", address);
            }
        }
    }
}
