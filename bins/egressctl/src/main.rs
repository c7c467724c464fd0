//! `egressctl`: plans and explains the egress gateway offline, from manifests, and drains its nodes
//! and moves its addresses in a cluster. It speaks to no kernel.
//!
//! Exit codes: 0 done; 1 the manifests or the question are wrong, or the cluster refused or did not
//! get there in time; 2 the command line is wrong.

mod answer;
mod arguments;
mod drain;
mod input;
mod online;
mod plan;
mod relocate;

use std::{io::Write, net::IpAddr, process::ExitCode};

use arguments::{Backend, Input};
use clap::{Parser, Subcommand};
use drain::DrainArguments;
use egressgateway::model::{NodeName, PodName};
use online::Online;

/// Exit code of whatever was not done. The command line's, 2, is clap's own.
const FAILED: u8 = 1;

/// Plans and explains the egress gateway offline, from manifests, and drains its nodes and moves
/// its addresses in a cluster.
///
/// Exit codes: 0 done; 1 the manifests or the question are wrong, or the cluster refused or did not
/// get there in time; 2 the command line is wrong.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Prints what each node would program, starting from nothing.
    Plan {
        #[command(flatten)]
        input: Input,
        /// Only this node.
        #[arg(long)]
        node: Option<String>,
        /// Who classifies and translates.
        #[arg(long, value_enum, default_value_t)]
        backend: Backend,
    },
    /// Says what a new connection of a pod meets, and why.
    Explain {
        #[command(flatten)]
        input: Input,
        /// The pod, as NAMESPACE/NAME.
        #[arg(long, value_parser = pod)]
        from: PodName,
        /// The destination.
        #[arg(long)]
        to: IpAddr,
    },
    /// Takes a node out of all gateways of the cluster, and waits until nothing is left on it.
    Drain {
        #[command(flatten)]
        online: Online,
        #[command(flatten)]
        arguments: DrainArguments,
    },
    /// Lets the cluster's gateways use a node again; what went elsewhere stays there.
    Undrain {
        #[command(flatten)]
        online: Online,
        /// The Node.
        node: String,
    },
    /// Moves an egress address, with those that its policy has besides, to another node of its
    /// gateway, and waits until it is there.
    Move {
        #[command(flatten)]
        online: Online,
        /// The address.
        #[arg(value_name = "EGRESS-IP")]
        address: IpAddr,
        /// A Ready node of the address's gateway.
        node: String,
    },
}

fn pod(text: &str) -> Result<PodName, String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
            Ok(PodName::new(namespace, name))
        }
        _ => Err("must be NAMESPACE/NAME".to_owned()),
    }
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(text) => match std::io::stdout().write_all(text.as_bytes()) {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                failed(&format!("write the answer: {error}"))
            }
            _ => ExitCode::SUCCESS,
        },
        Err(errors) => failed(&errors),
    }
}

fn failed(errors: &str) -> ExitCode {
    for line in errors.lines() {
        eprintln!("error: {line}");
    }
    ExitCode::from(FAILED)
}

fn run(arguments: &Arguments) -> Result<String, String> {
    match &arguments.command {
        Command::Plan {
            input,
            node,
            backend,
        } => {
            let (cluster, config, tunnel) = input::read(input)?;
            plan::plan(
                &cluster,
                (&config, &tunnel),
                node.as_deref().map(NodeName::from).as_ref(),
                *backend,
                input.output,
            )
        }
        Command::Explain { input, from, to } => {
            answer::explain(&input::read(input)?.0, from, *to, input.output)
        }
        Command::Drain { online, arguments } => {
            online.run(async |cluster| drain::drain(cluster, arguments).await)
        }
        Command::Undrain { online, node } => {
            online.run(async |cluster| drain::undrain(cluster, node).await)
        }
        Command::Move {
            online,
            address,
            node,
        } => online.run(async |cluster| relocate::relocate(cluster, *address, node).await),
    }
}
