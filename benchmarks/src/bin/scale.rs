//! What the daemons cost in a large cluster: memory, requests, watch events, time. Prints tables;
//! changes nothing outside of its own network namespaces.

use std::{fs, io, process::ExitCode, time::Duration};

use clap::Parser;
use egressgateway_benchmarks::scale::{Size, Times, measure, report};
use egressgateway_testkit::kube;

/// Measures the daemons on a real control plane. Needs root, for network namespaces; the host's
/// network is not touched.
#[derive(Parser)]
struct Arguments {
    /// Nodes; four of them run real agents.
    #[arg(long, default_value_t = 1000)]
    nodes: usize,
    /// Pods, spread over the nodes.
    #[arg(long, default_value_t = 10_000)]
    pods: usize,
    /// Policies, each for the pods of one application.
    #[arg(long, default_value_t = 1000)]
    policies: usize,
    /// Pods that are replaced in the rollout.
    #[arg(long, default_value_t = 1000)]
    rollout: usize,
    /// How long nothing changes, in seconds: watches begin anew within five minutes.
    #[arg(long, default_value_t = 300)]
    idle: u64,
    /// How long is looked after a policy for every pod came, in seconds.
    #[arg(long, default_value_t = 90)]
    change: u64,
    /// Writes the tables into this file, between its markers.
    #[arg(long)]
    write: Option<String>,
}

fn run(arguments: &Arguments) -> Result<(), String> {
    let assets = kube::assets().ok_or("there is no control plane: scripts/kube-assets says why")?;
    let Arguments {
        nodes,
        pods,
        policies,
        rollout,
        ..
    } = *arguments;
    let times = Times {
        idle: Duration::from_secs(arguments.idle),
        change: Duration::from_secs(arguments.change),
    };
    let tables = report(&measure(
        assets,
        Size {
            nodes,
            pods,
            policies,
            rollout,
        },
        times,
    )?);
    println!("{tables}");
    arguments.write.as_ref().map_or(Ok(()), |path| {
        write_between_markers(path, &tables).map_err(|error| error.to_string())
    })
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt().with_writer(io::stderr).init();
    if !nix::unistd::geteuid().is_root() {
        eprintln!("scale: needs root, for network namespaces");
        return ExitCode::FAILURE;
    }
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("scale: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write_between_markers(path: &str, tables: &str) -> io::Result<()> {
    const MARKERS: [&str; 2] = ["<!-- tables -->", "<!-- end of tables -->"];
    let text = fs::read_to_string(path)?;
    let missing = || io::Error::other(format!("{path} has no {} and {}", MARKERS[0], MARKERS[1]));
    let (before, rest) = text.split_once(MARKERS[0]).ok_or_else(missing)?;
    let (_, after) = rest.split_once(MARKERS[1]).ok_or_else(missing)?;
    fs::write(
        path,
        format!("{before}{}\n{tables}{}{after}", MARKERS[0], MARKERS[1]),
    )
}
