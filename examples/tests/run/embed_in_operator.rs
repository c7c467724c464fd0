use egressgateway_testkit::{apiserver::ApiServer, netns::in_namespace};
use serde_json::json;

use crate::{
    node::{Running, run, underlay},
    support::{example, file},
};

fn served() -> ApiServer {
    let server = ApiServer::start();
    let definition = example("embed_in_operator").arg("crd").output().unwrap();
    server
        .apply_yaml(&String::from_utf8(definition.stdout).unwrap())
        .unwrap();
    server
}

fn egress(server: &ApiServer, name: &str, source: &str, destination: &str) {
    let spec = json!({"sources": [source], "destinations": [destination], "exit": "node-2"});
    let object = json!({"apiVersion": "example.org/v1", "kind": "StaticEgress", "metadata": {"name": name}, "spec": spec});
    server.put(object).unwrap();
}

fn start(node: &str, server: &ApiServer) -> Running {
    let mut command = example("embed_in_operator");
    command.arg(node).arg(file("fleet.yaml"));
    Running::start(command, server)
}

fn map(name: &str) -> String {
    run("nft", &["list", "map", "inet", "egressgateway", name])
}

#[test]
fn a_node_sends_what_the_objects_say_through_the_tunnel_and_follows_them() {
    in_namespace(|| async {
        underlay("10.6.0.11/24");
        let server = served();
        egress(&server, "shop", "10.244.1.0/24", "10.6.1.0/24");
        let mut operator = start("node-1", &server);
        operator.says("1 objects: Applied");
        assert!(
            map("subnets4").contains("10.244.1.0/24"),
            "{}",
            map("subnets4")
        );
        assert!(
            map("verdicts4").contains("10.6.1.0/24 : goto to_13"),
            "{}",
            map("verdicts4")
        );
        let routes = run("ip", &["route", "show", "table", "101"]);
        assert!(
            routes.contains("default via 172.31.0.2 dev egress-vxlan-v4"),
            "{routes}"
        );
        let rules = run("ip", &["rule"]);
        assert!(
            rules.contains("fwmark 0x13000000/0xff000000 lookup 101"),
            "{rules}"
        );

        egress(&server, "library", "10.244.3.0/24", "192.0.2.0/24");
        operator.says("2 objects: Applied");
        assert!(
            map("verdicts4").contains("192.0.2.0/24"),
            "{}",
            map("verdicts4")
        );
        run(
            "ip",
            &[
                "rule",
                "del",
                "pref",
                "99",
                "fwmark",
                "0x13000000/0xff000000",
            ],
        );
        operator.says("2 objects: Applied");
        assert!(
            run("ip", &["rule"]).contains("fwmark 0x13000000/0xff000000 lookup 101"),
            "what somebody took is back"
        );
        run("nft", &["delete", "table", "inet", "egressgateway"]);
        operator.says("2 objects: Applied");
        assert!(
            map("verdicts4").contains("192.0.2.0/24"),
            "and so is the packet filter"
        );

        operator.stop();
        assert!(
            map("verdicts4").contains("192.0.2.0/24"),
            "the data path stays"
        );
        let mut again = start("node-1", &server);
        again.says("2 objects: Unchanged");
        again.stop();
    });
}

#[test]
fn the_exit_lets_it_out_with_its_own_address() {
    in_namespace(|| async {
        underlay("10.6.0.12/24");
        let server = served();
        egress(&server, "shop", "10.244.1.0/24", "10.6.1.0/24");
        let mut operator = start("node-2", &server);
        operator.says("1 objects: Applied");
        assert!(
            map("snat_kind4").contains("10.6.1.0/24 : goto snat_node"),
            "{}",
            map("snat_kind4")
        );
        let routes = run("ip", &["route", "show", "table", "all"]);
        let away: Vec<_> = routes
            .lines()
            .filter(|line| line.contains("dev egress-vxlan-v4") && line.contains("via"))
            .collect();
        assert!(
            matches!(away.as_slice(), [line] if line.contains("via 172.31.0.1") && line.contains("table 100")),
            "only to node-1: {away:#?}"
        );
        operator.stop();
    });
}
