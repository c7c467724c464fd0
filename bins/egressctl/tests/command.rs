//! The command line: answers, errors and exit codes.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

/// Exit code, standard output and standard error.
fn egressctl(arguments: &[&str], input: &str) -> (i32, String, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_egressctl"))
        .args(arguments)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scenarios"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command line that is refused does not read its input.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[test]
fn explain_answers_people_and_programs() {
    let question = [
        "explain",
        "-f",
        "proposal.yaml",
        "--from",
        "default/shopping-1",
        "--to",
        "10.6.1.92",
    ];
    let (code, text, errors) = egressctl(&question, "");
    assert_eq!((code, errors.as_str()), (0, ""));
    assert!(
        text.starts_with("default/shopping-1 (10.244.1.10) to 10.6.1.92: egress, because "),
        "{text}"
    );
    assert!(text.contains("leaves through node2 as 10.6.0.12"), "{text}");
    let (code, json, _) = egressctl(&[&question[..], &["-o", "json"]].concat(), "");
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(code, 0);
    assert_eq!(
        (&json["verdict"], &json["policy"], &json["gateway"]),
        (&"egress".into(), &"policy".into(), &"egressgateway".into())
    );
    assert_eq!(
        (&json["node"], &json["source"]),
        (&"node2".into(), &"10.6.0.12".into())
    );
    assert!(
        json["reason"]
            .as_str()
            .unwrap()
            .contains("EgressGatewayPolicy policy"),
        "{json}"
    );
}

#[test]
fn plan_prints_a_shell_script_of_every_node() {
    let (code, text, _) = egressctl(&["plan", "-f", "two-gateways.yaml"], "");
    assert_eq!(code, 0);
    for node in ["node1", "node2", "node3", "node4"] {
        for part in ["policy", "tunnel", "steering"] {
            assert!(text.contains(&format!("# {node}: {part}\n")), "{text}");
        }
    }
    let shell = Command::new("sh")
        .args(["-n", "-c", &text])
        .output()
        .unwrap();
    assert!(
        shell.status.success(),
        "{}",
        String::from_utf8_lossy(&shell.stderr)
    );
    let (code, json, _) = egressctl(
        &[
            "plan",
            "-f",
            "two-gateways.yaml",
            "--node",
            "node2",
            "-o",
            "json",
        ],
        "",
    );
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(code, 0);
    assert_eq!(json.as_array().unwrap().len(), 1);
    assert!(
        json[0]["policy"]
            .as_str()
            .unwrap()
            .contains("table inet egressgateway"),
        "{json}"
    );
}

#[test]
fn mistakes_have_a_place_and_an_exit_code() {
    let policy = "apiVersion: egressgateway.spidernet.io/v1\nkind: EgressGatewayPolicy\nmetadata: {name: p}\nspec: {appliedTo: {ipv4PodSubnet: 10.0.0.1/16}}\n";
    let (code, _, errors) = egressctl(&["plan", "-f", "-"], policy);
    assert_eq!(code, 1);
    assert_eq!(
        errors,
        "error: -: document 1: EgressGatewayPolicy p: spec.appliedTo.ipv4PodSubnet: \"10.0.0.1/16\": must have its host bits zero: 10.0.0.0/16\n"
    );
    for (arguments, code, text) in [
        (
            &["plan", "-f", "missing.yaml"][..],
            1,
            "missing.yaml: No such file",
        ),
        (
            &["plan", "-f", "overlaps.yaml", "--node", "node9"],
            1,
            "there is no Node node9",
        ),
        (
            &[
                "explain",
                "-f",
                "overlaps.yaml",
                "--from",
                "shop/z",
                "--to",
                "10.6.1.1",
            ],
            1,
            "there is no Pod shop/z",
        ),
        (
            &[
                "explain",
                "-f",
                "overlaps.yaml",
                "--from",
                "z",
                "--to",
                "10.6.1.1",
            ],
            2,
            "must be NAMESPACE/NAME",
        ),
        (
            &[
                "explain",
                "-f",
                "overlaps.yaml",
                "--from",
                "shop/a",
                "--to",
                "10.6.1",
            ],
            2,
            "--to",
        ),
        (&["plan"], 2, "--file"),
    ] {
        let (said, _, errors) = egressctl(arguments, "");
        assert_eq!(said, code, "{arguments:?}: {errors}");
        assert!(errors.contains(text), "{arguments:?}: {errors}");
    }
}

#[test]
fn other_kinds_are_only_noted_and_a_policy_without_a_gateway_is_a_warning() {
    let text = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n---\napiVersion: egressgateway.spidernet.io/v1\nkind: EgressGatewayPolicy\nmetadata: {name: p}\nspec: {appliedTo: {ipv4PodSubnet: 10.0.0.0/16}}\n---\napiVersion: v1\nkind: Node\nmetadata: {name: n}\n";
    let (code, _, errors) = egressctl(&["plan", "-f", "-"], text);
    assert_eq!(code, 0, "{errors}");
    assert!(
        errors.contains("note: -: document 1: Deployment d: says nothing about egress"),
        "{errors}"
    );
    assert!(
        errors.contains("warning: EgressGatewayPolicy p holds what it governs: EgressGateway egressgateway does not exist"),
        "{errors}"
    );
}

#[test]
fn a_manifest_that_the_cluster_would_refuse_is_refused_here() {
    let policy = |applied_to: &str| {
        format!(
            "{{apiVersion: egressgateway.spidernet.io/v1, kind: EgressGatewayPolicy, metadata: {{name: p}}, spec: {{appliedTo: {applied_to}}}}}"
        )
    };
    let old = "{apiVersion: egressgateway.spidernet.io/v1beta1, kind: EgressGateway, metadata: {name: g}, spec: {ippools: {ipv4: [10.6.1.21]}}}";
    let label = "{apiVersion: v1, kind: Node, metadata: {name: n, labels: {egress: true}}}";
    for (manifest, said) in [
        (
            old.to_owned(),
            "apiVersion: \"egressgateway.spidernet.io/v1beta1\": must be egressgateway.spidernet.io/v1",
        ),
        (
            label.to_owned(),
            "metadata.labels.egress: \"true\": must be text, and is true or false: write it in quotes",
        ),
        (
            policy("{podSelector: {matchLabels: {app: 7}}}"),
            "matchLabels.app: \"7\": must be text, and is a number: write it in quotes",
        ),
        (
            policy("{podSelector: {}}"),
            "namespaceSelector: {} means all of them",
        ),
        (
            policy("{namespaceSelector: {matchLabels: {team: a}}}"),
            "podSelector: {} means all pods of these namespaces",
        ),
    ] {
        let (code, text, errors) = egressctl(&["plan", "-f", "-"], &manifest);
        assert_eq!((code, text.as_str()), (1, ""), "{manifest}: {errors}");
        assert!(errors.contains(said), "{manifest}: {errors}");
    }
}

#[test]
fn a_policy_may_govern_all_pods_of_some_namespaces_or_in_two_words_of_all() {
    let cluster = "
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {podCIDRs: [10.42.0.0/24]}, status: {addresses: [{type: InternalIP, address: 10.70.30.11}]}}
- apiVersion: v1
  kind: Node
  metadata: {name: n2, labels: {egress: \"\"}}
  spec: {podCIDRs: [10.42.1.0/24]}
  status: {addresses: [{type: InternalIP, address: 10.70.30.12}], conditions: [{type: Ready, status: \"True\"}]}
- {apiVersion: v1, kind: Namespace, metadata: {name: dev, labels: {team: dev}}}
- {apiVersion: v1, kind: Namespace, metadata: {name: ops}}
- {apiVersion: v1, kind: Pod, metadata: {name: box, namespace: dev}, spec: {nodeName: n1, containers: []}, status: {podIPs: [{ip: 10.42.0.5}]}}
- {apiVersion: v1, kind: Pod, metadata: {name: box, namespace: ops}, spec: {nodeName: n1, containers: []}, status: {podIPs: [{ip: 10.42.0.6}]}}
- apiVersion: egressgateway.spidernet.io/v1
  kind: EgressGateway
  metadata: {name: gw}
  spec: {nodeSelector: {matchExpressions: [{key: egress, operator: Exists}]}}
- apiVersion: egressgateway.spidernet.io/v1
  kind: EgressGatewayPolicy
  metadata: {name: p}
  spec: {egressGatewayName: gw, appliedTo: {podSelector: {}, namespaceSelector: SELECTOR}}
";
    for (selector, pod, leaves) in [
        ("{matchLabels: {team: dev}}", "dev/box", true),
        ("{matchLabels: {team: dev}}", "ops/box", false),
        ("{}", "dev/box", true),
        ("{}", "ops/box", true),
    ] {
        let (code, text, errors) = egressctl(
            &["explain", "-f", "-", "--from", pod, "--to", "192.0.2.1"],
            &cluster.replace("SELECTOR", selector),
        );
        assert_eq!(code, 0, "{errors}");
        assert_eq!(
            text.contains("leaves through n2 as 10.70.30.12"),
            leaves,
            "{selector}, {pod}: {text}"
        );
    }
}

/// Their agents know, and the cluster gives nobody the address of a network or of its router.
#[test]
fn a_pool_of_nodes_whose_networks_nobody_tells_is_a_note() {
    let node = "apiVersion: v1\nkind: Node\nmetadata: {name: n, labels: {e: g}}\nspec: {podCIDRs: [10.42.0.0/24]}\n\
                status: {addresses: [{type: InternalIP, address: 10.6.0.2}]}";
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: d, labels: {a: b}}\nspec: {nodeName: n}\n\
               status: {phase: Running, podIPs: [{ip: 10.42.0.5}]}";
    let ours = "apiVersion: egressgateway.spidernet.io/v1";
    let gateway = format!(
        "{ours}\nkind: EgressGateway\nmetadata: {{name: g}}\n\
         spec: {{nodeSelector: {{matchLabels: {{e: g}}}}, sourceNAT: EgressIP, egressIPs: {{ipv4: [10.6.0.0/24]}}}}"
    );
    let policy = format!(
        "{ours}\nkind: EgressGatewayPolicy\nmetadata: {{name: p}}\n\
         spec: {{egressGatewayName: g, appliedTo: {{podSelector: {{matchLabels: {{a: b}}}}}}, destCIDR: [10.9.0.0/16]}}"
    );
    let told = format!(
        "{ours}\nkind: EgressNode\nmetadata: {{name: n}}\nspec: {{}}\nstatus:\n  \
         interfaces: [{{name: eth0, ipv4: [10.6.0.2/24], sourceIPv4: 10.6.0.2, routers: [10.6.0.1]}}]"
    );
    let text = [node, pod, &gateway, &policy].join("\n---\n");
    let arguments = ["explain", "-f", "-", "--from", "d/p", "--to", "10.9.0.1"];
    let (code, _, errors) = egressctl(&arguments, &text);
    assert_eq!(code, 0, "{errors}");
    let expected =
        "note: EgressGateway g: the manifests do not say which networks these nodes are in";
    assert!(
        errors.contains(expected) && errors.contains(": n\n"),
        "{errors}"
    );
    let (code, answer, errors) = egressctl(&arguments, &format!("{text}\n---\n{told}"));
    assert_eq!(code, 0, "{errors}");
    assert!(!errors.contains(expected), "{errors}");
    assert!(
        answer.contains("as 10.6.0.3"),
        "neither the network's, nor the router's, nor the node's: {answer}"
    );
}

#[test]
fn a_pool_in_a_network_of_the_cluster_is_a_warning_and_none_of_it_is_given() {
    for (pool, whose) in [
        (
            "10.42.0.200-10.42.0.210",
            "the network of the pods of Node n: 10.42.0.0/24",
        ),
        (
            "198.19.0.1-198.19.0.9",
            "the network of the tunnel: 198.19.0.0/16",
        ),
    ] {
        let node = "apiVersion: v1\nkind: Node\nmetadata: {name: n, labels: {e: g}}\nspec: {podCIDRs: [10.42.0.0/24]}\n\
                    status: {addresses: [{type: InternalIP, address: 10.6.0.2}]}";
        let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: d, labels: {a: b}}\nspec: {nodeName: n}\n\
                   status: {phase: Running, podIPs: [{ip: 10.42.0.5}]}";
        let ours = "apiVersion: egressgateway.spidernet.io/v1";
        let gateway = format!(
            "{ours}\nkind: EgressGateway\nmetadata: {{name: g}}\n\
             spec: {{nodeSelector: {{matchLabels: {{e: g}}}}, sourceNAT: EgressIP, egressIPs: {{ipv4: [{pool}]}}}}"
        );
        let policy = format!(
            "{ours}\nkind: EgressGatewayPolicy\nmetadata: {{name: p}}\n\
             spec: {{appliedTo: {{podSelector: {{matchLabels: {{a: b}}}}}}, destCIDR: [10.9.0.0/16]}}"
        );
        let text = [node, pod, &gateway, &policy].join("\n---\n");
        let (code, answer, errors) = egressctl(
            &["explain", "-f", "-", "--from", "d/p", "--to", "10.9.0.1"],
            &text,
        );
        assert_eq!(code, 0, "{errors}");
        let refused = format!(
            "warning: EgressGateway g: spec.egressIPs.ipv4: \"{pool}\": must not overlap {whose}\n"
        );
        assert!(errors.contains(&refused), "{errors}");
        assert!(
            answer.contains("drop, because EgressGatewayPolicy p holds it"),
            "{answer}"
        );
    }
}

#[test]
fn where_nothing_tells_the_networks_of_pods_the_answer_says_what_to_set() {
    let told = Path::new(env!("CARGO_TARGET_TMPDIR")).join("told.yaml");
    std::fs::write(
        &told,
        "clusterCIDRs: {extra: [10.250.0.0/16, 10.96.0.0/12]}\n",
    )
    .unwrap();
    let said = "the manifests do not say which addresses pods have";
    for (file, config, expected) in [
        ("unknown-networks.yaml", None, true),
        ("unknown-networks.yaml", Some(told.to_str().unwrap()), false),
        ("proposal.yaml", None, false),
    ] {
        let config: Vec<&str> = config
            .into_iter()
            .flat_map(|path| ["--config", path])
            .collect();
        let (code, plan, errors) = egressctl(
            &[&["plan", "-f", file, "--node", "node1"], &config[..]].concat(),
            "",
        );
        assert_eq!((code, errors.as_str()), (0, ""));
        assert_eq!(
            plan.starts_with(&format!("# node1: {said}")),
            expected,
            "{file} {config:?}: {plan}"
        );
        let pod = if file == "proposal.yaml" {
            "default/shopping-1"
        } else {
            "shop/shopping-1"
        };
        let (code, answer, errors) = egressctl(
            &[
                &["explain", "-f", file, "--from", pod, "--to", "10.6.1.92"],
                &config[..],
            ]
            .concat(),
            "",
        );
        assert_eq!((code, errors.as_str()), (0, ""));
        let line = answer.lines().find(|line| line.contains(said));
        assert_eq!(
            line.is_some_and(|line| line.contains("set clusterCIDRs.extra to the networks")),
            expected,
            "{file} {config:?}: {answer}"
        );
    }
}

#[test]
fn the_configuration_is_the_daemons() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (good, bad) = (folder.join("good.yaml"), folder.join("bad.yaml"));
    std::fs::write(
        &good,
        "tunnel: {vni: 4711}\ndefaultEgressGateway: east\nrouting: {tableBase: 500}\n",
    )
    .unwrap();
    std::fs::write(&bad, "tunnel: {vnI: 4711}\n").unwrap();
    let (code, text, errors) = egressctl(
        &[
            "plan",
            "-f",
            "subnets.yaml",
            "--node",
            "node1",
            "--config",
            good.to_str().unwrap(),
        ],
        "",
    );
    assert_eq!((code, errors.as_str()), (0, ""));
    assert!(
        text.contains("4711") && text.contains("table 500"),
        "{text}"
    );
    let (code, _, errors) = egressctl(
        &[
            "plan",
            "-f",
            "subnets.yaml",
            "--config",
            bad.to_str().unwrap(),
        ],
        "",
    );
    assert_eq!(code, 1);
    assert!(
        errors.contains("bad.yaml: ") && errors.contains("vnI"),
        "{errors}"
    );
}
