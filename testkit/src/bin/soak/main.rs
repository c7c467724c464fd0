//! Random events in whole clusters until something is wrong; then the few events that are enough
//! for it, in a file. Needs root, for network namespaces; the host's network is not touched.

use std::{
    fs,
    path::PathBuf,
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use clap::Parser;
use egressgateway_testkit::soak::{Outcome, Run, shrink};

/// Looks for events after which a packet leaves with a wrong source, or none where one should.
#[derive(Debug, Parser)]
struct Arguments {
    /// Where the events come from; without it, from the clock.
    #[arg(long)]
    seed: Option<u64>,
    /// How many events.
    #[arg(long, default_value_t = 300)]
    events: usize,
    /// How many of them happen in one cluster; each further cluster has the next seed.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    cluster: u32,
    /// The policy backend; without it, each.
    #[arg(long)]
    backend: Option<String>,
    /// Kinds of events that do not happen, separated by commas.
    #[arg(long, value_delimiter = ',')]
    without: Vec<String>,
    /// Plays the events of this file instead.
    #[arg(long)]
    replay: Option<PathBuf>,
    /// How often a part of a failing run is played to find out whether it is enough.
    #[arg(long, default_value_t = 30)]
    shrink: usize,
    /// Where the few events of a failing run are written; without it, soak-SEED.json here.
    #[arg(long)]
    write: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match runs(&arguments) {
        Ok(runs) if runs.iter().all(|run| is_right(&arguments, run)) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("soak: {error}");
            ExitCode::from(2)
        }
    }
}

fn runs(arguments: &Arguments) -> Result<Vec<Run>, String> {
    if let Some(path) = &arguments.replay {
        let text =
            fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let run: Run =
            serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
        return Ok(vec![Run {
            backend: arguments.backend.clone().unwrap_or(run.backend),
            ..run
        }]);
    }
    let clock = || {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(1, |since| since.as_secs())
    };
    let (seed, cluster) = (
        arguments.seed.unwrap_or_else(clock),
        usize::try_from(arguments.cluster).unwrap_or(usize::MAX),
    );
    let backends: Vec<&str> = arguments
        .backend
        .as_deref()
        .map_or_else(|| vec!["nftables", "netfilter"], |backend| vec![backend]);
    let part = |backend: &str, number: usize| {
        let count = cluster.min(arguments.events - number * cluster);
        Run::of_seed(backend, seed + number as u64, count, &arguments.without)
    };
    let parts = arguments.events.div_ceil(cluster);
    Ok(backends
        .into_iter()
        .flat_map(|backend| (0..parts).map(move |number| part(backend, number)))
        .collect())
}

fn is_right(arguments: &Arguments, run: &Run) -> bool {
    println!(
        "{}: seed {}, {} events",
        run.backend,
        run.seed,
        run.events.len()
    );
    let (after, what) = match run.play() {
        Outcome::Right { packets, answers } => {
            println!("  right: {packets} packets and {answers} sights of servers");
            return true;
        }
        Outcome::Wrong { after, what } => (after, what),
    };
    println!("  WRONG after {after} events: {what}");
    if arguments.shrink > 0 {
        let path = arguments
            .write
            .clone()
            .unwrap_or_else(|| format!("soak-{}.json", run.seed).into());
        let text = |run: &Run| serde_json::to_string_pretty(run).unwrap_or_default();
        // Kept at each step: shrinking takes long, and may be interrupted.
        let few = shrink(run, after, arguments.shrink, |shorter, what| {
            println!("  {} events do: {what}", shorter.events.len());
            if let Err(error) = fs::write(&path, text(shorter)) {
                eprintln!("soak: {}: {error}", path.display());
            }
        });
        println!(
            "  {} events are enough: {}\n{}",
            few.events.len(),
            path.display(),
            text(&few)
        );
    }
    false
}
