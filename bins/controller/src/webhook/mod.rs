//! The admission webhooks: an HTTPS server whose certificate may change while it runs.

mod certificate;
mod files;
mod keeper;
mod server;

use std::{net::SocketAddr, path::PathBuf};

use clap::Args;
use egressgateway::{
    Error,
    runtime::{Admission, Backoff},
};
use egressgateway_daemon::listen_at;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use self::{keeper::Keeper, server::Presented};

/// Where and how the webhooks are served.
#[derive(Args, Clone, Debug)]
pub(crate) struct WebhookArguments {
    /// Where admission webhooks are served; without it they are not. `[::]` is every address, of
    /// both families.
    #[arg(
        long,
        env = "EGRESSGATEWAY_WEBHOOK_LISTEN",
        value_name = "ADDRESS:PORT"
    )]
    webhook_listen: Option<SocketAddr>,
    /// Folder with tls.crt and tls.key that somebody else renews, such as cert-manager. Without it
    /// the controller makes its own, keeps them in Secret egressgateway-webhook and tells the API
    /// server whom to trust.
    #[arg(
        long,
        env = "EGRESSGATEWAY_WEBHOOK_CERTIFICATES",
        value_name = "FOLDER"
    )]
    webhook_certificates: Option<PathBuf>,
}

/// Listens where the arguments say; none: no webhooks are wanted.
///
/// # Errors
/// When the address can't be listened at.
pub(crate) async fn listen(arguments: &WebhookArguments) -> Result<Option<TcpListener>, Error> {
    let Some(address) = arguments.webhook_listen else {
        return Ok(None);
    };
    listen_at(address).await.map(Some)
}

/// Serves the webhooks until shutdown.
pub(crate) async fn serve(
    listener: TcpListener,
    arguments: WebhookArguments,
    client: kube::Client,
    namespace: String,
    admission: Admission,
    shutdown: CancellationToken,
) {
    let presented = Presented::default();
    let certificates = async {
        match arguments.webhook_certificates {
            Some(folder) => files::follow(&folder, &presented).await,
            None => {
                Keeper::new(client, &namespace, presented.clone(), Backoff::default())
                    .run()
                    .await;
            }
        }
        // Without it the last one is presented further.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = server::serve(listener, &presented, admission, shutdown) => {}
        () = certificates => {}
    }
}
