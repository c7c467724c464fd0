//! What the commands that speak to a cluster share.

use std::{
    collections::BTreeMap, fmt::Debug, future::Future, ops::ControlFlow, path::PathBuf, pin::pin,
    time::Duration,
};

use clap::Args;
use egressgateway::{Error, ErrorKind, runtime::api_error};
use egressgateway_daemon::{client, install_tls};
use futures::StreamExt;
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ListParams, Patch, PatchParams},
    core::ClusterResourceScope,
    runtime::{WatchStreamExt, watcher},
};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::time::{Instant, timeout_at};

/// Field manager of what is written here.
const MANAGER: &str = "egressctl";

/// Where the cluster is, and how long it may take.
#[derive(Args)]
pub(crate) struct Online {
    /// Kubeconfig file; without it KUBECONFIG, ~/.kube/config, or the pod's service account.
    #[arg(long, env = "EGRESSGATEWAY_KUBECONFIG", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// How long it may take until it is done.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "60s")]
    timeout: Duration,
}

impl Online {
    /// Does something with the cluster.
    pub(crate) fn run(
        &self,
        task: impl AsyncFnOnce(&Cluster) -> Result<String, String>,
    ) -> Result<String, String> {
        let told = |error: Error| error.chain();
        install_tls().map_err(told)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let runtime = runtime.map_err(|error| told(Error::from_io(error, "start the runtime")))?;
        runtime.block_on(async {
            let client = client(self.kubeconfig.as_deref()).await.map_err(told)?;
            // A time that no clock can tell is far enough away without an end.
            let until = Instant::now()
                .checked_add(self.timeout)
                .ok_or_else(|| format!("--timeout: \"{:?}\": is too long", self.timeout))?;
            task(&Cluster {
                client,
                until,
                timeout: self.timeout,
            })
            .await
        })
    }
}

/// Objects of one kind, by name.
pub(crate) type Objects<K> = BTreeMap<String, K>;

/// A cluster, as long as the timeout allows.
pub(crate) struct Cluster {
    client: Client,
    until: Instant,
    timeout: Duration,
}

impl Cluster {
    /// The timeout, for people.
    pub(crate) fn timeout(&self) -> impl std::fmt::Display {
        humantime::format_duration(self.timeout)
    }

    /// The same cluster with some more time, to leave nothing half-done behind.
    pub(crate) fn with_grace(&self, grace: Duration) -> Self {
        Self {
            client: self.client.clone(),
            until: self.until.max(Instant::now() + grace),
            timeout: self.timeout,
        }
    }

    /// An object, if it is there.
    pub(crate) async fn get<K: Object>(&self, name: &str) -> Result<Option<K>, String> {
        self.within(
            &format!("get {} {name}", K::kind(&())),
            self.api::<K>().get_opt(name),
        )
        .await
    }

    /// All objects of a kind.
    pub(crate) async fn list<K: Object>(&self) -> Result<Objects<K>, String> {
        let params = ListParams::default();
        let list = self
            .within(
                &format!("list {}", K::plural(&())),
                self.api::<K>().list(&params),
            )
            .await?;
        Ok(list
            .into_iter()
            .map(|object| (object.name_any(), object))
            .collect())
    }

    /// Sets an annotation, or removes it.
    pub(crate) async fn annotate<K: Object>(
        &self,
        name: &str,
        annotation: &str,
        value: Option<&str>,
    ) -> Result<(), String> {
        let patch = Patch::Merge(json!({"metadata": {"annotations": {annotation: value}}}));
        let params = PatchParams {
            field_manager: Some(MANAGER.to_owned()),
            ..PatchParams::default()
        };
        self.within(
            &format!("annotate {} {name}", K::kind(&())),
            self.api::<K>().patch(name, &params, &patch),
        )
        .await
        .map(|_| ())
    }

    /// Sets an annotation, or removes it, unless the object is not as it was seen; false then.
    pub(crate) async fn annotate_unchanged<K: Object>(
        &self,
        seen: &K,
        annotation: &str,
        value: Option<&str>,
    ) -> Result<bool, String> {
        let name = seen.name_any();
        let patch = Patch::Merge(
            json!({"metadata": {"resourceVersion": seen.resource_version(), "annotations": {annotation: value}}}),
        );
        let params = PatchParams {
            field_manager: Some(MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let api = self.api::<K>();
        let patched = async {
            match api.patch(&name, &params, &patch).await {
                Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
                patched => patched.map(|_| true),
            }
        };
        self.within(&format!("annotate {} {name}", K::kind(&())), patched)
            .await
    }

    /// Follows the objects of a kind until `look` has seen enough; none where time ran out before.
    ///
    /// A watch that fails is begun again, and said so.
    pub(crate) async fn follow<K: Object, T>(
        &self,
        config: watcher::Config,
        mut look: impl FnMut(&Objects<K>) -> ControlFlow<T>,
    ) -> Option<T> {
        let mut events = pin!(watcher::watcher(self.api::<K>(), config).default_backoff());
        let mut objects = Objects::new();
        let mut listed = false;
        let looked = async {
            loop {
                match events.next().await? {
                    Ok(watcher::Event::Init) => {
                        objects.clear();
                        listed = false;
                    }
                    Ok(watcher::Event::InitDone) => listed = true,
                    Ok(watcher::Event::InitApply(object) | watcher::Event::Apply(object)) => {
                        _ = objects.insert(object.name_any(), object);
                    }
                    Ok(watcher::Event::Delete(object)) => _ = objects.remove(&object.name_any()),
                    Err(error) => {
                        eprintln!(
                            "warning: {}",
                            chain(&format!("watch {}", K::plural(&())), error)
                        );
                        continue;
                    }
                }
                if listed && let ControlFlow::Break(seen) = look(&objects) {
                    return Some(seen);
                }
            }
        };
        timeout_at(self.until, looked).await.ok().flatten()
    }

    fn api<K: Object>(&self) -> Api<K> {
        Api::all(self.client.clone())
    }

    async fn within<T>(
        &self,
        what: &str,
        request: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, String> {
        match timeout_at(self.until, request).await {
            Ok(answer) => answer.map_err(|error| api_error(error, what).chain()),
            Err(_) => Err(format!("{what}: no answer within {}", self.timeout())),
        }
    }
}

fn chain(what: &str, error: impl std::error::Error + Send + Sync + 'static) -> String {
    Error::new(ErrorKind::Transient, what)
        .with_source(error)
        .chain()
}

/// Kinds that have no namespace.
pub(crate) trait Object:
    Resource<DynamicType = (), Scope = ClusterResourceScope>
    + Clone
    + Debug
    + DeserializeOwned
    + Send
    + 'static
{
}

impl<K> Object for K where
    K: Resource<DynamicType = (), Scope = ClusterResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + 'static
{
}
