//! The iptables programs: scripts in, rules out, failures classified.

use std::process::Stdio;

use egressgateway::{Error, ErrorKind, model::Family};
use tokio::{io::AsyncWriteExt, process::Command};

use crate::{exec::flavour::Flavour, exec::writes::Writes};

/// Seconds that a program waits for others to finish writing rules.
const WAIT_SECONDS: &str = "10";
/// The Debian and Alpine name of the package that has the programs.
const PACKAGE: &str = "iptables";

/// What the host's rules are, with their counters if asked for.
pub(crate) async fn save(
    flavour: Flavour,
    family: Family,
    counters: bool,
) -> Result<String, Error> {
    let program = flavour.program(family, "-save");
    let arguments: &[&str] = if counters { &["--counters"] } else { &[] };
    run(
        &program,
        arguments,
        "",
        &format!("read rules with {program}"),
    )
    .await
}

/// The same of one table, which iptables-legacy would make where the kernel does not have it.
pub(crate) async fn save_table(
    flavour: Flavour,
    family: Family,
    table: &str,
) -> Result<String, Error> {
    let program = flavour.program(family, "-save");
    run(
        &program,
        &["-t", table],
        "",
        &format!("read table {table} with {program}"),
    )
    .await
}

/// Arguments with which rules are written: one transaction per table, and others' rules stay.
const RESTORE: [&str; 3] = ["--noflush", "-w", WAIT_SECONDS];

/// Runs a script, whose process `writes` remembers.
pub(crate) async fn restore(
    flavour: Flavour,
    family: Family,
    script: &str,
    writes: &Writes,
) -> Result<(), Error> {
    let program = flavour.program(family, "-restore");
    let context = format!("write rules with {program}");
    start(&program, &RESTORE, script, &context, |process| {
        writes.remember(process);
    })
    .await
    .map(drop)
}

/// Whether a script could be run; changes nothing.
pub(crate) async fn test(flavour: Flavour, family: Family, script: &str) -> Result<(), Error> {
    let program = flavour.program(family, "-restore");
    run(
        &program,
        &[&RESTORE[..], &["--test"]].concat(),
        script,
        &format!("test rules with {program}"),
    )
    .await
    .map(drop)
}

/// The version that a program says it has.
pub(crate) async fn version(flavour: Flavour, family: Family) -> Result<String, Error> {
    let program = flavour.program(family, "-restore");
    run(&program, &["--version"], "", &format!("run {program}"))
        .await
        .map(|text| text.trim().to_owned())
}

async fn run(
    program: &str,
    arguments: &[&str],
    input: &str,
    context: &str,
) -> Result<String, Error> {
    start(program, arguments, input, context, |_| {}).await
}

/// Runs a program, tells its process number, and returns what it said.
async fn start(
    program: &str,
    arguments: &[&str],
    input: &str,
    context: &str,
    started: impl FnOnce(u32),
) -> Result<String, Error> {
    let mut child = Command::new(program)
        .args(arguments)
        // The C library's own words for an errno, in no language but its first.
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| not_started(error, program, context))?;
    if let Some(process) = child.id() {
        started(process);
    }
    let stdin = child.stdin.take();
    let write = async {
        if let Some(mut stdin) = stdin {
            // The program may end before it has read everything; then its exit status says why.
            drop(stdin.write_all(input.as_bytes()).await);
        }
    };
    let (output, ()) = tokio::join!(child.wait_with_output(), write);
    let output = output.map_err(|error| Error::from_io(error, context))?;
    if output.status.success() {
        return String::from_utf8(output.stdout).map_err(|error| {
            Error::new(ErrorKind::Transient, format!("{context}: output")).with_source(error)
        });
    }
    Err(refused(
        &String::from_utf8_lossy(&output.stderr),
        input,
        context,
    ))
}

fn not_started(error: std::io::Error, program: &str, context: &str) -> Error {
    if error.kind() == std::io::ErrorKind::NotFound {
        let advice =
            format!("{context}: there is no program {program}; install the package {PACKAGE}");
        return Error::new(ErrorKind::Unsupported, advice).with_source(error);
    }
    Error::from_io(error, context)
}

/// The programs have few exit statuses and say the rest in words. The first that occurs decides.
const WORDS: [(&str, ErrorKind); 19] = [
    ("you must be root", ErrorKind::Permission),
    ("Permission denied", ErrorKind::Permission),
    ("Operation not permitted", ErrorKind::Permission),
    ("holding the xtables lock", ErrorKind::Transient),
    ("Resource temporarily unavailable", ErrorKind::Transient),
    ("Table does not exist", ErrorKind::Unsupported),
    ("Couldn't load", ErrorKind::Unsupported),
    ("missing kernel module", ErrorKind::Unsupported),
    ("Protocol not supported", ErrorKind::Unsupported),
    ("unknown option", ErrorKind::Unsupported),
    ("doesn't exist", ErrorKind::Conflict),
    ("does not exist", ErrorKind::Conflict),
    ("Bad rule", ErrorKind::Conflict),
    ("Chain already exists", ErrorKind::Conflict),
    ("No chain/target/match by that name", ErrorKind::Conflict),
    ("No such file or directory", ErrorKind::Conflict),
    ("Device or resource busy", ErrorKind::Conflict),
    ("Too many links", ErrorKind::Conflict),
    ("Directory not empty", ErrorKind::Conflict),
];

/// The error that a program reported, with the line of the script that it is about.
pub(crate) fn refused(stderr: &str, input: &str, context: &str) -> Error {
    let told = |line: &&str| {
        !line.trim().is_empty() && !line.starts_with("# Warning") && !line.starts_with("Try `")
    };
    let mut cause = stderr.lines().filter(told).collect::<Vec<_>>().join("; ");
    let number = stderr
        .split_whitespace()
        .skip_while(|word| *word != "line" && *word != "line:")
        .nth(1);
    let number = number.and_then(|word| {
        word.trim_end_matches(|c: char| !c.is_ascii_digit())
            .parse::<usize>()
            .ok()
    });
    if let Some(line) = number.and_then(|number| input.lines().nth(number.checked_sub(1)?)) {
        cause = format!("{cause} ({line})");
    }
    let kind = WORDS
        .iter()
        .find(|(words, _)| stderr.contains(words))
        .map_or(ErrorKind::Transient, |(_, kind)| *kind);
    Error::new(kind, context).with_source(if cause.is_empty() {
        "the program gave no reason".to_owned()
    } else {
        cause
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_programs_say_decides_the_kind_and_names_the_line() {
        for (stderr, kind) in [
            (
                "iptables-restore: line 2 failed: No chain/target/match by that name.\n",
                ErrorKind::Conflict,
            ),
            (
                "iptables-restore v1.8.9 (legacy): Set egw-x doesn't exist.\n\nError occurred at line: 2\n",
                ErrorKind::Conflict,
            ),
            (
                "Another app is currently holding the xtables lock; still 9s\n",
                ErrorKind::Transient,
            ),
            (
                "can't initialize iptables table `raw': Permission denied (you must be root)\n",
                ErrorKind::Permission,
            ),
            (
                "can't initialize iptables table `raw': Table does not exist (do you need to insmod?)\n",
                ErrorKind::Unsupported,
            ),
            (
                "Couldn't load match `set':No such file or directory\n",
                ErrorKind::Unsupported,
            ),
            ("", ErrorKind::Transient),
        ] {
            assert_eq!(
                refused(stderr, "*raw\n-A X -j Y\n", "load").kind,
                kind,
                "{stderr}"
            );
        }
        let error = refused("Error occurred at line: 2\n", "*raw\n-A X -j Y\n", "load");
        assert!(error.chain().ends_with("(-A X -j Y)"), "{}", error.chain());
    }

    #[test]
    fn a_missing_program_names_the_package() {
        let error = not_started(
            std::io::Error::from_raw_os_error(2),
            "iptables-nft-save",
            "read",
        );
        assert_eq!(error.kind, ErrorKind::Unsupported);
        assert!(
            error
                .chain()
                .contains("no program iptables-nft-save; install the package iptables"),
            "{}",
            error.chain()
        );
    }
}
