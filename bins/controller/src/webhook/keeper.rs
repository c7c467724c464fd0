//! Keeps the webhooks' certificate: one Secret for all replicas, replaced before it ends on the
//! version that was read, so that of several replicas one replaces it. An API server is told of a
//! new authority before any replica presents what it signed.

use std::{pin::pin, time::Duration};

use egressgateway::{
    Error,
    runtime::{Backoff, api_error},
};
use futures::StreamExt;
use k8s_openapi::{
    ByteString,
    api::{
        admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration},
        core::v1::Secret,
    },
};
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt, watcher},
};
use serde::de::DeserializeOwned;
use serde_json::json;
use time::OffsetDateTime;

use super::{
    certificate::{self, Pair},
    server::Presented,
};

/// Service, Secret and webhook configurations have one name.
const NAME: &str = "egressgateway-webhook";
const MANAGER: &str = "egressgateway-controller";
const VALIDATING: [&str; 2] = [
    "validate.egressgateway.spidernet.io",
    "warn.egressgateway.spidernet.io",
];
const MUTATING: [&str; 1] = ["mutate.egressgateway.spidernet.io"];
/// How often the API server is told again: somebody may have written over it.
const REPEAT: Duration = Duration::from_secs(300);

pub(crate) struct Keeper {
    client: Client,
    secrets: Api<Secret>,
    names: Vec<String>,
    presented: Presented,
    backoff: Backoff,
}

impl Keeper {
    pub(crate) fn new(
        client: Client,
        namespace: &str,
        presented: Presented,
        backoff: Backoff,
    ) -> Self {
        let names = vec![
            format!("{NAME}.{namespace}.svc"),
            format!("{NAME}.{namespace}.svc.cluster.local"),
        ];
        Self {
            secrets: Api::namespaced(client.clone(), namespace),
            client,
            names,
            presented,
            backoff,
        }
    }

    /// Never ends.
    pub(crate) async fn run(mut self) {
        let config = watcher::Config::default().fields(&format!("metadata.name={NAME}"));
        let mut secrets = pin!(
            self.backoff
                .clone()
                .pace(watcher(self.secrets.clone(), config))
                .applied_objects()
        );
        let mut held: Option<Secret> = None;
        let mut again = Duration::MAX;
        loop {
            tokio::select! {
                seen = secrets.next() => match seen {
                    Some(Ok(secret)) => held = Some(secret),
                    Some(Err(error)) => {
                        tracing::warn!(%error, "watch of Secret {NAME} starts again");
                        continue;
                    }
                    None => return,
                },
                () = tokio::time::sleep(again) => {}
            }
            let Some(secret) = &held else { continue };
            again = match self.keep(secret).await {
                Ok(again) => {
                    self.backoff.succeeded();
                    again
                }
                Err(error) => {
                    tracing::warn!(
                        kind = error.kind.as_str(),
                        error = error.chain(),
                        "cannot keep the webhook certificate"
                    );
                    self.backoff.delay()
                }
            };
        }
    }

    /// Replaces what is due, presents what is there, and says when to look again.
    async fn keep(&self, secret: &Secret) -> Result<Duration, Error> {
        let (pair, now) = (read(secret), OffsetDateTime::now_utc());
        match pair.renewal(&self.names) {
            Some(renewal) if renewal > now => {
                self.adopt(&pair).await?;
                let left = Duration::try_from(renewal - now).unwrap_or_default();
                Ok(left.min(REPEAT))
            }
            _ => {
                let next = Pair::make(&self.names, &pair.authorities, now)?;
                self.replace(secret, &next).await?;
                // The watch brings it, or what another replica was faster with.
                Ok(REPEAT)
            }
        }
    }

    async fn replace(&self, secret: &Secret, pair: &Pair) -> Result<(), Error> {
        let text = |text: &str| ByteString(text.as_bytes().to_vec());
        let data = [
            ("tls.crt", &pair.certificate),
            ("tls.key", &pair.key),
            ("ca.crt", &pair.authorities),
        ];
        let mut next = secret.clone();
        next.data
            .get_or_insert_default()
            .extend(data.map(|(name, value)| (name.to_owned(), text(value))));
        let params = PostParams {
            field_manager: Some(MANAGER.to_owned()),
            ..PostParams::default()
        };
        match self.secrets.replace(NAME, &params, &next).await {
            Ok(_) => tracing::info!("replaced the webhook certificate"),
            Err(kube::Error::Api(status)) if status.code == 409 => {
                tracing::debug!("another replica replaced the certificate");
            }
            Err(error) => return Err(api_error(error, format!("write Secret {NAME}"))),
        }
        Ok(())
    }

    /// The authority first, then what it signed.
    async fn adopt(&self, pair: &Pair) -> Result<(), Error> {
        let certificate = certificate::present(&pair.certificate, &pair.key)?;
        if self.presented.certificate().is_none() {
            self.presented.set(certificate.clone());
        }
        self.trust::<ValidatingWebhookConfiguration>(&VALIDATING, pair)
            .await?;
        self.trust::<MutatingWebhookConfiguration>(&MUTATING, pair)
            .await?;
        self.presented.set(certificate);
        Ok(())
    }

    async fn trust<K>(&self, webhooks: &[&str], pair: &Pair) -> Result<(), Error>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::ClusterResourceScope>
            + DeserializeOwned
            + Clone
            + std::fmt::Debug,
    {
        let bundle = ByteString(pair.authorities.clone().into_bytes());
        let webhooks: Vec<_> = webhooks
            .iter()
            .map(|name| json!({"name": name, "clientConfig": {"caBundle": bundle}}))
            .collect();
        let patch = json!({"webhooks": webhooks});
        let params = PatchParams {
            field_manager: Some(MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let configurations: Api<K> = Api::all(self.client.clone());
        let patched = configurations
            .patch(NAME, &params, &Patch::Strategic(patch))
            .await;
        patched.map(|_| ()).map_err(|error| {
            api_error(error, format!("tell {} {NAME} whom to trust", K::kind(&())))
        })
    }
}

/// What a Secret holds; empty where it holds nothing that is text.
fn read(secret: &Secret) -> Pair {
    let text = |name: &str| {
        let bytes = secret
            .data
            .as_ref()
            .and_then(|data| data.get(name))
            .map(|bytes| bytes.0.clone())
            .unwrap_or_default();
        String::from_utf8(bytes).unwrap_or_default()
    };
    Pair {
        certificate: text("tls.crt"),
        key: text("tls.key"),
        authorities: text("ca.crt"),
    }
}
