//! What every tunnel driver must do on a kernel, in namespaces of its own. One list for all kinds
//! of tunnel.
//!
//! [`tunnel_tests!`](crate::tunnel_tests) makes a test of each check.
#![allow(clippy::unwrap_used)]

use std::{net::IpAddr, process::Command, sync::Arc};

use async_trait::async_trait;
use egressgateway::{
    Driver, ErrorKind, LocalEnd, Peer, Plan as _, Tunnel, TunnelDesired, Underlay, WriteHook,
    model::{Family, MacAddress, NodeName},
    testing::conformance::{self, Host},
};
use imbl::{OrdMap, OrdSet};
use proptest::{prelude::*, strategy::ValueTree as _, test_runner::TestRunner};

use crate::{
    netns::{in_namespace, wait_for_links},
    shell::{command, run},
};

/// A kind of tunnel, and what is different about it.
pub trait Kind: Sync + 'static {
    /// Its driver.
    type Tunnel: Tunnel;

    /// Its devices.
    const DEVICES: &'static [&'static str];
    /// Lines of a shell that each break what `states` begins with.
    const HARMS: &'static [&'static str];
    /// Lines of a shell that make a device of the name of the first, which is somebody else's.
    const TAKEN: &'static str;
    /// Lines of a shell that make the other node's end by hand, on its uplink `far0`: the overlay
    /// addresses 172.31.0.2 and fd31::2 with hardware address 02:00:00:00:01:02 at 10.6.0.2 and
    /// fd06::2, and this node's as it is.
    const FAR: &'static str;
    /// Largest inner packet of each family over an underlay of 1500 bytes.
    const MTU: (u32, u32);

    /// A driver with the default settings.
    fn tunnel(hook: Arc<dyn WriteHook>) -> Self::Tunnel;
}

/// The checks as tests of one kind: `tunnel_tests!(Kind)`.
#[macro_export]
macro_rules! tunnel_tests {
    ($kind:ty) => {
        $crate::tunnel_tests! { $kind,
            the_tunnel_keeps_the_promises_of_a_driver
            no_route_to_a_network_is_made_and_one_of_before_goes_without_a_gap
            an_address_that_somebody_has_a_route_to_is_not_taken
            any_peers_follow_any_others
            the_text_of_a_plan_is_a_script_that_does_the_same
            what_somebody_breaks_by_hand_is_seen_and_put_right
            a_device_of_our_name_without_our_mark_is_never_touched
            two_nodes_reach_each_other_with_the_largest_packets_and_no_larger
        }
    };
    ($kind:ty, $($check:ident)+) => {
        $(
            #[test]
            fn $check() {
                $crate::tunnels::$check::<$kind>();
            }
        )+
    };
}

struct Namespace<K>(std::marker::PhantomData<fn() -> K>);

impl<K> Namespace<K> {
    const HERE: Self = Self(std::marker::PhantomData);
}

#[async_trait]
impl<K: Kind> Host<K::Tunnel> for Namespace<K> {
    async fn driver(&self, hook: Arc<dyn WriteHook>) -> K::Tunnel {
        K::tunnel(hook)
    }

    async fn foreign(&self) -> String {
        let all = [
            "ip -o -d link",
            "ip -o addr",
            "ip -o route show table all",
            "ip -6 -o route show table all",
            "ip neigh",
            "bridge fdb",
        ];
        let lines = all.map(run).concat();
        lines
            .lines()
            .filter(|line| !K::DEVICES.iter().any(|device| line.contains(device)))
            .collect::<Vec<_>>()
            .join("\n")
    }
}

/// Two uplinks, and somebody else's VXLAN device with entries of its own.
fn world() {
    run("ip link set lo up
         for link in up0 up1; do
           ip link add $link type veth peer name far-$link; for end in $link far-$link; do ip link set $end addrgenmode none; ip link set $end up; done
         done
         ip addr add 10.6.0.1/24 dev up0; ip addr add 10.6.0.2/24 dev up0; ip addr add 10.7.0.1/24 dev up1
         ip -6 addr add fd06::1/64 dev up0 nodad; ip -6 addr add fd07::1/64 dev up1 nodad
         ip link add theirs type vxlan id 7 dstport 8472 dev up0 nolearning && ip link set theirs addrgenmode none && ip link set theirs up
         bridge fdb add 02:00:00:00:00:07 dev theirs dst 10.6.0.7
         ip neigh add 172.31.0.7 lladdr 02:00:00:00:00:07 dev theirs nud permanent");
    wait_for_links();
}

fn underlay(device: &str, address: &str, mtu: u32) -> Underlay {
    let index = run(&format!("ip -o link show dev {device}"))
        .split(':')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    Underlay {
        device: device.into(),
        index,
        address: address.parse().unwrap(),
        mtu,
    }
}

fn local(overlay: &[&str], mac: &str, underlays: &[Underlay]) -> LocalEnd {
    LocalEnd {
        overlay: overlay
            .iter()
            .map(|network| network.parse::<ipnet::IpNet>().unwrap())
            .collect(),
        mac: mac.parse().unwrap(),
        underlay: underlays
            .iter()
            .map(|underlay| (Family::of(underlay.address), underlay.clone()))
            .collect(),
    }
}

fn peer(number: u8, overlay: &[&str], underlay: &[&str]) -> (NodeName, Peer) {
    let addresses = |texts: &[&str]| {
        texts
            .iter()
            .map(|text| text.parse::<IpAddr>().unwrap())
            .collect::<OrdSet<_>>()
    };
    let mac = MacAddress([2, 0, 0, 0, 1, number]);
    (
        NodeName::from(format!("node{number}")),
        Peer {
            overlay: addresses(overlay),
            underlay: addresses(underlay),
            mac,
            mtu: OrdMap::new(),
        },
    )
}

/// Hardware address of this node's end.
const MAC: &str = "66:a1:5e:00:00:01";

fn dual(peers: &[(NodeName, Peer)]) -> TunnelDesired {
    let underlays = [
        underlay("up0", "10.6.0.1", 1500),
        underlay("up0", "fd06::1", 1500),
    ];
    TunnelDesired {
        local: Some(local(&["172.31.0.1/16", "fd31::1/112"], MAC, &underlays)),
        peers: peers.iter().cloned().collect(),
    }
}

fn states() -> Vec<TunnelDesired> {
    let two = peer(2, &["172.31.0.2", "fd31::2"], &["10.6.0.12", "fd06::12"]);
    let moved = peer(2, &["172.31.0.9", "fd31::2"], &["10.6.0.99", "fd06::99"]);
    let three = peer(3, &["172.31.0.3"], &["10.6.0.13", "fd06::13"]);
    let only_v4 = local(
        &["172.31.0.1/16", "fd31::1/112"],
        "66:a1:5e:00:00:02",
        &[underlay("up0", "10.6.0.2", 1400)],
    );
    let other_parent = [
        underlay("up1", "10.7.0.1", 1500),
        underlay("up1", "fd07::1", 1450),
    ];
    vec![
        dual(&[two.clone(), three.clone()]),
        TunnelDesired {
            local: Some(local(
                &["172.31.0.5/16", "fd31::1/64"],
                "66:a1:5e:00:00:02",
                &[
                    underlay("up0", "10.6.0.1", 1480),
                    underlay("up0", "fd06::1", 1460),
                ],
            )),
            peers: [moved, three.clone()].into_iter().collect(),
        },
        TunnelDesired {
            local: Some(only_v4),
            peers: OrdMap::from_iter([two.clone()]),
        },
        TunnelDesired {
            local: Some(local(&["172.31.0.1/24", "fd31::1/112"], MAC, &other_parent)),
            peers: [two, three].into_iter().collect(),
        },
    ]
}

async fn reach<K: Kind>(desired: &TunnelDesired) -> (K::Tunnel, <K::Tunnel as Driver>::State) {
    let driver = K::tunnel(Arc::new(()));
    let change = driver
        .plan(desired, &driver.observe().await.unwrap())
        .unwrap();
    driver
        .apply(&change.plan)
        .await
        .unwrap_or_else(|error| panic!("{}\n{}", error.chain(), change.plan));
    assert_eq!(
        driver.observe().await.unwrap(),
        change.after,
        "{}",
        change.plan
    );
    (driver, change.after)
}

/// Every way of having peers 2 to 5 of some number, each at one of two places and with either or
/// both families.
fn generated() -> impl Strategy<Value = Vec<(NodeName, Peer)>> {
    let node = |number: u8| {
        (any::<bool>(), 0..3_u8, 0..2_u8).prop_map(move |(there, families, place)| {
            let (v4, v6) = (
                format!("172.31.0.{}", number + 10 * place),
                format!("fd31::{number}"),
            );
            let (outer4, outer6) = (
                format!("10.6.0.{}", 20 + number + 100 * place),
                format!("fd06::{}", 20 + number + 100 * place),
            );
            let (overlay, outer): (&[&str], &[&str]) = match families {
                0 => (&[&v4], &[&outer4]),
                1 => (&[&v6], &[&outer6]),
                _ => (&[&v4, &v6], &[&outer4, &outer6]),
            };
            there.then(|| peer(number, overlay, outer))
        })
    };
    (node(2), node(3), node(4), node(5))
        .prop_map(|(a, b, c, d)| [a, b, c, d].into_iter().flatten().collect())
}

/// A check.
///
/// # Panics
/// When the tunnel does not pass it.
pub fn the_tunnel_keeps_the_promises_of_a_driver<K: Kind>() {
    in_namespace(|| async {
        world();
        conformance::check(&Namespace::<K>::HERE, &states()).await;
    });
}

/// The routes that lead into the tunnel, apart from those to single addresses.
fn network_routes<K: Kind>() -> Vec<String> {
    let all = [
        "ip -o -4 route show table all",
        "ip -o -6 route show table all",
    ]
    .map(run)
    .concat();
    let single = |route: &str| {
        route.starts_with("local ")
            || route.starts_with("multicast ")
            || !route.split(' ').next().unwrap().contains('/')
    };
    let into = all
        .lines()
        .filter(|line| K::DEVICES.iter().any(|device| line.contains(device)) && !single(line));
    into.map(ToOwned::to_owned).collect()
}

/// A check.
///
/// # Panics
/// When the tunnel does not pass it.
pub fn no_route_to_a_network_is_made_and_one_of_before_goes_without_a_gap<K: Kind>() {
    in_namespace(|| async {
        world();
        let desired = &states()[0];
        let (driver, whole) = reach::<K>(desired).await;
        assert_eq!(network_routes::<K>(), [""; 0]);
        let last = K::DEVICES[K::DEVICES.len() - 1];
        run(&format!(
            "ip addr add 172.31.0.1/16 dev {first}; ip addr del 172.31.0.1/32 dev {first}
             ip addr add fd31::5/112 dev {last} nodad; ip addr del fd31::1/128 dev {last}; ip addr del fd31::5/112 dev {last}
             ip addr add fd31::1/112 dev {last} nodad",
            first = K::DEVICES[0]
        ));
        assert_eq!(
            network_routes::<K>().len(),
            2,
            "as if it were made by a former version"
        );
        let text = driver
            .plan(desired, &driver.observe().await.unwrap())
            .unwrap()
            .plan
            .to_string();
        let place = |line: String| {
            text.find(&line)
                .unwrap_or_else(|| panic!("no {line} in {text}"))
        };
        let [added, deleted] = ["add 172.31.0.1/32", "del 172.31.0.1/16"]
            .map(|words| place(format!("address {words}")));
        assert!(added < deleted, "{text}");
        let (_, after) = reach::<K>(desired).await;
        assert_eq!(after, whole);
        assert_eq!(network_routes::<K>(), [""; 0]);
    });
}

/// A check.
///
/// # Panics
/// When the tunnel does not pass it.
pub fn an_address_that_somebody_has_a_route_to_is_not_taken<K: Kind>() {
    in_namespace(|| async {
        world();
        for (theirs, show) in [
            (
                "ip route add 172.31.0.2/32 dev up1",
                "ip route show 172.31.0.2",
            ),
            (
                "ip -6 route add fd31::2/128 dev up1",
                "ip -6 route show fd31::2",
            ),
        ] {
            run(theirs);
            let before = run(show);
            let driver = K::tunnel(Arc::new(()));
            let change = driver
                .plan(&states()[0], &driver.observe().await.unwrap())
                .unwrap();
            assert_eq!(
                driver.apply(&change.plan).await.unwrap_err().kind,
                ErrorKind::Conflict
            );
            assert_eq!(run(show), before);
            run(&theirs.replace("route add", "route del"));
        }
    });
}

/// A check.
///
/// # Panics
/// When the tunnel does not pass it.
pub fn any_peers_follow_any_others<K: Kind>() {
    in_namespace(|| async {
        world();
        let mut runner = TestRunner::deterministic();
        let states: Vec<_> = (0..40)
            .map(|_| dual(&generated().new_tree(&mut runner).unwrap().current()))
            .collect();
        conformance::walk(&Namespace::<K>::HERE, &states).await;
    });
}

/// A check.
///
/// # Panics
/// When the tunnel does not pass it.
pub fn the_text_of_a_plan_is_a_script_that_does_the_same<K: Kind>() {
    in_namespace(|| async {
        world();
        let driver = K::tunnel(Arc::new(()));
        for state in states().iter().chain([&TunnelDesired::default()]) {
            let change = driver
                .plan(state, &driver.observe().await.unwrap())
                .unwrap();
            let script = change.plan.to_string();
            run(&script);
            assert_eq!(driver.observe().await.unwrap(), change.after, "{script}");
        }
    });
}

/// A check.
///
/// # Panics
/// When the tunnel does not pass it.
pub fn what_somebody_breaks_by_hand_is_seen_and_put_right<K: Kind>() {
    in_namespace(|| async {
        world();
        let desired = &states()[0];
        let (driver, whole) = reach::<K>(desired).await;
        for harm in K::HARMS {
            run(harm);
            let broken = driver.observe().await.unwrap();
            assert_ne!(broken, whole, "{harm}");
            assert!(
                !driver.plan(desired, &broken).unwrap().plan.is_empty(),
                "{harm}"
            );
            let (_, repaired) = reach::<K>(desired).await;
            assert_eq!(repaired, whole, "{harm}");
        }
    });
}

/// A check.
///
/// # Panics
/// When the tunnel does not pass it.
pub fn a_device_of_our_name_without_our_mark_is_never_touched<K: Kind>() {
    in_namespace(|| async {
        world();
        run(K::TAKEN);
        let before = run(&format!("ip -d link show dev {}", K::DEVICES[0]));
        let driver = K::tunnel(Arc::new(()));
        let current = driver.observe().await.unwrap();
        let refused = driver.plan(&states()[0], &current).unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Conflict);
        assert!(refused.to_string().contains(K::DEVICES[0]), "{refused}");
        let nothing = driver.plan(&TunnelDesired::default(), &current).unwrap();
        assert!(nothing.plan.is_empty(), "{}", nothing.plan);
        assert_eq!(
            run(&format!("ip -d link show dev {}", K::DEVICES[0])),
            before
        );
    });
}

/// A check.
///
/// # Panics
/// When the tunnel does not pass it.
pub fn two_nodes_reach_each_other_with_the_largest_packets_and_no_larger<K: Kind>() {
    in_namespace(|| async {
        run(
            "ip link set lo up; ip link add up0 type veth peer name far0; ip link set up0 up
             ip addr add 10.6.0.1/24 dev up0; ip -6 addr add fd06::1/64 dev up0 nodad",
        );
        // The other node is made by hand, in a namespace held by a process of this test.
        let mut other = Command::new("unshare")
            .args(["-n", "sleep", "60"])
            .spawn()
            .unwrap();
        let pid = other.id();
        let inside = |command: &str| run(&format!("nsenter -t {pid} -n sh -ec '{command}'"));
        while run(&format!("readlink /proc/{pid}/ns/net"))
            == run("readlink /proc/thread-self/ns/net")
        {
            std::thread::yield_now();
        }
        run(&format!("ip link set far0 netns {pid}"));
        inside(
            "ip link set lo up; ip link set far0 up; ip addr add 10.6.0.2/24 dev far0; ip -6 addr add fd06::2/64 dev far0 nodad",
        );
        inside(K::FAR);
        reach::<K>(&dual(&[peer(
            2,
            &["172.31.0.2", "fd31::2"],
            &["10.6.0.2", "fd06::2"],
        )]))
        .await;
        // The largest packet that fits, and none larger.
        let ping = |size: u32, to: &str| {
            command(
                &[
                    "ping",
                    "-c1",
                    "-W5",
                    "-M",
                    "do",
                    "-s",
                    &size.to_string(),
                    to,
                ],
                "",
            )
        };
        // Less the headers of IP and ICMP.
        for (size, to) in [(K::MTU.0 - 28, "172.31.0.2"), (K::MTU.1 - 48, "fd31::2")] {
            ping(size, to).unwrap();
            ping(size + 1, to).unwrap_err();
        }
        other.kill().unwrap();
        other.wait().unwrap();
    });
}
