//! The Containerfile, which no test can build: it wraps what the other tests look at, and is read
//! as an engine would.

use std::{collections::BTreeMap, os::unix::fs::PermissionsExt};

use egressgateway_testkit::{container, image::all};

use crate::{read, repository};

/// An instruction with its words.
type Instruction = (String, String);

/// A stage: what it begins with, and its instructions.
struct Stage {
    name: Option<String>,
    base: String,
    instructions: Vec<Instruction>,
}

/// Arguments before the first stage, and the stages.
fn parse() -> (Vec<Instruction>, Vec<Stage>) {
    let text = read("images/Containerfile");
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim_start().starts_with('#') && !line.trim().is_empty())
        .collect();
    let joined = lines.join("\n").replace("\\\n", " ");
    let (mut before, mut stages) = (Vec::new(), Vec::<Stage>::new());
    for line in joined.lines() {
        let (word, rest) = line
            .split_once(' ')
            .unwrap_or_else(|| panic!("no instruction: {line}"));
        let rest = rest.split_whitespace().collect::<Vec<_>>().join(" ");
        if word == "FROM" {
            let (base, name) = rest
                .split_once(" AS ")
                .map_or((rest.as_str(), None), |(base, name)| {
                    (base, Some(name.to_owned()))
                });
            stages.push(Stage {
                name,
                base: base.to_owned(),
                instructions: Vec::new(),
            });
        } else if let Some(stage) = stages.last_mut() {
            stage.instructions.push((word.to_owned(), rest));
        } else {
            before.push((word.to_owned(), rest));
        }
    }
    (before, stages)
}

/// All words of an instruction in a stage and in those that it begins with, the farthest first.
fn of(stages: &[Stage], name: &str, instruction: &str) -> Vec<String> {
    let stage = stages
        .iter()
        .find(|stage| stage.name.as_deref() == Some(name))
        .unwrap_or_else(|| panic!("no stage {name}"));
    let mut found = if stage.base == "scratch" || stage.base.contains('/') {
        Vec::new()
    } else {
        of(stages, &stage.base, instruction)
    };
    found.extend(
        stage
            .instructions
            .iter()
            .filter(|(word, _)| word == instruction)
            .map(|(_, rest)| rest.clone()),
    );
    found
}

/// `key="value"` pairs, with arguments' defaults put in.
fn labels(stages: &[Stage], name: &str) -> BTreeMap<String, String> {
    let arguments = of(stages, name, "ARG");
    let mut labels = BTreeMap::new();
    for words in of(stages, name, "LABEL") {
        for pair in words.split_inclusive("\" ") {
            let (key, value) = pair.trim().split_once('=').unwrap();
            let mut value = value.trim_matches('"').to_owned();
            for argument in &arguments {
                let (argument, default) = argument.split_once('=').unwrap();
                value = value.replace(&format!("${{{argument}}}"), default);
            }
            assert!(!value.contains('$'), "{key}: {value} has no default");
            labels.insert(key.to_owned(), value);
        }
    }
    labels
}

#[test]
fn the_root_of_each_image_is_what_the_script_assembles_on_the_release_that_it_is_built_on() {
    let (before, stages) = parse();
    let build = &stages[0];
    let rust = read("Cargo.toml")
        .lines()
        .find_map(|line| line.strip_prefix("rust-version = "))
        .unwrap()
        .trim_matches('"')
        .to_owned();
    assert_eq!(before, [("ARG".to_owned(), format!("RUST={rust}"))]);
    assert_eq!(build.base, "docker.io/library/rust:${RUST}-slim-bookworm");
    let root = build.name.as_deref().unwrap();
    let run = of(&stages, root, "RUN");
    assert_eq!(run.len(), 1, "{run:?}");
    let command: Vec<&str> = run[0]
        .split(' ')
        .filter(|word| !word.starts_with("--mount=type=cache,target=/"))
        .collect();
    assert_eq!(command, ["scripts/rootfs", "\"$FEATURES\"", "/rootfs"]);
    assert!(
        repository("scripts/rootfs")
            .metadata()
            .unwrap()
            .permissions()
            .mode()
            & 0o111
            == 0o111
    );
    assert_eq!(of(&stages, root, "ARG"), ["FEATURES=full"]);
    assert_eq!(of(&stages, root, "COPY"), [". ."]);
    for image in stages[1..].iter().filter_map(|stage| stage.name.as_deref()) {
        assert_eq!(
            of(&stages, image, "COPY"),
            [format!("--from={root} /rootfs /")],
            "{image}: nothing but the root"
        );
        assert_eq!(
            of(&stages, image, "RUN"),
            [""; 0],
            "{image}: nothing is changed in it"
        );
    }
}

#[test]
fn what_the_build_needs_is_not_kept_from_it() {
    let ignored = read(".dockerignore");
    let mut ignored: Vec<&str> = ignored.lines().collect();
    ignored.sort_unstable();
    // No pattern: whatever else is in the repository, the build has.
    assert_eq!(ignored, ["/.git", "/images/*.tar", "/target"]);
    for needed in [
        "Cargo.lock",
        "images/contents",
        "scripts/rootfs",
        "bins/agent/Cargo.toml",
    ] {
        repository(needed);
    }
}

#[test]
fn images_start_one_of_their_programs_as_the_user_that_the_chart_and_the_root_know() {
    let (_, stages) = parse();
    let deployment = read("charts/egressgateway/templates/controller/deployment.yaml");
    // The last stage is what is built when no other is asked for.
    assert_eq!(stages.last().unwrap().name.as_deref(), Some("daemons"));
    for (stage, image) in [
        ("daemons", "full"),
        ("daemons", "nftables"),
        ("daemons", "netfilter"),
        ("egressctl", "egressctl"),
    ] {
        let users = of(&stages, stage, "USER");
        assert_eq!(
            users,
            ["65532:65532"],
            "by numbers: Kubernetes can't tell whether a name is root's"
        );
        assert!(
            deployment.contains("runAsUser: 65532") && deployment.contains("runAsGroup: 65532")
        );
        assert!(read("scripts/rootfs").contains("nonroot:x:65532:65532:"));
        let entry: Vec<String> =
            serde_json::from_str(&of(&stages, stage, "ENTRYPOINT")[0]).unwrap();
        let contents = all()
            .into_iter()
            .find(|contents| contents.image == image)
            .unwrap();
        assert!(contents.programs.contains(&entry[0]), "{image}: {entry:?}");
        assert_eq!(
            of(&stages, stage, "ENV"),
            [format!("PATH={}", container::PATH)],
            "{image}: as the tests look programs up"
        );
    }
}

#[test]
fn the_archives_say_the_same_as_the_containerfile() {
    let (_, stages) = parse();
    for (stage, image) in [
        ("daemons", "full"),
        ("daemons", "nftables"),
        ("daemons", "netfilter"),
        ("egressctl", "egressctl"),
    ] {
        let archive = egressgateway_images::product(image, "", 0).unwrap();
        assert_eq!(
            archive.labels.iter().cloned().collect::<BTreeMap<_, _>>(),
            labels(&stages, stage),
            "{image}"
        );
        assert_eq!(of(&stages, stage, "USER"), [archive.user], "{image}");
        assert_eq!(of(&stages, stage, "ENV"), archive.environment, "{image}");
        assert_eq!(
            serde_json::from_str::<Vec<String>>(&of(&stages, stage, "ENTRYPOINT")[0]).unwrap(),
            archive.entrypoint,
            "{image}"
        );
        let ports = of(&stages, stage, "EXPOSE").join(" ");
        let ports: Vec<_> = ports
            .split_whitespace()
            .map(|port| format!("{port}/tcp"))
            .collect();
        assert_eq!(ports, archive.ports, "{image}");
    }
}

#[test]
fn images_say_what_they_are() {
    let (_, stages) = parse();
    let manifest = read("Cargo.toml");
    let package = |key: &str| {
        let line = manifest
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{key} = ")));
        line.unwrap_or_else(|| panic!("no {key}"))
            .trim_matches('"')
            .to_owned()
    };
    for stage in ["daemons", "egressctl"] {
        let labels = labels(&stages, stage);
        let label = |name: &str| {
            labels
                .get(&format!("org.opencontainers.image.{name}"))
                .unwrap_or_else(|| panic!("{stage}: no {name}"))
        };
        assert_eq!(*label("version"), package("version"), "{stage}");
        assert_eq!(*label("licenses"), package("license"), "{stage}");
        assert_eq!(*label("source"), package("repository"), "{stage}");
        assert!(label("revision").is_empty(), "{stage}: known to who builds");
        assert!(
            !label("title").is_empty() && !label("description").is_empty(),
            "{stage}"
        );
    }
    let chart = read("charts/egressgateway/Chart.yaml");
    assert!(
        chart.contains(&format!("\nappVersion: {}\n", package("version"))),
        "the chart asks for the image of this version"
    );
    let templates = ["agent/daemonset.yaml", "controller/deployment.yaml"]
        .map(|path| read(&format!("charts/egressgateway/templates/{path}")));
    for port in of(&stages, "daemons", "EXPOSE")[0].split(' ') {
        assert!(
            templates
                .iter()
                .any(|text| text.contains(&format!("containerPort: {port}"))),
            "nothing listens at {port}"
        );
    }
}
