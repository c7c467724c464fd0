//! Reads the packet filter's counters into the metrics.

use std::{sync::Arc, time::Duration};

use crate::{CounterSource, runtime::metrics::AgentMetrics};

/// Reads at intervals, for ever.
pub(crate) async fn read(
    source: Arc<dyn CounterSource>,
    interval: Duration,
    metrics: AgentMetrics,
) {
    loop {
        match source.counters().await {
            Ok(counters) => metrics.packets(counters),
            Err(error) => tracing::debug!(error = error.chain(), "cannot read packet counters"),
        }
        tokio::time::sleep(interval).await;
    }
}
