use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use egressgateway::{
    Change, Counter, CounterSource, Driver, Error, ErrorKind, Plan, PolicyBackend, PolicyDesired,
    WriteHook, model::MarkMask,
};
use serde_json::Value;

use crate::{
    apply::command::{self, nft, nft_json},
    apply::element_batch::{self, Connection},
    apply::plan::{self, NftPlan},
    lookup_probe,
    observe::monitor::{NftMonitor, Writers},
    observe::table,
    ruleset::names::{CHANGING, COUNTERS, NFT_PACKAGE, Scope, TABLE_FAMILY},
    state::NftState,
};

/// What the backend needs to know apart from the desired state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct NftablesSettings {
    /// The byte of packet and connection marks that is ours.
    pub mask: MarkMask,
}

impl NftablesSettings {
    /// Another byte of packet and connection marks.
    #[must_use]
    pub const fn with_mask(mut self, mask: MarkMask) -> Self {
        self.mask = mask;
        self
    }
}

/// The backend. It keeps a socket, and nothing of what the kernel holds: that is in [`NftState`].
#[derive(Clone, Debug)]
pub struct Nftables {
    settings: NftablesSettings,
    /// None when it may only plan.
    hook: Option<Arc<dyn WriteHook>>,
    writers: Writers,
    connection: Connection,
    scope: Scope,
}

impl Nftables {
    /// A backend that asks `hook` before each transaction.
    #[must_use]
    pub fn new(settings: NftablesSettings, hook: Arc<dyn WriteHook>) -> Self {
        Self::scoped(settings, hook, Scope::Whole)
    }

    /// A backend that only plans: reading and writing give [`ErrorKind::Unsupported`].
    #[must_use]
    pub fn offline(settings: NftablesSettings) -> Self {
        Self {
            settings,
            hook: None,
            writers: Writers::default(),
            connection: Connection::default(),
            scope: Scope::Whole,
        }
    }

    pub(crate) fn scoped(
        settings: NftablesSettings,
        hook: Arc<dyn WriteHook>,
        scope: Scope,
    ) -> Self {
        let writers = Writers::default();
        Self {
            settings,
            hook: Some(hook),
            connection: Connection::new(writers.clone()),
            writers,
            scope,
        }
    }

    /// The same for another table.
    pub(crate) fn of(self, scope: Scope) -> Self {
        Self { scope, ..self }
    }

    /// Notices, from now on, that somebody other than this backend and its clones changes the
    /// table.
    ///
    /// # Errors
    /// When the kernel refuses the subscription, or outside of a Tokio runtime.
    pub fn monitor(&self) -> Result<NftMonitor, Error> {
        NftMonitor::open(self.scope.table(), self.writers.clone())
    }

    fn hook(&self) -> Result<&dyn WriteHook, Error> {
        self.hook
            .as_deref()
            .ok_or_else(|| Error::new(ErrorKind::Unsupported, "this nftables backend only plans"))
    }

    /// Whether nft and the kernel have what the table needs, and the kernel finds IPv6 addresses in
    /// ranges as it should: frames on the device `lo` tell, which must be up, in a table of their
    /// own that is gone afterwards. Nothing else is changed.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] names the package or the kernel options that are missing, or what
    /// the kernel does wrongly; [`ErrorKind::Permission`] the capability.
    pub async fn probe(&self) -> Result<(), Error> {
        self.hook()?;
        let version = nft(&["--version"], "", "run nft").await?;
        let full = NftState {
            exists: true,
            ..NftState::of(
                Scope::Whole,
                &probe_desired(),
                self.settings.mask,
                &NftState::default(),
            )?
        };
        // The plan of a replacement passes on a host with our table and on one without.
        let script = plan::plan(
            Scope::Whole,
            &NftState {
                foreign: ["probe".to_owned()].into(),
                exists: true,
                ..NftState::default()
            },
            &full,
        )
        .to_string();
        match nft(&["-c", "-f", "-"], &script, "check a small table with nft").await {
            Ok(_) => lookup_probe::lookups_are_right().await,
            Err(error) if error.kind == ErrorKind::Permission => Err(Error::new(
                error.kind,
                "nftables needs CAP_NET_ADMIN in the host's network namespace",
            )
            .with_source(error.chain())),
            Err(error) if error.kind == ErrorKind::Transient => Err(error),
            Err(error) => {
                let context = format!(
                    "{} with this kernel can't hold the table: package {NFT_PACKAGE} 1.0 or newer and Linux 5.10 or newer with CONFIG_NF_TABLES, \
                     CONFIG_NF_TABLES_INET, CONFIG_NFT_CT, CONFIG_NFT_NAT, CONFIG_NFT_MASQ and CONFIG_NFT_FIB_INET are needed",
                    version.trim()
                );
                Err(Error::new(ErrorKind::Unsupported, context).with_source(error.chain()))
            }
        }
    }

    /// Takes away what a [`probe`](Self::probe) left behind that was ended half-way.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn forget_probe(&self) -> Result<(), Error> {
        self.hook()?;
        lookup_probe::remove().await
    }

    /// What our table has of some kind; none where there is no table, even if it went away just
    /// now.
    async fn list(&self, what: &[&str], context: &str) -> Result<Option<Vec<Value>>, Error> {
        self.hook()?;
        if !self.has_table().await? {
            return Ok(None);
        }
        match nft_json(
            &[&["list"], what, &[TABLE_FAMILY, self.scope.table()]].concat(),
            context,
        )
        .await
        {
            Err(error) if error.kind == ErrorKind::Conflict && !self.has_table().await? => Ok(None),
            listed => listed.map(Some),
        }
    }

    /// Whether our table is there. nft says that a table is missing only in words, so it is looked
    /// up among all.
    async fn has_table(&self) -> Result<bool, Error> {
        let tables = nft_json(&["list", "tables", TABLE_FAMILY], "list nftables tables").await?;
        let ours = |object: &Value| {
            object["table"]["name"] == self.scope.table()
                && object["table"]["family"] == TABLE_FAMILY
        };
        Ok(tables.iter().any(ours))
    }
}

/// The transaction before all others of a plan that takes over a former version's table.
const PREPARE: &str = "prepare sets";
/// The last transactions of such a plan.
const REMOVE_FORMER: &str = "remove former sets and chains";
/// The last transaction of a plan that makes classes wait.
const END_CHANGE: &str = "end change";

/// A state that uses every statement.
fn probe_desired() -> PolicyDesired {
    use egressgateway::{
        Overlay,
        model::{Family, TargetId},
    };
    let overlay = Overlay {
        port: 7789,
        mss: Family::ALL
            .map(|family| (family, 1000_u16))
            .into_iter()
            .collect(),
        ..Overlay::default()
    };
    let targets = [TargetId::FIRST].into_iter().collect();
    PolicyDesired {
        targets,
        overlay,
        ..PolicyDesired::default()
    }
}

#[async_trait]
impl Driver for Nftables {
    type Desired = PolicyDesired;
    type State = NftState;
    type Plan = NftPlan;

    async fn observe(&self) -> Result<NftState, Error> {
        let Some(objects) = self
            .list(&["table"], &format!("list table {}", self.scope.path()))
            .await?
        else {
            return Ok(NftState::default());
        };
        let state = table::state(&objects);
        for foreign in state.foreign() {
            tracing::warn!(
                foreign,
                table = self.scope.path(),
                "nftables table has foreign objects; replacing it"
            );
        }
        Ok(state)
    }

    fn plan(
        &self,
        desired: &PolicyDesired,
        current: &NftState,
    ) -> Result<Change<NftPlan, NftState>, Error> {
        let after = NftState::of(self.scope, desired, self.settings.mask, current)?;
        Ok(Change {
            plan: plan::plan(self.scope, current, &after),
            after,
        })
    }

    async fn apply(&self, plan: &NftPlan) -> Result<(), Error> {
        let hook = self.hook()?;
        if plan.is_empty() {
            return Ok(());
        }
        if !plan.preparation().is_empty() {
            hook.before(PREPARE)?;
            let context = format!("{PREPARE} of {}", self.scope.path());
            command::write(plan.preparation(), &context, &self.writers).await?;
        }
        if !plan.script().is_empty() {
            hook.before(plan.verb())?;
            let context = format!("{} {}", plan.verb(), self.scope.path());
            match plan.exact() {
                Some(changes) => {
                    element_batch::write(self.scope, changes, &context, &self.connection).await?;
                }
                None => command::write(plan.script(), &context, &self.writers).await?,
            }
        }
        for script in plan.removals() {
            hook.before(REMOVE_FORMER)?;
            let context = format!("{REMOVE_FORMER} of {}", self.scope.path());
            command::write(script, &context, &self.writers).await?;
        }
        if plan.ends_change() {
            hook.before(END_CHANGE)?;
            element_batch::flush(
                self.scope,
                CHANGING,
                &format!("{END_CHANGE} of {}", self.scope.path()),
                &self.connection,
            )
            .await?;
        }
        Ok(())
    }
}

impl PolicyBackend for Nftables {
    fn kind(&self) -> &'static str {
        "nftables"
    }
}

#[async_trait]
impl CounterSource for Nftables {
    async fn counters(&self) -> Result<BTreeMap<String, Counter>, Error> {
        let Some(objects) = self
            .list(&["counters", "table"], "list nftables counters")
            .await?
        else {
            return Ok(BTreeMap::new());
        };
        Ok(counters(&objects))
    }
}

/// What our counters in these objects of nft's JSON counted.
pub(crate) fn counters(objects: &[Value]) -> BTreeMap<String, Counter> {
    let counters = objects.iter().filter_map(|object| {
        let counter = &object["counter"];
        let name = counter["name"]
            .as_str()
            .filter(|name| COUNTERS.contains(name))?;
        Some((
            name.to_owned(),
            Counter {
                packets: counter["packets"].as_u64()?,
                bytes: counter["bytes"].as_u64()?,
            },
        ))
    });
    counters.collect()
}
