//! Merging in plain f32, where a block's weights allow it: several times as fast as with their own exponents, the same
//! bits.
//!
//! A power of two common to all weights changes no rounding, so long as nothing becomes subnormal or overflows. So the
//! weights of a block are brought near one by such a power, and merged in a single loop, which also finds out what it
//! is to be: the loop takes the power that fitted the block before, and where that does not fit, is run once more.
//! Blocks that no power fits, and those in which something has to be reported, are left to [`host`](super::host), which
//! has an answer for everything.
//!
//! The loops know at compile time whether a step starts from nothing, ends with the result, or has a second model:
//! between steps they read and write the same words that `host` does, so that a parameter may take either way in each
//! step and keep its bits. A loop that has to be run again needs what it began with: so a step in the middle writes to
//! its own place first.

mod bounds;
mod loops;
mod running;
#[cfg(test)]
mod tests;

pub(super) use loops::{fisher, fisher_of_many, ubgm};

use super::Factor;
use super::host::{self, Block, Words, pow2};
use crate::kernel::{BLOCK, Floats, SliceMut};
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

/// What steps over a block hand on to each other where one comes straight after the other: all in units of the same
/// power of two, and so without exponents.
pub(super) struct Sums {
    mean: [f32; BLOCK],
    sum: [f32; BLOCK],
    largest: [f32; BLOCK],
    /// Kept where there are floors: without them no Fisher is below one.
    unfloored: [u32; BLOCK],
}

impl Default for Sums {
    fn default() -> Self {
        Self { mean: [0.0; BLOCK], sum: [0.0; BLOCK], largest: [0.0; BLOCK], unfloored: [1; BLOCK] }
    }
}

/// What such a step has besides models.
pub(super) struct StepOfMany<'a> {
    /// θ_ref.
    origin: &'a [f32],
    first: bool,
    /// The result of the last one, and the least magnitude that cannot be stored.
    merged: Option<(&'a mut [f32], f32)>,
    /// What is added to the exponents of all weights.
    pub(super) shift: i32,
    sums: &'a mut Sums,
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
    /// What has to be added to the weights' exponents, if that can help: 0 where they lie between 2^-60 and 2^60. Then
    /// no ratio of two weights is subnormal.
    fn shift(&self) -> Option<i32> {
        let Some((smallest, largest)) = self.range else { return Some(0) };
        if smallest >= -60 && largest <= 60 {
            return Some(0);
        }
        (largest - smallest <= 110).then(|| -i32::midpoint(smallest, largest))
    }

    /// Of weights that are added up: so many of each of these.
    fn of_many(mut self, models: usize) -> Self {
        let more = models.ilog2().cast_signed() + 1;
        self.range = self.range.map(|(smallest, largest)| (smallest, largest + more));
        self
    }

    /// What two steps have seen together, but for what they count.
    fn and(self, other: &Self) -> Self {
        let range = bounds::span([self.range, other.range].into_iter().flatten());
        Self { unfit: self.unfit || other.unfit, range, ..Self::default() }
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
    /// Of steps that come straight after each other, and what each has seen.
    sums: Option<Box<Sums>>,
    seen: Vec<Seen>,
}

/// What `attempt` has seen once a power of two fitted: twice at most, as what is found the first time is centred the
/// second.
#[inline(always)]
fn fitted(scratch: &mut Scratch, mut attempt: impl FnMut(&mut Scratch) -> Option<Seen>) -> Option<Seen> {
    for _ in 0..2 {
        let seen = attempt(scratch).filter(|seen| !seen.unfit)?;
        match seen.shift()? {
            0 => return Some(seen),
            more => scratch.shift += more,
        }
    }
    None
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
    /// Merges a block by `merge`, which is given the exponent to add to those of the weights (none if that leaves f32's
    /// range). Tells whether the block was merged and counted; if not, its state is what it was or, in a first step,
    /// anything.
    #[inline(always)]
    pub(super) fn merge(
        &self,
        scratch: &mut Scratch,
        counts: &mut Words,
        block: &mut Block<'_>,
        mut merge: impl FnMut(Step<'_>) -> Option<Seen>,
    ) -> bool {
        let seen = fitted(
            scratch,
            #[inline(always)]
            |scratch| self.attempt(scratch, block, &mut merge),
        );
        if let Some(seen) = seen {
            seen.count(counts);
            self.keep(scratch, block);
        }
        seen.is_some()
    }

    #[inline(always)]
    fn attempt(
        &self,
        scratch: &mut Scratch,
        block: &mut Block<'_>,
        merge: &mut impl FnMut(Step<'_>) -> Option<Seen>,
    ) -> Option<Seen> {
        let Scratch { state: kept, merged: out, shift, .. } = scratch;
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
        out.store(
            merged.reborrow(),
            #[inline(always)]
            |merged| {
                let before = (!first).then_some(&*state);
                seen = merge(Step { origin, before, end: End::Merged(merged, limit), shift });
            },
        );
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

/// All steps of a merge over a block, one straight after the other: what is not a model's.
pub(super) struct BlockSteps<'s> {
    pub(super) steps: usize,
    /// θ_ref.
    pub(super) origin: &'s [f32],
    /// As of [`BlockStep`].
    pub(super) exponent: i32,
    /// Storage of the result.
    pub(super) merged: DType,
}

impl BlockSteps<'_> {
    /// Merges a block by `merge`, which does the step of an index and is given the exponent to add to those of the
    /// weights (none if that leaves f32's range). Tells whether the block was merged and counted, each step by itself;
    /// if not, the result is anything.
    #[inline(always)]
    pub(super) fn merge(
        &self,
        scratch: &mut Scratch,
        counts: &mut [Words],
        merged: &mut SliceMut<'_>,
        mut merge: impl FnMut(usize, StepOfMany<'_>) -> Option<Seen>,
    ) -> bool {
        let seen = fitted(
            scratch,
            #[inline(always)]
            |scratch| self.attempt(scratch, merged, &mut merge),
        );
        let fits = seen.is_some();
        if fits {
            counts.iter_mut().zip(&scratch.seen).for_each(|(counts, seen)| seen.count(counts));
        }
        fits
    }

    #[inline(always)]
    fn attempt(
        &self,
        scratch: &mut Scratch,
        merged: &mut SliceMut<'_>,
        merge: &mut impl FnMut(usize, StepOfMany<'_>) -> Option<Seen>,
    ) -> Option<Seen> {
        let Scratch { shift, merged: out, sums, seen, .. } = scratch;
        let (shift, origin) = (shift.checked_sub(self.exponent)?, self.origin);
        let sums = &mut **sums.get_or_insert_default();
        seen.clear();
        let last = self.steps - 1;
        for at in 0..last {
            seen.push(merge(
                at,
                StepOfMany { origin, first: at == 0, merged: None, shift, sums: &mut *sums },
            )?);
        }
        let limit = host::too_large(self.merged);
        out.store(
            merged.reborrow(),
            #[inline(always)]
            |merged| {
                let merged = Some((merged, limit));
                seen.extend(merge(last, StepOfMany { origin, first: last == 0, merged, shift, sums }));
            },
        );
        let all = seen.iter().fold(Seen::default(), Seen::and);
        (seen.len() == self.steps).then(|| all.of_many(2 * self.steps))
    }
}
