//! What the controller says to arguments that are wrong.

use std::process::{Command, Output};

fn controller(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_egressgateway-controller"));
    command
        .args(arguments)
        .env_clear()
        .output()
        .expect("the binary runs")
}

#[test]
fn a_bad_configuration_is_refused_with_exit_code_2_and_every_problem() {
    let output = controller(&["--identity=a", "--tunnel-vni=many", "--tunnel-port=-1"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(
        text.contains("--tunnel-vni") && text.contains("--tunnel-port"),
        "{text}"
    );
}

#[test]
fn an_identity_is_required() {
    let output = controller(&[]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("POD_NAME"), "{text}");
}

#[test]
fn leadership_lasts_whole_seconds() {
    for given in ["1500ms", "0s", "2h"] {
        let output = controller(&["--identity=a", "--leader-lease", given]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{text}");
        let refusal = format!(
            "invalid value '{given}' for '--leader-lease <DURATION>': must be whole seconds from 1s to 1h"
        );
        assert!(text.contains(&refusal), "{text}");
    }
    let output = controller(&["--identity=a", "--leader-lease", "soon"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--leader-lease"));
}
