//! What the agent says to arguments that are wrong.

use std::process::{Command, Output};

fn agent(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_egressgateway-agent"));
    command
        .args(arguments)
        .env_clear()
        .output()
        .expect("the binary runs")
}

fn refused(arguments: &[&str], part: &str) {
    let output = agent(arguments);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains(part), "{text}");
}

#[test]
fn a_bad_configuration_is_refused_with_exit_code_2_and_the_flag() {
    refused(&["--node-name=a", "--tunnel-vni=many"], "--tunnel-vni");
}

#[test]
fn a_node_name_is_required() {
    refused(&[], "NODE_NAME");
}

#[test]
fn a_lease_lasts_whole_seconds() {
    for given in ["1500ms", "0s", "2h"] {
        let refusal = format!(
            "invalid value '{given}' for '--lease-duration <DURATION>': must be whole seconds from 1s to 1h"
        );
        refused(&["--node-name=a", "--lease-duration", given], &refusal);
    }
    refused(
        &["--node-name=a", "--lease-duration", "soon"],
        "--lease-duration",
    );
}
