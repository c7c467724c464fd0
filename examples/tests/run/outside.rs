//! The README's program, built outside of this workspace from packaged crates, on a node:
//! `scripts/package` builds it and says where it is.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use egressgateway_testkit::netns::in_namespace;

use crate::{
    embed_agent::decided_cluster,
    node::{Running, run, underlay},
};

#[test]
fn the_program_of_the_readme_keeps_its_node() {
    let program = std::env::var("EMBEDDER")
        .expect("EMBEDDER is set by scripts/package, which builds the program");
    in_namespace(move || async move {
        underlay("10.6.0.11/24");
        let server = decided_cluster();
        // Its state file is where the daemon's is, which is not to be the host's.
        let mut command = Command::new("unshare");
        command
            .args([
                "--mount",
                "sh",
                "-c",
                "mount -t tmpfs tmpfs /var/lib && exec \"$0\"",
                &program,
            ])
            .env("NODE_NAME", "node-1");
        let operator = Running::start(command, &server);
        let patience = Instant::now() + Duration::from_secs(60);
        let pods = || {
            Command::new("nft")
                .args(["list", "map", "inet", "egressgateway", "pods4"])
                .output()
                .unwrap()
                .stdout
        };
        while !String::from_utf8_lossy(&pods()).contains("10.244.1.10") {
            assert!(
                Instant::now() < patience,
                "the pod of this node is not in the kernel"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        operator.stop();
        assert!(
            run("ip", &["route", "show", "table", "100"])
                .contains("default via 172.31.0.2 dev egress-vxlan-v4")
        );
    });
}
