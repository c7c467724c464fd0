//! What looks after another backend's exits, on the real kernel.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use async_trait::async_trait;
use egressgateway::{
    Change, CounterSource, Driver, PolicyDesired, PolicyMonitor, WriteHook,
    model::Family,
    testing::{
        conformance::{self, Host},
        worlds::{client, gateway},
    },
};
use egressgateway_backend_nftables::{ExitGuard, ExitGuardState, ExitMarks};
use egressgateway_testkit::{netns::in_namespace, shell::run};

const MARKS: ExitMarks = ExitMarks {
    exit: (0xff00_0000, 0x1200_0000),
    source: 0xffff,
    node: 1,
};

struct Namespace;

#[async_trait]
impl Host<ExitGuard> for Namespace {
    async fn driver(&self, hook: Arc<dyn WriteHook>) -> ExitGuard {
        ExitGuard::open(MARKS, hook).await.unwrap()
    }

    async fn foreign(&self) -> String {
        run("nft list table inet egressgateway; nft list table ip egressgateway_exits")
    }
}

/// A table of the nftables backend's name, and one of ours in another family.
const NEIGHBOURS: &str = "nft 'add table inet egressgateway; add chain inet egressgateway forward; add table ip egressgateway_exits'";

/// A node where nothing exits.
fn bystander() -> PolicyDesired {
    let mut bystander = client();
    bystander.exits.clear();
    bystander.accepts.clear();
    bystander
}

async fn reach(guard: &ExitGuard, desired: &PolicyDesired) -> ExitGuardState {
    let Change { plan, after } = guard
        .plan(desired, &guard.observe().await.unwrap())
        .unwrap();
    guard.apply(&plan).await.unwrap();
    assert_eq!(guard.observe().await.unwrap(), after);
    after
}

#[test]
fn it_keeps_every_promise_of_a_driver() {
    in_namespace(|| async {
        run(NEIGHBOURS);
        conformance::check(&Namespace, &[gateway(), bystander()]).await;
    });
}

#[test]
fn what_others_do_to_it_is_noticed_and_repaired() {
    in_namespace(|| async {
        let guard = ExitGuard::open(MARKS, Arc::new(())).await.unwrap();
        let whole = reach(&guard, &gateway()).await;
        let monitor = guard.monitor().unwrap();
        for damage in [
            "nft flush ruleset",
            "nft flush table inet egressgateway_exits",
            "nft insert rule inet egressgateway_exits after_translation accept",
            "nft add chain inet egressgateway_exits another '{ type filter hook forward priority 0; policy drop; }'",
        ] {
            run(damage);
            monitor.changed().await.unwrap();
            assert_ne!(guard.observe().await.unwrap(), whole, "{damage}");
            assert_eq!(reach(&guard, &gateway()).await, whole);
        }
        let other = ExitGuard::open(ExitMarks { node: 2, ..MARKS }, Arc::new(()))
            .await
            .unwrap();
        assert!(
            !other
                .plan(&gateway(), &whole)
                .unwrap()
                .plan
                .to_string()
                .is_empty(),
            "other marks are another rule"
        );
        assert_eq!(reach(&guard, &bystander()).await, ExitGuardState::Absent);
    });
}

#[test]
fn first_packets_whose_source_nobody_took_out_of_their_mark_are_dropped_and_counted() {
    in_namespace(|| async {
        run("ip link add eth0 type veth peer name wall; ip link set eth0 up; ip link set wall up
             ip addr add 10.0.0.1/24 dev eth0; ip addr add fd00::1/64 dev eth0 nodad
             ip neigh add 10.0.0.2 lladdr 02:00:00:00:00:02 dev eth0; ip neigh add fd00::2 lladdr 02:00:00:00:00:02 dev eth0");
        let guard = ExitGuard::open(MARKS, Arc::new(())).await.unwrap();
        let own = |device: &str, address: &str| {
            let address: std::net::IpAddr = address.parse().unwrap();
            ((device.to_owned(), Family::of(address)), address)
        };
        let promised = |v4, v6| PolicyDesired {
            node_addresses: [own("eth0", v4), own("eth0", v6)].into_iter().collect(),
            ..gateway()
        };
        reach(&guard, &promised("10.0.0.1", "fd00::1")).await;
        // As a backend marks them; what left is what a chain after the guard counts.
        run("nft -f - <<END
            table inet test {
              chain before {
                type filter hook output priority -150
                ct mark set 0x12000000
                udp dport 1 meta mark set 0x7
                udp dport 2 meta mark set 0x1
                udp dport 3 meta mark set 0x0
                udp dport 4 ct mark set 0x11000000 meta mark set 0x7
              }
              chain one { counter; }
              chain two { counter; }
              chain three { counter; }
              chain four { counter; }
              chain after {
                type filter hook postrouting priority 200
                udp dport vmap { 1 : goto one, 2 : goto two, 3 : goto three, 4 : goto four }
              }
            }
END");
        let send = || {
            for address in ["10.0.0.2", "fd00::2"] {
                for port in 1..=4 {
                    // Whoever sends from here is told of the drop.
                    run(&format!("echo x >/dev/udp/{address}/{port} || true"));
                }
            }
            let left = ["one", "two", "three", "four"]
                .map(|chain| run(&format!("nft list chain inet test {chain}")));
            left.map(|text| {
                text.split("packets ")
                    .nth(1)
                    .and_then(|rest| rest.split(' ').next())
                    .unwrap()
                    .to_owned()
            })
        };
        assert_eq!(
            send(),
            ["0", "2", "2", "2"],
            "another source, the node's address, translated, no exit"
        );
        assert_eq!(
            guard.counters().await.unwrap()["drop_unknown_source"].packets,
            2
        );
        reach(&guard, &promised("10.0.0.9", "fd00::9")).await;
        assert_eq!(
            send(),
            ["0", "2", "4", "4"],
            "an address of the node, and not the one that was promised"
        );
        assert_eq!(
            guard.counters().await.unwrap()["drop_unknown_source"].packets,
            4
        );
    });
}
