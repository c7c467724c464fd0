//! Requests to the API server of a cluster, from tests that wait for answers.

use std::{
    fmt::Display,
    sync::{Mutex, PoisonError, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use http::Request;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use tokio::{runtime::Handle, sync::oneshot};

use super::net::Net;

/// How long one request may take.
const ANSWER: Duration = Duration::from_secs(40);
/// How long a refusal may come from a server or a webhook that is not there yet, or not any more.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often something is asked that may change.
const GLANCE: Duration = Duration::from_millis(200);

/// Kinds that tests speak of: group and version, path, whether in a namespace.
const KINDS: [(&str, &str, &str, bool); 17] = [
    ("Namespace", "api/v1", "namespaces", false),
    ("Node", "api/v1", "nodes", false),
    ("Pod", "api/v1", "pods", true),
    ("Service", "api/v1", "services", true),
    ("ConfigMap", "api/v1", "configmaps", true),
    ("ServiceAccount", "api/v1", "serviceaccounts", true),
    ("Event", "api/v1", "events", true),
    (
        "EndpointSlice",
        "apis/discovery.k8s.io/v1",
        "endpointslices",
        true,
    ),
    ("Deployment", "apis/apps/v1", "deployments", true),
    ("DaemonSet", "apis/apps/v1", "daemonsets", true),
    (
        "NetworkPolicy",
        "apis/networking.k8s.io/v1",
        "networkpolicies",
        true,
    ),
    ("Lease", "apis/coordination.k8s.io/v1", "leases", true),
    (
        "ClusterRole",
        "apis/rbac.authorization.k8s.io/v1",
        "clusterroles",
        false,
    ),
    (
        "ClusterRoleBinding",
        "apis/rbac.authorization.k8s.io/v1",
        "clusterrolebindings",
        false,
    ),
    (
        "EgressGateway",
        "apis/egressgateway.spidernet.io/v1",
        "egressgateways",
        false,
    ),
    (
        "EgressGatewayPolicy",
        "apis/egressgateway.spidernet.io/v1",
        "egressgatewaypolicies",
        false,
    ),
    (
        "EgressNode",
        "apis/egressgateway.spidernet.io/v1",
        "egressnodes",
        false,
    ),
];

/// The administrator's client, in the network of the cluster.
pub struct Api {
    handle: Handle,
    stop: Mutex<Option<(oneshot::Sender<()>, JoinHandle<()>)>>,
    client: Client,
}

/// What an object's requests go to.
fn path(kind: &str, namespace: &str, name: &str) -> String {
    let (_, group, plural, namespaced) = KINDS
        .iter()
        .find(|(own, ..)| *own == kind)
        .unwrap_or_else(|| panic!("kind {kind} is not known"));
    let within = if *namespaced && !namespace.is_empty() {
        format!("/namespaces/{namespace}")
    } else {
        String::new()
    };
    let name = if name.is_empty() {
        String::new()
    } else {
        format!("/{name}")
    };
    format!("/{group}{within}/{plural}{name}")
}

impl Api {
    /// A client for a kubeconfig, which sends from this network.
    pub(super) fn new(kubeconfig: String, network: Net) -> Result<Self, String> {
        let (stop, stopped) = oneshot::channel();
        let (tell, told) = mpsc::channel();
        let thread = thread::spawn(move || {
            let runtime = network.move_in().and_then(|()| {
                tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
            });
            let runtime = match runtime {
                Ok(runtime) => runtime,
                Err(error) => return drop(tell.send(Err(error.to_string()))),
            };
            runtime.block_on(async {
                let made = client(&kubeconfig)
                    .await
                    .map(|client| (Handle::current(), client));
                if tell.send(made).is_ok() {
                    let _ = stopped.await;
                }
            });
        });
        let (handle, client) = told
            .recv()
            .map_err(|_| "the client's thread ended".to_owned())??;
        Ok(Self {
            handle,
            stop: Mutex::new(Some((stop, thread))),
            client,
        })
    }

    /// Sends a request; the answer, or what the server or the client said.
    ///
    /// # Errors
    /// When it is refused, can't be sent or is not answered.
    pub fn send(
        &self,
        method: &str,
        path: &str,
        form: &str,
        body: &Value,
    ) -> Result<Value, String> {
        let body = if body.is_null() {
            Vec::new()
        } else {
            body.to_string().into_bytes()
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("Content-Type", form)
            .body(body)
            .map_err(said)?;
        let client = self.client.clone();
        let (tell, told) = mpsc::channel();
        self.handle.spawn(async move {
            let answer = tokio::time::timeout(ANSWER, client.request::<Value>(request)).await;
            let _ = tell.send(
                answer
                    .map_err(|_| "no answer".to_owned())
                    .and_then(|answer| answer.map_err(said)),
            );
        });
        let answer = told
            .recv()
            .map_err(|_| "the client's thread ended".to_owned())?;
        answer.map_err(|error| format!("{method} {path}: {error}"))
    }

    /// Whether the server says that it is ready.
    ///
    /// # Errors
    /// When it does not, or not yet.
    pub fn ready(&self) -> Result<(), String> {
        let request = Request::builder()
            .uri("/readyz")
            .body(Vec::new())
            .map_err(said)?;
        let client = self.client.clone();
        let (tell, told) = mpsc::channel();
        self.handle.spawn(async move {
            let answer = tokio::time::timeout(ANSWER, client.request_text(request)).await;
            let _ = tell.send(
                answer
                    .map_err(|_| "no answer".to_owned())
                    .and_then(|answer| answer.map(|_| ()).map_err(said)),
            );
        });
        told.recv()
            .map_err(|_| "the client's thread ended".to_owned())?
    }

    /// An object; an error when there is none.
    ///
    /// # Errors
    /// As [`Api::send`].
    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Result<Value, String> {
        self.send(
            "GET",
            &path(kind, namespace, name),
            "application/json",
            &Value::Null,
        )
    }

    /// The objects of a kind, in a namespace or with an empty one in all, with these labels
    /// (`a=b,c=d`).
    ///
    /// # Errors
    /// As [`Api::send`].
    pub fn list(&self, kind: &str, namespace: &str, labels: &str) -> Result<Vec<Value>, String> {
        let query: String = form_urlencoded::Serializer::new(String::new())
            .append_pair("labelSelector", labels)
            .finish();
        let list = self.send(
            "GET",
            &format!("{}?{query}", path(kind, namespace, "")),
            "application/json",
            &Value::Null,
        )?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// Creates an object or changes it, by server-side apply. Goes on for a while: a webhook may
    /// not answer yet.
    ///
    /// # Panics
    /// When it is refused all the time.
    pub fn apply(&self, object: &Value) {
        let text = |pointer: &str| {
            object
                .pointer(pointer)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        let path = path(
            text("/kind"),
            text("/metadata/namespace"),
            text("/metadata/name"),
        );
        let path = format!("{path}?fieldManager=e2e&force=true");
        eventually(
            &format!("{} {} is applied", text("/kind"), text("/metadata/name")),
            PATIENCE,
            || {
                self.send("PATCH", &path, "application/apply-patch+yaml", object)
                    .map(|_| ())
            },
        );
    }

    /// Changes an object by a merge patch.
    ///
    /// # Panics
    /// When it is refused all the time.
    pub fn merge(&self, kind: &str, namespace: &str, name: &str, patch: &Value) {
        eventually(&format!("{kind} {name} is changed"), PATIENCE, || {
            self.send(
                "PATCH",
                &path(kind, namespace, name),
                "application/merge-patch+json",
                patch,
            )
            .map(|_| ())
        });
    }

    /// Deletes an object, and waits until it is gone. Nothing happens when there is none.
    ///
    /// # Panics
    /// When it does not go.
    pub fn delete(&self, kind: &str, namespace: &str, name: &str) {
        let options =
            json!({"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Foreground"});
        let path = path(kind, namespace, name);
        let mut asked = false;
        eventually(&format!("{kind} {name} is gone"), PATIENCE, || {
            let answer = if asked {
                self.get(kind, namespace, name)
            } else {
                self.send("DELETE", &path, "application/json", &options)
            };
            match answer {
                Err(error) if error.contains("not found") => Ok(()),
                Err(error) => Err(error),
                Ok(object) => {
                    asked = true;
                    Err(format!("still there: {}", object["metadata"]))
                }
            }
        });
    }

    /// Waits until an object has a condition with this status.
    ///
    /// # Panics
    /// When it does not get it, with the object's status.
    pub fn wait_for_condition(
        &self,
        kind: &str,
        namespace: &str,
        name: &str,
        condition: &str,
    ) -> Value {
        eventually(&format!("{kind} {name} is {condition}"), PATIENCE, || {
            let object = self.get(kind, namespace, name)?;
            if has_condition(&object, condition) {
                Ok(object)
            } else {
                Err(object["status"].to_string())
            }
        })
    }
}

/// Whether an object has the condition with status True.
#[must_use]
pub fn has_condition(object: &Value, condition: &str) -> bool {
    let mut conditions = object["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten();
    conditions.any(|own| own["type"] == condition && own["status"] == "True")
}

impl std::fmt::Debug for Api {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Api").finish_non_exhaustive()
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self
            .stop
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
        {
            let _ = stop.send(());
            let _ = thread.join();
        }
    }
}

async fn client(kubeconfig: &str) -> Result<Client, String> {
    let file = Kubeconfig::from_yaml(kubeconfig).map_err(said)?;
    let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .map_err(said)?;
    config.read_timeout = Some(ANSWER);
    config.connect_timeout = Some(Duration::from_secs(5));
    Client::try_from(config).map_err(said)
}

fn said(error: impl Display) -> String {
    error.to_string()
}

/// Tries until it succeeds.
///
/// # Panics
/// When it does not within `patience`, with the last error.
pub fn eventually<T>(
    what: &str,
    patience: Duration,
    mut attempt: impl FnMut() -> Result<T, String>,
) -> T {
    let patience = crate::pace::patient(patience);
    let deadline = Instant::now() + patience;
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(error) => assert!(
                Instant::now() < deadline,
                "not within {} s: {what}: {error}",
                patience.as_secs()
            ),
        }
        thread::sleep(GLANCE);
    }
}
