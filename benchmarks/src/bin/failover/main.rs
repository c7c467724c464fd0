//! How long traffic stops when a gateway is lost, whether anything stops it that should not, and
//! what finding out costs. Prints a table for each part, and writes it into a page if asked to;
//! changes nothing outside of its own network namespaces.

mod distribution;
mod egress_ip;
mod load;
mod power;
mod probes;
mod race;
mod restart;
mod scene;

use std::{io, path::PathBuf, process::ExitCode};

use clap::{Parser, ValueEnum};
use egressgateway_testkit::page;

/// Measures failovers. Needs root, for network namespaces; the host's network is not touched.
#[derive(Debug, Parser)]
struct Arguments {
    /// Only these parts, separated by commas; the tables of the others stay as they are.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// How often a gateway is lost in each way, for each policy backend.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// How often a gateway is lost and nobody says so but its Lease, for each policy backend. Each
    /// time takes most of a minute.
    #[arg(long, default_value_t = 3)]
    leases: u32,
    /// How long nothing fails while the processors are busy, in seconds, for each policy backend.
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..))]
    load: u64,
    /// How many pods start and speak at once, for each policy backend.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pods: u32,
    /// Writes the tables into this file, between their markers.
    #[arg(long)]
    write: Option<PathBuf>,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// The node of the active gateway loses its power, and another takes over.
    Power,
    /// The node of an egress address loses its power, and another has the address.
    EgressIp,
    /// The gateway's agent is killed and started again.
    Restart,
    /// Pods start and speak before anybody knows them.
    Race,
    /// Nothing fails, and all processors are busy.
    Load,
    /// What answering probes costs a gateway.
    Probes,
}

impl Part {
    /// As it is called in the arguments, and by its markers.
    fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }

    fn measure(self, arguments: &Arguments) -> io::Result<String> {
        match self {
            Self::Power => power::measure(arguments.runs),
            Self::EgressIp => egress_ip::measure(arguments.runs, arguments.leases),
            Self::Restart => restart::measure(arguments.runs),
            Self::Race => race::measure(arguments.pods),
            Self::Load => load::measure(std::time::Duration::from_secs(arguments.load)),
            Self::Probes => probes::measure(),
        }
    }
}

/// Measures one part after the other, and writes each as soon as it is there: what comes later may
/// fail.
fn measure(arguments: &Arguments) -> io::Result<()> {
    let all = Part::value_variants();
    for part in all
        .iter()
        .filter(|part| arguments.only.is_empty() || arguments.only.contains(part))
    {
        let named =
            |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", part.name()));
        let table = part.measure(arguments).map_err(named)?;
        println!("{table}\n");
        if let Some(path) = &arguments.write {
            page::write(path, &part.name(), &table).map_err(named)?;
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if !nix::unistd::geteuid().is_root() {
        eprintln!("failover: needs root, for network namespaces");
        return ExitCode::FAILURE;
    }
    match measure(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("failover: {error}");
            ExitCode::FAILURE
        }
    }
}
