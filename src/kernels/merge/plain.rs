//! Merging in plain f32, where a block's weights allow it: several times as fast as with exponents of their own, the same bits.
//!
//! A power of two common to all weights changes no rounding, so long as nothing becomes subnormal or overflows. So the weights of a
//! block are brought near one by such a power, and merged in a single loop, which also finds out what it is to be: the
//! loop takes the power that fitted the block before, and where that does not fit, is run once more. Blocks that
//! no power fits, and those in which something has to be reported, are left to [`host`](super::host), which has an answer for everything.
//!
//! The loops know at compile time whether a step starts from nothing, ends with the result, or has a second model: between steps they read and
//! write the same words that `host` does, so that a parameter may take either way in each step and keep its bits. A loop that
//! has to be run again needs what it began with: so a step in the middle writes to a place of its own first.

use super::Factor;
use super::host::{self, Block, NOTHING, Words, pow2};
use crate::kernel::{BLOCK, Floats, vectorised};
use crate::shape::DType;

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

/// The model and the base of a block of UBGM.
#[derive(Clone, Copy)]
pub(super) struct OneModel<'a> {
    pub(super) theta: &'a [f32],
    pub(super) fisher: &'a [f32],
    pub(super) factor: PlainFactor,
    pub(super) least: u32,
    pub(super) lambda: PlainFactor,
    pub(super) base_fisher: &'a [f32],
    pub(super) base_factor: PlainFactor,
    pub(super) delta: Option<PlainFactor>,
}

/// The four words of each parameter of a block between steps.
type State = [[u32; 4]];

/// What a step over a block has besides models.
pub(super) struct Step<'a> {
    /// θ_ref.
    origin: &'a [f32],
    /// Of the models before, unless it starts from nothing.
    before: Option<&'a State>,
    end: End<'a>,
    /// What is added to the state's exponents while the step lasts.
    pub(super) shift: i32,
}

/// What a step leaves.
enum End<'a> {
    /// The state for the next step.
    State(&'a mut State),
    /// The result, and the least magnitude that cannot be stored.
    Merged(&'a mut [f32], f32),
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

/// What merging in plain f32 keeps from block to block, and the memory it needs.
#[derive(Default)]
pub(super) struct Scratch {
    /// What brought the weights of the last block into plain f32.
    shift: i32,
    /// A state that may have to be thrown away.
    state: Vec<[u32; 4]>,
    merged: Floats,
}

/// One step over a block: what is not a model's.
pub(super) struct BlockStep<'s> {
    pub(super) first: bool,
    /// θ_ref.
    pub(super) origin: &'s [f32],
    /// Of the weights' first factor: the power of two that fitted the block before is counted from it.
    pub(super) exponent: i32,
    /// Storage of the result.
    pub(super) merged: DType,
}

impl BlockStep<'_> {
    /// Merges a block by `merge`, which is given the exponent to add to those of the weights (none if that leaves f32's range). Tells whether
    /// the block was merged and counted; if not, its state is what it was or, in a first step, anything.
    #[inline(always)]
    pub(super) fn merge(
        &self,
        scratch: &mut Scratch,
        counts: &mut Words,
        block: &mut Block<'_>,
        mut merge: impl FnMut(Step<'_>) -> Option<Seen>,
    ) -> bool {
        // Twice at most: what the first time finds is centred the second.
        for _ in 0..2 {
            let Some(seen) = self.attempt(scratch, block, &mut merge).filter(|seen| !seen.unfit) else {
                return false;
            };
            match seen.shift() {
                Some(0) => {
                    seen.count(counts);
                    self.keep(scratch, block);
                    return true;
                }
                Some(more) => scratch.shift += more,
                None => return false,
            }
        }
        false
    }

    #[inline(always)]
    fn attempt(
        &self,
        scratch: &mut Scratch,
        block: &mut Block<'_>,
        merge: &mut impl FnMut(Step<'_>) -> Option<Seen>,
    ) -> Option<Seen> {
        let Scratch { state: kept, merged: out, shift } = scratch;
        let shift = shift.checked_sub(self.exponent)?;
        let (origin, first) = (self.origin, self.first);
        let state: &mut State = block.state.as_mut().map_or(&mut [], |state| state.reborrow().cast());
        let Some(merged) = &mut block.merged else {
            if first {
                return merge(Step { origin, before: None, end: End::State(state), shift });
            }
            kept.resize(state.len(), [0; 4]);
            return merge(Step { origin, before: Some(state), end: End::State(kept), shift });
        };
        let limit = host::too_large(self.merged);
        let mut seen = None;
        out.store(merged.reborrow(), |merged| {
            let before = (!first).then_some(&*state);
            seen = merge(Step { origin, before, end: End::Merged(merged, limit), shift });
        });
        seen
    }

    /// What was not written over the state that the step began with is the block's now.
    #[inline(always)]
    fn keep(&self, scratch: &Scratch, block: &mut Block<'_>) {
        if let (false, None, Some(state)) = (self.first, &block.merged, &mut block.state) {
            state.reborrow().cast::<[u32; 4]>().copy_from_slice(&scratch.state);
        }
    }
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

/// The least and the largest exponent that the state's weights have, or that they are stored with.
#[derive(Clone, Copy)]
struct Exponents {
    /// Above [`Self::NOTHING`].
    low: u32,
    high: i32,
}

impl Exponents {
    /// Exponents of no weight lie below this, whatever is added to them; those of weights above.
    const NOTHING: i32 = NOTHING / 2;
    const NONE: Self = Self { low: u32::MAX, high: i32::MIN };

    #[inline(always)]
    fn add(&mut self, mantissa: u32, exponent: i32) {
        let own = exponent + ((mantissa >> 23).cast_signed() - 127);
        // Those of nothing wrap to the greatest, and so never are the least.
        self.low = self.low.min((own.min(exponent) - Self::NOTHING).cast_unsigned());
        self.high = self.high.max(own.max(exponent));
    }

    fn range(self) -> Option<(i32, i32)> {
        (self.high > Self::NOTHING).then(|| (self.low.cast_signed() + Self::NOTHING, self.high))
    }
}

/// What spans all of these.
fn span(ranges: impl Iterator<Item = (i32, i32)>) -> Option<(i32, i32)> {
    ranges.reduce(|(low, high), (other_low, other_high)| (low.min(other_low), high.max(other_high)))
}

/// The exponent that a weight is kept with between steps: of its Fisher's bits times a factor.
#[inline(always)]
fn exponent_of(bits: u32, factor: PlainFactor) -> i32 {
    let exponent = if bits == 0 { NOTHING } else { (bits >> 23).cast_signed() - 127 };
    exponent + factor.exponent
}

/// What is known of one parameter after some models.
#[derive(Clone, Copy)]
struct Running {
    mean: f32,
    sum: f32,
    largest: f32,
    exponent: i32,
    unfloored: u32,
}

impl Running {
    #[inline(always)]
    fn load(words: &[u32; 4], shift: i32, exponents: &mut Exponents) -> Self {
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
    fn save(self, words: &mut [u32; 4], shift: i32) {
        let scale = pow2(-self.exponent);
        words[0] = self.mean.to_bits();
        words[1] = (self.sum * scale).to_bits();
        words[2] = (self.largest * scale).to_bits();
        words[3] = ((self.exponent - shift) << 1).cast_unsigned() | self.unfloored;
    }

    /// The first model of a Fisher merge.
    #[inline(always)]
    fn first(weight: f32, exponent: i32, distance: f32, share: f32, unfloored: u32) -> Self {
        let mean = distance * if weight > 0.0 { 1.0 } else { share };
        Self { mean, sum: weight, largest: weight, exponent, unfloored }
    }

    /// The first model of a merge by a base.
    #[inline(always)]
    fn drawn(prior: f32, weight: f32, pull: f32, exponent: i32, distance: f32) -> Self {
        let sum = prior + weight;
        let none = sum <= 0.0;
        let draw = if none { 0.0 } else { pull / if none { 1.0 } else { sum } };
        Self { mean: distance * draw, sum, largest: weight, exponent, unfloored: 0 }
    }

    /// Adds a model, as `Tallies::add` does. Where nothing weighs anything, it has `share` of the mean.
    #[inline(always)]
    fn add(&mut self, weight: f32, pull: f32, exponent: i32, distance: f32, share: f32) {
        let sum = self.sum + weight;
        let none = sum <= 0.0;
        let safe = if none { 1.0 } else { sum };
        let keep = if none { 1.0 - share } else { self.sum / safe };
        let draw = if none { share } else { pull / safe };
        self.mean = self.mean * keep + distance * draw;
        self.sum = sum;
        self.largest = if self.largest > weight { self.largest } else { weight };
        self.exponent = self.exponent.max(exponent);
    }

    #[inline(always)]
    fn result(self, origin: f32) -> f32 {
        if self.mean == 0.0 { origin } else { origin + self.mean }
    }
}

/// What the loops count.
#[derive(Clone, Copy, Default)]
struct Tally {
    fallback: u32,
    floored: u32,
    dominated: u32,
    raised: u32,
    unfit: u32,
}

impl Tally {
    /// Counts a finished parameter.
    #[inline(always)]
    fn end(&mut self, running: Running, value: f32, limit: f32) {
        let none = running.sum <= 0.0;
        self.fallback += u32::from(none);
        self.dominated += u32::from(!none & (running.largest > 0.99 * running.sum));
        self.floored += 1 - running.unfloored;
        self.check(value, limit);
    }

    /// NaN included: no comparison with one is true. What is not finite in a model is not in the result either, nor in a mean.
    #[inline(always)]
    fn check(&mut self, value: f32, limit: f32) {
        let fits = value.abs() < limit;
        self.unfit |= u32::from(!fits);
    }

    fn seen(self, unfit: bool, range: Option<(i32, i32)>) -> Seen {
        let Self { fallback, floored, dominated, raised, .. } = self;
        Seen { unfit: unfit || self.unfit > 0, range, fallback, floored, dominated, raised }
    }
}

/// Calls a loop that knows at compile time which of the flags are set.
macro_rules! with_flags {
    ($function:ident::<$($known:ident),*>($($arg:expr),*);) => { $function::<$($known),*>($($arg),*) };
    ($function:ident::<$($known:ident),*>($($arg:expr),*); $flag:expr $(, $rest:expr)*) => {
        if $flag {
            with_flags!($function::<$($known,)* YES>($($arg),*); $($rest),*)
        } else {
            with_flags!($function::<$($known,)* NO>($($arg),*); $($rest),*)
        }
    };
}

const YES: bool = true;
const NO: bool = false;

/// One step of a Fisher merge, of one model or two.
pub(super) fn fisher(a: Model<'_>, b: Option<Model<'_>>, step: Step<'_>) -> Seen {
    let pair = b.is_some();
    let b = b.unwrap_or(a);
    let floor = a.least | b.least > 0;
    let Step { origin, before, end, shift } = step;
    let (after, merged, limit): (&mut State, &mut [f32], f32) = match end {
        End::State(after) => (after, &mut [], f32::INFINITY),
        End::Merged(merged, limit) => (&mut [], merged, limit),
    };
    let (first, last) = (before.is_none(), !merged.is_empty());
    let before = before.unwrap_or_default();
    vectorised(
        #[inline(always)]
        || with_flags!(fisher_loop::<>(a, b, origin, before, after, merged, (shift, limit)); first, last, pair, floor),
    )
}

#[inline(always)]
fn fisher_loop<const FIRST: bool, const LAST: bool, const PAIR: bool, const FLOOR: bool>(
    a: Model<'_>,
    b: Model<'_>,
    origin: &[f32],
    before: &State,
    after: &mut State,
    merged: &mut [f32],
    (shift, limit): (i32, f32),
) -> Seen {
    let n = origin.len().min(BLOCK);
    let (theta_a, fisher_a) = (&a.theta[..n], &a.fisher[..n]);
    let (theta_b, fisher_b, origin) = (&b.theta[..n], &b.fisher[..n], &origin[..n]);
    let (before, after) = (&before[..if FIRST { 0 } else { n }], &mut after[..if LAST { 0 } else { n }]);
    let merged = &mut merged[..if LAST { n } else { 0 }];
    let mut tally = Tally::default();
    let (mut extremes_a, mut extremes_b) = (Extremes::NONE, Extremes::NONE);
    let mut exponents = Exponents::NONE;
    let counted = (u32::from(a.counted), u32::from(b.counted));
    for i in 0..n {
        let (mut bits_a, mut bits_b) = (fisher_a[i].to_bits(), fisher_b[i].to_bits());
        let mut unfloored = 1;
        if FLOOR {
            let (below_a, below_b) = (u32::from(bits_a < a.least), u32::from(bits_b < b.least));
            unfloored = 1 - if PAIR { below_a & below_b } else { below_a };
            tally.raised += (below_a & counted.0) + if PAIR { below_b & counted.1 } else { 0 };
            (bits_a, bits_b) = (bits_a.max(a.least), bits_b.max(b.least));
        }
        extremes_a.add(bits_a);
        let weight = f32::from_bits(bits_a) * a.factor.value;
        let (exponent, distance) = (exponent_of(bits_a, a.factor), theta_a[i] - origin[i]);
        let mut running = if FIRST {
            Running::first(weight, exponent, distance, a.share, unfloored)
        } else {
            let mut running = Running::load(&before[i], shift, &mut exponents);
            running.add(weight, weight, exponent, distance, a.share);
            running.unfloored |= unfloored;
            running
        };
        if PAIR {
            extremes_b.add(bits_b);
            let weight = f32::from_bits(bits_b) * b.factor.value;
            running.add(weight, weight, exponent_of(bits_b, b.factor), theta_b[i] - origin[i], b.share);
        }
        if LAST {
            let value = running.result(origin[i]);
            merged[i] = value;
            tally.end(running, value, limit);
        } else {
            running.save(&mut after[i], shift);
            tally.check(running.mean, limit);
        }
    }
    let ranges = [extremes_a.range(a.factor), extremes_b.range(b.factor), exponents.range()];
    tally.seen(extremes_a.unfit() || extremes_b.unfit(), span(ranges.into_iter().flatten()))
}

/// One step of UBGM.
pub(super) fn ubgm(model: OneModel<'_>, step: Step<'_>) -> Seen {
    let Step { origin, before, end, shift } = step;
    let (after, merged, limit): (&mut State, &mut [f32], f32) = match end {
        End::State(after) => (after, &mut [], f32::INFINITY),
        End::Merged(merged, limit) => (&mut [], merged, limit),
    };
    let (first, last) = (before.is_none(), !merged.is_empty());
    let before = before.unwrap_or_default();
    vectorised(
        #[inline(always)]
        || with_flags!(ubgm_loop::<>(model, origin, before, after, merged, (shift, limit)); first, last),
    )
}

#[inline(always)]
fn ubgm_loop<const FIRST: bool, const LAST: bool>(
    model: OneModel<'_>,
    base: &[f32],
    before: &State,
    after: &mut State,
    merged: &mut [f32],
    (shift, limit): (i32, f32),
) -> Seen {
    let n = base.len().min(BLOCK);
    let (theta, fisher) = (&model.theta[..n], &model.fisher[..n]);
    let (base, base_fisher) = (&base[..n], &model.base_fisher[..n]);
    let (before, after) = (&before[..if FIRST { 0 } else { n }], &mut after[..if LAST { 0 } else { n }]);
    let merged = &mut merged[..if LAST { n } else { 0 }];
    let (factor, base_factor, lambda) = (model.factor, model.base_factor, model.lambda);
    let delta = model.delta.map_or(0.0, |delta| delta.value);
    let delta_exponent = model.delta.map_or(i32::MIN, |delta| delta.exponent);
    let mut tally = Tally::default();
    let (mut extremes, mut base_extremes) = (Extremes::NONE, Extremes::NONE);
    let mut exponents = Exponents::NONE;
    for i in 0..n {
        let (bits, base_bits) = (fisher[i].to_bits(), base_fisher[i].to_bits());
        let below = u32::from(bits < model.least);
        let bits = bits.max(model.least);
        tally.raised += below;
        extremes.add(bits);
        base_extremes.add(base_bits);
        let prior = f32::from_bits(base_bits) * base_factor.value + delta;
        let prior_exponent = exponent_of(base_bits, base_factor).max(delta_exponent);
        let weight = f32::from_bits(bits) * factor.value * lambda.value;
        let pull = weight + prior * lambda.value;
        let exponent = exponent_of(bits, factor).max(prior_exponent) + lambda.exponent;
        let distance = theta[i] - base[i];
        let mut running = if FIRST {
            Running::drawn(prior, weight, pull, exponent.max(prior_exponent), distance)
        } else {
            let mut running = Running::load(&before[i], shift, &mut exponents);
            running.add(weight, pull, exponent, distance, 0.0);
            running
        };
        running.unfloored |= 1 - below;
        if LAST {
            let value = running.result(base[i]);
            merged[i] = value;
            tally.end(running, value, limit);
        } else {
            running.save(&mut after[i], shift);
            tally.check(running.mean, limit);
        }
    }
    let delta = model.delta.map(|delta| (delta.exponent, delta.exponent));
    let of_base = span([base_extremes.range(base_factor), delta].into_iter().flatten());
    // Times λ too: what is held against the weights so far.
    let ranges = [extremes.range(factor), of_base].into_iter().flatten();
    let scaled = ranges.clone().map(|(low, high)| (low + lambda.exponent, high + lambda.exponent));
    let range = span(ranges.chain(scaled).chain(exponents.range()));
    tally.seen(extremes.unfit() || base_extremes.unfit(), range)
}

#[cfg(test)]
mod tests {
    use super::super::{
        COUNT_WORDS, Counts, Fisher, FisherArgs, FisherParams, Ubgm, UbgmArgs, UbgmParams, state_words,
    };
    use super::*;
    use crate::backend::Backend;
    use crate::kernel::noise;
    use crate::kernels::Owner;
    use crate::memory::{Element, View};
    use crate::record::Recording;

    /// Models that are merged in several steps.
    #[derive(Clone)]
    struct Models {
        thetas: Vec<Vec<f32>>,
        fishers: Vec<Vec<f32>>,
        factors: Vec<Factor>,
        floor: f32,
        len: usize,
    }

    /// What each step leaves: the state or, at the end, the result; and what it counted.
    type Left = Vec<(Vec<u32>, Counts)>;

    impl Models {
        /// Blocks of several magnitudes, a few Fishers zero in one model or in all.
        fn new(count: usize, len: usize) -> Self {
            let floats =
                |values: Vec<f64>| -> Vec<f32> { values.iter().map(|&value| value as f32).collect() };
            let fishers = |m: u64| {
                let (own, all) = (noise(100 + m, len), noise(7, len));
                let value = |p: usize| {
                    let zero = own[p] < -0.8 || all[p] < -0.9;
                    let scale = 2.0_f64.powi([0, -70, 60, -20][p / BLOCK % 4]);
                    if zero { 0.0 } else { 10.0_f64.powf(2.0 * own[p]) * scale }
                };
                floats((0..len).map(value).collect())
            };
            Self {
                thetas: (0..count as u64).map(|m| floats(noise(m, len))).collect(),
                fishers: (0..count as u64).map(fishers).collect(),
                factors: (0..count).map(|m| Factor::of(0.5 + m as f64)).collect(),
                floor: 0.0,
                len,
            }
        }

        /// One subnormal Fisher of `model` a block sends the block down the general way in the step that reads it.
        fn with_subnormals(mut self, model: usize) -> Self {
            self.fishers[model].iter_mut().step_by(BLOCK).for_each(|fisher| *fisher = f32::from_bits(1));
            self
        }

        fn views(&self) -> (Vec<View>, Vec<View>) {
            let view =
                |values: &Vec<f32>| Backend::Host.buffer(values, Element::F32).expect("a small buffer");
            (self.thetas.iter().map(view).collect(), self.fishers.iter().map(view).collect())
        }

        /// Runs `steps` steps that `record` appends.
        fn run(&self, steps: usize, record: impl Fn(&mut Recording, usize, [View; 3])) -> Left {
            let host = Backend::Host;
            let state = host.alloc(state_words(self.len as u64), Element::U32).expect("a small buffer");
            let merged = host.alloc(self.len as u64, Element::F32).expect("a small buffer");
            (0..steps)
                .map(|step| {
                    let counts = host.alloc(COUNT_WORDS, Element::U32).expect("a small buffer");
                    let mut recording = Recording::new(&host);
                    record(&mut recording, step, [state.clone(), merged.clone(), counts.clone()]);
                    host.run(&recording).expect("the step runs on the host");
                    let left = if step + 1 == steps { &merged } else { &state };
                    let words = |view: &View| host.download::<u32>(view).expect("the host's memory");
                    (words(left), Counts::of(&words(&counts)))
                })
                .collect()
        }

        fn fisher(&self) -> Left {
            let (thetas, fishers) = self.views();
            let count = thetas.len();
            self.run(count.div_ceil(2), |recording, step, [state, merged, counts]| {
                let (a, pair) = (2 * step, 2 * step + 1 < count);
                let b = if pair { a + 1 } else { a };
                let f32s = DType::F32;
                let kernel = Fisher {
                    theta: [f32s; 2],
                    fisher: [Some(f32s); 2],
                    reference: f32s,
                    merged: f32s,
                    first: step == 0,
                    last: b + 1 == count,
                    pair,
                    owner: Owner::Workgroup,
                };
                let share = |m: usize| 1.0 / (m as f32 + 1.0);
                let params = FisherParams {
                    len: u32::try_from(self.len).expect("tests are small"),
                    lambda_a: self.factors[a].mantissa,
                    exponent_a: self.factors[a].exponent,
                    share_a: share(a),
                    floor_a: self.floor.to_bits(),
                    lambda_b: self.factors[b].mantissa,
                    exponent_b: self.factors[b].exponent,
                    share_b: share(b),
                    floor_b: self.floor.to_bits(),
                };
                let args = FisherArgs {
                    theta_a: thetas[a].clone(),
                    fisher_a: fishers[a].clone(),
                    theta_b: thetas[b].clone(),
                    fisher_b: fishers[b].clone(),
                    reference: thetas[0].clone(),
                    state,
                    merged,
                    counts,
                };
                recording.dispatch(&kernel, params, args).expect("views fit");
            })
        }

        /// The last model is the base.
        fn ubgm(&self, lambda: f64, delta: f64) -> Left {
            let (thetas, fishers) = self.views();
            let count = thetas.len() - 1;
            self.run(count, |recording, step, [state, merged, counts]| {
                let f32s = DType::F32;
                let (first, last) = (step == 0, step + 1 == count);
                let kernel = Ubgm {
                    theta: f32s,
                    fisher: f32s,
                    base: f32s,
                    base_fisher: f32s,
                    merged: f32s,
                    first,
                    last,
                    owner: Owner::Workgroup,
                };
                let [lambda, delta] = [lambda, delta].map(Factor::of);
                let params = UbgmParams {
                    len: u32::try_from(self.len).expect("tests are small"),
                    lambda: lambda.mantissa,
                    lambda_exponent: lambda.exponent,
                    scale: self.factors[step].mantissa,
                    scale_exponent: self.factors[step].exponent,
                    floor: self.floor.to_bits(),
                    base_scale: self.factors[count].mantissa,
                    base_scale_exponent: self.factors[count].exponent,
                    delta: delta.mantissa,
                    delta_exponent: delta.exponent,
                };
                let args = UbgmArgs {
                    theta: thetas[step].clone(),
                    fisher: fishers[step].clone(),
                    base: thetas[count].clone(),
                    base_fisher: fishers[count].clone(),
                    state,
                    merged,
                    counts,
                };
                recording.dispatch(&kernel, params, args).expect("views fit");
            })
        }
    }

    /// Both ways leave the same bits after each step, but at the parameters that sent a block the general way. A zero mean may have either
    /// sign, and the exponent of no weight is any that is low enough.
    fn assert_same(plain: &Left, other: &Left, what: &str) {
        let zero = |word: u32| if word == 0x8000_0000 { 0 } else { word };
        let exponent = |word: u32| ((word.cast_signed() >> 1).max(Exponents::NOTHING), word & 1);
        for (step, ((left, _), (other, _))) in plain.iter().zip(other).enumerate() {
            let words = if step + 1 == plain.len() { 1 } else { 4 };
            for (at, (&left, &other)) in left.iter().zip(other).enumerate() {
                if at / words % BLOCK == 0 {
                    continue;
                }
                let same = if at % words == 3 {
                    exponent(left) == exponent(other)
                } else {
                    zero(left) == zero(other)
                };
                assert!(same, "{what}: step {step}, word {at}: {left:#x} is not {other:#x}");
            }
        }
    }

    /// Those whose blocks one of the models sends the general way, and all.
    fn general(models: &Models) -> impl Iterator<Item = Models> {
        let count = models.thetas.len();
        let all = (0..count).fold(models.clone(), Models::with_subnormals);
        let one = models.clone();
        (0..count).map(move |m| one.clone().with_subnormals(m)).chain([all])
    }

    /// Lengths that end in a part of a block, factors far outside of f32, floors.
    fn settings(count: usize) -> [Models; 4] {
        let models = Models::new(count, 4 * BLOCK + 77);
        let floor = Models { floor: 0.25, ..models.clone() };
        let mut far = models.clone();
        far.factors.iter_mut().for_each(|factor| factor.exponent -= 300);
        let mut apart = models.clone();
        apart.factors.iter_mut().enumerate().for_each(|(m, factor)| factor.exponent += 9 * (m as i32 % 3));
        [models, floor, far, apart]
    }

    #[test]
    fn steps_of_many_models_leave_the_bits_of_steps_with_exponents() {
        for count in 1..=5 {
            for (setting, models) in settings(count).iter().enumerate() {
                let plain = models.fisher();
                for other in general(models) {
                    assert_same(&plain, &other.fisher(), &format!("{count} models, setting {setting}"));
                }
            }
        }
    }

    #[test]
    fn steps_of_many_models_by_a_base_leave_the_bits_of_steps_with_exponents() {
        for count in 2..=4 {
            for (setting, models) in settings(count).iter().enumerate() {
                for (lambda, delta) in [(1.5, 0.0), (0.0, 0.0), (2e-9, 0.25), (3e9, 0.0)] {
                    let plain = models.ubgm(lambda, delta);
                    for other in general(models) {
                        let what =
                            format!("{count} models, setting {setting}, lambda {lambda}, delta {delta}");
                        assert_same(&plain, &other.ubgm(lambda, delta), &what);
                    }
                }
            }
        }
    }

    /// Exponents of weights that are kept between steps reach as far as f64's, and none is no exponent.
    #[test]
    fn exponents_are_those_of_values_and_of_what_they_are_stored_with() {
        let range = |weights: &[(f32, i32)]| {
            let mut exponents = Exponents::NONE;
            weights.iter().for_each(|&(mantissa, exponent)| exponents.add(mantissa.to_bits(), exponent));
            exponents.range()
        };
        assert_eq!(range(&[]), None);
        assert_eq!(range(&[(0.0, NOTHING), (0.0, NOTHING - 300)]), None);
        assert_eq!(range(&[(1.5, -900), (0.0, NOTHING)]), Some((-900, -900)));
        assert_eq!(range(&[(1.5, -900), (6.0, 800)]), Some((-900, 802)));
        assert_eq!(range(&[(0.25, 4)]), Some((2, 4)));
        // A weight of zero with an exponent of its own is no case for plain f32.
        assert_eq!(range(&[(0.0, 3)]), Some((-124, 3)));
    }
}
