use std::fmt;

/// Where steered traffic goes: the byte that is written into the packet mark under the configured
/// [`MarkMask`].
///
/// The controller allots it and keeps it in the gateway's status, so that it means the same on
/// every node and after every restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TargetId(u8);

impl TargetId {
    /// The first target that is allotted (mark `0x11000000` under the default mask).
    pub const FIRST: Self = Self(0x11);
    /// The byte that says "exits on this node" in a connection mark (`0x12000000` under the default
    /// mask); never a target.
    pub const EXIT_BYTE: u8 = 0x12;
    /// The byte that says "somebody outside began this towards a pod of this node, and what the pod
    /// answers is classified" in a connection mark (`0x10000000` under the default mask); never a
    /// target. In the mark of a packet out of the tunnel it says, for a moment, that we keep that
    /// packet untracked.
    pub const ANSWER_BYTE: u8 = 0x10;

    /// The byte that says "nobody knows what this connection leaves as" in a connection mark
    /// (`0xff000000` under the default mask); never a target. It came by the overlay while the
    /// rules were missing, so nothing of it leaves any more, and the agent makes the kernel forget
    /// it.
    pub const UNKNOWN_BYTE: u8 = 0xff;

    /// The target of a mark byte; none for [`Self::EXIT_BYTE`], [`Self::UNKNOWN_BYTE`] and all
    /// bytes below [`Self::FIRST`]. Those have a meaning on one node alone, so the controller never
    /// allots them.
    #[must_use]
    pub const fn new(byte: u8) -> Option<Self> {
        if byte < Self::FIRST.0 || byte == Self::EXIT_BYTE || byte == Self::UNKNOWN_BYTE {
            None
        } else {
            Some(Self(byte))
        }
    }

    /// The mark byte.
    #[must_use]
    pub const fn byte(self) -> u8 {
        self.0
    }

    /// All targets in the order in which they are allotted.
    pub fn all() -> impl Iterator<Item = Self> {
        (Self::FIRST.0..=u8::MAX).filter_map(Self::new)
    }
}

impl fmt::Display for TargetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}", self.0)
    }
}

/// A network of one node, other than the underlay's, that egress addresses leave by: the byte of
/// their connections there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkId(u8);

impl NetworkId {
    /// How many there can be on a node.
    pub const COUNT: u8 = 15;

    /// The network of a mark byte; none for what is no network's.
    #[must_use]
    pub const fn new(byte: u8) -> Option<Self> {
        if byte >= 1 && byte <= Self::COUNT {
            Some(Self(byte))
        } else {
            None
        }
    }

    /// The mark byte.
    #[must_use]
    pub const fn byte(self) -> u8 {
        self.0
    }

    /// All of them, in order.
    pub fn all() -> impl Iterator<Item = Self> {
        (1..=Self::COUNT).map(Self)
    }
}

impl fmt::Display for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}", self.0)
    }
}

/// The eight adjacent bits of packet and connection marks that belong to the egress gateway. No
/// other bit ever changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MarkMask(u32);

/// A mask that is not eight adjacent bits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("mark mask {0:#010x} must be eight adjacent bits, such as 0xff000000")]
pub struct InvalidMarkMask(u32);

impl MarkMask {
    /// The mask with these bits.
    ///
    /// # Errors
    /// When the bits are not eight adjacent ones.
    pub fn new(bits: u32) -> Result<Self, InvalidMarkMask> {
        if bits != 0 && bits >> bits.trailing_zeros() == 0xff {
            Ok(Self(bits))
        } else {
            Err(InvalidMarkMask(bits))
        }
    }

    /// The bits that are ours.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// The bits that are others'.
    #[must_use]
    pub const fn keep(self) -> u32 {
        !self.0
    }

    /// The mark of a target.
    #[must_use]
    pub const fn mark(self, target: TargetId) -> u32 {
        (target.0 as u32) << self.0.trailing_zeros()
    }

    /// The connection mark of what exits on this node.
    #[must_use]
    pub const fn exit_mark(self) -> u32 {
        (TargetId::EXIT_BYTE as u32) << self.0.trailing_zeros()
    }

    /// The connection mark of what somebody outside began towards a pod, so that the pod's answers
    /// are classified.
    #[must_use]
    pub const fn answer_mark(self) -> u32 {
        (TargetId::ANSWER_BYTE as u32) << self.0.trailing_zeros()
    }

    /// The connection mark of what came by the overlay while the rules were missing.
    #[must_use]
    pub const fn unknown_mark(self) -> u32 {
        (TargetId::UNKNOWN_BYTE as u32) << self.0.trailing_zeros()
    }

    /// The byte of a mark that is ours.
    #[must_use]
    pub fn byte(self, mark: u32) -> u8 {
        ((mark & self.0) >> self.0.trailing_zeros()).to_le_bytes()[0]
    }

    /// The mark of what exits on this node by one of its other networks.
    #[must_use]
    pub const fn network_mark(self, network: NetworkId) -> u32 {
        (network.0 as u32) << self.0.trailing_zeros()
    }

    /// Whether a connection mark says that the connection exits on this node, by whatever network.
    #[must_use]
    pub fn is_exit(self, mark: u32) -> bool {
        let byte = self.byte(mark);
        byte == TargetId::EXIT_BYTE || NetworkId::new(byte).is_some()
    }

    /// The target that a mark names, if it names one.
    #[must_use]
    pub fn target(self, mark: u32) -> Option<TargetId> {
        TargetId::new(self.byte(mark))
    }
}

impl Default for MarkMask {
    fn default() -> Self {
        Self(0xff00_0000)
    }
}

impl fmt::Display for MarkMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_reads_back_from_its_mark_under_every_mask() {
        for shift in 0..=24 {
            let mask = MarkMask::new(0xff << shift).unwrap();
            for target in TargetId::all() {
                assert_eq!(mask.target(mask.mark(target)), Some(target));
                assert_eq!(mask.mark(target) & mask.keep(), 0);
            }
            assert_eq!(
                [mask.exit_mark(), mask.answer_mark()].map(|mark| mask.target(mark)),
                [None, None]
            );
            for network in NetworkId::all() {
                assert_eq!(
                    (
                        mask.target(mask.network_mark(network)),
                        mask.is_exit(mask.network_mark(network))
                    ),
                    (None, true)
                );
            }
            assert!(
                mask.is_exit(mask.exit_mark())
                    && !mask.is_exit(0)
                    && !mask.is_exit(mask.mark(TargetId::FIRST))
            );
        }
        assert_eq!(TargetId::all().count(), 237);
        assert_eq!(
            (0..=0x10).chain([0x12, 0xff]).find_map(TargetId::new),
            None,
            "these have a meaning on one node alone"
        );
        assert_eq!(MarkMask::default().mark(TargetId::FIRST), 0x1100_0000);
    }

    #[test]
    fn masks_are_eight_adjacent_bits() {
        for bits in [0, 1, 0xfe00_0000, 0xffff_0000, 0xff00_ff00, u32::MAX] {
            assert_eq!(MarkMask::new(bits), Err(InvalidMarkMask(bits)));
        }
    }
}
