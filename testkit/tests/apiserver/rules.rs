//! What every API server does.

use std::{collections::BTreeMap, pin::pin, time::Duration};

use egressgateway::api::{EgressGateway, EgressGatewayPolicy, EgressNode};
use futures::{Stream, StreamExt, TryStreamExt};
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{ConfigMap, Node, Pod},
};
use kube::{
    Api, Client, ResourceExt,
    api::{
        ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams,
        Preconditions, WatchEvent, WatchParams,
    },
    runtime::watcher,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

fn object<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

fn config_map(name: &str, labels: &[(&str, &str)]) -> ConfigMap {
    let labels: BTreeMap<&str, &str> = labels.iter().copied().collect();
    object(
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": labels}, "data": {"a": "1"}}),
    )
}

fn gateway(name: &str) -> EgressGateway {
    object(json!({
        "apiVersion": "egressgateway.spidernet.io/v1", "kind": "EgressGateway", "metadata": {"name": name},
        "spec": {"nodeSelector": {"matchLabels": {"egress": "true"}}},
    }))
}

fn maps(client: Client) -> Api<ConfigMap> {
    Api::namespaced(client, "default")
}

#[track_caller]
fn refusal<T: std::fmt::Debug>(result: kube::Result<T>) -> (u16, String) {
    match result {
        Err(kube::Error::Api(status)) => (
            status.code,
            format!("{}: {}", status.reason, status.message),
        ),
        other => panic!("expected a refusal, not {other:?}"),
    }
}

async fn create<K>(api: &Api<K>, object: &K) -> K
where
    K: Clone + DeserializeOwned + serde::Serialize + std::fmt::Debug,
{
    api.create(&PostParams::default(), object).await.unwrap()
}

async fn next<S: Stream + Unpin>(stream: &mut S) -> S::Item {
    tokio::time::timeout(Duration::from_secs(10), stream.next())
        .await
        .expect("an event in time")
        .expect("an event")
}

pub(crate) async fn objects_get_identity_and_a_version_at_birth(client: Client) {
    let made = create(&Api::<EgressGateway>::all(client), &gateway("a")).await;
    assert!(
        made.uid().is_some()
            && made.resource_version().is_some()
            && made.creation_timestamp().is_some()
    );
    assert_eq!(made.metadata.generation, Some(1));
}

pub(crate) async fn a_name_is_taken_once_and_must_be_valid(client: Client) {
    let maps = maps(client);
    create(&maps, &config_map("a", &[])).await;
    let again = refusal(
        maps.create(&PostParams::default(), &config_map("a", &[]))
            .await,
    );
    assert_eq!(again.0, 409);
    assert!(again.1.starts_with("AlreadyExists"), "{}", again.1);
    assert_eq!(
        refusal(
            maps.create(&PostParams::default(), &config_map("No_Name", &[]))
                .await
        )
        .0,
        422
    );
    assert_eq!(refusal(maps.get("b").await).0, 404);
}

pub(crate) async fn a_namespaced_object_needs_its_namespace(client: Client) {
    let refused = refusal(
        Api::namespaced(client, "nowhere")
            .create(&PostParams::default(), &config_map("a", &[]))
            .await,
    );
    assert_eq!(refused.0, 404);
    assert!(refused.1.contains("nowhere"), "{}", refused.1);
}

pub(crate) async fn an_update_of_an_old_version_is_a_conflict(client: Client) {
    let gateways = Api::<EgressGateway>::all(client);
    let old = create(&gateways, &gateway("a")).await;
    let mut new = old.clone();
    new.labels_mut().insert("x".into(), "y".into());
    gateways
        .replace("a", &PostParams::default(), &new)
        .await
        .unwrap();
    let refused = refusal(gateways.replace("a", &PostParams::default(), &old).await);
    assert_eq!(refused.0, 409);
    assert!(refused.1.starts_with("Conflict"), "{}", refused.1);
    assert_eq!(
        refusal(
            gateways
                .replace("a", &PostParams::default(), &gateway("a"))
                .await
        )
        .0,
        422,
        "a custom resource needs a version"
    );
}

pub(crate) async fn an_update_that_changes_nothing_keeps_the_version(client: Client) {
    let maps = maps(client);
    let made = create(&maps, &config_map("a", &[])).await;
    let same = maps
        .replace("a", &PostParams::default(), &made)
        .await
        .unwrap();
    assert_eq!(same.resource_version(), made.resource_version());
}

pub(crate) async fn spec_and_status_are_written_apart_and_only_the_spec_counts_generations(
    client: Client,
) {
    let nodes = Api::<EgressNode>::all(client);
    let node: EgressNode = object(json!({
        "apiVersion": "egressgateway.spidernet.io/v1", "kind": "EgressNode", "metadata": {"name": "n"}, "spec": {}, "status": {"phase": "Succeeded"},
    }));
    let made = create(&nodes, &node).await;
    assert!(
        made.status.is_none(),
        "the status is not part of the object that is made"
    );
    let status = json!({"status": {"phase": "Pending"}, "metadata": {"labels": {"x": "y"}}});
    let changed = nodes
        .patch_status("n", &PatchParams::default(), &Patch::Merge(status))
        .await
        .unwrap();
    assert!(changed.status.is_some());
    assert_eq!(changed.metadata.generation, Some(1));
    let labelled = nodes
        .patch(
            "n",
            &PatchParams::default(),
            &Patch::Merge(json!({"metadata": {"labels": {"x": "z"}}, "status": null})),
        )
        .await
        .unwrap();
    assert!(labelled.status.is_some(), "the status stays");
    assert_eq!(
        labelled.metadata.generation,
        Some(1),
        "labels are not the spec"
    );
    assert_ne!(labelled.resource_version(), changed.resource_version());
}

pub(crate) async fn a_merge_patch_removes_what_it_sets_to_null(client: Client) {
    let maps = maps(client);
    create(&maps, &config_map("a", &[("x", "y"), ("z", "w")])).await;
    let patch = json!({"metadata": {"labels": {"x": null}}, "data": {"b": "2"}});
    let patched = maps
        .patch("a", &PatchParams::default(), &Patch::Merge(patch))
        .await
        .unwrap();
    assert_eq!(patched.labels().keys().collect::<Vec<_>>(), ["z"]);
    assert_eq!(patched.data.unwrap().len(), 2);
}

pub(crate) async fn two_appliers_own_their_fields(client: Client) {
    let maps = maps(client);
    let apply = |manager: &'static str, force: bool, data: Value| {
        let maps = maps.clone();
        async move {
            let body = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data});
            let parameters = PatchParams {
                force,
                ..PatchParams::apply(manager)
            };
            maps.patch("a", &parameters, &Patch::Apply(body)).await
        }
    };
    apply("one", false, json!({"x": "1", "y": "1"}))
        .await
        .unwrap();
    assert_eq!(refusal(apply("two", false, json!({"x": "2"})).await).0, 409);
    apply("two", true, json!({"x": "2", "z": "2"}))
        .await
        .unwrap();
    let last = apply("one", false, json!({})).await.unwrap();
    let data: BTreeMap<String, String> = [("x", "2"), ("z", "2")]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
    assert_eq!(last.data.unwrap(), data);
}

pub(crate) async fn an_apply_that_names_an_old_version_is_a_conflict(client: Client) {
    let gateways = Api::<EgressGateway>::all(client);
    let version = create(&gateways, &gateway("a")).await.resource_version();
    let apply = |version: Option<String>, mark: u32| {
        let mut body = json!({
            "apiVersion": "egressgateway.spidernet.io/v1", "kind": "EgressGateway", "metadata": {"name": "a"}, "status": {"mark": mark},
        });
        if let Some(version) = version {
            body["metadata"]["resourceVersion"] = version.into();
        }
        let gateways = gateways.clone();
        async move {
            gateways
                .patch_status(
                    "a",
                    &PatchParams::apply("test").force(),
                    &Patch::Apply(body),
                )
                .await
        }
    };
    let newer = apply(version.clone(), 0x1100_0000)
        .await
        .unwrap()
        .resource_version();
    let (code, text) = refusal(apply(version, 0x1300_0000).await);
    assert_eq!(code, 409, "{text}");
    assert!(text.contains("the object has been modified"), "{text}");
    assert!(apply(newer, 0x1300_0000).await.is_ok());
    assert!(
        apply(None, 0x1400_0000).await.is_ok(),
        "who names none does not care"
    );
}

pub(crate) async fn apply_creates_an_object_but_not_its_status(client: Client) {
    let nodes = Api::<EgressNode>::all(client);
    let body = json!({"apiVersion": "egressgateway.spidernet.io/v1", "kind": "EgressNode", "metadata": {"name": "n"}, "spec": {}});
    let parameters = PatchParams::apply("test");
    assert_eq!(
        refusal(
            nodes
                .patch_status("n", &parameters, &Patch::Apply(&body))
                .await
        )
        .0,
        404
    );
    assert!(
        nodes
            .patch("n", &parameters, &Patch::Apply(&body))
            .await
            .unwrap()
            .uid()
            .is_some()
    );
}

pub(crate) async fn a_finalizer_holds_a_deleted_object(client: Client) {
    let maps = maps(client);
    let mut map = config_map("a", &[]);
    map.finalizers_mut().push("test.example/hold".into());
    create(&maps, &map).await;
    maps.delete("a", &DeleteParams::default()).await.unwrap();
    assert!(
        maps.get("a")
            .await
            .unwrap()
            .metadata
            .deletion_timestamp
            .is_some()
    );
    maps.patch(
        "a",
        &PatchParams::default(),
        &Patch::Merge(json!({"metadata": {"finalizers": null}})),
    )
    .await
    .unwrap();
    assert!(maps.get_opt("a").await.unwrap().is_none());
}

/// On a real server the controller manager does it: the check holds servers that have one.
pub(crate) async fn owned_objects_go_with_their_owner(client: Client) {
    let maps = maps(client);
    let owner = create(&maps, &config_map("owner", &[])).await;
    let mut dependent = config_map("owned", &[]);
    let reference =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner.uid()});
    dependent.owner_references_mut().push(object(reference));
    create(&maps, &dependent).await;
    maps.delete("owner", &DeleteParams::default())
        .await
        .unwrap();
    assert!(maps.get_opt("owned").await.unwrap().is_none());
}

pub(crate) async fn a_deletion_for_another_object_of_the_name_is_refused(client: Client) {
    let maps = maps(client);
    let made = create(&maps, &config_map("a", &[])).await;
    let for_uid = |uid: Option<String>| DeleteParams {
        preconditions: Some(Preconditions {
            uid,
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    assert_eq!(
        refusal(maps.delete("a", &for_uid(Some("another".into()))).await).0,
        409
    );
    maps.delete("a", &for_uid(made.uid())).await.unwrap();
}

pub(crate) async fn lists_select_by_label_and_field(client: Client) {
    let pods = Api::<Pod>::namespaced(client, "default");
    for (name, node, app) in [("a", "n1", "web"), ("b", "n2", "web"), ("c", "n1", "db")] {
        let containers = json!([{"name": "main", "image": "none"}]);
        let spec = json!({"nodeName": node, "containers": containers});
        create(
            &pods,
            &object(json!({"metadata": {"name": name, "labels": {"app": app}}, "spec": spec})),
        )
        .await;
    }
    let names = |parameters: ListParams| {
        let pods = pods.clone();
        async move {
            pods.list(&parameters)
                .await
                .unwrap()
                .iter()
                .map(ResourceExt::name_any)
                .collect::<Vec<_>>()
        }
    };
    assert_eq!(
        names(ListParams::default().fields("spec.nodeName=n1")).await,
        ["a", "c"]
    );
    assert_eq!(
        names(ListParams::default().labels("app in (web)")).await,
        ["a", "b"]
    );
    assert_eq!(
        names(
            ListParams::default()
                .labels("app!=web")
                .fields("spec.nodeName=n1")
        )
        .await,
        ["c"]
    );
}

pub(crate) async fn long_lists_come_in_pages(client: Client) {
    let maps = maps(client);
    for number in 0..5 {
        create(
            &maps,
            &config_map(&format!("m{number}"), &[("page", "yes")]),
        )
        .await;
    }
    let mut parameters = ListParams::default().labels("page=yes").limit(2);
    let mut seen = Vec::new();
    loop {
        let page = maps.list(&parameters).await.unwrap();
        assert!(page.items.len() <= 2);
        seen.extend(page.iter().map(ResourceExt::name_any));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => parameters = parameters.continue_token(&token),
            None => break,
        }
    }
    assert_eq!(seen, ["m0", "m1", "m2", "m3", "m4"]);
}

pub(crate) async fn a_watch_continues_where_a_list_ended(client: Client) {
    let maps = maps(client);
    create(&maps, &config_map("before", &[])).await;
    let version = maps
        .list(&ListParams::default())
        .await
        .unwrap()
        .metadata
        .resource_version
        .unwrap();
    create(&maps, &config_map("after", &[])).await;
    maps.delete("before", &DeleteParams::default())
        .await
        .unwrap();
    let mut events = pin!(maps.watch(&WatchParams::default(), &version).await.unwrap());
    assert!(
        matches!(next(&mut events).await.unwrap(), WatchEvent::Added(map) if map.name_any() == "after")
    );
    let WatchEvent::Deleted(last) = next(&mut events).await.unwrap() else {
        panic!("not a deletion")
    };
    assert!(
        last.resource_version().unwrap().parse::<u64>().unwrap() > version.parse().unwrap(),
        "the version of the deletion"
    );
}

pub(crate) async fn an_object_enters_and_leaves_a_selecting_watch(client: Client) {
    let maps = maps(client);
    let version = create(&maps, &config_map("a", &[]))
        .await
        .resource_version()
        .unwrap();
    let mut events = pin!(
        maps.watch(&WatchParams::default().labels("on=yes"), &version)
            .await
            .unwrap()
    );
    for label in [json!("yes"), json!("no")] {
        let patch = json!({"metadata": {"labels": {"on": label}}});
        maps.patch("a", &PatchParams::default(), &Patch::Merge(patch))
            .await
            .unwrap();
    }
    assert!(matches!(
        next(&mut events).await.unwrap(),
        WatchEvent::Added(_)
    ));
    assert!(matches!(
        next(&mut events).await.unwrap(),
        WatchEvent::Deleted(_)
    ));
}

pub(crate) async fn a_watcher_sees_all_there_is_and_then_changes(client: Client) {
    let nodes = Api::<Node>::all(client);
    create(&nodes, &object(json!({"metadata": {"name": "n1"}}))).await;
    sees_all_and_changes(nodes, watcher::Config::default()).await;
}

pub(crate) async fn streaming_lists_mark_the_end_of_what_existed(client: Client) {
    let nodes = Api::<Node>::all(client);
    create(&nodes, &object(json!({"metadata": {"name": "n1"}}))).await;
    sees_all_and_changes(nodes, watcher::Config::default().streaming_lists()).await;
}

async fn sees_all_and_changes(nodes: Api<Node>, config: watcher::Config) {
    let mut events = pin!(watcher(nodes.clone(), config));
    assert!(matches!(
        next(&mut events).await.unwrap(),
        watcher::Event::Init
    ));
    assert!(
        matches!(next(&mut events).await.unwrap(), watcher::Event::InitApply(node) if node.name_any() == "n1")
    );
    assert!(matches!(
        next(&mut events).await.unwrap(),
        watcher::Event::InitDone
    ));
    create(&nodes, &object(json!({"metadata": {"name": "n2"}}))).await;
    assert!(
        matches!(next(&mut events).await.unwrap(), watcher::Event::Apply(node) if node.name_any() == "n2")
    );
    nodes.delete("n1", &DeleteParams::default()).await.unwrap();
    assert!(
        matches!(events.try_next().await.unwrap(), Some(watcher::Event::Delete(node)) if node.name_any() == "n1")
    );
}

pub(crate) async fn schema_and_rules_of_our_kinds_are_enforced(client: Client) {
    let policies =
        Api::<DynamicObject>::all_with(client, &ApiResource::erase::<EgressGatewayPolicy>(&()));
    let policy = |spec: Value| {
        object::<DynamicObject>(
            json!({"apiVersion": "egressgateway.spidernet.io/v1", "kind": "EgressGatewayPolicy", "metadata": {"name": "p"}, "spec": spec}),
        )
    };
    for (spec, said) in [
        (
            json!({"appliedTo": {"podSelector": {"matchLabels": {"a": "b"}}}, "destCIDR": "10.0.0.0/8"}),
            "destCIDR",
        ),
        (
            json!({"appliedTo": {"podSelector": {"matchLabels": {"a": "b"}}}, "destCIDR": ["10.0.0.300/8"]}),
            "destCIDR",
        ),
    ] {
        let (code, message) = refusal(policies.create(&PostParams::default(), &policy(spec)).await);
        assert_eq!(code, 422, "{message}");
        assert!(message.contains(said), "{message}");
    }
}

pub(crate) async fn unknown_fields_are_dropped(client: Client) {
    let gateways =
        Api::<DynamicObject>::all_with(client, &ApiResource::erase::<EgressGateway>(&()));
    let mut wanted = serde_json::to_value(gateway("a")).unwrap();
    wanted["spec"]["unknown"] = json!(1);
    let made = gateways
        .create(&PostParams::default(), &object(wanted))
        .await
        .unwrap();
    assert!(made.data["spec"].get("unknown").is_none());
}

pub(crate) async fn a_dry_run_changes_nothing(client: Client) {
    let maps = maps(client);
    let dry = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    assert!(
        maps.create(&dry, &config_map("a", &[]))
            .await
            .unwrap()
            .uid()
            .is_some()
    );
    assert!(maps.get_opt("a").await.unwrap().is_none());
}

pub(crate) async fn a_lease_is_replaced_on_its_version_only(client: Client) {
    let leases = Api::<Lease>::namespaced(client, "kube-system");
    let lease: Lease = object(json!({"metadata": {"name": "l"}, "spec": {"holderIdentity": "a"}}));
    create(&leases, &lease).await;
    assert_eq!(
        refusal(leases.replace("l", &PostParams::default(), &lease).await).0,
        422
    );
}
