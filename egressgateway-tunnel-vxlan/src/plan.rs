//! The steps from one state to another.

use std::{fmt, net::IpAddr};

use egressgateway::{
    Error, ErrorKind, Plan,
    model::{Family, MacAddress},
};
use egressgateway_netlink::{
    LinkChange, VxlanLink,
    constants::{LINK_GROUP, OWNER_ALIAS},
};
use imbl::{OrdMap, OrdSet};
use ipnet::IpNet;

use crate::{
    constants::{PARAMETERS, device},
    state::{Device, Remote, VxlanState},
};

/// One write to the kernel, on the device of a family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VxlanStep {
    /// Adds the device, down.
    AddLink(MacAddress, u32, VxlanLink),
    /// Deletes the device.
    DeleteLink,
    /// Changes the device.
    ChangeLink(LinkChange),
    /// Sets its kernel parameters, [`PARAMETERS`].
    Tune,
    /// Adds an address.
    AddAddress(IpNet),
    /// Deletes an address.
    DeleteAddress(IpNet),
    /// Says where a hardware address is.
    SetFdb(MacAddress, Remote),
    /// Forgets where a hardware address is.
    DeleteFdb(MacAddress),
    /// Says who has an overlay address.
    SetNeighbour(IpAddr, MacAddress),
    /// Forgets who has an overlay address.
    DeleteNeighbour(IpAddr, MacAddress),
}

impl VxlanStep {
    /// What it is, for a [`WriteHook`](egressgateway::WriteHook).
    #[must_use]
    pub fn verb(&self) -> &'static str {
        match self {
            Self::AddLink(..) => "add link",
            Self::DeleteLink => "delete link",
            Self::ChangeLink(_) => "change link",
            Self::Tune => "set sysctl",
            Self::AddAddress(_) => "add address",
            Self::DeleteAddress(_) => "delete address",
            Self::SetFdb(..) => "replace forwarding entry",
            Self::DeleteFdb(_) => "delete forwarding entry",
            Self::SetNeighbour(..) => "replace neighbour",
            Self::DeleteNeighbour(..) => "delete neighbour",
        }
    }
}

/// Steps in the order in which they are taken: new peers come before old ones go.
///
/// Its text is a shell script that does the same: `ip -batch` for links, addresses and neighbours, `bridge -batch` for forwarding entries.
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

    pub(crate) fn between(current: &VxlanState, after: &VxlanState, parents: OrdMap<u32, String>) -> Result<Self, Error> {
        let mut plan = Self { steps: Vec::new(), parents };
        for family in Family::ALL {
            let mut steps = Vec::new();
            match (current.devices.get(&family), after.devices.get(&family)) {
                (_, Some(_)) if current.taken.contains(&family) => {
                    let what = format!("device {} exists and is not ours; it stays as it is", device(family));
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
            plan.steps.extend(steps.into_iter().map(|step| (family, step)));
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
    if let (Some(mac), Some(vxlan)) = (new.mac, &new.vxlan) {
        steps.push(VxlanStep::AddLink(mac, new.mtu, vxlan.clone()));
        change(steps, &new.created(without_ipv6), new);
    }
}

fn change(steps: &mut Vec<VxlanStep>, old: &Device, new: &Device) {
    let attributes = LinkChange {
        mac: new.mac.filter(|_| new.mac != old.mac),
        mtu: (new.mtu != old.mtu).then_some(new.mtu),
        alias: (new.marked && !old.marked).then(|| OWNER_ALIAS.to_owned()),
        generates_addresses: (new.generates_addresses != old.generates_addresses).then_some(new.generates_addresses),
        up: None,
    };
    if attributes != LinkChange::default() {
        steps.push(VxlanStep::ChangeLink(attributes));
    }
    if !old.tuned {
        steps.push(VxlanStep::Tune);
    }
    if !old.up {
        // Apart from the rest: the kernel brings a device up before it looks at how IPv6 addresses are to be generated.
        steps.push(VxlanStep::ChangeLink(LinkChange { up: Some(true), ..LinkChange::default() }));
    }
    change_addresses(steps, &old.addresses, &new.addresses);
    let forgotten = OrdMap::new();
    // The kernel forgets all neighbours of a device whose hardware address changes.
    let neighbours = if old.mac == new.mac { &old.neighbours } else { &forgotten };
    for (mac, remotes) in &new.fdb {
        set_fdb(steps, *mac, old.fdb.get(mac), remotes);
    }
    let known = |address: &IpAddr, mac: &MacAddress| neighbours.get(address) == Some(mac);
    let missing = new.neighbours.iter().filter(|(address, mac)| !known(address, mac));
    steps.extend(missing.map(|(address, mac)| VxlanStep::SetNeighbour(*address, *mac)));
    let gone = neighbours.iter().filter(|(address, _)| !new.neighbours.contains_key(*address));
    steps.extend(gone.map(|(address, mac)| VxlanStep::DeleteNeighbour(*address, *mac)));
    let gone = old.fdb.keys().filter(|mac| !new.fdb.contains_key(*mac));
    steps.extend(gone.map(|mac| VxlanStep::DeleteFdb(*mac)));
}

/// New addresses come before old ones go: with the last one the kernel drops routes and neighbours of the device. It does not take an IPv6
/// address twice, whatever the prefix.
fn change_addresses(steps: &mut Vec<VxlanStep>, old: &OrdSet<IpNet>, new: &OrdSet<IpNet>) {
    let added: Vec<_> = new.iter().filter(|network| !old.contains(*network)).collect();
    let in_the_way = |network: &&IpNet| matches!(network, IpNet::V6(_)) && added.iter().any(|new| new.addr() == network.addr());
    let (first, last): (Vec<&IpNet>, Vec<&IpNet>) = old.iter().filter(|network| !new.contains(*network)).partition(in_the_way);
    steps.extend(first.into_iter().map(|network| VxlanStep::DeleteAddress(*network)));
    steps.extend(added.into_iter().map(|network| VxlanStep::AddAddress(*network)));
    steps.extend(last.into_iter().map(|network| VxlanStep::DeleteAddress(*network)));
}

fn set_fdb(steps: &mut Vec<VxlanStep>, mac: MacAddress, old: Option<&OrdSet<Remote>>, new: &OrdSet<Remote>) {
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
        VxlanStep::Tune => None,
        VxlanStep::SetFdb(..) | VxlanStep::DeleteFdb(_) => Some("bridge"),
        _ => Some("ip"),
    }
}

impl VxlanPlan {
    fn write_step(&self, f: &mut fmt::Formatter<'_>, device: &str, step: &VxlanStep) -> fmt::Result {
        match step {
            VxlanStep::AddLink(mac, mtu, vxlan) => {
                write!(f, "link add {device} address {mac} mtu {mtu} group {LINK_GROUP} type vxlan")?;
                write!(f, " id {} dstport {}", vxlan.vni, vxlan.port)?;
                if let Some(local) = vxlan.local {
                    write!(f, " local {local}")?;
                }
                self.write_parent(f, "dev", vxlan.parent)?;
                writeln!(f, " nolearning udpcsum")
            }
            VxlanStep::DeleteLink => writeln!(f, "link del {device}"),
            VxlanStep::ChangeLink(change) => write_change(f, device, change),
            VxlanStep::Tune => {
                PARAMETERS.iter().try_for_each(|(parameter, value)| writeln!(f, "sysctl -qw net.ipv4.conf.{device}.{parameter}={value}"))
            }
            VxlanStep::AddAddress(network) => {
                writeln!(f, "address add {network} dev {device}{}", if network.addr().is_ipv6() { " nodad" } else { "" })
            }
            VxlanStep::DeleteAddress(network) => writeln!(f, "address del {network} dev {device}"),
            VxlanStep::SetFdb(mac, remote) => {
                write!(f, "fdb replace {mac} dev {device} dst {}", remote.address)?;
                self.write_parent(f, "via", remote.via)?;
                writeln!(f, " self permanent")
            }
            VxlanStep::DeleteFdb(mac) => writeln!(f, "fdb del {mac} dev {device} self"),
            VxlanStep::SetNeighbour(address, mac) => writeln!(f, "neigh replace {address} lladdr {mac} dev {device} nud permanent"),
            VxlanStep::DeleteNeighbour(address, _) => writeln!(f, "neigh del {address} dev {device}"),
        }
    }

    fn write_parent(&self, f: &mut fmt::Formatter<'_>, word: &str, index: Option<u32>) -> fmt::Result {
        match index.map(|index| self.parents.get(&index).cloned().unwrap_or_else(|| format!("if{index}"))) {
            Some(name) => write!(f, " {word} {name}"),
            None => Ok(()),
        }
    }
}

fn write_change(f: &mut fmt::Formatter<'_>, device: &str, change: &LinkChange) -> fmt::Result {
    write!(f, "link set {device}")?;
    if let Some(mac) = change.mac {
        write!(f, " address {mac}")?;
    }
    if let Some(mtu) = change.mtu {
        write!(f, " mtu {mtu}")?;
    }
    if let Some(alias) = &change.alias {
        write!(f, " alias {alias}")?;
    }
    if let Some(generates) = change.generates_addresses {
        write!(f, " addrgenmode {}", if generates { "eui64" } else { "none" })?;
    }
    match change.up {
        Some(true) => writeln!(f, " up"),
        Some(false) => writeln!(f, " down"),
        None => writeln!(f),
    }
}
