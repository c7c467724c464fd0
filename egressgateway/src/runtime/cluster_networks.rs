//! Networks of the cluster's services: from ServiceCIDR objects where the cluster has them and lets them be read, and the address of
//! the `kubernetes` Service.

use std::{collections::BTreeSet, time::Duration};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Service;
use kube::{
    Api, Client,
    api::{DynamicObject, ListParams},
    core::{ApiResource, GroupVersionKind},
};
use tokio::sync::mpsc;

use super::{
    backoff::{Backoff, shortened},
    failure,
    feeds::kind::CLUSTER_NETWORKS,
    watch::{Message, Scope},
};
use crate::{Error, ErrorKind, world::Change};

/// Reads the networks now and then: they change about never.
pub(super) struct ClusterNetworks<M> {
    pub(super) client: Client,
    pub(super) interval: Duration,
    pub(super) backoff: Backoff,
    pub(super) out: mpsc::Sender<Message<M>>,
}

impl<M: From<Change> + Send + 'static> ClusterNetworks<M> {
    /// Tells until the listener has gone.
    pub(super) async fn run(mut self) {
        let mut told: Option<BTreeSet<IpNet>> = None;
        loop {
            let wait = match read(&self.client).await {
                Ok(networks) => {
                    self.backoff.succeeded();
                    let first = told.is_none();
                    if told.as_ref() != Some(&networks) {
                        let change = Change::ClusterNetworks(networks.iter().copied().collect());
                        if self.out.send(Message::Seen(vec![change.into()])).await.is_err() {
                            return;
                        }
                        told = Some(networks);
                    }
                    if first && self.out.send(Message::Synced(CLUSTER_NETWORKS, Scope::default())).await.is_err() {
                        return;
                    }
                    shortened(self.interval)
                }
                Err(error) => {
                    tracing::warn!(error = error.chain(), "networks of services");
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

/// What may be read; what the cluster does not have or does not show is left out.
async fn read(client: &Client) -> Result<BTreeSet<IpNet>, Error> {
    let mut networks = BTreeSet::new();
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("networking.k8s.io", "v1", "ServiceCIDR"));
    let kind = ApiResource { plural: "servicecidrs".to_owned(), ..kind };
    let ranges: Api<DynamicObject> = Api::all_with(client.clone(), &kind);
    if let Some(list) = readable(ranges.list(&ListParams::default()).await, "list ServiceCIDRs")? {
        let cidrs = list.items.iter().filter_map(|range| range.data.pointer("/spec/cidrs")?.as_array());
        networks.extend(cidrs.flatten().filter_map(|cidr| cidr.as_str()?.parse::<IpNet>().ok()));
    }
    let services: Api<Service> = Api::namespaced(client.clone(), "default");
    if let Some(service) = readable(services.get("kubernetes").await, "read Service default/kubernetes")? {
        let addresses = service.spec.and_then(|spec| spec.cluster_ips).unwrap_or_default();
        let addresses = addresses.iter().filter_map(|address| address.parse::<std::net::IpAddr>().ok()).map(IpNet::from);
        let outside: Vec<IpNet> = addresses.filter(|address| !networks.iter().any(|network| network.contains(address))).collect();
        networks.extend(outside);
    }
    Ok(networks)
}

/// None where the object or its kind does not exist or may not be read.
fn readable<T>(answer: Result<T, kube::Error>, context: &str) -> Result<Option<T>, Error> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(failure::code(&error), Some(401 | 403 | 404 | 405)) => {
            tracing::debug!(%error, context, "not readable");
            Ok(None)
        }
        Err(error) => {
            let error = failure::from_api(error, context);
            // What is neither served nor refused may be so for a moment only.
            Err(if error.kind == ErrorKind::Invalid { Error { kind: ErrorKind::Transient, ..error } } else { error })
        }
    }
}
