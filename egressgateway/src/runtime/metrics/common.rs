//! What both daemons count.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter as Count,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use crate::ErrorKind;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct WatchLabel {
    watch: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct KindLabel {
    pub(super) kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct WriteLabels {
    object: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

/// What every watching daemon counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct WatchMetrics {
    events: Family<WatchLabel, Count>,
    restarts: Family<WatchLabel, Count>,
    synced: Gauge,
}

impl WatchMetrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register(
            "watch_events",
            "Objects received from lists and watches",
            self.events.clone(),
        );
        registry.register(
            "watch_restarts",
            "Lists and watches that failed and were started again",
            self.restarts.clone(),
        );
        registry.register(
            "synced",
            "Whether the initial sync is complete (1); nothing is written before",
            self.synced.clone(),
        );
    }

    /// What one watch counts.
    pub(crate) fn events(&self, watch: &'static str) -> Count {
        self.events.get_or_create(&WatchLabel { watch }).clone()
    }

    pub(crate) fn restarted(&self, watch: &'static str) {
        self.restarts.get_or_create(&WatchLabel { watch }).inc();
    }

    pub(crate) fn synced(&self) {
        self.synced.set(1);
    }
}

/// What is counted of a Lease.
#[derive(Clone, Debug, Default)]
pub(crate) struct LeaseMetrics {
    renewals: Count,
    failures: Family<KindLabel, Count>,
}

impl LeaseMetrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register(
            "lease_renewals",
            "Successful renewals of this daemon's Lease",
            self.renewals.clone(),
        );
        registry.register(
            "lease_failures",
            "Failed renewals of this daemon's Lease",
            self.failures.clone(),
        );
    }

    pub(crate) fn renewed(&self) {
        self.renewals.inc();
    }

    pub(crate) fn failed(&self, kind: ErrorKind) {
        self.failures
            .get_or_create(&KindLabel {
                kind: kind.as_str(),
            })
            .inc();
    }
}

/// What is counted of requests that change objects.
#[derive(Clone, Debug, Default)]
pub(crate) struct WriteMetrics {
    writes: Family<WriteLabels, Count>,
}

impl WriteMetrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register(
            "api_writes",
            "Requests that change objects, by kind of object and result",
            self.writes.clone(),
        );
    }

    pub(crate) fn wrote(&self, object: &'static str, result: Result<(), ErrorKind>) {
        let result = result.map_or_else(ErrorKind::as_str, |()| "ok");
        self.writes
            .get_or_create(&WriteLabels { object, result })
            .inc();
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
        registry.register(
            "config_reloads",
            "Configuration files that changed while the daemon ran, by result",
            self.results.clone(),
        );
        registry.register(
            "config_fields_waiting",
            "Fields of the configuration that changed and wait for a restart",
            self.waiting.clone(),
        );
    }

    /// A file was taken in which so many fields are others, of which so many wait for a restart.
    pub fn taken(&self, changed: usize, waiting: usize) {
        self.waiting.set(number(waiting));
        if changed > 0 {
            self.results
                .get_or_create(&ResultLabel { result: "ok" })
                .inc();
        }
    }

    /// A file was refused.
    pub fn refused(&self) {
        self.results
            .get_or_create(&ResultLabel { result: "refused" })
            .inc();
    }
}

/// From a tenth of a millisecond to about half a minute.
pub(super) fn histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.0001, 2.0, 19))
}

pub(super) fn number(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
