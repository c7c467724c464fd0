//! The backend on the real kernel, in network namespaces of its own, with both flavours of
//! iptables.
#![allow(clippy::unwrap_used)]

mod former;

use std::{fmt::Write as _, sync::Arc, time::Duration};

use async_trait::async_trait;
use egressgateway::testing::distributed::{distributed_client, distributed_exit};
use egressgateway::testing::worlds::{class, client, egress, gateway, ip, range, target};
use egressgateway::{
    Change, CounterSource, Driver, ErrorKind, Plan, PolicyDesired, WriteHook,
    model::{MarkMask, SourceNat, Verdict},
    testing::conformance::{self, Host, RefuseOnce},
    trace::{Trace, TracePacket, TraceSource},
};
use egressgateway_backend_netfilter::{
    IptablesFlavour, Netfilter, NetfilterSettings, NetfilterState,
};
use egressgateway_testkit::netns::in_namespace;
use egressgateway_testkit::shell::{command, run};

const FLAVOURS: [IptablesFlavour; 2] = [IptablesFlavour::Legacy, IptablesFlavour::Nft];
const TABLES: [&str; 4] = ["raw", "nat", "filter", "mangle"];

fn word(flavour: IptablesFlavour) -> &'static str {
    if flavour == IptablesFlavour::Legacy {
        "legacy"
    } else {
        "nft"
    }
}

/// Rules of others, in every table that we write to, some of nearly our names.
fn neighbours(flavour: IptablesFlavour) {
    let word = word(flavour);
    command(
        &["ipset", "restore"],
        "create egx-pods-v4 hash:ip\nadd egx-pods-v4 10.0.0.1\ncreate egw hash:net family inet6\n",
    )
    .unwrap();
    for program in [
        format!("iptables-{word}-restore"),
        format!("ip6tables-{word}-restore"),
    ] {
        let rules: String = TABLES
            .map(|table| {
                let point = if table == "nat" {
                    "POSTROUTING"
                } else if table == "raw" {
                    "PREROUTING"
                } else {
                    "FORWARD"
                };
                format!(
                    "*{table}\n:KUBE-X - [0:0]\n:EGWX - [0:0]\n-A {point} -m comment --comment \"of the cluster\" -j KUBE-X\n\
                     -A KUBE-X -m mark --mark 0x4000/0x4000 -j RETURN\n-A {point} -p udp -m udp --dport 53 -j EGWX\nCOMMIT\n"
                )
            })
            .concat();
        command(&[&program, "--noflush"], &rules).unwrap();
    }
}

struct Namespace(NetfilterSettings);

#[async_trait]
impl Host<Netfilter> for Namespace {
    async fn driver(&self, hook: Arc<dyn WriteHook>) -> Netfilter {
        Netfilter::new(self.0, hook)
    }

    /// Both flavours, all rules but ours, byte by byte but for the counters of the kernel's own
    /// chains.
    async fn foreign(&self) -> String {
        let mut text = String::new();
        for program in [
            "iptables-legacy-save",
            "ip6tables-legacy-save",
            "iptables-nft-save",
            "ip6tables-nft-save",
            "ipset save",
        ] {
            for line in run(program).lines() {
                let ours =
                    ["EGW-", " egw-"].iter().any(|own| line.contains(own)) || line.starts_with('#');
                let line = if line.starts_with(':') {
                    line.split(" [").next().unwrap()
                } else {
                    line
                };
                writeln!(text, "{}", if ours { "" } else { line }).unwrap();
            }
            text = text
                .lines()
                .filter(|line| !line.is_empty())
                .flat_map(|line| [line, "\n"])
                .collect();
        }
        text
    }
}

fn netfilter(flavour: IptablesFlavour) -> Netfilter {
    Netfilter::new(
        NetfilterSettings::default().with_flavour(flavour),
        Arc::new(()),
    )
}

/// Reads, plans, applies, reads again.
async fn reach(flavour: IptablesFlavour, desired: &PolicyDesired) -> NetfilterState {
    let netfilter = netfilter(flavour);
    let Change { plan, after } = netfilter
        .plan(desired, &netfilter.observe().await.unwrap())
        .unwrap();
    netfilter
        .apply(&plan)
        .await
        .unwrap_or_else(|error| panic!("{}\n{plan}", error.chain()));
    let observed = netfilter.observe().await.unwrap();
    assert!(
        observed == after,
        "still to do:\n{}",
        netfilter.plan(desired, &observed).unwrap().plan
    );
    after
}

/// A state with `size` pods and policies that shares about half of its entries with the one of
/// `seed + 1`.
fn generated(seed: u32, size: u32) -> PolicyDesired {
    let mut desired = if seed.is_multiple_of(2) {
        client()
    } else {
        gateway()
    };
    for index in 0..size {
        let id = class(100 + (index * 7 + seed * size / 2) % (2 * size));
        let number = index + seed * size / 2;
        let pod6 = format!("fd10:244:2::{number:x}");
        desired.pods.insert(
            std::net::Ipv4Addr::from_bits(0x0a0a_0000 + number).into(),
            id,
        );
        desired.pods.insert(ip(&pod6), id);
        desired
            .start_gate
            .get_or_insert_default()
            .known
            .insert(ip(&pod6));
        let first = std::net::Ipv4Addr::from_bits(0xac10_0000 + number * 16);
        let last = std::net::Ipv4Addr::from_bits(0xac10_0000 + number * 16 + 1 + seed + index % 14);
        let verdict = match index % 5 {
            0 => egress(0x11, SourceNat::NodeAddress),
            1 => egress(0x13, SourceNat::Address(ip("10.6.0.201"))),
            2 => egress(0x14, SourceNat::Keep),
            3 => Verdict::Hold,
            _ => Verdict::Pass,
        };
        desired
            .destinations
            .insert((id, range(&format!("{first}-{last}"))), verdict);
        let exit6 = if index % 5 == 1 {
            egress(0x13, SourceNat::Address(ip("fd00::201")))
        } else {
            verdict
        };
        desired.destinations.insert(
            (id, range(&format!("fd20:{number:x}::/{}", 32 + index % 90))),
            exit6,
        );
        desired
            .overlay
            .peers
            .insert(std::net::Ipv4Addr::from_bits(0x0a06_0100 + number).into());
    }
    desired
}

async fn keeps_every_promise(flavour: IptablesFlavour) {
    neighbours_of_legacy_are_there(IptablesFlavour::Legacy);
    neighbours(flavour);
    let small = PolicyDesired {
        exempt: ["0.0.0.0/0".parse::<ipnet::IpNet>().unwrap()]
            .into_iter()
            .collect(),
        ..PolicyDesired::default()
    };
    let mut open = generated(3, 2);
    open.overlay.unknown_may_exit = true;
    open.targets.remove(&target(0x13));
    open.targets.insert(target(0xfe));
    let settings = NetfilterSettings::default().with_flavour(flavour);
    // A transaction of iptables-nft takes several times as long as one of iptables-legacy, and what
    // is written is the same.
    let states = if flavour == IptablesFlavour::Legacy {
        vec![generated(0, 5), gateway(), small, open, distributed_exit()]
    } else {
        vec![generated(0, 2), small, distributed_client()]
    };
    conformance::check(&Namespace(settings), &states).await;
}

#[test]
fn it_keeps_every_promise_of_a_driver_with_iptables_legacy() {
    in_namespace(|| keeps_every_promise(IptablesFlavour::Legacy));
}

#[test]
fn it_keeps_every_promise_of_a_driver_with_iptables_nft() {
    in_namespace(|| keeps_every_promise(IptablesFlavour::Nft));
}

#[test]
fn it_keeps_them_under_another_mask() {
    in_namespace(|| async {
        neighbours(IptablesFlavour::Nft);
        for (shift, flavour) in [(0, FLAVOURS[0]), (12, FLAVOURS[1])] {
            neighbours_of_legacy_are_there(flavour);
            let mask = MarkMask::new(0xff << shift).unwrap();
            conformance::walk(
                &Namespace(
                    NetfilterSettings::default()
                        .with_mask(mask)
                        .with_flavour(flavour),
                ),
                &[client(), gateway()],
            )
            .await;
        }
    });
}

/// A table of iptables-legacy begins to exist when it is first asked for, and stays.
fn neighbours_of_legacy_are_there(flavour: IptablesFlavour) {
    if flavour == IptablesFlavour::Legacy {
        for program in ["iptables-legacy", "ip6tables-legacy"] {
            for table in TABLES {
                run(&format!("{program} -t {table} -S"));
            }
        }
    }
}

#[test]
fn what_somebody_changes_by_hand_is_noticed_and_repaired() {
    in_namespace(|| async {
        for flavour in FLAVOURS {
            let word = word(flavour);
            let desired = gateway();
            let wanted = reach(flavour, &desired).await;
            for tampering in [
                format!("iptables-{word} -t mangle -I PREROUTING 1 -j ACCEPT"),
                format!(
                    "iptables-{word} -t mangle -D PREROUTING -m comment --comment egressgateway -j EGW-PREROUTING"
                ),
                format!("iptables-{word} -t filter -A INPUT -j EGW-FORWARD"),
                format!(
                    "iptables-{word} -t mangle -I PREROUTING 1 -m comment --comment egressgateway -j EGW-PREROUTING"
                ),
                format!("iptables-{word} -t mangle -A EGW-PREROUTING -j ACCEPT"),
                format!("ip6tables-{word} -t mangle -I EGW-CLASSIFY -s fd00::7 -j ACCEPT"),
                format!("iptables-{word} -t nat -F EGW-POSTROUTING"),
                format!("iptables-{word} -t raw -N EGW-MINE"),
                format!("iptables-{word} -t mangle -F"),
                "ipset flush egw-exempt-v4".to_owned(),
                "ipset flush egw-verdicts-00000001-v6".to_owned(),
                "ipset del egw-pods-v4 10.244.1.10".to_owned(),
                "ipset add -exist egw-pods-v4 10.244.1.10 skbmark 0x3/0xffff".to_owned(),
                "ipset add egw-ungoverned-v4 10.244.1.99".to_owned(),
                "ipset create egw-mine hash:net,port".to_owned(),
                "ipset add egw-exempt-v4 10.244.7.0/24 nomatch".to_owned(),
            ] {
                run(&tampering);
                assert!(
                    netfilter(flavour).observe().await.unwrap() != wanted,
                    "unnoticed: {tampering}"
                );
                assert!(reach(flavour, &desired).await == wanted, "{tampering}");
            }
            reach(flavour, &PolicyDesired::default()).await;
        }
    });
}

#[test]
fn who_insists_on_the_first_place_gets_it_and_egress_addresses_wait() {
    in_namespace(|| async {
        for flavour in FLAVOURS {
            let (netfilter, desired, word) = (netfilter(flavour), gateway(), word(flavour));
            let leaving = || TracePacket {
                connection_mark: 0x1200_0000,
                ..TracePacket::new(ip("10.244.1.10"), ip("10.6.2.1"))
            };
            let settled = async || {
                for _ in 0..3 {
                    let Change { plan, .. } = netfilter
                        .plan(&desired, &netfilter.observe().await.unwrap())
                        .unwrap();
                    netfilter.apply(&plan).await.unwrap();
                    if plan.is_empty() {
                        return netfilter.observe().await.unwrap();
                    }
                }
                panic!("it never comes to rest");
            };
            let address = settled().await.trace_source(&leaving(), "eth0");
            assert!(matches!(address, TraceSource::Address(_)), "{address:?}");
            let insist = || {
                run(&format!(
                    "iptables-{word} -t nat -I POSTROUTING -s 10.244.0.0/16 -j MASQUERADE"
                ))
            };
            let is_first = || {
                run(&format!("iptables-{word} -t nat -S POSTROUTING 1")).contains("EGW-POSTROUTING")
            };
            insist();
            assert_eq!(
                settled().await.trace_source(&leaving(), "eth0"),
                TraceSource::Drop {
                    counter: Some("drop_unknown_source")
                }
            );
            assert!(is_first(), "answered at once the first time");
            insist();
            let state = settled().await;
            assert!(!is_first(), "and left alone for a while the second time");
            assert_eq!(
                state.trace_source(&leaving(), "eth0"),
                TraceSource::Drop {
                    counter: Some("drop_unknown_source")
                }
            );
            run(&format!(
                "iptables-{word} -t nat -D POSTROUTING -m comment --comment egressgateway -j EGW-POSTROUTING"
            ));
            settled().await;
            assert!(is_first(), "but what is missing is written at once");
            run(&format!("iptables-{word} -t nat -F POSTROUTING"));
            reach(flavour, &PolicyDesired::default()).await;
        }
    });
}

#[test]
fn sets_of_the_wrong_type_are_replaced_although_rules_refer_to_them() {
    in_namespace(|| async {
        run("ipset create egw-pods-v4 hash:net family inet6");
        let wanted = reach(FLAVOURS[1], &client()).await;
        // A set that rules refer to can't be destroyed, so this is what another version may have
        // left.
        for set in [
            "egw-peers-v4",
            "egw-pods-v4",
            "egw-ungoverned-v4",
            "egw-verdicts-00000001-v4",
        ] {
            for program in ["iptables-nft", "ip6tables-nft"] {
                let saved = run(&format!("{program}-save"));
                let rules: String = saved
                    .lines()
                    .filter(|line| !line.starts_with('#'))
                    .flat_map(|line| [line, "\n"])
                    .collect();
                let bare: String = rules
                    .lines()
                    .filter(|line| !line.contains(set))
                    .flat_map(|line| [line, "\n"])
                    .collect();
                command(&[&format!("{program}-restore")], &bare).unwrap();
                if program == "iptables-nft" {
                    run(&format!("ipset destroy {set}"));
                    run(&format!("ipset create {set} hash:net skbinfo timeout 7"));
                    command(&["iptables-nft-restore"], &rules).unwrap();
                }
            }
            assert!(
                netfilter(FLAVOURS[1]).observe().await.unwrap() != wanted,
                "unnoticed: {set}"
            );
            assert!(reach(FLAVOURS[1], &client()).await == wanted, "{set}");
        }
    });
}

#[test]
fn a_plan_for_a_kernel_that_moved_on_fails_as_a_conflict_and_names_the_entry() {
    in_namespace(|| async {
        let netfilter = netfilter(FLAVOURS[1]);
        let before = reach(FLAVOURS[1], &client()).await;
        let mut desired = client();
        desired.pods.remove(&ip("10.244.1.10"));
        desired.pods.remove(&ip("10.244.1.12"));
        let change = netfilter.plan(&desired, &before).unwrap();
        run("ipset del egw-pods-v4 10.244.1.12");
        let error = netfilter.apply(&change.plan).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Conflict);
        assert!(
            error
                .chain()
                .contains("delete from ipset egw-pods-v4: 10.244.1.12"),
            "{}",
            error.chain()
        );
        let mut more = client();
        more.pods.insert(ip("10.244.1.77"), class(1));
        let change = netfilter.plan(&more, &before).unwrap();
        run("ipset add egw-pods-v4 10.244.1.77");
        assert_eq!(
            netfilter.apply(&change.plan).await.unwrap_err().kind,
            ErrorKind::Conflict
        );
        reach(FLAVOURS[1], &desired).await;
    });
}

/// What a killed agent leaves the program with: the tests of single moments take a table's
/// transaction for one.
#[test]
fn a_set_that_a_rule_still_refers_to_for_a_moment_goes_after_it() {
    in_namespace(|| async {
        let flavour = IptablesFlavour::Legacy;
        reach(flavour, &client()).await;
        let rule = "FORWARD -m set --match-set egw-pods-v4 src -j RETURN";
        run(&format!("iptables-legacy -A {rule}"));
        let backend = netfilter(flavour);
        let Change { plan, after } = backend
            .plan(&PolicyDesired::default(), &backend.observe().await.unwrap())
            .unwrap();
        let let_go = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            run(&format!("iptables-legacy -D {rule}"));
        };
        let (applied, ()) = tokio::join!(backend.apply(&plan), let_go);
        applied.unwrap_or_else(|error| panic!("{}", error.chain()));
        assert_eq!(backend.observe().await.unwrap(), after);
    });
}

#[test]
fn a_script_that_is_cut_off_changes_whole_tables_or_nothing() {
    in_namespace(|| async {
        let of = |table: &str| {
            format!(
                "*{table}\n:EGW-CUT - [0:0]\n-A EGW-CUT -m mark --mark 0x1/0x1 -j RETURN\n-A EGW-CUT -j DROP\nCOMMIT\n"
            )
        };
        let script = of("raw") + &of("mangle");
        for flavour in FLAVOURS {
            let word = word(flavour);
            let mut seen = std::collections::BTreeSet::new();
            for length in (0..=script.len()).rev().step_by(3) {
                drop(command(
                    &[&format!("iptables-{word}-restore"), "--noflush"],
                    &script[..length],
                ));
                let rules = ["raw", "mangle"].map(|table| {
                    run(&format!("iptables-{word}-save -t {table}"))
                        .matches("-A EGW-CUT")
                        .count()
                });
                assert!(
                    [[0, 0], [2, 0], [2, 2]].contains(&rules),
                    "{word}, {length} bytes: {rules:?}"
                );
                seen.insert(rules);
                for table in ["raw", "mangle"] {
                    drop(command(
                        &[&format!("iptables-{word}-restore"), "--noflush"],
                        &format!("*{table}\n-F EGW-CUT\n-X EGW-CUT\nCOMMIT\n"),
                    ));
                }
            }
            assert_eq!(
                seen.len(),
                3,
                "{word}: cut before, between and behind the tables"
            );
        }
    });
}

#[test]
fn the_probe_passes_here_and_changes_nothing() {
    in_namespace(|| async {
        for flavour in FLAVOURS {
            netfilter(flavour).probe().await.unwrap();
            assert_eq!(
                netfilter(flavour).observe().await.unwrap(),
                NetfilterState::default()
            );
        }
    });
}

#[test]
fn rules_go_where_those_of_the_cluster_are() {
    for flavour in FLAVOURS {
        in_namespace(move || async move {
            neighbours(flavour);
            reach(IptablesFlavour::Auto, &client()).await;
            let (own, other) = if flavour == FLAVOURS[0] {
                ("legacy", "nft")
            } else {
                ("nft", "legacy")
            };
            assert!(run(&format!("iptables-{own}-save")).contains("EGW-PREROUTING"));
            assert!(!run(&format!("iptables-{other}-save")).contains("EGW-PREROUTING"));
        });
    }
}

#[test]
fn counters_are_there_with_the_rules_and_survive_updates() {
    in_namespace(|| async {
        for flavour in FLAVOURS {
            let netfilter = netfilter(flavour);
            assert!(netfilter.counters().await.unwrap().is_empty());
            reach(flavour, &client()).await;
            let names: Vec<String> = netfilter.counters().await.unwrap().into_keys().collect();
            let all = [
                "drop_held",
                "drop_no_gateway",
                "drop_no_port",
                "drop_not_peer",
                "drop_start_gate",
                "drop_unknown_source",
                "drop_untracked",
                "exited",
                "steered",
                "tunnelled",
            ];
            assert_eq!(names, all);
            let program = format!("iptables-{}-restore", word(flavour));
            let counted = "*mangle\n:EGW-HELD - [0:0]\n[7:70] -A EGW-HELD -j DROP\nCOMMIT\n";
            command(&[&program, "--noflush", "--counters"], counted).unwrap();
            reach(flavour, &gateway()).await;
            assert_eq!(
                netfilter.counters().await.unwrap()["drop_held"].packets,
                7,
                "{flavour:?}"
            );
            reach(flavour, &PolicyDesired::default()).await;
        }
    });
}

#[test]
fn ten_thousand_policies_load_and_one_more_pod_is_one_entry() {
    in_namespace(|| async {
        let flavour = FLAVOURS[0];
        let mut desired = generated(0, 10_000);
        let begin = std::time::Instant::now();
        let state = reach(flavour, &desired).await;
        assert!(state.len() > 50_000, "{}", state.len());
        eprintln!(
            "{} entries, {} rules: read, planned, applied, read again in {:?}",
            state.len(),
            state.rules(),
            begin.elapsed()
        );
        desired.pods.insert(ip("10.244.1.20"), class(2));
        let begin = std::time::Instant::now();
        let Change { plan, after } = netfilter(flavour).plan(&desired, &state).unwrap();
        let planned = begin.elapsed();
        assert_eq!(plan.to_string().lines().count(), 2);
        netfilter(flavour).apply(&plan).await.unwrap();
        eprintln!(
            "one pod more: planned in {planned:?}, applied after {:?}",
            begin.elapsed()
        );
        assert_eq!(netfilter(flavour).observe().await.unwrap(), after);
    });
}

/// Names of ours that are in the kernel, other than those that are there with a fresh install.
fn names(flavour: IptablesFlavour) -> String {
    let word = word(flavour);
    run(&format!(
        "(ipset list -n; iptables-{word}-save; ip6tables-{word}-save) | grep -oE 'egw-[a-z0-9-]+|EGW-[A-Z0-9a-f-]+' | sort -u || true"
    ))
}

#[test]
fn a_former_versions_rules_are_taken_over_wherever_that_is_interrupted() {
    in_namespace(|| async {
        let desired = gateway();
        for flavour in FLAVOURS {
            let whole = reach(flavour, &desired).await;
            let fresh = names(flavour);
            for write in (0..).step_by(5) {
                reach(flavour, &PolicyDesired::default()).await;
                run(&former::load(word(flavour), "gateway"));
                assert_ne!(names(flavour), fresh);
                let hook = RefuseOnce::at(write);
                let upgraded = Netfilter::new(
                    NetfilterSettings::default().with_flavour(flavour),
                    hook.clone(),
                );
                let former = upgraded.observe().await.unwrap();
                let plan = upgraded.plan(&desired, &former).unwrap().plan;
                let applied = upgraded.apply(&plan).await.is_ok();
                assert_eq!(applied, hook.seen() <= write);
                assert!(reach(flavour, &desired).await == whole);
                assert_eq!(names(flavour), fresh, "nothing is left of former names");
                if applied {
                    break;
                }
            }
            reach(flavour, &PolicyDesired::default()).await;
        }
    });
}

#[test]
fn a_cleanup_removes_what_a_former_version_left() {
    in_namespace(|| async {
        for flavour in FLAVOURS {
            run(&former::load(word(flavour), "client"));
            reach(flavour, &PolicyDesired::default()).await;
            assert_eq!(names(flavour), "");
        }
    });
}
