//! Lets pass what exits here, where the host's iptables would drop it.

use std::{collections::BTreeSet, sync::Arc};

use async_trait::async_trait;
use egressgateway::{Change, Driver, Error, PolicyDesired, WriteHook, model::Family};
use tokio::time::Instant;

use crate::{
    backend::NetfilterSettings,
    contention::{JumpContention, Tolerance},
    exec::flavour::Flavour,
    exec::iptables,
    exec::writes::Writes,
    mark_layout::MarkLayout,
    monitor::NetfilterMonitor,
    names::{FILTER, TRANSIT},
    ruleset::forward,
    ruleset::save::{self, Owner},
    ruleset::table::{Jump, Table, Tables},
    state::check,
    transition::plan::{NetfilterPlan, Step},
};

/// Accepts, in the `FORWARD` chain of one iptables flavour, what exits on this node for pods of
/// others, and the answers.
///
/// All `FORWARD` chains of a host are asked about a packet, and one that drops it is enough: no
/// other backend can make up for a firewall that is kept by iptables, and neither can the netfilter
/// backend for one that the other flavour keeps. This driver works beside either. It owns the chain
/// `EGW-TRANSIT`, and has it only while others' rules or the chain's policy may drop something: a
/// host without a firewall stays without.
#[derive(Clone, Debug)]
pub struct Transit {
    layout: MarkLayout,
    flavour: Flavour,
    hook: Arc<dyn WriteHook>,
    writes: Writes,
    contention: JumpContention,
}

/// What a host's `FORWARD` chains have of ours, and whether they restrict anything.
///
/// States are equal where the same of it is ours.
#[derive(Clone, Debug, Default)]
pub struct TransitState {
    tables: Tables,
    /// Families whose forwarding others restrict.
    restricted: BTreeSet<Family>,
    /// What is to be borne of others who insist on the first place.
    tolerance: Tolerance,
}

impl PartialEq for TransitState {
    fn eq(&self, other: &Self) -> bool {
        self.tables == other.tables
    }
}

impl Transit {
    /// A driver for the flavour that the settings name; `hook` is asked before each transaction.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`](egressgateway::ErrorKind::Unsupported) where the programs of that
    /// flavour are missing, or can't read its rules.
    pub async fn open(
        settings: NetfilterSettings,
        hook: Arc<dyn WriteHook>,
    ) -> Result<Self, Error> {
        let flavour = Flavour::choose(settings.flavour).await?;
        let transit = Self {
            layout: MarkLayout::new(settings.mask),
            flavour,
            hook,
            writes: Writes::default(),
            contention: JumpContention::default(),
        };
        transit.observe().await?;
        Ok(transit)
    }

    /// Notices changes as [`Netfilter::monitor`](crate::Netfilter::monitor) does, and that a
    /// firewall comes or goes.
    #[must_use]
    pub fn monitor(&self) -> NetfilterMonitor<Self> {
        let differ = |before: &TransitState, now: &TransitState| {
            before != now
                || before.restricted != now.restricted
                || before.tolerance != now.tolerance
        };
        NetfilterMonitor::new(self.clone(), self.writes.clone(), differ)
    }
}

#[async_trait]
impl Driver for Transit {
    type Desired = PolicyDesired;
    type State = TransitState;
    type Plan = NetfilterPlan;

    async fn observe(&self) -> Result<TransitState, Error> {
        let mut state = TransitState::default();
        for family in Family::ALL {
            let saved = iptables::save(self.flavour, family, false).await?;
            state
                .tables
                .extend(save::parse(&saved, family, Owner::Transit));
            state
                .restricted
                .extend(save::restricts_forwarding(&saved).then_some(family));
        }
        state.tolerance = self.contention.tolerance(&state.tables, Instant::now());
        Ok(state)
    }

    fn plan(
        &self,
        desired: &PolicyDesired,
        current: &TransitState,
    ) -> Result<Change<NetfilterPlan, TransitState>, Error> {
        check(desired)?;
        let mut after = TransitState {
            tables: Tables::new(),
            ..current.clone()
        };
        let exits = !desired.exits.is_empty() || !desired.accepts.is_empty();
        for family in current.restricted.iter().filter(|_| exits) {
            let chains = [(
                TRANSIT.to_owned(),
                forward::forwarding(desired, self.layout),
            )]
            .into();
            let key = (*family, FILTER.to_owned());
            let old = current.tables.get(&key).map(Arc::as_ref);
            let jumps = [current
                .tolerance
                .place(Jump::first("FORWARD", TRANSIT), old)]
            .into();
            after.tables.insert(key, Arc::new(Table { chains, jumps }));
        }
        let mut plan = NetfilterPlan::default();
        plan.tables(&current.tables, &after.tables);
        Ok(Change { plan, after })
    }

    async fn apply(&self, plan: &NetfilterPlan) -> Result<(), Error> {
        let _writing = (!plan.steps.is_empty()).then(|| self.writes.begin());
        for step in &plan.steps {
            if let Step::Restore { family, script } = step {
                self.hook.before("restore iptables")?;
                iptables::restore(self.flavour, *family, script, &self.writes).await?;
            }
        }
        self.contention
            .moved(&plan.puts_jumps_first(), Instant::now());
        Ok(())
    }
}
