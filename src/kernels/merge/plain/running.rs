//! One parameter on its way through the models, and what is counted of all.

use super::bounds::Exponents;
use super::{PlainFactor, Seen};
use crate::kernels::merge::host::{NOTHING, pow2};

/// The exponent that a weight is kept with between steps: of its Fisher's bits times a factor.
#[inline(always)]
pub(super) fn exponent_of(bits: u32, factor: PlainFactor) -> i32 {
    let exponent = if bits == 0 { NOTHING } else { (bits >> 23).cast_signed() - 127 };
    exponent + factor.exponent
}

/// What is known of one parameter after some models.
#[derive(Clone, Copy)]
pub(super) struct Running {
    pub(super) mean: f32,
    pub(super) sum: f32,
    pub(super) largest: f32,
    exponent: i32,
    pub(super) unfloored: u32,
}

impl Running {
    #[inline(always)]
    pub(super) fn load(words: &[u32; 4], shift: i32, exponents: &mut Exponents) -> Self {
        let exponent = (words[3].cast_signed() >> 1) + shift;
        exponents.add(words[1], exponent);
        let scale = pow2(exponent);
        Self {
            mean: f32::from_bits(words[0]),
            sum: f32::from_bits(words[1]) * scale,
            largest: f32::from_bits(words[2]) * scale,
            exponent,
            unfloored: words[3] & 1,
        }
    }

    #[inline(always)]
    pub(super) fn save(self, words: &mut [u32; 4], shift: i32) {
        let scale = pow2(-self.exponent);
        words[0] = self.mean.to_bits();
        words[1] = (self.sum * scale).to_bits();
        words[2] = (self.largest * scale).to_bits();
        words[3] = ((self.exponent - shift) << 1).cast_unsigned() | self.unfloored;
    }

    /// The first model of a Fisher merge.
    #[inline(always)]
    pub(super) fn first(weight: f32, exponent: i32, distance: f32, share: f32) -> Self {
        let mean = distance * if weight > 0.0 { 1.0 } else { share };
        Self { mean, sum: weight, largest: weight, exponent, unfloored: 0 }
    }

    /// One that never was a state, and will be none: it needs no exponent.
    #[inline(always)]
    pub(super) fn of(mean: f32, sum: f32, largest: f32, unfloored: u32) -> Self {
        Self { mean, sum, largest, exponent: 0, unfloored }
    }

    /// The first model of a merge by a base.
    #[inline(always)]
    pub(super) fn drawn(prior: f32, weight: f32, pull: f32, exponent: i32, distance: f32) -> Self {
        let sum = prior + weight;
        let none = sum <= 0.0;
        let draw = if none { 0.0 } else { pull / if none { 1.0 } else { sum } };
        Self { mean: distance * draw, sum, largest: weight, exponent, unfloored: 0 }
    }

    /// Adds a model, as `Tallies::add` does. Where nothing weighs anything, it has `share` of the mean.
    #[inline(always)]
    pub(super) fn add(&mut self, weight: f32, pull: f32, exponent: i32, distance: f32, share: f32) {
        let before = self.sum;
        let draw = self.weigh(weight, pull, exponent, share);
        let none = self.sum <= 0.0;
        let keep = if none { 1.0 - share } else { before / if none { 1.0 } else { self.sum } };
        self.mean = self.mean * keep + distance * draw;
    }

    /// Adds a model to others that have no distance from the reference: there is nothing to keep a part of.
    #[inline(always)]
    pub(super) fn add_to_reference(&mut self, weight: f32, exponent: i32, distance: f32, share: f32) {
        self.mean = distance * self.weigh(weight, weight, exponent, share);
    }

    /// Adds a weight, and tells what part the pull has of all.
    #[inline(always)]
    fn weigh(&mut self, weight: f32, pull: f32, exponent: i32, share: f32) -> f32 {
        self.sum += weight;
        self.largest = if self.largest > weight { self.largest } else { weight };
        self.exponent = self.exponent.max(exponent);
        let none = self.sum <= 0.0;
        if none { share } else { pull / if none { 1.0 } else { self.sum } }
    }

    #[inline(always)]
    pub(super) fn result(self, origin: f32) -> f32 {
        if self.mean == 0.0 { origin } else { origin + self.mean }
    }
}

/// What the loops count.
#[derive(Clone, Copy, Default)]
pub(super) struct Tally {
    fallback: u32,
    floored: u32,
    dominated: u32,
    pub(super) raised: u32,
    /// The bits of the largest magnitude: above infinity's for NaN.
    magnitude: u32,
}

impl Tally {
    /// Counts a finished parameter.
    #[inline(always)]
    pub(super) fn end(&mut self, running: Running, value: f32) {
        self.fallback += u32::from(running.sum <= 0.0);
        // Nothing is more than a part of nothing.
        self.dominated += u32::from(running.largest > 0.99 * running.sum);
        self.floored += 1 - running.unfloored;
        self.check(value);
    }

    /// What is not finite in a model is not in the result either, nor in a mean.
    #[inline(always)]
    pub(super) fn check(&mut self, value: f32) {
        self.magnitude = self.magnitude.max(value.to_bits() & 0x7fff_ffff);
    }

    /// With the least magnitude that is too large.
    pub(super) fn seen(self, unfit: bool, limit: f32, range: Option<(i32, i32)>) -> Seen {
        let Self { fallback, floored, dominated, raised, magnitude } = self;
        Seen { unfit: unfit || magnitude >= limit.to_bits(), range, fallback, floored, dominated, raised }
    }
}
