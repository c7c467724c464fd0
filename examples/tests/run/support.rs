use std::{path::PathBuf, process::Command};

/// The built example, a neighbour of this test in the target directory.
pub(crate) fn example(name: &str) -> Command {
    let test = std::env::current_exe().unwrap();
    let profile = test.ancestors().nth(2).unwrap();
    let program = profile.join("examples").join(name);
    assert!(
        program.is_file(),
        "{} is not built: run cargo test without naming one target, or cargo build --examples",
        program.display()
    );
    Command::new(program)
}

/// A file next to the examples.
pub(crate) fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)
}
