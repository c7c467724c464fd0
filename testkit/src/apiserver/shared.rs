//! The state behind all connections of one server.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde_json::Value;
use tokio::sync::watch as channel;

use super::{
    fault::{Effect, Fault},
    resource::{Resource, Resources},
    selector::Selection,
    store::Store,
};

/// How many requests there were, by verb and resource.
pub type Requests = BTreeMap<(String, String), usize>;

/// What the server, its connections and its watches share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) store: Mutex<Store>,
    pub(super) resources: Mutex<Resources>,
    pub(super) faults: Mutex<Vec<Fault>>,
    pub(super) requests: channel::Sender<Requests>,
    /// Resource version of the latest write: watches wait for it.
    pub(super) written: channel::Sender<u64>,
    /// Counts up when all watches shall end.
    pub(super) dropped: channel::Sender<u64>,
    /// Counts up when hanging requests may go on.
    pub(super) released: channel::Sender<u64>,
    pub(super) paused: channel::Sender<bool>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            store: Mutex::default(),
            resources: Mutex::new(Resources::default()),
            faults: Mutex::default(),
            requests: channel::Sender::default(),
            written: channel::Sender::new(0),
            dropped: channel::Sender::new(0),
            released: channel::Sender::new(0),
            paused: channel::Sender::new(false),
        }
    }
}

impl Shared {
    pub(super) fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn resources(&self) -> MutexGuard<'_, Resources> {
        self.resources
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn list(&self, kind: &str) -> Vec<Value> {
        let Some(resource) = self.resources().of_kind(kind) else {
            return Vec::new();
        };
        let objects = self
            .store()
            .list(&resource, "", &Selection::default(), None);
        objects
            .into_iter()
            .map(|(_, object)| (*object).clone())
            .collect()
    }

    pub(super) fn count(&self, verb: &str, resource: &str) {
        self.requests.send_modify(|requests| {
            *requests
                .entry((verb.to_owned(), resource.to_owned()))
                .or_default() += 1;
        });
    }

    /// Uses up a fault that a request meets.
    pub(super) fn meet_fault(&self, verb: &str, resource: &str, query: &str) -> Option<Effect> {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        let fault = faults
            .iter_mut()
            .find(|fault| fault.meets(verb, resource, query))?;
        fault.times -= 1;
        Some(fault.effect)
    }

    /// Serves the kind that a stored definition defines.
    pub(super) fn defined(&self, resource: &Resource, object: &Value) {
        if resource.kind == "CustomResourceDefinition" {
            self.resources().define(object);
        }
    }
}
