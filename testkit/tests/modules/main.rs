//! No circles among the files of a crate: a file can be read once those that it uses are known.
#![allow(clippy::unwrap_used, missing_docs)]

mod scan;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use scan::{circles, uses};

/// The first files of the workspace's libraries and programs, by crate.
fn crates() -> BTreeMap<String, PathBuf> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version=1"])
        .output()
        .unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let targets = packages
        .iter()
        .flat_map(|package| package["targets"].as_array().unwrap());
    targets
        .filter(|target| ["lib", "bin"].iter().any(|kind| target["kind"][0] == *kind))
        .map(|target| {
            let [name, path] = ["name", "src_path"].map(|key| target[key].as_str().unwrap());
            (name.to_owned(), path.into())
        })
        .collect()
}

#[test]
fn no_file_reaches_itself_by_those_that_it_uses() {
    let mut found = BTreeSet::new();
    for (name, root) in crates() {
        let uses = uses(&root);
        for circle in circles(&uses) {
            for file in &circle {
                let inside = uses[file].iter().filter(|other| circle.contains(other));
                println!("{name}: {file} uses {:?}", inside.collect::<Vec<_>>());
            }
            found.insert((name.clone(), circle));
        }
    }
    assert!(found.is_empty(), "circles: {found:#?}");
}

/// A crate of these files, and its circles.
fn circles_of(files: &[(&str, &str)]) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let root: &Path = &folder.path().join("lib.rs");
    circles(&uses(root))
        .into_iter()
        .map(|circle| circle.join(" "))
        .collect()
}

#[test]
fn what_goes_one_way_is_no_circle() {
    let files = [
        ("lib.rs", "mod a; mod b; pub use a::A; pub use b::B;"),
        ("a.rs", "use crate::B; pub struct A(B);"),
        ("b.rs", "use std::fmt::Debug; pub struct B;"),
    ];
    assert_eq!(circles_of(&files), [""; 0]);
}

#[test]
fn imports_of_each_other_are_a_circle_by_whatever_way_they_go() {
    let direct = [
        ("lib.rs", "mod a; mod b;"),
        ("a.rs", "use super::b::B; pub struct A(B);"),
        ("b.rs", "pub struct B; fn f() { use crate::a::A; }"),
    ];
    assert_eq!(circles_of(&direct), ["a b"]);
    let by_the_root = [
        ("lib.rs", "mod a; mod b; pub use self::{a::A, b::B};"),
        ("a.rs", "use crate::B; pub struct A(B);"),
        ("b.rs", "use crate::{A as Other}; pub struct B(Other);"),
    ];
    assert_eq!(circles_of(&by_the_root), ["a b"]);
    let of_three = [
        ("lib.rs", "mod a; mod b; mod c;"),
        ("a.rs", "pub struct A; type B = crate::b::B;"),
        (
            "b.rs",
            "use crate::c; pub struct B; fn f() -> bool { matches!(1, c::C) }",
        ),
        ("c.rs", "pub const C: i32 = 1; impl super::a::A {}"),
    ];
    assert_eq!(circles_of(&of_three), ["a b c"]);
}

#[test]
fn a_parent_and_its_child_are_a_circle_where_each_names_what_the_other_defines() {
    let both = [
        ("lib.rs", "mod parent;"),
        (
            "parent/mod.rs",
            "mod child; pub struct Parent(child::Child);",
        ),
        (
            "parent/child.rs",
            "use super::Parent; pub struct Child(Box<Parent>);",
        ),
    ];
    assert_eq!(circles_of(&both), ["parent parent::child"]);
    let passed_on = [
        ("lib.rs", "mod parent;"),
        (
            "parent/mod.rs",
            "mod child; mod leaf; pub use child::*; pub use leaf::Leaf;",
        ),
        (
            "parent/child.rs",
            "use super::Leaf; pub struct Child(Leaf);",
        ),
        ("parent/leaf.rs", "pub struct Leaf;"),
    ];
    assert_eq!(circles_of(&passed_on), [""; 0]);
}

#[test]
fn tests_visibilities_and_modules_that_are_only_imported_make_no_circle() {
    let files = [
        ("lib.rs", "mod a; mod b;"),
        ("a.rs", "use super::b::B; pub(in crate) struct A(B);"),
        (
            "b.rs",
            "use crate::a; pub struct B; mod inner { pub(in crate::b) fn f() {} }
            impl B { #[cfg(test)] fn f() -> crate::a::A {} }
            #[cfg(test)] mod tests { use crate::a::A; }",
        ),
    ];
    assert_eq!(circles_of(&files), [""; 0]);
}

#[test]
fn modules_within_a_file_are_its_own() {
    let files = [
        ("lib.rs", "mod a; mod b;"),
        (
            "a.rs",
            "pub mod inner { pub struct In(super::Out); } pub struct Out; use inner::In;",
        ),
        (
            "b.rs",
            "mod inner { fn f() -> super::super::a::inner::In {} } pub struct B;",
        ),
    ];
    assert_eq!(circles_of(&files), [""; 0]);
    let through = [
        ("lib.rs", "mod a; mod b;"),
        ("a.rs", "pub mod inner { pub struct In(crate::b::B); }"),
        ("b.rs", "pub struct B(Box<crate::a::inner::In>);"),
    ];
    assert_eq!(circles_of(&through), ["a b"]);
}
