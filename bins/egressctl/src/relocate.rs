use std::{net::IpAddr, ops::ControlFlow, time::Duration};

use egressgateway::{
    api::{EgressGateway, EgressGatewayPolicy, EgressIp, GatewayNodeStatus},
    spec::Problem,
    world,
};
use kube::{ResourceExt, runtime::watcher};

use crate::online::{Cluster, Objects};

/// The wish for a node stands in the policy, as long as it is not fulfilled: no controller needs to
/// remember it.
const WISH: &str = world::Policy::NODE_ANNOTATION;
/// How much longer than the timeout taking back a wish may take.
const GRACE: Duration = Duration::from_secs(10);

/// Moves an egress address, and what its policy has besides, to another node of its gateway, and
/// waits until that is so.
///
/// The wish is taken back at the end: an address that was moved stays where it is, until its node
/// is lost. A wish that stood there before for the same node stays.
pub(crate) async fn relocate(
    cluster: &Cluster,
    address: IpAddr,
    node: &str,
) -> Result<String, String> {
    let (name, policy) = holder(cluster, address).await?;
    may_go(cluster, &policy, node).await?;
    let before = wish_of(&policy);
    let addresses = addresses(&policy)
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ");
    if node_of(&policy) == Some(node) && before.is_none_or(|before| before == node) {
        return Ok(format!(
            "EgressGatewayPolicy {name} has {addresses} at {node} already: nothing to do\n"
        ));
    }
    eprintln!(
        "waiting: EgressGatewayPolicy {name} has {addresses} at {}",
        node_of(&policy).unwrap_or("no node")
    );
    if before == Some(node) {
        until_moved(cluster, &name, address, node).await?;
        eprintln!("note: {}", stands(&name, node));
    } else {
        cluster
            .annotate::<EgressGatewayPolicy>(&name, WISH, Some(node))
            .await?;
        let moved = until_moved(cluster, &name, address, node).await;
        // A wish for another node, which stood there before, comes back only where nothing was
        // moved.
        let instead = before.filter(|_| moved.is_err());
        let taken_back = take_back(&cluster.with_grace(GRACE), &name, node, instead).await;
        let taken_back = taken_back.map_err(|error| format!("{error}\n{}", stands(&name, node)));
        match (moved, taken_back) {
            (Ok(()), taken_back) => taken_back?,
            (Err(late), Ok(())) => return Err(late),
            (Err(late), Err(error)) => return Err(format!("{late}\n{error}")),
        }
        if let Some(before) = before {
            eprintln!(
                "warning: EgressGatewayPolicy {name} had the annotation {WISH}={before}, which is gone"
            );
        }
    }
    Ok(format!(
        "EgressGatewayPolicy {name} has {addresses} at {node}\n"
    ))
}

/// Waits until the policy's status says that its address is with the node.
async fn until_moved(
    cluster: &Cluster,
    policy: &str,
    address: IpAddr,
    node: &str,
) -> Result<(), String> {
    let one = watcher::Config::default().fields(&format!("metadata.name={policy}"));
    let moved = cluster.follow(
        one,
        |policies: &Objects<EgressGatewayPolicy>| match policies.get(policy) {
            Some(policy) if addresses(policy).contains(&address) => {
                if node_of(policy) == Some(node) {
                    ControlFlow::Break(Ok(()))
                } else {
                    ControlFlow::Continue(())
                }
            }
            _ => ControlFlow::Break(Err(format!(
                "EgressGatewayPolicy {policy} does not have {address} any more"
            ))),
        },
    );
    let late = || {
        Err(format!(
            "EgressGatewayPolicy {policy} did not have {address} at {node} within {}",
            cluster.timeout()
        ))
    };
    moved.await.unwrap_or_else(late)
}

/// The policy that has an address.
async fn holder(
    cluster: &Cluster,
    address: IpAddr,
) -> Result<(String, EgressGatewayPolicy), String> {
    let policies = cluster.list::<EgressGatewayPolicy>().await?;
    let holder = policies
        .into_iter()
        .find(|(_, policy)| addresses(policy).contains(&address));
    holder.ok_or_else(|| {
        Problem::new(
            "EGRESS-IP",
            address,
            "must be in use: status.egressIP of no EgressGatewayPolicy has it",
        )
        .to_string()
    })
}

/// Refuses a node that the policy's gateway can't use.
async fn may_go(cluster: &Cluster, policy: &EgressGatewayPolicy, node: &str) -> Result<(), String> {
    let named = policy
        .status
        .as_ref()
        .and_then(|status| status.egress_gateway.as_deref())
        .unwrap_or_default();
    let gateway = cluster.get::<EgressGateway>(named).await?;
    let members = gateway
        .and_then(|gateway| gateway.status)
        .map(|status| status.node_list)
        .unwrap_or_default();
    let ready: Vec<&str> = members
        .iter()
        .filter(|member| member.status == GatewayNodeStatus::Ready)
        .map(|member| member.name.as_str())
        .collect();
    if ready.contains(&node) {
        return Ok(());
    }
    let choice = if ready.is_empty() {
        "there is none".to_owned()
    } else {
        ready.join(", ")
    };
    Err(Problem::new(
        "NODE",
        node,
        format!("must be a Ready node of EgressGateway {named}: {choice}"),
    )
    .to_string())
}

/// Takes the wish back, or puts `instead` in its place, unless somebody else has changed it
/// meanwhile.
async fn take_back(
    cluster: &Cluster,
    policy: &str,
    wish: &str,
    instead: Option<&str>,
) -> Result<(), String> {
    loop {
        let Some(policy) = cluster.get::<EgressGatewayPolicy>(policy).await? else {
            return Ok(());
        };
        if wish_of(&policy) != Some(wish)
            || cluster.annotate_unchanged(&policy, WISH, instead).await?
        {
            return Ok(());
        }
    }
}

fn stands(policy: &str, node: &str) -> String {
    format!(
        "the annotation {WISH}={node} stands: the address comes back to {node} whenever that is Ready; \
         kubectl annotate egressgatewaypolicy {policy} {WISH}- ends it"
    )
}

fn wish_of(policy: &EgressGatewayPolicy) -> Option<&str> {
    policy.annotations().get(WISH).map(String::as_str)
}

fn node_of(policy: &EgressGatewayPolicy) -> Option<&str> {
    policy.status.as_ref()?.node.as_deref()
}

fn addresses(policy: &EgressGatewayPolicy) -> Vec<IpAddr> {
    let EgressIp { ipv4, ipv6 } = policy
        .status
        .as_ref()
        .and_then(|status| status.egress_ip.clone())
        .unwrap_or_default();
    [ipv4, ipv6]
        .into_iter()
        .flatten()
        .filter_map(|text| text.parse().ok())
        .collect()
}
