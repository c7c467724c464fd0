//! What images hold, and what they don't.

use std::{
    collections::BTreeSet,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::PathBuf,
};

use egressgateway_testkit::{
    image::{FULL, Root, all},
    netns::have_root,
};

use crate::read;

/// Tools of each image, beside our programs: bash for `helm test`, and what the backends call, by
/// whatever name.
const TOOLS: [(&str, &[&str]); 4] = [
    (
        "full",
        &[
            "bash",
            "nfnl_osf",
            "nft",
            "xtables-legacy-multi",
            "xtables-nft-multi",
        ],
    ),
    ("nftables", &["bash", "nft"]),
    (
        "netfilter",
        &[
            "bash",
            "nfnl_osf",
            "xtables-legacy-multi",
            "xtables-nft-multi",
        ],
    ),
    ("egressctl", &[]),
];

/// More than this, in bytes, is not what an image needs beside our programs.
const BUDGET: u64 = 13_000_000;

/// The root file system of an image, which holds its programs with all libraries, and no more tools
/// than it needs.
pub(crate) fn assembled(image: &str) -> Root {
    let root = Root::assemble(image);
    let contents = all()
        .into_iter()
        .find(|contents| contents.image == image)
        .unwrap();
    let (_, tools) = TOOLS.iter().find(|(name, _)| *name == image).unwrap();
    let expected: BTreeSet<String> = tools
        .iter()
        .map(|tool| (*tool).to_owned())
        .chain(contents.programs.clone())
        .collect();
    assert_eq!(root.programs(), expected, "{image}");
    has_all_libraries(&root);
    grants_nothing(&root);
    for program in &contents.programs {
        assert!(
            root.run(program, &["--version"]).starts_with(program),
            "{image}: {program} does not run"
        );
    }
    let all = root.files("");
    let ours = |path: &PathBuf| {
        contents
            .programs
            .iter()
            .any(|program| path.ends_with(program))
    };
    let size: u64 = all
        .iter()
        .filter(|path| !ours(path))
        .map(|path| path.metadata().unwrap().len())
        .sum();
    assert!(size < BUDGET, "{image}: {size} bytes beside our programs");
    assert!(
        all.iter()
            .any(|path| path.ends_with("var/lib/dpkg/status.d/libc6")),
        "{image}: scanners find no packages"
    );
    assert!(
        std::fs::read_to_string(root.path().join("etc/os-release"))
            .unwrap()
            .contains("ID=debian"),
        "{image}"
    );
    root
}

#[test]
fn the_image_of_egressctl_holds_it_with_all_libraries_and_no_tools() {
    if have_root() {
        drop(assembled("egressctl"));
    }
}

/// What the dynamic linker finds inside, for each program and for what iptables loads.
fn has_all_libraries(root: &Root) {
    let linker = root
        .files("usr")
        .into_iter()
        .find(|path| {
            path.file_name()
                .unwrap()
                .to_string_lossy()
                .starts_with("ld-linux")
        })
        .unwrap();
    let linker = linker
        .strip_prefix(root.path())
        .unwrap()
        .display()
        .to_string();
    let mut looked_at = 0;
    for file in root.files("usr") {
        if !std::fs::read(&file).unwrap().starts_with(b"\x7fELF") || file.ends_with(&linker) {
            continue;
        }
        let said = root.run(
            &format!("/{linker}"),
            &[
                "--list",
                &format!("/{}", file.strip_prefix(root.path()).unwrap().display()),
            ],
        );
        assert!(
            !said.contains("not found") && !said.contains("cannot open"),
            "{}: {said}",
            file.display()
        );
        looked_at += 1;
    }
    assert!(looked_at > 10, "{looked_at}");
}

/// No file makes somebody another user, and nothing but `/tmp` can be written by everybody.
fn grants_nothing(root: &Root) {
    for path in root.entries("") {
        let metadata = path.symlink_metadata().unwrap();
        let mode = metadata.permissions().mode();
        assert_eq!(metadata.uid(), 0, "{}", path.display());
        if !metadata.is_symlink() {
            assert_eq!(mode & 0o6000, 0, "{} is setuid or setgid", path.display());
            assert!(
                mode & 0o002 == 0 || path.ends_with("tmp"),
                "{} is anybody's to write",
                path.display()
            );
        }
    }
}

#[test]
fn the_chart_knows_these_images_and_the_agent_these_features() {
    let schema: serde_json::Value =
        serde_json::from_str(&read("charts/egressgateway/values.schema.json")).unwrap();
    let known = schema["properties"]["image"]["properties"]["features"]["enum"]
        .as_array()
        .unwrap();
    let known: BTreeSet<&str> = known.iter().map(|name| name.as_str().unwrap()).collect();
    let with_agent = all()
        .into_iter()
        .filter(|contents| !contents.features.is_empty());
    let images: Vec<_> = with_agent.collect();
    assert_eq!(
        images
            .iter()
            .map(|contents| contents.image.as_str())
            .collect::<BTreeSet<_>>(),
        known
    );
    let manifest = read("bins/agent/Cargo.toml");
    let features = manifest
        .split("[features]")
        .nth(1)
        .unwrap()
        .split("\n[")
        .next()
        .unwrap();
    for contents in &images {
        for feature in &contents.features {
            assert!(
                features
                    .lines()
                    .any(|line| line.starts_with(&format!("{feature} = "))),
                "the agent has no feature {feature}"
            );
        }
        let all: Vec<String> = contents
            .features
            .iter()
            .map(|feature| format!("\"{feature}\""))
            .collect();
        let is_default = features.contains(&format!("default = [{}]", all.join(", ")));
        assert_eq!(
            is_default,
            contents.image == FULL,
            "{}: {all:?}",
            contents.image
        );
    }
    for program in all().into_iter().flat_map(|contents| contents.programs) {
        let folder = program.trim_start_matches("egressgateway-");
        assert!(
            read(&format!("bins/{folder}/Cargo.toml")).contains(&format!("name = \"{program}\"\n")),
            "no program {program}"
        );
    }
}
