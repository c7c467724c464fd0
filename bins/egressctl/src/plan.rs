use std::fmt::Write;

use egressgateway::{Driver, Error, config::Config, explain::Offline, model::NodeName};
use egressgateway_backend_netfilter::{Netfilter, NetfilterSettings};
use egressgateway_backend_nftables::{Nftables, NftablesSettings};
use egressgateway_linux::{OfflineTunnel, steering_settings};
use egressgateway_netlink::{EgressAddresses, Steering};
use serde::Serialize;

use crate::arguments::{Backend, Output};

/// What one node would program, driver by driver: shell for tunnel, steering and addresses, a
/// script of the backend's own tool for the policy.
#[derive(Serialize)]
struct NodePlan {
    node: String,
    /// What the node does not know and somebody should tell it.
    unknown: Vec<String>,
    tunnel: String,
    steering: String,
    addresses: String,
    policy: String,
}

/// The plans of all nodes, or of one, from nothing.
pub(crate) fn plan(
    cluster: &Offline,
    settings: (&Config, &OfflineTunnel),
    only: Option<&NodeName>,
    backend: Backend,
    output: Output,
) -> Result<String, String> {
    let plans: Result<Vec<NodePlan>, String> = cluster
        .nodes()
        .filter(|node| only.is_none_or(|only| only == *node))
        .map(|node| of_node(cluster, settings, node, backend))
        .collect();
    let plans = plans?;
    match (only, output) {
        (Some(node), _) if plans.is_empty() => Err(format!("there is no Node {node}")),
        (_, Output::Text) => Ok(plans.iter().map(|plan| text(plan, backend)).collect()),
        (_, Output::Json) => serde_json::to_string_pretty(&plans)
            .map(|text| text + "\n")
            .map_err(|error| error.to_string()),
    }
}

fn of_node(
    cluster: &Offline,
    (config, tunnel): (&Config, &OfflineTunnel),
    node: &NodeName,
    backend: Backend,
) -> Result<NodePlan, String> {
    let desired = cluster
        .for_drivers(node)
        .ok_or_else(|| format!("there is no Node {node}"))?;
    let failed = |error: Error| format!("Node {node}: {}", error.chain());
    let mask = config.mark.mask;
    let policy = match backend {
        Backend::Nftables => from_nothing(
            &Nftables::offline(NftablesSettings::default().with_mask(mask)),
            &desired.policy,
        ),
        Backend::Netfilter => from_nothing(
            &Netfilter::offline(NetfilterSettings::default().with_mask(mask)),
            &desired.policy,
        ),
    };
    let steering = Steering::offline(steering_settings(config, true));
    Ok(NodePlan {
        node: node.to_string(),
        unknown: cluster.unknown(node),
        tunnel: tunnel.plan(&desired.tunnel).map_err(failed)?,
        steering: from_nothing(&steering, &desired.steering).map_err(failed)?,
        addresses: from_nothing(&EgressAddresses::offline(), &desired.addresses).map_err(failed)?,
        policy: policy.map_err(failed)?,
    })
}

fn from_nothing<D: Driver>(driver: &D, desired: &D::Desired) -> Result<String, Error> {
    Ok(driver.plan(desired, &D::State::default())?.plan.to_string())
}

/// Gives each part of a plan to the command in its heading, one after the other.
const EACH_SECTION: &str = "function end() { if (command && close(command)) exit 1 } /^# / { end(); command = substr($0, 3); next } { print | command } END { end() }";

/// A shell script: run on the node as root, it programs what the agent would. The policy comes
/// first, as the agent has it: it drops what has no way yet.
fn text(plan: &NodePlan, backend: Backend) -> String {
    let NodePlan {
        node,
        unknown,
        tunnel,
        steering,
        addresses,
        policy,
    } = plan;
    let program = match backend {
        Backend::Nftables => "nft -f -".to_owned(),
        Backend::Netfilter => format!("awk '{EACH_SECTION}'"),
    };
    let mut text = String::new();
    // Writing into a String never fails.
    for unknown in unknown {
        let _ = writeln!(text, "# {node}: {unknown}");
    }
    let _ = write!(
        text,
        "# {node}: policy\n{program} <<END\n{policy}END\n# {node}: tunnel\n{tunnel}# {node}: steering\n{steering}"
    );
    if !addresses.is_empty() {
        let _ = write!(text, "# {node}: addresses\n{addresses}");
    }
    text
}
