//! Networks of the cluster that Nodes don't tell: of services, from ServiceCIDR objects where the
//! cluster has them and lets them be read, and the address of the `kubernetes` Service; of pods,
//! from the objects of CNIs with an address management of their own.

use std::{collections::BTreeSet, time::Duration};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Service;
use kube::{
    Api, Client,
    api::{DynamicObject, ListParams},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::Value;
use tokio::sync::mpsc;

use super::{
    backoff::Backoff,
    errors,
    watch::{Message, Scope},
    watches::kind::CLUSTER_NETWORKS,
};
use crate::{Error, ErrorKind, runtime::time::jitter, world::Change};

/// Reads the networks now and then: they change about never.
pub(crate) struct ClusterNetworks<M> {
    pub(crate) client: Client,
    pub(crate) interval: Duration,
    pub(crate) backoff: Backoff,
    pub(crate) out: mpsc::Sender<Message<M>>,
}

impl<M: From<Change> + Send + 'static> ClusterNetworks<M> {
    /// Tells until the listener has gone.
    pub(crate) async fn run(mut self) {
        let mut told: Option<Networks> = None;
        loop {
            let wait = match read(&self.client).await {
                Ok(networks) => {
                    self.backoff.succeeded();
                    let first = told.is_none();
                    if told.as_ref() != Some(&networks) {
                        let services =
                            Change::ClusterNetworks(networks.services.iter().copied().collect());
                        let pods = Change::PodNetworks(networks.pods.iter().copied().collect());
                        if self
                            .out
                            .send(Message::Updates(vec![services.into(), pods.into()]))
                            .await
                            .is_err()
                        {
                            return;
                        }
                        told = Some(networks);
                    }
                    if first
                        && self
                            .out
                            .send(Message::Synced(CLUSTER_NETWORKS, Scope::default()))
                            .await
                            .is_err()
                    {
                        return;
                    }
                    jitter(self.interval)
                }
                Err(error) => {
                    tracing::warn!(
                        error = error.chain(),
                        "cannot read Service and pod networks"
                    );
                    self.backoff.delay()
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.out.closed() => return,
            }
        }
    }
}

#[derive(Default, PartialEq)]
struct Networks {
    services: BTreeSet<IpNet>,
    pods: BTreeSet<IpNet>,
}

/// A kind of objects that tells networks: group, version, kind, plural, and where in an object a
/// network or a list of them is.
type Telling = (
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static [&'static str],
);

const SERVICES: Telling = (
    "networking.k8s.io",
    "v1",
    "ServiceCIDR",
    "servicecidrs",
    &["/spec/cidrs"],
);

/// Calico, Cilium with `cluster-pool` or `kubernetes`, and Cilium with `multi-pool`.
const PODS: [Telling; 3] = [
    (
        "crd.projectcalico.org",
        "v1",
        "IPPool",
        "ippools",
        &["/spec/cidr"],
    ),
    (
        "cilium.io",
        "v2",
        "CiliumNode",
        "ciliumnodes",
        &["/spec/ipam/podCIDRs"],
    ),
    (
        "cilium.io",
        "v2alpha1",
        "CiliumPodIPPool",
        "ciliumpodippools",
        &["/spec/ipv4/cidrs", "/spec/ipv6/cidrs"],
    ),
];

/// The networks that objects of a kind tell; none where they can't be read.
async fn told_by(
    client: &Client,
    (group, version, kind, plural, places): Telling,
) -> Result<BTreeSet<IpNet>, Error> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    let objects: Api<DynamicObject> = Api::all_with(
        client.clone(),
        &ApiResource {
            plural: plural.to_owned(),
            ..resource
        },
    );
    let list = readable(
        objects.list(&ListParams::default()).await,
        &format!("list {plural}"),
    )?;
    let objects = list.into_iter().flat_map(|list| list.items);
    let values = objects.flat_map(|object| {
        places
            .iter()
            .filter_map(|place| object.data.pointer(place).cloned())
            .collect::<Vec<_>>()
    });
    let texts = values.flat_map(|value| match value {
        Value::Array(several) => several,
        one => vec![one],
    });
    Ok(texts
        .filter_map(|text| text.as_str()?.parse::<IpNet>().ok())
        .map(|network| network.trunc())
        .collect())
}

/// What may be read; what the cluster does not have or does not show is left out.
async fn read(client: &Client) -> Result<Networks, Error> {
    let mut networks = told_by(client, SERVICES).await?;
    let mut pods = BTreeSet::new();
    for kind in PODS {
        pods.extend(told_by(client, kind).await?);
    }
    let services: Api<Service> = Api::namespaced(client.clone(), "default");
    if let Some(service) = readable(
        services.get("kubernetes").await,
        "read Service default/kubernetes",
    )? {
        let addresses = service
            .spec
            .and_then(|spec| spec.cluster_ips)
            .unwrap_or_default();
        let addresses = addresses
            .iter()
            .filter_map(|address| address.parse::<std::net::IpAddr>().ok())
            .map(IpNet::from);
        let outside: Vec<IpNet> = addresses
            .filter(|address| !networks.iter().any(|network| network.contains(address)))
            .collect();
        networks.extend(outside);
    }
    Ok(Networks {
        services: networks,
        pods,
    })
}

/// None where the object or its kind does not exist or may not be read.
fn readable<T>(answer: Result<T, kube::Error>, context: &str) -> Result<Option<T>, Error> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(errors::code(&error), Some(401 | 403 | 404 | 405)) => {
            tracing::debug!(%error, context, "cannot read cluster networks from this kind of object");
            Ok(None)
        }
        Err(error) => {
            let error = errors::from_api(error, context);
            // What is neither served nor refused may be so for a moment only.
            Err(if error.kind == ErrorKind::Invalid {
                Error {
                    kind: ErrorKind::Transient,
                    ..error
                }
            } else {
                error
            })
        }
    }
}
