//! The driver: reads the device, and takes the steps of a plan.

use std::sync::Arc;

use async_trait::async_trait;
use egressgateway::{
    Change, Driver, Encapsulation, Error, ErrorKind, LocalEnd, NextHop, OverlayLinks, Peer,
    TunnelDesired, WriteHook, model::Family,
};
use egressgateway_netlink::{Netlink, sysctl};

use crate::{
    constants::{DEVICE, PARAMETERS},
    plan::{GenevePlan, GeneveStep},
    shape::{GeneveSettings, GeneveShape},
    state::{Device, GeneveState},
};

/// The tunnel driver.
///
/// It owns the device `egress-geneve` if that carries our alias or our link group, with everything
/// on it. A device of that name with neither is somebody else's: planning a tunnel is a
/// [`Conflict`](ErrorKind::Conflict) then.
#[derive(Clone, Debug)]
pub struct Geneve {
    netlink: Option<Netlink>,
    shape: GeneveShape,
    hook: Arc<dyn WriteHook>,
}

impl Geneve {
    /// A driver of the kernel behind `netlink`; `hook` is asked before every write.
    #[must_use]
    pub fn new(netlink: Netlink, settings: GeneveSettings, hook: Arc<dyn WriteHook>) -> Self {
        Self {
            netlink: Some(netlink),
            shape: GeneveShape(settings),
            hook,
        }
    }

    /// A driver that can only plan.
    #[must_use]
    pub fn offline(settings: GeneveSettings) -> Self {
        Self {
            netlink: None,
            shape: GeneveShape(settings),
            hook: Arc::new(()),
        }
    }

    fn netlink(&self) -> Result<&Netlink, Error> {
        self.netlink
            .as_ref()
            .ok_or_else(|| Error::new(ErrorKind::Unsupported, "this tunnel driver only plans"))
    }
}

#[async_trait]
impl Driver for Geneve {
    type Desired = TunnelDesired;
    type State = GeneveState;
    type Plan = GenevePlan;

    async fn observe(&self) -> Result<GeneveState, Error> {
        let netlink = self.netlink()?;
        let mut state = GeneveState {
            without_ipv6: !sysctl::has_family(Family::V6),
            ..GeneveState::default()
        };
        let (links, addresses) = (netlink.links().await?, netlink.addresses().await?);
        match links.iter().find(|link| link.name == DEVICE) {
            Some(link) if link.is_ours() => {
                state.device = Some(Device {
                    geneve: link.geneve.clone(),
                    link: netlink
                        .overlay_device(link, &addresses, &PARAMETERS)
                        .await?,
                });
            }
            Some(_) => state.taken = true,
            None => {}
        }
        Ok(state)
    }

    fn plan(
        &self,
        desired: &TunnelDesired,
        current: &GeneveState,
    ) -> Result<Change<GenevePlan, GeneveState>, Error> {
        let after = GeneveState::of(desired, &self.shape, current)?;
        Ok(Change {
            plan: GenevePlan::between(current, &after)?,
            after,
        })
    }

    async fn apply(&self, plan: &GenevePlan) -> Result<(), Error> {
        let netlink = self.netlink()?;
        let mut index = netlink.index(DEVICE).await?;
        for step in &plan.steps {
            self.hook.before(step.verb())?;
            match step {
                GeneveStep::AddLink(mac, mtu, port) => {
                    netlink
                        .add_geneve(DEVICE, *mac, *mtu, *port)
                        .await
                        .map_err(|error| not_added(error, *port))?;
                    index = netlink.index(DEVICE).await?;
                }
                GeneveStep::DeleteLink => netlink.delete_link(DEVICE).await?,
                GeneveStep::Device(step) => {
                    netlink
                        .take(step, DEVICE, index, &PARAMETERS)
                        .await
                        .map_err(|error| not_up(error, &self.shape))?;
                }
            }
        }
        Ok(())
    }
}

/// Why the kernel refused the device, in words that help.
fn not_added(error: Error, port: u16) -> Error {
    let advice = match error.kind {
        ErrorKind::Unsupported => {
            "the kernel has no Geneve: it needs CONFIG_GENEVE (module geneve); tunnel.kind vxlan does without".to_owned()
        }
        // The name was free when the plan was made.
        ErrorKind::Conflict => {
            format!("UDP port {port} may belong to another Geneve device, of which there is one for each port: choose another tunnel.port")
        }
        _ => return error,
    };
    Error::new(error.kind, advice).with_source(error.chain())
}

/// The kernel takes the port when the device comes up.
fn not_up(error: Error, shape: &GeneveShape) -> Error {
    if error.kind != ErrorKind::Conflict {
        return error;
    }
    let advice = format!(
        "device {DEVICE} is gone, or UDP port {} belongs to another device: choose another tunnel.port",
        shape.0.port
    );
    Error::new(error.kind, advice).with_source(error.chain())
}

impl Encapsulation for Geneve {
    fn kind(&self) -> &'static str {
        self.shape.kind()
    }

    fn has_neighbours(&self) -> bool {
        self.shape.has_neighbours()
    }

    fn next_hop(&self, local: &LocalEnd, peer: &Peer, family: Family) -> Option<NextHop> {
        self.shape.next_hop(local, peer, family)
    }

    fn links(&self, local: &LocalEnd) -> OverlayLinks {
        self.shape.links(local)
    }
}
