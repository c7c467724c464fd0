use std::{
    fs, thread,
    time::{Duration, Instant},
};

use egressgateway_testkit::apiserver::ApiServer;
use serde_json::Value;

use crate::{
    node::Running,
    support::{example, file},
};

/// For everything that the controller decides.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until an object is as it must be.
fn until(server: &ApiServer, kind: &str, name: &str, is_done: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let object = server.get(kind, "", name).unwrap_or_default();
        if is_done(&object) {
            return object;
        }
        assert!(Instant::now() < deadline, "{kind} {name}: {object}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn an_operator_keeps_its_cluster_with_the_controller_inside() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let _entered = runtime.enter();
    let server = ApiServer::start();
    server
        .apply_yaml(&fs::read_to_string(file("cluster.yaml")).unwrap())
        .unwrap();
    let mut command = example("embed_controller");
    command.env("POD_NAME", "operator-0");
    let operator = Running::start(command, &server);
    for node in ["node-1", "node-2"] {
        let node = until(&server, "EgressNode", node, |node| {
            node["status"]["vxlanIPv4IP"].is_string()
        });
        let overlay = node["status"]["vxlanIPv4IP"].as_str().unwrap();
        assert!(overlay.starts_with("198.19."), "{node}");
        assert!(
            node["status"]["vxlanIPv6IP"].is_null(),
            "its own configuration has no IPv6: {node}"
        );
    }
    until(&server, "EgressGateway", "egressgateway", |gateway| {
        gateway["status"]["mark"].is_u64()
    });
    let lease = || server.get("Lease", "kube-system", "egressgateway-controller");
    assert_eq!(lease().unwrap()["spec"]["holderIdentity"], "operator-0");
    let metrics = operator.stop();
    assert!(
        metrics.contains("operator_egressgateway_controller_"),
        "the operator's own registry counts: {metrics}"
    );
    assert_eq!(
        lease().unwrap()["spec"]["holderIdentity"],
        "",
        "leadership is handed over"
    );
}
