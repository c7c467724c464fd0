//! What an agent counts.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{
        counter::{ConstCounter, Counter as Count},
        family::Family,
        gauge::Gauge,
        histogram::Histogram,
    },
    registry::Registry,
};

use super::common::{
    KindLabel, LeaseMetrics, Reloads, WatchMetrics, WriteMetrics, histogram, number,
};
use crate::{Counter, ErrorKind};

/// Which driver, "tunnel", "steering", "addresses" or "policy".
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct DriverLabel {
    driver: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct DriverErrorLabels {
    driver: &'static str,
    kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OutcomeLabels {
    first: &'static str,
    outcome: &'static str,
}

/// What an agent counts.
#[derive(Clone, Debug)]
pub(crate) struct AgentMetrics {
    pub(crate) watch: WatchMetrics,
    pub(crate) lease: LeaseMetrics,
    pub(crate) write: WriteMetrics,
    pub(crate) reloads: Reloads,
    durations: Family<DriverLabel, Histogram, fn() -> Histogram>,
    errors: Family<DriverErrorLabels, Count>,
    converges: Family<OutcomeLabels, Count>,
    tunnel_ready: Gauge,
    entries: Gauge,
    probes_sent: Count,
    probes_answered: Count,
    probe_failures: Family<KindLabel, Count>,
    gateways_lost: Count,
    gateways_down: Gauge,
    announcements: Count,
    announcement_failures: Family<KindLabel, Count>,
    inquiries: Count,
    inquiry_failures: Family<KindLabel, Count>,
    let_go: Count,
    refused: Count,
    forgotten: Count,
    not_forgotten: Family<KindLabel, Count>,
    holding: Gauge,
    state_failures: Family<KindLabel, Count>,
    packets: Packets,
}

impl Default for AgentMetrics {
    fn default() -> Self {
        Self {
            watch: WatchMetrics::default(),
            lease: LeaseMetrics::default(),
            write: WriteMetrics::default(),
            reloads: Reloads::default(),
            durations: Family::new_with_constructor(histogram),
            errors: Family::default(),
            converges: Family::default(),
            tunnel_ready: Gauge::default(),
            entries: Gauge::default(),
            probes_sent: Count::default(),
            probes_answered: Count::default(),
            probe_failures: Family::default(),
            gateways_lost: Count::default(),
            gateways_down: Gauge::default(),
            announcements: Count::default(),
            announcement_failures: Family::default(),
            inquiries: Count::default(),
            inquiry_failures: Family::default(),
            let_go: Count::default(),
            refused: Count::default(),
            forgotten: Count::default(),
            not_forgotten: Family::default(),
            holding: Gauge::default(),
            state_failures: Family::default(),
            packets: Packets::default(),
        }
    }
}

impl AgentMetrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("egressgateway_agent");
        self.watch.register(registry);
        self.lease.register(registry);
        self.write.register(registry);
        self.reloads.register(registry);
        registry.register(
            "reconcile_duration_seconds",
            "Time that a driver took to plan and apply",
            self.durations.clone(),
        );
        registry.register(
            "reconcile_errors",
            "Failed driver calls, by kind",
            self.errors.clone(),
        );
        registry.register(
            "converges",
            "Converges of the node, by outcome; first is the one after start",
            self.converges.clone(),
        );
        registry.register(
            "tunnel_ready",
            "Whether the tunnel is built",
            self.tunnel_ready.clone(),
        );
        registry.register(
            "policy_entries",
            "Entries of the classification: pods, subnets and destinations",
            self.entries.clone(),
        );
        self.register_network(registry);
        registry.register(
            "connections_ended",
            "Connections ended because they began before their policy or because their path is gone",
            self.forgotten.clone(),
        );
        registry.register(
            "connections_ended_failures",
            "Failed conntrack scans, by kind",
            self.not_forgotten.clone(),
        );
        registry.register(
            "holding",
            "Whether traffic to destinations governed before a boot is blocked (1) until the initial sync",
            self.holding.clone(),
        );
        registry.register(
            "state_failures",
            "Failures to read or write the state file, by kind",
            self.state_failures.clone(),
        );
        registry.register_collector(Box::new(self.packets.clone()));
    }

    /// What is sent to gateway nodes and neighbours.
    fn register_network(&self, registry: &mut Registry) {
        registry.register(
            "probes_sent",
            "Probes sent to gateway nodes",
            self.probes_sent.clone(),
        );
        registry.register(
            "probes_answered",
            "Probe replies received",
            self.probes_answered.clone(),
        );
        registry.register(
            "probe_failures",
            "Probes that could not be sent, by kind",
            self.probe_failures.clone(),
        );
        registry.register(
            "gateways_lost",
            "Times that a gateway node stopped answering probes",
            self.gateways_lost.clone(),
        );
        registry.register(
            "gateways_down",
            "Gateway nodes that do not answer the probes of this node",
            self.gateways_down.clone(),
        );
        registry.register(
            "announcements",
            "Announcements of egress addresses to neighbours",
            self.announcements.clone(),
        );
        registry.register(
            "announcement_failures",
            "Announcements that could not be sent, by kind",
            self.announcement_failures.clone(),
        );
        registry.register(
            "address_inquiries",
            "Address conflict probes sent for held egress addresses while the Lease is overdue",
            self.inquiries.clone(),
        );
        registry.register(
            "address_inquiry_failures",
            "Address conflict probes that could not be sent, by kind",
            self.inquiry_failures.clone(),
        );
        registry.register(
            "addresses_let_go",
            "Held egress addresses released because another node answered for them while the Lease was overdue",
            self.let_go.clone(),
        );
        registry.register(
            "addresses_refused",
            "Egress addresses not taken because another host answered for them",
            self.refused.clone(),
        );
    }

    pub(crate) fn reconciled(
        &self,
        driver: &'static str,
        took: Duration,
        failed: Option<ErrorKind>,
    ) {
        self.durations
            .get_or_create(&DriverLabel { driver })
            .observe(took.as_secs_f64());
        if let Some(kind) = failed {
            self.errors
                .get_or_create(&DriverErrorLabels {
                    driver,
                    kind: kind.as_str(),
                })
                .inc();
        }
    }

    pub(crate) fn converged(&self, first: bool, outcome: &'static str) {
        let first = if first { "true" } else { "false" };
        self.converges
            .get_or_create(&OutcomeLabels { first, outcome })
            .inc();
    }

    pub(crate) fn tunnel_ready(&self, ready: bool) {
        self.tunnel_ready.set(i64::from(ready));
    }

    pub(crate) fn entries(&self, entries: usize) {
        self.entries.set(number(entries));
    }

    pub(crate) fn probe_sent(&self) {
        self.probes_sent.inc();
    }

    pub(crate) fn probe_answered(&self) {
        self.probes_answered.inc();
    }

    pub(crate) fn probe_failed(&self, kind: ErrorKind) {
        self.probe_failures
            .get_or_create(&KindLabel {
                kind: kind.as_str(),
            })
            .inc();
    }

    pub(crate) fn gateway_lost(&self) {
        self.gateways_lost.inc();
    }

    pub(crate) fn gateways_down(&self, nodes: usize) {
        self.gateways_down.set(number(nodes));
    }

    pub(crate) fn announced(&self) {
        self.announcements.inc();
    }

    pub(crate) fn not_announced(&self, kind: ErrorKind) {
        self.announcement_failures
            .get_or_create(&KindLabel {
                kind: kind.as_str(),
            })
            .inc();
    }

    pub(crate) fn inquired(&self) {
        self.inquiries.inc();
    }

    pub(crate) fn not_inquired(&self, kind: ErrorKind) {
        self.inquiry_failures
            .get_or_create(&KindLabel {
                kind: kind.as_str(),
            })
            .inc();
    }

    pub(crate) fn refused(&self) {
        self.refused.inc();
    }

    pub(crate) fn let_go(&self) {
        self.let_go.inc();
    }

    #[cfg(test)]
    pub(crate) fn announcements(&self) -> (u64, u64) {
        let failures = self
            .announcement_failures
            .get_or_create(&KindLabel {
                kind: ErrorKind::Transient.as_str(),
            })
            .get();
        (self.announcements.get(), failures)
    }

    /// Addresses that were let go, questions, and questions that were refused.
    #[cfg(test)]
    pub(crate) fn claims(&self) -> (u64, u64, u64) {
        let refused = self
            .inquiry_failures
            .get_or_create(&KindLabel {
                kind: ErrorKind::Permission.as_str(),
            })
            .get();
        (self.let_go.get(), self.inquiries.get(), refused)
    }

    pub(crate) fn forgotten(&self, number: u64) {
        self.forgotten.inc_by(number);
    }

    pub(crate) fn not_forgotten(&self, kind: ErrorKind) {
        self.not_forgotten
            .get_or_create(&KindLabel {
                kind: kind.as_str(),
            })
            .inc();
    }

    pub(crate) fn holding(&self, holding: bool) {
        self.holding.set(i64::from(holding));
    }

    pub(crate) fn state_failed(&self, kind: ErrorKind) {
        self.state_failures
            .get_or_create(&KindLabel {
                kind: kind.as_str(),
            })
            .inc();
    }

    pub(crate) fn packets(&self, counters: BTreeMap<String, Counter>) {
        *self
            .packets
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = counters;
    }
}

/// The packet filter's counters as they were read last.
#[derive(Clone, Default)]
struct Packets(Arc<Mutex<BTreeMap<String, Counter>>>);

impl fmt::Debug for Packets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Packets")
    }
}

impl Collector for Packets {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let counters = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let kind = ConstCounter::new(0_u64).metric_type();
        let mut family = encoder.encode_descriptor(
            "packets",
            "Packets matched by a rule since the rules were created",
            None,
            kind,
        )?;
        for (rule, counter) in &counters {
            ConstCounter::new(counter.packets)
                .encode(family.encode_family(&[("rule", rule.as_str())])?)?;
        }
        let mut family = encoder.encode_descriptor(
            "bytes",
            "Bytes of packets matched by a rule since the rules were created",
            None,
            kind,
        )?;
        for (rule, counter) in &counters {
            ConstCounter::new(counter.bytes)
                .encode(family.encode_family(&[("rule", rule.as_str())])?)?;
        }
        Ok(())
    }
}
