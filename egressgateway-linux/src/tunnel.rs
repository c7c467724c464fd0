//! Which tunnel a node gets.

use std::sync::Arc;

use egressgateway::{
    Encapsulation, Error, ErrorKind, Handover, Reconcile, Reconciler, TunnelDesired,
    config::Config, spec::Problem,
};
use egressgateway_netlink::Netlink;
#[cfg(feature = "geneve")]
use egressgateway_tunnel_geneve::{Geneve, GeneveSettings, GeneveShape};
#[cfg(feature = "vxlan")]
use egressgateway_tunnel_vxlan::{Vxlan, VxlanSettings, VxlanShape};

use crate::error::BuildError;

type Driver = Box<dyn Reconcile<TunnelDesired>>;

/// The tunnel of this node.
pub(crate) struct Tunnel {
    pub(crate) driver: Driver,
    pub(crate) encapsulation: Arc<dyn Encapsulation>,
}

/// A kind of tunnel that this agent was built with.
struct Kind {
    /// Its name in the configuration, which is the kernel's name for the kind of device too.
    name: &'static str,
    /// What the kernel must have been built with.
    option: &'static str,
    driver: fn(&Config, &Netlink) -> Driver,
    /// What a host without any tunnel of ours would do, as commands.
    offline: fn(&Config, &TunnelDesired) -> Result<String, Error>,
    shape: fn(&Config) -> Arc<dyn Encapsulation>,
}

const BUILT_IN: &[Kind] = &[
    #[cfg(feature = "vxlan")]
    Kind {
        name: "vxlan",
        option: "CONFIG_VXLAN",
        driver: |config, netlink| {
            Box::new(Reconciler::new(Vxlan::new(
                netlink.clone(),
                vxlan(config),
                Arc::new(()),
            )))
        },
        offline: |config, desired| from_nothing(&Vxlan::offline(vxlan(config)), desired),
        shape: |config| Arc::new(VxlanShape(vxlan(config))),
    },
    #[cfg(feature = "geneve")]
    Kind {
        name: "geneve",
        option: "CONFIG_GENEVE",
        driver: |config, netlink| {
            Box::new(Reconciler::new(Geneve::new(
                netlink.clone(),
                geneve(config),
                Arc::new(()),
            )))
        },
        offline: |config, desired| from_nothing(&Geneve::offline(geneve(config)), desired),
        shape: |config| Arc::new(GeneveShape(geneve(config))),
    },
];

/// The tunnel of a configuration without a host: what it would build on one.
#[derive(Clone)]
pub struct OfflineTunnel {
    kind: &'static Kind,
    config: Config,
}

impl std::fmt::Debug for OfflineTunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("OfflineTunnel")
            .field(&self.kind.name)
            .finish()
    }
}

impl OfflineTunnel {
    /// The tunnel that the configuration names.
    ///
    /// # Errors
    /// When it is not compiled in.
    pub fn of(config: &Config) -> Result<Self, Problem> {
        let kind = BUILT_IN
            .iter()
            .find(|kind| kind.name == config.tunnel.kind)
            .ok_or_else(|| not_built_in(config))?;
        Ok(Self {
            kind,
            config: config.clone(),
        })
    }

    /// What plans and explanations must know of it.
    #[must_use]
    pub fn encapsulation(&self) -> Arc<dyn Encapsulation> {
        (self.kind.shape)(&self.config)
    }

    /// What a host without any tunnel of ours would do, as commands.
    ///
    /// # Errors
    /// When the tunnel can't express what is desired.
    pub fn plan(&self, desired: &TunnelDesired) -> Result<String, Error> {
        (self.kind.offline)(&self.config, desired)
    }
}

fn from_nothing<D: egressgateway::Driver<Desired = TunnelDesired>>(
    driver: &D,
    desired: &TunnelDesired,
) -> Result<String, Error> {
    Ok(driver.plan(desired, &D::State::default())?.plan.to_string())
}

fn not_built_in(config: &Config) -> Problem {
    let names: Vec<&str> = BUILT_IN.iter().map(|kind| kind.name).collect();
    let rule = format!(
        "must be {}: this program was built without any other tunnel",
        names.join(" or ")
    );
    Problem::new("tunnel.kind", &config.tunnel.kind, rule)
}

/// What the configuration names and this program does not have.
pub(crate) fn unknown(config: &Config) -> Option<Problem> {
    let known = BUILT_IN.iter().any(|kind| kind.name == config.tunnel.kind);
    (!known).then(|| not_built_in(config))
}

/// The tunnel that the configuration names. What another kind left behind is removed before it is
/// built: both want the same UDP port. While there is neither, what is steered finds no way and is
/// dropped.
///
/// # Errors
/// When the kernel does not have it, with what else it has.
pub(crate) async fn choose(config: &Config, netlink: &Netlink) -> Result<Tunnel, BuildError> {
    let (chosen, others): (Vec<&Kind>, Vec<&Kind>) = BUILT_IN
        .iter()
        .partition(|kind| kind.name == config.tunnel.kind);
    let Some(kind) = chosen.first() else {
        return Err(BuildError::Config(unknown(config).into_iter().collect()));
    };
    if !netlink.has_link_kind(kind.name).await? {
        let mut possible = Vec::new();
        for other in &others {
            if netlink.has_link_kind(other.name).await? {
                possible.push(other.name);
            }
        }
        let instead = if possible.is_empty() {
            String::new()
        } else {
            format!("; this kernel has {}", possible.join(" and "))
        };
        let context = format!(
            "tunnel.kind {}: the kernel needs {} (module {}) for it{instead}",
            config.tunnel.kind, kind.option, kind.name
        );
        return Err(Error::new(ErrorKind::Unsupported, context).into());
    }
    let former = others
        .into_iter()
        .map(|other| (other.driver)(config, netlink))
        .collect();
    Ok(Tunnel {
        driver: Box::new(Handover::replacing((kind.driver)(config, netlink), former)),
        encapsulation: (kind.shape)(config),
    })
}

/// Takes away what any tunnel left on this host.
pub(crate) fn removal(config: &Config, netlink: &Netlink) -> Driver {
    let all = BUILT_IN
        .iter()
        .map(|kind| (kind.driver)(config, netlink))
        .collect();
    Box::new(egressgateway::DriverChain::new(all))
}

#[cfg(feature = "vxlan")]
fn vxlan(config: &Config) -> VxlanSettings {
    VxlanSettings::default()
        .with_vni(config.tunnel.vni)
        .with_port(config.tunnel.port)
        .with_mtu(config.tunnel.mtu)
}

#[cfg(feature = "geneve")]
fn geneve(config: &Config) -> GeneveSettings {
    GeneveSettings::default()
        .with_vni(config.tunnel.vni)
        .with_port(config.tunnel.port)
        .with_mtu(config.tunnel.mtu)
}
