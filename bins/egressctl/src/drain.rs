use std::{ops::ControlFlow, time::Duration};

use clap::Args;
use egressgateway::{
    api::{EgressGateway, GatewayNode, GatewayNodeStatus},
    spec::Problem,
    world,
};
use k8s_openapi::{api::core::v1::Node, jiff::Timestamp};
use kube::{ResourceExt, runtime::watcher};

use crate::online::{Cluster, Objects};

/// How much later than announced a controller may end a grace time.
const LATE: Duration = Duration::from_secs(30);

/// How a node is drained.
#[derive(Args)]
pub(crate) struct DrainArguments {
    /// The Node.
    node: String,
    /// Also where it is the last Ready one of a gateway, whose traffic nobody else can take.
    #[arg(long)]
    force: bool,
    /// Ends when no new connection goes through the node any more, and does not wait for those that
    /// may go on in the grace time.
    #[arg(long)]
    without_grace: bool,
}

/// Takes a node out of all gateways, and waits until their statuses say that nothing is left on it:
/// first no traffic that begins, then, when the grace time is over, none at all.
///
/// Refused, unless forced, where the node is the last Ready one of a gateway: nobody else could
/// take that gateway's traffic.
pub(crate) async fn drain(cluster: &Cluster, arguments: &DrainArguments) -> Result<String, String> {
    let DrainArguments {
        node: name,
        force,
        without_grace,
    } = arguments;
    let node = existing(cluster, name).await?;
    let gateways = cluster.list::<EgressGateway>().await?;
    let own = names(&gateways, |gateway| member(gateway, name).is_some());
    if own.is_empty() {
        return Err(Problem::new(
            "NODE",
            name,
            "must belong to an EgressGateway: status.nodeList of none names it",
        )
        .to_string());
    }
    if node
        .annotations()
        .get(&annotation())
        .is_some_and(|value| value == "true")
    {
        eprintln!(
            "note: Node {name} has the annotation {} already",
            annotation()
        );
    } else {
        let last = names(&gateways, |gateway| is_last(gateway, name));
        if !last.is_empty() && !*force {
            let rule = format!(
                "must not be the last Ready node of EgressGateway {last}, whose traffic nobody else could take; --force does it"
            );
            return Err(Problem::new("NODE", name, rule).to_string());
        }
        cluster
            .annotate::<Node>(name, &annotation(), Some("true"))
            .await?;
    }
    until_left(cluster, name, left_on(&gateways, name)).await?;
    if !without_grace {
        until_over(cluster, name).await?;
    }
    Ok(format!("Node {name} is drained: EgressGateway {own}\n"))
}

/// Waits until no connection from before goes through the node any more, however long the grace
/// time is.
async fn until_over(cluster: &Cluster, node: &str) -> Result<(), String> {
    let Grace { mut lines, left } = Grace::of(&cluster.list().await?, node);
    if lines.is_empty() {
        return Ok(());
    }
    say("waiting", &lines);
    let cluster = cluster.with_grace(left + LATE);
    let over = cluster.follow(
        watcher::Config::default(),
        |gateways: &Objects<EgressGateway>| {
            lines = Grace::of(gateways, node).lines;
            if lines.is_empty() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        },
    );
    over.await.ok_or_else(|| {
        format!(
            "Node {node} is drained, but the grace time does not end:\n{}",
            lines.join("\n")
        )
    })
}

/// Connections from before that go through a drained node.
struct Grace {
    /// Of which gateways, and until when.
    lines: Vec<String>,
    /// Until the last of them ends.
    left: Duration,
}

impl Grace {
    fn of(gateways: &Objects<EgressGateway>, node: &str) -> Self {
        let draining = gateways.iter().filter_map(|(name, gateway)| {
            Some((name, gateway.status.as_ref()?.draining.as_ref()?))
        });
        let own: Vec<_> = draining
            .filter(|(_, draining)| draining.node == node)
            .map(|(name, draining)| (name, draining.until.0))
            .collect();
        let line = |(name, until): &(&String, Timestamp)| {
            format!(
                "EgressGateway {name}: connections from before may go through {node} until {until}"
            )
        };
        let left = own
            .iter()
            .filter_map(|(_, until)| {
                Duration::try_from(until.duration_since(Timestamp::now())).ok()
            })
            .max();
        Self {
            lines: own.iter().map(line).collect(),
            left: left.unwrap_or_default(),
        }
    }
}

/// Waits until gateways have nothing on the node, where there is `left` now, and tells what nobody
/// carries any more.
async fn until_left(cluster: &Cluster, node: &str, mut left: Vec<String>) -> Result<(), String> {
    say("waiting", &left);
    let done = cluster.follow(
        watcher::Config::default(),
        |gateways: &Objects<EgressGateway>| {
            let now = left_on(gateways, node);
            if now.is_empty() {
                return ControlFlow::Break(abandoned(gateways, node));
            }
            if now != left {
                say("waiting", &now);
                left = now;
            }
            ControlFlow::Continue(())
        },
    );
    match done.await {
        Some(abandoned) => {
            say("warning", &abandoned);
            Ok(())
        }
        None => Err(format!(
            "Node {node} is annotated, but not drained within {}:\n{}",
            cluster.timeout(),
            left.join("\n")
        )),
    }
}

/// Lets gateways use a node again. It stands by: what went elsewhere stays there.
pub(crate) async fn undrain(cluster: &Cluster, name: &str) -> Result<String, String> {
    let node = existing(cluster, name).await?;
    if node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true) {
        eprintln!(
            "warning: Node {name} is cordoned (spec.unschedulable): gateways prefer other nodes until that ends as well"
        );
    }
    if !node.annotations().contains_key(&annotation()) {
        return Ok(format!(
            "Node {name} has no annotation {}: nothing to do\n",
            annotation()
        ));
    }
    cluster.annotate::<Node>(name, &annotation(), None).await?;
    Ok(format!("Node {name} may be used by gateways again\n"))
}

fn annotation() -> String {
    format!("{}{}", world::Node::ANNOTATION_PREFIX, world::Node::DRAIN)
}

async fn existing(cluster: &Cluster, name: &str) -> Result<Node, String> {
    let node = cluster.get::<Node>(name).await?;
    node.ok_or_else(|| {
        Problem::new(
            "NODE",
            name,
            "must be a Node of the cluster: there is none of this name",
        )
        .to_string()
    })
}

fn say(kind: &str, lines: &[String]) {
    for line in lines {
        eprintln!("{kind}: {line}");
    }
}

/// The names of those gateways that are so, in one line.
fn names(gateways: &Objects<EgressGateway>, so: impl Fn(&EgressGateway) -> bool) -> String {
    let names: Vec<&str> = gateways
        .iter()
        .filter(|(_, gateway)| so(gateway))
        .map(|(name, _)| name.as_str())
        .collect();
    names.join(", ")
}

fn nodes(gateway: &EgressGateway) -> &[GatewayNode] {
    gateway
        .status
        .as_ref()
        .map_or(&[], |status| &status.node_list)
}

fn member<'a>(gateway: &'a EgressGateway, node: &str) -> Option<&'a GatewayNode> {
    nodes(gateway).iter().find(|member| member.name == node)
}

fn is_ready(member: &GatewayNode) -> bool {
    member.status == GatewayNodeStatus::Ready
}

/// Without a Ready node, the active ones go on.
fn may_carry(member: &GatewayNode) -> bool {
    is_ready(member) || member.active
}

fn is_last(gateway: &EgressGateway, node: &str) -> bool {
    let mut left = nodes(gateway)
        .iter()
        .filter(|member| may_carry(member))
        .peekable();
    left.peek().is_some() && left.all(|member| member.name == node)
}

/// What gateways still have on a node, as lines. Its status counts as well: before the controller
/// has seen the annotation, a node that stands by could be elected yet. Egress addresses can't
/// leave where no other node is Ready.
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

/// Gateways of a node that nobody carries traffic of any more, as lines. Egress addresses are an
/// exception: clients follow their owner, Ready or not, and the controller leaves them where they
/// are as long as nobody else could have them.
fn abandoned(gateways: &Objects<EgressGateway>, node: &str) -> Vec<String> {
    let line = |(name, gateway): (&String, &EgressGateway)| {
        let member = member(gateway, node).filter(|_| !nodes(gateway).iter().any(may_carry))?;
        let stay = if member.egress_ips.is_empty() {
            String::new()
        } else {
            format!(
                ", but for that of {}, which goes on through {node}",
                member.egress_ips.join(", ")
            )
        };
        Some(format!(
            "EgressGateway {name} has no Ready node: its traffic is dropped{stay}"
        ))
    };
    gateways.iter().filter_map(line).collect()
}
