//! The driver: reads the devices, and takes the steps of a plan.

use std::sync::Arc;

use async_trait::async_trait;
use egressgateway::{
    Change, Driver, Encapsulation, Error, ErrorKind, LocalEnd, NextHop, OverlayLinks, Peer,
    TunnelDesired, WriteHook, model::Family,
};
use egressgateway_netlink::{Address, FdbEntry, Link, Netlink, sysctl};
use imbl::{OrdMap, OrdSet};

use crate::{
    constants::{PARAMETERS, device},
    plan::{VxlanPlan, VxlanStep},
    shape::{VxlanSettings, VxlanShape},
    state::{Device, Remote, VxlanState},
};

/// The tunnel driver.
///
/// It owns the devices named `egress-vxlan-v4` and `egress-vxlan-v6` that carry our alias or our
/// link group, with everything on them. A device of that name with neither is somebody else's:
/// planning a tunnel is a [`Conflict`](ErrorKind::Conflict) then.
#[derive(Clone, Debug)]
pub struct Vxlan {
    netlink: Option<Netlink>,
    shape: VxlanShape,
    hook: Arc<dyn WriteHook>,
}

impl Vxlan {
    /// A driver of the kernel behind `netlink`; `hook` is asked before every write.
    #[must_use]
    pub fn new(netlink: Netlink, settings: VxlanSettings, hook: Arc<dyn WriteHook>) -> Self {
        Self {
            netlink: Some(netlink),
            shape: VxlanShape(settings),
            hook,
        }
    }

    /// A driver that can only plan.
    #[must_use]
    pub fn offline(settings: VxlanSettings) -> Self {
        Self {
            netlink: None,
            shape: VxlanShape(settings),
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
impl Driver for Vxlan {
    type Desired = TunnelDesired;
    type State = VxlanState;
    type Plan = VxlanPlan;

    async fn observe(&self) -> Result<VxlanState, Error> {
        let netlink = self.netlink()?;
        let mut state = VxlanState {
            without_ipv6: !sysctl::has_family(Family::V6),
            ..VxlanState::default()
        };
        let (links, addresses) = (netlink.links().await?, netlink.addresses().await?);
        for family in Family::ALL {
            let Some(link) = links.iter().find(|link| link.name == device(family)) else {
                continue;
            };
            if link.is_ours() {
                state
                    .devices
                    .insert(family, read(netlink, link, &addresses).await?);
            } else {
                state.taken.insert(family);
            }
        }
        Ok(state)
    }

    fn plan(
        &self,
        desired: &TunnelDesired,
        current: &VxlanState,
    ) -> Result<Change<VxlanPlan, VxlanState>, Error> {
        let after = VxlanState::of(desired, &self.shape, current)?;
        let underlays = desired
            .local
            .iter()
            .flat_map(|local| local.underlay.values());
        let parents = underlays
            .map(|underlay| (underlay.index, underlay.device.clone()))
            .collect();
        let plan = VxlanPlan::between(current, &after, parents)?;
        Ok(Change { plan, after })
    }

    async fn apply(&self, plan: &VxlanPlan) -> Result<(), Error> {
        let netlink = self.netlink()?;
        for family in Family::ALL {
            let name = device(family);
            let mut index = netlink.index(name).await?;
            for step in plan
                .steps
                .iter()
                .filter(|(of, _)| *of == family)
                .map(|(_, step)| step)
            {
                self.hook.before(step.verb())?;
                let there = || {
                    index.ok_or_else(|| {
                        Error::new(
                            ErrorKind::Conflict,
                            format!("{}: device {name} is gone", step.verb()),
                        )
                    })
                };
                match step {
                    VxlanStep::AddLink(mac, mtu, vxlan) => {
                        netlink.add_vxlan(name, *mac, *mtu, vxlan).await?;
                        index = netlink.index(name).await?;
                    }
                    VxlanStep::DeleteLink => netlink.delete_link(name).await?,
                    VxlanStep::SetFdb(mac, remote) => {
                        let entry = FdbEntry {
                            device: there()?,
                            mac: *mac,
                            remote: remote.address,
                            via: remote.via,
                        };
                        netlink.replace_fdb(&entry).await?;
                    }
                    VxlanStep::DeleteFdb(mac) => netlink.delete_fdb(there()?, *mac).await?,
                    VxlanStep::Device(step) => netlink.take(step, name, index, &PARAMETERS).await?,
                }
            }
        }
        Ok(())
    }
}

impl Encapsulation for Vxlan {
    fn kind(&self) -> &'static str {
        self.shape.kind()
    }

    fn next_hop(&self, local: &LocalEnd, peer: &Peer, family: Family) -> Option<NextHop> {
        self.shape.next_hop(local, peer, family)
    }

    fn links(&self, local: &LocalEnd) -> OverlayLinks {
        self.shape.links(local)
    }
}

async fn read(netlink: &Netlink, link: &Link, addresses: &[Address]) -> Result<Device, Error> {
    let mut fdb: OrdMap<_, OrdSet<Remote>> = OrdMap::new();
    for entry in netlink.fdb(link.index).await? {
        fdb.entry(entry.mac).or_default().insert(Remote {
            address: entry.remote,
            via: entry.via,
        });
    }
    Ok(Device {
        vxlan: link.vxlan.clone(),
        link: netlink.overlay_device(link, addresses, &PARAMETERS).await?,
        fdb,
    })
}
