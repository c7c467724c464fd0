//! Classifies, beside another backend, what somebody has translated.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use egressgateway::{Change, Counter, CounterSource, Driver, Error, PolicyDesired, WriteHook};

use crate::{
    apply::plan::NftPlan,
    backend::{Nftables, NftablesSettings},
    observe::monitor::NftMonitor,
    ruleset::names::Scope,
    state::NftState,
};

/// Classifies connections of pods whose destination was translated, such as those to a service,
/// beside a backend that looks before translation.
///
/// iptables has no chain between destination translation and routing, so a backend that is made of
/// it sees the address of a service and never the server that it stands for. A chain of nftables
/// can stand there. This driver has one, in a table of its own, with the same sets, maps and
/// verdicts as [`Nftables`], and leaves everything else to the other backend: it pins and marks,
/// and the pins and marks mean the same to both. What the other backend said of the address that a
/// connection was sent to is taken back first.
///
/// It has the table only while something is governed.
#[derive(Clone, Debug)]
pub struct Services(Nftables);

impl Services {
    /// A driver that asks `hook` before each transaction.
    #[must_use]
    pub fn new(settings: NftablesSettings, hook: Arc<dyn WriteHook>) -> Self {
        Self(Nftables::scoped(settings, hook, Scope::Services))
    }

    /// A driver that only plans, as [`Nftables::offline`] is.
    #[must_use]
    pub fn offline(settings: NftablesSettings) -> Self {
        Self(Nftables::offline(settings).of(Scope::Services))
    }

    /// Whether this host can have it: [`Nftables::probe`].
    ///
    /// # Errors
    /// As that.
    pub async fn probe(&self) -> Result<(), Error> {
        self.0.probe().await
    }

    /// Notices that somebody else changes the table.
    ///
    /// # Errors
    /// When the kernel refuses the subscription, or outside of a Tokio runtime.
    pub fn monitor(&self) -> Result<NftMonitor, Error> {
        self.0.monitor()
    }
}

#[async_trait]
impl Driver for Services {
    type Desired = PolicyDesired;
    type State = NftState;
    type Plan = NftPlan;

    async fn observe(&self) -> Result<NftState, Error> {
        self.0.observe().await
    }

    fn plan(
        &self,
        desired: &PolicyDesired,
        current: &NftState,
    ) -> Result<Change<NftPlan, NftState>, Error> {
        self.0.plan(desired, current)
    }

    async fn apply(&self, plan: &NftPlan) -> Result<(), Error> {
        self.0.apply(plan).await
    }
}

#[async_trait]
impl CounterSource for Services {
    async fn counters(&self) -> Result<BTreeMap<String, Counter>, Error> {
        self.0.counters().await
    }
}
