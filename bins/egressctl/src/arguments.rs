//! What the offline commands are told.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// What the offline commands read and write.
#[derive(Args)]
pub(crate) struct Input {
    /// YAML files, directories of them, or - for the standard input; as often as needed.
    #[arg(short, long = "file", required = true)]
    pub(crate) file: Vec<PathBuf>,
    /// Takes statuses as they stand, instead of letting the controller continue from them.
    #[arg(long)]
    pub(crate) statuses_as_given: bool,
    /// The daemons' configuration; its defaults without it.
    #[arg(long)]
    pub(crate) config: Option<PathBuf>,
    /// How it is written.
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: Output,
}

#[derive(Clone, Copy, Default, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

#[derive(Clone, Copy, Default, ValueEnum)]
pub(crate) enum Backend {
    /// One nftables table.
    #[default]
    Nftables,
    /// ipsets and iptables chains.
    Netfilter,
}
