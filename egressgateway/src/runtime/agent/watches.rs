//! What an agent watches.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1 as core;
use tokio::{sync::watch, task::JoinSet};

use super::settings::AgentSettings;
use crate::{
    api::{self, EgressNodeStatus},
    model::{NodeName, PodName},
    runtime::kube::{
        cluster_networks::ClusterNetworks,
        observed::Observed,
        partial::Partial,
        watch::Scope,
        watches::{self, Watches, kind},
    },
    world::{Change, Pod},
};

/// What an agent's watches tell.
#[derive(Debug)]
pub(crate) enum AgentUpdate {
    World(Box<Change>),
    /// A pod, of which a first list may bring a hundred thousand: no larger than it must be.
    Pod(PodName, Option<Pod>),
    /// The own EgressNode, with its status as it is.
    Own(Box<Change>, Option<Box<Observed<EgressNodeStatus>>>),
}

impl From<Change> for AgentUpdate {
    fn from(change: Change) -> Self {
        match change {
            Change::Pod(name, pod) => Self::Pod(name, pod),
            change => Self::World(Box::new(change)),
        }
    }
}

/// The pods of a node.
pub(crate) fn own_pods(node: &NodeName) -> Scope {
    Scope {
        fields: Some(format!("spec.nodeName={node}")),
        ..Scope::default()
    }
}

/// Starts the watches of an agent; returns what must be listed before anything is written.
pub(crate) fn spawn_watches(
    watches: &Watches<AgentUpdate>,
    settings: &AgentSettings,
    (pods, policies): (watch::Receiver<Scope>, watch::Receiver<Scope>),
    tasks: &mut JoinSet<()>,
) -> BTreeSet<&'static str> {
    let everything = || watch::channel(Scope::default()).1;
    let (mask, own, interner) = (
        settings.mask,
        settings.index.node.clone(),
        watches.interner.clone(),
    );
    let world = |change: Option<Change>| change.map(AgentUpdate::from);
    tasks.spawn(
        watches
            .all::<Partial<core::Pod>>(
                kind::PODS,
                pods,
                Box::new(move |key, received| world(watches::pod(&interner, key, received))),
            )
            .run(),
    );
    tasks.spawn(
        watches
            .all::<core::Namespace>(
                kind::NAMESPACES,
                everything(),
                Box::new(move |key, received| world(watches::namespace(key, received))),
            )
            .run(),
    );
    tasks.spawn(
        watches
            .all::<Partial<core::Node>>(
                kind::NODES,
                everything(),
                Box::new(move |key, received| world(watches::node(key, received))),
            )
            .run(),
    );
    let egress_nodes = watches.all::<api::EgressNode>(
        kind::EGRESS_NODES,
        everything(),
        Box::new(move |key, received| {
            let change = watches::egress_node(key, received)?;
            if *key.name != *own.as_str() {
                return Some(change.into());
            }
            let node = watches::known(received).ok()?;
            let observed = node
                .map(|node| Box::new(Observed::new(node, node.status.clone().unwrap_or_default())));
            Some(AgentUpdate::Own(Box::new(change), observed))
        }),
    );
    tasks.spawn(egress_nodes.run());
    tasks.spawn(
        watches
            .all::<api::EgressGateway>(
                kind::GATEWAYS,
                everything(),
                Box::new(move |key, received| Some(watches::gateway(key, received, mask).into())),
            )
            .run(),
    );
    tasks.spawn(
        watches
            .all::<api::EgressGatewayPolicy>(
                kind::POLICIES,
                policies,
                Box::new(move |key, received| Some(watches::policy(key, received).into())),
            )
            .run(),
    );
    let mut kinds = BTreeSet::from([
        kind::PODS,
        kind::NAMESPACES,
        kind::NODES,
        kind::EGRESS_NODES,
        kind::GATEWAYS,
        kind::POLICIES,
    ]);
    if settings.index.auto_cluster_networks {
        let networks = ClusterNetworks {
            client: watches.client.clone(),
            interval: settings.networks,
            backoff: settings.api_backoff.clone(),
            out: watches.out.clone(),
        };
        tasks.spawn(networks.run());
        kinds.insert(kind::CLUSTER_NETWORKS);
    }
    kinds
}
