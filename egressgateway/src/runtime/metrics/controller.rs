//! What a controller counts.

use std::{sync::atomic::AtomicU64, time::Duration};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter as Count, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use super::common::{LeaseMetrics, Reloads, WatchMetrics, WriteMetrics, histogram, number};
use crate::controller::ClusterPlan;

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

/// What is counted of admission reviews.
#[derive(Clone, Debug, Default)]
pub(crate) struct AdmissionMetrics {
    reviews: Family<ReviewLabels, Count>,
}

impl AdmissionMetrics {
    fn register(&self, registry: &mut Registry) {
        registry.register(
            "admission_reviews",
            "Admission reviews that were answered, by webhook and result",
            self.reviews.clone(),
        );
    }

    pub(crate) fn answered(&self, webhook: &'static str, allowed: bool) {
        let result = if allowed { "allowed" } else { "refused" };
        self.reviews
            .get_or_create(&ReviewLabels { webhook, result })
            .inc();
    }
}

/// What a controller counts.
#[derive(Clone, Debug)]
pub(crate) struct ControllerMetrics {
    pub(crate) watch: WatchMetrics,
    pub(crate) lease: LeaseMetrics,
    pub(crate) write: WriteMetrics,
    pub(crate) reloads: Reloads,
    pub(crate) admission: AdmissionMetrics,
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
    pub(crate) fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("egressgateway_controller");
        self.watch.register(registry);
        self.lease.register(registry);
        self.write.register(registry);
        self.reloads.register(registry);
        self.admission.register(registry);
        registry.register(
            "leading",
            "Whether this process is the leader",
            self.leading.clone(),
        );
        registry.register(
            "elections",
            "How often this process became the leader",
            self.elections.clone(),
        );
        registry.register(
            "plan_objects",
            "Objects in the last plan, by kind",
            self.objects.clone(),
        );
        registry.register(
            "plan_writes",
            "API writes that the last plan needed",
            self.writes.clone(),
        );
        registry.register(
            "active_changes",
            "Changes of the active nodes of gateways",
            self.active_changes.clone(),
        );
        registry.register(
            "pool_addresses",
            "Egress addresses in the pool of a gateway",
            self.pools.clone(),
        );
        registry.register(
            "pool_addresses_used",
            "Egress addresses assigned to a policy",
            self.used.clone(),
        );
        registry.register(
            "plan_duration_seconds",
            "Time to plan the whole cluster",
            self.plans.clone(),
        );
        registry.register(
            "agents_fresh",
            "Agents with a valid Lease",
            self.ready.clone(),
        );
    }

    pub(crate) fn leading(&self, leading: bool) {
        self.leading.set(i64::from(leading));
    }

    pub(crate) fn elected(&self) {
        self.elections.inc();
    }

    /// A plan was made in so long a time, with so many fresh agents, and came to so many requests.
    pub(crate) fn planned(&self, took: Duration, fresh: usize, writes: usize) {
        self.plans.observe(took.as_secs_f64());
        self.ready
            .set(f64::from(u32::try_from(fresh).unwrap_or(u32::MAX)));
        self.writes.set(number(writes));
    }

    /// What the plan was about.
    pub(crate) fn planned_for(&self, plan: &ClusterPlan) {
        let numbers = [
            ("EgressNode", plan.egress_nodes.len()),
            ("EgressGateway", plan.gateways.len()),
            ("EgressGatewayPolicy", plan.policies.len()),
        ];
        for (object, objects) in numbers {
            self.objects
                .get_or_create(&ObjectLabel { object })
                .set(number(objects));
        }
        // A gateway that is gone, or its pool, is no gateway with an empty pool.
        self.pools.clear();
        self.used.clear();
        for (gateway, status) in &plan.gateways {
            let Some(usage) = &status.ip_usage else {
                continue;
            };
            for (family, pool) in [("ipv4", usage.ipv4), ("ipv6", usage.ipv6)] {
                let labels = PoolLabels {
                    gateway: gateway.as_str().to_owned(),
                    family,
                };
                self.pools.get_or_create(&labels).set(pool.total);
                self.used.get_or_create(&labels).set(pool.used);
            }
        }
    }

    pub(crate) fn active_changed(&self) {
        self.active_changes.inc();
    }
}
