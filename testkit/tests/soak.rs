//! A short soak, and every failure that one has found: `make soak` looks for more.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{fs, path::Path};

use egressgateway_testkit::{
    netns::have_root,
    soak::{Event, Outcome, Run, events},
};

/// How many events happen in a short run.
const EVENTS: usize = 60;

fn plays(run: &Run, name: &str) {
    match run.play() {
        Outcome::Right { packets, answers } => assert!(
            packets > 100 && answers > 20,
            "{name}: {packets} packets, {answers} answers"
        ),
        Outcome::Wrong { after, what } => panic!("{name}, after {after} events: {what}"),
    }
}

fn soak(backend: &str, seed: u64) {
    if have_root() {
        plays(
            &Run::of_seed(backend, seed, EVENTS, &[]),
            &format!("{backend}, seed {seed}"),
        );
    }
}

#[test]
fn whatever_happens_nothing_leaves_with_a_wrong_source_with_nftables() {
    soak("nftables", 11);
}

#[test]
fn whatever_happens_nothing_leaves_with_a_wrong_source_with_netfilter() {
    soak("netfilter", 11);
}

#[test]
fn what_a_soak_has_found_does_not_happen_again() {
    if !have_root() {
        return;
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/soak");
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        let run: Run = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        for backend in ["nftables", "netfilter"] {
            plays(
                &Run {
                    backend: backend.to_owned(),
                    ..run.clone()
                },
                &format!("{} with {backend}", path.display()),
            );
        }
    }
}

#[test]
fn a_seed_says_what_happens_and_a_file_says_it_again() {
    let run = Run::of_seed("nftables", 7, 200, &["forget".to_owned()]);
    assert_eq!(
        run,
        Run::of_seed("nftables", 7, 200, &["forget".to_owned()])
    );
    assert_eq!(
        run,
        serde_json::from_str(&serde_json::to_string(&run).unwrap()).unwrap()
    );
    assert!(
        run.events
            .iter()
            .all(|event| !matches!(event, Event::Forget { .. }))
    );
    let kinds: std::collections::BTreeSet<String> =
        events(7, 2000).iter().map(Event::kind).collect();
    assert_eq!(kinds.len(), 32, "{kinds:?}");
}
