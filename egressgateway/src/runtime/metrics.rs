//! What the daemons count, in a registry of the embedder's.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU64},
    time::Duration,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{
        counter::{ConstCounter, Counter as Count},
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use crate::{Counter, ErrorKind, controller::ClusterPlan};

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

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct WatchLabel {
    watch: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct WriteLabels {
    object: &'static str,
    result: &'static str,
}

/// Which gateway's pool; "ipv4" or "ipv6".
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PoolLabels {
    gateway: String,
    family: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ObjectLabel {
    object: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ReviewLabels {
    webhook: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

/// What every watching daemon counts.
#[derive(Clone, Debug, Default)]
pub(super) struct WatchMetrics {
    events: Family<WatchLabel, Count>,
    restarts: Family<WatchLabel, Count>,
    synced: Gauge,
}

impl WatchMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("watch_events", "Objects that lists and watches told of", self.events.clone());
        registry.register("watch_restarts", "Lists and watches that failed and were started again", self.restarts.clone());
        registry.register("synced", "Whether everything was listed once (1) or nothing may be written yet (0)", self.synced.clone());
    }

    /// What one watch counts.
    pub(super) fn events(&self, watch: &'static str) -> Count {
        self.events.get_or_create(&WatchLabel { watch }).clone()
    }

    pub(super) fn restarted(&self, watch: &'static str) {
        self.restarts.get_or_create(&WatchLabel { watch }).inc();
    }

    pub(super) fn synced(&self) {
        self.synced.set(1);
    }
}

/// What is counted of a Lease.
#[derive(Clone, Debug, Default)]
pub(super) struct LeaseMetrics {
    renewals: Count,
    failures: Family<KindLabel, Count>,
}

impl LeaseMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("lease_renewals", "Successful renewals of this daemon's Lease", self.renewals.clone());
        registry.register("lease_failures", "Failed renewals of this daemon's Lease", self.failures.clone());
    }

    pub(super) fn renewed(&self) {
        self.renewals.inc();
    }

    pub(super) fn failed(&self, kind: ErrorKind) {
        self.failures.get_or_create(&KindLabel { kind: kind.as_str() }).inc();
    }
}

/// What is counted of requests that change objects.
#[derive(Clone, Debug, Default)]
pub(super) struct WriteMetrics {
    writes: Family<WriteLabels, Count>,
}

impl WriteMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("api_writes", "Requests that change objects, by kind of object and result", self.writes.clone());
    }

    pub(super) fn wrote(&self, object: &'static str, result: Result<(), ErrorKind>) {
        let result = result.map_or_else(ErrorKind::as_str, |()| "ok");
        self.writes.get_or_create(&WriteLabels { object, result }).inc();
    }
}

/// What an agent counts.
#[derive(Clone, Debug)]
pub(super) struct AgentMetrics {
    pub(super) watch: WatchMetrics,
    pub(super) lease: LeaseMetrics,
    pub(super) write: WriteMetrics,
    pub(super) reloads: Reloads,
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
            forgotten: Count::default(),
            not_forgotten: Family::default(),
            holding: Gauge::default(),
            state_failures: Family::default(),
            packets: Packets::default(),
        }
    }
}

/// From a tenth of a millisecond to about half a minute.
fn histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.0001, 2.0, 19))
}

impl AgentMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("egressgateway_agent");
        self.watch.register(registry);
        self.lease.register(registry);
        self.write.register(registry);
        self.reloads.register(registry);
        registry.register("reconcile_duration_seconds", "Time that a driver took to plan and apply", self.durations.clone());
        registry.register("reconcile_errors", "Failures of drivers by kind", self.errors.clone());
        registry.register("converges", "Converges of the node by outcome; first is the one after start", self.converges.clone());
        registry.register("tunnel_ready", "Whether the tunnel is built", self.tunnel_ready.clone());
        registry.register("policy_entries", "Entries of the classification: pods, subnets and destinations", self.entries.clone());
        registry.register("probes_sent", "Probes that were sent to gateway nodes", self.probes_sent.clone());
        registry.register("probes_answered", "Answers to them", self.probes_answered.clone());
        registry.register("probe_failures", "Probes that could not be sent, by kind", self.probe_failures.clone());
        registry.register("gateways_lost", "How often a gateway node was found down", self.gateways_lost.clone());
        registry.register("gateways_down", "Gateway nodes that are down, as seen from here", self.gateways_down.clone());
        registry.register("announcements", "Announcements of egress addresses to neighbours", self.announcements.clone());
        registry.register("announcement_failures", "Announcements that could not be sent, by kind", self.announcement_failures.clone());
        registry.register(
            "address_inquiries",
            "Questions to neighbours who else has an egress address, while the Lease is overdue",
            self.inquiries.clone(),
        );
        registry.register("address_inquiry_failures", "Such questions that could not be sent, by kind", self.inquiry_failures.clone());
        registry.register(
            "addresses_let_go",
            "Egress addresses that were let go because another node answered for them while the Lease was overdue",
            self.let_go.clone(),
        );
        registry.register(
            "connections_ended",
            "Connections that began before the policy that governs them and were ended",
            self.forgotten.clone(),
        );
        registry.register("connections_ended_failures", "Failed looks for such connections, by kind", self.not_forgotten.clone());
        registry.register(
            "holding",
            "Whether traffic to what was governed before a boot waits (1) because not everything was listed yet",
            self.holding.clone(),
        );
        registry.register("state_failures", "Failures to read or write the state file, by kind", self.state_failures.clone());
        registry.register_collector(Box::new(self.packets.clone()));
    }

    pub(super) fn reconciled(&self, driver: &'static str, took: Duration, failed: Option<ErrorKind>) {
        self.durations.get_or_create(&DriverLabel { driver }).observe(took.as_secs_f64());
        if let Some(kind) = failed {
            self.errors.get_or_create(&DriverErrorLabels { driver, kind: kind.as_str() }).inc();
        }
    }

    pub(super) fn converged(&self, first: bool, outcome: &'static str) {
        let first = if first { "true" } else { "false" };
        self.converges.get_or_create(&OutcomeLabels { first, outcome }).inc();
    }

    pub(super) fn tunnel_ready(&self, ready: bool) {
        self.tunnel_ready.set(i64::from(ready));
    }

    pub(super) fn entries(&self, entries: usize) {
        self.entries.set(number(entries));
    }

    pub(super) fn probe_sent(&self) {
        self.probes_sent.inc();
    }

    pub(super) fn probe_answered(&self) {
        self.probes_answered.inc();
    }

    pub(super) fn probe_failed(&self, kind: ErrorKind) {
        self.probe_failures.get_or_create(&KindLabel { kind: kind.as_str() }).inc();
    }

    pub(super) fn gateway_lost(&self) {
        self.gateways_lost.inc();
    }

    pub(super) fn gateways_down(&self, nodes: usize) {
        self.gateways_down.set(number(nodes));
    }

    pub(super) fn announced(&self) {
        self.announcements.inc();
    }

    pub(super) fn not_announced(&self, kind: ErrorKind) {
        self.announcement_failures.get_or_create(&KindLabel { kind: kind.as_str() }).inc();
    }

    pub(super) fn inquired(&self) {
        self.inquiries.inc();
    }

    pub(super) fn not_inquired(&self, kind: ErrorKind) {
        self.inquiry_failures.get_or_create(&KindLabel { kind: kind.as_str() }).inc();
    }

    pub(super) fn let_go(&self) {
        self.let_go.inc();
    }

    #[cfg(test)]
    pub(super) fn announcements(&self) -> (u64, u64) {
        let failures = self.announcement_failures.get_or_create(&KindLabel { kind: ErrorKind::Transient.as_str() }).get();
        (self.announcements.get(), failures)
    }

    /// Addresses that were let go, questions, and questions that were refused.
    #[cfg(test)]
    pub(super) fn claims(&self) -> (u64, u64, u64) {
        let refused = self.inquiry_failures.get_or_create(&KindLabel { kind: ErrorKind::Permission.as_str() }).get();
        (self.let_go.get(), self.inquiries.get(), refused)
    }

    pub(super) fn forgotten(&self, number: u64) {
        self.forgotten.inc_by(number);
    }

    pub(super) fn not_forgotten(&self, kind: ErrorKind) {
        self.not_forgotten.get_or_create(&KindLabel { kind: kind.as_str() }).inc();
    }

    pub(super) fn holding(&self, holding: bool) {
        self.holding.set(i64::from(holding));
    }

    pub(super) fn state_failed(&self, kind: ErrorKind) {
        self.state_failures.get_or_create(&KindLabel { kind: kind.as_str() }).inc();
    }

    pub(super) fn packets(&self, counters: BTreeMap<String, Counter>) {
        *self.packets.0.lock().unwrap_or_else(PoisonError::into_inner) = counters;
    }
}

/// What becomes of a configuration file that changes while a daemon runs; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Reloads {
    results: Family<ResultLabel, Count>,
    waiting: Gauge,
}

impl Reloads {
    /// Registers what is counted.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("config_reloads", "Configuration files that changed while the daemon ran, by result", self.results.clone());
        registry.register("config_fields_waiting", "Fields of the configuration that changed and wait for a restart", self.waiting.clone());
    }

    /// A file was taken in which so many fields are others, of which so many wait for a restart.
    pub fn taken(&self, changed: usize, waiting: usize) {
        self.waiting.set(number(waiting));
        if changed > 0 {
            self.results.get_or_create(&ResultLabel { result: "ok" }).inc();
        }
    }

    /// A file was refused.
    pub fn refused(&self) {
        self.results.get_or_create(&ResultLabel { result: "refused" }).inc();
    }
}

/// What is counted of admission reviews.
#[derive(Clone, Debug, Default)]
pub(super) struct AdmissionMetrics {
    reviews: Family<ReviewLabels, Count>,
}

impl AdmissionMetrics {
    fn register(&self, registry: &mut Registry) {
        registry.register("admission_reviews", "Admission reviews that were answered, by webhook and result", self.reviews.clone());
    }

    pub(super) fn answered(&self, webhook: &'static str, allowed: bool) {
        let result = if allowed { "allowed" } else { "refused" };
        self.reviews.get_or_create(&ReviewLabels { webhook, result }).inc();
    }
}

/// What a controller counts.
#[derive(Clone, Debug)]
pub(super) struct ControllerMetrics {
    pub(super) watch: WatchMetrics,
    pub(super) lease: LeaseMetrics,
    pub(super) write: WriteMetrics,
    pub(super) reloads: Reloads,
    pub(super) admission: AdmissionMetrics,
    leading: Gauge,
    elections: Count,
    plans: Histogram,
    objects: Family<ObjectLabel, Gauge>,
    writes: Gauge,
    active_changes: Count,
    pools: Family<PoolLabels, Gauge>,
    used: Family<PoolLabels, Gauge>,
    ready: Gauge<f64, AtomicU64>,
}

impl Default for ControllerMetrics {
    fn default() -> Self {
        Self {
            watch: WatchMetrics::default(),
            lease: LeaseMetrics::default(),
            write: WriteMetrics::default(),
            reloads: Reloads::default(),
            admission: AdmissionMetrics::default(),
            leading: Gauge::default(),
            elections: Count::default(),
            plans: histogram(),
            objects: Family::default(),
            writes: Gauge::default(),
            active_changes: Count::default(),
            pools: Family::default(),
            used: Family::default(),
            ready: Gauge::default(),
        }
    }
}

impl ControllerMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("egressgateway_controller");
        self.watch.register(registry);
        self.lease.register(registry);
        self.write.register(registry);
        self.reloads.register(registry);
        self.admission.register(registry);
        registry.register("leading", "Whether this process is the leader", self.leading.clone());
        registry.register("elections", "How often this process became the leader", self.elections.clone());
        registry.register("plan_objects", "Objects that the last plan was about, by kind", self.objects.clone());
        registry.register("plan_writes", "Requests that the last plan came to", self.writes.clone());
        registry.register("active_changes", "How often other nodes became a gateway's active ones", self.active_changes.clone());
        registry.register("pool_addresses", "Egress addresses of a gateway's pool", self.pools.clone());
        registry.register("pool_addresses_used", "Of them, those that a policy has", self.used.clone());
        registry.register("plan_duration_seconds", "Time that a plan of the whole cluster took", self.plans.clone());
        registry.register("agents_fresh", "Agents whose Lease is fresh", self.ready.clone());
    }

    pub(super) fn leading(&self, leading: bool) {
        self.leading.set(i64::from(leading));
    }

    pub(super) fn elected(&self) {
        self.elections.inc();
    }

    /// A plan was made in so long a time, with so many fresh agents, and came to so many requests.
    pub(super) fn planned(&self, took: Duration, fresh: usize, writes: usize) {
        self.plans.observe(took.as_secs_f64());
        self.ready.set(f64::from(u32::try_from(fresh).unwrap_or(u32::MAX)));
        self.writes.set(number(writes));
    }

    /// What the plan was about.
    pub(super) fn planned_for(&self, plan: &ClusterPlan) {
        let numbers =
            [("EgressNode", plan.egress_nodes.len()), ("EgressGateway", plan.gateways.len()), ("EgressGatewayPolicy", plan.policies.len())];
        for (object, objects) in numbers {
            self.objects.get_or_create(&ObjectLabel { object }).set(number(objects));
        }
        // A gateway that is gone, or its pool, is no gateway with an empty pool.
        self.pools.clear();
        self.used.clear();
        for (gateway, status) in &plan.gateways {
            let Some(usage) = &status.ip_usage else { continue };
            for (family, pool) in [("ipv4", usage.ipv4), ("ipv6", usage.ipv6)] {
                let labels = PoolLabels { gateway: gateway.as_str().to_owned(), family };
                self.pools.get_or_create(&labels).set(pool.total);
                self.used.get_or_create(&labels).set(pool.used);
            }
        }
    }

    pub(super) fn active_changed(&self) {
        self.active_changes.inc();
    }
}

fn number(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
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
        let counters = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let kind = ConstCounter::new(0_u64).metric_type();
        let mut family = encoder.encode_descriptor("packets", "Packets that met a rule, since the rules were made", None, kind)?;
        for (rule, counter) in &counters {
            ConstCounter::new(counter.packets).encode(family.encode_family(&[("rule", rule.as_str())])?)?;
        }
        let mut family = encoder.encode_descriptor("bytes", "Bytes of packets that met a rule, since the rules were made", None, kind)?;
        for (rule, counter) in &counters {
            ConstCounter::new(counter.bytes).encode(family.encode_family(&[("rule", rule.as_str())])?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{env, fmt::Write, fs, path::Path};

    use prometheus_client::encoding::text::encode;

    use super::*;
    use crate::api::{EgressGatewayStatus, IpUsage, PoolUsage};

    const DOCUMENTATION: &str = "# Metrics

Both daemons serve `/metrics` in the OpenMetrics text format: the agent at port 5810, the controller at 5820. A program that embeds them has the same
in its own registry.

- `driver` is `tunnel`, `steering`, `addresses` or `policy`; `kind` is the kind of an error.
- `rule` is a [counter of the packet filter](datapath.md#the-nftables-table). The agent reads them every 15 seconds; they start anew when the table does.
- The objects that a watch told of are whole lists at the start and single changes afterwards; [what to expect](scale.md).
- `gateway` is an EgressGateway with a pool, `family` is `ipv4` or `ipv6`.
- Converges with `first=\"true\"` and `outcome=\"applied\"` are changes that a restarted agent made: none, where nothing happened meanwhile.

";

    /// One row for each metric of a registry in which every metric has a sample.
    fn rows(registry: &Registry) -> String {
        let mut text = String::new();
        encode(&mut text, registry).unwrap();
        let mut rows = "| metric | type | labels | meaning |\n|---|---|---|---|\n".to_owned();
        for entry in text.split("# HELP ").skip(1) {
            let mut lines = entry.lines();
            let (name, help) = lines.next().and_then(|line| line.split_once(' ')).unwrap();
            let kind = lines.next().and_then(|line| line.rsplit(' ').next()).unwrap();
            let sample = lines.find(|line| !line.starts_with('#')).unwrap();
            let labels = sample.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map_or("", |(labels, _)| labels);
            let labels: Vec<_> = labels.split(',').filter_map(|label| label.split_once('=')).map(|(label, _)| label).collect();
            let labels: Vec<_> = labels.iter().filter(|label| **label != "le").map(|label| format!("`{label}`")).collect();
            let total = if kind == "counter" { "_total" } else { "" };
            writeln!(rows, "| `{name}{total}` | {kind} | {} | {} |", labels.join(", "), help.trim_end_matches('.')).unwrap();
        }
        rows
    }

    fn common(watch: &WatchMetrics, lease: &LeaseMetrics, write: &WriteMetrics, reloads: &Reloads) {
        reloads.refused();
        watch.events("pods").inc();
        watch.restarted("pods");
        lease.failed(ErrorKind::Transient);
        write.wrote("status", Ok(()));
    }

    fn with_a_pool(total: i64, used: i64) -> ClusterPlan {
        let pool = PoolUsage { total, used };
        let status = EgressGatewayStatus { ip_usage: Some(IpUsage { ipv4: pool, ipv6: pool }), ..EgressGatewayStatus::default() };
        ClusterPlan { gateways: [("exit".into(), status)].into(), ..ClusterPlan::default() }
    }

    #[test]
    fn pools_are_shown_as_they_are_and_those_that_are_gone_no_more() {
        let (metrics, mut registry) = (ControllerMetrics::default(), Registry::default());
        metrics.register(&mut registry);
        let shown = || {
            let mut text = String::new();
            encode(&mut text, &registry).unwrap();
            text.lines().filter(|line| line.contains("gateway=\"exit\",family=\"ipv4\"")).map(str::to_owned).collect::<Vec<_>>()
        };
        metrics.planned_for(&with_a_pool(7, 2));
        let labels = "{gateway=\"exit\",family=\"ipv4\"}";
        let of = |name: &str, value: u64| format!("egressgateway_controller_pool_addresses{name}{labels} {value}");
        assert_eq!(shown(), [of("", 7), of("_used", 2)]);
        metrics.planned_for(&ClusterPlan::default());
        assert_eq!(shown(), Vec::<String>::new());
    }

    #[test]
    fn the_documentation_names_every_metric() {
        let (agent, mut agents) = (AgentMetrics::default(), Registry::default());
        common(&agent.watch, &agent.lease, &agent.write, &agent.reloads);
        agent.reconciled("tunnel", Duration::ZERO, Some(ErrorKind::Transient));
        agent.converged(true, "applied");
        agent.not_forgotten(ErrorKind::Transient);
        agent.state_failed(ErrorKind::Transient);
        agent.probe_failed(ErrorKind::Transient);
        agent.not_announced(ErrorKind::Transient);
        agent.not_inquired(ErrorKind::Transient);
        agent.packets([("steered".to_owned(), Counter::default())].into());
        agent.register(&mut agents);
        let (controller, mut controllers) = (ControllerMetrics::default(), Registry::default());
        common(&controller.watch, &controller.lease, &controller.write, &controller.reloads);
        controller.admission.answered("validate", true);
        controller.planned_for(&with_a_pool(7, 1));
        controller.register(&mut controllers);

        let text = format!("{DOCUMENTATION}## Agent\n\n{}\n## Controller\n\n{}", rows(&agents), rows(&controllers));
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
        if env::var_os("UPDATE").is_some_and(|update| update == "1") {
            fs::write(&path, &text).unwrap();
        }
        let written = fs::read_to_string(&path).unwrap_or_default();
        assert!(written == text, "docs/metrics.md differs from the code: run UPDATE=1 cargo test -p egressgateway --lib metrics");
    }
}
