//! The steering driver against the kernel, in namespaces of its own.

#![allow(clippy::unwrap_used)]

mod next_hops;
mod plans;

use std::{process::Command, slice::from_ref, sync::Arc};

use async_trait::async_trait;
use egressgateway::{
    Driver, Encap, ErrorKind, ExitNetwork, NextHop, Plan as _, SteeringDesired, WriteHook,
    model::{NetworkId, TargetId},
    testing::conformance::{self, Host},
};
use egressgateway_netlink::{Netlink, Route, Steering, SteeringSettings};
use egressgateway_testkit::netns::{in_namespace, wait_for_links};
use proptest::{prelude::*, strategy::ValueTree as _, test_runner::TestRunner};

struct Namespace {
    keeps_connections: bool,
}

/// As on a kernel of today.
const NAMESPACE: Namespace = Namespace {
    keeps_connections: true,
};
/// As on a kernel without resilient groups.
const OLD: Namespace = Namespace {
    keeps_connections: false,
};

#[async_trait]
impl Host<Steering> for Namespace {
    async fn driver(&self, hook: Arc<dyn WriteHook>) -> Steering {
        let settings = SteeringSettings::default().with_keeps_connections(self.keeps_connections);
        Steering::new(Netlink::open().unwrap(), settings, hook)
    }

    async fn foreign(&self) -> String {
        let lines = [
            "ip rule show",
            "ip -6 rule show",
            "ip -o route show table all",
            "ip -6 -o route show table all",
            "ip nexthop show",
        ];
        let lines = lines.map(run).concat();
        let ours = |line: &&str| !line.contains("proto 77") || line.contains("0x33/0xff");
        lines
            .lines()
            .filter(ours)
            .map(|line| format!("{line}\n"))
            .chain([run("ip -br link")])
            .collect()
    }
}

fn run(command: &str) -> String {
    let output = Command::new("sh").args(["-ec", command]).output().unwrap();
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Two tunnel devices, and what others put beside ours.
fn world() {
    run("ip link set lo up
         ip link add tun4 type veth peer name far4
         ip link add tun6 type veth peer name far6
         for device in tun4 far4 tun6 far6; do ip link set $device addrgenmode none; ip link set $device up; done
         sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
         ip rule add pref 50 fwmark 0x11000000/0xff000000 table 7
         ip rule add pref 99 fwmark 0x4000/0x4000 table 8
         ip rule add pref 99 fwmark 0x33/0xff table 9 protocol 77
         ip -6 rule add pref 99 fwmark 0x4000/0x4000 table 8
         ip route add 10.9.0.0/16 dev tun4 table 100
         ip route add 10.9.0.0/16 dev tun4
         ip -6 route add fd09::/64 dev tun6 table 100
         ip nexthop add id 7 via 172.31.0.11 dev tun4 onlink
         ip nexthop add id 8 group 7 type resilient buckets 8 idle_timer 60");
    wait_for_links();
}

fn hop(device: &str, via: &str) -> NextHop {
    NextHop {
        device: device.into(),
        via: via.parse().unwrap(),
        encap: None,
    }
}

fn target(byte: u8) -> TargetId {
    TargetId::new(byte).unwrap()
}

fn desired(targets: &[(u8, &[NextHop])], direct: &[&str]) -> SteeringDesired {
    SteeringDesired {
        targets: targets
            .iter()
            .map(|(byte, hops)| {
                (
                    target(*byte),
                    hops.iter().cloned().collect::<imbl::OrdSet<_>>(),
                )
            })
            .collect(),
        direct: direct
            .iter()
            .map(|network| network.parse::<ipnet::IpNet>().unwrap())
            .collect(),
        ..SteeringDesired::default()
    }
}

/// The same with largest packets of targets.
fn limited(desired: SteeringDesired, limits: &[(u8, u32)]) -> SteeringDesired {
    let limits = limits.iter().flat_map(|(byte, mtu)| {
        egressgateway::model::Family::ALL.map(|family| ((target(*byte), family), *mtu))
    });
    SteeringDesired {
        mtu: limits.collect(),
        ..desired
    }
}

/// Networks of egress addresses: byte, device, router, networks on the device.
fn leaving(networks: &[(u8, &str, &str, &[&str])]) -> SteeringDesired {
    let network = |(byte, device, router, link): &(u8, &str, &str, &[&str])| {
        let network = ExitNetwork {
            device: (*device).to_owned(),
            router: router.parse().unwrap(),
            link: link
                .iter()
                .map(|net| net.parse::<ipnet::IpNet>().unwrap())
                .collect(),
            addresses: imbl::OrdSet::new(),
        };
        (NetworkId::new(*byte).unwrap(), network)
    };
    SteeringDesired {
        networks: networks.iter().map(network).collect(),
        ..desired(&[], &["10.0.0.0/8", "fd00:1::/32"])
    }
}

/// The same with these targets balanced.
fn balanced(desired: SteeringDesired, targets: &[u8]) -> SteeringDesired {
    SteeringDesired {
        balanced: targets.iter().map(|byte| target(*byte)).collect(),
        ..desired
    }
}

fn states() -> Vec<SteeringDesired> {
    let (a4, b4, c4) = (
        hop("tun4", "172.31.0.11"),
        hop("tun4", "172.31.0.12"),
        hop("tun4", "172.31.0.13"),
    );
    let (a6, b6, c6) = (
        hop("tun6", "fd31::11"),
        hop("tun6", "fd31::12"),
        hop("tun6", "fd31::13"),
    );
    vec![
        desired(
            &[
                (0x11, &[a4.clone(), b4.clone(), a6.clone(), b6.clone()]),
                (0x13, from_ref(&c4)),
            ],
            &["10.0.0.0/8", "fd00:1::/32"],
        ),
        desired(
            &[
                (0x11, &[a4.clone(), a6.clone()]),
                (0x13, &[]),
                (0x15, from_ref(&c6)),
            ],
            &["10.0.0.0/8", "10.96.0.0/12"],
        ),
        limited(
            desired(
                &[(0x11, &[a4.clone(), a6.clone()]), (0x13, from_ref(&c4))],
                &[],
            ),
            &[(0x11, 1400), (0x13, 1300)],
        ),
        limited(
            balanced(
                desired(
                    &[(0x11, &[a4.clone(), b4.clone(), a6.clone(), b6.clone()])],
                    &[],
                ),
                &[0x11],
            ),
            &[(0x11, 1400)],
        ),
        limited(
            desired(
                &[(0x11, &[a4.clone(), b4.clone(), a6.clone(), b6.clone()])],
                &[],
            ),
            &[(0x11, 1350)],
        ),
        balanced(
            desired(
                &[
                    (0x11, &[a4.clone(), b4.clone(), c4, a6, b6.clone(), c6]),
                    (0x13, from_ref(&b4)),
                ],
                &[],
            ),
            &[0x11],
        ),
        balanced(
            desired(
                &[(0x11, from_ref(&b4)), (0x13, &[a4, b4.clone(), b6])],
                &["10.0.0.0/8"],
            ),
            &[0x11, 0x13],
        ),
        leaving(&[
            (1, "tun4", "172.31.0.1", &["172.31.0.0/16", "172.30.0.0/24"]),
            (7, "tun6", "fd31::1", &["fd31::/64"]),
        ]),
        leaving(&[
            (1, "tun6", "172.31.0.9", &[]),
            (15, "tun6", "fe80::1", &["fd31::/64"]),
        ]),
    ]
}

async fn reach(desired: &SteeringDesired) -> Steering {
    reach_on(&NAMESPACE, desired).await
}

async fn reach_on(namespace: &Namespace, desired: &SteeringDesired) -> Steering {
    let driver = namespace.driver(Arc::new(())).await;
    let change = driver
        .plan(desired, &driver.observe().await.unwrap())
        .unwrap();
    driver.apply(&change.plan).await.unwrap();
    assert_eq!(
        driver.observe().await.unwrap(),
        change.after,
        "{}",
        change.plan
    );
    driver
}

#[test]
fn steering_keeps_the_promises_of_a_driver() {
    in_namespace(|| async {
        world();
        conformance::check(&NAMESPACE, &states()).await;
    });
}

/// Any of three targets, each over any of four next hops, and any of three networks inside the
/// cluster.
fn generated() -> impl Strategy<Value = SteeringDesired> {
    let hops = [
        hop("tun4", "172.31.0.11"),
        hop("tun4", "172.31.0.12"),
        hop("tun6", "fd31::11"),
        hop("tun6", "fd31::12"),
    ]
    .to_vec();
    let targets = prop::collection::vec(
        (
            prop::sample::select(vec![0x11, 0x13, 0xfe]),
            prop::sample::subsequence(hops, 0..=4),
        ),
        0..4,
    );
    let direct =
        prop::sample::subsequence(vec!["10.0.0.0/8", "10.96.0.0/12", "fd00:1::/32"], 0..=3);
    let even = prop::sample::subsequence(vec![0x11, 0x13, 0xfe], 0..=3);
    (targets, direct, even).prop_map(|(targets, direct, even)| {
        let targets: Vec<(u8, &[NextHop])> = targets
            .iter()
            .map(|(byte, hops)| (*byte, hops.as_slice()))
            .collect();
        balanced(desired(&targets, &direct), &even)
    })
}

#[test]
fn any_steering_follows_any_other() {
    in_namespace(|| async {
        world();
        let mut runner = TestRunner::deterministic();
        let states: Vec<_> = (0..60)
            .map(|_| generated().new_tree(&mut runner).unwrap().current())
            .collect();
        conformance::walk(&NAMESPACE, &states).await;
    });
}

#[test]
fn the_kernel_itself_routes_as_the_tracer_says() {
    in_namespace(|| async {
        world();
        let settings = SteeringSettings::default();
        let state = reach(&states()[1]).await.observe().await.unwrap();
        for mark in [
            0,
            0x1100_0000,
            0x1100_4000,
            0x1300_0000,
            0x1500_0000,
            0x7700_0000,
        ] {
            for to in [
                "1.1.1.1",
                "10.1.2.3",
                "10.97.0.1",
                "2001:db8::1",
                "fd00:1::5",
            ] {
                let from = if to.contains(':') {
                    "fd09::1"
                } else {
                    "10.9.0.1"
                };
                let said = Command::new("ip")
                    .args([
                        "route",
                        "get",
                        to,
                        "from",
                        from,
                        "mark",
                        &format!("{mark:#x}"),
                        "iif",
                        "tun4",
                    ])
                    .output()
                    .unwrap();
                let text = String::from_utf8_lossy(&said.stdout).into_owned()
                    + &String::from_utf8_lossy(&said.stderr);
                let route = state.route(mark, to.parse().unwrap());
                if let Route::Via(hops) = &route {
                    assert!(
                        hops.iter()
                            .any(|hop| text.contains(&format!("via {}", hop.via))),
                        "{mark:#x} → {to}: {route:?}, but {text}"
                    );
                } else {
                    assert!(
                        !text.contains("172.31.0.") && !text.contains("fd31::"),
                        "{mark:#x} → {to}: {route:?}, but {text}"
                    );
                }
            }
        }
        assert_eq!(
            state.route(0x1300_0000, "1.1.1.1".parse().unwrap()),
            Route::Unreachable
        );
        assert_eq!(
            state.route(0x1300_0000, "10.1.1.1".parse().unwrap()),
            Route::Direct
        );
        assert_eq!(
            state.route(0x7700_0000, "1.1.1.1".parse().unwrap()),
            Route::Unmarked
        );
        assert_eq!(settings.table(TargetId::FIRST), Some(100));
    });
}

#[test]
fn what_the_host_sends_itself_with_a_mark_is_not_steered_again() {
    in_namespace(|| async {
        world();
        run(
            "ip link add up0 type veth peer name far0 && ip addr add 10.6.0.1/24 dev up0 && ip link set up0 up",
        );
        // Without networks inside the cluster, of which the underlay would be one here.
        reach(&states()[2]).await;
        let outer = run("ip route get 10.6.0.2 mark 0x11000000");
        assert!(outer.contains("dev up0"), "{outer}");
    });
}

#[test]
fn routes_of_a_vanished_device_are_missed_and_come_back() {
    in_namespace(|| async {
        world();
        let state = &states()[0];
        let driver = reach(state).await;
        run("ip link del tun4");
        let observed = driver.observe().await.unwrap();
        assert_eq!(
            observed.route(0x1100_0000, "1.1.1.1".parse().unwrap()),
            Route::Unreachable,
            "closed, not open"
        );
        let change = driver.plan(state, &observed).unwrap();
        assert!(!change.plan.is_empty());
        assert_eq!(
            driver.apply(&change.plan).await.unwrap_err().kind,
            ErrorKind::Conflict,
            "there is no device yet"
        );
        run(
            "ip link add tun4 type veth peer name far4 && ip link set tun4 up && ip link set far4 up",
        );
        reach(state).await;
    });
}

#[test]
fn what_somebody_deletes_or_adds_under_our_tag_is_put_right() {
    in_namespace(|| async {
        world();
        let state = &states()[0];
        reach(state).await;
        run("ip rule del pref 98 fwmark 0x11000000/0xff000000
             ip -6 rule del pref 99 fwmark 0x13000000/0xff000000
             ip route del unreachable default table 100 metric 4278198272
             ip route add blackhole 9.9.9.9 table 555 proto 77
             ip -6 route append fd99::/64 via fd31::99 dev tun6 onlink table 100 proto 77
             echo 0 > /proc/sys/net/ipv6/fib_multipath_hash_policy
             echo 7 > /proc/sys/net/ipv4/fib_multipath_hash_fields");
        reach(state).await;
        assert_eq!(run("ip route show table 555"), "");
        for family in ["ipv4", "ipv6"] {
            assert_eq!(
                run(&format!(
                    "cat /proc/sys/net/{family}/fib_multipath_hash_policy"
                ))
                .trim(),
                "3"
            );
            assert_eq!(
                run(&format!(
                    "cat /proc/sys/net/{family}/fib_multipath_hash_fields"
                ))
                .trim(),
                "55"
            );
        }
    });
}

#[test]
fn the_text_of_a_plan_is_a_script_that_does_the_same() {
    in_namespace(|| async {
        world();
        let driver = NAMESPACE.driver(Arc::new(())).await;
        let states = states();
        for state in states.iter().chain([&SteeringDesired::default()]) {
            let change = driver
                .plan(state, &driver.observe().await.unwrap())
                .unwrap();
            let script = change.plan.to_string();
            run(&script);
            assert_eq!(driver.observe().await.unwrap(), change.after, "{script}");
        }
    });
}

#[test]
fn lightweight_tunnels_are_read_back_as_they_were_written() {
    in_namespace(|| async {
        world();
        run("ip link add meta type vxlan external dstport 7790 && ip link set meta up");
        let over = |via: &str, remote: &str| NextHop {
            device: "meta".into(),
            via: via.parse().unwrap(),
            encap: Some(Encap {
                id: 100,
                source: if remote.contains(':') {
                    "fd06::1"
                } else {
                    "10.6.0.1"
                }
                .parse()
                .unwrap(),
                remote: remote.parse().unwrap(),
            }),
        };
        let (one, two) = (
            over("172.31.0.11", "10.6.0.2"),
            over("172.31.0.12", "fd06::3"),
        );
        let (three, four) = (over("fd31::11", "10.6.0.2"), over("fd31::12", "fd06::3"));
        let single = desired(&[(0x11, &[one.clone(), four.clone()])], &[]);
        let several = desired(&[(0x11, &[one, two, three, four])], &[]);
        let even = balanced(several.clone(), &[0x11]);
        for state in [
            &single,
            &several,
            &single,
            &even,
            &single,
            &SteeringDesired::default(),
        ] {
            reach(state).await;
        }
    });
}

/// What the kernel does with a packet: `ip route get`'s words.
fn way(to: &str, from: &str, by: &str, mark: u32) -> String {
    run(&format!(
        "ip route get {to} from {from} iif {by} mark {mark:#x} 2>&1 || true"
    ))
}

#[test]
fn what_has_a_networks_mark_leaves_there_and_answers_pass_a_strict_filter() {
    in_namespace(|| async {
        world();
        run("ip link add pod type veth peer name inside; ip link set pod up; ip link set inside up; ip addr add 10.244.1.1/24 dev pod
             ip addr add 172.31.0.5/16 dev tun4; ip link add out type veth peer name beyond; ip link set out up; ip link set beyond up
             ip addr add 192.168.5.5/24 dev out; ip route add default via 192.168.5.1 dev out
             sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.tun4.rp_filter=1");
        let driver = reach(&leaving(&[(1, "tun4", "172.31.0.1", &["172.31.0.0/16"])])).await;
        let leaves = way("198.51.100.7", "10.244.1.10", "pod", 0x0100_0000);
        assert!(leaves.contains("via 172.31.0.1 dev tun4"), "{leaves}");
        let neighbour = way("172.31.0.77", "10.244.1.10", "pod", 0x0100_0000);
        assert!(
            neighbour.contains("dev tun4") && !neighbour.contains("via"),
            "{neighbour}"
        );
        let inside = way("10.244.1.10", "10.244.1.11", "pod", 0x0100_0000);
        assert!(inside.contains("dev pod"), "{inside}");
        let answer = way("10.244.1.10", "198.51.100.7", "tun4", 0x0100_0000);
        assert!(
            answer.contains("dev pod"),
            "an answer passes the filter and goes to the pod: {answer}"
        );
        let stranger = way("10.244.1.10", "198.51.100.7", "tun4", 0);
        assert!(
            !stranger.contains("dev pod"),
            "the filter is as strict as before: {stranger}"
        );
        let change = driver
            .plan(
                &SteeringDesired::default(),
                &driver.observe().await.unwrap(),
            )
            .unwrap();
        driver.apply(&change.plan).await.unwrap();
        let leaves = way("198.51.100.7", "10.244.1.10", "pod", 0x0100_0000);
        assert!(leaves.contains("dev out"), "{leaves}");
    });
}
