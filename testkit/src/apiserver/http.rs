//! HTTP: requests in, answers out.

use std::{collections::BTreeMap, io, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::stream;
use http::{Method, Request, Response, StatusCode, header::CONTENT_TYPE, request::Parts};
use http_body_util::{BodyExt, Full, Limited, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, mpsc},
};

use super::{
    admission,
    fault::Effect,
    patch::Patch,
    resource::Resource,
    selector::Selection,
    shared::Shared,
    status::Refusal,
    store::Store,
    watch::Watch,
    write::{Key, Write},
};

/// Bodies above this are refused, as etcd's limit makes the real server do.
const BODY_LIMIT: usize = 3 * 1024 * 1024;

/// Events that a watch may be ahead of its client.
const WATCH_BUFFER: usize = 64;

type Body = BoxBody<Bytes, io::Error>;

/// Serves until told to stop; connections end with it.
pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>, stop: Arc<Notify>) {
    let accept = async {
        loop {
            if let Ok((connection, _)) = listener.accept().await {
                let _ = connection.set_nodelay(true);
                tokio::spawn(converse(connection, shared.clone()));
            }
        }
    };
    tokio::select! {
        () = accept => {}
        () = stop.notified() => {}
    }
}

async fn converse(connection: TcpStream, shared: Arc<Shared>) {
    let service = hyper::service::service_fn(move |request| answer(shared.clone(), request));
    // An error is a client that went away, or a reset that a test asked for.
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(connection), service)
        .await;
}

/// A request, understood.
#[derive(Debug)]
struct Call {
    resource: Resource,
    namespace: String,
    name: Option<String>,
    status: bool,
    query: BTreeMap<String, String>,
    manager: String,
}

impl Call {
    /// The call that a path means; none when it is not about objects.
    fn parse(shared: &Shared, parts: &Parts) -> Option<Self> {
        let segments: Vec<&str> = parts
            .uri
            .path()
            .split('/')
            .filter(|part| !part.is_empty())
            .collect();
        let (group, version, rest) = match segments.as_slice() {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return None,
        };
        let (namespace, rest) = match rest {
            ["namespaces", namespace, rest @ ..]
                if rest.first().is_some_and(|next| *next != "status") =>
            {
                (*namespace, rest)
            }
            rest => ("", rest),
        };
        let (plural, name, status) = match rest {
            [plural] => (*plural, None, false),
            [plural, name] => (*plural, Some((*name).to_owned()), false),
            [plural, name, "status"] => (*plural, Some((*name).to_owned()), true),
            _ => return None,
        };
        let resource = shared
            .resources()
            .find(group, plural)
            .filter(|resource| resource.version == version)?;
        if status && !resource.has_status || !resource.namespaced && !namespace.is_empty() {
            return None;
        }
        let query: BTreeMap<String, String> =
            form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes())
                .into_owned()
                .collect();
        let agent = parts
            .headers
            .get(http::header::USER_AGENT)
            .and_then(|agent| agent.to_str().ok())
            .unwrap_or("unknown");
        let manager = query
            .get("fieldManager")
            .cloned()
            .unwrap_or_else(|| agent.split('/').next().unwrap_or_default().to_owned());
        Some(Self {
            resource,
            namespace: namespace.to_owned(),
            name,
            status,
            query,
            manager,
        })
    }

    fn flag(&self, name: &str) -> bool {
        self.query
            .get(name)
            .is_some_and(|value| value == "true" || value == "1")
    }

    fn text(&self, name: &str) -> &str {
        self.query.get(name).map(String::as_str).unwrap_or_default()
    }

    fn verb(&self, method: &Method) -> Option<&'static str> {
        match (method.as_str(), self.name.is_some()) {
            ("GET", true) => Some("get"),
            ("GET", false) if self.flag("watch") => Some("watch"),
            ("GET", false) => Some("list"),
            ("POST", false) => Some("create"),
            ("PUT", true) => Some("update"),
            ("PATCH", true) => Some("patch"),
            ("DELETE", true) => Some("delete"),
            ("DELETE", false) => Some("deletecollection"),
            _ => None,
        }
    }

    fn resource_name(&self) -> String {
        if self.status {
            format!("{}/status", self.resource.plural)
        } else {
            self.resource.plural.clone()
        }
    }

    fn write(&self) -> Write<'_> {
        Write {
            resource: &self.resource,
            namespace: &self.namespace,
            name: self.name.as_deref().unwrap_or_default(),
            status: self.status,
            manager: &self.manager,
        }
    }

    fn selection(&self) -> Result<Selection, Refusal> {
        Selection::parse(self.text("labelSelector"), self.text("fieldSelector"))
    }

    /// Changes the store and wakes the watches; a dry run changes a copy.
    fn change<T>(
        &self,
        shared: &Shared,
        change: impl FnOnce(&mut Store) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let mut store = shared.store();
        if self.text("dryRun") == "All" {
            return change(&mut store.clone());
        }
        let changed = change(&mut store)?;
        shared.written.send_replace(store.version());
        Ok(changed)
    }
}

/// # Errors
/// To close the connection without an answer.
async fn answer(
    shared: Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<Body>, io::Error> {
    let _ = shared.paused.subscribe().wait_for(|paused| !paused).await;
    let (parts, body) = request.into_parts();
    let Some(call) = Call::parse(&shared, &parts) else {
        return Ok(discover(&shared, &parts));
    };
    let Some(verb) = call.verb(&parts.method) else {
        return Ok(refused(&Refusal::new(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )));
    };
    shared.count(verb, &call.resource_name());
    // Before the fault is met: a request that met it must not miss that everything was healed
    // meanwhile.
    let mut released = shared.released.subscribe();
    match shared.meet_fault(
        verb,
        &call.resource_name(),
        parts.uri.query().unwrap_or_default(),
    ) {
        Some(Effect::Status(code)) => return Ok(refused(&Refusal::of_code(code))),
        Some(Effect::Reset) => return Err(io::ErrorKind::ConnectionReset.into()),
        Some(Effect::Hang) => {
            let _ = released.changed().await;
        }
        None => {}
    }
    let body = match Limited::new(body, BODY_LIMIT).collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => {
            return Ok(refused(&Refusal::new(
                413,
                "RequestEntityTooLarge",
                format!("limit is {BODY_LIMIT} bytes"),
            )));
        }
    };
    let result = match verb {
        "watch" => watch(&shared, &call),
        "list" => list(&shared, &call),
        _ => one(&shared, &call, verb, &parts, &body),
    };
    Ok(result.unwrap_or_else(|refusal| refused(&refusal)))
}

/// All requests about one object, and the deletion of many.
fn one(
    shared: &Shared,
    call: &Call,
    verb: &str,
    parts: &Parts,
    body: &[u8],
) -> Result<Response<Body>, Refusal> {
    let object = |created: bool, object: &Value| {
        json_response(
            if created {
                StatusCode::CREATED
            } else {
                StatusCode::OK
            },
            object,
        )
    };
    let write = call.write();
    match verb {
        "get" => Ok(object(false, &*shared.store().get(&write)?)),
        "create" => {
            let wanted = admission::admit(&call.resource, parse(body)?)?;
            let created = call.change(shared, |store| store.create(&write, wanted))?;
            shared.defined(&call.resource, &created);
            Ok(object(true, &created))
        }
        "update" => {
            let wanted = admission::admit(&call.resource, parse(body)?)?;
            Ok(object(
                false,
                &*call.change(shared, |store| store.replace(&write, wanted))?,
            ))
        }
        "patch" => {
            let content_type = parts
                .headers
                .get(CONTENT_TYPE)
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default();
            let (changed, created) = patch(
                shared,
                call,
                &Patch::parse(content_type, body, &call.resource)?,
            )?;
            shared.defined(&call.resource, &changed);
            Ok(object(created, &changed))
        }
        "delete" => {
            let options: Value = if body.is_empty() {
                Value::Null
            } else {
                parse(body)?
            };
            Ok(object(
                false,
                &*call.change(shared, |store| {
                    store.delete(&write, &options["preconditions"])
                })?,
            ))
        }
        _ => {
            let selection = call.selection()?;
            call.change(shared, |store| {
                for ((_, _, namespace, name), _) in
                    store.list(&call.resource, &call.namespace, &selection, None)
                {
                    store.delete(
                        &Write {
                            namespace: &namespace,
                            name: &name,
                            ..write.clone()
                        },
                        &Value::Null,
                    )?;
                }
                Ok(())
            })?;
            Ok(object(
                false,
                &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}),
            ))
        }
    }
}

fn patch(shared: &Shared, call: &Call, patch: &Patch) -> Result<(Arc<Value>, bool), Refusal> {
    let write = call.write();
    let Patch::Apply(applied) = patch else {
        let changed = call.change(shared, |store| {
            store.patch(&write, |object| {
                admission::admit(&call.resource, patch.change(object)?)
            })
        })?;
        return Ok((changed, false));
    };
    if call.text("fieldManager").is_empty() {
        return Err(Refusal::new(
            400,
            "BadRequest",
            "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch",
        ));
    }
    call.change(shared, |store| {
        // What would come out is judged, on a copy, before it is stored.
        let (outcome, _) = store.clone().apply(&write, applied, call.flag("force"))?;
        admission::admit(&call.resource, (*outcome).clone())?;
        store.apply(&write, applied, call.flag("force"))
    })
}

fn list(shared: &Shared, call: &Call) -> Result<Response<Body>, Refusal> {
    let limit = call
        .text("limit")
        .parse()
        .ok()
        .filter(|limit| *limit > 0)
        .unwrap_or(usize::MAX);
    let store = shared.store();
    let (version, after) = match call.text("continue") {
        "" => (store.version(), None),
        token => {
            let (version, after) = read_token(token)
                .ok_or_else(|| Refusal::new(400, "BadRequest", "continue key is not valid"))?;
            if store.changes_after(version).is_none() {
                return Err(Refusal::new(
                    410,
                    "Expired",
                    "The provided continue parameter is too old",
                ));
            }
            (version, Some(after))
        }
    };
    let mut objects = store.list(
        &call.resource,
        &call.namespace,
        &call.selection()?,
        after.as_ref(),
    );
    let rest = objects.len().saturating_sub(limit);
    objects.truncate(limit);
    let mut metadata = json!({"resourceVersion": version.to_string()});
    if let (1.., Some((key, _))) = (rest, objects.last()) {
        metadata["continue"] = json!(token(version, key));
        metadata["remainingItemCount"] = json!(rest);
    }
    let items: Vec<&Value> = objects.iter().map(|(_, object)| &**object).collect();
    let list = json!({
        "kind": format!("{}List", call.resource.kind), "apiVersion": call.resource.api_version(), "metadata": metadata, "items": items,
    });
    Ok(json_response(StatusCode::OK, &list))
}

/// Where a list goes on: names have no spaces.
fn token(version: u64, (group, plural, namespace, name): &Key) -> String {
    format!("{version} {group} {plural} {namespace} {name}")
}

fn read_token(token: &str) -> Option<(u64, Key)> {
    let [version, group, plural, namespace, name] =
        token.split(' ').collect::<Vec<_>>().try_into().ok()?;
    Some((
        version.parse().ok()?,
        (
            group.to_owned(),
            plural.to_owned(),
            namespace.to_owned(),
            name.to_owned(),
        ),
    ))
}

fn watch(shared: &Arc<Shared>, call: &Call) -> Result<Response<Body>, Refusal> {
    let initial = call.flag("sendInitialEvents");
    let since = match call.text("resourceVersion") {
        "" | "0" => None,
        _ if initial => None,
        text => Some(text.parse().map_err(|_| {
            Refusal::new(
                400,
                "BadRequest",
                format!("invalid resource version {text:?}"),
            )
        })?),
    };
    let watch = Watch {
        resource: call.resource.clone(),
        namespace: call.namespace.clone(),
        selection: call.selection()?,
        since,
        bookmarks: call.flag("allowWatchBookmarks"),
        mark_initial_end: initial,
        timeout: call
            .text("timeoutSeconds")
            .parse()
            .ok()
            .filter(|seconds| *seconds > 0)
            .map(Duration::from_secs),
    };
    let (sender, receiver) = mpsc::channel(WATCH_BUFFER);
    tokio::spawn(watch.run(shared.clone(), sender));
    let frames = stream::unfold(receiver, |mut receiver| async {
        let bytes = receiver.recv().await?;
        Some((Ok(Frame::data(bytes)), receiver))
    });
    Ok(respond(
        StatusCode::OK,
        BodyExt::boxed(StreamBody::new(frames)),
    ))
}

fn discover(shared: &Shared, parts: &Parts) -> Response<Body> {
    let segments: Vec<&str> = parts
        .uri
        .path()
        .split('/')
        .filter(|part| !part.is_empty())
        .collect();
    let found = match segments.as_slice() {
        ["healthz" | "readyz" | "livez"] => json!("ok"),
        ["version"] => {
            json!({"major": "1", "minor": "33", "gitVersion": "v1.33.0-testkit", "platform": "linux/amd64"})
        }
        ["api"] => json!({"kind": "APIVersions", "versions": ["v1"]}),
        ["apis"] => shared.resources().groups(),
        ["api", version] => shared.resources().list("", version),
        ["apis", group, version] => shared.resources().list(group, version),
        _ => {
            return refused(&Refusal::new(
                404,
                "NotFound",
                "the server could not find the requested resource",
            ));
        }
    };
    json_response(StatusCode::OK, &found)
}

fn parse(body: &[u8]) -> Result<Value, Refusal> {
    serde_json::from_slice(body).map_err(|error| {
        Refusal::new(
            400,
            "BadRequest",
            format!("the object can't be decoded: {error}"),
        )
    })
}

fn refused(refusal: &Refusal) -> Response<Body> {
    json_response(
        StatusCode::from_u16(refusal.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
        &refusal.to_json(),
    )
}

fn json_response(status: StatusCode, object: &Value) -> Response<Body> {
    let body = Full::new(Bytes::from(object.to_string())).map_err(|never| match never {});
    respond(status, BodyExt::boxed(body))
}

fn respond(status: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(
        CONTENT_TYPE,
        http::HeaderValue::from_static("application/json"),
    );
    response
}
