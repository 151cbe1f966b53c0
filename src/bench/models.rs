//! Merging more models than one step takes: several steps over each chunk, as a job on files does it.

use super::fill::filled;
use crate::backend::Backend;
use crate::error::Result;
use crate::kernel::{Checked, Cost, Fill};
use crate::kernels::Owner;
use crate::kernels::merge::{COUNT_STRIDE, COUNT_WORDS, Fisher, FisherArgs, FisherParams, state_words};
use crate::memory::{Element, View};
use crate::record::{MergeStep, Recording};

/// How many models are merged.
pub(super) const MODELS: [usize; 3] = [3, 4, 8];

/// Bytes of a chunk with its state: what jobs on files take at a time, on the host and on a device.
const CHUNK: [u64; 2] = [2 << 20, 32 << 20];

/// Bytes of all buffers for a parameter: θ and F of each model, and the result.
pub(super) fn width(models: usize) -> u64 {
    8 * models as u64 + 4
}

/// The steps that merge `models` models of `elements` f32 with f32 Fishers, chunk after chunk. Their fewest
/// bytes count no state.
///
/// # Errors
/// What the kernel or the backend refuses.
pub(super) fn recording(backend: &Backend, models: usize, elements: u64) -> Result<(Recording, Cost)> {
    let bytes = CHUNK[usize::from(!backend.caps().is_host)];
    let chunk = (bytes / (width(models) + 16)).next_multiple_of(8).min(elements);
    let stream = |fill| filled(backend, Element::F32, elements, fill);
    let thetas = (0..models).map(|_| stream(Fill::Noise)).collect::<Result<_>>()?;
    let fishers = (0..models).map(|_| stream(Fill::Positive)).collect::<Result<_>>()?;
    let buffers = Buffers {
        thetas,
        fishers,
        merged: stream(Fill::Zero)?,
        state: backend.alloc(state_words(chunk), Element::U32)?,
        counts: backend.alloc(COUNT_STRIDE * models.div_ceil(2) as u64, Element::U32)?,
    };
    let mut recording = Recording::new(backend);
    let mut start = 0;
    while start < elements {
        let len = chunk.min(elements - start);
        let owner = Owner::of(recording.caps());
        let steps = (0..models.div_ceil(2)).map(|step| buffers.step(owner, step, start, len));
        let steps = steps.collect::<Result<_>>()?;
        recording.merge(steps)?;
        start += len;
    }
    let flops = 4 * models as u64 * elements;
    Ok((recording, Cost { bytes: width(models) * elements, flops }))
}

struct Buffers {
    thetas: Vec<View>,
    fishers: Vec<View>,
    merged: View,
    state: View,
    counts: View,
}

impl Buffers {
    /// One step over the parameters from `start`.
    fn step(&self, owner: Owner, step: usize, start: u64, len: u64) -> Result<MergeStep> {
        let models = self.thetas.len();
        let (a, pair) = (2 * step, 2 * step + 1 < models);
        let b = if pair { a + 1 } else { a };
        let bench = Fisher::bench(len);
        let kernel = Fisher { first: step == 0, last: b + 1 == models, pair, owner, ..bench.kernel };
        let params = FisherParams { share_a: share(a), share_b: share(b), ..bench.params };
        let part = |view: &View| {
            let offset = view.offset() + 4 * start;
            View::new(view.memory().clone(), offset, len, Element::F32)
        };
        let counts = self.counts.offset() + 4 * COUNT_STRIDE * step as u64;
        let args = FisherArgs {
            theta_a: part(&self.thetas[a])?,
            fisher_a: part(&self.fishers[a])?,
            theta_b: part(&self.thetas[b])?,
            fisher_b: part(&self.fishers[b])?,
            reference: part(&self.thetas[0])?,
            state: self.state.first(state_words(len))?,
            merged: part(&self.merged)?,
            counts: View::new(self.counts.memory().clone(), counts, COUNT_WORDS, Element::U32)?,
        };
        Ok(MergeStep { kernel, params, args })
    }
}

/// Of a plain average of all models up to this one.
fn share(model: usize) -> f32 {
    1.0 / (model as f32 + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Equal models, of several chunks: what is timed is a merge.
    #[test]
    fn every_step_of_every_chunk_is_recorded() {
        for models in MODELS {
            let (recording, cost) = recording(&Backend::Host, models, 100_000).expect("small buffers");
            let chunk = (CHUNK[0] / (width(models) + 16)).next_multiple_of(8);
            // On the host the steps of a chunk are one.
            assert_eq!(recording.len() as u64, 100_000_u64.div_ceil(chunk));
            assert_eq!(cost.bytes, (8 * models as u64 + 4) * 100_000);
            Backend::Host.run(&recording).expect("the host is there");
        }
    }
}
