//! What the agent says of its node: devices, and whether tunnel and policy are as they must be.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use imbl::OrdMap;
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Condition, jiff::Timestamp};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::{sync::watch, time::Instant};

use super::untracked::Tracking;
use crate::{
    Error, ErrorKind, Underlay,
    api::{
        self, AddressConflict, EgressNode, EgressNodePhase, EgressNodeStatus, Interface,
        PortsWanted, TunnelMtu,
    },
    model::{Family, MacAddress, NodeName},
    plan::Overlap,
    runtime::{
        agent::driver_health::Record,
        kube::{backoff::Backoff, conditions::stamp, errors, observed::Observed},
        metrics::WriteMetrics,
        time::wait_until,
    },
};

/// Condition: the tunnel and the routes into it are built.
pub(crate) const TUNNEL_READY: &str = EgressNodeStatus::TUNNEL_READY;
/// Condition: classification and translation are in the kernel.
pub(crate) const POLICY_PROGRAMMED: &str = "PolicyProgrammed";

/// Condition: the host has or reaches some of the tunnel's addresses by other means; they are not
/// used. Absent where none are.
pub(crate) const NETWORK_OVERLAP: &str = "NetworkOverlap";

/// Condition: nothing says which addresses pods have, or pods have others. Absent where they are
/// known.
pub(crate) const POD_NETWORKS_UNKNOWN: &str = "PodNetworksUnknown";

/// What is done about it, and what can be. Names no pod: each message that changes is a write, and
/// an event for every other agent.
pub(crate) const POD_NETWORKS_ADVICE: &str = "neither Node.spec.podCIDRs nor an object of the CNI says which addresses pods have, or pods have \
     others; until a pod is seen, what comes by other devices than the node's uplinks waits before it reaches a governed destination, and pods of \
     other nodes are recognised one by one; set clusterCIDRs.extra to the networks of pods and services";

/// What of its relay a gateway node can say.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Relaying {
    /// It passes nothing on for others.
    #[default]
    NotAsked,
    /// It shall, and this host can't.
    Lacking(String),
    /// It shall.
    Asked(Record),
}

/// Condition: no rule of others takes packets of pods out of connection tracking. Absent where
/// nobody looks.
pub(crate) const PODS_TRACKED: &str = "PodsTracked";

/// What follows, and what can be done about it.
const UNTRACKED_ADVICE: &str = "what policies govern of these packets is dropped (counted as drop_untracked); take pods, and what they talk to, out \
     of these rules";

/// How many overlapping addresses, or rules, a message names.
const SAID: usize = 3;

/// What is to be told.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Report {
    pub(crate) underlay: OrdMap<Family, Underlay>,
    pub(crate) interfaces: Vec<Interface>,
    /// The controller gave the node an address.
    pub(crate) addressed: bool,
    /// Largest packets that the tunnel takes in.
    pub(crate) tunnel_mtu: OrdMap<Family, u32>,
    /// Overlay addresses that its host has or reaches by other means.
    pub(crate) overlaps: Vec<Overlap>,
    /// Egress addresses that somebody else has.
    pub(crate) conflicts: BTreeMap<IpAddr, MacAddress>,
    /// Egress addresses that it may take over.
    pub(crate) silent: BTreeSet<IpAddr>,
    /// Egress addresses that it translates to itself, and how many units of ports it needs of each.
    pub(crate) ports: BTreeMap<IpAddr, u16>,
    /// Nothing says which addresses pods have.
    pub(crate) pod_networks_unknown: bool,
    /// What others take out of connection tracking.
    pub(crate) tracking: Tracking,
    pub(crate) tunnel: Record,
    pub(crate) steering: Record,
    pub(crate) policy: Record,
    pub(crate) relay: Relaying,
    /// Which policy backend is at work, and why.
    pub(crate) backend: Option<String>,
}

impl Report {
    pub(crate) fn is_tunnel_ready(&self) -> bool {
        self.addressed && self.tunnel == Record::Good && self.steering == Record::Good
    }

    /// The fields that are the agent's; when its conditions took their status is not known here.
    pub(crate) fn status(&self) -> EgressNodeStatus {
        let mut conditions = vec![self.policy_programmed(), self.tunnel_ready()];
        if !self.overlaps.is_empty() {
            conditions.push(condition(
                NETWORK_OVERLAP,
                "True",
                "NetworkOverlap",
                self.overlapping(),
            ));
        }
        if self.pod_networks_unknown {
            conditions.push(condition(
                POD_NETWORKS_UNKNOWN,
                "True",
                "NotTold",
                POD_NETWORKS_ADVICE.to_owned(),
            ));
        }
        conditions.extend(self.pods_tracked());
        conditions.extend(self.relay_ready());
        let address = |family| {
            self.underlay
                .get(&family)
                .map(|underlay| underlay.address.to_string())
        };
        let parent = self
            .underlay
            .get(&Family::V4)
            .or_else(|| self.underlay.get(&Family::V6));
        EgressNodeStatus {
            phase: self.is_tunnel_ready().then_some(EgressNodePhase::Succeeded),
            physical_interface: parent.map(|underlay| underlay.device.clone()),
            physical_interface_ipv4: address(Family::V4),
            physical_interface_ipv6: address(Family::V6),
            tunnel_mtu: self.tunnel_mtu(),
            interfaces: self.interfaces.clone(),
            address_conflicts: self
                .conflicts
                .iter()
                .map(|(address, other)| AddressConflict {
                    address: address.to_string(),
                    hardware_address: other.to_string(),
                })
                .collect(),
            silent_addresses: self.silent.iter().map(ToString::to_string).collect(),
            ports_wanted: self
                .ports
                .iter()
                .map(|(address, units)| PortsWanted {
                    address: address.to_string(),
                    units: *units,
                })
                .collect(),
            conditions,
            ..EgressNodeStatus::default()
        }
    }

    fn tunnel_mtu(&self) -> Option<TunnelMtu> {
        let of = |family| self.tunnel_mtu.get(&family).copied();
        (!self.tunnel_mtu.is_empty()).then(|| TunnelMtu {
            ipv4: of(Family::V4),
            ipv6: of(Family::V6),
        })
    }

    fn relay_ready(&self) -> Option<Condition> {
        match &self.relay {
            Relaying::NotAsked => None,
            Relaying::Lacking(lacking) => Some(condition(
                EgressNodeStatus::RELAY_READY,
                "False",
                "Unsupported",
                lacking.clone(),
            )),
            Relaying::Asked(Record::Good) => Some(condition(
                EgressNodeStatus::RELAY_READY,
                "True",
                "Programmed",
                "what pods' own nodes translate is passed on, both ways".to_owned(),
            )),
            Relaying::Asked(record) => Some(unfinished(EgressNodeStatus::RELAY_READY, record)),
        }
    }

    fn tunnel_ready(&self) -> Condition {
        match [&self.tunnel, &self.steering]
            .into_iter()
            .find(|record| **record != Record::Good)
        {
            Some(record) => unfinished(TUNNEL_READY, record),
            None if !self.addressed && !self.overlaps.is_empty() => {
                condition(TUNNEL_READY, "False", "NetworkOverlap", self.overlapping())
            }
            None if !self.addressed => condition(
                TUNNEL_READY,
                "False",
                "NoAddress",
                "the node has no address in the overlay yet".to_owned(),
            ),
            None => condition(
                TUNNEL_READY,
                "True",
                "Built",
                "tunnel and routes are built".to_owned(),
            ),
        }
    }

    /// The first ones: with a thousand nodes there may be as many.
    fn overlapping(&self) -> String {
        format!(
            "{}; choose another tunnel.ipv4CIDR or tunnel.ipv6CIDR",
            first(self.overlaps.iter())
        )
    }

    fn pods_tracked(&self) -> Option<Condition> {
        let (status, reason, message) = match &self.tracking {
            Tracking::NotAsked => return None,
            Tracking::NotRead => (
                "Unknown",
                "NotRead",
                "others' rules were not read yet".to_owned(),
            ),
            Tracking::Read(rules) if rules.is_empty() => (
                "True",
                "Tracked",
                "no rule of others takes packets of pods out of connection tracking".to_owned(),
            ),
            Tracking::Read(rules) => (
                "False",
                "UntrackedByOthers",
                format!("{}; {UNTRACKED_ADVICE}", first(rules.iter())),
            ),
        };
        Some(condition(PODS_TRACKED, status, reason, message))
    }

    fn policy_programmed(&self) -> Condition {
        match &self.policy {
            Record::Good => {
                // No number of entries: every new pod would be a write, and an event for every
                // other agent. The metrics have it.
                let backend = self
                    .backend
                    .as_deref()
                    .map(|backend| format!("in {backend}"))
                    .unwrap_or_default();
                condition(POLICY_PROGRAMMED, "True", "Programmed", backend)
            }
            record => unfinished(POLICY_PROGRAMMED, record),
        }
    }
}

/// The first few, and how many more there are.
fn first<T: ToString>(all: impl ExactSizeIterator<Item = T>) -> String {
    let more = all
        .len()
        .checked_sub(SAID)
        .filter(|more| *more > 0)
        .map(|more| format!("; and {more} more"));
    let said: Vec<_> = all.take(SAID).map(|one| one.to_string()).collect();
    format!("{}{}", said.join("; "), more.unwrap_or_default())
}

fn unfinished(name: &str, record: &Record) -> Condition {
    match record {
        Record::Failed { kind, message } => {
            condition(name, "False", reason(*kind), message.clone())
        }
        Record::Good | Record::Unknown => {
            condition(name, "Unknown", "NotTried", "not tried yet".to_owned())
        }
    }
}

/// A category in the form of a condition's reason.
fn reason(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Conflict => "Conflict",
        ErrorKind::Invalid => "Invalid",
        ErrorKind::Permission => "Permission",
        ErrorKind::Transient => "Transient",
        ErrorKind::Unsupported => "Unsupported",
    }
}

fn condition(name: &str, status: &str, reason: &str, message: String) -> Condition {
    api::condition(name, status, reason, message, None)
}

/// How a status that is to be written compares with what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Difference {
    /// Nothing to write.
    None,
    /// Only words of messages, such as the number of entries: not urgent.
    Messages,
    /// Something that others act on.
    Substance,
}

fn difference(next: &EgressNodeStatus, existing: &EgressNodeStatus) -> Difference {
    let succeeded = |status: &EgressNodeStatus| status.phase == Some(EgressNodePhase::Succeeded);
    let facts = |status: &EgressNodeStatus| EgressNodeStatus {
        physical_interface: status.physical_interface.clone(),
        physical_interface_ipv4: status.physical_interface_ipv4.clone(),
        physical_interface_ipv6: status.physical_interface_ipv6.clone(),
        tunnel_mtu: status.tunnel_mtu,
        interfaces: status.interfaces.clone(),
        address_conflicts: status.address_conflicts.clone(),
        silent_addresses: status.silent_addresses.clone(),
        ports_wanted: status.ports_wanted.clone(),
        ..EgressNodeStatus::default()
    };
    let conditions = |status: &EgressNodeStatus, words: bool| {
        let mut conditions: Vec<_> = status
            .conditions
            .iter()
            .map(|condition| {
                // Ignore a changed message when only its wording may differ (failures); do not
                // ignore it when the state changed.
                let good = condition
                    .message
                    .chars()
                    .filter(|c| !c.is_ascii_digit() && condition.status == "True")
                    .collect();
                let message = if words {
                    condition.message.clone()
                } else {
                    good
                };
                (
                    condition.type_.clone(),
                    condition.status.clone(),
                    condition.reason.clone(),
                    message,
                )
            })
            .collect();
        conditions.sort();
        conditions
    };
    if succeeded(next) != succeeded(existing)
        || facts(next) != facts(existing)
        || conditions(next, false) != conditions(existing, false)
    {
        Difference::Substance
    } else if conditions(next, true) != conditions(existing, true) {
        Difference::Messages
    } else {
        Difference::None
    }
}

/// Writes the node's status whenever it differs from what is there; a slow API server keeps nothing
/// else waiting.
pub(crate) struct StatusWriter {
    pub(crate) nodes: Api<EgressNode>,
    pub(crate) node: NodeName,
    pub(crate) manager: &'static str,
    pub(crate) backoff: Backoff,
    /// How long a change of mere words may wait.
    pub(crate) patience: Duration,
    pub(crate) metrics: WriteMetrics,
}

impl StatusWriter {
    /// Writes until what is to be told ends.
    pub(crate) async fn run(
        mut self,
        mut reports: watch::Receiver<Option<Report>>,
        mut observed: watch::Receiver<Option<Observed<EgressNodeStatus>>>,
    ) {
        let mut held: Option<Observed<EgressNodeStatus>> = None;
        let mut written = Instant::now();
        loop {
            match observed.borrow_and_update().clone() {
                Some(seen) if held.as_ref().is_some_and(|held| seen.is_outdated_by(held)) => {}
                seen => held = seen,
            }
            let report = reports.borrow_and_update().clone();
            let again = match (&report, &held) {
                (Some(report), Some(existing)) => {
                    let mut next = report.status();
                    stamp(
                        &mut next.conditions,
                        &existing.status.conditions,
                        Timestamp::now(),
                    );
                    let patient_until =
                        Some(written + self.patience).filter(|until| *until > Instant::now());
                    match (difference(&next, &existing.status), patient_until) {
                        (Difference::None, _) => None,
                        (Difference::Messages, Some(until)) => Some(until),
                        _ => match self.write(&next).await {
                            Ok(answer) => {
                                held = Some(answer);
                                written = Instant::now();
                                self.backoff.succeeded();
                                continue;
                            }
                            Err(error) => {
                                let object = format!("EgressNode/{}", self.node);
                                tracing::warn!(
                                    object,
                                    kind = error.kind.as_str(),
                                    error = error.chain(),
                                    "cannot write EgressNode status"
                                );
                                Some(Instant::now() + self.backoff.delay())
                            }
                        },
                    }
                }
                _ => None,
            };
            let going = tokio::select! {
                changed = reports.changed() => changed.is_ok(),
                changed = observed.changed() => changed.is_ok(),
                () = wait_until(again) => true,
            };
            if !going {
                return;
            }
        }
    }

    async fn write(&self, status: &EgressNodeStatus) -> Result<Observed<EgressNodeStatus>, Error> {
        let body = json!({
            "apiVersion": <EgressNode as kube::Resource>::api_version(&()),
            "kind": <EgressNode as kube::Resource>::kind(&()),
            "metadata": {"name": self.node.as_str()},
            "status": status,
        });
        let parameters = PatchParams::apply(self.manager).force();
        let result = self
            .nodes
            .patch_status(self.node.as_str(), &parameters, &Patch::Apply(&body))
            .await;
        let result = result.map_err(|error| {
            errors::from_api(error, format!("write status of EgressNode {}", self.node))
        });
        self.metrics.wrote(
            "EgressNode",
            result.as_ref().map(|_| ()).map_err(|error| error.kind),
        );
        result.map(|node| Observed::new(&node, node.status.clone().unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;
    use crate::HostRoute;

    fn report() -> Report {
        let good = || Record::Good;
        Report {
            addressed: true,
            tunnel: good(),
            steering: good(),
            policy: good(),
            ..Report::default()
        }
    }

    #[test]
    fn a_built_tunnel_is_ready_and_one_without_an_address_is_not() {
        let status = report().status();
        assert_eq!(status.phase, Some(EgressNodePhase::Succeeded));
        assert!(
            status
                .conditions
                .iter()
                .all(|condition| condition.status == "True")
        );
        let status = Report {
            addressed: false,
            ..report()
        }
        .status();
        assert_eq!(status.phase, None);
        assert_eq!(status.conditions[1].reason, "NoAddress");
    }

    #[test]
    fn an_address_that_the_host_has_otherwise_is_named_with_what_has_it() {
        let overlap = |node: &str, address: &str| {
            let route = HostRoute {
                network: "172.31.16.0/20".parse().unwrap(),
                device: "eth0".to_owned(),
                gateway: None,
            };
            Overlap {
                node: node.into(),
                address: address.parse().unwrap(),
                route,
            }
        };
        let status = Report {
            overlaps: vec![overlap("other", "172.31.16.4")],
            ..report()
        }
        .status();
        assert_eq!(
            status.phase,
            Some(EgressNodePhase::Succeeded),
            "the others are reached"
        );
        let said = status
            .conditions
            .iter()
            .find(|condition| condition.type_ == NETWORK_OVERLAP)
            .unwrap();
        assert!(
            said.message.starts_with("the tunnel address 172.31.16.4 of node other lies in 172.31.16.0/20, which the host has on eth0; "),
            "{said:?}"
        );
        let status = Report {
            addressed: false,
            overlaps: vec![overlap("own", "172.31.16.4"); 5],
            ..report()
        }
        .status();
        assert_eq!(
            (status.phase, status.conditions[1].reason.as_str()),
            (None, "NetworkOverlap")
        );
        assert!(
            status.conditions[1]
                .message
                .contains("; and 2 more; choose another tunnel.ipv4CIDR"),
            "{status:?}"
        );
    }

    #[test]
    fn the_ports_that_it_asks_for_are_told_at_once() {
        let status = Report {
            ports: [([10, 6, 0, 60].into(), 4)].into(),
            ..report()
        }
        .status();
        let wanted = PortsWanted {
            address: "10.6.0.60".to_owned(),
            units: 4,
        };
        assert_eq!(status.ports_wanted, [wanted]);
        assert_eq!(
            difference(&status, &report().status()),
            Difference::Substance
        );
        // What the controller says of them is nothing that the agent puts right.
        let existing = EgressNodeStatus {
            port_blocks: vec![api::AddressPorts::default()],
            ..status.clone()
        };
        assert_eq!(difference(&status, &existing), Difference::None);
    }

    #[test]
    fn what_others_take_out_of_connection_tracking_is_named() {
        let said = |tracking| {
            let status = Report {
                tracking,
                ..report()
            }
            .status();
            let condition = status
                .conditions
                .into_iter()
                .find(|condition| condition.type_ == PODS_TRACKED);
            condition.map(|condition| (condition.status, condition.reason, condition.message))
        };
        assert_eq!(said(Tracking::NotAsked), None);
        assert_eq!(said(Tracking::NotRead).unwrap().0, "Unknown");
        assert_eq!(said(Tracking::Read(BTreeSet::new())).unwrap().0, "True");
        let rules = (1..=5)
            .map(|number| format!("nftables table inet hardening, chain pre, handle {number}"));
        let (status, reason, message) = said(Tracking::Read(rules.collect())).unwrap();
        assert_eq!(
            (status.as_str(), reason.as_str()),
            ("False", "UntrackedByOthers")
        );
        assert!(
            message.starts_with("nftables table inet hardening, chain pre, handle 1; nftables"),
            "{message}"
        );
        assert!(
            message.contains("handle 3; and 2 more; what policies govern"),
            "{message}"
        );
    }

    #[test]
    fn a_failed_driver_is_told_with_its_reason() {
        let failed = Record::Failed {
            kind: ErrorKind::Unsupported,
            message: "no nf_tables".to_owned(),
        };
        let status = Report {
            policy: failed.clone(),
            ..report()
        }
        .status();
        assert_eq!(
            (
                status.conditions[0].status.as_str(),
                status.conditions[0].reason.as_str()
            ),
            ("False", "Unsupported")
        );
        assert_eq!(status.phase, Some(EgressNodePhase::Succeeded));
        let status = Report {
            steering: failed,
            ..report()
        }
        .status();
        assert_eq!(
            (status.phase, status.conditions[1].message.as_str()),
            (None, "no nf_tables")
        );
    }

    #[test]
    fn the_words_of_a_failure_are_not_urgent_and_the_time_of_transition_is_no_difference() {
        let failed = |message: &str| Record::Failed {
            kind: ErrorKind::Transient,
            message: message.to_owned(),
        };
        let status = Report {
            policy: failed("busy"),
            ..report()
        }
        .status();
        let mut existing = EgressNodeStatus {
            tunnel_mac: Some("66:00:00:00:00:01".to_owned()),
            ..status.clone()
        };
        existing.conditions[0].last_transition_time = Time(Timestamp::from_second(7).unwrap());
        existing.conditions.reverse();
        assert_eq!(difference(&status, &existing), Difference::None);
        assert_eq!(
            difference(
                &Report {
                    policy: failed("busy again"),
                    ..report()
                }
                .status(),
                &existing
            ),
            Difference::Messages
        );
        existing.phase = Some(EgressNodePhase::Init);
        assert_eq!(difference(&status, &existing), Difference::Substance);
    }
}
