//! One leader among several: a Lease, replaced only on the version that was read, and believed expired only after it stood still
//! for its duration on this process's own clock.

use std::time::Duration;

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, api::PostParams};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{backoff::shortened, failure, metrics::LeaseMetrics, presence::seconds};
use crate::Error;

/// How leadership is held.
#[derive(Clone, Debug)]
pub struct ElectionSettings {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of the Lease.
    pub name: String,
    /// This candidate: unique among all, such as the pod's name.
    pub identity: String,
    /// How long leadership lasts without being renewed, in whole seconds.
    pub duration: Duration,
    /// How often the leader renews and the others look: a fraction of `duration`.
    pub retry: Duration,
}

impl ElectionSettings {
    /// Leadership of 15 seconds, renewed every 3, by Lease `egressgateway-controller`.
    pub fn new(namespace: impl Into<String>, identity: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: "egressgateway-controller".to_owned(),
            identity: identity.into(),
            duration: Duration::from_secs(15),
            retry: Duration::from_secs(3),
        }
    }
}

/// Until when this process may act as the leader; none: it may not. It must look at the clock before each write.
pub(super) type Leading = Option<Instant>;

/// A candidate.
pub(super) struct Election {
    leases: Api<Lease>,
    settings: ElectionSettings,
    metrics: LeaseMetrics,
    /// The other's record as last seen, and since when it stood still.
    rival: Option<(Option<String>, Instant)>,
}

impl Election {
    pub(super) fn new(client: kube::Client, settings: ElectionSettings, metrics: LeaseMetrics) -> Self {
        Self { leases: Api::namespaced(client, &settings.namespace), settings, metrics, rival: None }
    }

    /// Stands for election until shutdown, then hands over.
    pub(super) async fn run(mut self, leading: watch::Sender<Leading>, shutdown: CancellationToken) {
        loop {
            let attempt = tokio::time::timeout(self.settings.duration / 2, self.attempt());
            let result = tokio::select! {
                result = attempt => result.unwrap_or_else(|_| Err(Error::new(crate::ErrorKind::Transient, "no answer in time"))),
                () = shutdown.cancelled() => break,
            };
            match result {
                Ok(until) => self.publish(&leading, until),
                Err(error) => {
                    self.metrics.failed(error.kind);
                    tracing::warn!(error = error.chain(), "leader election");
                }
            }
            tokio::select! {
                () = tokio::time::sleep(shortened(self.settings.retry)) => {}
                () = shutdown.cancelled() => break,
            }
        }
        leading.send_replace(None);
        if let Err(error) = tokio::time::timeout(self.settings.retry, self.release()).await.unwrap_or(Ok(())) {
            tracing::warn!(error = error.chain(), "leadership was not handed over");
        }
    }

    fn publish(&self, leading: &watch::Sender<Leading>, until: Leading) {
        if until.is_some() {
            self.metrics.renewed();
        }
        let before = leading.send_replace(until);
        match (before, until) {
            (None, Some(_)) => tracing::info!(identity = self.settings.identity, "leading"),
            (Some(_), None) => tracing::warn!(identity = self.settings.identity, "no longer leading"),
            _ => {}
        }
    }

    /// Looks once, and takes or renews where it may. The end of leadership is counted from before the request was sent.
    async fn attempt(&mut self) -> Result<Leading, Error> {
        let asked = Instant::now();
        let until = Some(asked + self.settings.duration);
        let context = || format!("Lease {}/{}", self.settings.namespace, self.settings.name);
        let Some(lease) = self.leases.get_opt(&self.settings.name).await.map_err(|error| failure::from_api(error, context()))? else {
            let taken = self.leases.create(&PostParams::default(), &self.record(None)).await;
            return taken.map(|_| until).or_else(|error| self.lost(error));
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.clone().unwrap_or_default();
        if holder != self.settings.identity && !holder.is_empty() && !self.expired(&lease, &spec, asked) {
            return Ok(None);
        }
        let record = self.record(Some(&lease));
        match self.leases.replace(&self.settings.name, &PostParams::default(), &record).await {
            Ok(_) => {
                self.rival = None;
                Ok(until)
            }
            Err(error) => self.lost(error),
        }
    }

    /// Somebody else was faster (409): that is an answer, not a failure.
    fn lost(&self, error: kube::Error) -> Result<Leading, Error> {
        match failure::code(&error) {
            Some(409) => Ok(None),
            _ => Err(failure::from_api(error, format!("take Lease {}/{}", self.settings.namespace, self.settings.name))),
        }
    }

    /// Whether the rival's record stood still for its duration.
    fn expired(&mut self, lease: &Lease, spec: &LeaseSpec, now: Instant) -> bool {
        let version = &lease.metadata.resource_version;
        match &self.rival {
            Some((seen, since)) if seen == version => {
                let asked = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
                now >= *since + asked.map_or(self.settings.duration, Duration::from_secs)
            }
            _ => {
                self.rival = Some((version.clone(), now));
                false
            }
        }
    }

    /// The Lease as this candidate wants it; on the version that was read.
    fn record(&self, before: Option<&Lease>) -> Lease {
        let now = MicroTime(Timestamp::now());
        let spec = before.and_then(|lease| lease.spec.clone()).unwrap_or_default();
        let mine = spec.holder_identity.as_deref() == Some(&self.settings.identity);
        let metadata = before.map_or_else(
            || ObjectMeta {
                name: Some(self.settings.name.clone()),
                namespace: Some(self.settings.namespace.clone()),
                ..ObjectMeta::default()
            },
            |lease| lease.metadata.clone(),
        );
        Lease {
            metadata,
            spec: Some(LeaseSpec {
                acquire_time: if mine { spec.acquire_time } else { Some(now.clone()) },
                holder_identity: Some(self.settings.identity.clone()),
                lease_duration_seconds: Some(seconds(self.settings.duration)),
                lease_transitions: Some(spec.lease_transitions.unwrap_or_default() + i32::from(before.is_some() && !mine)),
                renew_time: Some(now),
                ..LeaseSpec::default()
            }),
        }
    }

    /// Lets the next candidate take over at once.
    async fn release(&self) -> Result<(), Error> {
        let context = || format!("release Lease {}/{}", self.settings.namespace, self.settings.name);
        let mut lease = self.leases.get(&self.settings.name).await.map_err(|error| failure::from_api(error, context()))?;
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() != Some(&self.settings.identity) {
            return Ok(());
        }
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        let released = self.leases.replace(&self.settings.name, &PostParams::default(), &lease).await;
        released.map(|_| ()).map_err(|error| failure::from_api(error, context()))
    }
}
