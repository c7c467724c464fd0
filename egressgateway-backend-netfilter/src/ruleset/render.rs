//! What rules of one family are rendered from, and the parts that they are put together from.

use std::{collections::BTreeMap, net::IpAddr};

use egressgateway::{
    ExitNetwork, PolicyDesired,
    model::{Family, TargetId},
};
use imbl::{OrdMap, OrdSet};

use crate::{
    mark_layout::MarkLayout,
    names::{Common, START_GATE},
    ruleset::tree::{Chains, Tree},
    sets::{numbers::Numbers, set::Set},
};

pub(super) struct Render<'a> {
    pub(super) desired: &'a PolicyDesired,
    pub(super) family: Family,
    pub(super) layout: MarkLayout,
    pub(super) numbers: &'a Numbers,
    pub(super) sets: &'a OrdMap<String, Set>,
    pub(super) sources_in_dispute: bool,
}

/// A packet that belongs to no connection.
pub(super) const INVALID: &str = "-m conntrack --ctstate INVALID";

/// One that connection tracking was told not to look at.
pub(super) const NOT_TRACKED: &str = "-m conntrack --ctstate UNTRACKED";

/// One of the two.
pub(super) const INVALID_OR_UNTRACKED: &str = "-m conntrack --ctstate INVALID,UNTRACKED";

pub(super) fn chains<const N: usize>(chains: [(&str, Vec<String>); N]) -> Chains {
    chains.map(|(name, rules)| (name.to_owned(), rules)).into()
}

impl Render<'_> {
    pub(super) fn devices(&self) -> impl Iterator<Item = &String> {
        self.desired.overlay.devices.iter()
    }

    /// One rule for each of the overlay's devices.
    pub(super) fn each_device(&self, way: &str, rest: &str) -> Vec<String> {
        self.devices()
            .map(|device| format!("{way} {device} {rest}"))
            .collect()
    }

    pub(super) fn set(&self, set: Common, side: &str) -> String {
        format!("-m set --match-set {} {side}", set.name(self.family))
    }

    pub(super) fn not_in(&self, set: Common, side: &str) -> String {
        format!("-m set ! --match-set {} {side}", set.name(self.family))
    }

    /// Connection mark byte is `value`.
    pub(super) fn pinned(&self, value: u32) -> String {
        format!("-m connmark --mark {value:#x}/{:#x}", self.layout.mask())
    }

    pub(super) fn not_pinned(&self, value: u32) -> String {
        format!("-m connmark ! --mark {value:#x}/{:#x}", self.layout.mask())
    }

    pub(super) fn pin(&self, value: u32) -> String {
        format!(
            "-j CONNMARK --set-xmark {value:#x}/{:#x}",
            self.layout.mask()
        )
    }

    /// Packet mark bits of `mask` become `value`.
    pub(super) fn mark(value: u32, mask: u32) -> String {
        format!("-j MARK --set-xmark {value:#x}/{mask:#x}")
    }

    /// The marks of this node's other networks.
    pub(super) fn networks(&self) -> impl Iterator<Item = (u32, &ExitNetwork)> {
        self.desired
            .networks
            .iter()
            .map(|(id, network)| (self.layout.network(*id), network))
    }

    /// One rule for each mark of what exits here.
    pub(super) fn each_exit(&self, before: &str, rest: &str) -> Vec<String> {
        let marks =
            std::iter::once(self.layout.exit()).chain(self.networks().map(|(mark, _)| mark));
        marks
            .map(|mark| format!("{before}{} {rest}", self.pinned(mark)))
            .collect()
    }

    /// Egress addresses of this family, with their numbers.
    pub(super) fn addresses(&self) -> impl Iterator<Item = (IpAddr, u16)> {
        let own = |(address, _): &(&IpAddr, &u16)| Family::of(**address) == self.family;
        self.numbers
            .addresses
            .iter()
            .filter(own)
            .map(|(address, number)| (*address, *number))
    }

    /// The targets that this node translates itself, each as it is in a connection mark.
    pub(super) fn distributed(&self) -> impl Iterator<Item = String> {
        self.desired
            .distributed
            .iter()
            .map(|target| self.pinned(self.layout.target(*target)))
    }

    /// Of these, those that exit here.
    pub(super) fn distributed_here(&self) -> impl Iterator<Item = TargetId> {
        self.desired
            .distributed
            .iter()
            .filter(|target| self.desired.exits.contains(*target))
            .copied()
    }

    /// ip6tables takes no range for the identifiers of an echo.
    pub(super) fn protocols_with_ports(&self) -> &'static [&'static str] {
        match self.family {
            Family::V4 => &["tcp", "udp", "sctp", "icmp"],
            Family::V6 => &["tcp", "udp", "sctp"],
        }
    }

    pub(super) fn gate(&self, pods: Common) -> String {
        let (pod, unknown) = (
            self.set(pods, "src"),
            self.not_in(Common::Ungoverned, "src"),
        );
        format!(
            "{pod} {unknown} {} -g {START_GATE}",
            self.set(Common::Governed, "dst")
        )
    }

    /// Where devices tell together with sources who is a pod of this node: the devices that are
    /// none of a pod's.
    pub(super) fn outside(&self) -> Option<&OrdSet<String>> {
        self.desired
            .start_gate
            .as_ref()
            .filter(|gate| !gate.wide.is_empty())
            .map(|gate| &gate.outside)
    }

    /// An exact address overwrites what its subnet said.
    pub(super) fn find_class(&self) -> Vec<String> {
        vec![
            Self::mark(0, self.layout.all()),
            self.map(Common::Subnets),
            self.map(Common::Pods),
        ]
    }

    /// A set's class of the source, where it has one, goes into the mark.
    pub(super) fn map(&self, set: Common) -> String {
        format!("-j SET --map-set {} src --map-mark", set.name(self.family))
    }

    pub(super) fn bytes<'a>(&'a self, root: &'a str, otherwise: &'a str) -> Bytes<'a> {
        Bytes {
            root,
            otherwise,
            layout: self.layout,
        }
    }
}

/// A tree over our byte.
pub(super) struct Bytes<'a> {
    pub(super) root: &'a str,
    pub(super) otherwise: &'a str,
    pub(super) layout: MarkLayout,
}

impl Bytes<'_> {
    pub(super) fn grow(&self, chains: &mut Chains, leaves: &BTreeMap<u16, String>) {
        let place = |byte: u16| self.layout.byte(u8::try_from(byte).unwrap_or(u8::MAX));
        Tree {
            root: self.root,
            width: 8,
            place: &place,
            otherwise: Some(self.otherwise),
        }
        .grow(chains, leaves);
    }
}
