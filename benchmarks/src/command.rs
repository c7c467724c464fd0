//! Programs of the host, in the network namespace of the calling thread.

use std::{
    io::Write,
    process::{Command, Stdio},
};

/// Runs a program, gives it `input` and returns what it printed.
///
/// # Panics
/// When it can't be started or fails: what was to be measured is not there.
#[allow(clippy::must_use_candidate, reason = "most are run for what they do")]
pub fn run(words: &[&str], input: &str) -> String {
    let (program, arguments) = words.split_first().expect("a program");
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    // The programs print nothing before they have read everything, so nobody waits for the other.
    let written = child
        .stdin
        .take()
        .expect("a pipe")
        .write_all(input.as_bytes());
    let output = child.wait_with_output().expect("its output");
    assert!(
        output.status.success(),
        "{words:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    written.unwrap_or_else(|error| panic!("{words:?}: {error}"));
    String::from_utf8(output.stdout).expect("text")
}

/// Runs a shell script that stops at its first failure.
#[allow(clippy::must_use_candidate, reason = "most are run for what they do")]
pub fn shell(script: &str) -> String {
    run(&["bash", "-e"], script)
}
