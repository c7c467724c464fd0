//! The kinds of objects that daemons follow, each trimmed the moment it arrives.

use k8s_openapi::api::core::v1 as core;
use kube::{
    Api, Client, Resource,
    core::{DeserializeGuard, error_boundary::InvalidObject},
};
use tokio::sync::mpsc;

use super::{
    backoff::Backoff,
    interner::Interner,
    partial::Partial,
    watch::{Key, MapFn, Message, Received, Scope, Watch},
};
use crate::{
    api,
    model::{GatewayName, MarkMask, NodeName, PolicyName},
    runtime::metrics::WatchMetrics,
    spec::Problem,
    world::{self, Change},
};

/// The names of watches, as metrics and logs show them.
pub(crate) mod kind {
    pub(crate) const PODS: &str = "pods";
    pub(crate) const NAMESPACES: &str = "namespaces";
    pub(crate) const NODES: &str = "nodes";
    pub(crate) const EGRESS_NODES: &str = "egressnodes";
    pub(crate) const GATEWAYS: &str = "egressgateways";
    pub(crate) const POLICIES: &str = "egressgatewaypolicies";
    pub(crate) const LEASES: &str = "leases";
    pub(crate) const CLUSTER_NETWORKS: &str = "clusternetworks";
}

/// Starts watches that tell one listener.
pub(crate) struct Watches<M> {
    pub(crate) client: Client,
    pub(crate) out: mpsc::Sender<Message<M>>,
    pub(crate) backoff: Backoff,
    pub(crate) metrics: WatchMetrics,
    /// What the objects have in common.
    pub(crate) interner: Interner,
}

impl<M: Send + 'static> Watches<M> {
    /// Follows a kind in all namespaces, as far as `scope` goes.
    pub(crate) fn all<K>(
        &self,
        kind: &'static str,
        scope: tokio::sync::watch::Receiver<Scope>,
        map: MapFn<K, M>,
    ) -> Watch<K, M>
    where
        K: Resource<DynamicType = ()>,
    {
        self.of(kind, Api::all(self.client.clone()), scope, map)
    }

    /// Follows what `api` shows, as far as `scope` goes.
    pub(crate) fn of<K>(
        &self,
        kind: &'static str,
        api: Api<DeserializeGuard<K>>,
        scope: tokio::sync::watch::Receiver<Scope>,
        map: MapFn<K, M>,
    ) -> Watch<K, M> {
        Watch {
            kind,
            api,
            scope,
            map,
            backoff: self.backoff.clone(),
            metrics: self.metrics.clone(),
            interner: self.interner.clone(),
            out: self.out.clone(),
        }
    }
}

pub(crate) fn pod(
    interner: &Interner,
    key: &Key,
    received: Option<&Received<Partial<core::Pod>>>,
) -> Option<Change> {
    let pod = known(received).ok()?;
    Some(Change::Pod(
        key.clone(),
        pod.and_then(|pod| world::Pod::from_api(&pod.0))
            .map(|pod| interner.pod(pod)),
    ))
}

pub(crate) fn namespace(key: &Key, received: Option<&Received<core::Namespace>>) -> Option<Change> {
    let namespace = known(received).ok()?;
    Some(Change::Namespace(
        key.name.clone(),
        namespace.map(world::Namespace::from_api),
    ))
}

pub(crate) fn node(key: &Key, received: Option<&Received<Partial<core::Node>>>) -> Option<Change> {
    let node = known(received).ok()?;
    Some(Change::Node(
        NodeName::from(&*key.name),
        node.map(|node| world::Node::from_api(&node.0)),
    ))
}

pub(crate) fn egress_node(
    key: &Key,
    received: Option<&Received<api::EgressNode>>,
) -> Option<Change> {
    let node = known(received).ok()?;
    Some(Change::EgressNode(
        NodeName::from(&*key.name),
        node.map(world::EgressNode::from_api),
    ))
}

/// A gateway that can't be read is a gateway with a problem: its traffic is held, it does not leave
/// uncontrolled.
pub(crate) fn gateway(
    key: &Key,
    received: Option<&Received<api::EgressGateway>>,
    mask: MarkMask,
) -> Change {
    let gateway = received.map(|received| match received {
        Ok(gateway) => world::Gateway::from_api(gateway, mask),
        Err(invalid) => {
            let bare = api::EgressGateway {
                metadata: invalid.metadata.clone(),
                ..api::EgressGateway::default()
            };
            world::Gateway {
                spec: Err(unreadable(&invalid.error)),
                ..world::Gateway::from_api(&bare, mask)
            }
        }
    });
    Change::Gateway(GatewayName::from(&*key.name), gateway)
}

pub(crate) fn policy(key: &Key, received: Option<&Received<api::EgressGatewayPolicy>>) -> Change {
    let policy = received.map(|received| match received {
        Ok(policy) => world::Policy::from_api(policy),
        Err(invalid) => {
            let bare = api::EgressGatewayPolicy {
                metadata: invalid.metadata.clone(),
                ..api::EgressGatewayPolicy::default()
            };
            world::Policy {
                spec: Err(unreadable(&invalid.error)),
                ..world::Policy::from_api(&bare)
            }
        }
    });
    Change::Policy(PolicyName::from(&*key.name), policy)
}

fn unreadable(error: &str) -> Vec<Problem> {
    vec![Problem::new(
        "spec",
        error,
        "must be as the resource definition says",
    )]
}

/// An object that is there or gone; an error where it can't be read: what is known of it stays.
pub(crate) fn known<K>(received: Option<&Received<K>>) -> Result<Option<&K>, &InvalidObject> {
    received.map(Result::as_ref).transpose()
}
