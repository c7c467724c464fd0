//! Every target reads its seeds, and has its program and its seeds.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{collections::BTreeSet, fs, path::Path};

use egressgateway_fuzz::TARGETS;

fn entries(folder: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

fn names() -> BTreeSet<String> {
    TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect()
}

#[test]
fn every_target_has_a_program_and_seeds_and_there_are_no_others() {
    let programs = entries("fuzz_targets");
    let programs: BTreeSet<_> = programs
        .iter()
        .map(|file| file.trim_end_matches(".rs").to_owned())
        .collect();
    assert_eq!(programs, names());
    assert_eq!(entries("corpus"), names());
    for name in names() {
        let program = format!("{}/fuzz_targets/{name}.rs", env!("CARGO_MANIFEST_DIR"));
        let program = fs::read_to_string(program).unwrap();
        assert!(program.contains(&format!("run(\"{name}\", ")), "{name}");
        assert!(!entries(&format!("corpus/{name}")).is_empty(), "{name}");
    }
}

#[test]
fn every_seed_holds() {
    for (name, target) in TARGETS {
        for seed in entries(&format!("corpus/{name}")) {
            println!("{name}/{seed}");
            let path = format!("{}/corpus/{name}/{seed}", env!("CARGO_MANIFEST_DIR"));
            target(&fs::read(path).unwrap());
        }
    }
}
