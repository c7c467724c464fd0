//! One leader among several: a Lease, replaced only on the version that was read, and believed
//! expired only after it stood still for its duration on this process's own clock. Who does not
//! lead follows the Lease: it learns of each renewal, and of a leader that hands over, at once.

use std::{pin::pin, time::Duration};

use futures::StreamExt;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{
    Api,
    api::{PostParams, WatchEvent, WatchParams},
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{contact::Contact, errors, owner::OwnerReferenceSource};
use crate::{
    Error,
    runtime::{
        metrics::LeaseMetrics,
        time::{jitter, whole_seconds},
    },
};

/// So many looks at the Lease fit into its duration.
const LOOKS: u32 = 5;

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
    /// How often the leader renews, and the others look where they can't follow: a fraction of
    /// `duration`.
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

    /// The same with leadership of another duration, in whole seconds. Of the looks at the Lease
    /// within it, one must succeed.
    #[must_use]
    pub fn lasting(mut self, duration: Duration) -> Self {
        (self.duration, self.retry) = (duration, duration / LOOKS);
        self
    }
}

/// Until when this process may act as the leader; none: it may not. It must look at the clock
/// before each write.
pub(crate) type Leading = Option<Instant>;

/// A candidate.
pub(crate) struct Election {
    leases: Api<Lease>,
    owners: OwnerReferenceSource,
    settings: ElectionSettings,
    metrics: LeaseMetrics,
    /// The API server's answers.
    contact: watch::Sender<Option<Contact>>,
    /// Whoever leads instead.
    rival: Option<Rival>,
}

/// The other's record as last seen.
struct Rival {
    version: Option<String>,
    /// When it expires unless another version is seen before.
    until: Instant,
}

/// For how long a rival's Lease is followed by one request.
const FOLLOWED: Duration = Duration::from_secs(240);

impl Election {
    pub(crate) fn new(
        client: kube::Client,
        settings: ElectionSettings,
        metrics: LeaseMetrics,
        contact: watch::Sender<Option<Contact>>,
    ) -> Self {
        let owners = OwnerReferenceSource::new(client.clone(), &settings.namespace);
        Self {
            leases: Api::namespaced(client, &settings.namespace),
            owners,
            settings,
            metrics,
            contact,
            rival: None,
        }
    }

    /// Stands for election until shutdown, then hands over.
    pub(crate) async fn run(
        mut self,
        leading: watch::Sender<Leading>,
        shutdown: CancellationToken,
    ) {
        loop {
            let attempt = tokio::time::timeout(self.settings.duration / 2, self.attempt());
            let result = tokio::select! {
                result = attempt => result.unwrap_or_else(|_| Err(Error::new(crate::ErrorKind::Transient, "no answer in time"))),
                () = shutdown.cancelled() => break,
            };
            match result {
                Ok(until) => {
                    heard(&self.contact, &self.settings);
                    self.publish(&leading, until);
                }
                Err(error) => self.failed(&error),
            }
            tokio::select! {
                () = self.pause() => {}
                () = shutdown.cancelled() => break,
            }
        }
        leading.send_replace(None);
        if let Err(error) = tokio::time::timeout(self.settings.retry, self.release())
            .await
            .unwrap_or(Ok(()))
        {
            tracing::warn!(
                error = error.chain(),
                "cannot release leadership; the next leader waits until the Lease expires"
            );
        }
    }

    /// Until the next look: while somebody else leads, as long as that is so.
    async fn pause(&mut self) {
        let soon = Instant::now() + jitter(self.settings.retry);
        let followed = match &mut self.rival {
            Some(rival) if Instant::now() < rival.until => {
                let heard = || heard(&self.contact, &self.settings);
                follow(&self.leases, &self.settings, rival, heard).await
            }
            _ => Ok(Followed::Ended),
        };
        match followed {
            Ok(Followed::Changed) => return,
            Ok(Followed::Ended) => {}
            Err(error) => self.failed(&error),
        }
        let expires = self
            .rival
            .as_ref()
            .map(|rival| rival.until)
            .filter(|until| *until > Instant::now());
        tokio::time::sleep_until(expires.map_or(soon, |expires| expires.min(soon))).await;
    }

    fn failed(&self, error: &Error) {
        self.metrics.failed(error.kind);
        tracing::warn!(error = error.chain(), "leader election request failed");
    }

    fn publish(&self, leading: &watch::Sender<Leading>, until: Leading) {
        if until.is_some() {
            self.metrics.renewed();
        }
        let before = leading.send_replace(until);
        match (before, until) {
            (None, Some(_)) => tracing::info!(identity = self.settings.identity, "leading"),
            (Some(_), None) => {
                tracing::warn!(identity = self.settings.identity, "no longer leading");
            }
            _ => {}
        }
    }

    /// Looks once, and takes or renews where it may. The end of leadership is counted from before
    /// the request was sent.
    async fn attempt(&mut self) -> Result<Leading, Error> {
        let asked = Instant::now();
        let until = Some(asked + self.settings.duration);
        let context = || format!("Lease {}/{}", self.settings.namespace, self.settings.name);
        let Some(lease) = self
            .leases
            .get_opt(&self.settings.name)
            .await
            .map_err(|error| errors::from_api(error, context()))?
        else {
            let record = self.record(None).await;
            let taken = self.leases.create(&PostParams::default(), &record).await;
            return taken.map(|_| until).or_else(|error| self.lost(error));
        };
        let looked = Looked {
            asked,
            answered: Instant::now(),
        };
        if led_by_other(&lease, &self.settings)
            && !has_expired(&mut self.rival, &lease, looked, self.settings.duration)
        {
            return Ok(None);
        }
        let record = self.record(Some(&lease)).await;
        match self
            .leases
            .replace(&self.settings.name, &PostParams::default(), &record)
            .await
        {
            Ok(_) => {
                self.rival = None;
                Ok(until)
            }
            Err(error) => self.lost(error),
        }
    }

    /// Somebody else was faster (409): that is an answer, not a failure.
    fn lost(&self, error: kube::Error) -> Result<Leading, Error> {
        match errors::code(&error) {
            Some(409) => Ok(None),
            _ => Err(errors::from_api(
                error,
                format!(
                    "take Lease {}/{}",
                    self.settings.namespace, self.settings.name
                ),
            )),
        }
    }

    /// The Lease as this candidate wants it; on the version that was read.
    async fn record(&mut self, before: Option<&Lease>) -> Lease {
        let now = MicroTime(Timestamp::now());
        let spec = before
            .and_then(|lease| lease.spec.clone())
            .unwrap_or_default();
        let mine = spec.holder_identity.as_deref() == Some(&self.settings.identity);
        let mut metadata = before.map_or_else(
            || ObjectMeta {
                name: Some(self.settings.name.clone()),
                namespace: Some(self.settings.namespace.clone()),
                ..ObjectMeta::default()
            },
            |lease| lease.metadata.clone(),
        );
        if let Some(owner) = self.owners.owner().await {
            metadata.owner_references = Some(vec![owner]);
        }
        Lease {
            metadata,
            spec: Some(LeaseSpec {
                acquire_time: if mine {
                    spec.acquire_time
                } else {
                    Some(now.clone())
                },
                holder_identity: Some(self.settings.identity.clone()),
                lease_duration_seconds: Some(whole_seconds(self.settings.duration)),
                lease_transitions: Some(
                    spec.lease_transitions.unwrap_or_default()
                        + i32::from(before.is_some() && !mine),
                ),
                renew_time: Some(now),
                ..LeaseSpec::default()
            }),
        }
    }

    /// Lets the next candidate take over at once.
    async fn release(&self) -> Result<(), Error> {
        let context = || {
            format!(
                "release Lease {}/{}",
                self.settings.namespace, self.settings.name
            )
        };
        let mut lease = self
            .leases
            .get(&self.settings.name)
            .await
            .map_err(|error| errors::from_api(error, context()))?;
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() != Some(&self.settings.identity) {
            return Ok(());
        }
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        let released = self
            .leases
            .replace(&self.settings.name, &PostParams::default(), &lease)
            .await;
        released
            .map(|_| ())
            .map_err(|error| errors::from_api(error, context()))
    }
}

/// The API server has answered. After half of the time that a Lease lasts without that, an attempt
/// has failed.
fn heard(contact: &watch::Sender<Option<Contact>>, settings: &ElectionSettings) {
    Contact::heard(contact, Instant::now(), settings.duration / 2);
}

/// Why a Lease is not followed any further.
enum Followed {
    /// It expired, was handed over, or is gone.
    Changed,
    /// The server has ended the watch, as it does now and then.
    Ended,
}

/// Follows a rival's Lease from the version that was seen, for as long as it is renewed in time;
/// calls `heard` for each renewal.
async fn follow(
    leases: &Api<Lease>,
    settings: &ElectionSettings,
    rival: &mut Rival,
    heard: impl Fn(),
) -> Result<Followed, Error> {
    let failed = |error| {
        errors::from_api(
            error,
            format!("follow Lease {}/{}", settings.namespace, settings.name),
        )
    };
    let timeout = u32::try_from(FOLLOWED.as_secs()).unwrap_or(u32::MAX);
    let only = WatchParams::default()
        .fields(&format!("metadata.name={}", settings.name))
        .timeout(timeout);
    let version = rival.version.clone().unwrap_or_default();
    let changes = tokio::select! {
        changes = leases.watch(&only, &version) => changes.map_err(failed)?,
        () = tokio::time::sleep_until(rival.until) => return Ok(Followed::Changed),
    };
    let mut changes = pin!(changes);
    loop {
        let change = tokio::select! {
            change = changes.next() => change,
            () = tokio::time::sleep_until(rival.until) => return Ok(Followed::Changed),
        };
        let lease = match change {
            Some(Ok(WatchEvent::Added(lease) | WatchEvent::Modified(lease)))
                if led_by_other(&lease, settings) =>
            {
                lease
            }
            Some(Ok(WatchEvent::Bookmark(_))) => continue,
            Some(Ok(WatchEvent::Error(status))) => return Err(failed(kube::Error::Api(status))),
            Some(Err(error)) => return Err(failed(error)),
            Some(Ok(_)) => return Ok(Followed::Changed),
            None => return Ok(Followed::Ended),
        };
        heard();
        *rival = Rival::seen(&lease, Instant::now(), settings.duration);
    }
}

/// Whether somebody else holds it.
fn led_by_other(lease: &Lease, settings: &ElectionSettings) -> bool {
    let holder = lease
        .spec
        .as_ref()
        .and_then(|spec| spec.holder_identity.as_deref())
        .unwrap_or_default();
    !holder.is_empty() && holder != settings.identity
}

impl Rival {
    /// A record, with the latest moment at which the server may have told of it. `default` where it
    /// does not say how long it lasts.
    fn seen(lease: &Lease, told: Instant, default: Duration) -> Self {
        let seconds = lease
            .spec
            .as_ref()
            .and_then(|spec| spec.lease_duration_seconds)
            .and_then(|seconds| u64::try_from(seconds).ok());
        Self {
            version: lease.metadata.resource_version.clone(),
            until: told + seconds.map_or(default, Duration::from_secs),
        }
    }
}

/// When a Lease was read: the server did so between the two.
#[derive(Clone, Copy)]
struct Looked {
    asked: Instant,
    answered: Instant,
}

/// Whether the rival's record stood still for its duration.
///
/// The rival counts from before it asked for its renewal. Counted from the answer that showed the
/// renewal until the question that shows it unchanged, the time is never longer here, however long
/// requests take: no two lead at once.
fn has_expired(
    rival: &mut Option<Rival>,
    lease: &Lease,
    looked: Looked,
    default: Duration,
) -> bool {
    match rival {
        Some(rival) if rival.version == lease.metadata.resource_version => {
            looked.asked >= rival.until
        }
        _ => {
            *rival = Some(Rival::seen(lease, looked.answered, default));
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rivals_time_begins_with_the_answer_that_showed_its_record_and_ends_before_the_question_that_shows_it_again()
     {
        let start = Instant::now();
        let looked = |asked, answered| Looked {
            asked: start + Duration::from_secs(asked),
            answered: start + Duration::from_secs(answered),
        };
        let lease = |version: &str| Lease {
            metadata: ObjectMeta {
                resource_version: Some(version.to_owned()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                lease_duration_seconds: Some(10),
                ..LeaseSpec::default()
            }),
        };
        let mut rival = None;
        let mut expired = |version, looked| {
            has_expired(&mut rival, &lease(version), looked, Duration::from_secs(99))
        };
        assert!(!expired("1", looked(0, 5)), "seen for the first time");
        assert!(
            !expired("1", looked(14, 16)),
            "asked before ten seconds were over: it may have been renewed since"
        );
        assert!(expired("1", looked(15, 15)));
        assert!(!expired("2", looked(15, 15)), "renewed at the last moment");
        assert!(expired("2", looked(25, 26)));
    }
}
