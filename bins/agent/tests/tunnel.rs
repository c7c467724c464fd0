//! A tunnel that this kernel may not have.
#![cfg(all(feature = "geneve", feature = "vxlan"))]

use std::process::Command;

use egressgateway_testkit::netns::in_namespace;

#[test]
fn a_tunnel_that_the_kernel_lacks_is_refused_with_the_option_that_is_missing() {
    in_namespace(|| async {
        let made = Command::new("ip")
            .args(["link", "add", "try0", "type", "geneve", "external"])
            .output()
            .expect("ip runs");
        let mut agent = Command::new(env!("CARGO_BIN_EXE_egressgateway-agent"));
        let agent = agent.args([
            "--dry-run",
            "--node-name",
            "n",
            "--tunnel-kind",
            "geneve",
            "--kubeconfig",
            "/nonexistent",
        ]);
        let output = agent.output().expect("the agent runs");
        assert!(
            !output.status.success(),
            "without a kubeconfig it ends in any case"
        );
        let said = String::from_utf8_lossy(&output.stderr);
        let refused = "tunnel.kind geneve: the kernel needs CONFIG_GENEVE (module geneve) for it; this kernel has vxlan";
        assert_eq!(said.contains(refused), !made.status.success(), "{said}");
    });
}
