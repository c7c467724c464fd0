//! The client of the API server.

use std::{path::Path, time::Duration};

use egressgateway::{Error, ErrorKind};
use hyper_timeout::TimeoutConnector;
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::{
    Client, Config,
    client::{ClientBuilder, ConfigExt as _, retry::RetryPolicy},
    config::{KubeConfigOptions, Kubeconfig},
};
use tower::{BoxError, ServiceBuilder, retry::RetryLayer};

/// A watch that says nothing for so long has lost its server: watches end on their own after less
/// than five minutes.
const READ_TIMEOUT: Duration = Duration::from_secs(305);
/// For a connection to the API server, with TLS: a busy server takes its time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// For its TCP alone, which the kernel of a busy server answers too. Two attempts fit into it, and
/// a third one a moment later is a new connection's first: one that had gone on for long would wait
/// longer and longer between them, also when the way is there again.
const REACH_TIMEOUT: Duration = Duration::from_secs(3);
/// A connection on which nothing comes is asked for a sign of life after so long, and so often: a
/// watch may have nothing to tell for minutes.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// A connection on which nothing that was sent is acknowledged for so long is given up. Whoever
/// waited for what the server sends again, more and more rarely, would learn of what happened in an
/// absence after as long as it lasted. (`TCP_USER_TIMEOUT`, tcp(7); it also replaces the number of
/// signs of life that may be missing.)
const ABSENCE: Duration = Duration::from_secs(10);

/// A client as the arguments say: a kubeconfig file, else the pod's service account or the usual
/// places.
///
/// # Errors
/// When neither is there, or it can't be used.
pub async fn client(kubeconfig: Option<&Path>) -> Result<Client, Error> {
    let config = match kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path).map_err(failed)?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .map_err(failed)?
        }
        None => Config::infer().await.map_err(failed)?,
    };
    connect(config).map_err(failed)
}

fn failed(error: impl Into<BoxError>) -> Error {
    Error::new(ErrorKind::Invalid, "connect to the API server").with_source(error.into())
}

/// The client library's own stack, above connections that notice that they are dead.
fn connect(mut config: Config) -> Result<Client, kube::Error> {
    config.read_timeout = Some(READ_TIMEOUT);
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    if config.proxy_url.is_some() {
        return Client::try_from(config);
    }
    let mut connector = TimeoutConnector::new(config.rustls_https_connector_with_connector(tcp())?);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_read_timeout(config.read_timeout);
    connector.set_write_timeout(config.write_timeout);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(
            config
                .default_retry
                .then(|| RetryLayer::new(RetryPolicy::server_retry())),
        )
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(legacy::Client::builder(TokioExecutor::new()).build(connector));
    Ok(ClientBuilder::new(service, config.default_namespace).build())
}

/// Connections of TCP, for TLS above them.
fn tcp() -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(REACH_TIMEOUT));
    connector.set_keepalive(Some(KEEPALIVE));
    connector.set_keepalive_interval(Some(KEEPALIVE));
    connector.set_tcp_user_timeout(Some(ABSENCE));
    connector
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::{getsockopt, sockopt};
    use tower::Service as _;

    use super::*;

    /// What the kernel does with these options is its own business; that they reach it is ours.
    #[tokio::test]
    async fn a_connection_notices_within_seconds_that_nobody_answers_any_more() {
        let server = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .unwrap();
        let address = format!("https://{}", server.local_addr().unwrap());
        let connection = tcp().call(address.parse().unwrap()).await.unwrap();
        let socket = connection.inner();
        assert_eq!(getsockopt(socket, sockopt::TcpUserTimeout).unwrap(), 10_000);
        assert!(getsockopt(socket, sockopt::KeepAlive).unwrap());
        assert_eq!(getsockopt(socket, sockopt::TcpKeepIdle).unwrap(), 5);
        assert_eq!(getsockopt(socket, sockopt::TcpKeepInterval).unwrap(), 5);
    }
}
