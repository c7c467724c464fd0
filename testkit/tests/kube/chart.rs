//! Installing, changing and removing.

use std::collections::BTreeSet;

use egressgateway_testkit::{kube::Kubernetes, lab::Lab};
use serde_json::{Value, json};

use crate::{assets, chart_directory};

const NAMESPACE: &str = "egress";

/// What the chart made, of all kinds that there are, by the labels that it puts on everything.
fn made(kubernetes: &Kubernetes) -> BTreeSet<String> {
    let kinds = kubernetes
        .kubectl("api-resources --verbs=list -o name")
        .unwrap();
    let kinds: Vec<&str> = kinds
        .lines()
        .filter(|kind| !kind.starts_with("events") && !kind.starts_with("componentstatuses"))
        .collect();
    let list = format!(
        "get {} -A -l app.kubernetes.io/name=egressgateway -o name --ignore-not-found",
        kinds.join(",")
    );
    kubernetes
        .kubectl(&list)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_chart_installs_and_upgrades_with_every_values_file_and_leaves_nothing_behind() {
    let Some(assets) = assets() else { return };
    let kubernetes = Kubernetes::start(assets, Lab::builder().nodes(["node-1"]).build().unwrap());
    let chart = chart_directory();
    let chart = chart.display();
    let mut values: Vec<_> = std::fs::read_dir(chart_directory().join("ci"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    values.sort();
    assert!(values.len() >= 3, "{values:?}");
    kubernetes
        .kubectl(&format!("create namespace {NAMESPACE}"))
        .unwrap();
    kubernetes
        .kubectl(&format!("apply --server-side -f {chart}/crds"))
        .unwrap();
    for file in &values {
        let options = format!(
            "eg {chart} --namespace {NAMESPACE} --values {}",
            file.display()
        );
        let template = format!("helm template {options} --kube-version 1.36.0 --no-hooks");
        let admin =
            "kubectl --kubeconfig \"$HOME/admin\" apply --server-side --dry-run=server -f -";
        kubernetes
            .shell(&format!("{template} | {admin}"))
            .unwrap_or_else(|error| panic!("{}: {error}", file.display()));

        let before = made(&kubernetes);
        assert_eq!(before, BTreeSet::new(), "before {}", file.display());
        kubernetes
            .helm(&format!("install {options}"))
            .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let installed = made(&kubernetes);
        assert!(
            installed.iter().any(|name| name.contains("daemonset")),
            "{installed:?}"
        );
        for other in &values {
            let options = format!(
                "eg {chart} --namespace {NAMESPACE} --values {}",
                other.display()
            );
            kubernetes
                .helm(&format!("upgrade {options} --reset-values"))
                .unwrap_or_else(|error| panic!("{}: {error}", other.display()));
        }
        kubernetes
            .helm(&format!("upgrade {options} --reset-values"))
            .unwrap();
        assert_eq!(
            made(&kubernetes),
            installed,
            "upgrades that come back to {}",
            file.display()
        );
        kubernetes
            .helm(&format!("uninstall eg --namespace {NAMESPACE} --no-hooks"))
            .unwrap();
        assert_eq!(
            made(&kubernetes),
            BTreeSet::new(),
            "after {}",
            file.display()
        );
    }
    // Helm never removes definitions: the users' objects would go with them.
    let definitions = kubernetes.kubectl("get crds -o name").unwrap();
    assert_eq!(
        definitions
            .lines()
            .filter(|name| name.ends_with("egressgateway.spidernet.io"))
            .count(),
        3,
        "{definitions}"
    );
}

#[test]
fn values_that_do_not_exist_are_refused() {
    let Some(assets) = assets() else { return };
    let kubernetes = Kubernetes::start(assets, Lab::builder().nodes(["node-1"]).build().unwrap());
    let chart = chart_directory();
    let chart = chart.display();
    for (option, word) in [
        ("agent.privilegd=true", "privilegd"),
        ("image.features=everything", "features"),
        ("controller.replicas=0", "replicas"),
    ] {
        let error = kubernetes
            .helm(&format!(
                "template eg {chart} --kube-version 1.36.0 --set {option}"
            ))
            .unwrap_err();
        assert!(error.contains(word), "{option}: {error}");
    }
}

/// What Helm would install, with these options.
fn rendered(kubernetes: &Kubernetes, options: &str) -> Vec<Value> {
    let text = kubernetes
        .helm(&format!(
            "template eg {} --kube-version 1.36.0 {options}",
            chart_directory().display()
        ))
        .unwrap();
    serde_saphyr::from_multiple(&text).unwrap()
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    objects
        .iter()
        .find(|object| object["kind"] == kind)
        .unwrap_or_else(|| panic!("no {kind}"))
}

#[test]
fn a_daemon_is_found_ready_soon_and_a_busy_or_lost_node_is_no_surprise() {
    let Some(assets) = assets() else { return };
    let kubernetes = Kubernetes::start(assets, Lab::builder().nodes(["node-1"]).build().unwrap());
    let objects = rendered(
        &kubernetes,
        "--set controller.tolerations[0].key=own --set controller.lostNodeSeconds=7",
    );
    for kind in ["DaemonSet", "Deployment"] {
        let container = &of_kind(&objects, kind)["spec"]["template"]["spec"]["containers"][0];
        assert!(
            container["readinessProbe"]["periodSeconds"].as_u64() <= Some(2),
            "{container}"
        );
        for probe in ["readinessProbe", "livenessProbe"] {
            assert!(
                container[probe]["timeoutSeconds"].as_u64() >= Some(5),
                "{container}"
            );
        }
    }
    let deployment = of_kind(&objects, "Deployment");
    let pod = &deployment["spec"]["template"]["spec"];
    let lost = |key: &str| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 7});
    let own = json!({"key": "own"});
    assert_eq!(
        pod["tolerations"],
        json!([
            lost("node.kubernetes.io/not-ready"),
            lost("node.kubernetes.io/unreachable"),
            own
        ])
    );
    let spread = &pod["topologySpreadConstraints"][0];
    assert_eq!(
        (&spread["topologyKey"], &spread["whenUnsatisfiable"]),
        (&json!("kubernetes.io/hostname"), &json!("DoNotSchedule"))
    );
    assert_eq!(
        spread["labelSelector"]["matchLabels"],
        deployment["spec"]["selector"]["matchLabels"]
    );
    assert_eq!(
        of_kind(&objects, "PodDisruptionBudget")["spec"]["minAvailable"],
        1
    );
}

#[test]
fn a_value_lets_every_node_be_cleaned_for_who_removes_the_chart_without_helm() {
    let Some(assets) = assets() else { return };
    let kubernetes = Kubernetes::start(assets, Lab::builder().nodes(["node-1"]).build().unwrap());
    let options = "--set agent.cleanup=true --set agent.extraArgs[0]=--tunnel-vni=7";
    let objects = rendered(&kubernetes, options);
    let set = of_kind(&objects, "DaemonSet");
    assert_eq!(
        set["spec"]["template"]["spec"]["containers"][0]["args"],
        json!(["--tunnel-vni=7", "cleanup", "--stay"])
    );
    assert_eq!(
        set["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"],
        "100%"
    );
    assert!(
        !objects.iter().any(|object| object["kind"] == "Job"),
        "there is nothing left to do before it goes"
    );
    assert!(
        rendered(&kubernetes, "")
            .iter()
            .any(|object| object["kind"] == "Job")
    );
    assert!(
        !rendered(&kubernetes, "--set uninstall.cleanNodes=false")
            .iter()
            .any(|object| object["kind"] == "Job")
    );
}
