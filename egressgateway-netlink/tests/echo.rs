//! Probes between two ends of a cable.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use egressgateway::{ProbeAddress, Prober};
use egressgateway_netlink::EchoProber;
use egressgateway_testkit::{netns::in_namespace, shell::run};

/// Another namespace at the far end, whose kernel answers; it ends with the process that holds it.
const FAR: &str = "
    ip netns add far
    ip link add near0 type veth peer name far0 netns far
    for device in near0; do ip link set $device addrgenmode none; ip link set $device up; done
    ip -n far link set far0 addrgenmode none
    ip -n far link set far0 up
    ip -n far link set lo up
    ip address add 172.31.0.1/16 dev near0; ip address add fd31::1/64 dev near0 nodad
    ip -n far address add 172.31.0.2/16 dev far0; ip -n far address add fd31::2/64 dev far0 nodad
";
const PATIENCE: Duration = Duration::from_secs(5);

fn through(device: &str, address: &str) -> ProbeAddress {
    ProbeAddress {
        device: device.to_owned(),
        address: address.parse().unwrap(),
    }
}

async fn heard(prober: &EchoProber) -> String {
    let (from, number) = tokio::time::timeout(PATIENCE, prober.answered())
        .await
        .unwrap();
    format!("{from} {number}")
}

async fn silence(prober: &EchoProber) -> bool {
    tokio::time::timeout(Duration::from_millis(200), prober.answered())
        .await
        .is_err()
}

#[test]
fn the_other_kernel_answers_in_both_families_and_with_the_number() {
    in_namespace(|| async {
        run(FAR);
        let (prober, stranger) = (EchoProber::new(77), EchoProber::new(78));
        stranger.probe(&through("near0", "172.31.0.2"), 1).unwrap();
        assert_eq!(heard(&stranger).await, "172.31.0.2 1");
        for number in [1, 0xffff] {
            prober
                .probe(&through("near0", "172.31.0.2"), number)
                .unwrap();
            assert_eq!(heard(&prober).await, format!("172.31.0.2 {number}"));
            prober.probe(&through("near0", "fd31::2"), number).unwrap();
            assert_eq!(heard(&prober).await, format!("fd31::2 {number}"));
        }
        assert!(silence(&stranger).await, "the others' answers");
    });
}

#[test]
fn a_probe_takes_its_device_or_no_way() {
    in_namespace(|| async {
        run(FAR);
        run(
            "ip link add other0 type bridge; ip address add 192.0.2.1/24 dev other0; ip link set other0 up",
        );
        let prober = EchoProber::new(77);
        let sent = prober.probe(&through("other0", "172.31.0.2"), 1);
        assert!(
            sent.is_err() || silence(&prober).await,
            "it went another way"
        );
        prober
            .probe(&through("gone0", "172.31.0.2"), 1)
            .unwrap_err();
    });
}

#[test]
fn a_device_that_comes_anew_is_found() {
    in_namespace(|| async {
        run(FAR);
        let prober = EchoProber::new(77);
        let far = through("near0", "172.31.0.2");
        prober.probe(&far, 1).unwrap();
        heard(&prober).await;
        run("ip link del near0; ip netns del far");
        assert!(prober.probe(&far, 2).is_err());
        run(FAR);
        // The old socket may fail once more before the new one.
        if prober.probe(&far, 3).is_err() {
            prober.probe(&far, 3).unwrap();
        }
        assert_eq!(heard(&prober).await, "172.31.0.2 3");
    });
}
