//! Tests that can't run here: none of them may look as if it had passed.

use std::{fs::OpenOptions, io::Write as _};

/// Makes a skipped test a failure when set: continuous integration runs everything.
pub const REQUIRE_ALL: &str = "EGRESSGATEWAY_REQUIRE_ALL";

/// A file that tells of skipped tests, one a line. The harness of Rust's tests shows nothing of a
/// test that returns, so `scripts/test` reads it.
pub const SKIPPED: &str = "EGRESSGATEWAY_SKIPPED";

/// Says that the test of this thread does not run, and why.
///
/// # Panics
/// Where [`REQUIRE_ALL`] is set.
pub fn skip(why: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    assert!(
        std::env::var_os(REQUIRE_ALL).is_none(),
        "{REQUIRE_ALL} is set, and {test} can't run: {why}"
    );
    eprintln!("SKIPPED {test}: {why}");
    let Some(path) = std::env::var_os(SKIPPED) else {
        return;
    };
    // One write for each line, so that those of several programs do not mix.
    let line = format!("{test}: {}\n", why.lines().next().unwrap_or_default());
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.and_then(|mut file| file.write_all(line.as_bytes()))
        .expect("the file of skipped tests");
}
