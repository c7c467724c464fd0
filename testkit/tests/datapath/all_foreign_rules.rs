//! What takes many minutes, for whoever changes the rules: all combinations of foreign rules of
//! which [`foreign_rules`] has a choice, and what a quarrel with Calico costs. `make test-foreign-rules`
//! runs it.
#![allow(clippy::unwrap_used, missing_docs)]
// The checks of the one list belong to other programs.
#![allow(dead_code)]

mod foreign_rules;
mod hosts;
mod world;

use std::time::{Duration, Instant};

use egressgateway_testkit::{
    lab::{Components, Families, RuleTool},
    netns::have_root,
};
use foreign_rules::{APPENDS, INSERTS, host, lives_among};
use world::{CLIENT, DataPath, GATEWAYS, GOVERNED, World};

const SECONDS: u64 = 90;

fn among_all(backend: &'static str) {
    if !have_root() {
        return;
    }
    for components in [Components::KubeProxy, INSERTS, APPENDS] {
        for tool in [RuleTool::IptablesLegacy, RuleTool::IptablesNft] {
            for rp_filter in [0, 1, 2] {
                eprintln!("{backend}, {components:?}, {tool:?}, rp_filter {rp_filter}");
                lives_among(
                    &DataPath {
                        backend,
                        tunnel: "vxlan",
                    },
                    host(components, tool, rp_filter),
                );
            }
        }
    }
}

#[test]
fn nftables_lives_in_every_world() {
    among_all("nftables");
}

#[test]
fn netfilter_lives_in_every_world() {
    among_all("netfilter");
}

/// How often two who insist on the first place write, and what gets through meanwhile. What it
/// measures is in docs/datapath.md.
#[test]
fn a_quarrel_about_the_first_place_lets_nothing_out() {
    if !have_root() {
        return;
    }
    for (backend, tool) in [
        ("netfilter", RuleTool::IptablesLegacy),
        ("netfilter", RuleTool::IptablesNft),
        ("nftables", RuleTool::IptablesLegacy),
    ] {
        let world = World::start_in(
            &DataPath {
                backend,
                tunnel: "vxlan",
            },
            host(INSERTS, tool, 0),
            Families::Dual,
        )
        .with_usual_policy();
        let capture = world.cluster.lab.capture().unwrap();
        let nodes = [CLIENT, GATEWAYS[0]].map(|name| world.cluster.lab.node(name));
        let (start, mut writes, mut lost) = (Instant::now(), 0, Duration::ZERO);
        // As Felix does: after a write of its own it looks after 1, 2, 4, 8… seconds.
        let (mut written, mut since) = (Instant::now(), Duration::from_secs(1));
        while start.elapsed() < Duration::from_secs(SECONDS) {
            if written.elapsed() >= since {
                let moved = nodes
                    .iter()
                    .map(|node| node.reinsert_jumps().unwrap())
                    .collect::<String>();
                since *= 2;
                if !moved.is_empty() {
                    (written, since) = (Instant::now(), Duration::from_secs(1));
                    writes += 1;
                    eprintln!(
                        "{backend}, {tool:?}: {:?}: Calico writes, {} jumps",
                        start.elapsed(),
                        moved.lines().count()
                    );
                }
            }
            let tried = Instant::now();
            if world
                .shop
                .connect_tcp(world.endpoints(GOVERNED)[0])
                .is_err()
            {
                lost += tried.elapsed();
            }
        }
        eprintln!(
            "{backend}, {tool:?}: {writes} writes of Calico in {:?}; without a connection for {lost:?}",
            start.elapsed()
        );
        assert_eq!(world.leaks(&capture), [""; 0]);
        assert!(
            writes < 15,
            "{writes} writes in {SECONDS} seconds: the quarrel does not calm down"
        );
    }
}
