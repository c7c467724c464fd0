//! The backend on the real kernel, in network namespaces of its own.
#![allow(clippy::unwrap_used)]

use std::{
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use egressgateway::testing::distributed::distributed_exit;
use egressgateway::testing::worlds::{class, client, egress, gateway, ip, range, target};
use egressgateway::{
    Change, CounterSource, Driver, ErrorKind, PolicyDesired, PolicyMonitor, WriteHook,
    model::{IpRange, MarkMask, SourceNat, Verdict},
    testing::conformance::{self, Host, RefuseOnce},
};
use egressgateway_backend_nftables::{NftState, Nftables, NftablesSettings};
use egressgateway_testkit::netns::in_namespace;
use egressgateway_testkit::shell::{command, run};

/// Tables of others: one of nearly our name, one that has chains where ours are.
const NEIGHBOURS: &str = "add table inet egressgateway2\nadd set inet egressgateway2 pods4 { type ipv4_addr; }\n\
     add element inet egressgateway2 pods4 { 10.0.0.1 }\nadd table ip egressgateway\nadd chain ip egressgateway prerouting_steer\n\
     add rule ip egressgateway prerouting_steer accept\nadd table ip nat\n\
     add chain ip nat post { type nat hook postrouting priority 100; }\nadd rule ip nat post masquerade\n";

struct Namespace(NftablesSettings);

#[async_trait]
impl Host<Nftables> for Namespace {
    async fn driver(&self, hook: Arc<dyn WriteHook>) -> Nftables {
        Nftables::new(self.0, hook)
    }

    async fn foreign(&self) -> String {
        let tables = command(&["nft", "list", "tables"], "").unwrap();
        let others = tables
            .lines()
            .filter(|table| *table != "table inet egressgateway");
        others
            .map(|table| {
                command(
                    &[
                        &["nft", "list"],
                        table.split(' ').collect::<Vec<_>>().as_slice(),
                    ]
                    .concat(),
                    "",
                )
                .unwrap()
            })
            .collect()
    }
}

fn nftables() -> Nftables {
    Nftables::new(NftablesSettings::default(), Arc::new(()))
}

/// Reads, plans, checks the plan with nft, applies it.
async fn reach(desired: &PolicyDesired) -> NftState {
    let nftables = nftables();
    let Change { plan, after } = nftables
        .plan(desired, &nftables.observe().await.unwrap())
        .unwrap();
    command(&["nft", "-c", "-f", "-"], &plan.to_string())
        .unwrap_or_else(|error| panic!("{error}\n{plan}"));
    nftables.apply(&plan).await.unwrap();
    let observed = nftables.observe().await.unwrap();
    assert!(
        observed == after,
        "still to do:\n{}",
        nftables.plan(desired, &observed).unwrap().plan
    );
    after
}

/// A state with `size` pods and policies that shares about half of its elements with the one of
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
        desired
            .pods
            .insert(Ipv4Addr::from_bits(0x0a0a_0000 + number).into(), id);
        desired.pods.insert(ip(&pod6), id);
        desired
            .start_gate
            .get_or_insert_default()
            .known
            .insert(ip(&pod6));
        let first = Ipv4Addr::from_bits(0xac10_0000 + number * 16);
        let last = Ipv4Addr::from_bits(0xac10_0000 + number * 16 + 1 + seed + index % 14);
        let verdict = match index % 5 {
            0 => egress(0x11, SourceNat::NodeAddress),
            1 => egress(0x13, SourceNat::Address(ip("10.6.0.201"))),
            2 => egress(0x14, SourceNat::Keep),
            3 => Verdict::Hold,
            _ => Verdict::Pass,
        };
        desired.destinations.insert(
            (id, IpRange::new(first.into(), last.into()).unwrap()),
            verdict,
        );
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
            .insert(Ipv4Addr::from_bits(0x0a06_0100 + number).into());
    }
    desired
}

#[test]
fn it_keeps_every_promise_of_a_driver() {
    in_namespace(|| async {
        command(&["nft", "-f", "-"], NEIGHBOURS).unwrap();
        let small = PolicyDesired {
            exempt: ["0.0.0.0/0".parse::<ipnet::IpNet>().unwrap()]
                .into_iter()
                .collect(),
            ..PolicyDesired::default()
        };
        let mut open = generated(3, 40);
        open.overlay.unknown_may_exit = true;
        open.targets.remove(&target(0x13));
        open.targets.insert(target(0xfe));
        let states = [generated(0, 60), gateway(), small, open, distributed_exit()];
        conformance::check(&Namespace(NftablesSettings::default()), &states).await;
    });
}

/// Where only single addresses of a class go, nft has no range beside them that makes it name the
/// ends of all.
#[test]
fn single_addresses_of_a_class_change_and_go() {
    in_namespace(|| async {
        let key = |address: &str| (class(1), IpRange::single(ip(address)));
        let mut single = gateway();
        for address in ["10.6.5.5", "10.6.5.7", "fd00::5:5"] {
            single.destinations.insert(
                key(address),
                egress(0x13, SourceNat::Address(ip("10.6.0.200"))),
            );
        }
        single
            .destinations
            .insert(key("fd00::5:5"), egress(0x11, SourceNat::Keep));
        let (mut changed, mut fewer) = (single.clone(), single.clone());
        for address in ["10.6.5.5", "fd00::5:5"] {
            changed.destinations.insert(key(address), Verdict::Hold);
            fewer.destinations.remove(&key(address));
        }
        conformance::walk(
            &Namespace(NftablesSettings::default()),
            &[single, changed, fewer],
        )
        .await;
    });
}

#[test]
fn it_keeps_them_under_another_mask() {
    in_namespace(|| async {
        command(&["nft", "-f", "-"], NEIGHBOURS).unwrap();
        for shift in [0, 4, 16] {
            let mask = MarkMask::new(0xff << shift).unwrap();
            conformance::check(
                &Namespace(NftablesSettings::default().with_mask(mask)),
                &[client(), gateway()],
            )
            .await;
        }
    });
}

#[test]
fn nft_accepts_every_plan_and_no_way_shows_in_the_result() {
    in_namespace(|| async {
        let states = [
            client(),
            gateway(),
            generated(0, 100),
            generated(1, 100),
            generated(2, 30),
            PolicyDesired::default(),
        ];
        for (from, to) in
            (0..states.len()).flat_map(|from| (0..states.len()).map(move |to| (from, to)))
        {
            reach(&states[from]).await;
            reach(&states[to]).await;
        }
    });
}

#[test]
fn a_remembered_state_leads_to_the_same_as_a_fresh_reading() {
    in_namespace(|| async {
        let mut believed = NftState::default();
        for seed in [0, 2, 4, 1, 3, 5, 0] {
            let desired = generated(seed, 80);
            let Change { plan, after } = nftables().plan(&desired, &believed).unwrap();
            nftables()
                .apply(&plan)
                .await
                .unwrap_or_else(|error| panic!("{}\n{plan}", error.chain()));
            let observed = nftables().observe().await.unwrap();
            assert!(
                observed == after,
                "still to do:\n{}",
                nftables().plan(&desired, &observed).unwrap().plan
            );
            believed = after;
        }
    });
}

#[test]
fn what_somebody_changes_by_hand_is_noticed_and_repaired() {
    in_namespace(|| async {
        let desired = gateway();
        let wanted = reach(&desired).await;
        for tampering in [
            "add rule inet egressgateway prerouting_steer accept",
            "insert rule inet egressgateway prerouting_steer ip saddr 10.0.0.1 accept",
            "add rule inet egressgateway to_11 counter",
            "flush chain inet egressgateway forward_guard",
            "flush chain inet egressgateway held",
            "flush table inet egressgateway",
            "delete table inet egressgateway",
            "add chain inet egressgateway mine",
            "add chain inet egressgateway mine { type filter hook input priority 0; policy drop; }",
            "add chain inet egressgateway prerouting_steer { policy drop; }",
            "add set inet egressgateway mine { type mark; }",
            "add counter inet egressgateway mine",
            "flush set inet egressgateway exempt4",
            "flush map inet egressgateway verdicts6",
            "add element inet egressgateway verdicts4 { 0:9 . 10.0.0.0/8 : accept }",
            "add element inet egressgateway verdicts4 { 0:9 . 10.0.0.0/8 : goto to_11 }",
            "add element inet egressgateway targets { 0x77000000 : drop }",
            "delete element inet egressgateway pods4 { 10.244.1.10 }",
            "delete element inet egressgateway pods4 { 10.244.1.10 }; add element inet egressgateway pods4 { 10.244.1.10 : 0:2 }",
            "add element inet egressgateway ungoverned4 { 10.244.1.99 }",
            "add element inet egressgateway changing { 0:9 }",
            "add element inet egressgateway overlay_devices { \"eth0\" }",
            "delete element inet egressgateway peers4 { 10.6.0.12 }",
        ] {
            command(&["nft", "-f", "-"], tampering)
                .unwrap_or_else(|error| panic!("{tampering}: {error}"));
            assert!(
                nftables().observe().await.unwrap() != wanted,
                "unnoticed: {tampering}"
            );
            assert!(reach(&desired).await == wanted, "{tampering}");
        }
    });
}

#[test]
fn a_plan_for_a_kernel_that_moved_on_fails_as_a_conflict() {
    in_namespace(|| async {
        let before = reach(&client()).await;
        let mut desired = client();
        desired.pods.remove(&ip("10.244.1.10"));
        let change = nftables().plan(&desired, &before).unwrap();
        run("nft delete element inet egressgateway pods4 { 10.244.1.10 }");
        let refused = nftables().apply(&change.plan).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Conflict);
        assert!(
            refused
                .to_string()
                .contains("delete element pods4 10.244.1.10"),
            "{refused}"
        );
        run("nft delete table inet egressgateway");
        assert_eq!(
            nftables().apply(&change.plan).await.unwrap_err().kind,
            ErrorKind::Conflict
        );
        reach(&desired).await;
    });
}

#[test]
fn addresses_come_move_and_go_one_by_one_and_all_together_or_not_at_all() {
    in_namespace(|| async {
        let mut desired = client();
        reach(&desired).await;
        for pod in [
            "10.244.1.10",
            "fd10:244:1::10",
            "10.244.1.40",
            "fd10:244:1::40",
        ] {
            desired.pods.insert(ip(pod), class(2));
            desired
                .start_gate
                .get_or_insert_default()
                .known
                .insert(ip(pod));
            reach(&desired).await;
            desired.overlay.peers.insert(ip(pod));
            reach(&desired).await;
        }
        desired = client();
        let before = reach(&desired).await;
        for number in 0..100_u32 {
            desired
                .pods
                .insert(Ipv4Addr::from_bits(0x0a0a_0000 + number).into(), class(1));
        }
        desired.pods.remove(&ip("10.244.1.10"));
        let change = nftables().plan(&desired, &before).unwrap();
        // The last of the hundred is there with another class: nothing of the plan is done.
        run("nft add element inet egressgateway pods4 { 10.10.0.99 : 0:9 }");
        let moved_on = nftables().observe().await.unwrap();
        assert_eq!(
            nftables().apply(&change.plan).await.unwrap_err().kind,
            ErrorKind::Conflict
        );
        assert!(nftables().observe().await.unwrap() == moved_on);
        reach(&desired).await;
    });
}

/// The sockets to the packet filter that this process holds in this network namespace.
fn sockets() -> Vec<String> {
    let held: Vec<_> = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .map(|target| target.to_string_lossy().into_owned())
        .collect();
    let list = std::fs::read_to_string("/proc/thread-self/net/netlink").unwrap();
    let columns = list
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    columns
        .filter(|columns| columns[1] == "12")
        .map(|columns| columns[9].to_owned())
        .filter(|inode| held.contains(&format!("socket:[{inode}]")))
        .collect()
}

/// Whoever closes one waits until the kernel has freed what was deleted.
#[test]
fn single_addresses_are_written_by_one_socket_that_stays_open_until_a_write_fails() {
    in_namespace(|| async {
        let nftables = nftables();
        let mut desired = client();
        reach(&desired).await;
        let mut used = Vec::new();
        for number in [2, 1, 2] {
            desired.pods.insert(ip("10.244.1.10"), class(number));
            let current = nftables.observe().await.unwrap();
            let change = nftables.plan(&desired, &current).unwrap();
            nftables.apply(&change.plan).await.unwrap();
            used.push(sockets());
        }
        assert!(
            used[0].len() == 1 && used[1] == used[0] && used[2] == used[0],
            "{used:?}"
        );
        let current = nftables.observe().await.unwrap();
        desired.pods.insert(ip("10.244.1.10"), class(1));
        let change = nftables.plan(&desired, &current).unwrap();
        run("nft delete element inet egressgateway pods4 { 10.244.1.10 }");
        let error = nftables.apply(&change.plan).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Conflict);
        assert_eq!(
            sockets(),
            [""; 0],
            "what else it may answer is read by nobody"
        );
        let current = nftables.observe().await.unwrap();
        let change = nftables.plan(&desired, &current).unwrap();
        nftables.apply(&change.plan).await.unwrap();
        assert!(nftables.observe().await.unwrap() == change.after);
    });
}

#[test]
fn the_probe_passes_here_and_leaves_nothing() {
    in_namespace(|| async {
        run("ip link set lo up");
        nftables().probe().await.unwrap();
        assert_eq!(run("nft list tables"), "");
        let state = reach(&client()).await;
        nftables().probe().await.unwrap();
        assert_eq!(nftables().observe().await.unwrap(), state);
    });
}

#[test]
fn counters_are_there_with_the_table_and_survive_updates() {
    in_namespace(|| async {
        assert!(nftables().counters().await.unwrap().is_empty());
        reach(&client()).await;
        let names: Vec<String> = nftables().counters().await.unwrap().into_keys().collect();
        assert_eq!(
            names,
            [
                "drop_held",
                "drop_no_gateway",
                "drop_no_port",
                "drop_not_peer",
                "drop_start_gate",
                "drop_unknown_source",
                "drop_untracked",
                "exited",
                "steered",
                "tunnelled"
            ]
        );
        let handle = run("nft -a list counter inet egressgateway steered");
        reach(&gateway()).await;
        assert_eq!(
            run("nft -a list counter inet egressgateway steered"),
            handle,
            "the counter is still the same object"
        );
    });
}

#[test]
fn ten_thousand_policies_load_and_one_more_pod_is_one_line() {
    in_namespace(|| async {
        let mut desired = generated(0, 10_000);
        let begin = Instant::now();
        let state = reach(&desired).await;
        assert!(state.len() > 50_000, "{}", state.len());
        eprintln!(
            "{} elements: read, planned, checked, applied, read again in {:?}",
            state.len(),
            begin.elapsed()
        );
        desired.pods.insert(ip("10.244.1.20"), class(2));
        let begin = Instant::now();
        let Change { plan, after } = nftables().plan(&desired, &state).unwrap();
        let planned = begin.elapsed();
        assert_eq!(plan.to_string().lines().count(), 1);
        nftables().apply(&plan).await.unwrap();
        eprintln!(
            "one pod more: planned in {planned:?}, applied after {:?}",
            begin.elapsed()
        );
        assert_eq!(nftables().observe().await.unwrap(), after);
    });
}

#[test]
fn what_others_do_to_the_table_is_noticed_and_what_we_do_is_not() {
    in_namespace(|| async {
        let ours = nftables();
        let monitor = ours.monitor().unwrap();
        let quiet = |doing: &'static str| {
            let changed = monitor.changed();
            async move {
                assert!(
                    tokio::time::timeout(Duration::from_millis(300), changed)
                        .await
                        .is_err(),
                    "{doing} was noticed"
                );
            }
        };
        let noticed = |doing: &'static str| {
            let changed = monitor.changed();
            async move {
                tokio::time::timeout(Duration::from_secs(5), changed)
                    .await
                    .expect(doing)
                    .unwrap();
            }
        };
        let plan = ours.plan(&client(), &NftState::default()).unwrap().plan;
        ours.apply(&plan).await.unwrap();
        quiet("an own transaction").await;
        command(&["nft", "-f", "-"], NEIGHBOURS).unwrap();
        quiet("a table of somebody else").await;
        run("nft flush map inet egressgateway pods4");
        noticed("flushed elements").await;
        run("nft add rule inet egressgateway prerouting_steer accept");
        noticed("a rule more").await;
        run("nft delete table inet egressgateway");
        noticed("the table's end").await;
        reach(&client()).await;
        noticed("another backend at work").await;
    });
}

/// Loads what a version left that named some sets, maps and chains otherwise.
fn load_former(world: &str) {
    run(&format!(
        "nft add table inet egressgateway\nnft delete table inet egressgateway\nnft -f {}/tests/former/{world}.nft",
        env!("CARGO_MANIFEST_DIR")
    ));
}

#[test]
fn a_former_versions_table_is_taken_over_wherever_that_is_interrupted() {
    in_namespace(|| async {
        for (world, desired) in [("client", client()), ("gateway", gateway())] {
            for write in 0.. {
                load_former(world);
                let counter = run("nft -a list counter inet egressgateway steered");
                let hook = RefuseOnce::at(write);
                let upgraded = Nftables::new(NftablesSettings::default(), hook.clone());
                let former = upgraded.observe().await.unwrap();
                assert_eq!(former.foreign().next(), None, "all of it is known");
                let plan = upgraded.plan(&desired, &former).unwrap().plan;
                let waits = "add element inet egressgateway changing";
                assert!(!plan.to_string().contains(waits), "no class waits");
                let whole = upgraded.apply(&plan).await.is_ok();
                assert_eq!(whole, hook.seen() <= write);
                reach(&desired).await;
                let names = run("nft list table inet egressgateway");
                for name in ["nets4", "where6", "exit4", "as6", "kept4"] {
                    assert!(!names.contains(&format!(" {name}")), "{name}: {names}");
                }
                for name in [
                    "as_node",
                    "as_self",
                    "as_address",
                    "stray",
                    "missed",
                    "stray_outer",
                ] {
                    assert!(
                        !names.contains(&format!("chain {name} ")),
                        "{name}: {names}"
                    );
                }
                assert_eq!(
                    run("nft -a list counter inet egressgateway steered"),
                    counter,
                    "the table is the same object"
                );
                if whole {
                    assert_eq!(write, 4, "filled, switched, sets removed, chains removed");
                    break;
                }
            }
        }
    });
}

/// Another policy in the same plan makes classes wait, and lets them go.
#[test]
fn a_former_versions_table_is_taken_over_for_another_policy() {
    in_namespace(|| async {
        load_former("client");
        let after = reach(&generated(1, 40)).await;
        reach(&PolicyDesired::default()).await;
        assert!(reach(&generated(1, 40)).await == after);
        load_former("gateway");
        reach(&PolicyDesired::default()).await;
        assert_eq!(run("nft list tables"), "", "a cleanup removes all of it");
    });
}
