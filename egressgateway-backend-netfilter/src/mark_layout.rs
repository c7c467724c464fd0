//! Which bits of the packet mark are used for what.

use egressgateway::model::{MarkMask, NetworkId, TargetId};

/// The byte that is ours, and sixteen bits that are borrowed while a new connection's first packet
/// is classified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MarkLayout {
    mask: MarkMask,
}

impl MarkLayout {
    pub(crate) fn new(mask: MarkMask) -> Self {
        Self { mask }
    }

    /// Our byte.
    pub(crate) fn mask(self) -> u32 {
        self.mask.bits()
    }

    /// The borrowed bits: the lowest sixteen that are not ours.
    pub(crate) fn scratch(self) -> u32 {
        self.number(u16::MAX)
    }

    /// Our byte and the borrowed bits.
    pub(crate) fn all(self) -> u32 {
        self.mask() | self.scratch()
    }

    /// A number, spread over the borrowed bits.
    pub(crate) fn number(self, number: u16) -> u32 {
        let low = (1_u32 << self.mask().trailing_zeros()) - 1;
        let number = u32::from(number);
        (number & low) | ((number & !low) << 8)
    }

    /// The number that the borrowed bits of a mark say.
    pub(crate) fn number_in(self, mark: u32) -> u16 {
        let low = (1_u32 << self.mask().trailing_zeros()) - 1;
        let borrowed = mark & self.scratch();
        u16::try_from((borrowed & low) | ((borrowed & !low) >> 8)).unwrap_or(0)
    }

    pub(crate) fn target(self, target: TargetId) -> u32 {
        self.mask.mark(target)
    }

    /// A byte in its place.
    pub(crate) fn byte(self, byte: u8) -> u32 {
        u32::from(byte) << self.mask().trailing_zeros()
    }

    pub(crate) fn network(self, network: NetworkId) -> u32 {
        self.mask.network_mark(network)
    }

    pub(crate) fn exit(self) -> u32 {
        self.mask.exit_mark()
    }

    pub(crate) fn answer(self) -> u32 {
        self.mask.answer_mark()
    }

    pub(crate) fn unknown(self) -> u32 {
        self.mask.unknown_mark()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_borrowed_bits_are_never_ours_and_no_number_is_lost() {
        for shift in 0..=24 {
            let layout = MarkLayout::new(MarkMask::new(0xff << shift).unwrap());
            assert_eq!(
                (
                    layout.scratch().count_ones(),
                    layout.scratch() & layout.mask()
                ),
                (16, 0),
                "{shift}"
            );
            let ones: u32 = (0..16).map(|bit| layout.number(1 << bit)).sum();
            assert_eq!(ones, layout.scratch());
            assert!(
                [0, 1, 0x1234, u16::MAX].iter().all(|number| layout
                    .number_in(layout.number(*number) | layout.mask())
                    == *number)
            );
        }
        assert_eq!(MarkLayout::new(MarkMask::default()).number(0x1234), 0x1234);
        assert_eq!(
            MarkLayout::new(MarkMask::new(0xff0).unwrap()).number(0x1234),
            0x0012_3004
        );
    }
}
