//! The scenarios in `scenarios/`: golden plans of every node, checked by the tools that they are
//! written for, and packets.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::Arc,
};

use egressgateway::{
    Driver, DriversDesired, Encapsulation,
    explain::{self, Manifests, Offline, OfflineSettings},
    model::PodName,
};
use egressgateway_backend_netfilter::{Netfilter, NetfilterSettings};
use egressgateway_backend_nftables::{Nftables, NftablesSettings};
use egressgateway_netlink::{EgressAddresses, Steering, SteeringSettings};
use egressgateway_testkit::{golden, netns};
use egressgateway_tunnel_geneve::{Geneve, GeneveSettings, GeneveShape};
use egressgateway_tunnel_vxlan::{Vxlan, VxlanSettings};
use serde::Deserialize;
use support::{Answer, Plans};

/// The backends: name, plan from nothing, and the command that checks it from its standard input.
const BACKENDS: [Backend; 2] = [
    Backend {
        name: "nftables",
        plan: nftables,
        check: &["nft", "-c", "-f", "-"],
    },
    Backend {
        name: "netfilter",
        plan: netfilter,
        check: &["awk", EACH_SECTION],
    },
];

/// Gives each part of a plan to the command in its heading, one after the other.
const EACH_SECTION: &str = "function end() { if (command && close(command)) exit 1 } /^# / { end(); command = substr($0, 3); next } { print | command } END { end() }";

struct Backend {
    name: &'static str,
    plan: fn(&DriversDesired) -> String,
    check: &'static [&'static str],
}

fn nftables(desired: &DriversDesired) -> String {
    from_nothing(
        &Nftables::offline(NftablesSettings::default()),
        &desired.policy,
    )
}

fn netfilter(desired: &DriversDesired) -> String {
    from_nothing(
        &Netfilter::offline(NetfilterSettings::default()),
        &desired.policy,
    )
}

fn from_nothing<D: Driver>(driver: &D, desired: &D::Desired) -> String {
    driver
        .plan(desired, &D::State::default())
        .unwrap()
        .plan
        .to_string()
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scenarios")
}

/// Names of all scenarios.
fn scenarios() -> Vec<String> {
    let names = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names
        .filter(|name| !name.ends_with(".expect.yaml"))
        .filter_map(|name| Some(name.strip_suffix(".yaml")?.to_owned()))
        .collect();
    names.sort();
    assert!(names.len() >= 6, "{names:?}");
    names
}

fn cluster(name: &str) -> Offline {
    cluster_over(name, support::tunnel())
}

fn cluster_over(name: &str, tunnel: Arc<dyn Encapsulation>) -> Offline {
    let mut manifests = Manifests::default();
    manifests.read(
        name,
        &fs::read_to_string(folder().join(format!("{name}.yaml"))).unwrap(),
    );
    assert_eq!(manifests.findings(), [], "{name}");
    let cluster = Offline::new(&manifests, OfflineSettings::of_tunnel(tunnel));
    assert!(cluster.is_settled(), "{name}");
    cluster
}

#[test]
fn every_node_plans_what_it_always_did() {
    for name in scenarios() {
        let cluster = cluster(&name);
        let over_geneve = cluster_over(&name, Arc::new(GeneveShape::default()));
        let mut expected = BTreeSet::new();
        for node in cluster.nodes() {
            let desired = cluster.for_drivers(node).unwrap();
            let mut plans = vec![
                (
                    format!("{node}.tunnel.sh"),
                    from_nothing(&Vxlan::offline(VxlanSettings::default()), &desired.tunnel),
                ),
                (
                    format!("{node}.steering.sh"),
                    from_nothing(
                        &Steering::offline(SteeringSettings::default()),
                        &desired.steering,
                    ),
                ),
            ];
            let geneve = over_geneve.for_drivers(node).unwrap();
            let script = from_nothing(&Geneve::offline(GeneveSettings::default()), &geneve.tunnel)
                + &from_nothing(
                    &Steering::offline(SteeringSettings::default()),
                    &geneve.steering,
                );
            plans.push((format!("{node}.geneve.sh"), script));
            let addresses = from_nothing(&EgressAddresses::offline(), &desired.addresses);
            let unknown = cluster.unknown(node).join("\n");
            plans.extend(
                (!unknown.is_empty()).then(|| (format!("{node}.unknown.txt"), unknown + "\n")),
            );
            plans.extend(
                (!addresses.is_empty()).then(|| (format!("{node}.addresses.sh"), addresses)),
            );
            plans.extend(
                BACKENDS
                    .iter()
                    .map(|backend| (format!("{node}.{}", backend.name), (backend.plan)(&desired))),
            );
            for (file, text) in plans {
                golden::check(folder().join("golden").join(&name).join(&file), &text);
                expected.insert(file);
            }
        }
        let files = fs::read_dir(folder().join("golden").join(&name)).unwrap();
        let files: BTreeSet<String> = files
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(files, expected, "{name}: golden files without a node");
    }
}

#[test]
fn the_backends_own_tools_accept_every_plan() {
    for name in scenarios() {
        let cluster = cluster(&name);
        for node in cluster.nodes() {
            let desired = cluster.for_drivers(node).unwrap();
            for backend in &BACKENDS {
                let (plan, what) = (
                    (backend.plan)(&desired),
                    format!("{name}, {node}, {}", backend.name),
                );
                netns::in_namespace(move || async move {
                    let output = run(
                        Command::new(backend.check[0]).args(&backend.check[1..]),
                        &plan,
                    );
                    assert!(
                        output.status.success(),
                        "{what}: {}",
                        String::from_utf8_lossy(&output.stderr)
                    );
                });
            }
        }
    }
}

fn run(command: &mut Command, input: &str) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    child.wait_with_output().unwrap()
}

/// One packet of `<scenario>.expect.yaml`. What is absent is not looked at.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    from: String,
    to: IpAddr,
    verdict: String,
    cause: String,
    policy: Option<String>,
    gateway: Option<String>,
    node: Option<String>,
    source: Option<IpAddr>,
    /// `node=address`, one for each exit.
    exits: Option<String>,
}

#[test]
fn packets_go_where_the_scenario_says() {
    for name in scenarios() {
        let cluster = cluster(&name);
        let plans = support::BACKENDS.map(|(_, rules)| Plans::of(&cluster, rules));
        let expected = fs::read_to_string(folder().join(format!("{name}.expect.yaml"))).unwrap();
        for expected in serde_saphyr::from_str::<Vec<Expected>>(&expected).unwrap() {
            let (namespace, pod) = expected.from.split_once('/').unwrap();
            let answer =
                explain::explain(&cluster, &PodName::new(namespace, pod), expected.to).unwrap();
            let json = serde_json::to_value(&answer).unwrap();
            let context = format!("{name}: {answer}");
            assert_eq!(json["verdict"], *expected.verdict, "{context}");
            assert_eq!(json["cause"], *expected.cause, "{context}");
            for (wanted, said) in [
                (&expected.policy, &answer.policy),
                (&expected.gateway, &answer.gateway),
                (&expected.node, &answer.node),
                (
                    &expected.source.map(|source| source.to_string()),
                    &answer.source.map(|source| source.to_string()),
                ),
            ] {
                assert!(
                    wanted.is_none() || wanted == said,
                    "{wanted:?}, not {said:?}: {context}"
                );
            }
            let exits: Vec<String> = answer
                .exits
                .iter()
                .map(|exit| format!("{}={}", exit.node, exit.source.unwrap()))
                .collect();
            assert!(
                expected
                    .exits
                    .as_ref()
                    .is_none_or(|wanted| *wanted == exits.join(" ")),
                "{context}"
            );
            for plans in &plans {
                let traced = plans.trace(
                    &answer.on.as_deref().unwrap().into(),
                    answer.address.unwrap(),
                    expected.to,
                );
                assert_eq!(
                    traced,
                    Answer::of(&answer),
                    "the packet's way through the plans, {context}"
                );
            }
        }
    }
}
