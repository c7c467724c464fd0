//! Objects, their history, and the rules by which they change.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::{Value, json};

use super::{
    apply::Managers,
    metadata::{check_name, content, merged, now, remove, waits_for_nobody},
    resource::Resource,
    selector::Selection,
    status::Refusal,
    write::{Key, Write},
};

/// How many changes a watch may be behind before it is told 410 Gone.
const HISTORY: usize = 50_000;

/// Namespaces that Kubernetes makes itself.
const NAMESPACES: [&str; 4] = ["default", "kube-node-lease", "kube-public", "kube-system"];

/// One change of one object.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) version: u64,
    pub(super) key: Key,
    pub(super) before: Option<Arc<Value>>,
    /// None: deleted.
    pub(super) after: Option<Arc<Value>>,
}

#[derive(Clone, Debug)]
struct Stored {
    object: Arc<Value>,
    managers: Managers,
}

#[derive(Clone, Debug)]
pub(super) struct Store {
    version: u64,
    objects: BTreeMap<Key, Stored>,
    history: Vec<Change>,
    /// Watches that begin before this version are too old.
    oldest: u64,
    /// Counts objects ever made, for unique identifiers.
    made: u64,
}

impl Default for Store {
    fn default() -> Self {
        let mut store = Self {
            version: 1,
            objects: BTreeMap::new(),
            history: Vec::new(),
            oldest: 0,
            made: 0,
        };
        for name in NAMESPACES {
            let key = (
                String::new(),
                "namespaces".to_owned(),
                String::new(),
                name.to_owned(),
            );
            let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}}});
            store.insert(key, object, Managers::default());
        }
        store
    }
}

impl Store {
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn compact(&mut self) {
        self.oldest = self.version;
        self.history.clear();
    }

    /// Changes after a version; none when it is no longer known.
    pub(super) fn changes_after(&self, version: u64) -> Option<&[Change]> {
        if version < self.oldest {
            return None;
        }
        let first = self
            .history
            .partition_point(|change| change.version <= version);
        Some(&self.history[first..])
    }

    pub(super) fn get(&self, write: &Write) -> Result<Arc<Value>, Refusal> {
        self.objects
            .get(&write.key())
            .map(|stored| stored.object.clone())
            .ok_or_else(|| write.not_found())
    }

    /// Objects of a resource in a namespace (empty: in all) that a selection takes, in the order of
    /// their keys, after one of them.
    pub(super) fn list(
        &self,
        resource: &Resource,
        namespace: &str,
        selection: &Selection,
        after: Option<&Key>,
    ) -> Vec<(Key, Arc<Value>)> {
        let own = |key: &&Key| {
            key.0 == resource.group
                && key.1 == resource.plural
                && (namespace.is_empty() || key.2 == namespace)
        };
        let objects = self
            .objects
            .iter()
            .filter(|(key, _)| own(key) && after.is_none_or(|after| *key > after));
        objects
            .filter(|(_, stored)| selection.matches(&stored.object))
            .map(|(key, stored)| (key.clone(), stored.object.clone()))
            .collect()
    }

    pub(super) fn create(
        &mut self,
        write: &Write,
        mut object: Value,
    ) -> Result<Arc<Value>, Refusal> {
        let meta = object["metadata"].as_object().cloned().unwrap_or_default();
        if meta
            .get("resourceVersion")
            .is_some_and(|version| !version.is_null() && version != "")
        {
            return Err(Refusal::new(
                400,
                "BadRequest",
                "resourceVersion should not be set on objects to be created",
            ));
        }
        let name = match (
            meta.get("name").and_then(Value::as_str),
            meta.get("generateName").and_then(Value::as_str),
        ) {
            (Some(name), _) if !name.is_empty() => name.to_owned(),
            (_, Some(prefix)) if !prefix.is_empty() => format!("{prefix}{:05}", self.made),
            _ => {
                return Err(Refusal::new(
                    422,
                    "Invalid",
                    "metadata.name: Required value: name or generateName is required",
                ));
            }
        };
        check_name(&name)?;
        let write = &Write {
            name: &name,
            ..write.clone()
        };
        self.check_namespace(write)?;
        if self.objects.contains_key(&write.key()) {
            let message = format!("{} \"{name}\" already exists", write.resource.plural);
            return Err(Refusal::new(409, "AlreadyExists", message));
        }
        object["metadata"]["name"] = json!(name);
        if write.resource.has_status {
            remove(&mut object, "status");
        }
        let mut managers = Managers::default();
        managers.updated(write.manager, write.status, &Value::Null, &object);
        Ok(self.insert(write.key(), self.finished(write, object), managers))
    }

    fn check_namespace(&self, write: &Write) -> Result<(), Refusal> {
        let key = (
            String::new(),
            "namespaces".to_owned(),
            String::new(),
            write.namespace.to_owned(),
        );
        if write.resource.namespaced && !self.objects.contains_key(&key) {
            return Err(Refusal::new(
                404,
                "NotFound",
                format!("namespaces \"{}\" not found", write.namespace),
            ));
        }
        Ok(())
    }

    /// What every new object has.
    fn finished(&self, write: &Write, mut object: Value) -> Value {
        object["apiVersion"] = json!(write.resource.api_version());
        object["kind"] = json!(write.resource.kind);
        let meta = &mut object["metadata"];
        if write.resource.namespaced {
            meta["namespace"] = json!(write.namespace);
        }
        meta["uid"] = json!(format!("00000000-0000-4000-8000-{:012x}", self.made + 1));
        meta["creationTimestamp"] = json!(now());
        meta["generation"] = json!(1);
        if write.resource.plural == "namespaces" {
            meta["labels"]["kubernetes.io/metadata.name"] = json!(write.name);
        }
        object
    }

    pub(super) fn replace(&mut self, write: &Write, object: Value) -> Result<Arc<Value>, Refusal> {
        let current = self.get(write)?;
        let given = |field: &str| {
            object["metadata"][field]
                .as_str()
                .filter(|text| !text.is_empty())
        };
        if given("name").is_some_and(|name| name != write.name) {
            let message = "the name of the object does not match the name on the URL";
            return Err(Refusal::new(400, "BadRequest", message));
        }
        match given("resourceVersion") {
            Some(version) if current["metadata"]["resourceVersion"] != version => {
                return Err(write.conflict());
            }
            None if write.resource.needs_version() => {
                let message =
                    "metadata.resourceVersion: Invalid value: 0: must be specified for an update";
                return Err(Refusal::new(422, "Invalid", message));
            }
            _ => {}
        }
        if given("uid").is_some_and(|uid| current["metadata"]["uid"] != uid) {
            return Err(write.conflict());
        }
        let mut managers = self.objects[&write.key()].managers.clone();
        let next = merged(write, &current, object);
        managers.updated(write.manager, write.status, &current, &next);
        Ok(self.change(write, next, managers))
    }

    /// Changes an object as a patch says.
    pub(super) fn patch(
        &mut self,
        write: &Write,
        patch: impl FnOnce(&Value) -> Result<Value, Refusal>,
    ) -> Result<Arc<Value>, Refusal> {
        let current = self.get(write)?;
        let patched = patch(&current)?;
        let version = &patched["metadata"]["resourceVersion"];
        if *version != current["metadata"]["resourceVersion"] && !version.is_null() {
            return Err(write.conflict());
        }
        let mut managers = self.objects[&write.key()].managers.clone();
        let next = merged(write, &current, patched);
        managers.updated(write.manager, write.status, &current, &next);
        Ok(self.change(write, next, managers))
    }

    /// Server-side apply.
    pub(super) fn apply(
        &mut self,
        write: &Write,
        applied: &Value,
        force: bool,
    ) -> Result<(Arc<Value>, bool), Refusal> {
        let Ok(current) = self.get(write) else {
            if write.status {
                return Err(write.not_found());
            }
            check_name(write.name)?;
            self.check_namespace(write)?;
            let mut managers = Managers::default();
            let object = managers.apply(
                write.manager,
                write.status,
                &json!({"metadata": {"name": write.name}}),
                applied,
                force,
            )?;
            return Ok((
                self.insert(write.key(), self.finished(write, object), managers),
                true,
            ));
        };
        let version = &applied["metadata"]["resourceVersion"];
        if !version.is_null() && *version != current["metadata"]["resourceVersion"] {
            return Err(write.conflict());
        }
        let mut managers = self.objects[&write.key()].managers.clone();
        let next = managers.apply(write.manager, write.status, &current, applied, force)?;
        let next = merged(write, &current, next);
        Ok((self.change(write, next, managers), false))
    }

    /// Stores the next state of an object, unless nothing changed; removes it when it waited for
    /// its last finalizer.
    fn change(&mut self, write: &Write, mut next: Value, managers: Managers) -> Arc<Value> {
        let key = write.key();
        let Some(stored) = self.objects.get_mut(&key) else {
            return Arc::new(next);
        };
        let current = stored.object.clone();
        if !write.status && content(&current) != content(&next) {
            next["metadata"]["generation"] =
                json!(current["metadata"]["generation"].as_u64().unwrap_or(1) + 1);
        }
        if *current == next {
            stored.managers = managers;
            return current;
        }
        if waits_for_nobody(&next) {
            return self.remove_object(&key);
        }
        self.insert(key, next, managers)
    }

    pub(super) fn delete(
        &mut self,
        write: &Write,
        preconditions: &Value,
    ) -> Result<Arc<Value>, Refusal> {
        let current = self.get(write)?;
        for field in ["uid", "resourceVersion"] {
            if !preconditions[field].is_null() && preconditions[field] != current["metadata"][field]
            {
                let message = format!(
                    "Operation cannot be fulfilled on {} \"{}\": Precondition failed: {field} in precondition: {}, {field} in object meta: {}",
                    write.resource.plural,
                    write.name,
                    preconditions[field],
                    current["metadata"][field]
                );
                return Err(Refusal::new(409, "Conflict", message));
            }
        }
        if current["metadata"]["finalizers"]
            .as_array()
            .is_none_or(Vec::is_empty)
        {
            return Ok(self.remove_object(&write.key()));
        }
        if !current["metadata"]["deletionTimestamp"].is_null() {
            return Ok(current);
        }
        let mut next = (*current).clone();
        next["metadata"]["deletionTimestamp"] = json!(now());
        next["metadata"]["deletionGracePeriodSeconds"] = json!(0);
        let managers = self.objects[&write.key()].managers.clone();
        Ok(self.insert(write.key(), next, managers))
    }

    /// Creates or replaces an object with its status, as a test wants it.
    pub(super) fn put(
        &mut self,
        resource: &Resource,
        mut object: Value,
    ) -> Result<Arc<Value>, Refusal> {
        let name = object["metadata"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        check_name(&name)?;
        let namespace = match object["metadata"]["namespace"].as_str() {
            _ if !resource.namespaced => String::new(),
            Some(namespace) => namespace.to_owned(),
            None => "default".to_owned(),
        };
        let write = Write {
            resource,
            namespace: &namespace,
            name: &name,
            status: false,
            manager: "test",
        };
        remove(&mut object["metadata"], "resourceVersion");
        let Ok(current) = self.get(&write) else {
            self.check_namespace(&write)?;
            let object = self.finished(&write, object);
            let mut managers = Managers::default();
            managers.updated(write.manager, false, &Value::Null, &object);
            return Ok(self.insert(write.key(), object, managers));
        };
        let status = object["status"].clone();
        let mut managers = self.objects[&write.key()].managers.clone();
        let mut next = merged(&write, &current, object);
        if !status.is_null() {
            next["status"] = status;
        }
        managers.updated(write.manager, false, &current, &next);
        Ok(self.change(&write, next, managers))
    }

    fn insert(&mut self, key: Key, mut object: Value, managers: Managers) -> Arc<Value> {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        if !self.objects.contains_key(&key) {
            self.made += 1;
        }
        let object = Arc::new(object);
        let before = self.objects.insert(
            key.clone(),
            Stored {
                object: object.clone(),
                managers,
            },
        );
        self.remember(Change {
            version: self.version,
            key,
            before: before.map(|stored| stored.object),
            after: Some(object.clone()),
        });
        object
    }

    fn remove_object(&mut self, key: &Key) -> Arc<Value> {
        let Some(stored) = self.objects.remove(key) else {
            return Arc::default();
        };
        self.version += 1;
        let mut last = (*stored.object).clone();
        last["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let last = Arc::new(last);
        // A watch shows the deleted object with the version of its deletion.
        self.remember(Change {
            version: self.version,
            key: key.clone(),
            before: Some(last.clone()),
            after: None,
        });
        self.collect_garbage();
        last
    }

    fn remember(&mut self, change: Change) {
        self.history.push(change);
        if self.history.len() > HISTORY {
            self.oldest = self.history[HISTORY / 2].version;
            self.history.drain(..=HISTORY / 2);
        }
    }

    /// Deletes objects whose every owner is gone.
    fn collect_garbage(&mut self) {
        let alive = |uid: &Value| {
            self.objects
                .values()
                .any(|stored| stored.object["metadata"]["uid"] == *uid)
        };
        let orphaned = |object: &Value| {
            object["metadata"]["ownerReferences"]
                .as_array()
                .is_some_and(|owners| {
                    !owners.is_empty() && !owners.iter().any(|owner| alive(&owner["uid"]))
                })
        };
        let orphan = self.objects.iter().find(|(_, stored)| {
            orphaned(&stored.object) && stored.object["metadata"]["deletionTimestamp"].is_null()
        });
        let Some((key, stored)) = orphan.map(|(key, stored)| (key.clone(), stored.clone())) else {
            return;
        };
        if stored.object["metadata"]["finalizers"]
            .as_array()
            .is_none_or(Vec::is_empty)
        {
            self.remove_object(&key);
        } else {
            let mut next = (*stored.object).clone();
            next["metadata"]["deletionTimestamp"] = json!(now());
            self.insert(key, next, stored.managers);
            self.collect_garbage();
        }
    }
}
