//! The agent says that it is alive: one Lease per node, in the namespace of the daemons.

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

use super::{
    account::Account,
    backoff::{Backoff, shortened},
    failure,
    metrics::LeaseMetrics,
};
use crate::{Error, model::NodeName};

/// Label of the agents' Leases, by which the controller finds them.
pub(super) const LABEL: &str = "app.kubernetes.io/component";
/// Its value.
pub(super) const LABEL_VALUE: &str = "egressgateway-agent";
/// A Lease's name is this and the node's name.
const PREFIX: &str = "egressgateway-agent-";

/// The node whose agent holds a Lease of this name; none for others' Leases.
pub(super) fn node_of(lease: &str) -> Option<NodeName> {
    lease
        .strip_prefix(PREFIX)
        .filter(|node| !node.is_empty())
        .map(NodeName::from)
}

/// Name of the Lease that a node's agent holds.
pub(super) fn lease_of(node: &NodeName) -> String {
    format!("{PREFIX}{node}")
}

/// Where and how long an agent's Lease is held.
#[derive(Clone, Debug)]
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

/// A renewal that succeeded. The controller saw it at some time between the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Renewal {
    /// Before the request was sent.
    pub(super) sent: Instant,
    /// When the API server's answer was there.
    pub(super) answered: Instant,
}

/// Holds the Lease of one node.
pub(super) struct Presence {
    pub(super) client: Client,
    pub(super) node: NodeName,
    pub(super) manager: &'static str,
    pub(super) settings: LeaseSettings,
    pub(super) backoff: Backoff,
    pub(super) metrics: LeaseMetrics,
    /// The last renewal that succeeded.
    pub(super) renewals: watch::Sender<Option<Renewal>>,
}

impl Presence {
    /// Renews until shutdown. The Lease stays: a restarting agent leaves the data path as it is. It
    /// goes with the agents' account, and the controller deletes that of a node which is gone.
    pub(super) async fn run(mut self, shutdown: CancellationToken) {
        let mut account = Account::new(self.client.clone(), &self.settings.namespace);
        loop {
            let owner = tokio::time::timeout(self.settings.renew, account.owner())
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
                    // A little longer, by chance: what began at the same moment does not stay
                    // together.
                    self.settings.renew + shortened(self.settings.renew) / 16
                }
                Err(error) => {
                    let object = format!("Lease/{}/{PREFIX}{}", self.settings.namespace, self.node);
                    tracing::warn!(
                        object,
                        kind = error.kind.as_str(),
                        error = error.chain(),
                        "lease was not renewed"
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
            Ok(Err(error)) => Err(failure::from_api(error, format!("renew Lease {name}"))),
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
                lease_duration_seconds: Some(seconds(self.settings.duration)),
                renew_time: Some(MicroTime(Timestamp::now())),
                ..LeaseSpec::default()
            }),
        }
    }
}

/// A duration in the whole seconds of a Lease, at least one.
pub(super) fn seconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_nanos().div_ceil(1_000_000_000))
        .unwrap_or(i32::MAX)
        .max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_tells_its_node_by_name() {
        assert_eq!(
            node_of(&lease_of(&NodeName::from("node1"))),
            Some(NodeName::from("node1"))
        );
        assert_eq!(node_of("egressgateway-agent-"), None);
        assert_eq!(node_of("kube-scheduler"), None);
    }

    #[test]
    fn a_lease_lasts_whole_seconds_and_never_none() {
        assert_eq!(seconds(Duration::from_millis(300)), 1);
        assert_eq!(seconds(Duration::from_millis(1500)), 2);
        assert_eq!(seconds(Duration::ZERO), 1);
    }
}
