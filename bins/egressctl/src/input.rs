use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use egressgateway::{
    config::Config,
    explain::{Finding, Manifests, Offline, OfflineSettings, Statuses},
    index::ObjectError,
    spec::Problem,
};
use egressgateway_linux::OfflineTunnel;

use crate::arguments::Input;

/// Endings of files that are read from directories.
const ENDINGS: [&str; 3] = ["yaml", "yml", "json"];

/// The cluster of all files. What the cluster would only complain about in a condition is a warning
/// here.
pub(crate) fn read(input: &Input) -> Result<(Offline, Config, OfflineTunnel), String> {
    let config = configuration(input.config.as_deref())?;
    let tunnel = OfflineTunnel::of(&config).map_err(|problem| problem.to_string())?;
    let mut manifests = Manifests::default();
    for path in &input.file {
        if path.as_os_str() == "-" {
            let mut text = String::new();
            io::stdin()
                .read_to_string(&mut text)
                .map_err(|error| format!("-: {error}"))?;
            manifests.read("-", &text);
            continue;
        }
        for file in files(path)? {
            let text = fs::read_to_string(&file)
                .map_err(|error| format!("{}: {error}", file.display()))?;
            manifests.read(&file.display().to_string(), &text);
        }
    }
    let (errors, remarks): (Vec<_>, Vec<_>) = manifests
        .findings()
        .iter()
        .partition(|finding| finding.is_error());
    for remark in remarks {
        eprintln!("note: {remark}");
    }
    if !errors.is_empty() {
        return Err(errors
            .iter()
            .map(|error: &&Finding| error.to_string())
            .collect::<Vec<_>>()
            .join("\n"));
    }
    let statuses = if input.statuses_as_given {
        Statuses::Given
    } else {
        Statuses::Planned
    };
    let cluster = Offline::new(
        &manifests,
        OfflineSettings::of_config(&config, tunnel.encapsulation()).with_statuses(statuses),
    );
    for note in cluster.notes() {
        eprintln!("note: {note}");
    }
    for trouble in cluster.troubles() {
        match trouble {
            ObjectError::Policy(name, problem) => {
                eprintln!("warning: EgressGatewayPolicy {name}: {problem}");
            }
            ObjectError::Gateway(name, problem) => {
                eprintln!("warning: EgressGateway {name}: {problem}");
            }
            ObjectError::Unresolved(name, problem) => {
                eprintln!("warning: EgressGatewayPolicy {name} holds what it governs: {problem}");
            }
        }
    }
    Ok((cluster, config, tunnel))
}

fn configuration(path: Option<&Path>) -> Result<Config, String> {
    let Some(path) = path else {
        return Ok(Config::default());
    };
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let lines = |problems: Vec<Problem>| {
        let lines: Vec<String> = problems
            .iter()
            .map(|problem| format!("{}: {problem}", path.display()))
            .collect();
        lines.join("\n")
    };
    Config::parse(&text).map_err(lines)
}

/// The file itself, or the manifests of a directory, by name.
fn files(path: &Path) -> Result<Vec<PathBuf>, String> {
    let failed = |error: io::Error| format!("{}: {error}", path.display());
    if !fs::metadata(path).map_err(failed)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries: Result<Vec<PathBuf>, io::Error> = fs::read_dir(path)
        .map_err(failed)?
        .map(|entry| Ok(entry?.path()))
        .collect();
    let mut files = entries.map_err(failed)?;
    files.retain(|file| {
        file.extension()
            .and_then(|ending| ending.to_str())
            .is_some_and(|ending| ENDINGS.contains(&ending))
    });
    files.sort();
    if files.is_empty() {
        Err(format!(
            "{}: has no file ending in .yaml, .yml or .json",
            path.display()
        ))
    } else {
        Ok(files)
    }
}
