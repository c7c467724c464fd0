//! What the objects of a moment allow: the pure core is asked.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use egressgateway::{
    Encapsulation, LocalEnd, NextHop, OverlayLinks, Peer,
    explain::{
        Cause, Explanation, Manifests, Offline, OfflineSettings, Statuses, Verdict, explain,
    },
    model::{Family, PodName},
};
use imbl::{OrdMap, OrdSet};
use serde_json::{Value, json};

/// Kinds that decide.
pub(super) const KINDS: [&str; 6] = [
    "Namespace",
    "Node",
    "Pod",
    "EgressNode",
    "EgressGateway",
    "EgressGatewayPolicy",
];

/// What becomes of a connection of a pod to a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// No policy has a say.
    Free,
    /// It leaves as one of these; the second list has those that clients may choose on their own,
    /// when a gateway does not answer.
    Through(BTreeSet<IpAddr>, BTreeSet<IpAddr>),
    /// It is held.
    Held,
}

impl Way {
    pub(super) const fn is_governed(&self) -> bool {
        !matches!(self, Self::Free)
    }
}

/// The way of each pod to each server.
pub(super) type Ways = BTreeMap<(String, IpAddr), Way>;

/// Any kind of tunnel: which one makes no difference to what leaves.
struct AnyTunnel;

impl Encapsulation for AnyTunnel {
    fn kind(&self) -> &'static str {
        "any"
    }

    fn next_hop(&self, _: &LocalEnd, peer: &Peer, family: Family) -> Option<NextHop> {
        Some(NextHop {
            device: "tunnel".into(),
            via: peer.overlay(family)?,
            encap: None,
        })
    }

    fn links(&self, _: &LocalEnd) -> OverlayLinks {
        OverlayLinks {
            devices: OrdSet::default(),
            port: 7789,
            mtu: OrdMap::default(),
        }
    }
}

/// Of all pods of these objects to these servers; `namespace/name` names a pod.
pub(super) fn ways(objects: &[Value], servers: &[IpAddr]) -> Result<Ways, String> {
    let mut manifests = Manifests::default();
    manifests.read(
        "cluster",
        &json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string(),
    );
    if let Some(finding) = manifests
        .findings()
        .iter()
        .find(|finding| finding.is_error())
    {
        return Err(format!(
            "the API server holds what egressctl refuses: {finding}"
        ));
    }
    let settings = OfflineSettings::of_tunnel(Arc::new(AnyTunnel)).with_statuses(Statuses::Given);
    let cluster = Offline::new(&manifests, settings);
    let mut ways = Ways::new();
    for pod in objects.iter().filter(|object| object["kind"] == "Pod") {
        let text = |field: &str| pod["metadata"][field].as_str().unwrap_or_default();
        let name = PodName::new(text("namespace"), text("name"));
        for server in servers {
            let explanation =
                explain(&cluster, &name, *server).map_err(|error| error.to_string())?;
            ways.insert((name.to_string(), *server), way(objects, &explanation));
        }
    }
    Ok(ways)
}

fn way(objects: &[Value], explanation: &Explanation) -> Way {
    match explanation.verdict {
        Verdict::Pass => Way::Free,
        Verdict::Drop if explanation.cause == Cause::NoReadyNode => {
            Way::Through(BTreeSet::new(), members(objects, explanation))
        }
        Verdict::Drop => Way::Held,
        Verdict::Egress => {
            let sources: BTreeSet<IpAddr> = explanation
                .exits
                .iter()
                .filter_map(|exit| exit.source)
                .collect();
            let members = members(objects, explanation);
            let as_node = sources.iter().all(|source| members.contains(source));
            Way::Through(sources, if as_node { members } else { BTreeSet::new() })
        }
    }
}

/// Addresses of all nodes of the connection's gateway.
fn members(objects: &[Value], explanation: &Explanation) -> BTreeSet<IpAddr> {
    let find = |kind: &str, name: &str| {
        objects
            .iter()
            .find(|object| object["kind"] == kind && object["metadata"]["name"] == name)
    };
    let gateway = explanation
        .gateway
        .as_deref()
        .and_then(|name| find("EgressGateway", name));
    let names = gateway
        .and_then(|gateway| gateway["status"]["nodeList"].as_array())
        .into_iter()
        .flatten();
    let nodes = names.filter_map(|node| find("Node", node["name"].as_str()?));
    nodes
        .flat_map(addresses)
        .filter(|address| address.is_ipv4() == explanation.to.is_ipv4())
        .collect()
}

/// A Node's addresses.
pub(super) fn addresses(node: &Value) -> Vec<IpAddr> {
    let all = node["status"]["addresses"].as_array().into_iter().flatten();
    all.filter_map(|address| address["address"].as_str()?.parse().ok())
        .collect()
}
