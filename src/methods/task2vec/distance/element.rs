//! Distances of all elements: every pair in one pass over the Fishers side by side.

use std::sync::atomic::AtomicU64;

use super::{of_sums, one_zero, pairs, symmetric};
use crate::error::{Result, printable};
use crate::kernels::Owner;
use crate::kernels::task2vec::{Similarity, SimilarityArgs, SimilarityParams, Sums};
use crate::memory::{Element, View};
use crate::methods::source::{CheckpointSource, FISHER_VALUES};
use crate::methods::task2vec::inputs::Fishers;
use crate::methods::task2vec::{Metric, STRIDE};
use crate::record::Recording;
use crate::shape::DType;
use crate::stream::{
    Buffers, Chunk, Direction, End, Job, Layout, Plan, Run, Stream, Sweep, TensorSpec, Timings, run,
};

/// All pairs in one pass over all Fishers side by side; how many elements, and where the time went.
pub(super) fn by_element(
    metric: Metric,
    fishers: &Fishers,
    zeroed: Option<&AtomicU64>,
    with: &Run<'_>,
) -> Result<(Vec<Vec<f64>>, u64, Timings)> {
    let tasks = fishers.names.len();
    let caps = with.backend.caps();
    let plan = Plan::new(&layout(fishers), &with.budget.within(&caps))?;
    let source = |file| CheckpointSource::new(file, fishers.places.clone()).zeroing(zeroed);
    let sources: Vec<CheckpointSource<'_>> = fishers.checkpoints.iter().map(source).collect();
    let longest = plan.chunks().iter().map(|chunk| chunk.elements).max().unwrap_or(0);
    let owner = Owner::of(&caps);
    let any = Similarity { metric, a: DType::F32, b: DType::F32, owner };
    let mut sweep = PairSweep {
        any,
        fishers,
        sources: &sources,
        stride: any.records(longest).next_multiple_of(STRIDE),
        sums: vec![Sums::default(); pairs(tasks).count()],
    };
    let ends = sources.iter().map(|source| End::Source(source)).collect();
    let timings = run(&Job { run: with, plan: &plan, ends }, &mut sweep)?;
    let mut sums = sweep.sums.iter();
    let matrix = symmetric(tasks, |a, b| {
        let sums = sums.next().expect("one a pair, in the order of the pairs");
        of_sums(metric, sums, (&fishers.names[a], &fishers.names[b]))
    })?;
    Ok((matrix, plan.elements(), timings))
}

/// The Fishers side by side.
pub(super) fn layout(fishers: &Fishers) -> Layout {
    let tasks = 0..fishers.names.len();
    let stream = |fisher: usize| {
        let name = fishers.checkpoints[fisher].path().display().to_string();
        Stream { name, direction: Direction::Read }
    };
    let spec = |index: usize| {
        let tensor = fishers.tensor(0, index);
        let dtypes = (0..fishers.names.len()).map(|fisher| fishers.dtype(fisher, index)).collect();
        TensorSpec { name: tensor.name.clone(), elements: tensor.elements(), dtypes, class: 0 }
    };
    Layout {
        streams: tasks.map(stream).collect(),
        tensors: (0..fishers.places.len()).map(spec).collect(),
        scratch_bytes: 0,
    }
}

struct PairSweep<'a> {
    /// The kernel but for the pair's storage.
    any: Similarity,
    fishers: &'a Fishers,
    sources: &'a [CheckpointSource<'a>],
    /// Words of results between one pair's records and the next one's.
    stride: u64,
    sums: Vec<Sums>,
}

impl Sweep for PairSweep<'_> {
    fn result_words(&self) -> u64 {
        self.stride * self.sums.len() as u64
    }

    fn record(&self, recording: &mut Recording, chunk: &Chunk, buffers: &Buffers) -> Result<()> {
        let results = buffers.results.as_ref().expect("this sweep asks for results");
        let len = u32::try_from(chunk.elements).expect("a chunk's buffers are below the binding limit");
        for (pair, (a, b)) in (0..).zip(pairs(self.sources.len())) {
            let kernel = Similarity { a: chunk.dtypes[a], b: chunk.dtypes[b], ..self.any };
            let offset = results.offset() + 4 * self.stride * pair;
            let words = kernel.records(chunk.elements);
            let records = View::new(results.memory().clone(), offset, words, Element::F32)?;
            let args =
                SimilarityArgs { a: buffers.streams[a].clone(), b: buffers.streams[b].clone(), records };
            recording.dispatch(&kernel, SimilarityParams { len }, args)?;
        }
        Ok(())
    }

    fn absorb(&mut self, chunk: &Chunk, results: &[u32]) -> Result<()> {
        let records: &[f32] = bytemuck::cast_slice(results);
        let stride = usize::try_from(self.stride).expect("results lie in memory");
        for (pair, (a, b)) in pairs(self.sources.len()).enumerate() {
            let sums = Sums::fold(&self.any, chunk.elements, &records[pair * stride..]);
            for (bad, fisher) in [(sums.bad_a, a), (sums.bad_b, b)] {
                if let Some((tensor, index)) = bad.map(|at| chunk.element(at)) {
                    return Err(self.sources[fisher].bad_value(tensor, index, FISHER_VALUES));
                }
            }
            if let (Some(at), true) = (sums.one_zero, self.any.metric.needs_both()) {
                let (tensor, index) = chunk.element(at);
                let what = format!("index {index} of {}", printable(&self.fishers.tensor(0, tensor).name));
                return Err(one_zero(
                    self.any.metric,
                    (&self.fishers.names[a], &self.fishers.names[b]),
                    &what,
                ));
            }
            self.sums[pair] = self.sums[pair].followed_by(&sums);
        }
        Ok(())
    }
}
