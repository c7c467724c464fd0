use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

use async_trait::async_trait;
use egressgateway::{
    Change, Counter, CounterSource, DestinationView, Driver, Error, ErrorKind, Plan, PolicyBackend,
    PolicyDesired, WriteHook,
    model::{Family, MarkMask},
};

use imbl::OrdMap;
use tokio::time::Instant;

use crate::{
    contention::JumpContention,
    exec::flavour::{Flavour, IptablesFlavour},
    exec::ipset::Ipset,
    exec::iptables,
    exec::writes::Writes,
    mark_layout::MarkLayout,
    monitor::NetfilterMonitor,
    names::COUNTERS,
    ruleset::save::{self, Owner},
    ruleset::table::Tables,
    sets::numbers::AS_NODE,
    state::NetfilterState,
    transition::plan::{self, NetfilterPlan, Step},
};

/// What the backend needs to know apart from the desired state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct NetfilterSettings {
    /// The byte of packet and connection marks that is ours. Of packet marks, the sixteen lowest
    /// other bits are borrowed while the first packet of a governed connection is classified, and
    /// are 0 afterwards.
    pub mask: MarkMask,
    /// Which iptables holds our chains.
    pub flavour: IptablesFlavour,
}

impl NetfilterSettings {
    /// Another byte of packet and connection marks.
    #[must_use]
    pub const fn with_mask(mut self, mask: MarkMask) -> Self {
        self.mask = mask;
        self
    }

    /// Another iptables for our chains.
    #[must_use]
    pub const fn with_flavour(mut self, flavour: IptablesFlavour) -> Self {
        self.flavour = flavour;
        self
    }
}

/// How rules tell which source a connection is to have, until they have translated it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitMarks {
    /// Bits of the connection mark, and their value where the connection exits here.
    pub exit: (u32, u32),
    /// Bits of the packet mark that hold the source's number. They are 0 once our rules have
    /// translated it.
    pub source: u32,
    /// Their value where the source is the node's address.
    pub node: u32,
}

/// What of a host a backend looks after.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Scope {
    /// Sets, and chains of one flavour.
    #[default]
    All,
    /// Chains of one flavour: another one's refer to the same sets.
    Chains,
}

/// The backend. It keeps nothing but the flavour that it chose: what it knows of the kernel is in
/// [`NetfilterState`].
#[derive(Clone, Debug)]
pub struct Netfilter {
    settings: NetfilterSettings,
    /// None when it may only plan.
    hook: Option<Arc<dyn WriteHook>>,
    flavour: Arc<OnceLock<Flavour>>,
    scope: Scope,
    writes: Writes,
    contention: JumpContention,
}

impl Netfilter {
    /// A backend that asks `hook` before each transaction: the sets' changes, and a family's rules.
    #[must_use]
    pub fn new(settings: NetfilterSettings, hook: Arc<dyn WriteHook>) -> Self {
        Self {
            settings,
            hook: Some(hook),
            flavour: Arc::default(),
            scope: Scope::All,
            writes: Writes::default(),
            contention: JumpContention::default(),
        }
    }

    /// A backend that only plans: reading and writing give [`ErrorKind::Unsupported`].
    #[must_use]
    pub fn offline(settings: NetfilterSettings) -> Self {
        Self {
            settings,
            hook: None,
            flavour: Arc::default(),
            scope: Scope::All,
            writes: Writes::default(),
            contention: JumpContention::default(),
        }
    }

    /// A backend that removes the chains that another flavour left behind; the sets belong to the
    /// flavour that is in force now.
    #[must_use]
    pub fn former_flavour(settings: NetfilterSettings, hook: Arc<dyn WriteHook>) -> Self {
        Self {
            scope: Scope::Chains,
            ..Self::new(settings, hook)
        }
    }

    /// Notices, from now on, that somebody other than this backend and its clones changes our sets
    /// or chains. The kernel tells of chains that iptables-nft keeps; for sets and for
    /// iptables-legacy it looks every few seconds.
    #[must_use]
    pub fn monitor(&self) -> NetfilterMonitor<Self> {
        NetfilterMonitor::new(self.clone(), self.writes.clone(), |before, now| {
            before != now
        })
    }

    /// The iptables that keeps our rules on this host.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] when the programs are missing, or when the host's rules can't be
    /// read.
    pub async fn iptables(&self) -> Result<IptablesFlavour, Error> {
        Ok(match self.flavour().await? {
            Flavour::Legacy => IptablesFlavour::Legacy,
            Flavour::Nft => IptablesFlavour::Nft,
        })
    }

    /// Which marks the first packet of a connection that exits here has between mangle and nat, for
    /// whoever looks after it later.
    #[must_use]
    pub fn exit_marks(&self) -> ExitMarks {
        let layout = MarkLayout::new(self.settings.mask);
        ExitMarks {
            exit: (layout.mask(), layout.exit()),
            source: layout.scratch(),
            node: layout.number(AS_NODE),
        }
    }

    fn hook(&self) -> Result<&dyn WriteHook, Error> {
        self.hook
            .as_deref()
            .ok_or_else(|| Error::new(ErrorKind::Unsupported, "this netfilter backend only plans"))
    }

    /// The flavour, chosen once: two of them would make two sets of rules.
    async fn flavour(&self) -> Result<Flavour, Error> {
        self.hook()?;
        if let Some(flavour) = self.flavour.get() {
            return Ok(*flavour);
        }
        let chosen = Flavour::choose(self.settings.flavour).await?;
        tracing::debug!(flavour = ?chosen, "iptables");
        Ok(*self.flavour.get_or_init(|| chosen))
    }

    /// Whether the kernel and the programs have what the rules need; changes nothing that lasts.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] names the kernel option or the package that is missing,
    /// [`ErrorKind::Permission`] the capability.
    pub async fn probe(&self) -> Result<(), Error> {
        let flavour = self.flavour().await?;
        Ipset::open()?.probe().await?;
        for family in Family::ALL {
            let version = iptables::version(flavour, family).await?;
            for (table, rule, option) in PROBES {
                let script = format!("*{table}\n:EGW-PROBE - [0:0]\n-A EGW-PROBE {rule}\nCOMMIT\n");
                match iptables::test(flavour, family, &script).await {
                    Ok(()) => {}
                    Err(error)
                        if matches!(error.kind, ErrorKind::Permission | ErrorKind::Transient) =>
                    {
                        return Err(error);
                    }
                    Err(error) => {
                        let context = format!(
                            "{family}: {version} with this kernel can't hold `{rule}` in table {table}: {option} is needed"
                        );
                        return Err(
                            Error::new(ErrorKind::Unsupported, context).with_source(error.chain())
                        );
                    }
                }
            }
        }
        Ok(())
    }
}

/// A rule of each kind, and what it needs.
const PROBES: [(&str, &str, &str); 11] = [
    (
        "raw",
        "-p udp -m udp --dport 7789 -j CT --notrack",
        "CONFIG_IP_NF_RAW, CONFIG_IP6_NF_RAW and CONFIG_NETFILTER_XT_TARGET_CT",
    ),
    (
        "raw",
        "-m addrtype --dst-type LOCAL -j RETURN",
        "CONFIG_NETFILTER_XT_MATCH_ADDRTYPE",
    ),
    (
        "mangle",
        "-j RETURN",
        "CONFIG_IP_NF_MANGLE and CONFIG_IP6_NF_MANGLE",
    ),
    (
        "mangle",
        "-m conntrack --ctdir REPLY -j RETURN",
        "CONFIG_NETFILTER_XT_MATCH_CONNTRACK",
    ),
    (
        "mangle",
        "-m connmark --mark 0x0/0xff -j RETURN",
        "CONFIG_NETFILTER_XT_CONNMARK",
    ),
    (
        "mangle",
        "-m mark --mark 0x0/0xff -j MARK --set-xmark 0x0/0xff",
        "CONFIG_NETFILTER_XT_MARK",
    ),
    (
        "mangle",
        "-p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 1000",
        "CONFIG_NETFILTER_XT_TARGET_TCPMSS",
    ),
    (
        "mangle",
        "-m comment --comment egressgateway -j RETURN",
        "CONFIG_NETFILTER_XT_MATCH_COMMENT",
    ),
    (
        "filter",
        "-j RETURN",
        "CONFIG_IP_NF_FILTER and CONFIG_IP6_NF_FILTER",
    ),
    ("nat", "-j RETURN", "CONFIG_IP_NF_NAT and CONFIG_IP6_NF_NAT"),
    (
        "nat",
        "-j MASQUERADE",
        "CONFIG_NETFILTER_XT_TARGET_MASQUERADE",
    ),
];

#[async_trait]
impl Driver for Netfilter {
    type Desired = PolicyDesired;
    type State = NetfilterState;
    type Plan = NetfilterPlan;

    async fn observe(&self) -> Result<NetfilterState, Error> {
        let flavour = self.flavour().await?;
        let mut tables = Tables::new();
        for family in Family::ALL {
            tables.extend(save::parse(
                &iptables::save(flavour, family, false).await?,
                family,
                Owner::Backend,
            ));
        }
        let tolerance = self.contention.tolerance(&tables, Instant::now());
        let sets = if self.scope == Scope::All {
            Ipset::open()?.list().await?
        } else {
            OrdMap::new()
        };
        Ok(NetfilterState {
            tolerance,
            ..NetfilterState::observed(sets, tables)
        })
    }

    fn plan(
        &self,
        desired: &PolicyDesired,
        current: &NetfilterState,
    ) -> Result<Change<NetfilterPlan, NetfilterState>, Error> {
        let layout = MarkLayout::new(self.settings.mask);
        let after = NetfilterState::of(desired, layout, current)?;
        Ok(Change {
            plan: plan::plan(current, &after, layout),
            after,
        })
    }

    async fn apply(&self, plan: &NetfilterPlan) -> Result<(), Error> {
        let hook = self.hook()?;
        if plan.is_empty() {
            return Ok(());
        }
        let flavour = self.flavour().await?;
        let _writing = self.writes.begin();
        for step in &plan.steps {
            match step {
                Step::Sets(changes) => {
                    let mut ipset = Ipset::open()?;
                    for change in changes {
                        ipset.change(change, hook).await?;
                    }
                }
                Step::Restore { family, script } => {
                    hook.before("restore iptables")?;
                    iptables::restore(flavour, *family, script, &self.writes).await?;
                }
            }
        }
        self.contention
            .moved(&plan.puts_jumps_first(), Instant::now());
        Ok(())
    }
}

impl PolicyBackend for Netfilter {
    fn kind(&self) -> &'static str {
        "netfilter"
    }

    /// The mangle table comes before destination translation, but what is translated is looked at
    /// again, and the last word counts.
    fn destination_view(&self) -> DestinationView {
        DestinationView::Translated
    }
}

#[async_trait]
impl CounterSource for Netfilter {
    async fn counters(&self) -> Result<BTreeMap<String, Counter>, Error> {
        let flavour = self.flavour().await?;
        let mut sum: BTreeMap<String, Counter> = BTreeMap::new();
        for family in Family::ALL {
            for (name, counter) in save::counters(&iptables::save(flavour, family, true).await?) {
                *sum.entry(name).or_default() += counter;
            }
        }
        debug_assert!(sum.len() <= COUNTERS.len());
        Ok(sum)
    }
}
