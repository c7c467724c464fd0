//! Passes on the connections that are translated on their pods' own nodes.

mod elements;
mod rules;
mod state;

use std::{collections::BTreeMap, fmt, sync::Arc};

use async_trait::async_trait;
use egressgateway::{
    Change, Counter, CounterSource, Driver, Error, ErrorKind, NextHop, Plan, RelayDesired,
    RelayNode, WriteHook,
    model::{MacAddress, NodeName},
};
use nix::net::if_::if_nameindex;
use serde_json::Value;

pub use self::state::RelayState;
use self::{elements::Elements, rules::Table};
use crate::{
    NftablesSettings,
    apply::command::{self, nft, nft_json},
    observe::monitor::{NftMonitor, Writers},
    ruleset::names::{NFT_PACKAGE, RELAY_COUNTERS, RELAY_TABLE},
};

/// The gateway's half of distributed source translation: passes packets on, both ways, and keeps
/// nothing of their connections.
///
/// What other nodes send out is let through untracked when the sender has the egress address and
/// the port. Their answers are handed to the tunnel where they come in: before connection tracking,
/// routing and local delivery, so that it does not matter whether the address is this host's. Each
/// 256 ports of an address are one element of a hash; rules depend on devices only.
///
/// It has two tables of its own beside those of either backend, `inet egressgateway_relay` and
/// `netdev egressgateway_relay`, and has them only while there are addresses. They are written
/// together, in one transaction, so that this host never answers for the others.
///
/// The policy backend must let pass what is untracked and has [`MarkMask::answer_mark`], and take
/// the mark away; that device of the overlay which carries IPv4 needs `accept_local`, because an
/// egress address may be on this host.
///
/// Rules hold devices by their indexes. After a device was made anew, [`Driver::observe`] has to be
/// called again: [`Self::monitor`] does not tell.
///
/// [`MarkMask::answer_mark`]: egressgateway::model::MarkMask::answer_mark
#[derive(Clone, Debug)]
pub struct Relay {
    settings: NftablesSettings,
    /// None when it may only plan.
    hook: Option<Arc<dyn WriteHook>>,
    writers: Writers,
}

/// What a plan does to the relay's tables: a script for `nft -f -`, which is one transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RelayPlan {
    verb: &'static str,
    script: String,
}

impl fmt::Display for RelayPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.script)
    }
}

impl Plan for RelayPlan {
    fn is_empty(&self) -> bool {
        self.script.is_empty()
    }
}

impl Relay {
    /// A relay that asks `hook` before each transaction.
    #[must_use]
    pub fn new(settings: NftablesSettings, hook: Arc<dyn WriteHook>) -> Self {
        Self {
            hook: Some(hook),
            ..Self::offline(settings)
        }
    }

    /// A relay that only plans: reading and writing give [`ErrorKind::Unsupported`]. Which devices
    /// a host has, [`RelayState::on`] says.
    #[must_use]
    pub fn offline(settings: NftablesSettings) -> Self {
        Self {
            settings,
            hook: None,
            writers: Writers::default(),
        }
    }

    /// Whether nft and the kernel have what the tables need. Nothing is changed.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] names the package or the kernel options that are missing;
    /// [`ErrorKind::Permission`] the capability.
    pub async fn probe(&self) -> Result<(), Error> {
        self.hook()?;
        let version = nft(&["--version"], "", "run nft").await?;
        let host = RelayState::on([("lo".to_owned(), 1)]);
        let script = self.plan(&sample(), &host)?.plan.to_string();
        match nft(
            &["-c", "-f", "-"],
            &script,
            "check the relay's tables with nft",
        )
        .await
        {
            Ok(_) => Ok(()),
            Err(error) if error.kind == ErrorKind::Permission => Err(Error::new(
                error.kind,
                "the relay needs CAP_NET_ADMIN in the host's network namespace",
            )
            .with_source(error.chain())),
            Err(error) if error.kind == ErrorKind::Transient => Err(error),
            Err(error) => {
                let context = format!(
                    "{} with this kernel can't hold the relay's tables: package {NFT_PACKAGE} 1.0 or newer and Linux 5.10 or newer with \
                     CONFIG_NETFILTER_INGRESS, CONFIG_NF_TABLES_INET, CONFIG_NF_TABLES_NETDEV, CONFIG_NFT_FWD_NETDEV, CONFIG_NFT_FIB_INET, \
                     CONFIG_NFT_FIB_NETDEV and CONFIG_NFT_CT are needed",
                    version.trim()
                );
                Err(Error::new(ErrorKind::Unsupported, context).with_source(error.chain()))
            }
        }
    }

    /// Notices, from now on, that somebody other than this relay and its clones changes the tables.
    ///
    /// # Errors
    /// When the kernel refuses the subscription, or outside of a Tokio runtime.
    pub fn monitor(&self) -> Result<NftMonitor, Error> {
        NftMonitor::open(RELAY_TABLE, self.writers.clone())
    }

    fn hook(&self) -> Result<&dyn WriteHook, Error> {
        self.hook
            .as_deref()
            .ok_or_else(|| Error::new(ErrorKind::Unsupported, "this relay only plans"))
    }

    /// What there is of our tables; of a table that goes away meanwhile, nothing.
    async fn list(&self, what: &[&str]) -> Result<Vec<(Table, Vec<Value>)>, Error> {
        self.hook()?;
        let mut listed = Vec::new();
        for table in self.present().await? {
            let arguments = [&["list"], what, &[table.family(), RELAY_TABLE]].concat();
            match nft_json(&arguments, &format!("list table {}", table.path())).await {
                Err(error)
                    if error.kind == ErrorKind::Conflict
                        && !self.present().await?.contains(&table) => {}
                objects => listed.push((table, objects?)),
            }
        }
        Ok(listed)
    }

    /// Which of our tables there are. nft says that a table is missing only in words, so they are
    /// looked up among all.
    async fn present(&self) -> Result<Vec<Table>, Error> {
        let tables = nft_json(&["list", "tables"], "list nftables tables").await?;
        let has = |table: &Table| {
            tables.iter().any(|object| {
                object["table"]["name"] == RELAY_TABLE
                    && object["table"]["family"] == table.family()
            })
        };
        Ok(Table::ALL.into_iter().filter(has).collect())
    }
}

/// Index by name of each device of this host.
fn devices() -> Result<BTreeMap<String, u32>, Error> {
    let devices = if_nameindex()
        .map_err(|error| Error::from_io(error.into(), "list the devices of this host"))?;
    Ok(devices
        .iter()
        .filter_map(|device| Some((device.name().to_str().ok()?.to_owned(), device.index())))
        .collect())
}

/// A state that uses every statement, on a host that has the loopback device.
fn sample() -> RelayDesired {
    use std::net::{Ipv4Addr, Ipv6Addr};
    let node = NodeName::from("probe");
    let hop = |via| NextHop {
        device: "lo".to_owned(),
        via,
        encap: None,
    };
    let addresses = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    RelayDesired {
        addresses: addresses.into_iter().collect(),
        bindings: addresses
            .map(|address| ((address, 4), node.clone()))
            .into_iter()
            .collect(),
        nodes: [(
            node,
            RelayNode {
                hops: addresses.map(hop).into_iter().collect(),
                underlay: addresses.into_iter().collect(),
                mac: MacAddress::from_seed("probe"),
            },
        )]
        .into_iter()
        .collect(),
        outside: ["lo".to_owned()].into_iter().collect(),
        overlay: ["lo".to_owned()].into_iter().collect(),
        port: 7789,
        own: None,
    }
}

/// Reads these objects of nft's JSON as each of the tables, and panics unless the plan from there
/// ends where the plan from nothing does, and leaves nothing to plan.
pub(crate) fn read(objects: &[Value]) {
    let relay = Relay::offline(NftablesSettings::default());
    let plan = |current: &RelayState| {
        let change = relay.plan(&sample(), current);
        change.expect("the sample is valid")
    };
    let goal = plan(&RelayState::default()).after;
    for table in Table::ALL {
        let observed = RelayState::read([(table, objects.to_vec())], BTreeMap::new());
        let after = plan(&observed).after;
        assert_eq!(after, goal);
        assert!(plan(&after).plan.is_empty());
    }
}

#[async_trait]
impl Driver for Relay {
    type Desired = RelayDesired;
    type State = RelayState;
    type Plan = RelayPlan;

    async fn observe(&self) -> Result<RelayState, Error> {
        let tables = self.list(&["table"]).await?;
        Ok(RelayState::read(tables, devices()?))
    }

    fn plan(
        &self,
        desired: &RelayDesired,
        current: &RelayState,
    ) -> Result<Change<RelayPlan, RelayState>, Error> {
        let (after, layouts) = current.next(desired, self.settings.mask)?;
        let (verb, script) = if !layouts.is_empty() {
            let tables: String = layouts.iter().map(rules::Layout::script).collect();
            let elements = elements::commands(&Elements::new(), &after.elements);
            ("write relay", tables + &elements)
        } else if after.exists() {
            let elements = elements::commands(&current.elements, &after.elements);
            ("change bindings", elements)
        } else {
            let remove = |table: &Table| format!("delete table {}\n", table.path());
            let tables = current.tables.keys().map(remove).collect();
            ("remove relay", tables)
        };
        Ok(Change {
            plan: RelayPlan { verb, script },
            after,
        })
    }

    async fn apply(&self, plan: &RelayPlan) -> Result<(), Error> {
        let hook = self.hook()?;
        if plan.is_empty() {
            return Ok(());
        }
        hook.before(plan.verb)?;
        command::write(&plan.script, plan.verb, &self.writers).await
    }
}

#[async_trait]
impl CounterSource for Relay {
    async fn counters(&self) -> Result<BTreeMap<String, Counter>, Error> {
        let listed = self.list(&["counters", "table"]).await?;
        let objects = listed.iter().flat_map(|(_, objects)| objects);
        let counters = objects.filter_map(|object| {
            let counter = &object["counter"];
            let name = counter["name"]
                .as_str()
                .filter(|name| RELAY_COUNTERS.contains(name))?;
            Some((
                name.to_owned(),
                Counter {
                    packets: counter["packets"].as_u64()?,
                    bytes: counter["bytes"].as_u64()?,
                },
            ))
        });
        Ok(counters.collect())
    }
}
