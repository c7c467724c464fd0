//! The nft program: scripts in, JSON out, failures classified.

use std::process::Stdio;

use egressgateway::{Error, ErrorKind};
use serde_json::Value;
use tokio::{io::AsyncWriteExt, process::Command};

use crate::{
    observe::monitor::Writers,
    ruleset::names::{NFT, NFT_PACKAGE},
};

/// Runs nft with `arguments`, gives it `input`, and returns what it printed.
pub(crate) async fn nft(arguments: &[&str], input: &str, context: &str) -> Result<String, Error> {
    run(arguments, input, context, |_| {}).await
}

/// Runs a script that changes the table, and remembers who did it before it can.
pub(crate) async fn write(script: &str, context: &str, writers: &Writers) -> Result<(), Error> {
    run(&["-f", "-"], script, context, |process| {
        writers.remember(process);
    })
    .await
    .map(drop)
}

async fn run(
    arguments: &[&str],
    input: &str,
    context: &str,
    started: impl FnOnce(u32),
) -> Result<String, Error> {
    let mut child = Command::new(NFT)
        .args(arguments)
        // The C library's own words for an errno, in no language but its first.
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| not_started(error, context))?;
    if let Some(process) = child.id() {
        started(process);
    }
    let stdin = child.stdin.take();
    let write = async {
        if let Some(mut stdin) = stdin {
            // nft may end before it has read everything; then its exit status says why.
            drop(stdin.write_all(input.as_bytes()).await);
        }
    };
    let (output, ()) = tokio::join!(child.wait_with_output(), write);
    let output = output.map_err(|error| Error::from_io(error, context))?;
    if output.status.success() {
        return String::from_utf8(output.stdout).map_err(|error| {
            Error::new(ErrorKind::Transient, format!("{context}: nft's output")).with_source(error)
        });
    }
    Err(refused(&String::from_utf8_lossy(&output.stderr), context))
}

/// What an `nft -j` command printed.
pub(crate) async fn nft_json(arguments: &[&str], context: &str) -> Result<Vec<Value>, Error> {
    objects(
        &nft(&[&["-j"], arguments].concat(), "", context).await?,
        context,
    )
}

/// The objects in nft's JSON.
pub(crate) fn objects(text: &str, context: &str) -> Result<Vec<Value>, Error> {
    let unreadable = |error: serde_json::Error| {
        Error::new(ErrorKind::Unsupported, format!("{context}: nft's JSON")).with_source(error)
    };
    // nft prints nothing at all where there is nothing to list.
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    match serde_json::from_str(text).map_err(unreadable)? {
        Value::Object(mut object) => match object.remove("nftables") {
            Some(Value::Array(objects)) => Ok(objects),
            _ => Err(Error::new(
                ErrorKind::Unsupported,
                format!("{context}: nft's JSON has no list of objects"),
            )),
        },
        _ => Err(Error::new(
            ErrorKind::Unsupported,
            format!("{context}: nft's JSON is no object"),
        )),
    }
}

fn not_started(error: std::io::Error, context: &str) -> Error {
    if error.kind() == std::io::ErrorKind::NotFound {
        let advice =
            format!("{context}: there is no program {NFT}; install the package {NFT_PACKAGE}");
        return Error::new(ErrorKind::Unsupported, advice).with_source(error);
    }
    Error::from_io(error, context)
}

/// nft has one exit status for everything and writes the kernel's errno only as the C library's
/// text for it, at the end of a line.
const ERRNOS: [(&str, i32); 15] = [
    ("Operation not permitted", 1),
    ("Operation not permitted (you must be root)", 1),
    ("Permission denied", 13),
    ("No such file or directory", 2),
    ("Device or resource busy", 16),
    ("File exists", 17),
    ("Invalid argument", 22),
    ("Too many open files in system", 23),
    ("No space left on device", 28),
    ("Cannot allocate memory", 12),
    ("Interrupted system call", 4),
    ("No buffer space available", 105),
    ("Operation not supported", 95),
    ("Protocol not supported", 93),
    ("Address family not supported by protocol", 97),
];

/// The error that nft reported.
pub(crate) fn refused(stderr: &str, context: &str) -> Error {
    let cause = cause(stderr);
    let errno = stderr.lines().find_map(|line| {
        ERRNOS
            .iter()
            .find(|(text, _)| line.trim_end().ends_with(text))
            .map(|(_, errno)| *errno)
    });
    match errno {
        Some(errno) => {
            let kind = Error::from_errno(errno, "").kind;
            Error::new(kind, context).with_source(cause)
        }
        None if stderr.contains("syntax error") => {
            Error::new(ErrorKind::Invalid, context).with_source(cause)
        }
        None => Error::new(ErrorKind::Transient, context).with_source(cause),
    }
}

/// The first thing that nft said, and what it said it about: `/dev/stdin:1:35-40: Error: why`, then
/// the whole line of the script.
fn cause(stderr: &str) -> String {
    let mut lines = stderr.lines();
    let first = lines.next().unwrap_or("nft gave no reason");
    let mut about = || {
        let mut position = first.strip_prefix("/dev/stdin:")?.splitn(3, ':').skip(1);
        let (from, to) = position.next()?.split_once('-')?;
        lines
            .next()?
            .get(from.parse::<usize>().ok()?.checked_sub(1)?..to.parse().ok()?)
    };
    match about() {
        Some(about) => format!("{first}: {about}"),
        None => first.to_owned(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_number_decides_the_kind() {
        for (stderr, kind) in [
            (
                "Error: Could not process rule: File exists\nadd table x\n",
                ErrorKind::Conflict,
            ),
            (
                "Error: Could not process rule: No such file or directory\n",
                ErrorKind::Conflict,
            ),
            (
                "Operation not permitted (you must be root)\nnetlink: Error: cache initialization failed: Operation not permitted\n",
                ErrorKind::Permission,
            ),
            (
                "Error: Could not process rule: Operation not supported\n",
                ErrorKind::Unsupported,
            ),
            (
                "Error: Could not process rule: Address family not supported by protocol\n",
                ErrorKind::Unsupported,
            ),
            (
                "netlink: Error: Could not send: No buffer space available\n",
                ErrorKind::Transient,
            ),
            (
                "/dev/stdin:1:1-3: Error: syntax error, unexpected string\n",
                ErrorKind::Invalid,
            ),
            ("", ErrorKind::Transient),
        ] {
            assert_eq!(refused(stderr, "load").kind, kind, "{stderr}");
        }
    }

    #[test]
    fn a_refusal_quotes_what_it_is_about() {
        let stderr = "/dev/stdin:1:18-20: Error: Could not process rule: No such file or directory\ndelete element { a.b }\n                ^^^\n";
        assert!(
            refused(stderr, "update")
                .chain()
                .ends_with("directory: a.b"),
            "{}",
            refused(stderr, "update").chain()
        );
        for other in [
            "/dev/stdin:1:17-190: Error: why\nshort\n",
            "/dev/stdin:x:y: Error: why\n",
            "/dev/stdin:1:0-4: Error: why\nä\n",
        ] {
            assert!(
                refused(other, "update").chain().ends_with("Error: why"),
                "{other}"
            );
        }
    }

    #[test]
    fn a_missing_program_names_the_package() {
        let error = not_started(std::io::Error::from_raw_os_error(2), "list tables");
        assert_eq!(error.kind, ErrorKind::Unsupported);
        assert!(
            error.chain().contains("install the package nftables"),
            "{}",
            error.chain()
        );
    }

    #[tokio::test]
    async fn a_refusal_names_what_was_done_and_why() {
        let error = nft(&["-c", "-f", "-"], "add nonsense\n", "check")
            .await
            .unwrap_err();
        assert!(error.chain().starts_with("check: "), "{}", error.chain());
    }
}
