//! From a boot until the cluster is known again, what policies governed before waits.
//!
//! A [`StateFile`] outlives the kernel's tables. What is in it is read once, at the start, and
//! programmed where the kernel has nothing of ours; what came into force is written into it.

use std::sync::Arc;

use tokio::{sync::watch, time::Instant};

use crate::{
    Error, ErrorKind, NodeDesired, PersistedPolicy, PolicyDesired,
    runtime::{
        agent::state_file::StateFile, kube::backoff::Backoff, metrics::AgentMetrics,
        time::wait_until,
    },
};

/// The policy that holds what was governed before the boot; none where nothing is known of that,
/// which a log says unless it is the first start.
pub(crate) async fn recall(file: Arc<StateFile>, metrics: &AgentMetrics) -> Option<PolicyDesired> {
    let path = file.path().display().to_string();
    match blocking(move || file.read()).await {
        Ok(persisted) => persisted.unwrap_or_default().hold(),
        Err(error) => {
            metrics.state_failed(error.kind);
            tracing::warn!(
                kind = error.kind.as_str(),
                error = error.chain(),
                "cannot read state file {path}; nothing is blocked before the initial sync"
            );
            None
        }
    }
}

/// Keeps the file in line with the policy in force.
pub(crate) struct BootStateWriter {
    pub(crate) file: Arc<StateFile>,
    pub(crate) backoff: Backoff,
    pub(crate) metrics: AgentMetrics,
}

impl BootStateWriter {
    /// Works until the sender of policies in force is gone.
    pub(crate) async fn run(mut self, mut in_force: watch::Receiver<Option<NodeDesired>>) {
        let (mut written, mut retry) = (None, None);
        loop {
            tokio::select! {
                changed = in_force.changed() => if changed.is_err() {
                    return;
                },
                () = wait_until(retry) => {}
            }
            let Some(now) = in_force
                .borrow_and_update()
                .as_ref()
                .map(|desired| PersistedPolicy::of(&desired.policy))
            else {
                continue;
            };
            if written.as_ref() == Some(&now) {
                continue;
            }
            retry = match self.write(now.clone()).await {
                Ok(()) => {
                    written = Some(now);
                    self.backoff.succeeded();
                    None
                }
                Err(error) => {
                    self.metrics.state_failed(error.kind);
                    tracing::warn!(
                        kind = error.kind.as_str(),
                        error = error.chain(),
                        "cannot write state file; the next boot may not block governed traffic"
                    );
                    Some(Instant::now() + self.backoff.delay())
                }
            };
        }
    }

    async fn write(&self, persisted: PersistedPolicy) -> Result<(), Error> {
        let file = Arc::clone(&self.file);
        blocking(move || file.write(&persisted)).await
    }
}

/// Disks may take their time.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let ended = |error| Error::new(ErrorKind::Transient, "work with a file").with_source(error);
    tokio::task::spawn_blocking(work).await.map_err(ended)?
}
