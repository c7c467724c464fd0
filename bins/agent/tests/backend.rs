//! A policy backend that a host can't have.
#![cfg(all(feature = "nftables", feature = "netfilter", feature = "vxlan"))]

use std::process::Command;

use egressgateway_testkit::{netns::in_namespace, shell::run};

/// What the agent says of a backend where the device lo is down, or up.
fn said(backend: &str) -> String {
    let mut agent = Command::new(env!("CARGO_BIN_EXE_egressgateway-agent"));
    let agent = agent.args([
        "--dry-run",
        "--node-name",
        "n",
        "--policy-backend",
        backend,
        "--kubeconfig",
        "/nonexistent",
    ]);
    let output = agent.output().expect("the agent runs");
    assert!(
        !output.status.success(),
        "without a kubeconfig it ends in any case"
    );
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_backend_that_this_host_can_not_have_is_refused_where_it_is_asked_for_and_passed_over_where_it_is_not()
 {
    in_namespace(|| async {
        let why = "can't be tested: the device lo must be up";
        let refused = said("nftables");
        assert!(
            refused.contains(why) && !refused.contains("kubeconfig"),
            "{refused}"
        );
        let chosen = said("auto");
        assert!(
            chosen.contains("netfilter with iptables-") && chosen.contains(why),
            "{chosen}"
        );
        run("ip link set lo up");
        for backend in ["nftables", "auto"] {
            let chosen = said(backend);
            assert!(
                chosen.contains("nftables, ") && !chosen.contains(why),
                "{chosen}"
            );
        }
    });
}
