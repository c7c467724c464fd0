//! The HTTPS server of the webhooks.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::DefaultBodyLimit,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};
use egressgateway::{
    Error, ErrorKind,
    runtime::{Admission, Review},
};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use rustls::{
    ServerConfig,
    crypto::ring,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// A review holds an object twice, and etcd takes objects of 1.5 MiB.
const MAX_BODY: usize = 4 << 20;
/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// How long connections may take to end at shutdown.
const END: Duration = Duration::from_secs(5);
/// After a failure to accept, such as too many open files.
const BREATH: Duration = Duration::from_millis(100);

/// The certificate that handshakes from now on are answered with; clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Presented(Arc<RwLock<Option<Arc<CertifiedKey>>>>);

impl Presented {
    pub(crate) fn set(&self, certificate: Arc<CertifiedKey>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(certificate);
    }

    pub(crate) fn certificate(&self) -> Option<Arc<CertifiedKey>> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl ResolvesServerCert for Presented {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.certificate()
    }
}

/// Serves `/validate` and `/mutate` until shutdown; requests that are under way are answered.
pub(crate) async fn serve(
    listener: TcpListener,
    presented: &Presented,
    admission: Admission,
    shutdown: CancellationToken,
) {
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions();
    let config = match config {
        Ok(config) => config
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(presented.clone())),
        Err(error) => return tracing::error!(%error, "cannot serve webhooks; TLS is not usable"),
    };
    let (acceptor, router) = (TlsAcceptor::from(Arc::new(config)), router(admission));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(connections.spawn(connection(stream, acceptor.clone(), router.clone(), shutdown.clone()))),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a webhook connection");
                    tokio::time::sleep(BREATH).await;
                }
            },
            Some(_) = connections.join_next() => {}
            () = shutdown.cancelled() => break,
        }
    }
    let ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(END, ended).await.is_err() {
        tracing::warn!("closed webhook connections that did not end in time");
    }
}

async fn connection(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    router: Router,
    shutdown: CancellationToken,
) {
    let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            return tracing::debug!(%error, "TLS handshake of a webhook client failed");
        }
        Err(_) => return tracing::debug!("TLS handshake of a webhook client timed out"),
    };
    let service = TowerToHyperService::new(router);
    let http = hyper_util::server::conn::auto::Builder::new(hyper_util::rt::TokioExecutor::new());
    let connection = http.serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(error, "webhook connection failed");
    }
}

fn router(admission: Admission) -> Router {
    let (validating, mutating) = (admission.clone(), admission);
    Router::new()
        .route(
            "/validate",
            post(async move |Json(review): Json<Review>| answer(validating.validate(review))),
        )
        .route(
            "/mutate",
            post(async move |Json(review): Json<Review>| answer(mutating.complete(review))),
        )
        .layer(DefaultBodyLimit::max(MAX_BODY))
}

fn answer(result: Result<Review, Error>) -> Response {
    match result {
        Ok(review) => Json(review).into_response(),
        Err(error) if error.kind == ErrorKind::Invalid => {
            (StatusCode::BAD_REQUEST, error.chain()).into_response()
        }
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, error.chain()).into_response(),
    }
}
