//! What each library promises, as text that a review reads: `api/CRATE.txt`.
//!
//! The text comes from the sources, so any toolchain makes the same. It has every item that is
//! `pub`, in the module that defines it; the lint `unreachable_pub` holds that each of them can be
//! reached. Bodies, documentation and what is private are left out. `UPDATE=1` writes the files
//! again: a change of them is a change of what embedders compile against.
#![allow(missing_docs, clippy::unwrap_used)]

mod extract;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use extract::extract;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The first files of the libraries that are published, by package.
fn libraries() -> BTreeMap<String, PathBuf> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version=1"])
        .output()
        .unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut found = BTreeMap::new();
    for package in metadata["packages"].as_array().unwrap() {
        let published = package["publish"]
            .as_array()
            .is_none_or(|to| !to.is_empty());
        let name = package["name"].as_str().unwrap();
        let mut targets = package["targets"].as_array().unwrap().iter();
        if let Some(library) = targets.find(|target| target["kind"][0] == "lib" && published) {
            found.insert(name.into(), library["src_path"].as_str().unwrap().into());
        }
    }
    found
}

#[test]
fn what_libraries_promise_is_as_it_was_reviewed() {
    let folder = root().join("api");
    let libraries = libraries();
    assert!(libraries.len() > 5, "{libraries:?}");
    let mut wrong = Vec::new();
    for (name, first) in &libraries {
        let file = folder.join(format!("{name}.txt"));
        let now = extract(first);
        if std::env::var_os("UPDATE").is_some_and(|update| update == "1") {
            fs::create_dir_all(&folder).unwrap();
            fs::write(&file, &now).unwrap();
        }
        let reviewed = fs::read_to_string(&file).unwrap_or_default();
        wrong.extend((now != reviewed).then(|| difference(name, &reviewed, &now)));
    }
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if !libraries.contains_key(&name) {
            wrong.push(format!("{}: there is no such library", path.display()));
        }
    }
    assert!(
        wrong.is_empty(),
        "{}\nIf that is meant, write the files again with UPDATE=1 and say so in CHANGELOG.md.",
        wrong.join("\n")
    );
}

/// Lines that only one of them has, in the order in which they stand there.
fn difference(name: &str, reviewed: &str, now: &str) -> String {
    let lacks = |text: &str, line: &&str| !text.lines().any(|other| other == *line);
    let gone = reviewed.lines().filter(|line| lacks(now, line));
    let new = now.lines().filter(|line| lacks(reviewed, line));
    let lines: Vec<String> = gone
        .map(|line| format!("  - {line}"))
        .chain(new.map(|line| format!("  + {line}")))
        .collect();
    let what = if lines.is_empty() {
        "  the order of its lines".to_owned()
    } else {
        lines.join("\n")
    };
    format!("api/{name}.txt and the sources differ:\n{what}")
}

#[test]
fn a_text_has_what_others_can_name_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write(
        "lib.rs",
        r#"
        //! A library.
        mod inner;
        #[cfg(test)]
        mod tests { pub fn hidden() {} }
        pub use inner::{Open, Sealed};
        use std::fmt;
        /// Documented.
        #[derive(Clone)]
        #[must_use]
        pub struct Half { pub seen: u8, hidden: u16 }
        impl Half {
            /// Makes one.
            pub fn new(seen: u8) -> Self { Self { seen, hidden: 0 } }
            fn secret(&self) {}
        }
        impl fmt::Display for Half {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { write!(f, "{}", self.seen) }
        }
        pub(crate) fn inside() {}
        pub const LIMIT: usize = 3 + 4;
        "#,
    );
    write(
        "inner.rs",
        "pub trait Open { const N: u8; fn ask(&self) -> u8 { 1 } }
         #[non_exhaustive] pub enum Sealed { One, Two(u8) }
         struct Private; impl Private { pub fn f() {} } impl Clone for Private { fn clone(&self) -> Self { Self } }",
    );
    assert_eq!(
        extract(&folder.path().join("lib.rs")),
        "\
mod inner {
    pub trait Open {
        const N: u8;
        fn ask(&self) -> u8 {}
    }
    #[non_exhaustive]
    pub enum Sealed {
        One,
        Two(u8),
    }
}
pub use inner::{Open, Sealed};
#[derive(Clone)]
#[must_use]
pub struct Half {
    pub seen: u8,
    _private: _,
}
impl Half {
    pub fn new(seen: u8) -> Self {}
}
impl fmt::Display for Half {}
pub const LIMIT: usize = 3 + 4;
"
    );
}

#[test]
fn a_break_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let library = folder.path().join("lib.rs");
    fs::write(&library, "pub fn ask(what: &str) {} pub fn stays() {}").unwrap();
    let reviewed = extract(&library);
    fs::write(&library, "pub fn ask(what: String) {} pub fn stays() {}").unwrap();
    assert_eq!(
        difference("some", &reviewed, &extract(&library)),
        "api/some.txt and the sources differ:\n  - pub fn ask(what: &str) {}\n  + pub fn ask(what: String) {}"
    );
}
