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

const FLAVOURS: [(IptablesFlavour, &str); 2] = [(IptablesFlavour::Legacy, "legacy"), (IptablesFlavour::Nft, "nft")];

struct Namespace(IptablesFlavour);

async fn transit(flavour: IptablesFlavour, hook: Arc<dyn WriteHook>) -> Transit {
    Transit::open(NetfilterSettings { flavour, ..NetfilterSettings::default() }, hook).await.unwrap()
}

/// All rules but ours.
fn others() -> String {
    let saved = ["iptables-legacy-save", "ip6tables-legacy-save", "iptables-nft-save", "ip6tables-nft-save"].map(run).concat();
    let lines = saved.lines().filter(|line| !line.starts_with('#') && !line.contains("EGW-TRANSIT"));
    lines.flat_map(|line| [line.split(" [").next().unwrap(), "\n"]).collect()
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

/// A firewall of which one family drops by policy, and the other by a rule; and a chain of the backend's.
fn firewall(word: &str) {
    run(&format!(
        "iptables-{word} -P FORWARD DROP; iptables-{word} -N KUBE-FORWARD; iptables-{word} -A FORWARD -j KUBE-FORWARD
         ip6tables-{word} -A FORWARD -j DROP; iptables-{word} -N EGW-FORWARD; iptables-{word} -I FORWARD -j EGW-FORWARD"
    ));
}

async fn reach(transit: &Transit, desired: &PolicyDesired) -> bool {
    let Change { plan, after } = transit.plan(desired, &transit.observe().await.unwrap()).unwrap();
    transit.apply(&plan).await.unwrap();
    assert_eq!(transit.observe().await.unwrap(), after);
    run("iptables-legacy-save; ip6tables-legacy-save; iptables-nft-save; ip6tables-nft-save").contains("EGW-TRANSIT")
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
            assert!(!reach(&transit, &gateway()).await, "nothing restricts forwarding");
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
        assert!(!transit.plan(&gateway(), &transit.observe().await.unwrap()).unwrap().plan.to_string().is_empty());
        reach(&transit, &gateway()).await;
        assert!(run("iptables-nft -S FORWARD").lines().nth(1).unwrap().ends_with("-j EGW-TRANSIT"));
    });
}
