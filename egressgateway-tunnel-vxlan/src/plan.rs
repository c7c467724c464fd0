//! The steps from one state to another.

use std::fmt;

use egressgateway::{
    Error, ErrorKind, Plan,
    model::{Family, MacAddress},
};
use egressgateway_netlink::{OverlayStep, VxlanLink, constants::LINK_GROUP};
use imbl::{OrdMap, OrdSet};

use crate::{
    constants::{PARAMETERS, device},
    state::{Device, Remote, VxlanState},
};

/// One write to the kernel, on the device of a family.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum VxlanStep {
    /// Adds the device, down.
    AddLink(MacAddress, u32, VxlanLink),
    /// Deletes the device.
    DeleteLink,
    /// Changes its link, addresses, neighbours or routes.
    Device(OverlayStep),
    /// Says where a hardware address is.
    SetFdb(MacAddress, Remote),
    /// Forgets where a hardware address is.
    DeleteFdb(MacAddress),
}

impl VxlanStep {
    /// What it is, for a [`WriteHook`](egressgateway::WriteHook).
    #[must_use]
    pub fn verb(&self) -> &'static str {
        match self {
            Self::AddLink(..) => "add link",
            Self::DeleteLink => "delete link",
            Self::Device(step) => step.verb(),
            Self::SetFdb(..) => "replace forwarding entry",
            Self::DeleteFdb(_) => "delete forwarding entry",
        }
    }
}

/// Steps in the order in which they are taken: new peers come before old ones go.
///
/// Its text is a shell script that does the same: `ip -batch` for links, addresses, neighbours and
/// routes, `bridge -batch` for forwarding entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VxlanPlan {
    pub(crate) steps: Vec<(Family, VxlanStep)>,
    /// Names of the devices that outer packets leave by, for the text.
    pub(crate) parents: OrdMap<u32, String>,
}

impl VxlanPlan {
    /// The steps, with the family whose device they are about.
    #[must_use]
    pub fn steps(&self) -> &[(Family, VxlanStep)] {
        &self.steps
    }

    pub(crate) fn between(
        current: &VxlanState,
        after: &VxlanState,
        parents: OrdMap<u32, String>,
    ) -> Result<Self, Error> {
        let mut plan = Self {
            steps: Vec::new(),
            parents,
        };
        for family in Family::ALL {
            let mut steps = Vec::new();
            match (current.devices.get(&family), after.devices.get(&family)) {
                (_, Some(_)) if current.taken.contains(&family) => {
                    let what = format!(
                        "device {} exists and is not ours; it stays as it is",
                        device(family)
                    );
                    return Err(Error::new(ErrorKind::Conflict, what));
                }
                (None, None) => {}
                (Some(_), None) => steps.push(VxlanStep::DeleteLink),
                (Some(old), Some(new)) if old.can_become(new) => change(&mut steps, old, new),
                (old, Some(new)) => {
                    steps.extend(old.map(|_| VxlanStep::DeleteLink));
                    create(&mut steps, new, after.without_ipv6);
                }
            }
            plan.steps
                .extend(steps.into_iter().map(|step| (family, step)));
        }
        Ok(plan)
    }
}

impl Plan for VxlanPlan {
    fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }
}

fn create(steps: &mut Vec<VxlanStep>, new: &Device, without_ipv6: bool) {
    if let (Some(mac), Some(vxlan)) = (new.link.mac, &new.vxlan) {
        steps.push(VxlanStep::AddLink(mac, new.link.mtu, vxlan.clone()));
        let created = Device {
            vxlan: new.vxlan.clone(),
            link: new.link.created(without_ipv6),
            fdb: OrdMap::new(),
        };
        change(steps, &created, new);
    }
}

fn change(steps: &mut Vec<VxlanStep>, old: &Device, new: &Device) {
    steps.extend(
        old.link
            .link_steps(&new.link)
            .into_iter()
            .map(VxlanStep::Device),
    );
    for (mac, remotes) in &new.fdb {
        set_fdb(steps, *mac, old.fdb.get(mac), remotes);
    }
    let (come, gone) = old.link.peer_steps(&new.link);
    steps.extend(come.into_iter().chain(gone).map(VxlanStep::Device));
    let gone = old.fdb.keys().filter(|mac| !new.fdb.contains_key(*mac));
    steps.extend(gone.map(|mac| VxlanStep::DeleteFdb(*mac)));
}

fn set_fdb(
    steps: &mut Vec<VxlanStep>,
    mac: MacAddress,
    old: Option<&OrdSet<Remote>>,
    new: &OrdSet<Remote>,
) {
    if old == Some(new) {
        return;
    }
    // Of several destinations the kernel would replace one only.
    if old.is_some_and(|old| old.len() > 1) {
        steps.push(VxlanStep::DeleteFdb(mac));
    }
    steps.extend(new.iter().map(|remote| VxlanStep::SetFdb(mac, *remote)));
}

impl fmt::Display for VxlanPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut open = None;
        for (family, step) in &self.steps {
            let tool = tool(step);
            if open != tool {
                if open.is_some() {
                    writeln!(f, "END")?;
                }
                if let Some(tool) = tool {
                    writeln!(f, "{tool} -batch - <<END")?;
                }
                open = tool;
            }
            self.write_step(f, device(*family), step)?;
        }
        if open.is_some() {
            writeln!(f, "END")?;
        }
        Ok(())
    }
}

/// The tool that takes many lines at once; none where each has its own.
fn tool(step: &VxlanStep) -> Option<&'static str> {
    match step {
        VxlanStep::Device(OverlayStep::Tune) => None,
        VxlanStep::SetFdb(..) | VxlanStep::DeleteFdb(_) => Some("bridge"),
        _ => Some("ip"),
    }
}

impl VxlanPlan {
    fn write_step(
        &self,
        f: &mut fmt::Formatter<'_>,
        device: &str,
        step: &VxlanStep,
    ) -> fmt::Result {
        match step {
            VxlanStep::AddLink(mac, mtu, vxlan) => {
                write!(
                    f,
                    "link add {device} address {mac} mtu {mtu} group {LINK_GROUP} type vxlan"
                )?;
                write!(f, " id {} dstport {}", vxlan.vni, vxlan.port)?;
                if let Some(local) = vxlan.local {
                    write!(f, " local {local}")?;
                }
                self.write_parent(f, "dev", vxlan.parent)?;
                writeln!(f, " nolearning udpcsum")
            }
            VxlanStep::DeleteLink => writeln!(f, "link del {device}"),
            VxlanStep::Device(step) => write!(f, "{}", step.on(device, &PARAMETERS)),
            VxlanStep::SetFdb(mac, remote) => {
                write!(f, "fdb replace {mac} dev {device} dst {}", remote.address)?;
                self.write_parent(f, "via", remote.via)?;
                writeln!(f, " self permanent")
            }
            VxlanStep::DeleteFdb(mac) => writeln!(f, "fdb del {mac} dev {device} self"),
        }
    }

    fn write_parent(
        &self,
        f: &mut fmt::Formatter<'_>,
        word: &str,
        index: Option<u32>,
    ) -> fmt::Result {
        match index.map(|index| {
            self.parents
                .get(&index)
                .cloned()
                .unwrap_or_else(|| format!("if{index}"))
        }) {
            Some(name) => write!(f, " {word} {name}"),
            None => Ok(()),
        }
    }
}
