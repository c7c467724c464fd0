//! Taking everything of ours off a node, and nothing else.
#![cfg(all(feature = "nftables", feature = "vxlan"))]

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::TcpListener,
    path::Path,
    process::{Command, Output, Stdio},
};

use egressgateway_testkit::netns::in_namespace;

fn run(program: &str, arguments: &[&str]) -> String {
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new(program)
        .args(arguments)
        .output()
        .expect("the program runs");
    let text = String::from_utf8_lossy(&stderr).into_owned();
    assert!(status.success(), "{program} {arguments:?}: {text}");
    String::from_utf8_lossy(&stdout).into_owned()
}

fn agent(state: &Path, arguments: &[&str]) -> String {
    let state = format!("--state-file={}", state.display());
    run(
        env!("CARGO_BIN_EXE_egressgateway-agent"),
        &[&[state.as_str()], arguments].concat(),
    )
}

#[test]
fn cleanup_removes_what_is_ours_and_leaves_what_is_not() {
    in_namespace(|| async {
        let folder = tempfile::tempdir().expect("a folder");
        let state = folder.path().join("state.json");
        fs::write(&state, "").expect("a file");
        for table in ["egressgateway", "others"] {
            run("nft", &["add", "table", "inet", table]);
        }
        // Of an agent that ended while it asked the kernel.
        run("nft", &["add", "table", "netdev", "egressgateway_probe"]);
        run(
            "ip",
            &[
                "route",
                "add",
                "unreachable",
                "default",
                "table",
                "100",
                "protocol",
                "77",
            ],
        );
        run(
            "ip",
            &["route", "add", "unreachable", "default", "table", "4711"],
        );
        for address in [["10.6.0.60/32", "1701279609"], ["10.6.0.61/32", "5"]] {
            run(
                "ip",
                &[
                    "address", "add", address[0], "dev", "lo", "metric", address[1],
                ],
            );
        }
        let plan = agent(&state, &["cleanup", "--dry-run"]);
        assert!(
            plan.contains("table inet egressgateway")
                && plan.contains("table 100")
                && plan.contains("state.json"),
            "{plan}"
        );
        assert!(
            run("nft", &["list", "tables"]).contains("inet egressgateway"),
            "a dry run removes nothing"
        );
        assert!(state.exists(), "a dry run removes nothing");
        agent(&state, &["cleanup"]);
        assert!(!state.exists(), "what it governed is forgotten");
        assert_eq!(run("nft", &["list", "tables"]).trim(), "table inet others");
        let routes = run("ip", &["route", "show", "table", "all"]);
        assert!(
            !routes.contains("table 100") && routes.contains("table 4711"),
            "{routes}"
        );
        let addresses = run("ip", &["address", "show"]);
        assert!(
            !addresses.contains("10.6.0.60") && addresses.contains("10.6.0.61"),
            "{addresses}"
        );
        assert_eq!(
            agent(&state, &["cleanup", "--dry-run"]),
            "",
            "nothing is left to remove"
        );
    });
}

#[test]
fn beside_a_living_agent_cleanup_refuses_and_touches_nothing() {
    in_namespace(|| async {
        let folder = tempfile::tempdir().expect("a folder");
        let state = folder.path().join("state.json");
        fs::write(&state, "").expect("a file");
        run("nft", &["add", "table", "inet", "egressgateway"]);
        // As an agent that runs here has it.
        let port = TcpListener::bind(("0.0.0.0", 5810)).expect("a free port");
        for more in [&[][..], &["--stay"]] {
            let mut command = Command::new(env!("CARGO_BIN_EXE_egressgateway-agent"));
            let refused = command
                .arg(format!("--state-file={}", state.display()))
                .arg("cleanup")
                .args(more)
                .output()
                .expect("it runs");
            let said = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert_eq!(refused.status.code(), Some(1), "{said}");
            assert!(
                said.contains("another agent of this node may be running"),
                "{said}"
            );
        }
        assert!(state.exists() && run("nft", &["list", "tables"]).contains("egressgateway"));
        assert!(
            agent(&state, &["cleanup", "--dry-run"]).contains("egressgateway"),
            "who only looks is no trouble"
        );
        drop(port);
        agent(&state, &["cleanup"]);
        assert!(!state.exists());
    });
}

#[test]
fn one_that_stays_is_ready_once_everything_is_gone_and_ends_when_asked_to() {
    in_namespace(|| async {
        run("nft", &["add", "table", "inet", "egressgateway"]);
        let mut cleanup = Command::new(env!("CARGO_BIN_EXE_egressgateway-agent"))
            .args(["--state-file=", "cleanup", "--stay"])
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut logs = BufReader::new(cleanup.stderr.take().expect("its logs"))
            .lines()
            .map_while(Result::ok);
        assert!(
            logs.any(|line| line.contains("removed everything of the egress gateway")),
            "it does not end by itself"
        );
        assert_eq!(run("nft", &["list", "tables"]), "");
        run("kill", &["-TERM", &cleanup.id().to_string()]);
        assert!(cleanup.wait().expect("its end").success());
    });
}
