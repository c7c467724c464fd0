//! Commands, their output, and what they say when they fail.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

/// Where a program is that is called by its name.
pub(super) fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(system)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// What a command prints; all that it said when it fails.
pub(super) fn output(mut command: Command) -> Result<String, String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{command:?}: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    Err(format!(
        "{command:?}: {}: {} {}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    ))
}

pub(super) fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}
