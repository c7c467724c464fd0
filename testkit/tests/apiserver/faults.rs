//! Faults on demand.

use std::{pin::pin, time::Duration};

use egressgateway_testkit::apiserver::{ApiServer, Effect, Fault};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, ResourceExt,
    api::{ListParams, PostParams, WatchEvent, WatchParams},
    runtime::{WatchStreamExt, watcher},
};
use serde_json::json;

fn node(name: &str) -> Node {
    serde_json::from_value(json!({"metadata": {"name": name}})).unwrap()
}

fn fault(effect: Effect, times: usize) -> Fault {
    Fault::new("get", "nodes", times, effect)
}

#[tokio::test]
async fn a_status_is_answered_as_often_as_asked_for() {
    let server = ApiServer::start();
    let nodes = Api::<Node>::all(server.client());
    for code in [409, 410, 500] {
        server.fault(fault(Effect::Status(code), 2));
        for _ in 0..2 {
            assert!(
                matches!(nodes.get("n").await, Err(kube::Error::Api(status)) if status.code == code)
            );
        }
        assert!(nodes.get_opt("n").await.unwrap().is_none());
    }
    assert!(
        nodes.list(&ListParams::default()).await.is_ok(),
        "another verb is not touched"
    );
}

#[tokio::test]
async fn a_reset_is_an_error_of_the_connection_and_the_next_request_works() {
    let server = ApiServer::start();
    let nodes = Api::<Node>::all(server.client());
    server.fault(fault(Effect::Reset, 1));
    let refused = nodes.get("n").await.unwrap_err();
    assert!(!matches!(refused, kube::Error::Api(_)), "{refused}");
    assert!(nodes.get_opt("n").await.unwrap().is_none());
}

#[tokio::test]
async fn a_hanging_request_goes_on_when_healed() {
    let server = ApiServer::start();
    let nodes = Api::<Node>::all(server.client());
    server.fault(fault(Effect::Hang, 1));
    let mut hanging = pin!(nodes.get_opt("n"));
    assert!(
        tokio::time::timeout(Duration::from_millis(200), &mut hanging)
            .await
            .is_err()
    );
    server.heal();
    assert!(hanging.await.unwrap().is_none());
}

#[tokio::test]
async fn a_paused_server_answers_later() {
    let server = ApiServer::start();
    let nodes = Api::<Node>::all(server.client());
    server.pause();
    let mut waiting = pin!(nodes.get_opt("n"));
    assert!(
        tokio::time::timeout(Duration::from_millis(200), &mut waiting)
            .await
            .is_err()
    );
    server.resume();
    assert!(waiting.await.unwrap().is_none());
}

#[tokio::test]
async fn a_stopped_server_comes_back_with_what_it_stored() {
    let mut server = ApiServer::start();
    let nodes = Api::<Node>::all(server.client());
    nodes
        .create(&PostParams::default(), &node("n"))
        .await
        .unwrap();
    server.stop();
    assert!(nodes.get("n").await.is_err());
    server.resume_listening();
    assert_eq!(nodes.get("n").await.unwrap().name_any(), "n");
}

#[tokio::test]
async fn a_watch_of_forgotten_history_is_told_so_and_a_watcher_lists_again() {
    let server = ApiServer::start();
    let nodes = Api::<Node>::all(server.client());
    let version = nodes
        .create(&PostParams::default(), &node("a"))
        .await
        .unwrap()
        .resource_version()
        .unwrap();
    let mut watched = pin!(watcher(nodes.clone(), watcher::Config::default()).default_backoff());
    for _ in 0..3 {
        watched.next().await.unwrap().unwrap();
    }
    nodes
        .create(&PostParams::default(), &node("b"))
        .await
        .unwrap();
    server.compact();
    let mut late = pin!(
        nodes
            .watch(&WatchParams::default(), &version)
            .await
            .unwrap()
    );
    assert!(
        matches!(late.next().await.unwrap().unwrap(), WatchEvent::Error(status) if status.code == 410)
    );
    let mut names = Vec::new();
    while names != ["a", "b"] {
        match watched.next().await.unwrap() {
            Ok(watcher::Event::Init) => names.clear(),
            Ok(watcher::Event::InitApply(node) | watcher::Event::Apply(node)) => {
                names.push(node.name_any());
            }
            _ => {}
        }
    }
}

#[tokio::test]
async fn bookmarks_tell_a_quiet_watch_how_far_the_server_is() {
    let server = ApiServer::start();
    let nodes = Api::<Node>::all(server.client());
    let version = nodes
        .create(&PostParams::default(), &node("a"))
        .await
        .unwrap()
        .resource_version()
        .unwrap();
    let mut quiet = pin!(
        nodes
            .watch(
                &WatchParams::default().fields("metadata.name=none"),
                &version
            )
            .await
            .unwrap()
    );
    let latest = nodes
        .create(&PostParams::default(), &node("b"))
        .await
        .unwrap()
        .resource_version()
        .unwrap();
    let event = tokio::time::timeout(Duration::from_secs(10), quiet.next())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert!(
        matches!(event, WatchEvent::Bookmark(bookmark) if bookmark.metadata.resource_version == latest)
    );
}

#[tokio::test]
async fn requests_are_counted_by_verb_and_resource() {
    let server = ApiServer::start();
    let nodes = Api::<Node>::all(server.client());
    let _ = nodes.get_opt("n").await;
    let _ = nodes.list(&ListParams::default()).await;
    assert_eq!(
        (
            server.count("get", "nodes"),
            server.count("list", "nodes"),
            server.count("watch", "nodes")
        ),
        (1, 1, 0)
    );
}

#[tokio::test]
async fn objects_come_from_yaml_with_their_status() {
    let server = ApiServer::start();
    server
        .apply_yaml("apiVersion: v1\nkind: Node\nmetadata: {name: n}\nstatus: {addresses: [{type: InternalIP, address: 10.0.0.1}]}\n---\n")
        .unwrap();
    let stored = Api::<Node>::all(server.client()).get("n").await.unwrap();
    assert_eq!(
        stored.status.unwrap().addresses.unwrap()[0].address,
        "10.0.0.1"
    );
    assert!(
        server
            .apply_yaml("apiVersion: v1\nkind: Spaceship\nmetadata: {name: n}\n")
            .unwrap_err()
            .contains("Spaceship")
    );
}
