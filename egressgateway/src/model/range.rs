use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv4Subnets, Ipv6Net, Ipv6Subnets};

use super::Family;

/// Inclusive range of addresses of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IpRange {
    first: IpAddr,
    last: IpAddr,
}

impl IpRange {
    /// From `first` to `last`; none when the families differ or `last` comes before `first`.
    #[must_use]
    pub fn new(first: IpAddr, last: IpAddr) -> Option<Self> {
        (Family::of(first) == Family::of(last) && first <= last).then_some(Self { first, last })
    }

    /// One address.
    #[must_use]
    pub const fn single(address: IpAddr) -> Self {
        Self {
            first: address,
            last: address,
        }
    }

    /// Every address of a family.
    #[must_use]
    pub const fn everything(family: Family) -> Self {
        match family {
            Family::V4 => Self {
                first: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                last: IpAddr::V4(Ipv4Addr::BROADCAST),
            },
            Family::V6 => Self {
                first: IpAddr::V6(Ipv6Addr::UNSPECIFIED),
                last: IpAddr::V6(Ipv6Addr::new(
                    0xffff, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff,
                )),
            },
        }
    }

    /// First address.
    #[must_use]
    pub const fn first(&self) -> IpAddr {
        self.first
    }

    /// Last address.
    #[must_use]
    pub const fn last(&self) -> IpAddr {
        self.last
    }

    /// Its family.
    #[must_use]
    pub fn family(&self) -> Family {
        Family::of(self.first)
    }

    /// Whether `address` lies in it.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.family() == Family::of(address) && self.first <= address && address <= self.last
    }

    /// Whether the two have an address in common.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.family() == other.family() && self.first <= other.last && other.first <= self.last
    }

    /// Both as one range, where `next` begins with the address behind this one.
    #[must_use]
    pub(crate) fn joined(&self, next: &Self) -> Option<Self> {
        let adjoins = successor(self.last) == Some(next.first);
        Self::new(self.first, next.last).filter(|_| adjoins)
    }

    /// The fewest prefixes that cover exactly this range, ascending.
    #[must_use]
    pub fn prefixes(&self) -> Vec<IpNet> {
        match (self.first, self.last) {
            (IpAddr::V4(first), IpAddr::V4(last)) => {
                Ipv4Subnets::new(first, last, 0).map(IpNet::V4).collect()
            }
            (IpAddr::V6(first), IpAddr::V6(last)) => {
                Ipv6Subnets::new(first, last, 0).map(IpNet::V6).collect()
            }
            _ => Vec::new(),
        }
    }

    /// The prefix that is exactly this range, if one is.
    #[must_use]
    pub fn as_prefix(&self) -> Option<IpNet> {
        let bits = match (self.first, self.last) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).count_ones(),
            (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).count_ones(),
            _ => return None,
        };
        let prefix = u8::try_from(u32::from(self.family().bits()) - bits).ok()?;
        IpNet::new(self.first, prefix)
            .ok()
            .filter(|net| Self::from(*net) == *self)
    }
}

/// The entry of an address, of disjoint ascending ranges.
pub(crate) fn find<T>(ranges: &[T], range: impl Fn(&T) -> &IpRange, address: IpAddr) -> Option<&T> {
    let behind = ranges.partition_point(|entry| range(entry).first() <= address);
    let entry = ranges.get(behind.checked_sub(1)?)?;
    range(entry).contains(address).then_some(entry)
}

/// The address that follows; none after the last one of the family.
pub(crate) fn successor(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(a) => a
            .to_bits()
            .checked_add(1)
            .map(|bits| Ipv4Addr::from_bits(bits).into()),
        IpAddr::V6(a) => a
            .to_bits()
            .checked_add(1)
            .map(|bits| Ipv6Addr::from_bits(bits).into()),
    }
}

/// The address before; none before the first one of the family.
pub(crate) fn predecessor(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(a) => a
            .to_bits()
            .checked_sub(1)
            .map(|bits| Ipv4Addr::from_bits(bits).into()),
        IpAddr::V6(a) => a
            .to_bits()
            .checked_sub(1)
            .map(|bits| Ipv6Addr::from_bits(bits).into()),
    }
}

impl From<IpNet> for IpRange {
    fn from(net: IpNet) -> Self {
        Self {
            first: net.network(),
            last: net.broadcast(),
        }
    }
}

impl From<Ipv4Net> for IpRange {
    fn from(net: Ipv4Net) -> Self {
        IpNet::V4(net).into()
    }
}

impl From<Ipv6Net> for IpRange {
    fn from(net: Ipv6Net) -> Self {
        IpNet::V6(net).into()
    }
}

/// A prefix where the range is one, a single address without its length, else `first-last`: as
/// nftables writes it.
impl fmt::Display for IpRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.as_prefix() {
            Some(net) if net.prefix_len() == net.max_prefix_len() => write!(f, "{}", self.first),
            Some(net) => write!(f, "{net}"),
            None => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: &str, last: &str) -> IpRange {
        IpRange::new(first.parse().unwrap(), last.parse().unwrap()).unwrap()
    }

    #[test]
    fn reads_as_a_prefix_where_it_is_one() {
        for (first, last, text) in [
            ("10.6.1.0", "10.6.1.255", "10.6.1.0/24"),
            ("10.6.1.7", "10.6.1.7", "10.6.1.7"),
            ("10.6.1.1", "10.6.1.2", "10.6.1.1-10.6.1.2"),
            ("10.6.1.1", "10.6.2.0", "10.6.1.1-10.6.2.0"),
            ("0.0.0.0", "255.255.255.255", "0.0.0.0/0"),
            ("fd00::", "fd00::ffff", "fd00::/112"),
        ] {
            assert_eq!(range(first, last).to_string(), text);
        }
        assert_eq!(IpRange::everything(Family::V6).to_string(), "::/0");
    }

    #[test]
    fn refuses_what_is_no_range() {
        assert_eq!(
            IpRange::new("10.0.0.2".parse().unwrap(), "10.0.0.1".parse().unwrap()),
            None
        );
        assert_eq!(
            IpRange::new("10.0.0.2".parse().unwrap(), "fd00::".parse().unwrap()),
            None
        );
    }

    #[test]
    fn prefixes_cover_exactly_the_range() {
        let prefixes: Vec<String> = range("10.0.0.1", "10.0.0.6")
            .prefixes()
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            prefixes,
            ["10.0.0.1/32", "10.0.0.2/31", "10.0.0.4/31", "10.0.0.6/32"]
        );
    }
}
