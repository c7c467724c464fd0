//! `helm uninstall`, with what kubelets and the controller manager do played by the test.

use std::time::Duration;

use egressgateway_testkit::{
    cluster::{AGENT_PORT, binary},
    kube::Kubernetes,
    lab::Process,
    pace::patient,
};
use serde_json::{Value, json};

use crate::{
    daemons::{Installed, NAMESPACE, NODES},
    objects::{collect_garbage, objects},
};

const HOOK: &str = "egressgateway-clean-nodes";
/// What of ours may be in a node's kernel.
const LEFT: &str = "(nft list tables; ip -o link show; ip rule show; ip -6 rule show; ip route show table all) | grep -E 'egress|fwmark|proto 77' || true";

pub(crate) fn leaves_nothing(installed: &mut Installed) {
    for node in NODES {
        assert_ne!(left(installed, node), "", "{node}");
    }
    let made: Vec<String> = objects(&installed.kubernetes)
        .into_keys()
        .filter(|name| name.contains("Lease egress/"))
        .collect();
    assert_eq!(made.len(), NODES.len() + 1, "{made:?}");
    let log = installed.kubernetes.file("uninstall.log", "");
    let uninstall = format!(
        "helm --kubeconfig \"$HOME/admin\" uninstall eg --namespace {NAMESPACE} --timeout 5m"
    );
    installed
        .kubernetes
        .shell(&format!(
            "({uninstall}; echo \"ended: $?\") >'{}' 2>&1 &",
            log.display()
        ))
        .unwrap();

    the_hook_cleans_every_node(installed);
    installed.kubernetes.eventually("helm has uninstalled", || {
        let said = std::fs::read_to_string(&log).unwrap();
        if said.contains("ended: 0") {
            Ok(())
        } else {
            Err(said)
        }
    });
    for node in NODES {
        assert_eq!(left(installed, node), "", "{node}");
    }
    let kubernetes = &installed.kubernetes;
    kubernetes
        .kubectl(&format!(
            "delete pods,endpointslices --all --namespace {NAMESPACE} --force --grace-period 0"
        ))
        .unwrap();
    collect_garbage(kubernetes);
    let left: Vec<String> = objects(kubernetes)
        .into_keys()
        .filter(|name| name.to_lowercase().contains("egress"))
        .collect();
    let definition =
        |plural: &str| format!("CustomResourceDefinition {plural}.egressgateway.spidernet.io");
    let mut kept: Vec<String> = ["egressgatewaypolicies", "egressgateways", "egressnodes"]
        .map(definition)
        .into();
    kept.extend(
        [
            "APIService v1.egressgateway.spidernet.io",
            "EgressGateway exit",
            "EgressGatewayPolicy shopping",
        ]
        .map(str::to_owned),
    );
    kept.extend(NODES.map(|node| format!("EgressNode {node}")));
    // Not the chart's.
    kept.extend([
        format!("Namespace {NAMESPACE}"),
        format!("ServiceAccount {NAMESPACE}/default"),
    ]);
    kept.sort();
    assert_eq!(left, kept);
}

fn left(installed: &Installed, node: &str) -> String {
    installed
        .kubernetes
        .lab
        .node(node)
        .run(LEFT)
        .unwrap()
        .trim()
        .to_owned()
}

/// Runs what the Job of the hook runs, with its account, and what the pods run that it asks for.
fn the_hook_cleans_every_node(installed: &mut Installed) {
    let kubernetes = &installed.kubernetes;
    let job = kubernetes.eventually("Helm has made the Job", || {
        let job = kubernetes.get(&format!("job/{HOOK} --namespace {NAMESPACE}"));
        if job.is_null() {
            Err("no Job".to_owned())
        } else {
            Ok(job)
        }
    });
    let token = installed.token(HOOK, HOOK, NODES[0]);
    let config = kubernetes.file("clean-nodes.kubeconfig", &kubernetes.kubeconfig_of(&token));
    let container = &job["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["command"], json!(["egressgateway-controller"]));
    let hook = kubernetes
        .lab
        .node(NODES[0])
        .program(binary("egressgateway-controller"))
        .arg("--kubeconfig")
        .arg(config);
    let hook = hook
        .args(["--namespace", NAMESPACE])
        .args(words(&container["args"]))
        .start()
        .unwrap();
    let set = kubernetes.eventually("the DaemonSet's pods are to clean up", || {
        let set = kubernetes.get(&format!(
            "daemonset/egressgateway-agent --namespace {NAMESPACE}"
        ));
        let arguments = &set["spec"]["template"]["spec"]["containers"][0]["args"];
        if *arguments == json!(["cleanup", "--stay"]) {
            Ok(set)
        } else {
            Err(format!("{arguments}\n{}", hook.log().unwrap()))
        }
    });
    replaced_status(kubernetes, &set, 0);
    // An agent at work is no neighbour for who cleans up.
    let refused = cleaner(installed, NODES[0]);
    let ended = refused.wait(patient(Duration::from_secs(20))).unwrap();
    assert_eq!(ended.code(), Some(1), "{}", refused.log().unwrap());
    assert!(
        refused
            .log()
            .unwrap()
            .contains("another agent of this node may be running"),
        "{}",
        refused.log().unwrap()
    );
    assert_ne!(left(installed, NODES[0]), "", "nothing was touched");
    for (_, daemon) in std::mem::take(&mut installed.daemons) {
        daemon.terminate(patient(Duration::from_secs(10))).unwrap();
    }
    let kubernetes = &installed.kubernetes;
    let cleaners: Vec<Process> = NODES
        .into_iter()
        .map(|node| cleaner(installed, node))
        .collect();
    for (node, cleaner) in NODES.iter().zip(&cleaners) {
        kubernetes.eventually(&format!("{node} is clean"), || {
            let ready = kubernetes.lab.node(node).run(&format!(
                "curl --fail --silent http://127.0.0.1:{AGENT_PORT}/readyz"
            ));
            ready.map_err(|error| format!("{error}\n{}", cleaner.log().unwrap()))
        });
    }
    assert!(
        hook.status().unwrap().is_none(),
        "it waits for what the DaemonSet says: {}",
        hook.log().unwrap()
    );
    replaced_status(kubernetes, &set, NODES.len());
    let ended = hook.wait(patient(Duration::from_secs(20))).unwrap();
    assert!(ended.success(), "{}", hook.log().unwrap());
    for cleaner in cleaners {
        assert!(
            cleaner
                .terminate(patient(Duration::from_secs(10)))
                .unwrap()
                .success()
        );
    }
    let now = "2026-01-01T00:00:00Z";
    let condition = |kind: &str| json!({"type": kind, "status": "True", "lastTransitionTime": now, "lastProbeTime": now});
    let done = json!({"status": {
        "startTime": now, "completionTime": now, "succeeded": 1, "conditions": [condition("SuccessCriteriaMet"), condition("Complete")],
    }});
    status(kubernetes, &format!("job {HOOK}"), &done);
}

fn cleaner(installed: &Installed, node: &str) -> Process {
    let map = installed
        .kubernetes
        .get(&format!("configmap/egressgateway --namespace {NAMESPACE}"));
    let settings = installed
        .kubernetes
        .file("cleanup.yaml", map["data"]["config.yaml"].as_str().unwrap());
    let program = installed
        .kubernetes
        .lab
        .node(node)
        .program(binary("egressgateway-agent"))
        .arg("--config")
        .arg(settings);
    program
        .args(["--state-file=", "cleanup", "--stay"])
        .start()
        .unwrap()
}

/// The DaemonSet's controller has seen the change, and so many of its pods are new and ready.
fn replaced_status(kubernetes: &Kubernetes, set: &Value, new: usize) {
    let replaced = json!({"status": {
        "observedGeneration": set["metadata"]["generation"], "currentNumberScheduled": NODES.len(), "desiredNumberScheduled": NODES.len(),
        "numberMisscheduled": 0, "updatedNumberScheduled": new, "numberReady": NODES.len(), "numberAvailable": NODES.len(),
    }});
    status(kubernetes, "daemonset egressgateway-agent", &replaced);
}

fn status(kubernetes: &Kubernetes, object: &str, status: &Value) {
    let file = kubernetes.file("played-status.json", &status.to_string());
    let patch = format!(
        "patch {object} --namespace {NAMESPACE} --subresource=status --type=merge --patch-file '{}'",
        file.display()
    );
    kubernetes.kubectl(&patch).unwrap();
}

fn words(list: &Value) -> Vec<String> {
    list.as_array()
        .into_iter()
        .flatten()
        .map(|word| word.as_str().unwrap().to_owned())
        .collect()
}
