use std::{fs, process::Output};

use crate::support::{example, file};

fn text(output: &[u8]) -> String {
    String::from_utf8_lossy(output).into_owned()
}

/// What stands under a heading, up to the next.
fn section<'a>(text: &'a str, heading: &str) -> &'a str {
    let (_, rest) = text
        .split_once(&format!("### {heading}\n"))
        .unwrap_or_else(|| panic!("no {heading} in {text}"));
    rest.split("### ").next().unwrap()
}

#[test]
fn every_node_tells_its_part_of_the_way() {
    let Output {
        status,
        stdout,
        stderr,
    } = example("dry_run").output().unwrap();
    assert!(status.success(), "{}", text(&stderr));
    let plan = text(&stdout);
    // The pod's node sends what the policy governs into the tunnel, towards the gateway.
    let filter = section(&plan, "node-1: packet filter");
    let class = filter
        .split("pods4 { 10.244.1.10 : ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next())
        .unwrap();
    assert!(
        filter.contains(&format!(
            "verdicts4 {{ {class} . 10.6.1.0/24 : goto to_11 }}"
        )),
        "{filter}"
    );
    assert!(
        section(&plan, "node-1: routing").contains("via 198.19.0.2 dev egress-vxlan-v4"),
        "{plan}"
    );
    assert!(
        section(&plan, "node-1: tunnel").contains("dst 10.6.0.12"),
        "{plan}"
    );
    // The gateway lets it out with its own address, and sends nothing away.
    let exit = section(&plan, "node-2: packet filter");
    assert!(
        exit.contains("to_11 iifname @overlay_devices ct mark set") && exit.contains("masquerade"),
        "{exit}"
    );
    assert!(
        !section(&plan, "node-2: routing").contains(" via "),
        "{plan}"
    );
}

#[test]
fn files_are_read_and_what_is_wrong_in_them_is_told() {
    let given = example("dry_run")
        .arg(file("cluster.yaml"))
        .output()
        .unwrap();
    assert_eq!(
        text(&given.stdout),
        text(&example("dry_run").output().unwrap().stdout)
    );

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("typo.yaml");
    fs::write(
        &path,
        fs::read_to_string(file("cluster.yaml"))
            .unwrap()
            .replace("10.6.1.0/24", "10.6.1.0/42"),
    )
    .unwrap();
    let Output {
        status,
        stdout,
        stderr,
    } = example("dry_run").arg(&path).output().unwrap();
    assert!(!status.success() && stdout.is_empty(), "{}", text(&stdout));
    assert!(
        text(&stderr).contains("typo.yaml") && text(&stderr).contains("10.6.1.0/42"),
        "{}",
        text(&stderr)
    );
}
