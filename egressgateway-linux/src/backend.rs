//! Which policy backend a node gets, and why.

use std::sync::Arc;

use egressgateway::{
    CounterSource, DestinationView, DriverChain, Error, ErrorKind, Handover, PolicyBackend,
    PolicyDesired, PolicyMonitor, Reconcile, Reconciler, Unmanaged, UntrackingRules,
    config::{Config, Iptables},
    spec::Problem,
};
#[cfg(feature = "netfilter")]
use egressgateway_backend_netfilter::{
    IptablesFlavour, IptablesUntracking, Netfilter, NetfilterSettings, Transit,
};
#[cfg(all(feature = "nftables", feature = "netfilter"))]
use egressgateway_backend_nftables::{ExitGuard, ExitMarks, Services};
#[cfg(feature = "nftables")]
use egressgateway_backend_nftables::{NftUntracking, Nftables, NftablesSettings};

use crate::error::BuildError;
#[cfg(all(feature = "nftables", feature = "netfilter"))]
use crate::guarded::Guarded;

type Policy = Box<dyn Reconcile<PolicyDesired>>;

/// The backend of this node.
pub(crate) struct Backend {
    pub(crate) driver: Policy,
    pub(crate) counters: Arc<dyn CounterSource>,
    pub(crate) monitor: Arc<dyn PolicyMonitor>,
    /// Which destination it sees.
    pub(crate) view: DestinationView,
    /// Its name and why it was chosen, for the log and the node's condition.
    pub(crate) description: String,
}

/// Backends that this agent was built with.
const BUILT_IN: &[&str] = &[
    #[cfg(feature = "nftables")]
    "nftables",
    #[cfg(feature = "netfilter")]
    "netfilter",
];

/// What the configuration names and this agent does not have.
pub(crate) fn unknown(config: &Config) -> Option<Problem> {
    let name = config
        .policy_backend
        .as_deref()
        .filter(|name| !BUILT_IN.contains(name))?;
    let rule = format!(
        "must be auto or {}: this agent was built without any other backend",
        BUILT_IN.join(" or ")
    );
    Some(Problem::new("policyBackend", name, &rule))
}

/// The backend that the configuration names, or the first that this host can do: nftables before
/// netfilter. What another backend left behind is removed once this one is in force.
///
/// # Errors
/// When the host can't do it, or any, each with what it lacks.
pub(crate) async fn choose(config: &Config) -> Result<Backend, BuildError> {
    let mut lacking = Vec::new();
    for name in BUILT_IN {
        if let Some(asked) = config.policy_backend.as_deref() {
            if asked == *name {
                probe(name, config).await?;
                return made(name, config, "as configured").await;
            }
            continue;
        }
        match probe(name, config).await {
            Ok(()) if lacking.is_empty() => {
                return made(name, config, "chosen because this host has what it needs").await;
            }
            Ok(()) => {
                return made(
                    name,
                    config,
                    &format!("chosen because {}", lacking.join("; ")),
                )
                .await;
            }
            Err(error) if error.kind == ErrorKind::Unsupported => {
                lacking.push(format!("{name} can't be used: {}", error.chain()));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(Error::new(
        ErrorKind::Unsupported,
        format!(
            "no policy backend works on this host: {}",
            lacking.join("; ")
        ),
    )
    .into())
}

async fn probe(name: &str, config: &Config) -> Result<(), Error> {
    match name {
        #[cfg(feature = "nftables")]
        "nftables" => nftables(config).probe().await,
        #[cfg(feature = "netfilter")]
        "netfilter" => netfilter(config).probe().await,
        _ => Err(Error::new(
            ErrorKind::Unsupported,
            format!("this agent was built without {name}"),
        )),
    }
}

async fn made(name: &str, config: &Config, why: &str) -> Result<Backend, BuildError> {
    let _ = config;
    match name {
        #[cfg(feature = "nftables")]
        "nftables" => {
            let backend = nftables(config);
            #[allow(unused_mut)]
            let mut node = InForce::new(
                Box::new(Reconciler::new(backend.clone())),
                Arc::new(backend.monitor()?),
            );
            #[cfg(feature = "netfilter")]
            node.beside_iptables(config, &[IptablesFlavour::Legacy, IptablesFlavour::Nft])
                .await?;
            let mut former = netfilter_of_any_flavour(config);
            former.extend(former_guard(config).await?);
            former.extend(former_services(config));
            Ok(node.after(former, backend, format!("nftables, {why}")))
        }
        #[cfg(feature = "netfilter")]
        "netfilter" => {
            let backend = netfilter(config);
            let flavour = backend.iptables().await?;
            let (word, other) = match flavour {
                IptablesFlavour::Legacy => ("legacy", IptablesFlavour::Nft),
                _ => ("nft", IptablesFlavour::Legacy),
            };
            let mut node = InForce::new(
                Box::new(Reconciler::new(backend.clone())),
                Arc::new(backend.monitor()),
            );
            node.beside_iptables(config, &[other]).await?;
            let mut former = transit_left_in(config, flavour).await?;
            #[cfg(feature = "nftables")]
            {
                node.guarded(&backend).await?;
                former.extend(node.seeing_services(config).await?);
            }
            former.push(Box::new(Reconciler::new(Netfilter::former_flavour(
                of_flavour(config, other),
                Arc::new(()),
            ))));
            former.extend(former_nftables(config));
            Ok(node.after(
                former,
                backend,
                format!("netfilter with iptables-{word}, {why}"),
            ))
        }
        _ => Err(Error::new(
            ErrorKind::Unsupported,
            format!("this agent was built without {name}"),
        )
        .into()),
    }
}

/// A backend, and what works beside it on this host.
struct InForce {
    drivers: Vec<Policy>,
    monitors: Vec<Arc<dyn PolicyMonitor>>,
    /// Beside the backend's own.
    counters: Vec<Arc<dyn CounterSource>>,
}

impl InForce {
    fn new(backend: Policy, monitor: Arc<dyn PolicyMonitor>) -> Self {
        Self {
            drivers: vec![backend],
            monitors: vec![monitor],
            counters: Vec::new(),
        }
    }

    /// What exits is looked at again once it was translated: others' rules may come before the
    /// backend's in iptables' nat table.
    #[cfg(all(feature = "nftables", feature = "netfilter"))]
    async fn guarded(&mut self, backend: &Netfilter) -> Result<(), Error> {
        match guard(backend).await {
            Ok(guard) => {
                self.monitors.push(Arc::new(guard.monitor()?));
                self.counters.push(Arc::new(guard.clone()));
                let policy = Box::new(DriverChain::new(std::mem::take(&mut self.drivers)));
                self.drivers = vec![Box::new(Guarded {
                    guard: Box::new(Reconciler::new(guard)),
                    policy,
                })];
                Ok(())
            }
            Err(error) if error.kind == ErrorKind::Unsupported => {
                let lacking = error.chain();
                tracing::warn!(
                    lacking,
                    "no nftables; foreign translation of egress addresses goes unnoticed"
                );
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// What somebody translates, such as a connection to a service, is classified by where it
    /// leads. Where that can't be, what the policies govern is dropped, and what an earlier agent
    /// left is removed.
    #[cfg(all(feature = "nftables", feature = "netfilter"))]
    async fn seeing_services(&mut self, config: &Config) -> Result<Option<Policy>, Error> {
        let services = services(config);
        match services.probe().await {
            Ok(()) => {
                self.monitors.push(Arc::new(services.monitor()?));
                self.counters.push(Arc::new(services.clone()));
                self.drivers.push(Box::new(Reconciler::new(services)));
                Ok(None)
            }
            Err(error) if error.kind == ErrorKind::Unsupported => {
                let lacking = error.chain();
                tracing::warn!(
                    lacking,
                    "no nftables; traffic of pods to Services in front of governed destinations is dropped on this host"
                );
                Ok(Some(Box::new(Reconciler::new(services))))
            }
            Err(error) => Err(error),
        }
    }

    /// Firewalls kept by these flavours of iptables let pass what exits here.
    #[cfg(feature = "netfilter")]
    async fn beside_iptables(
        &mut self,
        config: &Config,
        flavours: &[IptablesFlavour],
    ) -> Result<(), Error> {
        for flavour in flavours {
            if let Some(transit) = transit(config, *flavour).await? {
                self.monitors.push(Arc::new(transit.monitor()));
                self.drivers.push(Box::new(Reconciler::new(transit)));
            }
        }
        Ok(())
    }

    /// What works on this node from now on, once what `former` left is gone.
    fn after(
        self,
        former: Vec<Policy>,
        backend: impl PolicyBackend + CounterSource + 'static,
        description: String,
    ) -> Backend {
        let driver = Box::new(Handover::new(
            Box::new(DriverChain::new(self.drivers)),
            former,
        ));
        let view = backend.destination_view();
        let mut counters = self.counters;
        counters.push(Arc::new(backend));
        Backend {
            driver,
            view,
            counters: Arc::new(counters),
            monitor: Arc::new(self.monitors),
            description,
        }
    }
}

/// Who tells what others take out of connection tracking on this host.
pub(crate) fn untracking() -> Vec<Arc<dyn UntrackingRules>> {
    [
        #[cfg(feature = "nftables")]
        nftables_untracking(),
        #[cfg(feature = "netfilter")]
        Some(Arc::new(IptablesUntracking) as Arc<dyn UntrackingRules>),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// What nftables tells, on hosts that have it.
#[cfg(feature = "nftables")]
fn nftables_untracking() -> Option<Arc<dyn UntrackingRules>> {
    match NftUntracking::open() {
        Ok(rules) => Some(Arc::new(rules)),
        Err(error) => {
            tracing::debug!(
                error = error.chain(),
                "cannot read from nftables what others take out of connection tracking"
            );
            None
        }
    }
}

/// Takes away what any backend left on this host.
///
/// # Errors
/// When the host's firewalls can't be read.
pub(crate) async fn removal(config: &Config) -> Result<Policy, Error> {
    let mut all = netfilter_of_any_flavour(config);
    #[cfg(feature = "netfilter")]
    for flavour in [IptablesFlavour::Legacy, IptablesFlavour::Nft] {
        all.extend(transit_left_in(config, flavour).await?);
    }
    all.extend(former_nftables(config));
    all.extend(former_guard(config).await?);
    all.extend(former_services(config));
    Ok(Box::new(Handover::new(Box::new(Unmanaged), all)))
}

/// Takes away what a probe of nftables left behind that was ended half-way; where nothing of it can
/// be, that is nothing.
///
/// # Errors
/// When the kernel refuses.
#[cfg(feature = "nftables")]
pub(crate) async fn forget_probe(config: &Config) -> Result<(), Error> {
    match nftables(config).forget_probe().await {
        Err(error) if error.kind != ErrorKind::Unsupported => Err(error),
        _ => Ok(()),
    }
}

#[cfg(not(feature = "nftables"))]
#[expect(clippy::unused_async, reason = "only nft must be asked")]
pub(crate) async fn forget_probe(_: &Config) -> Result<(), Error> {
    Ok(())
}

#[cfg(feature = "nftables")]
fn nftables(config: &Config) -> Nftables {
    Nftables::new(
        NftablesSettings::default().with_mask(config.mark.mask),
        Arc::new(()),
    )
}

#[cfg(feature = "nftables")]
fn former_nftables(config: &Config) -> Vec<Policy> {
    vec![Box::new(Reconciler::new(nftables(config)))]
}

#[cfg(not(feature = "nftables"))]
fn former_nftables(_: &Config) -> Vec<Policy> {
    Vec::new()
}

/// The guard of the netfilter backend's exits.
///
/// # Errors
/// Where the host can't have it.
#[cfg(all(feature = "nftables", feature = "netfilter"))]
async fn guard(backend: &Netfilter) -> Result<ExitGuard, Error> {
    let marks = backend.exit_marks();
    ExitGuard::open(
        ExitMarks {
            exit: marks.exit,
            source: marks.source,
            node: marks.node,
        },
        Arc::new(()),
    )
    .await
}

/// Removes it.
#[cfg(all(feature = "nftables", feature = "netfilter"))]
async fn former_guard(config: &Config) -> Result<Option<Policy>, Error> {
    match guard(&netfilter(config)).await {
        Ok(guard) => Ok(Some(Box::new(Reconciler::new(guard)))),
        Err(error) if error.kind == ErrorKind::Unsupported => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(not(all(feature = "nftables", feature = "netfilter")))]
#[expect(clippy::unused_async, reason = "only nft must be asked first")]
async fn former_guard(_: &Config) -> Result<Option<Policy>, Error> {
    Ok(None)
}

#[cfg(all(feature = "nftables", feature = "netfilter"))]
fn services(config: &Config) -> Services {
    Services::new(
        NftablesSettings::default().with_mask(config.mark.mask),
        Arc::new(()),
    )
}

/// Removes what classified translated connections.
#[cfg(all(feature = "nftables", feature = "netfilter"))]
fn former_services(config: &Config) -> Vec<Policy> {
    vec![Box::new(Reconciler::new(services(config)))]
}

#[cfg(not(all(feature = "nftables", feature = "netfilter")))]
fn former_services(_: &Config) -> Vec<Policy> {
    Vec::new()
}

#[cfg(feature = "netfilter")]
fn of_flavour(config: &Config, flavour: IptablesFlavour) -> NetfilterSettings {
    NetfilterSettings::default()
        .with_mask(config.mark.mask)
        .with_flavour(flavour)
}

#[cfg(feature = "netfilter")]
fn netfilter(config: &Config) -> Netfilter {
    let flavour = match config.iptables {
        Iptables::Auto => IptablesFlavour::Auto,
        Iptables::Legacy => IptablesFlavour::Legacy,
        Iptables::Nft => IptablesFlavour::Nft,
    };
    Netfilter::new(of_flavour(config, flavour), Arc::new(()))
}

/// None where the host has no such iptables.
#[cfg(feature = "netfilter")]
async fn transit(config: &Config, flavour: IptablesFlavour) -> Result<Option<Transit>, Error> {
    match Transit::open(of_flavour(config, flavour), Arc::new(())).await {
        Ok(transit) => Ok(Some(transit)),
        Err(error) if error.kind == ErrorKind::Unsupported => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes what let pass other backends' exits.
#[cfg(feature = "netfilter")]
async fn transit_left_in(config: &Config, flavour: IptablesFlavour) -> Result<Vec<Policy>, Error> {
    let transit = transit(config, flavour).await?;
    Ok(transit
        .into_iter()
        .map(|transit| Box::new(Reconciler::new(transit)) as Policy)
        .collect())
}

/// The last one goes first: sets can go when no chain refers to them.
#[cfg(feature = "netfilter")]
fn netfilter_of_any_flavour(config: &Config) -> Vec<Policy> {
    vec![
        Box::new(Reconciler::new(Netfilter::new(
            of_flavour(config, IptablesFlavour::Nft),
            Arc::new(()),
        ))),
        Box::new(Reconciler::new(Netfilter::former_flavour(
            of_flavour(config, IptablesFlavour::Legacy),
            Arc::new(()),
        ))),
    ]
}

#[cfg(not(feature = "netfilter"))]
fn netfilter_of_any_flavour(_: &Config) -> Vec<Policy> {
    let _ = Iptables::Auto;
    Vec::new()
}
