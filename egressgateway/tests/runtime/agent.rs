use std::{sync::Arc, time::Duration};

use egressgateway::{
    Connection, DestinationView, ErrorKind, PacketMatch, UntrackingRule,
    api::{EgressGateway, EgressGatewayPolicy, EgressNode, EgressNodePhase},
};
use egressgateway_testkit::apiserver::{ApiServer, Effect, Fault};
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Node, Pod},
};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::json;

use crate::{
    kernel::{Kernel, OneConnection},
    support::{NODE, PATIENCE, Running, pod, policy, populate, settings, until},
};

async fn cluster() -> (ApiServer, Kernel) {
    let server = ApiServer::start();
    populate(&server.client()).await;
    (server, Kernel::new())
}

async fn programmed(kernel: &Kernel) {
    kernel
        .until("the governed pod", |held| {
            held.policy.pods.len() == 1 && held.policy.destinations.len() == 1
        })
        .await;
}

async fn built(server: &ApiServer) {
    until(
        Api::<EgressNode>::all(server.client()),
        NODE,
        "a built tunnel",
        |node| {
            node.status
                .as_ref()
                .is_some_and(|status| status.phase == Some(EgressNodePhase::Succeeded))
        },
    )
    .await;
}

#[tokio::test]
async fn programs_the_node_once_everything_was_listed_and_says_so() {
    let (server, kernel) = cluster().await;
    let agent = Running::start(&server.client(), &kernel, settings());
    programmed(&kernel).await;
    let held = kernel.held();
    assert_eq!(
        held.pods.iter().find(|pods| **pods > 0),
        Some(&1),
        "the first policy has everything"
    );
    assert_eq!(held.tunnel.peers.len(), 1);
    assert_eq!(held.steering.targets.len(), 1);
    let node = until(
        Api::<EgressNode>::all(server.client()),
        NODE,
        "a built tunnel",
        |node| {
            node.status
                .as_ref()
                .is_some_and(|status| status.phase == Some(EgressNodePhase::Succeeded))
        },
    )
    .await;
    let status = node.status.unwrap();
    assert_eq!(status.physical_interface.as_deref(), Some("eth0"));
    assert_eq!(
        status.vxlan_ipv4_ip.as_deref(),
        Some("172.31.0.1/16"),
        "what the controller wrote stays"
    );
    assert!(
        status
            .conditions
            .iter()
            .all(|condition| condition.status == "True"),
        "{:?}",
        status.conditions
    );
    assert!(agent.health.is_ready());
    assert_eq!(agent.metric("egressgateway_agent_tunnel_ready"), Some(1.0));
    assert_eq!(
        agent.metric("egressgateway_agent_packets_total{rule=\"steered\"}"),
        Some(7.0)
    );
    agent.stop().await;
}

#[tokio::test]
async fn writes_nothing_before_every_watch_was_listed() {
    for held_back in [
        "namespaces",
        "nodes",
        "egressnodes",
        "egressgateways",
        "egressgatewaypolicies",
        "pods",
    ] {
        let (server, kernel) = cluster().await;
        kernel.tamper(|held| {
            _ = held
                .policy
                .targets
                .insert(egressgateway::model::TargetId::FIRST);
        });
        server.fault(Fault::new("list", held_back, usize::MAX, Effect::Hang));
        let written = server.writes("egressnodes");
        let agent = Running::start(&server.client(), &kernel, settings());
        server.requested("list", held_back, 1).await;
        for other in [
            "namespaces",
            "nodes",
            "egressnodes",
            "egressgateways",
            "egressgatewaypolicies",
            "pods",
        ] {
            if other != held_back {
                server.requested("watch", other, 1).await;
            }
        }
        assert_eq!(kernel.held().applied, 0, "{held_back} was not listed");
        assert!(!agent.health.is_ready());
        assert_eq!(server.writes("egressnodes"), written);
        server.heal();
        programmed(&kernel).await;
        agent.stop().await;
    }
}

#[tokio::test]
async fn a_restarted_agent_finds_everything_as_it_must_be() {
    let (server, kernel) = cluster().await;
    let agent = Running::start(&server.client(), &kernel, settings());
    programmed(&kernel).await;
    until(
        Api::<EgressNode>::all(server.client()),
        NODE,
        "a built tunnel",
        |node| {
            node.status
                .as_ref()
                .is_some_and(|status| status.phase == Some(EgressNodePhase::Succeeded))
        },
    )
    .await;
    agent.stop().await;
    let (applied, written) = (kernel.held().applied, server.writes("egressnodes"));
    let agent = Running::start(&server.client(), &kernel, settings());
    agent.until_ready().await;
    assert_eq!(
        agent.metric("egressgateway_agent_converges_total{first=\"true\",outcome=\"unchanged\"}"),
        Some(1.0)
    );
    assert_eq!(kernel.held().applied, applied);
    pod(&server.client(), "pod2", NODE, "10.0.1.2").await;
    kernel
        .until("the new pod", |held| held.policy.pods.len() == 2)
        .await;
    assert_eq!(
        server.writes("egressnodes"),
        written,
        "an unchanged status, or one more pod, is not written"
    );
    agent.stop().await;
}

#[tokio::test]
async fn survives_expired_and_broken_watches_and_finds_what_was_deleted_meanwhile() {
    let (server, kernel) = cluster().await;
    let agent = Running::start(&server.client(), &kernel, settings());
    programmed(&kernel).await;
    policy(&server.client(), "more", "10.20.0.0/16").await;
    kernel
        .until("another policy", |held| held.policy.destinations.len() == 2)
        .await;
    for (fault, name) in [
        (ApiServer::compact as fn(&ApiServer), "more"),
        (ApiServer::drop_watches, "more"),
    ] {
        fault(&server);
        let policies = Api::<EgressGatewayPolicy>::all(server.client());
        policies
            .delete(name, &DeleteParams::default())
            .await
            .unwrap();
        kernel
            .until("no deleted policy", |held| {
                held.policy.destinations.len() == 1
            })
            .await;
        policy(&server.client(), "more", "10.20.0.0/16").await;
        kernel
            .until("a new policy", |held| held.policy.destinations.len() == 2)
            .await;
    }
    agent.stop().await;
}

#[tokio::test]
async fn survives_an_api_server_that_answers_with_errors() {
    let (server, kernel) = cluster().await;
    server.fault(Fault {
        verb: None,
        resource: None,
        query: None,
        times: 10,
        effect: Effect::Status(500),
    });
    let agent = Running::start(&server.client(), &kernel, settings());
    programmed(&kernel).await;
    agent.stop().await;
}

#[tokio::test]
async fn many_changes_become_few_converges() {
    let (server, kernel) = cluster().await;
    for number in 2..=100 {
        pod(
            &server.client(),
            &format!("pod{number}"),
            NODE,
            &format!("10.0.1.{number}"),
        )
        .await;
    }
    let agent = Running::start(&server.client(), &kernel, settings());
    let held = kernel
        .until("all pods", |held| held.policy.pods.len() == 100)
        .await;
    assert!(held.applied <= 6, "{} writes for one list", held.applied);
    agent.stop().await;
}

#[tokio::test]
async fn pods_come_and_go_without_a_write_because_each_would_be_an_event_for_every_agent() {
    let (server, kernel) = cluster().await;
    let mut settings = settings();
    settings.patience = Duration::from_millis(20);
    settings.lease.renew = Duration::from_millis(30);
    let agent = Running::start(&server.client(), &kernel, settings);
    built(&server).await;
    let written = server.writes("egressnodes");
    for number in 2..=5 {
        pod(
            &server.client(),
            &format!("pod{number}"),
            NODE,
            &format!("10.0.1.{number}"),
        )
        .await;
    }
    policy(&server.client(), "more", "10.20.0.0/16").await;
    kernel
        .until("all of it", |held| {
            held.policy.pods.len() == 5 && held.policy.destinations.len() == 2
        })
        .await;
    // Far longer than words may wait.
    let renewals = || {
        agent
            .metric("egressgateway_agent_lease_renewals_total")
            .unwrap_or_default()
    };
    let enough = renewals() + 10.0;
    let renewed = async {
        while renewals() < enough {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, renewed)
        .await
        .expect("the Lease is renewed");
    assert_eq!(server.writes("egressnodes"), written);
    agent.stop().await;
}

#[tokio::test]
async fn heartbeats_of_nodes_are_no_reason_to_converge() {
    let (server, kernel) = cluster().await;
    let agent = Running::start(&server.client(), &kernel, settings());
    built(&server).await;
    let events = || {
        agent
            .metric("egressgateway_agent_watch_events_total{watch=\"nodes\"}")
            .unwrap_or_default()
    };
    let converges = || {
        agent
            .metric("egressgateway_agent_converges_total{first=\"false\",outcome=\"unchanged\"}")
            .unwrap_or_default()
    };
    let (before, enough) = (converges(), events() + 20.0);
    let nodes = Api::<Node>::all(server.client());
    for beat in 10..30 {
        let ready = json!({"type": "Ready", "status": "True", "lastHeartbeatTime": format!("2026-01-01T00:00:{beat}Z")});
        let status = Patch::Merge(json!({"status": {"conditions": [ready]}}));
        nodes
            .patch_status("node2", &PatchParams::default(), &status)
            .await
            .unwrap();
    }
    let told = async {
        while events() < enough {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, told)
        .await
        .expect("the agent is told of each heartbeat");
    // What came before may still be on its way.
    assert!(
        converges() <= before + 3.0,
        "{} converges for 20 heartbeats",
        converges() - before
    );
    agent.stop().await;
}

#[tokio::test]
async fn what_somebody_else_removed_is_repaired_and_repairing_ends() {
    let (server, kernel) = cluster().await;
    let agent = Running::start(&server.client(), &kernel, settings());
    programmed(&kernel).await;
    agent.until_ready().await;
    kernel.tamper(|held| held.tunnel.peers = imbl::OrdMap::new());
    kernel
        .until("its peer again", |held| held.tunnel.peers.len() == 1)
        .await;
    let reads = kernel.held().read;
    // The repair itself is heard of, and looked at once more: tunnel and steering. Then nothing
    // more is heard.
    kernel
        .until("one more look", |held| held.read >= reads + 2)
        .await;
    let more = tokio::time::timeout(
        Duration::from_millis(500),
        kernel.until("a further look", |held| held.read > reads + 4),
    )
    .await;
    assert!(
        more.is_err(),
        "looking goes on for ever: {} reads",
        kernel.held().read
    );
    agent.stop().await;
}

#[tokio::test]
async fn a_failing_kernel_is_tried_again_and_told() {
    let (server, kernel) = cluster().await;
    kernel.fail(ErrorKind::Transient, 6);
    let agent = Running::start(&server.client(), &kernel, settings());
    programmed(&kernel).await;
    assert_eq!(kernel.failures_left(), 0);
    kernel.fail(ErrorKind::Permission, 100);
    pod(&server.client(), "pod2", NODE, "10.0.1.2").await;
    until(
        Api::<EgressNode>::all(server.client()),
        NODE,
        "its failure",
        |node| {
            node.status
                .iter()
                .flat_map(|status| &status.conditions)
                .any(|condition| condition.reason == "Permission")
        },
    )
    .await;
    assert!(!agent.health.is_ready());
    assert_eq!(kernel.held().policy.pods.len(), 1);
    assert!(
        kernel.failures_left() > 90,
        "what can't succeed waits until something changes"
    );
    kernel.heal();
    pod(&server.client(), "pod3", NODE, "10.0.1.3").await;
    kernel
        .until("both pods", |held| held.policy.pods.len() == 3)
        .await;
    agent.stop().await;
}

#[tokio::test]
async fn connections_from_before_a_policy_end_although_another_driver_fails() {
    let (server, kernel) = cluster().await;
    kernel.refuse("steering");
    let old = Arc::new(OneConnection {
        connection: Connection {
            source: [10, 0, 1, 1].into(),
            destination: [10, 9, 0, 1].into(),
            translated: [10, 9, 0, 1].into(),
            seen_as: [10, 6, 0, 1].into(),
            is_own: true,
            mark: 0,
            is_opening_seen: true,
        },
        found_stale: tokio::sync::watch::Sender::new(0),
    });
    let agent = Running::start_with(&server.client(), &kernel, settings(), |agent| {
        agent.with_connections(old.clone(), DestinationView::Translated)
    });
    let mut found = old.found_stale.subscribe();
    let ended = tokio::time::timeout(PATIENCE, found.wait_for(|found| *found > 0)).await;
    assert!(ended.is_ok(), "{:?}", kernel.held());
    assert!(!agent.health.is_ready(), "the other driver still fails");
    kernel.heal();
    agent.stop().await;
}

#[tokio::test]
async fn follows_all_pods_while_it_must_recognise_them_and_loses_none_on_the_way() {
    let (server, kernel) = cluster().await;
    let client = server.client();
    pod(&client, "remote", "node2", "10.0.2.1").await;
    let agent = Running::start(&client, &kernel, settings());
    programmed(&kernel).await;
    let gateways = Api::<EgressGateway>::all(client.clone());
    let exit_here = json!({
        "spec": {"sourceNAT": "EgressIP", "egressIPs": {"ipv4": ["10.6.1.1"]}},
    });
    gateways
        .patch("exit", &PatchParams::default(), &Patch::Merge(&exit_here))
        .await
        .unwrap();
    let status = json!({"status": {"nodeList": [
        {"name": NODE, "status": "Ready", "active": true, "egressIPs": ["10.6.1.1"], "mark": 0x1300_0000},
    ]}});
    gateways
        .patch_status("exit", &PatchParams::default(), &Patch::Merge(&status))
        .await
        .unwrap();
    let policies = Api::<EgressGatewayPolicy>::all(client.clone());
    let address = json!({"status": {"egressGateway": "exit", "egressIP": {"ipv4": "10.6.1.1"}, "node": NODE}});
    policies
        .patch_status("shop", &PatchParams::default(), &Patch::Merge(&address))
        .await
        .unwrap();
    let held = kernel
        .until("the remote pod", |held| held.policy.pods.len() == 2)
        .await;
    let first = held.pods.iter().position(|pods| *pods > 0).unwrap();
    assert!(
        held.pods[first..].iter().all(|pods| *pods >= 1),
        "the own pod was always there: {:?}",
        held.pods
    );
    agent.stop().await;
    let of_all_nodes = |query: &str| !query.contains("fieldSelector");
    server.fault(Fault {
        query: Some(of_all_nodes),
        ..Fault::new("list", "pods", usize::MAX, Effect::Hang)
    });
    let listed = server.count("list", "pods");
    let agent = Running::start(&client, &kernel, settings());
    server.requested("list", "pods", listed + 2).await;
    let early = tokio::time::timeout(
        Duration::from_millis(200),
        kernel.until("a write", |now| now.applied > held.applied),
    )
    .await;
    assert!(early.is_err(), "the remote pods are not known yet");
    server.heal();
    agent.until_ready().await;
    let after = kernel.held();
    assert!(
        after.pods[held.pods.len()..].iter().all(|pods| *pods == 2),
        "a restart forgets no remote pod: {:?}",
        after.pods
    );
    let back =
        json!({"status": {"nodeList": [{"name": "node2", "status": "Ready", "active": true}]}});
    gateways
        .patch_status("exit", &PatchParams::default(), &Patch::Merge(&back))
        .await
        .unwrap();
    kernel
        .until("the own pod only", |held| held.policy.pods.len() == 1)
        .await;
    agent.stop().await;
}

#[tokio::test]
async fn holds_a_lease_and_renews_it() {
    let (server, kernel) = cluster().await;
    let mut settings = settings();
    settings.lease.renew = Duration::from_millis(100);
    let agent = Running::start(&server.client(), &kernel, settings);
    let leases = Api::<Lease>::namespaced(server.client(), "kube-system");
    let name = format!("egressgateway-agent-{NODE}");
    let renewed = |lease: &Lease| lease.spec.as_ref().and_then(|spec| spec.renew_time.clone());
    let first = until(leases.clone(), &name, "a holder", |lease| {
        renewed(lease).is_some()
    })
    .await;
    assert_eq!(
        first.spec.as_ref().unwrap().holder_identity.as_deref(),
        Some(NODE)
    );
    until(leases, &name, "a renewal", |lease| {
        renewed(lease) > renewed(&first)
    })
    .await;
    agent.stop().await;
}

#[tokio::test]
async fn odd_objects_stop_nothing() {
    let (server, kernel) = cluster().await;
    let stored = |name: &str, spec: serde_json::Value| {
        let object = json!({"apiVersion": "egressgateway.spidernet.io/v1", "kind": "EgressGatewayPolicy", "metadata": {"name": name}, "spec": spec});
        server.put_unchecked(object).unwrap();
    };
    stored("odd", json!({"appliedTo": "everything"}));
    let huge: Vec<String> = (0..20_000)
        .map(|number| format!("10.{}.{}.0/24", number / 250, number % 250))
        .collect();
    stored(
        "huge",
        json!({"egressGatewayName": "none", "appliedTo": {"podSelector": {"matchLabels": {"app": "none"}}}, "destCIDR": huge}),
    );
    let pods = Api::<Pod>::namespaced(server.client(), "default");
    crate::support::put(
        &pods,
        json!({"metadata": {"name": "bare", "namespace": "default"}, "spec": {"containers": []}}),
    )
    .await;
    let agent = Running::start(&server.client(), &kernel, settings());
    programmed(&kernel).await;
    agent.stop().await;
}

#[tokio::test]
async fn a_packet_filter_that_somebody_else_changed_is_repaired_long_before_the_next_complete_read()
{
    let (server, kernel) = cluster().await;
    let agent = Running::start(&server.client(), &kernel, settings());
    programmed(&kernel).await;
    for _ in 0..3 {
        kernel.tamper_policy(|policy| *policy = egressgateway::PolicyDesired::default());
        programmed(&kernel).await;
    }
    agent.stop().await;
}

#[tokio::test]
async fn who_takes_pods_out_of_connection_tracking_is_named_and_services_of_the_cluster_are_not_meant()
 {
    let (server, kernel) = cluster().await;
    let others = kernel.others.clone();
    let mut settings = settings();
    settings.index.cluster_networks = vec!["10.96.0.0/12".parse().unwrap()];
    let agent = Running::start_with(&server.client(), &kernel, settings, |agent| {
        agent.with_untracking_rules(others.clone())
    });
    let says = |status: &'static str, words: &'static str| {
        let so = move |node: &EgressNode| {
            let mut conditions = node.status.iter().flat_map(|status| &status.conditions);
            conditions.any(|condition| {
                condition.type_ == "PodsTracked"
                    && condition.status == status
                    && condition.message.contains(words)
            })
        };
        until(Api::<EgressNode>::all(server.client()), NODE, words, so)
    };
    says("True", "no rule").await;
    let rule = |place: &str, destination: &str| {
        let packets = PacketMatch {
            destination: Some([destination.parse().unwrap()].into()),
            ..PacketMatch::default()
        };
        UntrackingRule {
            place: place.to_owned(),
            packets,
        }
    };
    others.have(Some(
        [
            rule("the services'", "10.96.0.10/32"),
            rule("the pods'", "10.0.0.0/16"),
        ]
        .into(),
    ));
    says("False", "the pods'; what policies govern").await;
    others.have(None);
    says("False", "the pods'").await;
    others.have(Some([rule("the services'", "10.96.0.10/32")].into()));
    says("True", "no rule").await;
    agent.stop().await;
}

#[tokio::test]
async fn where_nodes_do_not_tell_their_networks_the_objects_of_the_cni_do() {
    let (server, kernel) = cluster().await;
    for node in ["node1", "node2"] {
        server
            .merge(
                "Node",
                "",
                node,
                &json!({"spec": {"podCIDR": null, "podCIDRs": null}}),
            )
            .unwrap();
    }
    let mut settings = settings();
    settings.networks = Duration::from_millis(50);
    settings.index.start_gate = true;
    let agent = Running::start(&server.client(), &kernel, settings);
    let unknown = |node: &EgressNode| {
        let conditions = node.status.iter().flat_map(|status| &status.conditions);
        conditions
            .filter(|condition| condition.type_ == "PodNetworksUnknown")
            .any(|condition| condition.message.contains("clusterCIDRs.extra"))
    };
    until(
        Api::<EgressNode>::all(server.client()),
        NODE,
        "that nothing is known",
        unknown,
    )
    .await;
    for (group, version, kind, plural, spec) in [
        (
            "crd.projectcalico.org",
            "v1",
            "IPPool",
            "ippools",
            json!({"cidr": "10.0.0.0/15"}),
        ),
        (
            "cilium.io",
            "v2",
            "CiliumNode",
            "ciliumnodes",
            json!({"ipam": {"podCIDRs": ["10.2.0.0/24", "nonsense"]}}),
        ),
        (
            "cilium.io",
            "v2alpha1",
            "CiliumPodIPPool",
            "ciliumpodippools",
            json!({"ipv4": {"cidrs": ["10.3.0.0/16"]}, "ipv6": {"cidrs": ["fd03::/104"]}}),
        ),
    ] {
        let names = json!({"kind": kind, "plural": plural});
        let spec_of = json!({"group": group, "names": names, "scope": "Cluster", "versions": [{"name": version, "served": true, "storage": true}]});
        let name = format!("{plural}.{group}");
        let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": name}, "spec": spec_of});
        server.put(definition).unwrap();
        server.put(json!({"apiVersion": format!("{group}/{version}"), "kind": kind, "metadata": {"name": "first"}, "spec": spec})).unwrap();
    }
    let expected = ["10.0.0.0/15", "10.2.0.0/24", "10.3.0.0/16", "fd03::/104"]
        .map(|text| text.parse::<ipnet::IpNet>().unwrap());
    kernel
        .until("the networks of all pods", |held| {
            let wide = held
                .policy
                .start_gate
                .as_ref()
                .map(|gate| gate.wide.clone())
                .unwrap_or_default();
            let exempt = |network: &ipnet::IpNet| {
                held.policy
                    .exempt
                    .iter()
                    .any(|other| other.contains(network))
            };
            expected
                .iter()
                .all(|network| wide.contains(network) && exempt(network))
                && wide.len() == expected.len()
        })
        .await;
    until(
        Api::<EgressNode>::all(server.client()),
        NODE,
        "that it is known",
        |node| !unknown(node),
    )
    .await;
    agent.stop().await;
}
