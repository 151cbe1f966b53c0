//! All steps of a Fisher merge on the host, block by block: what is known of a parameter between steps then stays in a
//! first-level cache, as plain numbers. Steps one after the other over all parameters would write it to memory with an
//! exponent each, and read it again.

use super::fisher::{HostStep, load_fisher};
use super::host::{self, Block, Scratch, Words};
use super::plain::{self, BlockSteps};
use crate::kernel::{BLOCK, SliceMut};
use crate::memory::Element;

/// Runs the steps of one merge of `len` parameters, and tells what each counts. The bits of the result are those of the
/// steps one by one.
pub(crate) fn merge_on_host(len: usize, steps: &[HostStep<'_>], merged: SliceMut<'_>) -> Vec<Words> {
    host::counted(
        len,
        None,
        Some(merged),
        steps.len(),
        #[inline(always)]
        |scratch, counts, mut block| {
            if !plain_block(steps, scratch, counts, &mut block) {
                step_by_step(steps, scratch, counts, block);
            }
        },
    )
}

/// A block in plain f32, if one power of two fits the weights of all models.
#[inline(always)]
fn plain_block(
    steps: &[HostStep<'_>],
    scratch: &mut Scratch,
    counts: &mut [Words],
    block: &mut Block<'_>,
) -> bool {
    let Block { start, len, merged, .. } = block;
    let (start, len) = (*start, *len);
    let Some(merged) = merged else { return false };
    let Scratch { theta, fisher, origin, second, plain, .. } = scratch;
    let reference = steps[0].reference.range(start, len);
    let origin = origin.load(reference);
    let all = BlockSteps {
        steps: steps.len(),
        origin,
        exponent: steps[0].models()[0].2.factor.exponent,
        merged: steps[steps.len() - 1].kernel.merged,
    };
    all.merge(
        plain,
        counts,
        merged,
        #[inline(always)]
        |at, step| {
            let models = steps[at].models();
            let (a, f, model) = models[0];
            let a = a.range(start, len);
            // The reference is widened already.
            let theta = if a.is_same(reference) { origin } else { theta.load(a) };
            let a = model.plain(step.shift, theta, load_fisher(fisher, f, start, len), f.is_some())?;
            let b = match models.get(1) {
                Some(&(b, f, model)) => {
                    let fisher = load_fisher(&mut second.1, f, start, len);
                    Some(model.plain(step.shift, second.0.load(b.range(start, len)), fisher, f.is_some())?)
                }
                None => None,
            };
            Some(plain::fisher_of_many(a, b, step))
        },
    )
}

/// A block by the steps as they are, with a state for this block alone.
fn step_by_step(steps: &[HostStep<'_>], scratch: &mut Scratch, counts: &mut [Words], block: Block<'_>) {
    let Block { start, len, mut merged, .. } = block;
    let mut state = std::mem::take(&mut scratch.state);
    state.resize(BLOCK, 0);
    for (step, counts) in steps.iter().zip(counts) {
        let state = SliceMut::new(bytemuck::cast_slice_mut(&mut state[..len]), Element::U32);
        let merged = merged.as_mut().filter(|_| step.kernel.last).map(SliceMut::reborrow);
        step.block(scratch, counts, Block { start, len, state: Some(state), merged });
    }
    scratch.state = state;
}
