//! Merging in plain f32, where a block's weights allow it: several times as fast as with exponents of their own, the same bits.
//!
//! A power of two common to all weights changes no rounding, so long as nothing becomes subnormal or overflows. So the weights of a
//! block are brought near one by such a power, and merged in a single loop, which also finds out what it is to be: the
//! loop takes the power that fitted the block before, and where that does not fit, is run once more. Blocks that
//! no power fits, and those in which something has to be reported, are left to [`host`](super::host), which has an answer for everything.

use super::Factor;
use super::host::{Words, pow2};
use crate::kernel::vectorised;

/// A factor of weights as one f32.
#[derive(Clone, Copy)]
pub(super) struct PlainFactor {
    value: f32,
    exponent: i32,
}

impl PlainFactor {
    /// A factor times 2^shift, if it is far inside of f32's range.
    pub(super) fn new(factor: Factor, shift: i32) -> Option<Self> {
        let exponent = factor.exponent.checked_add(shift)?;
        let value = factor.mantissa * pow2(exponent);
        (-120..=120).contains(&exponent).then_some(Self { value, exponent })
    }
}

/// One model of a block.
#[derive(Clone, Copy)]
pub(super) struct Model<'a> {
    pub(super) theta: &'a [f32],
    pub(super) fisher: &'a [f32],
    pub(super) factor: PlainFactor,
    pub(super) share: f32,
    pub(super) least: u32,
    /// Whether Fishers below `least` are counted.
    pub(super) counted: bool,
}

/// The weights and the base of a block of UBGM.
#[derive(Clone, Copy)]
pub(super) struct OneModel<'a> {
    pub(super) theta: &'a [f32],
    pub(super) fisher: &'a [f32],
    pub(super) factor: PlainFactor,
    pub(super) least: u32,
    pub(super) lambda: PlainFactor,
    pub(super) base: &'a [f32],
    pub(super) base_fisher: &'a [f32],
    pub(super) base_factor: PlainFactor,
    pub(super) delta: Option<PlainFactor>,
}

/// What a merge of a block has seen of it.
#[derive(Clone, Copy, Default)]
pub(super) struct Seen {
    unfit: bool,
    /// Exponents of the smallest weight above zero and of the largest, if there is one.
    range: Option<(i32, i32)>,
    fallback: u32,
    floored: u32,
    dominated: u32,
    raised: u32,
}

impl Seen {
    /// What has to be added to the weights' exponents, if that can help: 0 where they lie between 2^-60 and 2^60. Then no ratio of
    /// two weights is subnormal.
    fn shift(&self) -> Option<i32> {
        let Some((smallest, largest)) = self.range else { return Some(0) };
        if smallest >= -60 && largest <= 60 {
            return Some(0);
        }
        (largest - smallest <= 110).then(|| -i32::midpoint(smallest, largest))
    }

    fn count(&self, counts: &mut Words) {
        let seen = [self.fallback, self.floored, self.dominated, self.raised];
        counts.iter_mut().zip(seen).for_each(|(count, more)| *count += more);
    }
}

/// Merges a block by `merge`, which takes the exponent to add to those of the weights. `shift` is what fitted the block before. Tells
/// whether the block was merged and counted.
#[inline(always)]
pub(super) fn merge_block(
    shift: &mut i32,
    counts: &mut Words,
    mut merge: impl FnMut(i32) -> Option<Seen>,
) -> bool {
    // Twice at most: what the first time finds is centred the second.
    for _ in 0..2 {
        let Some(seen) = merge(*shift).filter(|seen| !seen.unfit) else { return false };
        match seen.shift() {
            Some(0) => {
                seen.count(counts);
                return true;
            }
            Some(more) => *shift += more,
            None => return false,
        }
    }
    false
}

/// The bits of the smallest Fisher above zero and of the largest.
#[derive(Clone, Copy)]
struct Extremes {
    low: u32,
    high: u32,
}

impl Extremes {
    const NONE: Self = Self { low: u32::MAX, high: 0 };

    #[inline(always)]
    fn add(&mut self, bits: u32) {
        // Zero wraps to the greatest, and so never is the least.
        self.low = self.low.min(bits.wrapping_sub(1));
        self.high = self.high.max(bits);
    }

    fn low(self) -> u32 {
        self.low.wrapping_add(1)
    }

    /// Whether some are subnormal, or no Fishers (minus zero among them).
    fn unfit(self) -> bool {
        self.high > 0x7f7f_ffff || (self.high > 0 && self.low() < 0x0080_0000)
    }

    /// The exponents of the least and the largest weight.
    fn range(self, factor: PlainFactor) -> Option<(i32, i32)> {
        let exponent = |bits: u32| (bits >> 23).cast_signed() - 127 + factor.exponent;
        (self.high > 0).then(|| (exponent(self.low()), exponent(self.high)))
    }
}

/// What spans all of these.
fn span(ranges: impl Iterator<Item = (i32, i32)>) -> Option<(i32, i32)> {
    ranges.reduce(|(low, high), (other_low, other_high)| (low.min(other_low), high.max(other_high)))
}

/// All of a Fisher merge of two models. `limit` is the least magnitude that cannot be stored.
pub(super) fn pair(a: Model<'_>, b: Model<'_>, origin: &[f32], merged: &mut [f32], limit: f32) -> Seen {
    vectorised(
        #[inline(always)]
        || match a.least | b.least {
            0 => pair_loop::<false>(a, b, origin, merged, limit),
            _ => pair_loop::<true>(a, b, origin, merged, limit),
        },
    )
}

#[inline(always)]
fn pair_loop<const FLOOR: bool>(
    a: Model<'_>,
    b: Model<'_>,
    origin: &[f32],
    merged: &mut [f32],
    limit: f32,
) -> Seen {
    let n = merged.len();
    let (theta_a, fisher_a) = (&a.theta[..n], &a.fisher[..n]);
    let (theta_b, fisher_b, origin) = (&b.theta[..n], &b.fisher[..n], &origin[..n]);
    let (mut fallback, mut floored, mut dominated, mut raised, mut unfit) = (0, 0, 0, 0, 0);
    let (mut extremes_a, mut extremes_b) = (Extremes::NONE, Extremes::NONE);
    let counted = (u32::from(a.counted), u32::from(b.counted));
    for i in 0..n {
        let (mut bits_a, mut bits_b) = (fisher_a[i].to_bits(), fisher_b[i].to_bits());
        if FLOOR {
            let (below_a, below_b) = (u32::from(bits_a < a.least), u32::from(bits_b < b.least));
            floored += below_a & below_b;
            raised += (below_a & counted.0) + (below_b & counted.1);
            (bits_a, bits_b) = (bits_a.max(a.least), bits_b.max(b.least));
        }
        extremes_a.add(bits_a);
        extremes_b.add(bits_b);
        let weight_a = f32::from_bits(bits_a) * a.factor.value;
        let weight_b = f32::from_bits(bits_b) * b.factor.value;
        let first = (theta_a[i] - origin[i]) * if weight_a > 0.0 { 1.0 } else { a.share };
        let sum = weight_a + weight_b;
        let none = sum <= 0.0;
        let safe = if none { 1.0 } else { sum };
        let keep = if none { 1.0 - b.share } else { weight_a / safe };
        let draw = if none { b.share } else { weight_b / safe };
        let mean = first * keep + (theta_b[i] - origin[i]) * draw;
        let value = if mean == 0.0 { origin[i] } else { origin[i] + mean };
        merged[i] = value;
        let largest = if weight_a > weight_b { weight_a } else { weight_b };
        fallback += u32::from(none);
        dominated += u32::from(!none & (largest > 0.99 * sum));
        // NaN included: no comparison with one is true. What is not finite in a model is not in the result either.
        let fits = value.abs() < limit;
        unfit |= u32::from(!fits);
    }
    let unfit = unfit > 0 || extremes_a.unfit() || extremes_b.unfit();
    let range = span(extremes_a.range(a.factor).into_iter().chain(extremes_b.range(b.factor)));
    Seen { unfit, range, fallback, floored, dominated, raised }
}

/// All of UBGM with one model. `limit` is the least magnitude that cannot be stored.
pub(super) fn one(model: OneModel<'_>, merged: &mut [f32], limit: f32) -> Seen {
    vectorised(
        #[inline(always)]
        || one_loop(model, merged, limit),
    )
}

#[inline(always)]
fn one_loop(model: OneModel<'_>, merged: &mut [f32], limit: f32) -> Seen {
    let n = merged.len();
    let (theta, fisher) = (&model.theta[..n], &model.fisher[..n]);
    let (base, base_fisher) = (&model.base[..n], &model.base_fisher[..n]);
    let (factor, base_factor) = (model.factor.value, model.base_factor.value);
    let (lambda, delta) = (model.lambda.value, model.delta.map_or(0.0, |delta| delta.value));
    let (mut fallback, mut floored, mut dominated, mut unfit) = (0, 0, 0, 0);
    let (mut extremes, mut base_extremes) = (Extremes::NONE, Extremes::NONE);
    for i in 0..n {
        let (bits, base_bits) = (fisher[i].to_bits(), base_fisher[i].to_bits());
        floored += u32::from(bits < model.least);
        let bits = bits.max(model.least);
        extremes.add(bits);
        base_extremes.add(base_bits);
        let prior = f32::from_bits(base_bits) * base_factor + delta;
        let weight = f32::from_bits(bits) * factor * lambda;
        let pull = weight + prior * lambda;
        let sum = prior + weight;
        let none = sum <= 0.0;
        let safe = if none { 1.0 } else { sum };
        let draw = if none { 0.0 } else { pull / safe };
        let mean = (theta[i] - base[i]) * draw;
        let value = if mean == 0.0 { base[i] } else { base[i] + mean };
        merged[i] = value;
        fallback += u32::from(none);
        dominated += u32::from(!none & (weight > 0.99 * sum));
        let fits = value.abs() < limit;
        unfit |= u32::from(!fits);
    }
    let unfit = unfit > 0 || extremes.unfit() || base_extremes.unfit();
    let delta = model.delta.map(|delta| (delta.exponent, delta.exponent));
    let ranges = [extremes.range(model.factor), base_extremes.range(model.base_factor), delta];
    let range = span(ranges.into_iter().flatten());
    Seen { unfit, range, fallback, floored, dominated, raised: floored }
}
