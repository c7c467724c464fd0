//! A small API server: lists, watches, selectors, optimistic locks, status subresources, and the faults that daemons must survive.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard},
};

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::support::PATIENCE;

type Answer = Response<BoxBody<Bytes, std::io::Error>>;
type Key = (String, String, String);

/// Lists of pods of every node are held by this name; those of one node by `pods`.
pub(crate) const ALL_PODS: &str = "all pods";

/// One event of a watch: the object before and after.
#[derive(Clone, Debug)]
struct Event {
    version: u64,
    kind: String,
    before: Option<Value>,
    after: Option<Value>,
}

#[derive(Debug, Default)]
struct State {
    version: u64,
    objects: BTreeMap<Key, Value>,
    events: Vec<Event>,
    /// Watches of older versions get 410.
    oldest: u64,
    /// Grows whenever all connections of watches are cut.
    cuts: u64,
    held: BTreeSet<String>,
    waiting: BTreeSet<String>,
    watched: BTreeSet<String>,
    writes: BTreeMap<String, usize>,
    failures: Vec<u16>,
    write_failures: Vec<(String, u16)>,
}

#[derive(Clone, Debug)]
pub(crate) struct Server {
    state: Arc<Mutex<State>>,
    turn: Arc<watch::Sender<u64>>,
}

/// A path and query, taken apart.
#[derive(Clone, Debug)]
struct Target {
    kind: String,
    namespace: String,
    name: Option<String>,
    status: bool,
    query: BTreeMap<String, String>,
}

impl Target {
    fn parse(uri: &http::Uri) -> Self {
        let mut segments: Vec<&str> = uri.path().trim_matches('/').split('/').collect();
        segments.drain(..if segments[0] == "api" { 2 } else { 3 });
        let namespace = if segments[0] == "namespaces" && segments.len() > 2 { segments.drain(..2).next_back().unwrap() } else { "" };
        let query = uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
        let decoded = |text: &str| text.replace("%3D", "=").replace("%2F", "/").replace("%2C", ",");
        Self {
            kind: segments[0].to_owned(),
            namespace: namespace.to_owned(),
            name: segments.get(1).map(|name| (*name).to_owned()),
            status: segments.get(2) == Some(&"status"),
            query: query.map(|(key, value)| (key.to_owned(), decoded(value))).collect(),
        }
    }

    fn key(&self, name: &str) -> Key {
        (self.kind.clone(), self.namespace.clone(), name.to_owned())
    }

    fn covers(&self, kind: &str, object: &Value) -> bool {
        let meta = &object["metadata"];
        let selected = |selector: &str, value: &dyn Fn(&str) -> Option<String>| {
            let terms = self.query.get(selector).into_iter().flat_map(|terms| terms.split(','));
            terms.filter_map(|term| term.split_once('=')).all(|(key, wanted)| value(key).as_deref() == Some(wanted))
        };
        let text = |value: &Value| value.as_str().map(str::to_owned);
        self.kind == kind
            && (self.namespace.is_empty() || meta["namespace"] == self.namespace.as_str())
            && selected("labelSelector", &|key| text(&meta["labels"][key]))
            && selected("fieldSelector", &|key| text(object.pointer(&format!("/{}", key.replace('.', "/")))?))
    }
}

impl Server {
    pub(crate) fn start() -> Self {
        let server = Self { state: Arc::default(), turn: Arc::new(watch::Sender::new(0)) };
        server.lock().version = 1;
        server
    }

    pub(crate) fn client(&self) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move { Ok::<_, Infallible>(server.answer(request).await) }
        });
        Client::new(service, "default")
    }

    /// Lists of a kind wait from now on.
    pub(crate) fn hold_lists(&self, kind: &str) {
        self.lock().held.insert(kind.to_owned());
    }

    pub(crate) fn release_lists(&self, kind: &str) {
        self.lock().held.remove(kind);
        self.turned();
    }

    pub(crate) async fn until_list_waits(&self, kind: &str) {
        self.until(|state| state.waiting.contains(kind)).await;
    }

    pub(crate) async fn until_watched(&self, kind: &str) {
        self.until(|state| state.watched.contains(kind)).await;
    }

    /// How often objects of a kind were written, or tried to.
    pub(crate) fn writes(&self, kind: &str) -> usize {
        self.lock().writes.get(kind).copied().unwrap_or_default()
    }

    /// All watches end with 410, and no version that was handed out is served any more.
    pub(crate) fn expire_watches(&self) {
        let mut state = self.lock();
        state.version += 1;
        state.oldest = state.version;
        drop(state);
        self.turned();
    }

    /// All connections of watches are cut.
    pub(crate) fn break_watches(&self) {
        self.lock().cuts += 1;
        self.turned();
    }

    /// The next requests are answered with an error.
    pub(crate) fn fail_next(&self, times: usize, code: u16) {
        self.lock().failures.extend(std::iter::repeat_n(code, times));
    }

    /// The next writes of a kind are answered with an error.
    pub(crate) fn fail_writes(&self, kind: &str, times: usize, code: u16) {
        self.lock().write_failures.extend(std::iter::repeat_n((kind.to_owned(), code), times));
    }

    /// Stores an object as it is, whatever its type says.
    pub(crate) fn put_raw(&self, kind: &str, object: Value) {
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        self.store((kind.to_owned(), String::new(), name), object);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn turned(&self) {
        self.turn.send_modify(|turn| *turn += 1);
    }

    async fn until(&self, so: impl Fn(&State) -> bool) {
        let mut turn = self.turn.subscribe();
        let waited = tokio::time::timeout(PATIENCE, turn.wait_for(|_| so(&self.lock()))).await;
        waited.expect("the server never was asked").unwrap();
    }

    async fn answer(&self, request: Request<Body>) -> Answer {
        let target = Target::parse(request.uri());
        let method = request.method().clone();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        if let Some(code) = self.failure(&method, &target) {
            return refuse(code, "injected");
        }
        match (method, target.name.clone()) {
            (Method::GET, None) if target.query.get("watch").is_some_and(|watch| watch == "true") => self.watch(target),
            (Method::GET, None) => self.list(&target).await,
            (Method::GET, Some(name)) => match self.lock().objects.get(&target.key(&name)) {
                Some(object) => reply(StatusCode::OK, object),
                None => refuse(404, "NotFound"),
            },
            (Method::POST, _) => self.create(&target, body),
            (Method::PUT, Some(name)) => self.replace(&target, &name, body),
            (Method::PATCH, Some(name)) => self.patch(&target, &name, &body),
            (Method::DELETE, Some(name)) => self.delete(&target, &name, &body),
            _ => refuse(405, "MethodNotAllowed"),
        }
    }

    fn failure(&self, method: &Method, target: &Target) -> Option<u16> {
        let mut state = self.lock();
        if method != Method::GET {
            *state.writes.entry(target.kind.clone()).or_default() += 1;
            if let Some(index) = state.write_failures.iter().position(|(kind, _)| *kind == target.kind) {
                return Some(state.write_failures.remove(index).1);
            }
        }
        state.failures.pop()
    }

    async fn list(&self, target: &Target) -> Answer {
        let all_pods = target.kind == "pods" && !target.query.contains_key("fieldSelector");
        let name = if all_pods { ALL_PODS } else { &target.kind };
        if self.lock().held.contains(name) {
            self.lock().waiting.insert(name.to_owned());
            self.turned();
            let mut turn = self.turn.subscribe();
            turn.wait_for(|_| !self.lock().held.contains(name)).await.unwrap();
        }
        let state = self.lock();
        let items: Vec<&Value> =
            state.objects.iter().filter(|((kind, ..), object)| target.covers(kind, object)).map(|(_, object)| object).collect();
        let version = state.version.to_string();
        reply(StatusCode::OK, &json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": version}, "items": items}))
    }

    fn watch(&self, target: Target) -> Answer {
        self.lock().watched.insert(target.kind.clone());
        self.turned();
        let since = target.query.get("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or_default();
        let lines = self.events(target, since).map(|line| {
            line.map(|event| hyper::body::Frame::data(Bytes::from(format!("{event}\n"))))
                .map_err(|()| std::io::Error::other("connection reset"))
        });
        Response::new(BodyExt::boxed(StreamBody::new(lines)))
    }

    /// Events after a version; ends after an expiry or a cut.
    fn events(&self, target: Target, since: u64) -> impl Stream<Item = Result<Value, ()>> + Send + Sync + use<> {
        let (server, turn, cuts) = (self.clone(), self.turn.subscribe(), self.lock().cuts);
        stream::unfold((since, false, turn), move |(since, ended, mut turn)| {
            let (server, target) = (server.clone(), target.clone());
            async move {
                loop {
                    if ended {
                        return None;
                    }
                    turn.mark_unchanged();
                    let next = {
                        let state = server.lock();
                        if state.oldest > since {
                            let gone = json!({"type": "ERROR", "object": {"code": 410, "reason": "Expired", "status": "Failure", "message": "too old"}});
                            return Some((Ok(gone), (since, true, turn)));
                        }
                        if state.cuts > cuts {
                            return Some((Err(()), (since, true, turn)));
                        }
                        state.events.iter().find(|event| event.version > since && event.kind == target.kind).cloned()
                    };
                    let Some(event) = next else {
                        turn.changed().await.ok()?;
                        continue;
                    };
                    let covered = |object: &Option<Value>| object.as_ref().is_some_and(|object| target.covers(&event.kind, object));
                    let (word, object) = match (covered(&event.before), covered(&event.after)) {
                        (false, true) => ("ADDED", event.after),
                        (true, true) => ("MODIFIED", event.after),
                        (true, false) => ("DELETED", event.after.or(event.before)),
                        (false, false) => return Some((Ok(bookmark(&target, event.version)), (event.version, false, turn))),
                    };
                    let mut object = object.unwrap();
                    object["metadata"]["resourceVersion"] = json!(event.version.to_string());
                    return Some((Ok(json!({"type": word, "object": object})), (event.version, false, turn)));
                }
            }
        })
    }

    fn store(&self, key: Key, mut object: Value) -> Value {
        let mut state = self.lock();
        let before = state.objects.get(&key).cloned();
        object["metadata"]["resourceVersion"] = before.as_ref().map_or(Value::Null, |before| before["metadata"]["resourceVersion"].clone());
        if before.as_ref() == Some(&object) {
            return object;
        }
        state.version += 1;
        let version = state.version;
        let meta = &mut object["metadata"];
        meta["resourceVersion"] = json!(version.to_string());
        if before.is_none() {
            meta["uid"] = json!(format!("00000000-0000-0000-0000-{version:012}"));
            meta["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
            meta["generation"] = json!(1);
        }
        state.events.push(Event { version, kind: key.0.clone(), before, after: Some(object.clone()) });
        state.objects.insert(key, object.clone());
        drop(state);
        self.turned();
        object
    }

    fn create(&self, target: &Target, mut object: Value) -> Answer {
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        if self.lock().objects.contains_key(&target.key(&name)) {
            return refuse(409, "AlreadyExists");
        }
        if !target.namespace.is_empty() {
            object["metadata"]["namespace"] = json!(target.namespace);
        }
        reply(StatusCode::CREATED, &self.store(target.key(&name), object))
    }

    fn replace(&self, target: &Target, name: &str, object: Value) -> Answer {
        let held = self.lock().objects.get(&target.key(name)).cloned();
        match held {
            None => refuse(404, "NotFound"),
            Some(held) if held["metadata"]["resourceVersion"] != object["metadata"]["resourceVersion"] => refuse(409, "Conflict"),
            Some(_) => reply(StatusCode::OK, &self.store(target.key(name), object)),
        }
    }

    /// Merges; an apply may create, except through the status subresource.
    fn patch(&self, target: &Target, name: &str, patch: &Value) -> Answer {
        let apply = target.query.contains_key("fieldManager") && patch.get("kind").is_some();
        let held = self.lock().objects.get(&target.key(name)).cloned();
        let mut object = match held {
            Some(held) => held,
            None if apply && !target.status => return self.create(target, patch.clone()),
            None => return refuse(404, "NotFound"),
        };
        if target.status {
            merge(&mut object["status"], &patch["status"]);
        } else {
            let status = object.get("status").cloned();
            merge(&mut object, patch);
            if let Some(status) = status {
                object["status"] = status;
            }
        }
        reply(StatusCode::OK, &self.store(target.key(name), object))
    }

    fn delete(&self, target: &Target, name: &str, options: &Value) -> Answer {
        let mut state = self.lock();
        let key = target.key(name);
        let Some(object) = state.objects.get(&key).cloned() else { return refuse(404, "NotFound") };
        let uid = &options["preconditions"]["uid"];
        if !uid.is_null() && *uid != object["metadata"]["uid"] {
            return refuse(409, "Conflict");
        }
        state.objects.remove(&key);
        state.version += 1;
        let version = state.version;
        state.events.push(Event { version, kind: key.0, before: Some(object.clone()), after: None });
        drop(state);
        self.turned();
        reply(StatusCode::OK, &object)
    }
}

/// RFC 7396.
fn merge(object: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *object = patch.clone();
        return;
    };
    if !object.is_object() {
        *object = json!({});
    }
    for (name, value) in fields {
        if value.is_null() {
            object.as_object_mut().unwrap().remove(name);
        } else {
            merge(&mut object[name], value);
        }
    }
}

fn bookmark(target: &Target, version: u64) -> Value {
    let meta = json!({"resourceVersion": version.to_string()});
    json!({"type": "BOOKMARK", "object": {"apiVersion": "v1", "kind": target.kind, "metadata": meta}})
}

fn reply(code: StatusCode, object: &Value) -> Answer {
    let body = Full::new(Bytes::from(object.to_string())).map_err(|never| match never {});
    Response::builder().status(code).header("content-type", "application/json").body(body.boxed()).unwrap()
}

fn refuse(code: u16, reason: &str) -> Answer {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": reason});
    reply(StatusCode::from_u16(code).unwrap(), &status)
}
