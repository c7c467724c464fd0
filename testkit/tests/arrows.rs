//! The arrows between the crates: bins → {backends, tunnels} → netlink → core, and nothing else.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{collections::BTreeMap, process::Command};

/// What each library may depend on besides crates that are not ours.
const ALLOWED: [(&str, &[&str]); 8] = [
    ("egressgateway", &[]),
    ("egressgateway-netlink", &["egressgateway"]),
    (
        "egressgateway-tunnel-geneve",
        &["egressgateway", "egressgateway-netlink"],
    ),
    (
        "egressgateway-tunnel-vxlan",
        &["egressgateway", "egressgateway-netlink"],
    ),
    ("egressgateway-backend-nftables", &["egressgateway"]),
    ("egressgateway-backend-netfilter", &["egressgateway"]),
    (
        "egressgateway-linux",
        &[
            "egressgateway",
            "egressgateway-netlink",
            "egressgateway-tunnel-geneve",
            "egressgateway-tunnel-vxlan",
            "egressgateway-backend-nftables",
            "egressgateway-backend-netfilter",
        ],
    ),
    ("egressgateway-daemon", &["egressgateway"]),
];

/// What reaches neither `kube` nor `k8s-openapi`.
const NO_KUBE: [&str; 5] = [
    "egressgateway-netlink",
    "egressgateway-tunnel-geneve",
    "egressgateway-tunnel-vxlan",
    "egressgateway-backend-nftables",
    "egressgateway-backend-netfilter",
];

fn packages() -> Vec<serde_json::Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version=1"])
        .output()
        .unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

fn dependencies() -> BTreeMap<String, Vec<String>> {
    let normal = |package: &serde_json::Value| {
        let dependencies = package["dependencies"].as_array().unwrap().iter();
        dependencies
            .filter(|d| d["kind"].is_null())
            .map(|d| d["name"].as_str().unwrap().to_owned())
            .collect()
    };
    packages()
        .iter()
        .map(|package| {
            (
                package["name"].as_str().unwrap().to_owned(),
                normal(package),
            )
        })
        .collect()
}

#[test]
fn libraries_depend_only_on_what_is_below_them() {
    let dependencies = dependencies();
    for (library, allowed) in ALLOWED {
        let ours: Vec<&String> = dependencies[library]
            .iter()
            .filter(|name| name.starts_with("egress"))
            .collect();
        assert!(
            ours.iter().all(|name| allowed.contains(&name.as_str())),
            "{library} depends on {ours:?}, allowed are {allowed:?}"
        );
    }
}

/// As cargo resolves the library alone, with its default features.
#[test]
fn drivers_never_reach_kube() {
    for library in NO_KUBE {
        let tree = Command::new(env!("CARGO"))
            .args([
                "tree",
                "--package",
                library,
                "--edges",
                "normal",
                "--prefix",
                "none",
            ])
            .output()
            .unwrap();
        assert!(
            tree.status.success(),
            "{}",
            String::from_utf8_lossy(&tree.stderr)
        );
        let tree = String::from_utf8(tree.stdout).unwrap();
        assert!(
            tree.lines().any(|line| line.starts_with("egressgateway v")),
            "{library} does not reach the core: {tree}"
        );
        let reached: Vec<&str> = tree
            .lines()
            .filter(|line| line.starts_with("kube") || line.starts_with("k8s-openapi"))
            .collect();
        assert!(reached.is_empty(), "{library} reaches {reached:?}");
    }
}

#[test]
fn every_library_is_in_the_list() {
    let listed: Vec<&str> = ALLOWED.iter().map(|(name, _)| *name).collect();
    let others = [
        "egressgateway-agent",
        "egressgateway-controller",
        "egressctl",
        "egressgateway-testkit",
        "egressgateway-examples",
        "egressgateway-benchmarks",
        "egressgateway-demo",
        "egressgateway-fuzz",
        "egressgateway-images",
    ];
    for name in dependencies().keys() {
        assert!(
            listed.contains(&name.as_str()) || others.contains(&name.as_str()),
            "{name} needs an entry here"
        );
    }
}

#[test]
fn what_is_published_says_what_it_is_and_the_rest_is_not_published() {
    for package in packages() {
        let name = package["name"].as_str().unwrap();
        let internal = [
            "egressgateway-testkit",
            "egressgateway-examples",
            "egressgateway-benchmarks",
            "egressgateway-demo",
            "egressgateway-fuzz",
            "egressgateway-images",
        ]
        .contains(&name);
        assert_eq!(
            package["publish"].as_array().is_some_and(Vec::is_empty),
            internal,
            "{name}: publish"
        );
        let needed = ["description", "license", "repository", "rust_version"];
        for field in needed.into_iter().chain((!internal).then_some("readme")) {
            assert!(package[field].is_string(), "{name} has no {field}");
        }
    }
}

/// The lists of `scripts/test`.
fn test_programs(list: &str) -> Vec<String> {
    let script =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/test")).unwrap();
    let from = script.split_once(&format!("{list}_programs=(")).unwrap().1;
    from.split_once(')')
        .unwrap()
        .0
        .split_whitespace()
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_test_program_is_in_one_list_of_what_it_needs() {
    let lists = ["rootless", "rooted", "other"].map(test_programs);
    for package in packages() {
        for target in package["targets"].as_array().unwrap() {
            if target["kind"][0] != "test" {
                continue;
            }
            let name = target["name"].as_str().unwrap();
            let found = lists
                .iter()
                .filter(|list| list.iter().any(|other| other == name))
                .count();
            assert_eq!(
                found, 1,
                "{name} of {} belongs in one list of scripts/test",
                package["name"]
            );
            let source = std::fs::read_to_string(target["src_path"].as_str().unwrap()).unwrap();
            // In two pieces each, because this file is looked at too.
            let words = [
                concat!("net", "ns::"),
                concat!("packet", "_tests!"),
                concat!("tunnel", "_tests!"),
            ];
            let touches_a_kernel = words.iter().any(|word| source.contains(word));
            assert!(
                !touches_a_kernel || !lists[0].iter().any(|other| other == name),
                "{name} needs root"
            );
        }
    }
}
