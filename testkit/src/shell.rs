//! Programs in the namespaces of the calling thread.

use std::{
    io::{self, Write},
    process::{Command, Stdio},
};

/// Gives `input` to a program; its output, or what went wrong.
///
/// # Errors
/// When it can't be started or fails: its words, its status and what it said.
pub fn command(words: &[&str], input: &str) -> io::Result<String> {
    let (program, arguments) = words
        .split_first()
        .ok_or_else(|| io::Error::other("no program"))?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let written = child
        .stdin
        .take()
        .map(|mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output()?;
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    if !output.status.success() {
        return Err(io::Error::other(format!(
            "{words:?}: {}: {}",
            output.status,
            text(&output.stderr)
        )));
    }
    written.transpose()?;
    Ok(text(&output.stdout))
}

/// Runs lines of a shell that must succeed; their output.
///
/// # Panics
/// When one fails, with the lines and what they said.
#[allow(clippy::must_use_candidate)]
pub fn run(lines: &str) -> String {
    command(&["bash", "-e"], lines).unwrap_or_else(|error| panic!("{lines}\n{error}"))
}
