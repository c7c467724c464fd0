//! An agent without an API server: it waits, changes nothing, and ends when asked to.
#![cfg(feature = "vxlan")]

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use egressgateway_testkit::netns::in_namespace;

const KUBECONFIG: &str = "
apiVersion: v1
kind: Config
clusters: [{name: a, cluster: {server: 'http://127.0.0.1:1'}}]
users: [{name: a, user: {}}]
contexts: [{name: a, context: {cluster: a, user: a}}]
current-context: a
";

fn succeeded(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .expect("the program runs");
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn without_an_api_server_nothing_changes_and_sigterm_ends_the_agent() {
    in_namespace(|| async {
        succeeded("ip", &["link", "set", "lo", "up"]);
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("kubeconfig");
        fs::write(&path, KUBECONFIG).expect("a file");
        let mut agent = Command::new(env!("CARGO_BIN_EXE_egressgateway-agent"))
            .args([
                "--node-name=a",
                "--listen=127.0.0.1:0",
                "--state-file=",
                "--kubeconfig",
            ])
            .arg(&path)
            .stderr(Stdio::piped())
            .spawn()
            .expect("the agent starts");
        let mut logs = BufReader::new(agent.stderr.take().expect("its logs"))
            .lines()
            .map_while(Result::ok);
        // One line of the main loop and one of a task of its own.
        for words in ["watch failed; starting again", "cannot renew Lease"] {
            let line = logs
                .by_ref()
                .find(|line| line.contains(words))
                .expect("the agent does not end by itself");
            assert!(
                line.contains("\"node\":\"a\""),
                "which node says so? {line}"
            );
        }
        succeeded("kill", &["-TERM", &agent.id().to_string()]);
        let rest: Vec<String> = logs.collect();
        assert!(agent.wait().expect("its end").success(), "{rest:#?}");
        assert_eq!(succeeded("nft", &["list", "tables"]), "");
    });
}
