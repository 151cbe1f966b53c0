//! One pass over the tensors that are merged alike.

use std::sync::atomic::{AtomicBool, Ordering};

use super::inputs::{Inputs, Pass};
use super::resume::Marks;
use super::scales::{Scale, Scales};
use super::{MergeReport, Method, NonFinite};
use crate::checkpoint::Output;
use crate::error::{Error, Result, printable};
use crate::kernels::Owner;
use crate::kernels::merge::{
    COUNT_STRIDE, COUNT_WORDS, Counts, Factor, Fisher, FisherArgs, FisherParams, Place, Ubgm, UbgmArgs,
    UbgmParams, state_words,
};
use crate::memory::{Element, View};
use crate::methods::source::{CheckpointSource, FISHER_VALUES, OutputSink};
use crate::record::{MergeStep, Recording};
use crate::shape::DType;
use crate::stream::{self, Buffers, Chunk, End, Job, Run, Sweep};

/// Runs one pass and adds what it counts to `report`.
pub(super) fn run(
    inputs: &Inputs<'_>,
    pass: &Pass,
    scales: &Scales,
    output: &Output,
    with: &Run<'_>,
    (report, marks): (&mut MergeReport, &mut Marks),
) -> Result<()> {
    let first = &inputs.models[0].model;
    let streams = inputs.streams(pass.weighted);
    let nonzero: Vec<AtomicBool> = streams.iter().map(|_| AtomicBool::new(false)).collect();
    let source = |((checkpoint, is_fisher), nonzero)| {
        let source = CheckpointSource::matching(checkpoint, first, &pass.tensors)?.noting(Some(nonzero));
        Ok(if is_fisher { source.of_fisher() } else { source })
    };
    let sources = streams.iter().copied().zip(&nonzero).map(source).collect::<Result<Vec<_>>>()?;
    let sink = OutputSink::matching(output, first, &pass.tensors);
    let (done, plan) = marks.split(&pass.plan);
    done.iter().flat_map(|chunk| &chunk.segments).try_for_each(|s| sink.vouch(s.tensor, s.start, s.len))?;
    let mut ends: Vec<End<'_>> = sources.iter().map(|source| End::Source(source)).collect();
    ends.push(End::Sink(&sink));
    let spare = || with.backend.alloc(8, Element::U32);
    let mut sweep = MergeSweep {
        inputs,
        pass,
        scales,
        sources: &sources,
        spare: [spare()?, spare()?],
        output,
        report,
        marks,
    };
    let job = Job { run: with, plan: &plan, ends };
    let timings = stream::run(&job, &mut sweep)?;
    report.timings += timings;
    report.bytes_read += plan.traffic().read;
    marks.end_pass();
    // What an earlier run has read, this one has not seen.
    if pass.weighted && done.is_empty() {
        let read = streams.iter().zip(&nonzero).filter(|(_, nonzero)| !nonzero.load(Ordering::Relaxed));
        read.for_each(|((checkpoint, _), _)| inputs.warn_of_zeros(checkpoint, report));
    }
    if !pass.weighted && inputs.options.method != Method::Linear {
        report.averaged += pass.plan.elements();
    }
    Ok(())
}

struct MergeSweep<'a> {
    inputs: &'a Inputs<'a>,
    pass: &'a Pass,
    scales: &'a Scales,
    sources: &'a [CheckpointSource<'a>],
    /// Stand in for the state and the result where a step uses none.
    spare: [View; 2],
    output: &'a Output,
    report: &'a mut MergeReport,
    marks: &'a mut Marks,
}

impl Sweep for MergeSweep<'_> {
    fn result_words(&self) -> u64 {
        COUNT_STRIDE * self.inputs.steps(self.pass.weighted) as u64
    }

    fn record(&self, recording: &mut Recording, chunk: &Chunk, buffers: &Buffers) -> Result<()> {
        let by_base = self.pass.weighted && self.inputs.options.method == Method::Ubgm;
        let steps = self.inputs.steps(self.pass.weighted);
        let mut merge = Vec::with_capacity(steps);
        for step in 0..steps {
            let buffers = self.step_buffers(chunk, buffers, step, steps)?;
            if by_base {
                self.record_ubgm(recording, chunk, &buffers, step, steps)?;
            } else {
                merge.push(self.fisher_step(Owner::of(recording.caps()), chunk, &buffers, step, steps));
            }
        }
        if by_base { Ok(()) } else { recording.merge(merge).map(|_| ()) }
    }

    fn absorb(&mut self, chunk: &Chunk, results: &[u32]) -> Result<()> {
        let stride = usize::try_from(COUNT_STRIDE).expect("64 fits usize");
        for (step, words) in results.chunks_exact(stride).enumerate() {
            self.count(chunk, step, Counts::of(words))?;
        }
        Ok(())
    }

    fn written(&mut self, chunk: &Chunk) -> Result<()> {
        let bytes = chunk.elements * output_dtype(chunk).size();
        self.marks.written(bytes, self.report, self.output)
    }
}

/// The views of one step.
struct StepBuffers<'a> {
    streams: &'a [View],
    state: View,
    merged: View,
    counts: View,
}

impl MergeSweep<'_> {
    fn step_buffers<'b>(
        &self,
        chunk: &Chunk,
        buffers: &'b Buffers,
        step: usize,
        steps: usize,
    ) -> Result<StepBuffers<'b>> {
        let (merged, streams) = buffers.streams.split_last().expect("the last stream is the output");
        let state = match &buffers.scratch {
            Some(scratch) if steps > 1 => scratch.first(state_words(chunk.elements))?,
            _ => self.spare[0].clone(),
        };
        let results = buffers.results.as_ref().expect("this sweep asks for results");
        let offset = results.offset() + 4 * COUNT_STRIDE * step as u64;
        let counts = View::new(results.memory().clone(), offset, COUNT_WORDS, Element::U32)?;
        let merged = if step + 1 == steps { merged.clone() } else { self.spare[1].clone() };
        Ok(StepBuffers { streams, state, merged, counts })
    }

    fn fisher_step(
        &self,
        owner: Owner,
        chunk: &Chunk,
        buffers: &StepBuffers<'_>,
        step: usize,
        steps: usize,
    ) -> MergeStep {
        let per_model = if self.pass.weighted { 2 } else { 1 };
        let models = self.inputs.models.len();
        let (a, pair) = (2 * step, 2 * step + 1 < models);
        let b = if pair { a + 1 } else { a };
        let theta = |m: usize| per_model * m;
        let fisher = |m: usize| per_model * m + per_model - 1;
        let storage = |m: usize| self.pass.weighted.then(|| chunk.dtypes[fisher(m)]);
        let kernel = Fisher {
            theta: [chunk.dtypes[theta(a)], chunk.dtypes[theta(b)]],
            fisher: [storage(a), storage(b)],
            reference: chunk.dtypes[0],
            merged: output_dtype(chunk),
            first: step == 0,
            last: step + 1 == steps,
            pair,
            floored: (0..models).any(|m| self.weight(m).floor > 0.0),
            owner,
        };
        let (weight_a, weight_b) = (self.weight(a), self.weight(b));
        let params = FisherParams {
            len: len32(chunk),
            lambda_a: weight_a.factor.mantissa,
            exponent_a: weight_a.factor.exponent,
            share_a: weight_a.share,
            floor_a: weight_a.floor.to_bits(),
            lambda_b: weight_b.factor.mantissa,
            exponent_b: weight_b.factor.exponent,
            share_b: weight_b.share,
            floor_b: weight_b.floor.to_bits(),
        };
        let args = FisherArgs {
            theta_a: buffers.streams[theta(a)].clone(),
            fisher_a: buffers.streams[fisher(a)].clone(),
            theta_b: buffers.streams[theta(b)].clone(),
            fisher_b: buffers.streams[fisher(b)].clone(),
            reference: buffers.streams[0].clone(),
            state: buffers.state.clone(),
            merged: buffers.merged.clone(),
            counts: buffers.counts.clone(),
        };
        MergeStep { kernel, params, args }
    }

    /// λ over the normaliser, λ's share of the plain average so far, and the floor.
    fn weight(&self, model: usize) -> Weight {
        let scale =
            if self.pass.weighted { self.scales.models[model] } else { Scale { factor: 1.0, floor: 0.0 } };
        let lambda = self.inputs.models[model].weight;
        let sum: f64 = self.inputs.models[..=model].iter().map(|m| m.weight).sum();
        let share = if sum > 0.0 { lambda / sum } else { 0.0 };
        #[expect(clippy::cast_possible_truncation, reason = "arithmetic is f32")]
        let share = share as f32;
        Weight { factor: Factor::product(lambda, scale.factor), share, floor: scale.floor }
    }

    fn record_ubgm(
        &self,
        recording: &mut Recording,
        chunk: &Chunk,
        buffers: &StepBuffers<'_>,
        step: usize,
        steps: usize,
    ) -> Result<()> {
        let base = 2 * self.inputs.models.len();
        let kernel = Ubgm {
            theta: chunk.dtypes[2 * step],
            fisher: chunk.dtypes[2 * step + 1],
            base: chunk.dtypes[base],
            base_fisher: chunk.dtypes[base + 1],
            merged: output_dtype(chunk),
            first: step == 0,
            last: step + 1 == steps,
            owner: Owner::of(recording.caps()),
        };
        let lambda = Factor::of(self.inputs.models[step].weight);
        let scale = Factor::of(self.scales.models[step].factor);
        let base_scale = Factor::of(self.scales.base.factor);
        let delta = Factor::of(self.inputs.base.as_ref().map_or(0.0, |base| base.weight));
        let params = UbgmParams {
            len: len32(chunk),
            lambda: lambda.mantissa,
            lambda_exponent: lambda.exponent,
            scale: scale.mantissa,
            scale_exponent: scale.exponent,
            floor: self.scales.models[step].floor.to_bits(),
            base_scale: base_scale.mantissa,
            base_scale_exponent: base_scale.exponent,
            delta: delta.mantissa,
            delta_exponent: delta.exponent,
        };
        let args = UbgmArgs {
            theta: buffers.streams[2 * step].clone(),
            fisher: buffers.streams[2 * step + 1].clone(),
            base: buffers.streams[base].clone(),
            base_fisher: buffers.streams[base + 1].clone(),
            state: buffers.state.clone(),
            merged: buffers.merged.clone(),
            counts: buffers.counts.clone(),
        };
        recording.dispatch(&kernel, params, args).map(|_| ())
    }

    /// Adds one step's counts, and refuses what they show.
    fn count(&mut self, chunk: &Chunk, step: usize, counts: Counts) -> Result<()> {
        for slot in 0..2 {
            let Some((theta, fisher)) = self.streams_of(step, slot) else { continue };
            self.refuse(chunk, counts.bad_theta[slot], theta, "a finite number")?;
            if let Some(fisher) = fisher {
                match self.inputs.options.non_finite {
                    NonFinite::Error => self.refuse(chunk, counts.bad_fisher[slot], fisher, FISHER_VALUES)?,
                    NonFinite::Zero => self.report.non_finite += u64::from(counts.bad_fisher[slot].count),
                }
            }
        }
        self.refuse_unrepresentable(chunk, counts.unrepresentable)?;
        if self.pass.weighted {
            self.report.fallback += u64::from(counts.fallback);
            self.report.floored += u64::from(counts.floored);
            self.report.dominated += u64::from(counts.dominated);
            self.report.raised += u64::from(counts.raised);
        }
        Ok(())
    }

    /// The streams of weights and Fisher that a step's counts of `slot` are about.
    fn streams_of(&self, step: usize, slot: usize) -> Option<(usize, Option<usize>)> {
        let models = self.inputs.models.len();
        if !self.pass.weighted {
            let model = 2 * step + slot;
            return (model < models).then_some((model, None));
        }
        let model = match (self.inputs.options.method, slot) {
            (Method::Ubgm, 0) => step,
            // The base comes after all models, and is counted in the first step.
            (Method::Ubgm, _) => models,
            _ => 2 * step + slot,
        };
        let known = model < models || (self.inputs.options.method == Method::Ubgm && step == 0);
        known.then_some((2 * model, Some(2 * model + 1)))
    }

    fn refuse(&self, chunk: &Chunk, place: Place, stream: usize, expected: &str) -> Result<()> {
        if place.count == 0 {
            return Ok(());
        }
        let (tensor, index) = chunk.element(place.first.into());
        Err(self.sources[stream].bad_value(tensor, index, expected))
    }

    /// Refuses a result that its storage type can't hold: the inputs were sound, the type does not fit them.
    fn refuse_unrepresentable(&self, chunk: &Chunk, place: Place) -> Result<()> {
        if place.count == 0 {
            return Ok(());
        }
        let (tensor, index) = chunk.element(place.first.into());
        let name = &self.inputs.models[0].model.tensors()[self.pass.tensors[tensor]].name;
        let dtype = output_dtype(chunk);
        let remedy = match dtype {
            DType::F32 => "are weights and values, and how far they lie apart, as large as meant?",
            DType::F16 | DType::BF16 => "choose a wider type (--dtype)",
        };
        let name = printable(name);
        let problem = format!(
            "tensor {name}: the merged value at index {index} is beyond the range of {dtype}; {remedy}"
        );
        Err(Error::mismatch("merge", problem))
    }
}

struct Weight {
    factor: Factor,
    share: f32,
    floor: f32,
}

fn output_dtype(chunk: &Chunk) -> DType {
    *chunk.dtypes.last().expect("the last stream is the output")
}

fn len32(chunk: &Chunk) -> u32 {
    u32::try_from(chunk.elements)
        .expect("a chunk's buffers are below the binding limit, so its length fits u32")
}
