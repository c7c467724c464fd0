//! An operator with a custom resource of its own, which uses the drivers and none of the egress
//! gateway's objects or daemons: a `StaticEgress` names source networks, destinations and the node
//! that they leave through.
//!
//! It turns all of them into one [`NodeDesired`] and converges its node to that. Run it as root on
//! every node, with the node's name and a file such as `fleet.yaml` next to this one.
//! `embed_in_operator crd` prints the resource's definition.
#![allow(missing_docs)] // The derive macro's items have none.

use std::{collections::BTreeMap, error::Error, fs, net::IpAddr, sync::Arc, time::Duration};

use egressgateway::{
    Drivers, DriversDesired, Encapsulation, Host, LocalEnd, NodeDesired, Peer, PolicyMonitor,
    Reconciler, Unmanaged,
    model::{
        ClassIds, ClassKey, IpRange, MacAddress, NodeName, PolicyName, SourceNat, TargetId, Verdict,
    },
    plan,
};
use egressgateway_backend_nftables::{Nftables, NftablesSettings};
use egressgateway_netlink::{KernelHost, Netlink, ParentChoice, Steering, SteeringSettings};
use egressgateway_tunnel_vxlan::{Vxlan, VxlanSettings, VxlanShape};
use futures::{StreamExt, TryStreamExt};
use ipnet::IpNet;
use kube::runtime::{WatchStreamExt, reflector, watcher, watcher::Event};
use kube::{Api, Client, CustomResource, CustomResourceExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, Debug)]
#[kube(
    group = "example.org",
    version = "v1",
    kind = "StaticEgress",
    plural = "staticegresses"
)]
struct StaticEgressSpec {
    sources: Vec<String>,
    destinations: Vec<String>,
    /// Name of the node that they leave through.
    exit: String,
}

/// What the operator knows of its cluster by other means.
#[derive(Deserialize)]
struct Fleet {
    overlay: IpNet,
    /// Networks that are never steered.
    cluster: Vec<IpNet>,
    nodes: BTreeMap<String, Ends>,
}

#[derive(Deserialize)]
struct Ends {
    underlay: IpAddr,
    overlay: IpAddr,
}

/// All objects as one complete state. Pure: the same objects give the same state, in whatever order
/// they came. What is no network is left out here; a real operator would say so in the object's
/// status.
fn desired(me: &str, fleet: &Fleet, objects: &BTreeMap<String, StaticEgressSpec>) -> NodeDesired {
    let mut next = NodeDesired::default();
    let hosts = fleet
        .nodes
        .values()
        .flat_map(|ends| [ends.underlay, ends.overlay]);
    next.policy.exempt = plan::exempt(fleet.cluster.iter().copied(), hosts)
        .into_iter()
        .collect();
    next.direct = plan::direct(fleet.cluster.iter().copied())
        .into_iter()
        .collect();
    // One target for each node, by the order of their names: a mark means the same everywhere.
    // Where nodes come and go, an operator would keep it in a status.
    let targets: BTreeMap<&String, TargetId> = fleet.nodes.keys().zip(TargetId::all()).collect();
    for (name, target) in &targets {
        if *name == me {
            next.policy.exits.insert(*target); // What starts here leaves here,
            next.policy.accepts.insert(*target); // and so does what the others send.
            continue;
        }
        next.policy.targets.insert(*target); // There is a way through the tunnel.
        let Ends { underlay, overlay } = fleet.nodes[*name];
        let peer = Peer {
            overlay: [overlay].into_iter().collect(),
            underlay: [underlay].into_iter().collect(),
            mac: MacAddress::from_seed(name),
            mtu: imbl::OrdMap::new(),
        };
        next.tunnel
            .peers
            .insert(NodeName::from(name.as_str()), peer);
        next.policy.overlay.peers.insert(underlay);
        next.policy.overlay.hosts.insert(underlay);
        next.paths
            .entry(*target)
            .or_default()
            .insert(NodeName::from(name.as_str()));
    }
    // Each object is a class of its own; of two that claim a source, the first by name has it.
    let key = |name: &String| ClassKey::new([PolicyName::from(name.as_str())]);
    let mut classes = ClassIds::default();
    for key in objects.keys().filter_map(key) {
        classes.insert(key);
    }
    for (name, spec) in objects {
        let (Some(class), Some(target)) = (
            key(name).and_then(|key| classes.id(&key)),
            targets.get(&spec.exit),
        ) else {
            continue;
        };
        for range in networks(&spec.sources) {
            if !next
                .policy
                .subnets
                .keys()
                .any(|taken| taken.overlaps(&range))
            {
                next.policy.subnets.insert(range, class);
            }
        }
        let verdict = Verdict::Egress {
            target: *target,
            source_nat: SourceNat::NodeAddress,
        };
        next.policy.destinations.extend(
            networks(&spec.destinations)
                .into_iter()
                .map(|range| ((class, range), verdict)),
        );
    }
    next
}

fn networks(texts: &[String]) -> Vec<IpRange> {
    plan::merge(
        texts
            .iter()
            .filter_map(|text| text.parse::<IpNet>().ok())
            .map(IpRange::from),
    )
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [me, file] = arguments.as_slice() else {
        print!("{}", serde_saphyr::to_string(&StaticEgress::crd())?);
        return Ok(());
    };
    let fleet: Fleet = serde_saphyr::from_str(&fs::read_to_string(file)?)?;
    let own = fleet
        .nodes
        .get(me)
        .ok_or_else(|| format!("{file} has no node {me}"))?;
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| "a crypto provider is installed already")?;
    let netlink = Netlink::open()?;
    let host = KernelHost::new(netlink.clone(), ParentChoice::Auto);
    let (vxlan, hook) = (VxlanSettings::default(), Arc::new(()));
    let nftables = Nftables::new(NftablesSettings::default(), hook.clone());
    let monitor = nftables.monitor()?;
    let mut drivers = Drivers {
        tunnel: Box::new(Reconciler::new(Vxlan::new(
            netlink.clone(),
            vxlan.clone(),
            hook.clone(),
        ))),
        steering: Box::new(Reconciler::new(Steering::new(
            netlink,
            SteeringSettings::default(),
            hook,
        ))),
        addresses: Box::new(Unmanaged), // It has no addresses of its own to hold,
        relay: Box::new(Unmanaged),     // and passes nothing on for others.
        policy: Box::new(Reconciler::new(nftables)),
    };
    let shape: &dyn Encapsulation = &VxlanShape(vxlan);

    let (store, writer) = reflector::store();
    let api: Api<StaticEgress> = Api::all(Client::try_default().await?);
    let mut events = watcher(api, watcher::Config::default())
        .default_backoff()
        .reflect(writer)
        .boxed();
    let mut stop = std::pin::pin!(tokio::signal::ctrl_c());
    let (mut listed, mut again) = (false, false);
    let mut before: Option<DriversDesired> = None;
    loop {
        tokio::select! {
            event = events.try_next() => match event {
                Ok(event) => listed |= matches!(event, Some(Event::InitDone)),
                Err(error) => eprintln!("{error}"), // The watch starts again by itself.
            },
            // Somebody changed the host or our rules, or that may have been missed: read them
            // again.
            _ = host.changed() => drivers.invalidate(),
            _ = monitor.changed() => drivers.invalidate(),
            () = tokio::time::sleep(Duration::from_millis(100)), if again => {}
            signal = &mut stop => return Ok(signal?),
        }
        if !listed {
            continue; // Nothing is programmed, and above all nothing removed, from half a list.
        }
        let objects = store
            .state()
            .iter()
            .map(|object| {
                (
                    object.metadata.name.clone().unwrap_or_default(),
                    object.spec.clone(),
                )
            })
            .collect();
        let mut next = desired(me, &fleet, &objects);
        let overlay = [IpNet::new(own.overlay, fleet.overlay.prefix_len())?]
            .into_iter()
            .collect();
        next.tunnel.local = Some(LocalEnd {
            overlay,
            mac: MacAddress::from_seed(me),
            underlay: host.underlay().await?,
        });
        let next = next.for_drivers(shape);
        match drivers.converge(before.as_ref(), &next).await {
            Ok(outcome) => {
                println!("{} objects: {outcome:?}", objects.len());
                (before, again) = (Some(next), false);
            }
            // A failed driver reads the kernel again before it plans.
            Err(error) if error.kind.is_retryable() => again = true,
            Err(error) => return Err(error.into()),
        }
    }
}
