//! What the loops find out about a block's weights: whether plain f32 holds them all, and if not, which power of two
//! would help.

use super::PlainFactor;
use crate::kernels::merge::host::NOTHING;

/// The bits of the smallest Fisher above zero and of the largest.
#[derive(Clone, Copy)]
pub(super) struct Extremes {
    low: u32,
    high: u32,
}

impl Extremes {
    pub(super) const NONE: Self = Self { low: u32::MAX, high: 0 };

    #[inline(always)]
    pub(super) fn add(&mut self, bits: u32) {
        // Zero wraps to the greatest, and so never is the least.
        self.low = self.low.min(bits.wrapping_sub(1));
        self.high = self.high.max(bits);
    }

    pub(super) fn low(self) -> u32 {
        self.low.wrapping_add(1)
    }

    /// Whether some are subnormal, or no Fishers (minus zero among them).
    pub(super) fn unfit(self) -> bool {
        self.high > 0x7f7f_ffff || (self.high > 0 && self.low() < 0x0080_0000)
    }

    /// The exponents of the least and the largest weight.
    pub(super) fn range(self, factor: PlainFactor) -> Option<(i32, i32)> {
        let exponent = |bits: u32| (bits >> 23).cast_signed() - 127 + factor.exponent;
        (self.high > 0).then(|| (exponent(self.low()), exponent(self.high)))
    }
}

/// The least and the largest exponent that the state's weights have, or that they are stored with.
#[derive(Clone, Copy)]
pub(super) struct Exponents {
    /// Above [`Self::NOTHING`].
    low: u32,
    high: i32,
}

impl Exponents {
    /// Exponents of no weight lie below this, whatever is added to them; those of weights above.
    pub(super) const NOTHING: i32 = NOTHING / 2;
    pub(super) const NONE: Self = Self { low: u32::MAX, high: i32::MIN };

    #[inline(always)]
    pub(super) fn add(&mut self, mantissa: u32, exponent: i32) {
        let own = exponent + ((mantissa >> 23).cast_signed() - 127);
        // Those of nothing wrap to the greatest, and so never are the least.
        self.low = self.low.min((own.min(exponent) - Self::NOTHING).cast_unsigned());
        self.high = self.high.max(own.max(exponent));
    }

    pub(super) fn range(self) -> Option<(i32, i32)> {
        (self.high > Self::NOTHING).then(|| (self.low.cast_signed() + Self::NOTHING, self.high))
    }
}

/// What spans all of these.
pub(super) fn span(ranges: impl Iterator<Item = (i32, i32)>) -> Option<(i32, i32)> {
    ranges.reduce(|(low, high), (other_low, other_high)| (low.min(other_low), high.max(other_high)))
}
