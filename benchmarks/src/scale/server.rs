//! Requests to the API server, many at once, as everybody but the daemons sends them.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{StreamExt, TryStreamExt, stream};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::Value;

/// How many requests are under way at once.
const CONCURRENCY: usize = 10;
/// A server with all processors busy answers late.
const ANSWER: Duration = Duration::from_secs(60);

/// The administrator's client.
#[derive(Clone)]
pub(super) struct Server(Client);

impl Server {
    pub(super) async fn new(kubeconfig: &str) -> Result<Self, String> {
        let file = Kubeconfig::from_yaml(kubeconfig).map_err(said)?;
        let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
            .await
            .map_err(said)?;
        config.read_timeout = Some(ANSWER);
        Ok(Self(Client::try_from(config).map_err(said)?))
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        form: &str,
        body: &Value,
    ) -> Result<Value, String> {
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("Content-Type", form);
        let request = request.body(body.to_string().into_bytes()).map_err(said)?;
        self.0
            .request(request)
            .await
            .map_err(|error| format!("{method} {path}: {error}"))
    }

    pub(super) async fn post(&self, path: &str, body: &Value) -> Result<Value, String> {
        self.send("POST", path, "application/json", body).await
    }

    pub(super) async fn merge(&self, path: &str, body: &Value) -> Result<Value, String> {
        self.send("PATCH", path, "application/merge-patch+json", body)
            .await
    }

    /// As an agent applies what it owns.
    pub(super) async fn apply(&self, path: &str, body: &Value) -> Result<Value, String> {
        let path = format!("{path}?fieldManager=egressgateway-agent&force=true");
        self.send("PATCH", &path, "application/apply-patch+yaml", body)
            .await
    }

    pub(super) async fn delete(&self, path: &str, grace: u32) -> Result<Value, String> {
        let body = serde_json::json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": grace});
        self.send("DELETE", path, "application/json", &body).await
    }

    pub(super) async fn get(&self, path: &str) -> Result<Value, String> {
        self.send("GET", path, "application/json", &Value::Null)
            .await
    }
}

pub(super) fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Does something with many, some at once; ends at the first failure.
pub(super) async fn each<T, F>(
    items: impl IntoIterator<Item = T>,
    work: impl Fn(T) -> F,
) -> Result<(), String>
where
    F: Future<Output = Result<(), String>>,
{
    stream::iter(items)
        .map(work)
        .buffer_unordered(CONCURRENCY)
        .try_collect()
        .await
}

/// How the requests fare that nobody waits for.
#[derive(Clone, Default)]
pub(super) struct Tally(Arc<Mutex<(u64, u64, String)>>);

impl Tally {
    pub(super) fn note(&self, result: Result<(), String>) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.0 += 1;
        if let Err(failure) = result {
            held.1 += 1;
            held.2 = failure;
        }
    }

    /// How many there were, and how many failed.
    ///
    /// A late or lost renewal is what a busy server does to real agents too, and a Lease outlives
    /// three of them.
    pub(super) fn check(&self) -> Result<(u64, u64), String> {
        let (sent, failed, last) = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if failed * 20 > sent.max(20) {
            Err(format!(
                "{failed} of {sent} requests of the other nodes failed, at last: {last}"
            ))
        } else {
            Ok((sent, failed))
        }
    }
}
