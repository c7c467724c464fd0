use std::sync::Arc;

use egressgateway::{
    Change, Driver, Encapsulation, Error, TunnelDesired, config::Config, spec::Problem,
};
use egressgateway_tunnel_geneve::{Geneve, GeneveSettings, GeneveShape};
use egressgateway_tunnel_vxlan::{Vxlan, VxlanSettings, VxlanShape};

/// The tunnel of a configuration.
pub(crate) enum Tunnel {
    Vxlan(VxlanSettings),
    Geneve(GeneveSettings),
}

impl Tunnel {
    pub(crate) fn of(config: &Config) -> Result<Self, Problem> {
        let tunnel = &config.tunnel;
        match tunnel.kind.as_str() {
            "vxlan" => Ok(Self::Vxlan(VxlanSettings {
                vni: tunnel.vni,
                port: tunnel.port,
                mtu: tunnel.mtu,
            })),
            "geneve" => Ok(Self::Geneve(GeneveSettings {
                vni: tunnel.vni,
                port: tunnel.port,
                mtu: tunnel.mtu,
            })),
            other => Err(Problem::new(
                "tunnel.kind",
                other,
                "must be vxlan or geneve: no other tunnel can be planned here",
            )),
        }
    }

    pub(crate) fn shape(&self) -> Arc<dyn Encapsulation> {
        match self {
            Self::Vxlan(settings) => Arc::new(VxlanShape(settings.clone())),
            Self::Geneve(settings) => Arc::new(GeneveShape(settings.clone())),
        }
    }

    /// What a node would program, from nothing.
    pub(crate) fn plan(&self, desired: &TunnelDesired) -> Result<String, Error> {
        fn text<D: Driver<Desired = TunnelDesired>>(
            driver: &D,
            desired: &TunnelDesired,
        ) -> Result<String, Error> {
            let Change { plan, .. } = driver.plan(desired, &D::State::default())?;
            Ok(plan.to_string())
        }
        match self {
            Self::Vxlan(settings) => text(&Vxlan::offline(settings.clone()), desired),
            Self::Geneve(settings) => text(&Geneve::offline(settings.clone()), desired),
        }
    }
}
