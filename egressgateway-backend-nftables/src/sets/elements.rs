//! The contents of all sets and maps, in our words.

use std::{collections::BTreeSet, net::IpAddr};

use egressgateway::{
    Error, ErrorKind, ExitNetwork, PolicyDesired,
    model::{ClassId, Family, IpRange, MarkMask, NetworkId, SourceNat, TargetId, Verdict},
};
use imbl::{OrdMap, OrdSet, ordmap::DiffItem, ordset};
use ipnet::IpNet;

use crate::{
    ruleset::ast::Jump,
    ruleset::names::{
        ANSWERS, HELD, NO_GATEWAY, SNAT_ADDRESS, SNAT_KEEP, SNAT_NODE, address_of_chain, by_chain,
        ports_chain, steer_chain, to_chain,
    },
    sets::ranges::{self, ElementKey},
};

/// What a new connection of a class meets at a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Steer {
    To(TargetId),
    Held,
    NoGateway,
}

impl Steer {
    /// The chain that does so.
    pub(crate) fn chain(self) -> String {
        match self {
            Self::To(target) => to_chain(target),
            Self::Held => HELD.into(),
            Self::NoGateway => NO_GATEWAY.into(),
        }
    }
}

/// As whom what exits here leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ExitAs {
    Node,
    Itself,
    Address,
    /// With this node's ports of an egress address, wherever it exits.
    Ports(IpAddr),
}

impl ExitAs {
    /// The chain that does so.
    pub(crate) fn chain(self) -> String {
        match self {
            Self::Node => SNAT_NODE.into(),
            Self::Itself => SNAT_KEEP.into(),
            Self::Address => SNAT_ADDRESS.into(),
            Self::Ports(address) => ports_chain(address),
        }
    }

    /// What such a chain does.
    pub(crate) fn of_chain(chain: &str) -> Option<Self> {
        [Self::Node, Self::Itself, Self::Address]
            .into_iter()
            .find(|exit| exit.chain() == chain)
            .or_else(|| address_of_chain(chain).map(Self::Ports))
    }
}

/// By which of the node's other networks what exits here leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Leave(pub(crate) NetworkId);

/// The contents of all sets and maps.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Elements {
    pub(crate) pods: OrdMap<IpAddr, ClassId>,
    pub(crate) subnets: OrdMap<IpRange, ClassId>,
    pub(crate) steer: OrdMap<ElementKey, Steer>,
    pub(crate) exit: OrdMap<ElementKey, ExitAs>,
    pub(crate) addresses: OrdMap<ElementKey, IpAddr>,
    pub(crate) keep_source: OrdSet<ElementKey>,
    pub(crate) via: OrdMap<ElementKey, Leave>,
    pub(crate) exits: OrdSet<u32>,
    pub(crate) node: OrdMap<(String, Family), IpAddr>,
    pub(crate) exempt: OrdSet<IpRange>,
    pub(crate) local: OrdSet<IpRange>,
    pub(crate) wide: OrdSet<IpRange>,
    pub(crate) governed: OrdSet<IpRange>,
    pub(crate) ungoverned: OrdSet<IpAddr>,
    pub(crate) peers: OrdSet<IpAddr>,
    pub(crate) own: OrdSet<IpAddr>,
    pub(crate) hosts: OrdSet<IpAddr>,
    pub(crate) relayed: OrdSet<IpAddr>,
    pub(crate) devices: OrdSet<String>,
    pub(crate) targets: OrdMap<u32, Jump>,
    /// Only while a change is under way, or after one that was interrupted.
    pub(crate) changing: OrdSet<ClassId>,
}

/// From what the translated contents were made, so that the next translation costs the difference.
/// Says nothing about the kernel: all memories are equal.
#[derive(Clone, Default)]
pub(crate) struct Memory(Option<Box<Origin>>);

#[derive(Clone)]
struct Origin {
    pods: OrdMap<IpAddr, ClassId>,
    subnets: OrdMap<IpRange, ClassId>,
    known: OrdSet<IpAddr>,
    destinations: OrdMap<ElementKey, Verdict>,
    targets: OrdSet<TargetId>,
    exiting: BTreeSet<TargetId>,
    accepts: OrdSet<TargetId>,
    networks: OrdMap<NetworkId, ExitNetwork>,
    /// The addresses that this node has ports of.
    ported: BTreeSet<IpAddr>,
    exempt: OrdSet<IpNet>,
    governed: OrdSet<IpRange>,
}

impl PartialEq for Memory {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Memory")
    }
}

impl Elements {
    /// The contents that `desired` asks for, from `current` contents that were made from `memory`.
    pub(crate) fn of(
        desired: &PolicyDesired,
        mask: MarkMask,
        current: &Self,
        memory: &Memory,
    ) -> Result<(Self, Memory), Error> {
        let gate = desired.start_gate.clone().unwrap_or_default();
        let origin = Origin {
            pods: desired.pods.clone(),
            subnets: desired.subnets.clone(),
            known: gate.known,
            destinations: desired.destinations.clone(),
            targets: desired.targets.clone(),
            exiting: desired
                .accepts
                .iter()
                .chain(&desired.exits)
                .copied()
                .collect(),
            accepts: desired.accepts.clone(),
            networks: desired.networks.clone(),
            ported: desired.blocks.keys().copied().collect(),
            exempt: desired.exempt.clone(),
            governed: gate.governed,
        };
        let before = memory.0.as_deref();
        let mut elements = Self {
            pods: desired.pods.clone(),
            subnets: desired.subnets.clone(),
            exempt: match before {
                Some(before) if before.exempt == origin.exempt => current.exempt.clone(),
                _ => ranges::union(origin.exempt.iter().map(|net| IpRange::from(*net))),
            },
            local: ranges::union(gate.local.iter().map(|net| IpRange::from(*net))),
            wide: ranges::union(gate.wide.iter().map(|net| IpRange::from(*net))),
            governed: match before {
                Some(before) if before.governed == origin.governed => current.governed.clone(),
                _ => ranges::union(origin.governed.iter().copied()),
            },
            ungoverned: origin.ungoverned(before, &current.ungoverned),
            node: node_addresses(desired)?,
            peers: desired.overlay.peers.clone(),
            own: desired.overlay.own.clone(),
            hosts: desired.overlay.hosts.clone(),
            relayed: desired.relayed.clone(),
            devices: desired.overlay.devices.clone(),
            targets: pins(desired, mask),
            exits: exits(desired, mask),
            ..Self::default()
        };
        if before.is_none() || current.subnets != elements.subnets {
            ranges::check_disjoint(
                elements.subnets.keys().map(|range| ((), *range)),
                "pod subnets",
            )?;
        }
        elements.place(&origin, current, before)?;
        elements.check_devices()?;
        Ok((elements, Memory(Some(Box::new(origin)))))
    }

    /// Nothing but what a connection's first packet is classified by.
    pub(crate) fn keep_classification(&mut self) {
        let (exit, addresses, node, keep_source, peers, own, hosts, targets) = Default::default();
        let relayed = OrdSet::new();
        *self = Self {
            exit,
            addresses,
            keep_source,
            node,
            peers,
            own,
            hosts,
            relayed,
            targets,
            ..std::mem::take(self)
        };
    }

    /// The classes that mean something else in `after`, wherever that shows a moment later than the
    /// rest of a transaction.
    pub(crate) fn changing_to(&self, after: &Self) -> OrdSet<ClassId> {
        let mut classes = OrdSet::new();
        classes.extend(changed(&self.steer, &after.steer));
        classes.extend(changed(&self.exit, &after.exit));
        classes.extend(changed(&self.addresses, &after.addresses));
        classes.extend(changed(&self.via, &after.via));
        classes
    }

    /// Fills the three maps of destinations.
    fn place(
        &mut self,
        origin: &Origin,
        current: &Self,
        before: Option<&Origin>,
    ) -> Result<(), Error> {
        let Some(before) = before
            .filter(|before| {
                before.targets == origin.targets
                    && before.exiting == origin.exiting
                    && before.accepts == origin.accepts
            })
            .filter(|before| before.networks == origin.networks && before.ported == origin.ported)
        else {
            ranges::check_disjoint(
                origin.destinations.keys().copied(),
                "destinations of a class",
            )?;
            for (place, verdict) in &origin.destinations {
                self.put(*place, *verdict, origin)?;
            }
            return Ok(());
        };
        (self.steer, self.exit, self.addresses) = (
            current.steer.clone(),
            current.exit.clone(),
            current.addresses.clone(),
        );
        (self.keep_source, self.via) = (current.keep_source.clone(), current.via.clone());
        let mut added = Vec::new();
        for change in before.destinations.diff(&origin.destinations) {
            let (place, verdict) = match change {
                DiffItem::Remove(place, _) => (*place, Verdict::Pass),
                DiffItem::Add(place, verdict)
                | DiffItem::Update {
                    new: (place, verdict),
                    ..
                } => (*place, *verdict),
            };
            self.put(place, verdict, origin)?;
            added.push(place);
        }
        for place in added {
            ranges::check_neighbours(&origin.destinations, place)?;
        }
        Ok(())
    }

    fn put(&mut self, place: ElementKey, verdict: Verdict, origin: &Origin) -> Result<(), Error> {
        let steer = match verdict {
            Verdict::Pass => None,
            Verdict::Hold => Some(Steer::Held),
            Verdict::Egress {
                source_nat: SourceNat::Ports(address),
                ..
            } if !origin.ported.contains(&address) => Some(Steer::Held),
            Verdict::Egress { target, .. }
                if origin.targets.contains(&target) || origin.exiting.contains(&target) =>
            {
                Some(Steer::To(target))
            }
            Verdict::Egress { .. } => Some(Steer::NoGateway),
        };
        let source = match verdict {
            // Wherever it exits, it is translated here.
            Verdict::Egress {
                source_nat: source_nat @ SourceNat::Ports(address),
                ..
            } => Some(source_nat).filter(|_| origin.ported.contains(&address)),
            Verdict::Egress { target, source_nat } if origin.exiting.contains(&target) => {
                Some(source_nat)
            }
            _ => None,
        };
        let (exit, address) = match source {
            None => (None, None),
            Some(SourceNat::NodeAddress) => (Some(ExitAs::Node), None),
            Some(SourceNat::Keep) => (Some(ExitAs::Itself), None),
            Some(SourceNat::Ports(address)) if Family::of(address) == place.1.family() => {
                (Some(ExitAs::Ports(address)), None)
            }
            Some(SourceNat::Address(address)) if Family::of(address) == place.1.family() => {
                (Some(ExitAs::Address), Some(address))
            }
            Some(SourceNat::Address(address) | SourceNat::Ports(address)) => {
                let context = format!(
                    "class {} to {}: {address} is of the other address family",
                    place.0, place.1
                );
                return Err(Error::new(ErrorKind::Invalid, context));
            }
        };
        set(&mut self.steer, place, steer);
        // Only what others may send here: this node's own pods get their answers here, too.
        if matches!(verdict, Verdict::Egress { target, source_nat: SourceNat::Keep } if origin.accepts.contains(&target))
        {
            self.keep_source.insert(place);
        } else {
            self.keep_source.remove(&place);
        }
        set(&mut self.exit, place, exit);
        let network = address.and_then(|address| {
            origin
                .networks
                .iter()
                .find(|(_, network)| network.addresses.contains(&address))
        });
        set(&mut self.via, place, network.map(|(id, _)| Leave(*id)));
        set(&mut self.addresses, place, address);
        Ok(())
    }

    /// A name that the kernel would refuse, or that would end nft's string.
    fn check_devices(&self) -> Result<(), Error> {
        match self.devices.iter().find(|name| !fits(name)) {
            Some(name) => Err(Error::new(
                ErrorKind::Invalid,
                format!("overlay device {name:?} is no device name"),
            )),
            None => Ok(()),
        }
    }
}

impl Origin {
    /// Of who is known, those without a class. So a pod that is missing where its class should be
    /// is not taken for one of them.
    fn ungoverned(&self, before: Option<&Self>, current: &OrdSet<IpAddr>) -> OrdSet<IpAddr> {
        let Some(before) = before.filter(|before| before.subnets == self.subnets) else {
            return self
                .known
                .iter()
                .filter(|address| !self.has_class(**address))
                .copied()
                .collect();
        };
        let known = before.known.diff(&self.known).map(|change| match change {
            ordset::DiffItem::Add(address) | ordset::DiffItem::Remove(address) => *address,
        });
        let pods = before.pods.diff(&self.pods).map(|change| match change {
            DiffItem::Add(address, _)
            | DiffItem::Remove(address, _)
            | DiffItem::Update {
                new: (address, _), ..
            } => *address,
        });
        let mut ungoverned = current.clone();
        for address in known.chain(pods) {
            if self.known.contains(&address) && !self.has_class(address) {
                ungoverned.insert(address);
            } else {
                ungoverned.remove(&address);
            }
        }
        ungoverned
    }

    fn has_class(&self, address: IpAddr) -> bool {
        let subnet = || {
            let bound = IpRange::new(address, IpRange::everything(Family::of(address)).last())?;
            self.subnets
                .get_prev(&bound)
                .filter(|(net, _)| net.contains(address))
        };
        self.pods.contains_key(&address) || subnet().is_some()
    }
}

/// Whether the kernel and nft would take it for the name of a device.
pub(crate) fn fits(name: &str) -> bool {
    (1..16).contains(&name.len())
        && name
            .chars()
            .all(|c| c.is_ascii_graphic() && !"\"\\/*".contains(c))
}

/// On a device whose name can't be written, the kernel chooses: others gave it that name.
fn node_addresses(desired: &PolicyDesired) -> Result<OrdMap<(String, Family), IpAddr>, Error> {
    let known: OrdMap<_, _> = desired
        .node_addresses
        .iter()
        .filter(|((device, _), _)| fits(device))
        .map(|(key, address)| (key.clone(), *address))
        .collect();
    match known
        .iter()
        .find(|((_, family), address)| Family::of(**address) != *family)
    {
        Some(((device, _), address)) => Err(Error::new(
            ErrorKind::Invalid,
            format!("node address {address} on {device} is of the other address family"),
        )),
        None => Ok(known),
    }
}

/// The classes whose entries differ.
fn changed<'a, V: Clone + PartialEq>(
    before: &'a OrdMap<ElementKey, V>,
    after: &'a OrdMap<ElementKey, V>,
) -> impl Iterator<Item = ClassId> + 'a {
    before.diff(after).map(|change| match change {
        DiffItem::Add(place, _)
        | DiffItem::Remove(place, _)
        | DiffItem::Update {
            new: (place, _), ..
        } => place.0,
    })
}

fn set<V: Clone + PartialEq>(map: &mut OrdMap<ElementKey, V>, place: ElementKey, value: Option<V>) {
    match value {
        Some(value) => {
            map.insert(place, value);
        }
        None => {
            map.remove(&place);
        }
    }
}

/// Later packets: a target's are marked, and those that leave by another network. The others that
/// exit here are left alone, and of what somebody outside began the answers are classified.
fn pins(desired: &PolicyDesired, mask: MarkMask) -> OrdMap<u32, Jump> {
    let exit = (mask.exit_mark(), Jump::Accept);
    let targets = desired
        .targets
        .iter()
        .map(|target| (mask.mark(*target), Jump::Goto(steer_chain(*target))));
    let networks = desired
        .networks
        .keys()
        .map(|network| (mask.network_mark(*network), Jump::Goto(by_chain(*network))));
    let answer = (mask.answer_mark(), Jump::Goto(ANSWERS.into()));
    // What this node translated itself leaves by the host's own routes where it exits here.
    let here = desired
        .distributed
        .iter()
        .filter(|target| desired.exits.contains(*target))
        .map(|target| (mask.mark(*target), Jump::Accept));
    targets
        .chain(networks)
        .chain(here)
        .chain([exit, answer])
        .collect()
}

/// The marks of what exits here, where there is more than one.
fn exits(desired: &PolicyDesired, mask: MarkMask) -> OrdSet<u32> {
    let networks: OrdSet<u32> = desired
        .networks
        .keys()
        .map(|network| mask.network_mark(*network))
        .collect();
    if networks.is_empty() {
        networks
    } else {
        networks.update(mask.exit_mark())
    }
}
