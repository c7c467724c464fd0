//! What was left out when the agent was built.

use std::process::Command;

/// What the agent says to a configuration that asks for what it may not have.
fn said(arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_egressgateway-agent"));
    let output = command
        .args(["--dry-run", "--node-name=n", "--kubeconfig=/nonexistent"])
        .args(arguments)
        .output()
        .expect("the agent runs");
    assert!(
        !output.status.success(),
        "without a kubeconfig it ends in any case"
    );
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn asking_for_what_was_left_out_is_refused_with_what_there_is() {
    let tunnels = [
        ("vxlan", cfg!(feature = "vxlan")),
        ("geneve", cfg!(feature = "geneve")),
    ];
    let backends = [
        ("nftables", cfg!(feature = "nftables")),
        ("netfilter", cfg!(feature = "netfilter")),
    ];
    let names = |all: [(&'static str, bool); 2]| {
        all.into_iter()
            .filter(|(_, there)| *there)
            .map(|(name, _)| name)
            .collect::<Vec<_>>()
            .join(" or ")
    };
    let mine = |all: [(&'static str, bool); 2]| {
        all.into_iter()
            .find(|(_, there)| *there)
            .map_or("", |(name, _)| name)
    };
    for (name, there) in tunnels {
        let refused = format!(
            "tunnel.kind: \"{name}\": must be {}: this program was built without any other tunnel",
            names(tunnels)
        );
        let text = said(&["--tunnel-kind", name, "--policy-backend", mine(backends)]);
        assert_eq!(text.contains(&refused), !there, "{name}: {text}");
    }
    for (name, there) in backends {
        let refused = format!(
            "policyBackend: \"{name}\": must be auto or {}: this agent was built without any other backend",
            names(backends)
        );
        let text = said(&["--tunnel-kind", mine(tunnels), "--policy-backend", name]);
        assert_eq!(text.contains(&refused), !there, "{name}: {text}");
    }
    let text = said(&["--tunnel-kind", "ipip", "--policy-backend", "ebpf"]);
    assert!(
        text.contains("tunnel.kind") && text.contains("policyBackend"),
        "both at once: {text}"
    );
}
