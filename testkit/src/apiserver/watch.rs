//! Watches: what happened since a version, and then what happens.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::Instant};

use super::{
    resource::Resource,
    selector::Selection,
    shared::Shared,
    status::Refusal,
    store::{Change, Store},
};

/// How long a watch that asked for bookmarks goes without one while other objects change.
const BOOKMARK: Duration = Duration::from_secs(1);

/// How long a watch lives that names no limit.
const LIFETIME: Duration = Duration::from_secs(30 * 60);

/// One watch.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) resource: Resource,
    /// Empty: all.
    pub(super) namespace: String,
    pub(super) selection: Selection,
    /// None: begin with all objects that exist.
    pub(super) since: Option<u64>,
    pub(super) bookmarks: bool,
    /// A bookmark marks the end of the objects that existed.
    pub(super) mark_initial_end: bool,
    pub(super) timeout: Option<Duration>,
}

impl Watch {
    /// Sends events until the client, the server or the time ends it.
    pub(super) async fn run(self, shared: Arc<Shared>, sender: mpsc::Sender<Bytes>) {
        let (mut written, mut dropped, mut paused) = (
            shared.written.subscribe(),
            shared.dropped.subscribe(),
            shared.paused.subscribe(),
        );
        let end = Instant::now() + self.timeout.unwrap_or(LIFETIME);
        let mut version = match self.since {
            Some(version) => version,
            None => match self.begin(&shared, &sender).await {
                Some(version) => version,
                None => return,
            },
        };
        let mut told = version;
        loop {
            if paused.wait_for(|paused| !paused).await.is_err() {
                return;
            }
            written.mark_unchanged();
            let Some((events, latest)) = self.events(&shared.store(), version) else {
                let refusal = Refusal::new(
                    410,
                    "Expired",
                    format!("too old resource version: {version}"),
                );
                let _ = sender.send(line("ERROR", &refusal.to_json())).await;
                return;
            };
            version = version.max(latest);
            for event in events {
                told = version;
                if sender.send(event).await.is_err() {
                    return;
                }
            }
            let behind = self.bookmarks && told < version;
            tokio::select! {
                _ = written.changed() => {}
                _ = dropped.changed() => return,
                () = sender.closed() => return,
                () = tokio::time::sleep(BOOKMARK), if behind => {
                    told = version;
                    let _ = sender.send(self.bookmark(version, json!({}))).await;
                }
                () = tokio::time::sleep_until(end) => {
                    if self.bookmarks {
                        let _ = sender.send(self.bookmark(version, json!({}))).await;
                    }
                    return;
                }
            }
        }
    }

    /// Sends what exists, and says as of which version.
    async fn begin(&self, shared: &Shared, sender: &mpsc::Sender<Bytes>) -> Option<u64> {
        let (objects, version) = {
            let store = shared.store();
            (
                store.list(&self.resource, &self.namespace, &self.selection, None),
                store.version(),
            )
        };
        for (_, object) in objects {
            sender.send(line("ADDED", &object)).await.ok()?;
        }
        if self.mark_initial_end {
            sender
                .send(self.bookmark(
                    version,
                    json!({"annotations": {"k8s.io/initial-events-end": "true"}}),
                ))
                .await
                .ok()?;
        }
        Some(version)
    }

    /// Lines for what happened after a version, and the version up to which they tell; none when
    /// that is forgotten.
    fn events(&self, store: &Store, version: u64) -> Option<(Vec<Bytes>, u64)> {
        let changes = store.changes_after(version)?;
        Some((
            changes
                .iter()
                .filter_map(|change| self.event(change))
                .collect(),
            store.version(),
        ))
    }

    /// An object that leaves the selection is deleted for this watch, and one that enters it is
    /// added.
    fn event(&self, change: &Change) -> Option<Bytes> {
        let (group, plural, namespace, _) = &change.key;
        if *group != self.resource.group
            || *plural != self.resource.plural
            || !(self.namespace.is_empty() || *namespace == self.namespace)
        {
            return None;
        }
        let selected = |object: &&Arc<Value>| self.selection.matches(object);
        match (
            change.before.as_ref().filter(selected),
            change.after.as_ref().filter(selected),
        ) {
            (None, Some(after)) => Some(line("ADDED", after)),
            (Some(_), Some(after)) => Some(line("MODIFIED", after)),
            (Some(before), None) => {
                let mut last = (**before).clone();
                last["metadata"]["resourceVersion"] = json!(change.version.to_string());
                Some(line("DELETED", &last))
            }
            (None, None) => None,
        }
    }

    fn bookmark(&self, version: u64, mut metadata: Value) -> Bytes {
        metadata["resourceVersion"] = json!(version.to_string());
        line(
            "BOOKMARK",
            &json!({"apiVersion": self.resource.api_version(), "kind": self.resource.kind, "metadata": metadata}),
        )
    }
}

fn line(kind: &str, object: &Value) -> Bytes {
    let mut text = json!({"type": kind, "object": object}).to_string();
    text.push('\n');
    text.into()
}
