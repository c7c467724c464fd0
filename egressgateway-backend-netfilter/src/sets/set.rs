//! What an ipset is: how it looks things up, and what its entries say.

use std::fmt;

use egressgateway::model::Family;
use imbl::OrdMap;
use ipnet::IpNet;

use crate::names::Common;

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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Set {
    /// None when it is like none that we make: another type, or with time limits.
    pub(crate) shape: Option<Shape>,
    pub(crate) entries: OrdMap<IpNet, Entry>,
}

impl Set {
    pub(crate) fn new(shape: Shape) -> Self {
        Self {
            shape: Some(shape),
            entries: OrdMap::new(),
        }
    }
}

impl Shape {
    /// How a set that is there whatever the policies looks things up.
    pub(crate) fn of(common: Common, family: Family) -> Self {
        let (kind, marked) = match common {
            Common::Pods => (Kind::Addresses, true),
            Common::Subnets => (Kind::Networks, true),
            Common::Ungoverned | Common::Peers | Common::Own | Common::Hosts | Common::Relayed => {
                (Kind::Addresses, false)
            }
            Common::Exempt | Common::Local | Common::Wide | Common::Governed => {
                (Kind::Networks, false)
            }
        };
        Self {
            kind,
            family,
            marked,
        }
    }

    /// Networks, with marks or without.
    pub(crate) fn networks(family: Family, marked: bool) -> Self {
        Self {
            kind: Kind::Networks,
            family,
            marked,
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = if self.family == Family::V4 {
            "inet"
        } else {
            "inet6"
        };
        write!(
            f,
            "{} family {family}{} maxelem {MAX_ELEMENTS}",
            self.kind.name(),
            if self.marked { " skbinfo" } else { "" }
        )
    }
}

/// Room that nobody needs: the kernel's own default of 65536 is too little, and the limit costs
/// nothing.
pub(crate) const MAX_ELEMENTS: u32 = 1 << 24;

pub(crate) fn family(net: IpNet) -> Family {
    Family::of(net.addr())
}
