//! What the in-process API server promises is what a real one does; and what our definitions refuse, a real one refuses.

use std::{future::Future, pin::Pin};

use egressgateway_testkit::{kube::Kubernetes, lab::Lab};
use kube::{
    Api, Client, Config,
    api::{ApiResource, DynamicObject, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    core::GroupVersionKind,
};
use serde_json::{Value, json};

use crate::{assets, chart_directory, rules};

type Check = (&'static str, fn(Client) -> Pin<Box<dyn Future<Output = ()>>>);

macro_rules! checks {
    ($($check:ident)+) => {
        [$((stringify!($check), (|client| Box::pin(rules::$check(client))) as fn(Client) -> Pin<Box<dyn Future<Output = ()>>>)),+]
    };
}

fn start() -> Option<Kubernetes> {
    let kubernetes = Kubernetes::start(assets()?, Lab::builder().nodes(["node-1"]).build().unwrap());
    kubernetes.kubectl(&format!("apply --server-side -f {}/crds", chart_directory().display())).unwrap();
    kubernetes.kubectl("wait --for=condition=Established crds --all").unwrap();
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": "default"}});
    kubernetes.put([account]);
    Some(kubernetes)
}

/// Runs `work` with a client in the lab, where the server is; the panic's text when it panics.
fn with_client<F: Future<Output = ()>>(kubernetes: &Kubernetes, work: impl FnOnce(Client) -> F + Send) -> Result<(), String> {
    let kubeconfig = kubernetes.kubeconfig_of("administrator");
    let root = kubernetes.lab.root();
    std::thread::scope(|scope| {
        let running = scope.spawn(move || {
            root.move_in().unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let kubeconfig = Kubeconfig::from_yaml(&kubeconfig).unwrap();
                let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
                work(Client::try_from(config).unwrap()).await;
            });
        });
        running.join().map_err(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
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
        kubernetes.kubectl(&format!("delete {ours},nodes --all --wait=false")).unwrap();
        kubernetes.kubectl("delete configmaps,leases,pods -n default --all --force --grace-period 0 --wait=false 2>&1").unwrap();
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
}

#[test]
fn a_real_server_refuses_what_our_rules_refuse_and_says_why() {
    let Some(kubernetes) = start() else { return };
    let cases: Vec<Value> = serde_yaml::from_str(include_str!("../../../egressgateway/tests/fixtures/manifests/bad.yaml")).unwrap();
    let ruled: Vec<Value> = cases.into_iter().filter(|case| case["cel"].is_string()).collect();
    assert!(ruled.len() > 10, "{}", ruled.len());
    let all = async |client: Client| {
        let mut different = Vec::new();
        for case in &ruled {
            let kind = case["kind"].as_str().unwrap();
            let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("egressgateway.spidernet.io", "v1", kind));
            let kind = ApiResource {
                plural: if kind.kind == "EgressGateway" { "egressgateways" } else { "egressgatewaypolicies" }.into(),
                ..kind
            };
            let object = json!({
                "apiVersion": kind.api_version, "kind": kind.kind, "metadata": {"name": "bad"}, "spec": case["spec"],
            });
            let object: DynamicObject = serde_json::from_value(object).unwrap();
            let dry = PostParams { dry_run: true, ..PostParams::default() };
            let said = Api::<DynamicObject>::all_with(client.clone(), &kind).create(&dry, &object).await;
            let rule = case["cel"].as_str().unwrap();
            match said {
                Err(error) if error.to_string().contains(rule) => {}
                other => different.push(format!("{}: not {rule:?} but {other:?}", case["name"])),
            }
        }
        assert!(different.is_empty(), "{}", different.join("\n"));
    };
    with_client(&kubernetes, all).unwrap();
}
