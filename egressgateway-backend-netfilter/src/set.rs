//! The ipsets: what is in them.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use egressgateway::{
    Error, ErrorKind, PolicyDesired,
    model::{ClassId, Family, IpRange, SourceNat, TargetId, Verdict},
};
use ipnet::IpNet;

use crate::{
    bits::Bits,
    names::{Common, keeper_set, kept_set, where_set},
    numbers::Numbers,
};

/// How a set looks things up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// `hash:ip`
    Addresses,
    /// `hash:net`: the most specific prefix wins.
    Networks,
}

impl Kind {
    pub(crate) const ALL: [Self; 2] = [Self::Addresses, Self::Networks];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Addresses => "hash:ip",
            Self::Networks => "hash:net",
        }
    }

    /// The first revision of the type that has packet marks.
    pub(crate) const fn revision(self) -> u8 {
        match self {
            Self::Addresses => 4,
            Self::Networks => 6,
        }
    }
}

/// What a set is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) kind: Kind,
    pub(crate) family: Family,
    /// Entries carry a packet mark.
    pub(crate) marked: bool,
}

/// What an entry says of its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Entry {
    /// They are in.
    In,
    /// They are not, although a wider prefix is.
    Out,
    /// They are in, and these bits of the packet mark become so.
    Mark { value: u32, mask: u32 },
}

/// One set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Set {
    pub(crate) shape: Shape,
    pub(crate) entries: BTreeMap<IpNet, Entry>,
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = if self.family == Family::V4 { "inet" } else { "inet6" };
        write!(f, "{} family {family}{} maxelem {MAX_ELEMENTS}", self.kind.name(), if self.marked { " skbinfo" } else { "" })
    }
}

/// Room that nobody needs: the kernel's own default of 65536 is too little, and the limit costs nothing.
pub(crate) const MAX_ELEMENTS: u32 = 1 << 24;

/// Byte that says "held" in an entry; it is no target's.
pub(crate) const HELD_BYTE: u8 = TargetId::EXIT_BYTE;

/// All sets that `desired` asks for.
pub(crate) fn sets(desired: &PolicyDesired, bits: Bits, numbers: &Numbers) -> Result<BTreeMap<String, Set>, Error> {
    let mut sets = BTreeMap::new();
    for family in Family::ALL {
        for common in Common::ALL {
            let (kind, marked) = match common {
                Common::Pods => (Kind::Addresses, true),
                Common::Nets => (Kind::Networks, true),
                Common::Known | Common::Peers => (Kind::Addresses, false),
                Common::Exempt | Common::Local | Common::Governed => (Kind::Networks, false),
            };
            sets.insert(common.name(family), Set { shape: Shape { kind, family, marked }, entries: BTreeMap::new() });
        }
    }
    let class = |class: &ClassId| Entry::Mark { value: numbers.class(*class, bits), mask: bits.scratch() };
    let gate = desired.start_gate.clone().unwrap_or_default();
    let mut filler = Filler { sets: &mut sets };
    desired.pods.iter().for_each(|(pod, id)| filler.common(Common::Pods, IpNet::from(*pod), class(id)));
    desired.subnets.iter().for_each(|(net, id)| filler.range(Common::Nets, *net, class(id)));
    desired.exempt.iter().for_each(|net| filler.range(Common::Exempt, IpRange::from(*net), Entry::In));
    gate.local.iter().for_each(|net| filler.range(Common::Local, IpRange::from(*net), Entry::In));
    gate.governed.iter().for_each(|net| filler.range(Common::Governed, *net, Entry::In));
    gate.known.iter().for_each(|pod| filler.common(Common::Known, IpNet::from(*pod), Entry::In));
    desired.overlay.peers.iter().for_each(|peer| filler.common(Common::Peers, IpNet::from(*peer), Entry::In));
    filler.places(desired, bits, numbers)?;
    filler.keepers(desired);
    Ok(sets)
}

struct Filler<'a> {
    sets: &'a mut BTreeMap<String, Set>,
}

impl Filler<'_> {
    fn common(&mut self, set: Common, net: IpNet, entry: Entry) {
        if let Some(set) = self.sets.get_mut(&set.name(family(net))) {
            set.entries.insert(net, entry);
        }
    }

    fn range(&mut self, set: Common, range: IpRange, entry: Entry) {
        for net in prefixes(range) {
            self.common(set, net, entry);
        }
    }

    fn own(&mut self, name: String, range: IpRange, marked: bool, entry: Entry) {
        let shape = Shape { kind: Kind::Networks, family: range.family(), marked };
        let set = self.sets.entry(name).or_insert_with(|| Set { shape, entries: BTreeMap::new() });
        set.entries.extend(prefixes(range).map(|net| (net, entry)));
    }

    /// Where each class goes, and as whom it leaves where it exits here.
    fn places(&mut self, desired: &PolicyDesired, bits: Bits, numbers: &Numbers) -> Result<(), Error> {
        for ((class, range), verdict) in &desired.destinations {
            let (byte, source) = match verdict {
                Verdict::Pass => continue,
                Verdict::Hold => (HELD_BYTE, 0),
                Verdict::Egress { target, source_nat } => {
                    let exits = desired.accepts.contains(target) || desired.exits.contains(target);
                    let source = if exits { numbers.source(*source_nat, bits) } else { 0 };
                    if let SourceNat::Address(address) = source_nat
                        && exits
                        && Family::of(*address) != range.family()
                    {
                        let context = format!("class {class} to {range}: {address} is of the other address family");
                        return Err(Error::new(ErrorKind::Invalid, context));
                    }
                    (target.byte(), source)
                }
            };
            let entry = Entry::Mark { value: bits.byte(byte) | source, mask: bits.all() };
            self.own(where_set(*class, range.family()), *range, true, entry);
        }
        Ok(())
    }

    /// Who leaves here as itself, and where to: only what others may send here.
    fn keepers(&mut self, desired: &PolicyDesired) {
        let mut keeping = std::collections::BTreeSet::new();
        for ((class, range), verdict) in &desired.destinations {
            if matches!(verdict, Verdict::Egress { target, source_nat: SourceNat::Keep } if desired.accepts.contains(target)) {
                self.own(kept_set(*class, range.family()), *range, false, Entry::In);
                keeping.insert((*class, range.family()));
            }
        }
        for (class, family) in &keeping {
            let shape = Shape { kind: Kind::Networks, family: *family, marked: false };
            self.sets.insert(keeper_set(*class, *family), Set { shape, entries: BTreeMap::new() });
        }
        for (net, class) in desired.subnets.iter().filter(|(net, class)| keeping.contains(&(**class, net.family()))) {
            self.own(keeper_set(*class, net.family()), *net, false, Entry::In);
        }
        for (pod, class) in &desired.pods {
            let family = Family::of(*pod);
            // An exact address takes precedence over its subnet.
            if let Some((_, other)) = subnet(desired, *pod).filter(|(_, other)| other != class && keeping.contains(&(*other, family))) {
                self.own(keeper_set(other, family), IpRange::single(*pod), false, Entry::Out);
            }
            if keeping.contains(&(*class, family)) {
                self.own(keeper_set(*class, family), IpRange::single(*pod), false, Entry::In);
            }
        }
    }
}

/// The subnet that an address lies in; they are disjoint.
fn subnet(desired: &PolicyDesired, address: IpAddr) -> Option<(IpRange, ClassId)> {
    let bound = IpRange::new(address, IpRange::everything(Family::of(address)).last())?;
    desired.subnets.get_prev(&bound).map(|(net, class)| (*net, *class)).filter(|(net, _)| net.contains(address))
}

/// The prefixes of a range. `hash:net` takes none of length 0, so everything is written as its two halves.
fn prefixes(range: IpRange) -> impl Iterator<Item = IpNet> {
    range.prefixes().into_iter().flat_map(|net| match net.prefix_len() {
        0 => net.subnets(1).map_or_else(|_| vec![net], Iterator::collect),
        _ => vec![net],
    })
}

pub(crate) fn family(net: IpNet) -> Family {
    Family::of(net.addr())
}
