//! What the in-process API server promises is what a real one does; and what our definitions
//! refuse, a real one refuses.

use std::{future::Future, pin::Pin};

use egressgateway_testkit::{kube::Kubernetes, lab::Lab};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};

use crate::{assets, chart_directory, rules};

type Check = (
    &'static str,
    fn(Client) -> Pin<Box<dyn Future<Output = ()>>>,
);

macro_rules! checks {
    ($($check:ident)+) => {
        [$((stringify!($check), (|client| Box::pin(rules::$check(client))) as fn(Client) -> Pin<Box<dyn Future<Output = ()>>>)),+]
    };
}

fn start() -> Option<Kubernetes> {
    let kubernetes =
        Kubernetes::start(assets()?, Lab::builder().nodes(["node-1"]).build().unwrap());
    kubernetes
        .kubectl(&format!(
            "apply --server-side -f {}/crds",
            chart_directory().display()
        ))
        .unwrap();
    kubernetes
        .kubectl("wait --for=condition=Established crds --all")
        .unwrap();
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": "default"}});
    kubernetes.put([account]);
    Some(kubernetes)
}

/// Runs `work` with a client in the lab, where the server is; the panic's text when it panics.
fn with_client<F: Future<Output = ()>>(
    kubernetes: &Kubernetes,
    work: impl FnOnce(Client) -> F + Send,
) -> Result<(), String> {
    let kubeconfig = kubernetes.kubeconfig_of("administrator");
    let root = kubernetes.lab.root();
    std::thread::scope(|scope| {
        let running = scope.spawn(move || {
            root.move_in().unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let kubeconfig = Kubeconfig::from_yaml(&kubeconfig).unwrap();
                let config =
                    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                        .await
                        .unwrap();
                work(Client::try_from(config).unwrap()).await;
            });
        });
        running.join().map_err(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
                .unwrap_or_default()
        })
    })
}

#[test]
fn a_real_server_does_what_the_testkits_does() {
    let Some(kubernetes) = start() else { return };
    let mut different = Vec::new();
    let checks: &[Check] = &every_rule!(checks);
    for (name, check) in checks {
        if let Err(panic) = with_client(&kubernetes, check) {
            different.push(format!("{name}: {panic}"));
        }
        // The next one begins in an empty cluster.
        let ours = "egressgateways,egressgatewaypolicies,egressnodes";
        kubernetes
            .kubectl(&format!("delete {ours},nodes --all --wait=false"))
            .unwrap();
        kubernetes.kubectl("delete configmaps,leases,pods -n default --all --force --grace-period 0 --wait=false 2>&1").unwrap();
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
}

#[test]
fn every_rule_of_the_definitions_refuses_something_and_kubectl_shows_its_words() {
    let Some(kubernetes) = start() else { return };
    let cases: Vec<Value> = serde_saphyr::from_str(include_str!(
        "../../../egressgateway/tests/fixtures/manifests/bad.yaml"
    ))
    .unwrap();
    let object = |kind: &Value, name: &str, spec: &Value| json!({"apiVersion": "egressgateway.spidernet.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec});
    let ruled = cases
        .iter()
        .filter(|case| case["cel"].is_string())
        .enumerate();
    let mut bad: Vec<(Value, &str)> = ruled
        .map(|(number, case)| {
            (
                object(&case["kind"], &format!("bad-{number}"), &case["spec"]),
                case["cel"].as_str().unwrap(),
            )
        })
        .collect();
    let long = "x".repeat(64);
    for (kind, spec) in [
        (
            "EgressGateway",
            json!({"nodeSelector": {"matchLabels": {"a": "b"}}}),
        ),
        (
            "EgressGatewayPolicy",
            json!({"appliedTo": {"podSelector": {"matchLabels": {"a": "b"}}}}),
        ),
    ] {
        bad.push((
            object(&json!(kind), &long, &spec),
            "must have at most 63 characters",
        ));
    }
    let list = json!({"apiVersion": "v1", "kind": "List", "items": bad.iter().map(|(object, _)| object).collect::<Vec<_>>()});
    let file = kubernetes.file("bad.json", &list.to_string());
    let said = kubernetes
        .kubectl(&format!(
            "create --dry-run=server -f '{}' 2>&1",
            file.display()
        ))
        .unwrap_err();
    for (object, rule) in &bad {
        let head = format!(
            "{}.egressgateway.spidernet.io {} is invalid: ",
            object["kind"].as_str().unwrap(),
            object["metadata"]["name"]
        );
        let own = said
            .lines()
            .find_map(|line| line.split_once(&head))
            .map(|(_, words)| words);
        assert!(
            own.is_some_and(|own| own.contains(rule)),
            "{rule}: {object}\n{said}"
        );
    }
    for definition in ["egressgateways", "egressgatewaypolicies", "egressnodes"] {
        for message in messages(
            &kubernetes.get(&format!("crd {definition}.egressgateway.spidernet.io"))["spec"],
        ) {
            assert!(
                said.contains(&message),
                "no bad object meets the rule {message:?} of {definition}"
            );
        }
    }
}

/// The words of all rules in a schema.
fn messages(schema: &Value) -> Vec<String> {
    match schema {
        Value::Object(fields) => {
            let rules = fields
                .get("x-kubernetes-validations")
                .and_then(Value::as_array)
                .into_iter()
                .flatten();
            let own = rules.filter_map(|rule| rule["message"].as_str().map(str::to_owned));
            own.chain(fields.values().flat_map(messages)).collect()
        }
        Value::Array(items) => items.iter().flat_map(messages).collect(),
        _ => Vec::new(),
    }
}
