//! The host execution that both merging kernels share: blocks of parameters, their tallies, and counting. Most blocks
//! are merged by [`plain`](super::plain) without tallies.

use rayon::prelude::*;

use super::{COUNT_WORDS, plain};
use crate::kernel::{BLOCK, Floats, Slice, SliceMut, task_len, vectorised};
use crate::shape::DType;

/// The exponent of nothing: below that of every product that can occur.
pub(super) const NOTHING: i32 = -100_000;

/// Weights of a block: mantissas and exponents.
pub(super) struct Wides {
    pub(super) mantissa: [f32; BLOCK],
    pub(super) exponent: [i32; BLOCK],
}

/// What is known of each parameter of a block after some models.
pub(super) struct Tallies {
    pub(super) mean: [f32; BLOCK],
    pub(super) denominator: [f32; BLOCK],
    pub(super) largest: [f32; BLOCK],
    pub(super) exponent: [i32; BLOCK],
    pub(super) unfloored: [u32; BLOCK],
}

/// What weights with their own exponents take.
#[derive(Default)]
pub(super) struct General {
    pub(super) tallies: Tallies,
    pub(super) weights: Wides,
    pub(super) pulls: Wides,
    pub(super) prior: Wides,
}

/// Scratch of one task. Memory is taken when it is needed first: most blocks need little of it.
#[derive(Default)]
pub(super) struct Scratch {
    pub(super) general: Option<Box<General>>,
    pub(super) theta: Floats,
    pub(super) fisher: Floats,
    pub(super) origin: Floats,
    pub(super) base_fisher: Floats,
    /// Weights and Fisher of a second model.
    pub(super) second: (Floats, Floats),
    pub(super) plain: plain::Scratch,
    /// A block's state between steps that come straight after each other.
    pub(super) state: Vec<u128>,
}

/// Pulls of a method that has none: a zero weight with the least exponent changes no exponent and no pull.
static NO_PULL: Wides = Wides { mantissa: [0.0; BLOCK], exponent: [NOTHING; BLOCK] };

impl Default for Wides {
    fn default() -> Self {
        Self { mantissa: [0.0; BLOCK], exponent: [NOTHING; BLOCK] }
    }
}

impl Default for Tallies {
    fn default() -> Self {
        Self {
            mean: [0.0; BLOCK],
            denominator: [0.0; BLOCK],
            largest: [0.0; BLOCK],
            exponent: [NOTHING; BLOCK],
            unfloored: [0; BLOCK],
        }
    }
}

/// Non-negative finite f32 bits as mantissa in
/// [1, 2) and exponent; a subnormal's by way of an exact conversion of its integer.
#[expect(
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    reason = "exponents and 23-bit integers fit"
)]
#[inline(always)]
fn wide(bits: u32) -> (f32, i32) {
    let subnormal = bits < 0x0080_0000;
    let normal = if subnormal { (bits as i32 as f32).to_bits() } else { bits };
    let bias = if subnormal { 127 + 149 } else { 127 };
    let mantissa = f32::from_bits((normal & 0x007f_ffff) | 0x3f80_0000);
    if bits == 0 { (0.0, NOTHING) } else { (mantissa, (normal >> 23) as i32 - bias) }
}

/// 2^e, zero below 2^-126.
#[expect(clippy::cast_sign_loss, reason = "clamped to be non-negative")]
#[inline(always)]
pub(super) fn pow2(e: i32) -> f32 {
    f32::from_bits(((e + 127).clamp(0, 254) as u32) << 23)
}

/// A Fisher's bits as they are used: anything that is not a valid Fisher counts as zero (and is reported), as minus
/// zero does.
#[inline(always)]
fn checked(bits: u32) -> u32 {
    if bits > 0x7f7f_ffff { 0 } else { bits }
}

impl Wides {
    /// Fishers, raised to `least` (bits), times a factor.
    #[inline(always)]
    pub(super) fn load(&mut self, fisher: &[f32], least: u32, factor: super::Factor) {
        let n = fisher.len().min(BLOCK);
        let (fisher, m, e) = (&fisher[..n], &mut self.mantissa[..n], &mut self.exponent[..n]);
        for i in 0..n {
            let (mantissa, exponent) = wide(checked(fisher[i].to_bits()).max(least));
            m[i] = mantissa * factor.mantissa;
            e[i] = exponent + factor.exponent;
        }
    }

    /// Other weights times a factor.
    #[inline(always)]
    pub(super) fn scaled(&mut self, of: &Self, factor: super::Factor) {
        for i in 0..BLOCK {
            self.mantissa[i] = of.mantissa[i] * factor.mantissa;
            self.exponent[i] = of.exponent[i] + factor.exponent;
        }
    }

    /// Adds one number to every weight.
    #[inline(always)]
    pub(super) fn add(&mut self, number: super::Factor) {
        for (m, e) in self.mantissa.iter_mut().zip(&mut self.exponent) {
            let top = (*e).max(number.exponent);
            *m = *m * pow2(*e - top) + number.mantissa * pow2(number.exponent - top);
            *e = top;
        }
    }
}

impl Tallies {
    /// Nothing known, and denominators that start at zero.
    #[inline(always)]
    pub(super) fn start(&mut self) {
        self.mean.fill(0.0);
        self.denominator.fill(0.0);
        self.largest.fill(0.0);
        self.exponent.fill(NOTHING);
        self.unfloored.fill(0);
    }

    /// Nothing known, and denominators that start at `prior`.
    #[inline(always)]
    pub(super) fn start_from(&mut self, prior: &Wides) {
        self.start();
        self.denominator = prior.mantissa;
        self.exponent = prior.exponent;
    }

    /// Adds one model, of which `extra` pulls besides its weight; see `add_model` in `shaders/lib/merge/tally.wgsl`.
    #[inline(always)]
    pub(super) fn add(
        &mut self,
        weights: &Wides,
        extra: Option<&Wides>,
        theta: &[f32],
        origin: &[f32],
        share: f32,
    ) {
        let extra = extra.unwrap_or(&NO_PULL);
        let mut keep = [0.0; BLOCK];
        let mut draw = [0.0; BLOCK];
        shares(
            theta.len(),
            &mut self.denominator,
            &mut self.largest,
            &mut self.exponent,
            &weights.mantissa,
            &weights.exponent,
            &extra.mantissa,
            &extra.exponent,
            &mut keep,
            &mut draw,
            share,
        );
        let parts = theta.iter().zip(origin).zip(keep.iter().zip(&draw));
        for (mean, ((theta, origin), (keep, draw))) in self.mean.iter_mut().zip(parts) {
            *mean = *mean * keep + (theta - origin) * draw;
        }
    }

    /// Notes which Fishers stood above their floor.
    #[inline(always)]
    pub(super) fn floors(&mut self, fisher: &[f32], least: u32) {
        for (unfloored, f) in self.unfloored.iter_mut().zip(fisher) {
            *unfloored |= u32::from(checked(f.to_bits()) >= least);
        }
    }

    /// reference + mean, and the reference's own bits where the models agree.
    #[inline(always)]
    pub(super) fn finish(&self, origin: &[f32], merged: &mut [f32]) {
        for ((merged, &origin), &mean) in merged.iter_mut().zip(origin).zip(&self.mean) {
            *merged = if mean == 0.0 { origin } else { origin + mean };
        }
    }

    /// Reads the four state words of each parameter.
    #[expect(clippy::cast_possible_wrap, reason = "a shift keeps the sign it was stored with")]
    #[inline(always)]
    pub(super) fn load(&mut self, state: &[u32]) {
        for (i, words) in state.chunks_exact(4).enumerate() {
            self.mean[i] = f32::from_bits(words[0]);
            self.denominator[i] = f32::from_bits(words[1]);
            self.largest[i] = f32::from_bits(words[2]);
            self.exponent[i] = words[3] as i32 >> 1;
            self.unfloored[i] = words[3] & 1;
        }
    }

    /// Writes them.
    #[expect(clippy::cast_sign_loss, reason = "bits are kept")]
    #[inline(always)]
    pub(super) fn save(&self, state: &mut [u32]) {
        for (i, words) in state.chunks_exact_mut(4).enumerate() {
            words[0] = self.mean[i].to_bits();
            words[1] = self.denominator[i].to_bits();
            words[2] = self.largest[i].to_bits();
            words[3] = (self.exponent[i] << 1) as u32 | self.unfloored[i];
        }
    }
}

/// What is kept of the mean and what a model draws it by, and the weights with the model in.
///
/// Every array is a separate argument: only then does the compiler know that no two overlap, and vectorises the loop.
#[expect(clippy::too_many_arguments, reason = "see above")]
#[inline(always)]
fn shares(
    len: usize,
    denominator: &mut [f32; BLOCK],
    largest: &mut [f32; BLOCK],
    exponent: &mut [i32; BLOCK],
    weight: &[f32; BLOCK],
    weight_exponent: &[i32; BLOCK],
    extra: &[f32; BLOCK],
    extra_exponent: &[i32; BLOCK],
    keep: &mut [f32; BLOCK],
    draw: &mut [f32; BLOCK],
    share: f32,
) {
    for i in 0..len.min(BLOCK) {
        let e = exponent[i].max(weight_exponent[i]).max(extra_exponent[i]);
        let scale = pow2(exponent[i] - e);
        let before = denominator[i] * scale;
        let added = weight[i] * pow2(weight_exponent[i] - e);
        let pull = added + extra[i] * pow2(extra_exponent[i] - e);
        let sum = before + added;
        let none = sum <= 0.0;
        let safe = if none { 1.0 } else { sum };
        keep[i] = if none { 1.0 - share } else { before / safe };
        draw[i] = if none { share } else { pull / safe };
        denominator[i] = sum;
        let scaled = largest[i] * scale;
        largest[i] = if scaled > added { scaled } else { added };
        exponent[i] = e;
    }
}

/// A block of the reference, which in a first step is the first model, widened already.
#[inline(always)]
pub(super) fn load_origin<'a>(
    scratch: &'a mut Floats,
    reference: Slice<'a>,
    first: Slice<'_>,
    theta: &'a [f32],
) -> &'a [f32] {
    if reference.is_same(first) { theta } else { scratch.load(reference) }
}

/// The `counts` words of one task.
pub(crate) type Words = [u32; COUNT_WORDS as usize];

/// Adds `flags` of elements from `start` to the count at `slot` and its first place.
pub(super) fn note(counts: &mut Words, slot: usize, start: usize, flags: impl Iterator<Item = bool>) {
    for (i, flag) in flags.enumerate() {
        if flag {
            counts[slot] += 1;
            let index = u32::try_from(start + i).expect("launch checks that lengths fit u32");
            counts[slot + 1] = counts[slot + 1].max(!index);
        }
    }
}

/// Counts what is wrong with one model's block and what its floor raised. Slots as in `shaders/lib/merge/count.wgsl`.
#[inline(always)]
pub(super) fn count_model(
    counts: &mut Words,
    model: usize,
    start: usize,
    theta: &[f32],
    fisher: Option<&[f32]>,
    least: u32,
) {
    // Folded without an early end, which would keep the loop from vectorising.
    let unfit = |flags: u32, flag: bool| flags | u32::from(flag);
    if theta.iter().fold(0, |flags, t| unfit(flags, !t.is_finite())) > 0 {
        note(counts, 6 + 4 * model, start, theta.iter().map(|t| !t.is_finite()));
    }
    let Some(fisher) = fisher else { return };
    let bad = |f: &f32| f.to_bits() > 0x7f7f_ffff && f.to_bits() != 0x8000_0000;
    if fisher.iter().fold(0, |flags, f| unfit(flags, bad(f))) > 0 {
        note(counts, 4 + 4 * model, start, fisher.iter().map(bad));
    }
    if least > 0 {
        counts[3] += fisher.iter().map(|f| u32::from(checked(f.to_bits()) < least)).sum::<u32>();
    }
}

/// Counts how a finished block was decided.
#[inline(always)]
pub(super) fn count_outcome(counts: &mut Words, tallies: &Tallies, len: usize) {
    let (denominator, largest) = (&tallies.denominator[..len], &tallies.largest[..len]);
    let (mut fallback, mut dominated) = (0, 0);
    for (&denominator, &largest) in denominator.iter().zip(largest) {
        let none = denominator <= 0.0;
        fallback += u32::from(none);
        dominated += u32::from(!none & (largest > 0.99 * denominator));
    }
    counts[0] += fallback;
    counts[1] += tallies.unfloored[..len].iter().map(|&flag| u32::from(flag == 0)).sum::<u32>();
    counts[2] += dominated;
}

/// The least magnitude that rounds to infinity in a storage type.
pub(super) fn too_large(dtype: DType) -> f32 {
    match dtype {
        DType::F32 => f32::INFINITY,
        DType::F16 => 65520.0,
        DType::BF16 => f32::from_bits(0x7f7f_8000),
    }
}

/// Counts results that their storage type can't hold.
#[inline(always)]
pub(super) fn count_unrepresentable(counts: &mut Words, start: usize, merged: &[f32], dtype: DType) {
    let limit = too_large(dtype);
    // NaN included: no comparison with one is true.
    let fits = |value: &f32| value.abs() < limit;
    if merged.iter().fold(0, |flags, value| flags | u32::from(!fits(value))) > 0 {
        note(counts, 12, start, merged.iter().map(|value| !fits(value)));
    }
}

/// One block's share of the buffers that are written.
pub(super) struct Block<'a> {
    pub(super) start: usize,
    pub(super) len: usize,
    pub(super) state: Option<SliceMut<'a>>,
    pub(super) merged: Option<SliceMut<'a>>,
}

/// Shares the blocks of `len` parameters out to the cores, compiled for the widest vectors, and adds up what
/// they count.
pub(super) fn for_blocks(
    len: usize,
    state: Option<SliceMut<'_>>,
    merged: Option<SliceMut<'_>>,
    counts: SliceMut<'_>,
    each: impl Fn(&mut Scratch, &mut Words, Block<'_>) + Send + Sync,
) {
    let [sum] = counted(
        len,
        state,
        merged,
        1,
        #[inline(always)]
        |scratch, words, block| each(scratch, &mut words[0], block),
    )[..] else {
        unreachable!("one step counts once")
    };
    add_to(counts.cast(), sum);
}

/// Adds what was counted to a `counts` buffer.
pub(crate) fn add_to(counts: &mut [u32], sum: Words) {
    let mut before = Words::default();
    before.copy_from_slice(counts);
    counts.copy_from_slice(&add(before, sum));
}

/// Shares the blocks of `len` parameters out to the cores, compiled for the widest vectors, and adds up what they count
/// in each of `steps` steps.
pub(super) fn counted(
    len: usize,
    state: Option<SliceMut<'_>>,
    merged: Option<SliceMut<'_>>,
    steps: usize,
    each: impl Fn(&mut Scratch, &mut [Words], Block<'_>) + Send + Sync,
) -> Vec<Words> {
    let task_len = task_len(len);
    let tasks = len.div_ceil(task_len);
    let mut states = state.map(|s| s.chunks(4 * task_len).into_iter());
    let mut outputs = merged.map(|m| m.chunks(task_len).into_iter());
    let pieces: Vec<_> = (0..tasks)
        .map(|task| {
            let state = states.as_mut().and_then(Iterator::next);
            let merged = outputs.as_mut().and_then(Iterator::next);
            Block { start: task * task_len, len: task_len.min(len - task * task_len), state, merged }
        })
        .collect();
    let nothing = || vec![Words::default(); steps];
    pieces
        .into_par_iter()
        .map_init(Scratch::default, |scratch, piece| {
            let mut words = nothing();
            vectorised(
                #[inline(always)]
                || {
                    for block in piece.blocks() {
                        each(scratch, &mut words, block);
                    }
                },
            );
            words
        })
        .reduce(nothing, |a, b| a.into_iter().zip(b).map(|(a, b)| add(a, b)).collect())
}

impl<'a> Block<'a> {
    /// The pieces of [`BLOCK`] parameters.
    fn blocks(self) -> impl Iterator<Item = Self> {
        let (start, len) = (self.start, self.len);
        let mut states = self.state.map(|s| s.chunks(4 * BLOCK).into_iter());
        let mut outputs = self.merged.map(|m| m.chunks(BLOCK).into_iter());
        (0..len.div_ceil(BLOCK)).map(move |block| Block {
            start: start + block * BLOCK,
            len: BLOCK.min(len - block * BLOCK),
            state: states.as_mut().and_then(Iterator::next),
            merged: outputs.as_mut().and_then(Iterator::next),
        })
    }
}

/// Counts add; first places (stored as complements) take the maximum.
fn add(a: Words, b: Words) -> Words {
    let mut sum = Words::default();
    for slot in 0..sum.len() {
        let place = slot >= 4 && slot % 2 == 1;
        sum[slot] = if place { a[slot].max(b[slot]) } else { a[slot] + b[slot] };
    }
    sum
}
