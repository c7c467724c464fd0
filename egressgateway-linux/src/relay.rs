//! What passes on the connections that are translated on their pods' own nodes, and what a host
//! lacks that can't.

use std::sync::Arc;

use egressgateway::{
    CounterSource, Encapsulation, Error, Handover, PolicyMonitor, Reconcile, RelayDesired,
    Unmanaged, config::Config,
};

/// The relay of this node.
pub(crate) struct NodeRelay {
    pub(crate) driver: Box<dyn Reconcile<RelayDesired>>,
    /// Its counters, and who tells of foreign changes; none where there is no relay.
    pub(crate) watchers: Option<(Arc<dyn CounterSource>, Arc<dyn PolicyMonitor>)>,
    /// Why there is none, for the node's condition.
    pub(crate) lacking: Option<String>,
}

impl NodeRelay {
    /// What an earlier agent left goes: it would drop answers that nobody passes on any more.
    fn none(lacking: impl Into<String>, former: Vec<Box<dyn Reconcile<RelayDesired>>>) -> Self {
        Self {
            driver: Box::new(Handover::new(Box::new(Unmanaged), former)),
            watchers: None,
            lacking: Some(lacking.into()),
        }
    }
}

/// The relay that this host can have with this tunnel, whatever its policy backend.
///
/// # Errors
/// When the host can't be asked.
#[cfg(feature = "nftables")]
pub(crate) async fn choose(
    config: &Config,
    encapsulation: &dyn Encapsulation,
) -> Result<NodeRelay, Error> {
    if !encapsulation.has_neighbours() {
        let lacking = format!(
            "the tunnel {} takes each packet's outer header from a route, and a packet filter forwards without one",
            encapsulation.kind()
        );
        return Ok(NodeRelay::none(lacking, vec![removal(config).await?]));
    }
    let relay = made(config);
    match relay.probe().await {
        Ok(()) => Ok(NodeRelay {
            watchers: Some((Arc::new(relay.clone()), Arc::new(relay.monitor()?))),
            driver: Box::new(egressgateway::Reconciler::new(relay)),
            lacking: None,
        }),
        Err(error) if error.kind == egressgateway::ErrorKind::Unsupported => {
            Ok(NodeRelay::none(error.chain(), Vec::new()))
        }
        Err(error) => Err(error),
    }
}

#[cfg(not(feature = "nftables"))]
#[expect(clippy::unused_async, reason = "only nft must be asked")]
pub(crate) async fn choose(
    _: &Config,
    encapsulation: &dyn Encapsulation,
) -> Result<NodeRelay, Error> {
    let _ = encapsulation.has_neighbours();
    Ok(NodeRelay::none(
        "this agent was built without nftables",
        Vec::new(),
    ))
}

/// Takes away what a relay left on this host.
///
/// # Errors
/// When the host can't be asked.
#[cfg(feature = "nftables")]
pub(crate) async fn removal(config: &Config) -> Result<Box<dyn Reconcile<RelayDesired>>, Error> {
    let relay = made(config);
    match relay.probe().await {
        Ok(()) => Ok(Box::new(egressgateway::Reconciler::new(relay))),
        Err(error) if error.kind == egressgateway::ErrorKind::Unsupported => {
            Ok(Box::new(Unmanaged))
        }
        Err(error) => Err(error),
    }
}

#[cfg(not(feature = "nftables"))]
#[expect(clippy::unused_async, reason = "only nft must be asked")]
pub(crate) async fn removal(_: &Config) -> Result<Box<dyn Reconcile<RelayDesired>>, Error> {
    Ok(Box::new(Unmanaged))
}

#[cfg(feature = "nftables")]
fn made(config: &Config) -> egressgateway_backend_nftables::Relay {
    egressgateway_backend_nftables::Relay::new(
        egressgateway_backend_nftables::NftablesSettings::default().with_mask(config.mark.mask),
        Arc::new(()),
    )
}
