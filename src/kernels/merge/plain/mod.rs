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

mod bounds;
mod loops;
mod running;
#[cfg(test)]
mod tests;

pub(super) use loops::{fisher, ubgm};

use super::Factor;
use super::host::{self, Block, Words, pow2};
use crate::kernel::Floats;
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
