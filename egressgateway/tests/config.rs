//! The configuration: one file, and each field also a flag and an environment variable.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use egressgateway::{
    api::ForwardMethod,
    config::{Config, ReplyPath},
};
use proptest::prelude::*;
use serde::Deserialize;

/// As the documentation shows it: every field with its default.
const DOCUMENTED: &str = "
tunnel: {kind: vxlan, ipv4CIDR: 198.19.0.0/16, ipv6CIDR: 'fd31::/112', vni: 100, port: 7789, mtu: auto, parent: auto}
policyBackend: auto
iptables: auto
forwardMethod: active-passive
defaultEgressGateway: egressgateway
clusterCIDRs: {auto: true, extra: []}
mark: {mask: 0xff000000}
routing: {tableBase: 100, rulePriority: 99, protocol: 77}
failover: {interval: 150ms, multiplier: 3, drainGracePeriod: 1m}
startGate: true
holdAtBoot: true
stateFile: /var/lib/egressgateway/state.json
resetConnections: true
replyPath: cni
";

#[derive(Deserialize)]
struct Case {
    name: String,
    config: String,
    problems: Vec<Expected>,
}

#[derive(Deserialize)]
struct Expected {
    field: String,
    value: String,
    rule: String,
    line: Option<usize>,
}

#[test]
fn the_documented_configuration_is_the_default() {
    assert_eq!(Config::parse(DOCUMENTED).unwrap(), Config::default());
    assert_eq!(Config::parse("").unwrap(), Config::default());
    assert_eq!(
        Config::parse("# nothing\ntunnel:\n").unwrap(),
        Config::default()
    );
}

#[test]
fn what_is_written_reads_back() {
    let text = serde_saphyr::to_string(&Config::default()).unwrap();
    assert_eq!(Config::parse(&text).unwrap(), Config::default());
    assert_eq!(
        serde_saphyr::from_str::<Config>(&text).unwrap(),
        Config::default()
    );
    for field in Config::FIELDS {
        assert!(
            text.contains(&format!("{}:", field.path.rsplit('.').next().unwrap())),
            "{} is missing",
            field.path
        );
    }
}

/// A value of each field that is not its default.
const OTHERS: [(&str, &str); 25] = [
    ("tunnel.kind", "geneve"),
    ("tunnel.ipv4CIDR", ""),
    ("tunnel.ipv6CIDR", "fd99::/64"),
    ("tunnel.vni", "16777215"),
    ("tunnel.port", "1"),
    ("tunnel.mtu", "1400"),
    ("tunnel.parent", "eth1"),
    ("policyBackend", "netfilter"),
    ("iptables", "legacy"),
    ("forwardMethod", "ecmp"),
    ("defaultEgressGateway", ""),
    ("clusterCIDRs.auto", "false"),
    ("clusterCIDRs.extra", "10.96.0.0/12, fd96::/108"),
    ("mark.mask", "0x0000ff00"),
    ("routing.tableBase", "3000"),
    ("routing.rulePriority", "2"),
    ("routing.protocol", "200"),
    ("failover.interval", "1s 500ms"),
    ("failover.multiplier", "5"),
    ("failover.drainGracePeriod", "0s"),
    ("startGate", "false"),
    ("holdAtBoot", "false"),
    ("stateFile", ""),
    ("resetConnections", "false"),
    ("replyPath", "tunnel"),
];

#[test]
fn every_field_can_be_changed() {
    let mut config = Config::default();
    assert_eq!(
        OTHERS.map(|(path, _)| path).to_vec(),
        Config::FIELDS
            .iter()
            .map(|field| field.path)
            .collect::<Vec<_>>()
    );
    for (path, value) in OTHERS {
        let before = config.clone();
        config.set(path, value, path).unwrap();
        assert_ne!(config, before, "{path}");
    }
    assert_eq!(config.failover.interval, Duration::from_millis(1500));
    assert_eq!(
        (
            config.forward_method,
            config.reply_path,
            config.mark.mask.bits()
        ),
        (ForwardMethod::Ecmp, ReplyPath::Tunnel, 0xff00)
    );
    assert_eq!(config.cluster_cidrs.extra.len(), 2);
    assert_eq!(config.problems(), []);
    assert_eq!(
        Config::parse(&serde_saphyr::to_string(&config).unwrap()).unwrap(),
        config
    );
}

#[test]
fn every_field_is_taken_now_or_named_as_waiting_as_it_is_documented() {
    let now = Config::default();
    for (field, (path, other)) in Config::FIELDS.iter().zip(OTHERS) {
        assert_eq!(field.path, path);
        let mut next = now.clone();
        next.set(path, other, path).unwrap();
        let (in_force, changed) = now.adopt(&next);
        assert_eq!(changed.len(), 1, "{changed:?}");
        assert_eq!((changed[0].path, changed[0].live), (path, field.live));
        assert_eq!(
            (Some(&changed[0].old), Some(&changed[0].new)),
            (now.value(path).as_ref(), next.value(path).as_ref())
        );
        let expected = if field.live { &next } else { &now };
        assert_eq!(in_force, *expected, "{path}");
    }
    assert_eq!(now.adopt(&now), (now.clone(), Vec::new()));
}

#[test]
fn flags_and_variables_follow_from_the_path() {
    for field in Config::FIELDS {
        let flag: String = field
            .path
            .replace("CIDRs", "-cidrs")
            .replace("CIDR", "-cidr")
            .replace('.', "-")
            .chars()
            .fold(String::new(), |mut flag, c| {
                if c.is_ascii_uppercase() {
                    flag.push('-');
                }
                flag.push(c.to_ascii_lowercase());
                flag
            });
        assert_eq!(field.flag, flag);
        assert_eq!(
            field.env,
            format!("EGRESSGATEWAY_{}", flag.replace('-', "_").to_uppercase())
        );
        assert!(!field.help.is_empty());
    }
}

#[test]
fn a_refused_flag_is_named_and_changes_nothing() {
    let mut config = Config::default();
    let problem = config.set("tunnel.vni", "0", "--tunnel-vni").unwrap_err();
    assert_eq!(
        problem.to_string(),
        "tunnel.vni (--tunnel-vni): \"0\": must be a number from 1 to 16777215"
    );
    let problem = config
        .set("tunnel.color", "red", "EGRESSGATEWAY_TUNNEL_COLOR")
        .unwrap_err();
    assert_eq!(problem.rule, "is not a field of the configuration");
    assert_eq!(config, Config::default());
}

#[test]
fn every_bad_configuration_is_refused_with_field_value_rule_and_line() {
    let cases: Vec<Case> =
        serde_saphyr::from_str(include_str!("fixtures/config/bad.yaml")).unwrap();
    assert!(cases.len() >= 10);
    for case in cases {
        let problems = Config::parse(&case.config).expect_err(&case.name);
        assert_eq!(
            problems.len(),
            case.problems.len(),
            "{}: {problems:?}",
            case.name
        );
        for (problem, expected) in problems.iter().zip(&case.problems) {
            assert_eq!(
                (&problem.field, &problem.value),
                (&expected.field, &expected.value),
                "{}",
                case.name
            );
            assert!(
                problem.rule.contains(&expected.rule),
                "{}: {problem}",
                case.name
            );
            if let Some(line) = expected.line {
                assert!(
                    problem.rule.contains(&format!("line {line}")),
                    "{}: {problem}",
                    case.name
                );
            }
        }
    }
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,80}", path in 0..Config::FIELDS.len()) {
        let _ = Config::parse(&text);
        let path = Config::FIELDS[path].path;
        let _ = Config::parse(&format!("{}: {text}", path.replace('.', ":\n  ")));
        let _ = Config::default().set(path, &text, path);
    }
}
