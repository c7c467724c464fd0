//! Rules of others that take packets out of connection tracking, and whether these packets could be
//! governed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::Arc,
};

use async_trait::async_trait;
use ipnet::IpNet;

use crate::Error;

/// Where overlays of others listen, whatever the address: VXLAN by its registered port and by
/// Linux's own, Geneve.
const OVERLAY_PORTS: [u16; 3] = [4789, 8472, 6081];
/// Chains that lead to chains, at most: more than the kernel follows.
const DEPTH: usize = 16;

/// A rule of somebody else that takes packets out of connection tracking before it sees them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UntrackingRule {
    /// Table, chain and the rule's text or handle, for the reader.
    pub place: String,
    /// The packets that it is about.
    pub packets: PacketMatch,
}

impl fmt::Display for UntrackingRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.place)
    }
}

/// What a rule asks of a packet, as far as that tells whose packet it is. Whatever else it asks is
/// left out, so it may be about fewer packets.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct PacketMatch {
    /// The device that it comes in by.
    pub device: Option<String>,
    /// Its source is in one of these.
    pub source: Option<BTreeSet<IpNet>>,
    /// Its destination is in one of these.
    pub destination: Option<BTreeSet<IpNet>>,
    /// Its destination port is one of these.
    pub ports: Option<BTreeSet<u16>>,
    /// It is for an address of the host.
    pub to_host: bool,
    /// Somebody has marked it.
    pub marked: bool,
}

/// What is known of the cluster's addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Networks of services.
    pub services: Vec<IpNet>,
    /// Addresses of nodes.
    pub hosts: BTreeSet<IpAddr>,
}

impl PacketMatch {
    /// About packets that this and `other` are about.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        let either = |one: &Option<BTreeSet<IpNet>>, other: &Option<BTreeSet<IpNet>>| {
            other.clone().or_else(|| one.clone())
        };
        Self {
            device: other.device.clone().or_else(|| self.device.clone()),
            source: either(&self.source, &other.source),
            destination: either(&self.destination, &other.destination),
            ports: other.ports.clone().or_else(|| self.ports.clone()),
            to_host: self.to_host || other.to_host,
            marked: self.marked || other.marked,
        }
    }

    /// Whether what it is about could be a packet of a governed connection, at the pod's node or at
    /// the gateway.
    ///
    /// It can't where the rule names one of these:
    /// - the device `lo`;
    /// - as source or destination only services, and addresses that are never routed (loopback,
    ///   link-local, groups); as source also nodes;
    /// - as destination only nodes or this host, with a destination port: answers from outside come
    ///   to other ports;
    /// - only ports of overlays;
    /// - a mark: who sets it decides, and the rule does not say about what.
    #[must_use]
    pub fn may_be_governed(&self, known: &Surroundings) -> bool {
        let all = |nets: &Option<BTreeSet<IpNet>>, is: &dyn Fn(&IpNet) -> bool| {
            nets.as_ref().is_some_and(|nets| nets.iter().all(is))
        };
        let service = |net: &IpNet| {
            is_never_routed(net) || known.services.iter().any(|services| services.contains(net))
        };
        let node = |net: &IpNet| {
            net.prefix_len() == net.max_prefix_len() && known.hosts.contains(&net.addr())
        };
        let overlay = self
            .ports
            .as_ref()
            .is_some_and(|ports| ports.iter().all(|port| OVERLAY_PORTS.contains(port)));
        let served = self.ports.is_some()
            && (self.to_host || all(&self.destination, &|net| node(net) || service(net)));
        let others = self.device.as_deref() == Some("lo")
            || all(&self.source, &|net| node(net) || service(net))
            || all(&self.destination, &service)
            || served
            || overlay
            || self.marked;
        !others
    }
}

fn is_never_routed(net: &IpNet) -> bool {
    let within = |texts: &[&str]| {
        texts
            .iter()
            .filter_map(|text| text.parse::<IpNet>().ok())
            .any(|never| never.contains(net))
    };
    within(&[
        "127.0.0.0/8",
        "169.254.0.0/16",
        "224.0.0.0/4",
        "::1/128",
        "fe80::/10",
        "ff00::/8",
    ])
}

/// A rule of somebody else.
#[derive(Clone, Debug, Default)]
pub struct ForeignRule {
    /// What it is about.
    pub packets: PacketMatch,
    /// Its place, where it takes packets out of connection tracking.
    pub untracks: Option<String>,
    /// The chains that it leads to.
    pub jumps: Vec<String>,
}

/// A table of somebody else, chain by chain.
#[derive(Clone, Debug, Default)]
pub struct ForeignChains(BTreeMap<String, Vec<ForeignRule>>);

impl ForeignChains {
    /// Puts a rule at the end of a chain.
    pub fn push(&mut self, chain: &str, rule: ForeignRule) {
        self.0.entry(chain.to_owned()).or_default().push(rule);
    }

    /// The rules that take packets out of connection tracking and can be reached from a chain that
    /// the kernel enters. What rules before them let pass or drop is not looked at.
    #[must_use]
    pub fn untracking(&self, entry: &str) -> BTreeSet<UntrackingRule> {
        let (mut found, mut seen) = (BTreeSet::new(), BTreeSet::new());
        self.follow(entry, &PacketMatch::default(), 0, &mut seen, &mut found);
        found
    }

    fn follow(
        &self,
        chain: &str,
        before: &PacketMatch,
        depth: usize,
        seen: &mut BTreeSet<(String, PacketMatch)>,
        found: &mut BTreeSet<UntrackingRule>,
    ) {
        if depth > DEPTH || !seen.insert((chain.to_owned(), before.clone())) {
            return;
        }
        for rule in self.0.get(chain).into_iter().flatten() {
            let packets = before.and(&rule.packets);
            found.extend(rule.untracks.clone().map(|place| UntrackingRule {
                place,
                packets: packets.clone(),
            }));
            for next in &rule.jumps {
                self.follow(next, &packets, depth + 1, seen, found);
            }
        }
    }
}

/// How an agent learns what others take out of connection tracking.
#[async_trait]
pub trait UntrackingRules: Send + Sync {
    /// The rules of others that do, before connection tracking sees what comes in.
    ///
    /// # Errors
    /// When the host's rules can't be read. A host that can't have such rules has none, which is no
    /// error.
    async fn untracking(&self) -> Result<BTreeSet<UntrackingRule>, Error>;

    /// Waits until they may have changed since the last call. By default nobody says so. Cancelling
    /// the wait loses nothing.
    ///
    /// # Errors
    /// When notifications were lost: read again.
    async fn changed(&self) -> Result<(), Error> {
        std::future::pending().await
    }
}

/// What several have found, and the first that notices something.
#[async_trait]
impl UntrackingRules for Vec<Arc<dyn UntrackingRules>> {
    async fn untracking(&self) -> Result<BTreeSet<UntrackingRule>, Error> {
        let mut all = BTreeSet::new();
        for rules in self {
            all.extend(rules.untracking().await?);
        }
        Ok(all)
    }

    async fn changed(&self) -> Result<(), Error> {
        if self.is_empty() {
            return std::future::pending().await;
        }
        futures::future::select_all(self.iter().map(|rules| rules.changed()))
            .await
            .0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> BTreeSet<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn known() -> Surroundings {
        Surroundings {
            services: vec!["10.96.0.0/12".parse().unwrap()],
            hosts: ["10.6.0.11".parse().unwrap()].into(),
        }
    }

    #[test]
    fn what_could_be_a_pods_or_its_answer_is_an_alarm() {
        let any = PacketMatch::default;
        for (packets, meaning) in [
            (any(), "everything"),
            (
                PacketMatch {
                    source: Some(nets(&["10.244.0.0/16"])),
                    ..any()
                },
                "from pods",
            ),
            (
                PacketMatch {
                    destination: Some(nets(&["10.244.0.0/16"])),
                    ..any()
                },
                "answers to pods",
            ),
            (
                PacketMatch {
                    destination: Some(nets(&["10.96.0.10/32", "10.6.1.0/24"])),
                    ..any()
                },
                "a service, and outside",
            ),
            (
                PacketMatch {
                    destination: Some(nets(&["10.6.0.11/32"])),
                    ..any()
                },
                "answers to a gateway",
            ),
            (
                PacketMatch {
                    to_host: true,
                    ..any()
                },
                "answers to a gateway",
            ),
            (
                PacketMatch {
                    ports: Some([53].into()),
                    ..any()
                },
                "resolvers anywhere",
            ),
            (
                PacketMatch {
                    ports: Some([53, 4789].into()),
                    ..any()
                },
                "resolvers anywhere, and overlays",
            ),
            (
                PacketMatch {
                    device: Some("eth0".into()),
                    ..any()
                },
                "what comes by the uplink",
            ),
            (
                PacketMatch {
                    source: Some(nets(&["10.0.0.0/8"])),
                    ..any()
                },
                "services among others",
            ),
        ] {
            assert!(packets.may_be_governed(&known()), "{meaning}");
        }
    }

    #[test]
    fn what_is_the_hosts_own_or_never_leaves_is_none() {
        let any = PacketMatch::default;
        for (packets, meaning) in [
            (
                PacketMatch {
                    device: Some("lo".into()),
                    ..any()
                },
                "loopback",
            ),
            (
                PacketMatch {
                    destination: Some(nets(&["169.254.20.10/32"])),
                    ports: Some([53].into()),
                    ..any()
                },
                "a cache on the node",
            ),
            (
                PacketMatch {
                    destination: Some(nets(&["10.96.0.10/32"])),
                    ports: Some([53].into()),
                    ..any()
                },
                "the cluster's resolver",
            ),
            (
                PacketMatch {
                    source: Some(nets(&["169.254.20.10/32", "10.96.0.10/32"])),
                    ..any()
                },
                "answers of the cache",
            ),
            (
                PacketMatch {
                    to_host: true,
                    ports: Some([22].into()),
                    ..any()
                },
                "a server on the node",
            ),
            (
                PacketMatch {
                    destination: Some(nets(&["10.6.0.11/32"])),
                    ports: Some([6443].into()),
                    ..any()
                },
                "a server on a node",
            ),
            (
                PacketMatch {
                    ports: Some([4789].into()),
                    ..any()
                },
                "an overlay",
            ),
            (
                PacketMatch {
                    marked: true,
                    ..any()
                },
                "what somebody has marked",
            ),
        ] {
            assert!(!packets.may_be_governed(&known()), "{meaning}");
        }
    }

    #[test]
    fn chains_are_followed_with_what_leads_to_them_and_not_for_ever() {
        let mut chains = ForeignChains::default();
        let jump = |to: &str, packets| ForeignRule {
            packets,
            untracks: None,
            jumps: vec![to.to_owned()],
        };
        let untracks = |place: &str| ForeignRule {
            untracks: Some(place.to_owned()),
            ..ForeignRule::default()
        };
        chains.push(
            "PREROUTING",
            jump(
                "OWN",
                PacketMatch {
                    device: Some("lo".into()),
                    ..PacketMatch::default()
                },
            ),
        );
        chains.push(
            "PREROUTING",
            jump(
                "PODS",
                PacketMatch {
                    source: Some(nets(&["10.244.0.0/16"])),
                    ..PacketMatch::default()
                },
            ),
        );
        chains.push("OWN", untracks("own"));
        chains.push("PODS", jump("PODS", PacketMatch::default()));
        chains.push("PODS", untracks("pods"));
        chains.push("ELSEWHERE", untracks("elsewhere"));
        let found: Vec<_> = chains
            .untracking("PREROUTING")
            .into_iter()
            .map(|rule| (rule.packets.may_be_governed(&known()), rule.place))
            .collect();
        assert_eq!(
            found,
            [(false, "own".to_owned()), (true, "pods".to_owned())]
        );
    }
}
