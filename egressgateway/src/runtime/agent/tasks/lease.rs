//! Renews the Lease by which the controller knows that the agent of a node is alive: one per node,
//! in the namespace of the daemons.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference},
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    Error,
    model::NodeName,
    runtime::{
        kube::{
            agent_lease::{LABEL, LABEL_VALUE, lease_of},
            backoff::Backoff,
            errors,
            owner::OwnerReferenceSource,
        },
        metrics::LeaseMetrics,
        time::{jitter, whole_seconds},
    },
};

/// Where and how long an agent's Lease is held.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LeaseSettings {
    /// Namespace of the Leases.
    pub namespace: String,
    /// How long a Lease that is not renewed counts as held.
    pub duration: Duration,
    /// How often it is renewed; a fraction of `duration`.
    pub renew: Duration,
}

impl Default for LeaseSettings {
    /// Namespace `kube-system`, 40 seconds, renewed every 10, as the kubelet does it.
    fn default() -> Self {
        Self {
            namespace: "kube-system".to_owned(),
            duration: Duration::from_secs(40),
            renew: Duration::from_secs(10),
        }
    }
}

impl LeaseSettings {
    /// A Lease in `namespace` that counts as held for `duration`, and is renewed each `renew`.
    #[must_use]
    pub fn new(namespace: impl Into<String>, duration: Duration, renew: Duration) -> Self {
        Self {
            namespace: namespace.into(),
            duration,
            renew,
        }
    }
}

/// A renewal that succeeded. The controller saw it at some time between the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Renewal {
    /// Before the request was sent.
    pub(crate) sent: Instant,
    /// When the API server's answer was there.
    pub(crate) answered: Instant,
}

/// Renews the Lease of one node.
pub(crate) struct LeaseRenewer {
    pub(crate) client: Client,
    pub(crate) node: NodeName,
    pub(crate) manager: &'static str,
    pub(crate) settings: LeaseSettings,
    pub(crate) backoff: Backoff,
    pub(crate) metrics: LeaseMetrics,
    /// The last renewal that succeeded.
    pub(crate) renewals: watch::Sender<Option<Renewal>>,
}

impl LeaseRenewer {
    /// Renews until shutdown. The Lease stays: a restarting agent leaves the data path as it is. It
    /// goes with the agents' account, and the controller deletes that of a node which is gone.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let mut owners = OwnerReferenceSource::new(self.client.clone(), &self.settings.namespace);
        loop {
            let owner = tokio::time::timeout(self.settings.renew, owners.owner())
                .await
                .unwrap_or_default();
            let sent = Instant::now();
            let wait = match self.renew(owner).await {
                Ok(()) => {
                    self.renewals.send_replace(Some(Renewal {
                        sent,
                        answered: Instant::now(),
                    }));
                    self.metrics.renewed();
                    self.backoff.succeeded();
                    // Jitter, so that agents started together spread out.
                    self.settings.renew + jitter(self.settings.renew) / 16
                }
                Err(error) => {
                    let object =
                        format!("Lease/{}/{}", self.settings.namespace, lease_of(&self.node));
                    tracing::warn!(
                        object,
                        kind = error.kind.as_str(),
                        error = error.chain(),
                        "cannot renew Lease"
                    );
                    self.metrics.failed(error.kind);
                    self.backoff.delay().min(self.settings.renew)
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    async fn renew(&self, owner: Option<OwnerReference>) -> Result<(), Error> {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), &self.settings.namespace);
        let lease = self.lease(owner);
        let name = lease.metadata.name.clone().unwrap_or_default();
        let parameters = PatchParams::apply(self.manager).force();
        let patch = Patch::Apply(&lease);
        match tokio::time::timeout(
            self.settings.duration / 2,
            leases.patch(&name, &parameters, &patch),
        )
        .await
        {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(errors::from_api(error, format!("renew Lease {name}"))),
            Err(_) => Err(Error::new(
                crate::ErrorKind::Transient,
                format!("renew Lease {name}: no answer in time"),
            )),
        }
    }

    fn lease(&self, owner: Option<OwnerReference>) -> Lease {
        Lease {
            metadata: ObjectMeta {
                name: Some(lease_of(&self.node)),
                namespace: Some(self.settings.namespace.clone()),
                labels: Some(BTreeMap::from([(LABEL.to_owned(), LABEL_VALUE.to_owned())])),
                owner_references: owner.map(|owner| vec![owner]),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.node.as_str().to_owned()),
                lease_duration_seconds: Some(whole_seconds(self.settings.duration)),
                renew_time: Some(MicroTime(Timestamp::now())),
                ..LeaseSpec::default()
            }),
        }
    }
}
