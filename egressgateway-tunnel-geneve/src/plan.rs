//! The steps from one state to another.

use std::fmt;

use egressgateway::{Error, ErrorKind, Plan, model::MacAddress};
use egressgateway_netlink::{OverlayStep, constants::LINK_GROUP};

use crate::{
    constants::{DEVICE, PARAMETERS},
    state::{Device, GeneveState},
};

/// One write to the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GeneveStep {
    /// Adds the device, down: hardware address, largest packet in bytes, UDP port.
    AddLink(MacAddress, u32, u16),
    /// Deletes the device.
    DeleteLink,
    /// Changes its link, addresses, neighbours or routes.
    Device(OverlayStep),
}

impl GeneveStep {
    /// What it is, for a [`WriteHook`](egressgateway::WriteHook).
    #[must_use]
    pub fn verb(&self) -> &'static str {
        match self {
            Self::AddLink(..) => "add link",
            Self::DeleteLink => "delete link",
            Self::Device(step) => step.verb(),
        }
    }
}

/// Steps in the order in which they are taken: new peers come before old ones go.
///
/// Its text is a shell script that does the same, with `ip -batch`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GenevePlan {
    pub(crate) steps: Vec<GeneveStep>,
}

impl GenevePlan {
    /// The steps.
    #[must_use]
    pub fn steps(&self) -> &[GeneveStep] {
        &self.steps
    }

    pub(crate) fn between(current: &GeneveState, after: &GeneveState) -> Result<Self, Error> {
        let mut steps = Vec::new();
        match (&current.device, &after.device) {
            (_, Some(_)) if current.taken => {
                let what = format!("device {DEVICE} exists and is not ours; it stays as it is");
                return Err(Error::new(ErrorKind::Conflict, what));
            }
            (None, None) => {}
            (Some(_), None) => steps.push(GeneveStep::DeleteLink),
            (Some(old), Some(new)) if old.can_become(new) => change(&mut steps, old, new),
            (old, Some(new)) => {
                steps.extend(old.as_ref().map(|_| GeneveStep::DeleteLink));
                create(&mut steps, new, after.without_ipv6);
            }
        }
        Ok(Self { steps })
    }
}

impl Plan for GenevePlan {
    fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }
}

fn create(steps: &mut Vec<GeneveStep>, new: &Device, without_ipv6: bool) {
    if let (Some(mac), Some(geneve)) = (new.link.mac, &new.geneve) {
        steps.push(GeneveStep::AddLink(mac, new.link.mtu, geneve.port));
        change(steps, &new.created(without_ipv6), new);
    }
}

fn change(steps: &mut Vec<GeneveStep>, old: &Device, new: &Device) {
    let (come, gone) = old.link.peer_steps(&new.link);
    steps.extend(
        old.link
            .link_steps(&new.link)
            .into_iter()
            .chain(come)
            .chain(gone)
            .map(GeneveStep::Device),
    );
}

impl fmt::Display for GenevePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut open = false;
        for step in &self.steps {
            let batched = !matches!(step, GeneveStep::Device(OverlayStep::Tune));
            match (open, batched) {
                (false, true) => writeln!(f, "ip -batch - <<END")?,
                (true, false) => writeln!(f, "END")?,
                _ => {}
            }
            open = batched;
            write!(f, "{step}")?;
        }
        if open { writeln!(f, "END") } else { Ok(()) }
    }
}

impl fmt::Display for GeneveStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddLink(mac, mtu, port) => {
                writeln!(
                    f,
                    "link add {DEVICE} address {mac} mtu {mtu} group {LINK_GROUP} type geneve external dstport {port}"
                )
            }
            Self::DeleteLink => writeln!(f, "link del {DEVICE}"),
            Self::Device(step) => write!(f, "{}", step.on(DEVICE, &PARAMETERS)),
        }
    }
}
