//! Rules of kube-proxy and Calico all around: everything works, and they are as they were.
//!
//! Three combinations of the many, each other in all that matters, so that the list stays short:
//! both flavours of iptables, jumps that others insert and append, each mode of the reverse-path
//! filter, plain routes and an overlay. All have both families and drop by default what is
//! forwarded. `all_foreign_rules.rs` runs all combinations.

use std::fmt::Write;

use egressgateway_testkit::lab::{
    Builder, ChainInsertMode, Cni, Components, Families, ForwardPolicy, Lab, RuleTool, ServiceSpec,
};

use crate::{
    hosts::everything_works,
    world::{CLIENT, DataPath, GATEWAYS, GOVERNED, Place, World, lab, measured},
};

pub(crate) const INSERTS: Components = Components::Calico(ChainInsertMode::Insert);
pub(crate) const APPENDS: Components = Components::Calico(ChainInsertMode::Append);

pub(crate) fn host(components: Components, tool: RuleTool, rp_filter: u8) -> Builder {
    lab()
        .components(components)
        .rules_by(tool)
        .rp_filter(rp_filter)
        .forward_policy(ForwardPolicy::DropButPods)
}

pub(crate) fn among_rules_of_kube_proxy_and_an_overlay(path: &DataPath) {
    lives_among(
        path,
        host(Components::KubeProxy, RuleTool::IptablesLegacy, 2).cni(Cni::Vxlan),
    );
}

pub(crate) fn among_rules_of_calico_that_appends(path: &DataPath) {
    lives_among(path, host(APPENDS, RuleTool::IptablesLegacy, 1));
}

pub(crate) fn among_rules_of_calico_that_inserts(path: &DataPath) {
    lives_among(path, host(INSERTS, RuleTool::IptablesNft, 0));
}

pub(crate) fn lives_among(path: &DataPath, lab: Builder) {
    let place = Place::make(lab, Families::Dual);
    let far = place.lab.pod("client-2", "far").unwrap();
    let service = place
        .lab
        .service(ServiceSpec::new("web", 80), &[&far])
        .unwrap();
    let before = rules_of_others(&place.lab);
    assert!(before.contains("KUBE-SVC-WEB-TCP"), "{before}");
    let mut world = place.with_daemons(path).with_usual_policy();
    everything_works(&world, &far, &service);
    node_ports_answer(&world, service.node_port());
    assert_unchanged(&before, &world.cluster.lab, "while the agents run");
    let capture = world.cluster.lab.capture().unwrap();
    for node in [CLIENT, GATEWAYS[0]] {
        let moved = world.cluster.lab.node(node).reinsert_jumps().unwrap();
        if !moved.is_empty() {
            measured(
                &format!("{node}: works again after others got before us in\n{moved}"),
                || {
                    world.leaves_by(&world.shop, GOVERNED, GATEWAYS[0]);
                    world.leaves_by(&world.local, GOVERNED, GATEWAYS[0]);
                },
            );
        }
    }
    assert_eq!(world.leaks(&capture), [""; 0]);
    everything_works(&world, &far, &service);
    assert_unchanged(&before, &world.cluster.lab, "after others got before us");
    world.cluster.kill_all();
    for node in world.cluster.lab.nodes() {
        world.cluster.cleanup(node.name());
    }
    assert_unchanged(&before, &world.cluster.lab, "after cleanup");
    world.leaves_by(&world.shop, GOVERNED, CLIENT);
}

/// From outside, through a node that has no backend of the service.
fn node_ports_answer(world: &World, port: u16) {
    for address in world.cluster.lab.node(CLIENT).addresses() {
        let endpoint = (address, port).into();
        world
            .cluster
            .eventually(&format!("{endpoint} answers"), || {
                world
                    .server
                    .connect_tcp(endpoint)
                    .map_err(|error| error.to_string())
            });
    }
}

#[track_caller]
fn assert_unchanged(before: &str, lab: &Lab, when: &str) {
    let now = rules_of_others(lab);
    for (old, new) in before.lines().zip(now.lines()) {
        assert_eq!(old, new, "{when}");
    }
    assert_eq!(before.lines().count(), now.lines().count(), "{when}");
}

/// Everything that is said by both iptables, ipset and nft on all nodes and is not ours, without
/// counters. What is not said is where a table begins to exist: asking for one is enough for that.
fn rules_of_others(lab: &Lab) -> String {
    let mut all = String::new();
    for node in lab.nodes() {
        for program in [
            "iptables-legacy-save",
            "ip6tables-legacy-save",
            "iptables-nft-save",
            "ip6tables-nft-save",
        ] {
            others_saved(
                &node.run(&format!("{program} 2>/dev/null")).unwrap(),
                &format!("{} {program}", node.name()),
                &mut all,
            );
        }
        for line in node
            .run("ipset save")
            .unwrap()
            .lines()
            .filter(|line| !line.contains(" egw-"))
        {
            let _ = writeln!(all, "{} ipset {line}", node.name());
        }
        others_listed(
            &node.run("nft --stateless list ruleset").unwrap(),
            node.name(),
            &mut all,
        );
    }
    all
}

/// Rules, chains and policies, one a line with its table.
fn others_saved(text: &str, place: &str, all: &mut String) {
    let mut table = "";
    for line in text
        .lines()
        .filter(|line| !line.starts_with('#') && !line.contains("EGW-") && *line != "COMMIT")
    {
        if line.starts_with('*') {
            table = line;
            continue;
        }
        let (line, _counters) = if line.starts_with(':') {
            line.split_once(" [").unwrap()
        } else {
            (line, "")
        };
        // As every table begins.
        if !line.ends_with(" ACCEPT") || !line.starts_with(':') {
            let _ = writeln!(all, "{place} {table} {line}");
        }
    }
}

/// The same of nft's own words.
fn others_listed(text: &str, place: &str, all: &mut String) {
    let (mut table, mut chain) = ("", "");
    for line in text.lines().filter(|line| {
        !line.starts_with('#') && !line.contains("jump EGW-") && !line.trim().is_empty()
    }) {
        match line
            .chars()
            .take_while(|character| *character == '\t')
            .count()
        {
            0 => (table, chain) = (line, ""),
            1 => chain = line.trim(),
            _ => {}
        }
        let is_ours = table.contains("inet egressgateway") || chain.contains(" EGW-");
        let body = line.trim();
        // A chain of the kernel's own that nobody has a rule in.
        let is_default = body.starts_with("type ")
            && body.ends_with("policy accept;")
            && table.starts_with("table ip");
        let is_frame = body.ends_with('{') || body == "}";
        let is_empty_chain = body.starts_with("chain cali-") || body.starts_with("chain KUBE-");
        if !is_ours && !is_default && (!is_frame || is_empty_chain) {
            let _ = writeln!(all, "{place} {table} {chain} {body}");
        }
    }
}
