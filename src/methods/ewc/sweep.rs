//! One pass: penalties of every term, and the gradient.

use std::sync::atomic::AtomicU64;

use super::OP;
use super::inputs::Inputs;
use crate::checkpoint::{Checkpoint, Output, TensorInfo};
use crate::error::{Error, Result, printable};
use crate::kernels::Owner;
use crate::kernels::ewc::{
    Gradient, GradientArgs, GradientParams, Penalty, PenaltyArgs, PenaltyParams, PenaltySum,
};
use crate::memory::{Element, View};
use crate::methods::source::{CheckpointSource, FISHER_VALUES, OutputSink};
use crate::record::Recording;
use crate::shape::DType;
use crate::stream::{
    Buffers, Chunk, Direction, End, Job, Layout, Plan, Run, Sink, Stream, Sweep, TensorSpec, Timings, run,
};

/// Records of one step start at a multiple of this many words: 256 bytes, the strictest device's alignment.
const STRIDE: u64 = 64;

/// One pass over the tensors that the same terms are about. Streams: θ, then θ* and F of each term, then the gradient.
pub(super) struct PassInputs<'a> {
    inputs: &'a Inputs,
    terms: &'a [usize],
    tensors: &'a [usize],
    sources: Vec<CheckpointSource<'a>>,
    sink: Option<FiniteSink<'a>>,
}

impl<'a> PassInputs<'a> {
    pub(super) fn of(
        inputs: &'a Inputs,
        terms: &'a [usize],
        tensors: &'a [usize],
        output: Option<&'a Output>,
        zeroed: Option<&'a AtomicU64>,
    ) -> Result<Self> {
        let source = |file| CheckpointSource::matching(file, &inputs.model, tensors);
        let mut sources = vec![source(&inputs.model)?];
        for &term in terms {
            sources.push(source(&inputs.terms[term].anchor)?);
            sources.push(source(&inputs.terms[term].fisher)?.zeroing(zeroed));
        }
        let sink = output.map(|output| FiniteSink {
            sink: OutputSink::matching(output, &inputs.model, tensors),
            names: tensors.iter().map(|&place| inputs.model.tensors()[place].name.as_str()).collect(),
        });
        Ok(Self { inputs, terms, tensors, sources, sink })
    }

    fn files(&self) -> impl Iterator<Item = &'a Checkpoint> {
        let inputs = self.inputs;
        let terms =
            self.terms.iter().flat_map(move |&term| [&inputs.terms[term].anchor, &inputs.terms[term].fisher]);
        std::iter::once(&inputs.model).chain(terms)
    }

    pub(super) fn layout(&self, gradient: bool) -> Layout {
        let read = |file: &Checkpoint| Stream {
            name: file.path().display().to_string(),
            direction: Direction::Read,
        };
        let mut streams: Vec<Stream> = self.files().map(read).collect();
        if gradient {
            streams.push(Stream { name: "gradient".into(), direction: Direction::Write });
        }
        let spec = |&place: &usize| {
            let tensor = &self.inputs.model.tensors()[place];
            let dtype =
                |file: &Checkpoint| file.get(&tensor.name).and_then(TensorInfo::float).unwrap_or(DType::F32);
            let dtypes = self.files().map(dtype).chain(gradient.then_some(DType::F32)).collect();
            TensorSpec { name: tensor.name.clone(), elements: tensor.elements(), dtypes, class: 0 }
        };
        Layout { streams, tensors: self.tensors.iter().map(spec).collect(), scratch_bytes: 0 }
    }

    pub(super) fn run(&self, plan: &Plan, sums: &mut [f64], with: &Run<'_>) -> Result<Timings> {
        let mut ends: Vec<End<'_>> = self.sources.iter().map(|source| End::Source(source)).collect();
        ends.extend(self.sink.as_ref().map(|sink| End::Sink(sink)));
        let longest = plan.chunks().iter().map(|chunk| chunk.elements).max().unwrap_or(0);
        let owner = Owner::of(&with.backend.caps());
        let penalty = Penalty { theta: DType::F32, anchor: DType::F32, fisher: DType::F32, owner };
        let stride = penalty.records(longest).next_multiple_of(STRIDE);
        let mut sweep = EwcSweep { pass: self, penalty, stride, sums };
        run(&Job { run: with, plan, ends }, &mut sweep)
    }
}

struct EwcSweep<'a> {
    pass: &'a PassInputs<'a>,
    /// The kernel but for a term's storage.
    penalty: Penalty,
    /// Words of results between one term's records and the next one's.
    stride: u64,
    /// Σ F (θ − θ*)² of every term.
    sums: &'a mut [f64],
}

impl Sweep for EwcSweep<'_> {
    fn result_words(&self) -> u64 {
        self.stride * self.pass.terms.len() as u64
    }

    fn record(&self, recording: &mut Recording, chunk: &Chunk, buffers: &Buffers) -> Result<()> {
        let results = buffers.results.as_ref().expect("this sweep asks for results");
        let len = u32::try_from(chunk.elements).expect("a chunk's buffers are below the binding limit");
        let (streams, dtypes) = (&buffers.streams, &chunk.dtypes);
        for (step, &term) in self.pass.terms.iter().enumerate() {
            let (a, f) = (2 * step + 1, 2 * step + 2);
            let offset = results.offset() + 4 * self.stride * step as u64;
            let words = self.penalty.records(chunk.elements);
            let records = View::new(results.memory().clone(), offset, words, Element::F32)?;
            let kernel = Penalty { theta: dtypes[0], anchor: dtypes[a], fisher: dtypes[f], ..self.penalty };
            let (theta, anchor, fisher) = (streams[0].clone(), streams[a].clone(), streams[f].clone());
            let args =
                PenaltyArgs { theta: theta.clone(), anchor: anchor.clone(), fisher: fisher.clone(), records };
            recording.dispatch(&kernel, PenaltyParams { len }, args)?;
            if self.pass.sink.is_some() {
                let gradient = streams.last().expect("the last stream is the gradient").clone();
                let kernel = Gradient {
                    theta: dtypes[0],
                    anchor: dtypes[a],
                    fisher: dtypes[f],
                    gradient: DType::F32,
                    add: step > 0,
                };
                let params = GradientParams::new(len, self.pass.inputs.terms[term].weight);
                recording.dispatch(&kernel, params, GradientArgs { theta, anchor, fisher, gradient })?;
            }
        }
        Ok(())
    }

    fn absorb(&mut self, chunk: &Chunk, results: &[u32]) -> Result<()> {
        let records: &[f32] = bytemuck::cast_slice(results);
        let stride = usize::try_from(self.stride).expect("results lie in memory");
        for (step, &term) in self.pass.terms.iter().enumerate() {
            let sum = PenaltySum::fold(&self.penalty, chunk.elements, &records[step * stride..]);
            for (bad, stream, expected) in [
                (sum.bad_theta, 0, "a finite number"),
                (sum.bad_anchor, 2 * step + 1, "a finite number"),
                (sum.bad_fisher, 2 * step + 2, FISHER_VALUES),
            ] {
                let Some(at) = bad else { continue };
                let (tensor, index) = chunk.element(at);
                return Err(self.pass.sources[stream].bad_value(tensor, index, expected));
            }
            self.sums[term] += sum.sum;
        }
        Ok(())
    }
}

/// The gradient's file, which takes finite numbers only.
struct FiniteSink<'a> {
    sink: OutputSink<'a>,
    names: Vec<&'a str>,
}

impl Sink for FiniteSink<'_> {
    fn write(&self, tensor: usize, start: u64, bytes: &[u8]) -> Result<()> {
        let values = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
        if let Some((index, value)) = (start..).zip(values).find(|(_, value)| !value.is_finite()) {
            let problem = format!(
                "tensor {}: index {index} of the gradient is {value:?}, beyond the range of f32; choose a smaller --lambda",
                printable(self.names[tensor])
            );
            return Err(Error::mismatch(OP, problem));
        }
        self.sink.write(tensor, start, bytes)
    }
}
