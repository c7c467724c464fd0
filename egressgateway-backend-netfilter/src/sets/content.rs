//! What all sets hold, made from what they held before at the cost of the difference.

use std::{net::IpAddr, sync::Arc};

use egressgateway::{
    Error, ErrorKind, Overlay, PolicyDesired,
    model::{ClassId, Family, IpRange, SourceNat, TargetId, Verdict},
};
use imbl::{OrdMap, OrdSet, ordmap, ordset};
use ipnet::IpNet;

use crate::{
    mark_layout::MarkLayout,
    names::{Common, keep_pods_set, keep_source_set, verdicts_set},
    sets::numbers::{Numbers, Uses},
    sets::roles::Roles as _,
    sets::set::{Entry, Set, Shape},
};

/// Byte that says "leaves as if it were not governed" in an entry; it is no target's. Every set of
/// destinations says so of what it does not govern, so that a packet of a class for which nothing
/// is found at all can be held: somebody has flushed what should be there.
pub(crate) const PASS_BYTE: u8 = TargetId::EXIT_BYTE;
/// Byte that says "held": the same as if nothing were found.
const HELD_BYTE: u8 = 0;

/// All sets of a desired state, and what they were made from.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    desired: PolicyDesired,
    layout: MarkLayout,
    uses: Uses,
    pub(crate) numbers: Arc<Numbers>,
    pub(crate) sets: OrdMap<String, Set>,
}

impl Content {
    /// The sets that `desired` asks for, from `previous` ones where there are any.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when ranges overlap or an address is of the wrong family,
    /// [`ErrorKind::Unsupported`] when there are more classes or egress addresses than numbers.
    pub(crate) fn of(
        desired: &PolicyDesired,
        layout: MarkLayout,
        previous: Option<&Self>,
    ) -> Result<Self, Error> {
        let same_roles = |from: &PolicyDesired| {
            from.accepts == desired.accepts
                && from.exits == desired.exits
                && from.blocks.keys().eq(desired.blocks.keys())
        };
        let previous =
            previous.filter(|previous| previous.layout == layout && same_roles(&previous.desired));
        if let Some(previous) = previous {
            let (uses, numbers) = previous.count(desired)?;
            if Arc::ptr_eq(&numbers, &previous.numbers) || numbers.keep(&previous.numbers) {
                return previous.changed(desired, uses, numbers);
            }
        }
        let nothing = Self::nothing(desired, layout);
        let (uses, numbers) = nothing.count(desired)?;
        nothing.changed(desired, uses, numbers)
    }

    /// Whether `next`, which was made from this, needs the same rules: they depend on roles,
    /// numbers and the names of sets only.
    pub(crate) fn has_same_rules(&self, next: &Self) -> bool {
        let (old, new) = (&self.desired, &next.desired);
        let Overlay {
            peers, own, hosts, ..
        } = new.overlay.clone();
        let same_overlay = Overlay {
            peers,
            own,
            hosts,
            ..old.overlay.clone()
        } == new.overlay;
        let same_roles = old.targets == new.targets
            && old.accepts == new.accepts
            && old.exits == new.exits
            && old.ways_out == new.ways_out;
        let same_roles =
            same_roles && old.node_addresses == new.node_addresses && old.networks == new.networks;
        let same_roles = same_roles
            && old.distributed == new.distributed
            && old.blocks == new.blocks
            && old.relayed.is_empty() == new.relayed.is_empty();
        let same_names = || {
            self.sets
                .diff(&next.sets)
                .all(|change| matches!(change, ordmap::DiffItem::Update { .. }))
        };
        self.layout == next.layout
            && same_roles
            && same_overlay
            && *self.numbers == *next.numbers
            && same_names()
    }

    /// The sets that are always there, empty, on a node in the role that `desired` says.
    fn nothing(desired: &PolicyDesired, layout: MarkLayout) -> Self {
        let all = Common::ALL
            .into_iter()
            .flat_map(|common| Family::ALL.map(|family| (common, family)));
        let (accepts, exits) = (desired.accepts.clone(), desired.exits.clone());
        let blocks = desired.blocks.clone();
        Self {
            desired: PolicyDesired {
                accepts,
                exits,
                blocks,
                ..PolicyDesired::default()
            },
            layout,
            uses: Uses::default(),
            numbers: Arc::default(),
            sets: all
                .map(|(common, family)| (common.name(family), Set::new(Shape::of(common, family))))
                .collect(),
        }
    }

    fn count(&self, desired: &PolicyDesired) -> Result<(Uses, Arc<Numbers>), Error> {
        let uses = self.uses.follow(&self.desired, desired);
        let numbers = if uses.needs_same_numbers(&self.uses) {
            self.numbers.clone()
        } else {
            Arc::new(Numbers::of(&uses)?)
        };
        Ok((uses, numbers))
    }

    fn changed(
        &self,
        desired: &PolicyDesired,
        uses: Uses,
        numbers: Arc<Numbers>,
    ) -> Result<Self, Error> {
        let mut change = Change {
            from: &self.desired,
            to: desired,
            layout: self.layout,
            numbers: &numbers,
            sets: self.sets.clone(),
        };
        change.pods();
        change.subnets()?;
        change.lists();
        change.destinations()?;
        change.keepers(&self.uses, &uses);
        let sets = change.sets;
        Ok(Self {
            desired: desired.clone(),
            layout: self.layout,
            uses,
            numbers,
            sets,
        })
    }
}

struct Change<'a> {
    from: &'a PolicyDesired,
    to: &'a PolicyDesired,
    layout: MarkLayout,
    numbers: &'a Numbers,
    sets: OrdMap<String, Set>,
}

impl Change<'_> {
    fn class(&self, class: ClassId) -> Entry {
        Entry::Mark {
            value: self.numbers.class(class, self.layout),
            mask: self.layout.scratch(),
        }
    }

    fn put(&mut self, name: &str, nets: impl IntoIterator<Item = IpNet>, entry: Entry) {
        if let Some(set) = self.sets.get_mut(name) {
            set.entries.extend(nets.into_iter().map(|net| (net, entry)));
        }
    }

    fn take(&mut self, name: &str, nets: impl IntoIterator<Item = IpNet>) {
        if let Some(set) = self.sets.get_mut(name) {
            for net in nets {
                set.entries.remove(&net);
            }
        }
    }

    /// The same for a set that is there only as long as something is in it.
    fn put_own(&mut self, name: String, range: IpRange) {
        let set = self
            .sets
            .entry(name)
            .or_insert_with(|| Set::new(Shape::networks(range.family(), false)));
        set.entries
            .extend(prefixes(range).map(|net| (net, Entry::In)));
    }

    fn take_own(&mut self, name: &str, range: IpRange) {
        self.take(name, prefixes(range));
        if self
            .sets
            .get(name)
            .is_some_and(|set| set.entries.is_empty())
        {
            self.sets.remove(name);
        }
    }

    fn pass(&self) -> Entry {
        Entry::Mark {
            value: self.layout.byte(PASS_BYTE),
            mask: self.layout.all(),
        }
    }

    /// What a class's destinations say of a range; the rest passes.
    fn put_place(&mut self, class: ClassId, range: IpRange, entry: Entry) {
        let (name, pass) = (verdicts_set(class, range.family()), self.pass());
        let set = self.sets.entry(name).or_insert_with(|| {
            let mut set = Set::new(Shape::networks(range.family(), true));
            set.entries
                .extend(prefixes(IpRange::everything(range.family())).map(|net| (net, pass)));
            set
        });
        set.entries.extend(prefixes(range).map(|net| (net, entry)));
    }

    fn take_place(&mut self, class: ClassId, range: IpRange) {
        let (name, pass) = (verdicts_set(class, range.family()), self.pass());
        let Some(set) = self.sets.get_mut(&name) else {
            return;
        };
        for net in prefixes(range) {
            set.entries.remove(&net);
            if net.prefix_len() == 1 {
                set.entries.insert(net, pass);
            }
        }
        if set.entries.len() <= 2 && set.entries.values().all(|entry| *entry == pass) {
            self.sets.remove(&name);
        }
    }

    fn pods(&mut self) {
        let (gone, come) = halves(self.from.pods.diff(&self.to.pods));
        for (pod, _) in gone {
            self.take(&Common::Pods.name(Family::of(*pod)), [IpNet::from(*pod)]);
        }
        for (pod, class) in come {
            let entry = self.class(*class);
            self.put(
                &Common::Pods.name(Family::of(*pod)),
                [IpNet::from(*pod)],
                entry,
            );
        }
    }

    fn subnets(&mut self) -> Result<(), Error> {
        let (gone, come) = halves(self.from.subnets.diff(&self.to.subnets));
        for (range, _) in gone {
            self.take(&Common::Subnets.name(range.family()), prefixes(*range));
        }
        for (range, class) in come {
            let before = self.to.subnets.range(..*range).next_back();
            if let Some((other, _)) = before.filter(|(other, _)| other.overlaps(range)) {
                return Err(Error::new(
                    ErrorKind::Invalid,
                    format!("pod subnets overlap: {other} and {range}"),
                ));
            }
            let entry = self.class(*class);
            self.put(
                &Common::Subnets.name(range.family()),
                prefixes(*range),
                entry,
            );
        }
        Ok(())
    }

    /// Single addresses change one by one. Networks may overlap, so that one that goes may be part
    /// of another that stays: their sets, which are short, are filled anew.
    fn lists(&mut self) {
        let (old, new) = (
            self.from.start_gate.clone().unwrap_or_default(),
            self.to.start_gate.clone().unwrap_or_default(),
        );
        let (from, to) = (&self.from.overlay, &self.to.overlay);
        let addresses = [
            (Common::Peers, &from.peers, &to.peers),
            (Common::Own, &from.own, &to.own),
            (Common::Hosts, &from.hosts, &to.hosts),
            (Common::Relayed, &self.from.relayed, &self.to.relayed),
        ];
        for (common, from, to) in addresses {
            for change in from.diff(to) {
                match change {
                    ordset::DiffItem::Add(address) => self.put(
                        &common.name(Family::of(*address)),
                        [IpNet::from(*address)],
                        Entry::In,
                    ),
                    ordset::DiffItem::Remove(address) => {
                        self.take(&common.name(Family::of(*address)), [IpNet::from(*address)]);
                    }
                }
            }
        }
        self.ungoverned(&old.known, &new.known);
        let networks = [
            (Common::Exempt, &self.from.exempt, &self.to.exempt),
            (Common::Local, &old.local, &new.local),
            (Common::Wide, &old.wide, &new.wide),
        ];
        for (common, from, to) in networks {
            if from != to {
                self.refill(common, to.iter().map(|net| IpRange::from(*net)));
            }
        }
        if old.governed != new.governed {
            self.refill(Common::Governed, new.governed.iter().copied());
        }
    }

    /// Of who is known, those without a class. So a pod that is missing where its class should be
    /// is not taken for one of them.
    fn ungoverned(&mut self, old: &OrdSet<IpAddr>, new: &OrdSet<IpAddr>) {
        if self.from.subnets != self.to.subnets {
            old.iter()
                .chain(new)
                .for_each(|address| self.is_ungoverned(*address, new));
            return;
        }
        for change in old.diff(new) {
            let (ordset::DiffItem::Add(address) | ordset::DiffItem::Remove(address)) = change;
            self.is_ungoverned(*address, new);
        }
        let (gone, come) = halves(self.from.pods.diff(&self.to.pods));
        gone.into_iter()
            .chain(come)
            .for_each(|(address, _)| self.is_ungoverned(*address, new));
    }

    fn is_ungoverned(&mut self, address: IpAddr, known: &OrdSet<IpAddr>) {
        let (name, net) = (
            Common::Ungoverned.name(Family::of(address)),
            IpNet::from(address),
        );
        if known.contains(&address)
            && !self.to.pods.contains_key(&address)
            && subnet(self.to, address).is_none()
        {
            self.put(&name, [net], Entry::In);
        } else {
            self.take(&name, [net]);
        }
    }

    fn refill(&mut self, common: Common, ranges: impl Iterator<Item = IpRange>) {
        for family in Family::ALL {
            self.sets
                .insert(common.name(family), Set::new(Shape::of(common, family)));
        }
        for range in ranges {
            self.put(&common.name(range.family()), prefixes(range), Entry::In);
        }
    }

    /// Where each class goes, and as whom it leaves where it exits here.
    fn destinations(&mut self) -> Result<(), Error> {
        let (gone, come) = halves(self.from.destinations.diff(&self.to.destinations));
        for ((class, range), verdict) in gone {
            self.take_place(*class, *range);
            if self.from.keeps(verdict) {
                self.take_own(&keep_source_set(*class, range.family()), *range);
            }
        }
        come.into_iter()
            .try_for_each(|(place, verdict)| self.destination(place, verdict))
    }

    fn destination(&mut self, place: &(ClassId, IpRange), verdict: &Verdict) -> Result<(), Error> {
        let (class, range) = place;
        let before = self.to.destinations.range(..*place).next_back();
        if let Some(((_, other), _)) =
            before.filter(|((owner, other), _)| owner == class && other.overlaps(range))
        {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("destinations of class {class} overlap: {other} and {range}"),
            ));
        }
        let (byte, source) = match verdict {
            Verdict::Pass => return Ok(()),
            Verdict::Hold => (HELD_BYTE, 0),
            Verdict::Egress {
                source_nat: SourceNat::Ports(address),
                ..
            } if !self.to.blocks.contains_key(address) => (HELD_BYTE, 0),
            Verdict::Egress { target, source_nat } => {
                let exits = self.to.translates(*target, *source_nat);
                if let SourceNat::Address(address) | SourceNat::Ports(address) = source_nat
                    && exits
                    && Family::of(*address) != range.family()
                {
                    let context = format!(
                        "class {class} to {range}: {address} is of the other address family"
                    );
                    return Err(Error::new(ErrorKind::Invalid, context));
                }
                (
                    target.byte(),
                    if exits {
                        self.numbers.source(*source_nat, self.layout)
                    } else {
                        0
                    },
                )
            }
        };
        let entry = Entry::Mark {
            value: self.layout.byte(byte) | source,
            mask: self.layout.all(),
        };
        self.put_place(*class, *range, entry);
        if self.to.keeps(verdict) {
            self.put_own(keep_source_set(*class, range.family()), *range);
        }
        Ok(())
    }

    /// Who leaves here as itself.
    fn keepers(&mut self, old: &Uses, new: &Uses) {
        if old.keeping.is_empty() && new.keeping.is_empty() {
            return;
        }
        if self.from.subnets == self.to.subnets && old.keeping.keys().eq(new.keeping.keys()) {
            let (gone, come) = halves(self.from.pods.diff(&self.to.pods));
            for (there, pods) in [(false, gone), (true, come)] {
                for (pod, class) in pods {
                    self.keeper(*pod, *class, new, there);
                }
            }
            return;
        }
        old.keeping
            .keys()
            .for_each(|(class, family)| drop(self.sets.remove(&keep_pods_set(*class, *family))));
        for (class, family) in new.keeping.keys() {
            self.sets.insert(
                keep_pods_set(*class, *family),
                Set::new(Shape::networks(*family, false)),
            );
        }
        for (range, class) in &self.to.subnets {
            self.put(
                &keep_pods_set(*class, range.family()),
                prefixes(*range),
                Entry::In,
            );
        }
        self.to
            .pods
            .iter()
            .for_each(|(pod, class)| self.keeper(*pod, *class, new, true));
    }

    /// An exact address takes precedence over its subnet, so it is out of that one's class.
    fn keeper(&mut self, pod: IpAddr, class: ClassId, uses: &Uses, there: bool) {
        let (net, family) = (IpNet::from(pod), Family::of(pod));
        let keeping = |class: &ClassId| uses.keeping.contains_key(&(*class, family));
        let around = subnet(self.to, pod);
        let other = around
            .map(|(_, other)| other)
            .filter(|other| *other != class && keeping(other));
        for (class, entry) in [
            (other, Entry::Out),
            (Some(class).filter(keeping), Entry::In),
        ] {
            let Some(name) = class.map(|class| keep_pods_set(class, family)) else {
                continue;
            };
            if there {
                self.put(&name, [net], entry);
                continue;
            }
            self.take(&name, [net]);
            // What the subnet says of a lone address comes back.
            if around.is_some_and(|(range, of)| {
                Some(of) == class && prefixes(range).any(|own| own == net)
            }) {
                self.put(&name, [net], Entry::In);
            }
        }
    }
}

type Entries<'a, K, V> = Vec<(&'a K, &'a V)>;

/// What goes and what comes. All that goes must go first: a range that comes may share a prefix
/// with one that goes.
fn halves<'a, K: Ord, V: PartialEq>(
    changes: impl Iterator<Item = ordmap::DiffItem<'a, 'a, K, V>>,
) -> (Entries<'a, K, V>, Entries<'a, K, V>) {
    let (mut gone, mut come) = (Vec::new(), Vec::new());
    for change in changes {
        match change {
            ordmap::DiffItem::Add(key, value) => come.push((key, value)),
            ordmap::DiffItem::Update { old, new } => {
                gone.push(old);
                come.push(new);
            }
            ordmap::DiffItem::Remove(key, value) => gone.push((key, value)),
        }
    }
    (gone, come)
}

/// The subnet that an address lies in; they are disjoint.
fn subnet(desired: &PolicyDesired, address: IpAddr) -> Option<(IpRange, ClassId)> {
    let bound = IpRange::new(address, IpRange::everything(Family::of(address)).last())?;
    desired
        .subnets
        .get_prev(&bound)
        .map(|(net, class)| (*net, *class))
        .filter(|(net, _)| net.contains(address))
}

/// The prefixes of a range. `hash:net` takes none of length 0, so everything is written as its two
/// halves.
fn prefixes(range: IpRange) -> impl Iterator<Item = IpNet> {
    range
        .prefixes()
        .into_iter()
        .flat_map(|net| match net.prefix_len() {
            0 => net.subnets(1).map_or_else(|_| vec![net], Iterator::collect),
            _ => vec![net],
        })
}
