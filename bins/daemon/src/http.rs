use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use egressgateway::{Error, runtime::Health};
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{CommonArguments, listen::listen_at};

/// Content type of the OpenMetrics text format.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Listens where the arguments say, or else at `default`.
///
/// # Errors
/// When the address is taken or not this host's.
pub async fn listen(
    arguments: &CommonArguments,
    default: SocketAddr,
) -> Result<TcpListener, Error> {
    listen_at(arguments.listen.unwrap_or(default)).await
}

/// Serves `/healthz`, `/readyz` and `/metrics` until shutdown.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    registry: Registry,
    health: Health,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let (registry, alive) = (Arc::new(registry), health.clone());
    let router = Router::new()
        .route(
            "/healthz",
            get(move || std::future::ready(answer(alive.is_alive()))),
        )
        .route(
            "/readyz",
            get(move || std::future::ready(answer(health.is_ready()))),
        )
        .route(
            "/metrics",
            get(move || std::future::ready(metrics(&registry))),
        );
    let served = axum::serve(listener, router)
        .with_graceful_shutdown(shutdown.cancelled_owned())
        .await;
    served.map_err(|error| Error::from_io(error, "serve probes and metrics"))
}

fn answer(good: bool) -> (StatusCode, &'static str) {
    if good {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    }
}

fn metrics(registry: &Registry) -> Response {
    let mut text = String::new();
    match encode(&mut text, registry) {
        Ok(()) => ([(CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;

    async fn get(address: std::net::SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn a_daemon_that_is_not_ready_says_so_and_shows_its_metrics() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, shutdown) = (listener.local_addr().unwrap(), CancellationToken::new());
        let mut registry = Registry::default();
        let counter: Counter = Counter::default();
        registry.register("seen", "What was seen", counter.clone());
        counter.inc();
        let served = tokio::spawn(serve(
            listener,
            registry,
            Health::default(),
            shutdown.clone(),
        ));
        assert!(get(address, "/healthz").await.starts_with("HTTP/1.1 200"));
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 503"));
        let metrics = get(address, "/metrics").await;
        assert!(
            metrics.contains("seen_total 1") && metrics.ends_with("# EOF\n"),
            "{metrics}"
        );
        shutdown.cancel();
        served.await.unwrap().unwrap();
    }
}
