//! What classifies translated connections beside another backend, on the real kernel and without
//! one.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use async_trait::async_trait;
use egressgateway::{
    Change, Driver, PolicyDesired, PolicyMonitor, WriteHook,
    testing::{
        conformance::{self, Host},
        worlds::{client, gateway, ip, on_two_networks},
    },
    trace::{ConnectionState, Trace, TracePacket, TraceVerdict},
};
use egressgateway_backend_nftables::{NftState, NftablesSettings, Services};
use egressgateway_testkit::{netns::in_namespace, shell::run};

struct Namespace;

#[async_trait]
impl Host<Services> for Namespace {
    async fn driver(&self, hook: Arc<dyn WriteHook>) -> Services {
        Services::new(NftablesSettings::default(), hook)
    }

    async fn foreign(&self) -> String {
        run("nft list table inet egressgateway; nft list table ip egressgateway_services")
    }
}

/// A table of the whole backend's name, and one of ours in another family.
const NEIGHBOURS: &str = "nft 'add table inet egressgateway; add chain inet egressgateway forward; add table ip egressgateway_services'";

async fn reach(services: &Services, desired: &PolicyDesired) -> NftState {
    let Change { plan, after } = services
        .plan(desired, &services.observe().await.unwrap())
        .unwrap();
    services.apply(&plan).await.unwrap();
    assert_eq!(services.observe().await.unwrap(), after);
    after
}

#[test]
fn it_keeps_every_promise_of_a_driver() {
    in_namespace(|| async {
        run(NEIGHBOURS);
        let mut fewer = client();
        fewer.pods.remove(&ip("10.244.1.11"));
        conformance::check(&Namespace, &[client(), gateway(), on_two_networks(), fewer]).await;
    });
}

#[test]
fn what_others_do_to_it_is_noticed_and_repaired_and_a_host_that_governs_nothing_has_none() {
    in_namespace(|| async {
        let services = Services::new(NftablesSettings::default(), Arc::new(()));
        let whole = reach(&services, &client()).await;
        let monitor = services.monitor().unwrap();
        for damage in [
            "nft flush ruleset",
            "nft flush chain inet egressgateway_services service",
            "nft insert rule inet egressgateway_services prerouting_translated accept",
            "nft flush map inet egressgateway_services pods4",
        ] {
            run(damage);
            monitor.changed().await.unwrap();
            assert_ne!(services.observe().await.unwrap(), whole, "{damage}");
            assert_eq!(reach(&services, &client()).await, whole);
        }
        let mut idle = client();
        idle.destinations.clear();
        idle.start_gate = None;
        assert!(!reach(&services, &idle).await.exists());
    });
}

#[test]
fn a_former_versions_table_is_taken_over() {
    in_namespace(|| async {
        let services = Services::new(NftablesSettings::default(), Arc::new(()));
        run(&format!(
            "nft -f {}/tests/former/services.nft",
            env!("CARGO_MANIFEST_DIR")
        ));
        let former = services.observe().await.unwrap();
        assert_eq!(former.foreign().next(), None, "all of it is known");
        let whole = reach(&services, &client()).await;
        assert!(!reach(&services, &PolicyDesired::default()).await.exists());
        assert_eq!(reach(&services, &client()).await, whole);
    });
}

#[test]
fn only_first_packets_that_somebody_translated_are_looked_at_and_what_was_said_of_them_is_taken_back()
 {
    let rules = Services::offline(NftablesSettings::default())
        .plan(&client(), &NftState::default())
        .unwrap()
        .after;
    let marks = |packet_mark, connection_mark, counted: &[&'static str]| TraceVerdict::Accept {
        untracked: false,
        packet_mark,
        connection_mark,
        counted: counted.to_vec(),
    };
    let sent = |destination: &str| TracePacket::new(ip("10.244.1.10"), ip(destination));
    let service = |destination: &str| sent(destination).sent_to(ip("10.6.2.9"));
    let pinned = |packet: TracePacket| TracePacket {
        packet_mark: 0x1300_4000,
        connection_mark: 0x1300_0007,
        ..packet
    };
    for (packet, meets, meaning) in [
        (sent("10.6.1.1"), marks(0, 0, &[]), "translated by nobody"),
        (
            service("10.6.1.1"),
            marks(0x1100_0000, 0x1100_0000, &["steered"]),
            "governed",
        ),
        (
            pinned(service("10.6.1.1")),
            marks(0x1100_4000, 0x1100_0007, &["steered"]),
            "governed otherwise",
        ),
        (
            pinned(service("10.6.0.11")),
            marks(0x4000, 7, &[]),
            "the cluster's own",
        ),
        (
            pinned(service("10.6.4.1")),
            marks(0x4000, 7, &[]),
            "not governed",
        ),
        (
            service("10.6.3.1"),
            TraceVerdict::Drop {
                counter: Some("drop_held"),
            },
            "held",
        ),
        (
            pinned(service("10.6.1.1").from_device("egress-vxlan-v4")),
            marks(0x1300_4000, 0x1300_0007, &[]),
            "came by the overlay",
        ),
        (
            TracePacket {
                state: ConnectionState::Established,
                ..pinned(service("10.6.1.1"))
            },
            marks(0x1300_4000, 0x1300_0007, &[]),
            "has begun",
        ),
        (
            TracePacket::new(ip("10.244.1.99"), ip("10.6.1.1")).sent_to(ip("10.96.0.1")),
            TraceVerdict::Drop {
                counter: Some("drop_start_gate"),
            },
            "a new pod",
        ),
    ] {
        assert_eq!(rules.trace(&packet), meets, "{meaning}");
    }
}
