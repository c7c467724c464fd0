//! Files whose whole text a test expects.

use std::{fs, path::Path};

/// The variable that lets [`check`] write files instead of comparing them.
pub const UPDATE: &str = "UPDATE";

/// Compares a file with the text that it must have. With `UPDATE=1` it writes the file.
///
/// # Panics
/// When the file differs, with the first line that does.
pub fn check(path: impl AsRef<Path>, text: &str) {
    let path = path.as_ref();
    if std::env::var_os(UPDATE).is_some_and(|update| update == "1") {
        path.parent()
            .map_or(Ok(()), fs::create_dir_all)
            .and_then(|()| fs::write(path, text))
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        return;
    }
    let found = fs::read_to_string(path).unwrap_or_default();
    assert!(
        found == text,
        "{} differs; {UPDATE}=1 writes it anew. {}",
        path.display(),
        first_difference(&found, text)
    );
}

fn first_difference(found: &str, wanted: &str) -> String {
    let (mut found, mut wanted) = (found.lines(), wanted.lines());
    for number in 1.. {
        let lines = (found.next(), wanted.next());
        match lines {
            (None, None) => break,
            (left, right) if left == right => {}
            (left, right) => {
                let line = |line: Option<&str>| line.unwrap_or("(the end)").to_owned();
                return format!(
                    "Line {number} is\n{}\nand should be\n{}",
                    line(left),
                    line(right)
                );
            }
        }
    }
    "The ends of lines differ.".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_differs_is_named_with_its_first_other_line() {
        assert_eq!(
            first_difference("a\nb\n", "a\nc\nd\n"),
            "Line 2 is\nb\nand should be\nc"
        );
        assert_eq!(
            first_difference("a\n", "a\nb\n"),
            "Line 2 is\n(the end)\nand should be\nb"
        );
        assert_eq!(first_difference("a", "a\n"), "The ends of lines differ.");
    }

    #[test]
    #[should_panic(
        expected = "missing.txt differs; UPDATE=1 writes it anew. Line 1 is\n(the end)\nand should be\na"
    )]
    fn a_file_that_is_missing_differs() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        check(folder.path().join("missing.txt"), "a\n");
    }
}
