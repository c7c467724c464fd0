//! What lets exits pass the host's firewalls, on the real kernel, with both flavours of iptables.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use async_trait::async_trait;
use egressgateway::{
    Change, Driver, PolicyDesired, PolicyMonitor, WriteHook,
    testing::{
        conformance::{self, Host},
        worlds::{client, gateway},
    },
};
use egressgateway_backend_netfilter::{IptablesFlavour, NetfilterSettings, Transit};
use egressgateway_testkit::{netns::in_namespace, shell::run};

const FLAVOURS: [(IptablesFlavour, &str); 2] = [
    (IptablesFlavour::Legacy, "legacy"),
    (IptablesFlavour::Nft, "nft"),
];

struct Namespace(IptablesFlavour);

async fn transit(flavour: IptablesFlavour, hook: Arc<dyn WriteHook>) -> Transit {
    Transit::open(NetfilterSettings::default().with_flavour(flavour), hook)
        .await
        .unwrap()
}

/// All rules but ours.
fn others() -> String {
    let saved = [
        "iptables-legacy-save",
        "ip6tables-legacy-save",
        "iptables-nft-save",
        "ip6tables-nft-save",
    ]
    .map(run)
    .concat();
    let lines = saved
        .lines()
        .filter(|line| !line.starts_with('#') && !line.contains("EGW-TRANSIT"));
    lines
        .flat_map(|line| [line.split(" [").next().unwrap(), "\n"])
        .collect()
}

#[async_trait]
impl Host<Transit> for Namespace {
    async fn driver(&self, hook: Arc<dyn WriteHook>) -> Transit {
        transit(self.0, hook).await
    }

    async fn foreign(&self) -> String {
        others()
    }
}

/// A firewall of which one family drops by policy, and the other by a rule; and a chain of the
/// backend's.
fn firewall(word: &str) {
    run(&format!(
        "iptables-{word} -P FORWARD DROP; iptables-{word} -N KUBE-FORWARD; iptables-{word} -A FORWARD -j KUBE-FORWARD
         ip6tables-{word} -A FORWARD -j DROP; iptables-{word} -N EGW-FORWARD; iptables-{word} -I FORWARD -j EGW-FORWARD"
    ));
}

async fn reach(transit: &Transit, desired: &PolicyDesired) -> bool {
    let Change { plan, after } = transit
        .plan(desired, &transit.observe().await.unwrap())
        .unwrap();
    transit.apply(&plan).await.unwrap();
    assert_eq!(transit.observe().await.unwrap(), after);
    run("iptables-legacy-save; ip6tables-legacy-save; iptables-nft-save; ip6tables-nft-save")
        .contains("EGW-TRANSIT")
}

#[test]
fn it_keeps_every_promise_of_a_driver() {
    for (flavour, word) in FLAVOURS {
        in_namespace(move || async move {
            firewall(word);
            let mut open = gateway();
            open.overlay.devices.insert("egress-geneve".into());
            conformance::check(&Namespace(flavour), &[gateway(), open, client()]).await;
        });
    }
}

#[test]
fn a_host_without_a_firewall_or_a_gateway_stays_as_it_is() {
    for (flavour, word) in FLAVOURS {
        in_namespace(move || async move {
            let transit = transit(flavour, Arc::new(())).await;
            assert!(
                !reach(&transit, &gateway()).await,
                "nothing restricts forwarding"
            );
            let mut bystander = client();
            bystander.exits.clear();
            bystander.accepts.clear();
            firewall(word);
            assert!(!reach(&transit, &bystander).await, "nothing exits here");
            assert!(reach(&transit, &gateway()).await);
            run(&format!(
                "iptables-{word} -P FORWARD ACCEPT; iptables-{word} -D FORWARD -j KUBE-FORWARD; ip6tables-{word} -D FORWARD -j DROP"
            ));
            assert!(!reach(&transit, &gateway()).await, "the firewall is gone");
        });
    }
}

#[test]
fn a_firewall_that_comes_later_is_noticed_and_a_jump_that_is_first_is_seen() {
    in_namespace(|| async {
        let transit = transit(IptablesFlavour::Nft, Arc::new(())).await;
        let monitor = transit.monitor();
        reach(&transit, &gateway()).await;
        monitor.changed().await.unwrap();
        firewall("nft");
        monitor.changed().await.unwrap();
        assert!(reach(&transit, &gateway()).await);
        run("iptables-nft -I FORWARD -j DROP");
        assert!(
            !transit
                .plan(&gateway(), &transit.observe().await.unwrap())
                .unwrap()
                .plan
                .to_string()
                .is_empty()
        );
        reach(&transit, &gateway()).await;
        assert!(
            run("iptables-nft -S FORWARD")
                .lines()
                .nth(1)
                .unwrap()
                .ends_with("-j EGW-TRANSIT")
        );
    });
}

/// Somebody who keeps network policies, and goes to the front whenever one of them changes.
const NETWORK_POLICIES: &str = "
    iptables-nft -N KUBE-ROUTER-FORWARD; iptables-nft -N KUBE-POD-FW-A; iptables-nft -A KUBE-POD-FW-A -j REJECT
    iptables-nft -A KUBE-ROUTER-FORWARD -d 10.244.1.10/32 -j KUBE-POD-FW-A
    iptables-nft -A KUBE-ROUTER-FORWARD -s 10.244.1.10/32 -m comment --comment \"-j DROP unless allowed\" -j KUBE-POD-FW-A";

#[test]
fn who_decides_about_pods_alone_may_come_first_and_who_drops_what_is_forwarded_may_not() {
    in_namespace(|| async {
        firewall("nft");
        let transit = transit(IptablesFlavour::Nft, Arc::new(())).await;
        reach(&transit, &gateway()).await;
        run(NETWORK_POLICIES);
        for _ in 0..3 {
            run(
                "iptables-nft -D FORWARD -j KUBE-ROUTER-FORWARD 2>/dev/null || true; iptables-nft -I FORWARD -j KUBE-ROUTER-FORWARD",
            );
            let change = transit
                .plan(&gateway(), &transit.observe().await.unwrap())
                .unwrap();
            assert_eq!(change.plan.to_string(), "", "nothing is answered");
        }
        run("iptables-nft -A KUBE-ROUTER-FORWARD -s 10.244.0.0/16 -j REJECT");
        reach(&transit, &gateway()).await;
        assert!(
            run("iptables-nft -S FORWARD")
                .lines()
                .nth(1)
                .unwrap()
                .ends_with("-j EGW-TRANSIT"),
            "before what drops exits"
        );
    });
}
