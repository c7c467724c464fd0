use std::fmt;

/// The ports of one egress address that one node alone translates to: whole units of 256 ports, so
/// that the first byte of a port tells whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortBlock {
    first: u8,
    last: u8,
}

/// Ports that are no block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("ports {0} to {1} are no block: it must be whole units of 256 ports, from port 1024 on")]
pub struct InvalidPortBlock(u16, u16);

impl PortBlock {
    /// How many ports a unit has.
    pub const UNIT: u16 = 256;
    /// The first byte of the lowest port that is given away: those below 1024 are for well-known
    /// services (RFC 6056, section 3.2).
    pub const FIRST_UNIT: u8 = 4;
    /// How many units an address has.
    pub const UNITS: u16 = 252;

    /// The block from this unit to that one, both included; none where that is no range above port
    /// 1023.
    #[must_use]
    pub const fn of_units(first: u8, last: u8) -> Option<Self> {
        if first >= Self::FIRST_UNIT && first <= last {
            Some(Self { first, last })
        } else {
            None
        }
    }

    /// The block from this port to that one, both included.
    ///
    /// # Errors
    /// When these are not whole units, or lie below port 1024.
    pub fn of_ports(first: u16, last: u16) -> Result<Self, InvalidPortBlock> {
        let [unit, start] = first.to_be_bytes();
        let [end_unit, end] = last.to_be_bytes();
        if start != 0 || end != u8::MAX {
            return Err(InvalidPortBlock(first, last));
        }
        Self::of_units(unit, end_unit).ok_or(InvalidPortBlock(first, last))
    }

    /// Its lowest port.
    #[must_use]
    pub const fn first(self) -> u16 {
        u16::from_be_bytes([self.first, 0])
    }

    /// Its highest port.
    #[must_use]
    pub const fn last(self) -> u16 {
        u16::from_be_bytes([self.last, u8::MAX])
    }

    /// The first bytes of its ports, ascending.
    pub fn units(self) -> impl Iterator<Item = u8> {
        self.first..=self.last
    }

    /// How many units it has.
    #[must_use]
    pub const fn len(self) -> u16 {
        (self.last - self.first) as u16 + 1
    }

    /// Never: a block has at least one unit.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        false
    }

    /// Whether both have a port.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// As nft and iptables write a range of ports.
impl fmt::Display for PortBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first(), self.last())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_whole_units_above_the_well_known_ports() {
        let block = PortBlock::of_ports(2048, 3071).unwrap();
        assert_eq!((block.first(), block.last(), block.len()), (2048, 3071, 4));
        assert_eq!(block.units().collect::<Vec<_>>(), [8, 9, 10, 11]);
        assert_eq!(block.to_string(), "2048-3071");
        for (first, last) in [
            (0, 255),
            (1000, 1255),
            (1024, 1278),
            (2048, 1279),
            (1025, 1279),
        ] {
            assert_eq!(
                PortBlock::of_ports(first, last),
                Err(InvalidPortBlock(first, last))
            );
        }
        let all = PortBlock::of_ports(1024, u16::MAX).unwrap();
        assert_eq!(all.len(), PortBlock::UNITS);
        assert!(all.overlaps(block) && block.overlaps(all));
        let next = PortBlock::of_ports(3072, 3327).unwrap();
        assert!(!block.overlaps(next) && !next.overlaps(block));
    }
}
