use std::fs;

use egressgateway_testkit::{apiserver::ApiServer, netns::in_namespace};

use crate::{
    node::{Running, run, underlay},
    support::{example, file},
};

/// What a controller would have decided about `cluster.yaml`.
const DECIDED: &str = "
apiVersion: egressgateway.spidernet.io/v1
kind: EgressGateway
metadata: {name: egressgateway}
spec: {nodeSelector: {matchLabels: {egress: 'true'}}}
status: {forwardMethod: active-passive, mark: 285212672, nodeList: [{name: node-2, status: Ready, active: true}]}
---
apiVersion: egressgateway.spidernet.io/v1
kind: EgressNode
metadata: {name: node-1}
spec: {}
status: {phase: Init, vxlanIPv4IP: 172.31.0.1/16, tunnelMac: '66:a1:5e:00:00:01'}
---
apiVersion: egressgateway.spidernet.io/v1
kind: EgressNode
metadata: {name: node-2}
spec: {}
status: {phase: Succeeded, vxlanIPv4IP: 172.31.0.2/16, tunnelMac: '66:a1:5e:00:00:02', physicalInterfaceIPv4: 10.6.0.12}
";

/// A cluster of two nodes, as a controller leaves it.
pub(crate) fn decided_cluster() -> ApiServer {
    let server = ApiServer::start();
    server
        .apply_yaml(&fs::read_to_string(file("cluster.yaml")).unwrap())
        .unwrap();
    server.apply_yaml(DECIDED).unwrap();
    server
}

#[test]
fn an_operator_keeps_its_node_with_the_agent_inside() {
    in_namespace(|| async {
        underlay("10.6.0.11/24");
        let server = decided_cluster();
        let mut command = example("embed_agent");
        command.env("NODE_NAME", "node-1");
        let mut operator = Running::start(command, &server);
        operator.says("this node is as it should be");
        let pods = run("nft", &["list", "map", "inet", "egressgateway", "pods4"]);
        assert!(pods.contains("10.244.1.10"), "{pods}");
        let routes = run("ip", &["route", "show", "table", "100"]);
        assert!(
            routes.contains("default via 172.31.0.2 dev egress-vxlan-v4"),
            "{routes}"
        );

        let metrics = operator.stop();
        let converged =
            r#"operator_egressgateway_agent_converges_total{first="true",outcome="applied"} 1"#;
        assert!(
            metrics.contains(converged),
            "the operator's own registry counts: {metrics}"
        );
        assert_eq!(
            run("nft", &["list", "map", "inet", "egressgateway", "pods4"]),
            pods,
            "the data path stays"
        );
    });
}
