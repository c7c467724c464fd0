use std::ops::ControlFlow;

use egressgateway::{
    api::{EgressGateway, GatewayNode, GatewayNodeStatus},
    spec::Problem,
    world,
};
use k8s_openapi::api::core::v1::Node;
use kube::{ResourceExt, runtime::watcher};

use crate::online::{Cluster, Objects};

/// Takes a node out of all gateways, and waits until their statuses say that nothing is left on it.
///
/// Refused, unless forced, where the node is the last Ready one of a gateway: nobody else could take that gateway's traffic.
pub(crate) async fn drain(cluster: &Cluster, name: &str, force: bool) -> Result<String, String> {
    let node = existing(cluster, name).await?;
    let gateways = cluster.list::<EgressGateway>().await?;
    let own = names(&gateways, |gateway| member(gateway, name).is_some());
    if own.is_empty() {
        return Err(Problem::new("NODE", name, "must belong to an EgressGateway: status.nodeList of none names it").to_string());
    }
    if node.annotations().get(&annotation()).is_some_and(|value| value == "true") {
        eprintln!("note: Node {name} has the annotation {} already", annotation());
    } else {
        let last = names(&gateways, |gateway| is_last_ready(gateway, name));
        if !last.is_empty() && !force {
            let rule =
                format!("must not be the last Ready node of EgressGateway {last}, whose traffic nobody else could take; --force does it");
            return Err(Problem::new("NODE", name, rule).to_string());
        }
        cluster.annotate::<Node>(name, &annotation(), Some("true")).await?;
    }
    until_left(cluster, name, left_on(&gateways, name)).await?;
    Ok(format!("Node {name} is drained: EgressGateway {own}\n"))
}

/// Waits until gateways have nothing on the node, where there is `left` now, and tells what nobody carries any more.
async fn until_left(cluster: &Cluster, node: &str, mut left: Vec<String>) -> Result<(), String> {
    say("waiting", &left);
    let done = cluster.follow(watcher::Config::default(), |gateways: &Objects<EgressGateway>| {
        let now = left_on(gateways, node);
        if now.is_empty() {
            return ControlFlow::Break(abandoned(gateways, node));
        }
        if now != left {
            say("waiting", &now);
            left = now;
        }
        ControlFlow::Continue(())
    });
    match done.await {
        Some(abandoned) => {
            say("warning", &abandoned);
            Ok(())
        }
        None => Err(format!("Node {node} is annotated, but not drained within {}:\n{}", cluster.timeout(), left.join("\n"))),
    }
}

/// Lets gateways use a node again. It stands by: what went elsewhere stays there.
pub(crate) async fn undrain(cluster: &Cluster, name: &str) -> Result<String, String> {
    let node = existing(cluster, name).await?;
    if node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true) {
        eprintln!("warning: Node {name} is cordoned (spec.unschedulable): gateways don't use it before that ends as well");
    }
    if !node.annotations().contains_key(&annotation()) {
        return Ok(format!("Node {name} has no annotation {}: nothing to do\n", annotation()));
    }
    cluster.annotate::<Node>(name, &annotation(), None).await?;
    Ok(format!("Node {name} may be used by gateways again\n"))
}

fn annotation() -> String {
    format!("{}{}", world::Node::ANNOTATION_PREFIX, world::Node::DRAIN)
}

async fn existing(cluster: &Cluster, name: &str) -> Result<Node, String> {
    let node = cluster.get::<Node>(name).await?;
    node.ok_or_else(|| Problem::new("NODE", name, "must be a Node of the cluster: there is none of this name").to_string())
}

fn say(kind: &str, lines: &[String]) {
    for line in lines {
        eprintln!("{kind}: {line}");
    }
}

/// The names of those gateways that are so, in one line.
fn names(gateways: &Objects<EgressGateway>, so: impl Fn(&EgressGateway) -> bool) -> String {
    let names: Vec<&str> = gateways.iter().filter(|(_, gateway)| so(gateway)).map(|(name, _)| name.as_str()).collect();
    names.join(", ")
}

fn nodes(gateway: &EgressGateway) -> &[GatewayNode] {
    gateway.status.as_ref().map_or(&[], |status| &status.node_list)
}

fn member<'a>(gateway: &'a EgressGateway, node: &str) -> Option<&'a GatewayNode> {
    nodes(gateway).iter().find(|member| member.name == node)
}

fn is_ready(member: &GatewayNode) -> bool {
    member.status == GatewayNodeStatus::Ready
}

fn is_last_ready(gateway: &EgressGateway, node: &str) -> bool {
    let mut ready = nodes(gateway).iter().filter(|member| is_ready(member)).peekable();
    ready.peek().is_some() && ready.all(|member| member.name == node)
}

/// What gateways still have on a node, as lines. Its status counts as well: before the controller has seen the annotation, a node that
/// stands by could be elected yet. Egress addresses can't leave where no other node is Ready.
fn left_on(gateways: &Objects<EgressGateway>, node: &str) -> Vec<String> {
    let line = |(name, gateway): (&String, &EgressGateway)| {
        let member = member(gateway, node)?;
        let can_leave = nodes(gateway).iter().any(is_ready);
        let mut left = Vec::new();
        if member.status != GatewayNodeStatus::NotReady {
            left.push(format!("is {:?}", member.status));
        }
        if member.active {
            left.push("is active".to_owned());
        }
        if can_leave && !member.egress_ips.is_empty() {
            left.push(format!("has {}", member.egress_ips.join(", ")));
        }
        (!left.is_empty()).then(|| format!("EgressGateway {name}: {node} {}", left.join(", ")))
    };
    gateways.iter().filter_map(line).collect()
}

/// Gateways of a node that nobody carries traffic of any more, as lines. Egress addresses are an exception: clients follow their owner,
/// Ready or not, and the controller leaves them where they are as long as nobody else could have them.
fn abandoned(gateways: &Objects<EgressGateway>, node: &str) -> Vec<String> {
    let line = |(name, gateway): (&String, &EgressGateway)| {
        let member = member(gateway, node).filter(|_| !nodes(gateway).iter().any(is_ready))?;
        let stay = if member.egress_ips.is_empty() {
            String::new()
        } else {
            format!(", but for that of {}, which goes on through {node}", member.egress_ips.join(", "))
        };
        Some(format!("EgressGateway {name} has no Ready node: its traffic is dropped{stay}"))
    };
    gateways.iter().filter_map(line).collect()
}
