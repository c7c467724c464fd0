//! A real cluster on this machine: brings it up with the product in it, and takes it away again.

use std::{fmt::Display, path::PathBuf, process::ExitCode, thread};

use clap::{Parser, Subcommand};
use egressgateway_testkit::e2e::{self, OUTSIDE, OUTSIDE_NETWORKS, Site, Variant};
use nix::unistd::geteuid;

/// A real Kubernetes cluster out of namespaces. Needs root; nothing of the machine is changed.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Starts a cluster with the product and an example, leaves it running, and says how to look
    /// around.
    Up {
        /// Flannel, kube-proxy and iptables of this kind: usual, routed or legacy.
        #[arg(long, default_value = "usual")]
        variant: Variant,
        /// A cluster without the product.
        #[arg(long)]
        bare: bool,
    },
    /// Ends the cluster that runs, and removes all of it.
    Down,
    /// A node's first process.
    #[command(hide = true)]
    Node {
        name: String,
        directory: PathBuf,
        announcement: PathBuf,
        programs: PathBuf,
    },
    /// Holds a network.
    #[command(hide = true)]
    Hold,
    /// The server outside.
    #[command(hide = true)]
    Serve { log: PathBuf },
    /// Takes the cluster away when its input ends.
    #[command(hide = true)]
    Guard { directory: PathBuf, run: String },
}

fn said(error: impl Display) -> String {
    error.to_string()
}

fn run(command: Command) -> Result<(), String> {
    match command {
        Command::Up { variant, bare } => up(variant, bare),
        Command::Down if !geteuid().is_root() => Err("needs root".to_owned()),
        Command::Down => e2e::down().map_err(said),
        Command::Node {
            name,
            directory,
            announcement,
            programs,
        } => e2e::init(&name, &directory, &announcement, &programs)
            .map(|never| match never {})
            .map_err(said),
        Command::Hold => loop {
            thread::park();
        },
        Command::Serve { log } => e2e::serve(&log).map_err(said),
        Command::Guard { directory, run } => e2e::guard(&directory, &run).map_err(said),
    }
}

fn up(variant: Variant, bare: bool) -> Result<(), String> {
    let program = std::env::current_exe().map_err(said)?;
    let site = Site::start(e2e::assets(&[])?, program, variant)?;
    if !bare {
        site.install_chart(&[])?;
        site.say("the chart is installed");
        example(&site);
        site.say("the example runs");
    }
    let directory = site.directory().display().to_string();
    site.keep().map_err(said)?;
    let [server, server6] = OUTSIDE;
    println!(
        "
The cluster runs. To look around:

  {directory}/bin/kubectl get nodes,pods -A -o wide
  {directory}/bin/kubectl get egressgateways,egressgatewaypolicies,egressnodes
  {directory}/bin/kubectl exec governed-node3 -- wget -qO- http://{server}/        the source that the server outside sees
  {directory}/bin/kubectl exec governed-node3 -- wget -qO- http://[{server6}]/
  {directory}/bin/kubectl exec -it governed-node3 -- sh                              a pod's shell
  {directory}/bin/node node1                                                         a node's shell
  {directory}/bin/helm list -A
  tail -f {directory}/outside.log                                                    the server's view
  ls {directory}/node1/var/log                                                       logs of kubelet, containerd, kube-proxy, flannel

kubectl and helm work in the cluster's network; KUBECONFIG={directory}/admin.conf is their file. To end it:

  target/debug/e2e down"
    );
    Ok(())
}

/// A gateway of two nodes, a policy, and on each other node a pod that it governs and one that it
/// does not.
fn example(site: &Site) {
    use serde_json::json;
    let api = site.api();
    for node in ["node1", "node2"] {
        api.merge(
            "Node",
            "",
            node,
            &json!({"metadata": {"labels": {"egress": "true"}}}),
        );
    }
    let group = "egressgateway.spidernet.io/v1";
    api.apply(&json!({
        "apiVersion": group, "kind": "EgressGateway", "metadata": {"name": "egressgateway"},
        "spec": {"nodeSelector": {"matchLabels": {"egress": "true"}}},
    }));
    api.apply(&json!({
        "apiVersion": group, "kind": "EgressGatewayPolicy", "metadata": {"name": "governed"},
        "spec": {"egressGatewayName": "egressgateway", "appliedTo": {"podSelector": {"matchLabels": {"egress": "governed"}}}, "destCIDR": OUTSIDE_NETWORKS},
    }));
    for node in ["node1", "node2", "node3"] {
        site.start_pod(
            "default",
            &format!("governed-{node}"),
            node,
            &[("egress", "governed")],
        );
        site.start_pod("default", &format!("free-{node}"), node, &[]);
    }
    api.wait_for_condition("EgressGateway", "", "egressgateway", "Ready");
    for node in ["node1", "node2", "node3"] {
        for kind in ["governed", "free"] {
            api.wait_for_condition("Pod", "default", &format!("{kind}-{node}"), "Ready");
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("e2e: {error}");
            ExitCode::FAILURE
        }
    }
}
